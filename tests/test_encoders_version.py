"""Laws of the version: what it sees, what it does not, and what is refused before any model is loaded."""

import json
import os
import shutil
import socketserver
import subprocess
import sys
import threading
from dataclasses import fields, replace
from pathlib import Path

import pytest
from tiny_models import ours, save_bert, save_sentence_bert, write

from encoders import VersionSpec, load_encoder, resolve_spec
from schemas.errors import Fatal

REVISION = "0123456789abcdef0123456789abcdef01234567"


def version_of(model, **settings):
    """The version, as a user's settings name it."""
    return resolve_spec(str(model), **settings).version


def test_the_version_is_twelve_hexadecimal_characters_that_never_change():
    """A golden value: the digest of a spec is for good, or every cached vector is lost."""
    assert VersionSpec("text", "sha256:00").version == "3f658416cd22"


def test_every_field_is_in_the_version():
    """A spec that differs in any one field has another version."""
    spec = VersionSpec("text", "sha256:00")
    others = {
        "kind": "hash",
        "source": "sha256:01",
        "dtype": "float32",
        "max_tokens": 12,
        "prompt": "",
        "pooling": "cls",
        "backend": "openvino",
        "graph": "sha256:02",
    }
    others |= {"truncation_side": "left", "normalise": False, "dims": 8, "output": "int8", "scale": 0.5}
    assert set(others) == {field.name for field in fields(spec)}
    assert len({spec.version, *(replace(spec, **{name: value}).version for name, value in others.items())}) == 14


def test_the_place_of_a_folder_does_not_matter(tmp_path):
    """A copy, a relative path and a link have the version of the original; files that nothing reads have no say."""
    folder = save_sentence_bert(tmp_path / "a")
    version = version_of(folder)
    copy = tmp_path / "deep" / "b"
    shutil.copytree(folder, copy)
    (copy / "README.md").write_text("read me")
    (copy / "pytorch_model.bin").write_bytes(b"never read")
    (copy / "onnx").mkdir()
    write(copy / "onnx" / "config.json", {})
    (tmp_path / "link").symlink_to(folder)
    assert version_of(copy) == version_of(tmp_path / "link") == version_of(os.path.relpath(folder)) == version


def test_the_content_of_every_file_is_in_the_version(tmp_path):
    """One byte more in any file that is read is another version, and so is another name or a file less."""
    folder = save_sentence_bert(tmp_path)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    assert {path.suffix for path in files} == {".json", ".safetensors"}
    assert len(files) == 7
    versions = {version_of(folder)}
    for path in files:
        content = path.read_bytes()
        path.write_bytes(content + b" ")
        versions.add(version_of(folder))
        path.write_bytes(content)
    (folder / "vocab.txt").write_text("a")
    versions.add(version_of(folder))
    (folder / "vocab.txt").rename(folder / "vocabulary.txt")  # in the same place of the order
    versions.add(version_of(folder))
    assert len(versions) == 1 + 7 + 2


def test_two_processes_agree():
    """Neither hash seeds nor the working directory are in the version."""
    code = "import encoders, sys; sys.stdout.write(encoders.resolve_spec('minilm', max_tokens=64).version)"
    env = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": str(Path.cwd())}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/", env=env)
    assert done.stdout == version_of("minilm", max_tokens=64)


def test_a_loaded_encoder_carries_the_version_that_was_named(tmp_path):
    """What the fingerprints hold is what the encoder computes."""
    folder = save_bert(tmp_path)
    for settings in ({}, {"dtype": "float32"}, {"max_tokens": 9}):
        assert load_encoder(str(folder), device="cpu", **settings).spec == resolve_spec(str(folder), **settings)


@pytest.mark.parametrize(
    ("model", "revision", "said"),
    [
        ("minlm", "", "did you mean minilm"),
        ("MiniLM", "", "did you mean minilm"),
        ("all-MiniLM-L6-v2", "", "did you mean minilm"),
        ("hsah", "", "did you mean hash"),
        ("", "", "org/name"),
        ("a/b/c", "", "org/name"),
        ("./no/such", "", "no such folder"),
        ("/no/such", "", "no such folder"),
        ("org/name", "", "revision"),
        ("org/name", "main", "revision=main"),
        ("org/name", REVISION[:39], "40 hexadecimal"),
        ("org/name", REVISION.upper(), "40 hexadecimal"),
        ("minilm", REVISION, "leave revision empty"),
    ],
)
def test_names_that_are_unknown_or_not_pinned_are_refused(model, revision, said):
    """The message names the setting, what is accepted, and the nearest name."""
    with pytest.raises(Fatal, match=said) as refusal:
        resolve_spec(model, revision=revision)
    assert f"model={model}" in str(refusal.value)


def test_a_hub_id_is_named_without_a_network():
    """The source is the id and the commit, and both are in the version."""
    assert resolve_spec("org/name", revision=REVISION).source == f"hub:org/name@{REVISION}"
    assert version_of("org/name", revision=REVISION) != version_of("org/other", revision=REVISION)


@pytest.mark.parametrize("settings", [{"dtype": "float16"}, {"dtype": ""}, {"max_tokens": 0}, {"max_tokens": -1}])
def test_settings_that_cannot_be_are_refused(settings):
    """The message names the setting and its value."""
    ((name, value),) = settings.items()
    with pytest.raises(Fatal, match=f"{name}={value}"):
        resolve_spec("minilm", **settings)


def pickled(folder):
    """Weights in a pickle alone."""
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def edit(name, **values):
    """Set keys of one JSON file of the folder."""

    def change(folder):
        path = folder / name
        write(path, {**(json.loads(path.read_text()) if path.exists() else {}), **values})

    return change


def modules(*kinds):
    """Another list of modules, each named in full."""
    return lambda folder: write(folder / "modules.json", [{"type": kind, "path": path} for kind, path in kinds])


TRANSFORMER = ("sentence_transformers.models.Transformer", "")
POOLING = ("sentence_transformers.models.Pooling", "1_Pooling")
DENSE = ("sentence_transformers.models.Dense", "3_Dense")
NORMALIZE = ("sentence_transformers.models.Normalize", "2_Normalize")


def dense(**values):
    """A Dense module without weights, of that configuration."""

    def change(folder):
        modules(TRANSFORMER, POOLING, DENSE)(folder)
        write(folder / "3_Dense" / "config.json", {"in_features": 32, "out_features": 8, **values})

    return change


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (pickled, "pickled weights"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "no tokenizer.json"),
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json is not JSON"),
        (lambda folder: (folder / "config.json").write_text("[]"), "no JSON dict"),
        (edit("config.json", auto_map={"AutoModel": "modeling.Mine"}), "auto_map"),
        (edit("tokenizer_config.json", auto_map={"AutoTokenizer": ["t.Mine", None]}), "auto_map"),
        (edit("config.json", quantization_config={"bits": 4}), "quantised"),
        (edit("adapter_config.json", base_model_name_or_path="org/name"), "adapter"),
        (edit("config.json", transformers_weights="adapter_model.bin"), "transformers_weights=adapter_model.bin"),
        (edit("model.safetensors.index.json", weight_map={"a": "sub/a.safetensors"}), "names sub/a.safetensors"),
        (edit("model.safetensors.index.json", weight_map={"a": "a.bin"}), "names a.bin"),
        (edit("config_sentence_transformers.json", default_prompt_name="query"), "default_prompt_name=query"),
        (edit("config_sentence_transformers.json", model_type="SparseEncoder"), "SparseEncoder"),
        (edit("sentence_bert_config.json", query_length=8), "query_length"),
        (edit("sentence_bert_config.json", transformer_task="text-generation"), "transformer_task"),
        (edit("sentence_bert_config.json", modality_config={"text": {"method_output_name": "p"}}), "come from p"),
        (edit("1_Pooling/config.json", pooling_mode="median"), "median"),
        (modules(TRANSFORMER, POOLING, ("sentence_transformers.models.LSTM", "3_LSTM")), "models.LSTM"),
        (modules(TRANSFORMER, POOLING, DENSE), "no config.json"),
        (dense(activation_function="mine.Swish"), "Dense has mine.Swish"),
        (dense(module_input_name="token_embeddings"), "works on tokens"),
        (dense(dropout=0.5), "Dense has dropout"),
        (dense(), "no model.safetensors"),
        (modules(TRANSFORMER, ("mine.Pooling", "1_Pooling")), "mine.Pooling"),
        (modules(TRANSFORMER), "names Transformer:"),
        (modules(POOLING, TRANSFORMER), "in this order"),
        (modules(TRANSFORMER, POOLING, POOLING), "in this order"),
        (modules(TRANSFORMER, POOLING, NORMALIZE, DENSE), "in this order"),
        (modules(("sentence_transformers.models.Transformer", "../other"), POOLING), "outside the folder"),
        (modules(), "names nothing"),
        (lambda folder: (folder / "modules.json").write_text('[{"path": ""}]'), "without type and path"),
    ],
)
def test_folders_that_cannot_be_run_exactly_are_refused(tmp_path, spoil, said):
    """Code, pickles, networks, and what would change vectors unseen: refused by name, before torch is imported."""
    folder = save_sentence_bert(tmp_path)
    resolve_spec(str(folder))
    spoil(folder)
    with pytest.raises(Fatal, match=said) as refusal:
        resolve_spec(str(folder))
    assert "model=" in str(refusal.value)


def test_a_folder_without_configuration_is_refused(tmp_path):
    """An empty folder is no model."""
    with pytest.raises(Fatal, match=r"no config\.json"):
        resolve_spec(str(tmp_path))


def hub_process(code, cache, **settings):
    """Run code on org/name at REVISION in a process whose hub cache is `cache`; give the words it prints."""
    env = {**os.environ, "HF_HOME": str(cache), **settings}
    start = f"from schemas.errors import Retry\nMODEL, REVISION = 'org/name', '{REVISION}'\n"
    done = subprocess.run([sys.executable, "-c", start + code], capture_output=True, text=True, check=True, env=env)
    return done.stdout.split()


def test_a_hub_model_in_the_cache_needs_no_network(tmp_path):
    """Its version is its id and commit; its vectors are those of the same folder."""
    snapshot = tmp_path / "hub" / "models--org--name" / "snapshots" / REVISION
    snapshot.parent.mkdir(parents=True)
    save_sentence_bert(snapshot)
    code = """
from encoders import load_encoder
encoder = load_encoder(MODEL, revision=REVISION, device="cpu")
print(encoder.spec.version, encoder.encode(encoder.tokenise(["abc"]), 64).vectors.tobytes().hex())
"""
    version, vector = hub_process(code, tmp_path, HF_HUB_OFFLINE="1")
    assert version == version_of("org/name", revision=REVISION)
    assert vector == ours(snapshot, ["abc"]).tobytes().hex()


DOWNLOAD = """
from encoders.hub import download
try:
    download(MODEL, REVISION)
except Retry as error:
    print("Retry", error)
"""


class FailingProxy(socketserver.StreamRequestHandler):
    """Lets nobody through."""

    def handle(self):
        """Answer 502 to whatever is asked."""
        while self.rfile.readline().strip():
            pass
        self.wfile.write(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")


def test_a_hub_behind_a_proxy_that_fails_is_a_retry(tmp_path):
    """The client's error for it is none of the system's."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), FailingProxy) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{proxy.server_address[1]}"
        word, *_ = hub_process(DOWNLOAD, tmp_path, HF_ENDPOINT="https://hub.invalid", HTTPS_PROXY=address)
        proxy.shutdown()
    assert word == "Retry"


def test_a_hub_that_is_away_is_a_retry(tmp_path):
    """The same work may succeed later: a hub that does not answer is no fault of the settings."""
    word, *message = hub_process(DOWNLOAD, tmp_path, HF_ENDPOINT="http://127.0.0.1:9")
    assert word == "Retry"
    assert "model=org/name" in message
