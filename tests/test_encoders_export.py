"""Laws of exporting: a graph is in the version, is there whole or not at all, and is never another model's."""

import shutil
import subprocess
import sys
from dataclasses import replace

import onnx
import pytest
import torch
from tiny_models import BACKENDS, SHAPE, TEXTS, cosine, ours, save_bert, save_sentence_bert, save_tokenizer

from encoders import export, load_encoder, resolve_spec
from encoders.export import ensure_graph, export_graph
from encoders.model_spec import ModelSpec
from encoders.transformer import load_model
from manyray.pinning import pin_spec
from schemas.errors import Fatal
from streams.settings import load_settings
from tests.test_cli import launch
from tests.waiting import wait_until

pytest_plugins = ("tiny_graphs",)


@pytest.mark.parametrize("family", ["Bert", "Qwen3"])
def test_a_graph_says_nothing_of_the_machine(exported, family):
    """Neither where torch and this project lie nor their lines: the same versions make the same graph elsewhere."""
    content = exported(family)[1].read_bytes()
    for path in (torch.__file__, export.__file__):
        assert path.encode() not in content
    assert b".py" not in content


def test_the_version_is_of_the_backend_and_the_graph(tmp_path):
    """Not of the graph's place or name; one byte of it is another version. No graph is loaded for that."""
    folder = save_bert(tmp_path / "model")
    graph = tmp_path / "a.onnx"
    graph.write_bytes(b"graph")

    def version(backend="torch", graph=""):
        return resolve_spec(str(folder), backend=backend, graph=str(graph)).version

    versions = {version(), *(version(backend, graph) for backend in BACKENDS)}
    assert len(versions) == 3
    (tmp_path / "other").mkdir()
    moved = shutil.copy(graph, tmp_path / "other" / "b.onnx")
    assert version("openvino", moved) in versions
    graph.write_bytes(b"graqh")
    assert version("openvino", graph) not in versions


def test_naming_a_version_is_light(bert):
    """Neither torch nor what reads or runs a graph is imported for it."""
    code = f"""
import sys, encoders
print(encoders.resolve_spec(**{bert | {"backend": "openvino"}}).version)
print([name for name in ("torch", "transformers", "onnx", "onnxruntime", "openvino") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[1] == "[]"


def test_weights_beside_a_graph_are_of_the_version(monkeypatch, tmp_path, exported):
    """As graphs of more than 1.5 GB have them: both backends find them, and what is gone or changed is seen."""
    monkeypatch.setattr("torch.onnx._internal.exporter._onnx_program._LARGE_MODEL_THRESHOLD", 1_000)
    folder, graph = exported("Bert")[0], tmp_path / "large.onnx"
    spec = ModelSpec(str(folder), backend="openvino", graph=str(graph))
    ensure_graph(spec, graph)
    weights = tmp_path / "large.onnx.data"
    assert sorted(tmp_path.iterdir()) == [graph, weights]
    for backend in BACKENDS:
        assert cosine(ours(folder, backend=backend, graph=str(graph)), ours(folder)) >= 0.99999
    version = resolve_spec(spec).version
    moved = tmp_path / "other" / "mine.onnx"
    moved.parent.mkdir()
    shutil.copy(graph, moved)
    with pytest.raises(Fatal, match=r"mine\.onnx: its weights lie in 'large\.onnx\.data', which is no file beside it"):
        resolve_spec(replace(spec, graph=str(moved)))
    shutil.copy(weights, moved.parent)
    assert resolve_spec(replace(spec, graph=str(moved))).version == version
    content = bytearray(weights.read_bytes())
    content[1_000] ^= 1
    weights.write_bytes(content)
    assert resolve_spec(spec).version != version
    proto = onnx.load(moved, load_external_data=False)
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            entry.value = entry.value.replace("large.onnx.data", "../large.onnx.data")
    onnx.save(proto, moved)
    with pytest.raises(Fatal, match=r"lie in '\.\./large\.onnx\.data', which is no file beside it"):
        resolve_spec(replace(spec, graph=str(moved)))


@pytest.mark.parametrize("backend", BACKENDS)
def test_pin_exports_the_graph(tmp_path, exported, backend):
    """Beside the file, by its name, and says so in it; pinned again, or moved with its folder, all is as it was."""
    shutil.copytree(exported("Bert")[0], tmp_path / "one" / "tiny")
    file = tmp_path / "one" / "mine.toml"
    file.write_text(f'# mine\nmodel = "tiny"\nbackend = "{backend}"\ngraph = "gone.onnx"\n')

    def pin():
        return pin_spec(load_settings(), file, None, layout=None, text_field="text")

    assert pin().startswith(f"pinned version {resolve_spec(str(file)).version} in {file}: 32 dims")
    assert file.read_text().startswith(
        f'# mine\nmodel = "tiny"\nbackend = "{backend}"\ngraph = "mine.onnx"\ngolden = ['
    )
    assert sorted(path.name for path in file.parent.iterdir()) == ["mine.onnx", "mine.toml", "tiny"]
    before = file.read_text(), (tmp_path / "one" / "mine.onnx").read_bytes()
    pin()
    assert (file.read_text(), (tmp_path / "one" / "mine.onnx").read_bytes()) == before
    version = resolve_spec(str(file)).version
    moved = (tmp_path / "one").rename(tmp_path / "two") / "mine.toml"
    encoder = load_encoder(str(moved), device="auto")
    assert encoder.spec.version == version
    assert cosine(encoder.encode(encoder.tokenise(TEXTS), 64).vectors, ours(moved.parent / "tiny")) >= 0.99999


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_graph_of_another_model_is_never_pinned(tmp_path, exported, bert, backend):
    """Nor one that is broken, or takes something else: what it is, and the remedy, in a line."""
    other = str(save_sentence_bert(tmp_path / "other", seed=1))
    with pytest.raises(Fatal, match=r"does not compute what model=.*cosine .*remove it, and `manyray pin FILE\.toml`"):
        ensure_graph(ModelSpec(other, backend=backend, graph=bert["graph"]), exported("Bert")[1])
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(exported("Bert")[1].read_bytes()[:5_000])
    names = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
    with pytest.raises(Fatal, match=rf"broken\.onnx: {names[backend]} cannot load it"):
        load_encoder(other, backend=backend, graph=str(broken), device="cpu")
    broken.write_bytes(b"")
    with pytest.raises(Fatal, match=r"broken\.onnx is empty"):
        load_encoder(other, backend=backend, graph=str(broken), device="cpu")
    foreign = onnx.load(bert["graph"])
    onnx.compose.add_prefix(foreign, "their_", inplace=True)
    onnx.save(foreign, tmp_path / "foreign.onnx")
    with pytest.raises(Fatal, match="takes their_ids, their_mask and gives their_hidden, not ids, mask and hidden"):
        load_encoder(other, backend=backend, graph=str(tmp_path / "foreign.onnx"), device="cpu")
    torch.manual_seed(0)
    from transformers import BertConfig, BertModel

    wide = SHAPE | {"hidden_size": 64, "vocab_size": 150, "max_position_embeddings": 40}
    BertModel(BertConfig(**wide)).save_pretrained(tmp_path / "wide")
    save_tokenizer(tmp_path / "wide")
    with pytest.raises(Fatal, match="gives 32 numbers a token, and the model 64"):
        load_encoder(str(tmp_path / "wide"), backend=backend, graph=bert["graph"], device="cpu")


def test_a_model_that_cannot_be_exported_is_told(monkeypatch, tmp_path):
    """Or whose graph computes something else: nothing is left of it, and torch is the remedy."""
    folder = save_bert(tmp_path / "model")
    model = load_model(folder, torch.float32)
    forward = model.forward
    model.forward = lambda **given: forward(**given) if given["input_ids"].sum() > 9 else None
    with pytest.raises(Fatal, match=r"model=.*model cannot be exported to ONNX \(.*\): set backend to torch"):
        export_graph(model, tmp_path / "model.onnx")
    monkeypatch.setattr(export, "COSINE_MIN", 1.1)
    with pytest.raises(Fatal, match=r"computes something else as a graph \(cosine 1\.0000\): set backend to torch"):
        ensure_graph(ModelSpec(str(folder), backend="onnxruntime"), tmp_path / "model.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_an_export_that_is_killed_leaves_no_graph(tmp_path, exported):
    """Nothing under its name; what is left beside it goes with the next."""
    folder = shutil.copytree(exported("Bert")[0], tmp_path / "tiny")
    file = tmp_path / "mine.toml"
    file.write_text('model = "tiny"\nbackend = "onnxruntime"\n')
    process = launch("pin", "mine.toml", cwd=tmp_path)
    wait_until((tmp_path / "mine.onnx.part").exists, "the export begins")
    process.kill()
    process.wait(60)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.onnx.part", "mine.toml", "tiny"]
    assert file.read_text() == 'model = "tiny"\nbackend = "onnxruntime"\n'
    ensure_graph(ModelSpec(str(folder), backend="onnxruntime"), tmp_path / "mine.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.onnx", "mine.toml", "tiny"]
