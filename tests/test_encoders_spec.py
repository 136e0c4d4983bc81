"""Laws of a spec: what it may say, and that the encoder then does it, as sentence-transformers would."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny_models import TEXTS, ours, save_sentence_bert, write

from encoders import ModelSpec, load_encoder, model_spec, resolve_spec
from encoders.golden import TEXTS as GOLDEN_TEXTS
from encoders.golden import check_golden, golden_of, sketch
from schemas.errors import Fatal


def edit(folder, name, **values):
    """Set keys of one JSON file of a folder, which is returned."""
    path = folder / name
    write(path, {**(json.loads(path.read_text()) if path.exists() else {}), **values})
    return folder


def theirs(folder, texts=TEXTS, **how):
    """Encode with sentence-transformers, told how."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    return model.encode(texts, show_progress_bar=False, **how)


@pytest.mark.parametrize("prompt", ["query: ", "  the fox", "q"])
@pytest.mark.parametrize("pools_prompt", [True, False])
@pytest.mark.parametrize("mode", ["mean", "cls", "max", "weightedmean", "lasttoken"])
def test_a_prompt_goes_before_every_text(tmp_path, prompt, pools_prompt, mode):
    """As E5's and BGE's; where a folder says so, as Instructor's, its tokens are read and not pooled."""
    folder = save_sentence_bert(tmp_path, pooling={"pooling_mode": mode, "include_prompt": pools_prompt})
    assert np.allclose(ours(folder, prompt=prompt), theirs(folder, prompt=prompt), atol=2e-6)


def test_a_folders_own_prompt_is_used_and_may_be_left_out(tmp_path):
    """default_prompt_name of its configuration, as sentence-transformers does; an empty prompt is none."""
    folder = save_sentence_bert(tmp_path)
    plain = ours(folder)
    prompts = {"query": "the fox: ", "document": None}
    edit(folder, "config_sentence_transformers.json", prompts=prompts, default_prompt_name="query")
    assert np.allclose(ours(folder), theirs(folder), atol=2e-6)
    assert not np.allclose(ours(folder), plain, atol=0.01)
    assert np.allclose(ours(folder, prompt=""), plain, atol=2e-6)
    edit(folder, "config_sentence_transformers.json", default_prompt_name="document")
    assert np.allclose(ours(folder), plain, atol=2e-6)


def add_dense(folder, number, takes, gives, **values):
    """Write one more Dense module, with random weights."""
    path = folder / f"{number}_Dense"
    write(path / "config.json", {"in_features": takes, "out_features": gives, "bias": True, **values})
    torch.manual_seed(number)
    weights = {"linear.weight": torch.randn(gives, takes) / 4, "linear.bias": torch.randn(gives)}
    if values.get("bias") is False:
        del weights["linear.bias"]
    if values.get("use_residual") and takes != gives:
        weights["residual.weight"] = torch.randn(gives, takes) / 4
    save_file(weights, path / "model.safetensors")
    listed = json.loads((folder / "modules.json").read_text())
    new = {"idx": number, "name": str(number), "path": path.name, "type": "sentence_transformers.models.Dense"}
    write(folder / "modules.json", [*listed, new])


@pytest.mark.parametrize("activation", ["linear.Identity", "activation.Tanh", "activation.ReLU", "activation.GELU"])
@pytest.mark.parametrize("values", [{}, {"bias": False}, {"use_residual": True}], ids=str)
def test_dense_layers_are_sentence_transformers_own(tmp_path, activation, values):
    """One after another, as of LaBSE and EmbeddingGemma: other sizes, activations, without bias, with a residual."""
    folder = save_sentence_bert(tmp_path, modules=("Transformer", "Pooling"))
    how = {"activation_function": f"torch.nn.modules.{activation}", **values}
    add_dense(folder, 2, 32, 48, **how)
    add_dense(folder, 3, 48, 48, **how)
    assert ours(folder).shape[1] == 48
    assert np.allclose(ours(folder), theirs(folder), atol=5e-6)


def test_a_dense_layer_of_another_model_is_refused(tmp_path):
    """Its weights take other vectors than the pooling gives."""
    folder = save_sentence_bert(tmp_path, modules=("Transformer", "Pooling"))
    add_dense(folder, 2, 16, 48)
    with pytest.raises(Fatal, match="do not take 32 numbers to 48"):
        ours(folder)
    (folder / "2_Dense" / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(Fatal, match="weights cannot be read"):
        ours(folder)


def test_pooling_and_length_may_be_chosen(tmp_path):
    """For a plain folder that does not say: BGE's cls, E5's mean, unit vectors or not."""
    folder = save_sentence_bert(tmp_path / "a", pooling={"pooling_mode": "cls"})
    other = tmp_path / "b"
    shutil.copytree(folder, other)  # a tokenizer that is trained anew may number its tokens otherwise
    edit(other, "1_Pooling/config.json", pooling_mode="max")
    write(other / "modules.json", json.loads((other / "modules.json").read_text())[:2])
    assert np.array_equal(ours(other, pooling="cls", normalise=True), ours(folder))
    assert np.array_equal(ours(folder, pooling="max", normalise=False), ours(other))


def test_texts_are_cut_on_the_side_that_is_chosen(tmp_path):
    """On the left the end of a text counts, on the right its begin."""
    folder = save_sentence_bert(tmp_path)
    texts = ["a " * 50 + "fox", "b " * 50 + "fox", "fox" + " a" * 50, "fox" + " b" * 50]
    right, left = (ours(folder, texts, max_tokens=3, truncation_side=side) for side in ("right", "left"))
    assert np.allclose(left[0], left[1], atol=1e-6)
    assert not np.allclose(right[0], right[1], atol=1e-3)
    assert np.allclose(right[2], right[3], atol=1e-6)


def test_a_prefix_is_scaled_to_length_1_again(tmp_path):
    """Matryoshka: the first numbers of the whole vector, as a vector of length 1."""
    folder = save_sentence_bert(tmp_path)
    whole = ours(folder)
    edit(folder, "config.json", matryoshka_dimensions=[8, 16])
    prefix = ours(folder, dims=8)
    expected = whole[:, :8] / np.linalg.norm(whole[:, :8], axis=1, keepdims=True)
    assert np.allclose(prefix, expected, atol=2e-6)


@pytest.mark.parametrize(
    ("said", "choices"),
    [
        ({"matryoshka_dimensions": [8, 16]}, {}),
        ({"is_matryoshka": True}, {}),
        ({"is_matryoshka": True, "matryoshka_dimensions": [8]}, {}),
        ({}, {"matryoshka_dims": (8,)}),
    ],
    ids=str,
)
def test_a_prefix_needs_a_model_that_was_trained_for_it(tmp_path, said, choices):
    """The model's configuration says so, in the field's two ways, or who writes the spec; before any weight is read."""
    folder = save_sentence_bert(tmp_path)
    with pytest.raises(Fatal, match=r"dims=8.*leave dims out.*matryoshka_dims"):
        resolve_spec(str(folder), dims=8)
    edit(folder, "config.json", **said)
    resolve_spec(str(folder), dims=8, **choices)
    if said != {"is_matryoshka": True}:
        with pytest.raises(Fatal, match=r"dims=12.*but of those of 8"):
            resolve_spec(str(folder), dims=12, **choices)


def test_a_prefix_that_a_folder_sets_is_its_default(tmp_path):
    """truncate_dim of its configuration: the vectors are as long, and a longer prefix is refused at load."""
    folder = edit(save_sentence_bert(tmp_path), "config_sentence_transformers.json", truncate_dim=16)
    assert ours(folder).shape[1] == 16
    with pytest.raises(Fatal, match="dims=64 is more than the 32 numbers"):
        ours(folder, dims=64, matryoshka_dims=(64,))


def test_binary_needs_whole_bytes(tmp_path):
    """12 numbers are a byte and a half."""
    folder = save_sentence_bert(tmp_path)
    with pytest.raises(Fatal, match="output=binary stores eight numbers a byte, and dims=12"):
        ours(folder, dims=12, matryoshka_dims=(12,), output="binary")


def test_a_file_says_what_flags_say(tmp_path):
    """Each choice of a TOML file is the choice of the same name; a folder is named as seen from the file."""
    folder = save_sentence_bert(tmp_path / "models" / "mine")
    choices = {"prompt": "q: ", "max_tokens": 12, "dims": 8, "output": "int8", "scale": 0.01, "normalise": True}
    lines = [f"{name} = {json.dumps(value)}" for name, value in choices.items()]
    file = tmp_path / "models" / "mine.toml"
    file.write_text("\n".join(['model = "mine"', "matryoshka_dims = [8]", *lines]))
    spec = model_spec(str(file))
    assert spec == ModelSpec(str(folder), matryoshka_dims=(8,), **choices)
    assert resolve_spec(spec) == resolve_spec(str(folder), matryoshka_dims=(8,), **choices)
    encoder = load_encoder(str(file), device="cpu")
    assert encoder.dims == 8
    assert encoder.spec.form.output == "int8"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "names no model"),
        ("model = 3", "model=3, which has to be str"),
        ('model = "hash"\nmodle = "x"', "sets modle, which is no choice: known ones are model, revision"),
        ('model = "hash"\ndims = "8"', "dims='8', which has to be int | None"),
        ('model = "minilm"\nmax_tokens = true', "max_tokens=True"),
        ('model = "minilm"\nmatryoshka_dims = ["8"]', "matryoshka_dims="),
        ('model = "minilm"\npooling = "median"', "pooling=median is unknown: set it to cls"),
        ('model = "minilm"\ntruncation_side = "top"', "truncation_side=top"),
        ('model = "minilm"\noutput = "int4"', "output=int4 is unknown: set it to float32, float16, int8, binary"),
        ('model = "minilm"\noutput = "int8"', "output=int8 needs a scale"),
        ('model = "minilm"\nscale = 1', "scale=1 is for output=int8"),
        ('model = "minilm"\noutput = "int8"\nscale = 0', "scale=0: set it to a number above 0"),
        ('model = "minilm"\noutput = "int8"\nscale = nan', "scale=nan"),
        ('model = "hash"\nprompt = "q: "', "leave every other choice out"),
        ("model = ", "is not TOML"),
    ],
)
def test_a_file_that_says_nonsense_is_refused(tmp_path, text, said):
    """The message names the choice, its value and what may be."""
    file = tmp_path / "bad.toml"
    file.write_text(text)
    with pytest.raises(Fatal, match=said.replace("|", r"\|")):
        resolve_spec(str(file))


def test_a_file_that_is_not_there_or_has_rivals_is_refused(tmp_path):
    """A missing file is told by name; what is set beside the file belongs into it."""
    with pytest.raises(Fatal, match=r"none\.toml cannot be read: No such file"):
        model_spec(str(tmp_path / "none.toml"))
    file = tmp_path / "some.toml"
    file.write_text('model = "minilm"')
    assert model_spec(str(file), dtype="auto", revision="", max_tokens=None).model == "minilm"
    with pytest.raises(Fatal, match="max_tokens is set beside it: set it in the file"):
        model_spec(str(file), max_tokens=8)


def test_outputs_are_versions_of_their_own():
    """Vectors of two types never share a topic or a table."""
    specs = [{}, {"output": "float16"}, {"output": "int8", "scale": 0.01}, {"output": "int8", "scale": 0.02}]
    assert len({resolve_spec(model, **spec).version for spec in specs for model in ("hash", "minilm")}) == 8


def test_golden_tells_weights_apart(tmp_path):
    """The model that was pinned passes, in another type of computation too; other weights are refused, by how much."""
    folder = save_sentence_bert(tmp_path / "a")
    golden = sketch(load_encoder(str(folder), device="cpu"))
    assert len(golden) == len(GOLDEN_TEXTS)
    for dtype in ("float32", "bfloat16"):
        load_encoder(str(folder), device="cpu", golden=golden, dtype=dtype)
    other = save_sentence_bert(tmp_path / "b", seed=1)
    with pytest.raises(Fatal, match=r"golden: \d+\.\d% of signs differ"):
        load_encoder(str(other), device="cpu", golden=golden)
    with pytest.raises(Fatal, match="another model's"):
        load_encoder("hash:128", golden=golden)
    with pytest.raises(Fatal, match="not what `manyray pin` wrote"):
        load_encoder(str(folder), device="cpu", golden=("xyz",))


def test_the_carried_model_is_checked_as_it_is():
    """Its golden is in the code; one who changes what it computes has none, and pins it."""
    assert golden_of(ModelSpec())
    assert golden_of(ModelSpec(max_tokens=64, output="float16"))
    assert not golden_of(ModelSpec(prompt="query: "))
    assert golden_of(ModelSpec(golden=("00",))) == ("00",)
    encoder = load_encoder(device="cpu")
    with pytest.raises(Fatal, match="of signs differ"):
        check_golden(encoder, tuple(reversed(golden_of(ModelSpec()))))
