"""Laws of backends: an exported graph gives torch's vectors, is in the version, and is there whole or not at all."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from test_encoders_families import save_family
from tiny_models import SHAPE, TEXTS, ours, save_bert, save_sentence_bert, save_tokenizer

from encoders import Engine, export, load_encoder, resolve_spec
from encoders.backend import import_extra
from encoders.export import ensure_graph, export_graph
from encoders.model_spec import ModelSpec
from encoders.transformer import load_model
from manyray.pinning import pin_spec
from schemas.errors import Fatal
from streams.settings import load_settings
from tests.test_cli import launch, manyray
from tests.waiting import wait_until

BACKENDS = ("onnxruntime", "openvino")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A family's folder and its graph, made once."""
    made = {}

    def export(family):
        if family not in made:
            folder = save_family(tmp_path_factory.mktemp(family) / "model", family)
            graph = folder.with_suffix(".onnx")
            export_graph(load_model(folder, torch.float32), graph)
            made[family] = (folder, graph)
        return made[family]

    return export


@pytest.fixture
def bert(exported):
    """The choices of a tiny BERT with a graph, but the backend."""
    folder, graph = exported("Bert")
    return {"model": str(folder), "graph": str(graph)}


def cosine(one, other):
    """The least of the vectors of texts."""
    return (one * other).sum(axis=1).min()


@pytest.mark.parametrize("family", ["Bert", "XLMRoberta", "MPNet", "ModernBert", "Qwen3"])
def test_every_family_has_torchs_vectors(exported, family):
    """Mixed lengths, empty and over-long texts, in several batches: cosine at least 0.99999 in float32."""
    folder, graph = exported(family)
    expected = ours(folder)
    for backend in BACKENDS:
        assert cosine(ours(folder, backend=backend, graph=str(graph)), expected) >= 0.99999


@pytest.mark.parametrize("family", ["Bert", "Qwen3"])
def test_a_graph_says_nothing_of_the_machine(exported, family):
    """Neither where torch and this project lie nor their lines: the same versions make the same graph elsewhere."""
    content = exported(family)[1].read_bytes()
    for path in (torch.__file__, export.__file__):
        assert path.encode() not in content
    assert b".py" not in content


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_follows_the_layers_is_the_same(tmp_path, bert, backend):
    """Prompt, truncation, pooling and prefix are the encoder's, whatever computes the layers."""
    choices = {"prompt": "the fox ", "max_tokens": 20, "truncation_side": "left", "pooling": "max", "dims": 8}
    choices |= {"matryoshka_dims": (8,), "normalise": False}
    found = ours(bert["model"], backend=backend, graph=bert["graph"], **choices)
    assert found.shape == (len(TEXTS), 8)
    assert np.allclose(found, ours(bert["model"], **choices), atol=2e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_batches_are_computed_side_by_side(bert, backend):
    """Threads that share a graph do not mix their texts: many small batches give what one gives, in every window."""
    encoder = load_encoder(**bert, backend=backend, device="cpu")
    texts = [f"{word} fox jumps {'over ' * (number % 5)}" for number, word in enumerate("the quick dog".split() * 40)]
    tokens = encoder.tokenise(texts)
    together = encoder.encode(tokens, 100_000)
    assert together.padded_tokens > together.tokens == tokens.lengths.sum()
    with Engine(encoder, 64) as engine:
        windows = [engine.submit(texts) for _ in range(5)]
        for window in windows:
            assert np.allclose(window.result(60).vectors, together.vectors, atol=1e-5)
    assert encoder.encode(encoder.tokenise([]), 64).vectors.shape == (0, encoder.dims)


FIRST = """
import builtins, sys, threading
from pathlib import Path
import numpy as np
import torch
from encoders.backend import load_graph
from encoders.encoder import Tokens
from encoders.model_folder import read_model_folder
from encoders.outline import read_outline
from encoders.packing import pack
outline = read_outline(read_model_folder(Path(sys.argv[1])))
backend = load_graph(sys.argv[3], Path(sys.argv[2]), outline, torch.float32, 2)
batch = pack(Tokens(np.array([3], np.int32), np.array([1, 2, 3])), np.array([0]), None)
begun, ended = threading.Event(), threading.Event()
imported = builtins.__import__
def linger(name, *rest):
    if threading.current_thread() is threads[0]:  # what is made at the first call begins so
        begun.set()
        ended.wait(1)
    return imported(name, *rest)
def first():
    backend.run(batch)
    begun.set()
def second():
    begun.wait()
    backend.run(batch)
    ended.set()
threads = [threading.Thread(target=first), threading.Thread(target=second)]
builtins.__import__ = linger
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_first_batches_may_be_side_by_side(bert, backend):
    """None waits for ever for what another makes at its first call, however long it is at it."""
    command = [sys.executable, "-c", FIRST, bert["model"], bert["graph"], backend]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


BFLOAT16 = """
import sys
from encoders import load_encoder
from schemas.errors import Fatal
try:
    load_encoder(sys.argv[1], graph=sys.argv[2], backend="openvino", dtype="bfloat16", device="cpu")
except Fatal as error:
    print(error)
"""


def test_bfloat16_is_openvinos_alone(bert):
    """Where the processor has none that is told, as OpenVINO would compute something else and not say so."""
    command = [sys.executable, "-c", BFLOAT16, bert["model"], bert["graph"]]
    env = {**os.environ, "OV_CPU_MAX_ISA": "AVX2"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
    assert done.stdout.startswith("dtype=bfloat16: OpenVINO has none on this CPU: set dtype to float32")
    with pytest.raises(Fatal, match="backend=onnxruntime computes float32 on a CPU: set dtype to it"):
        ModelSpec(backend="onnxruntime", dtype="bfloat16")


def test_bfloat16_is_close_to_float32(bert):
    """Close and not the same, where the processor has it."""
    capabilities = import_extra("openvino", "openvino").Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if "BF16" not in capabilities:
        pytest.skip("this processor has no bfloat16")
    half, full = ours(bert["model"], graph=bert["graph"], backend="openvino", dtype="bfloat16"), ours(bert["model"])
    assert cosine(half, full) > 0.99
    assert not np.allclose(half, full, atol=1e-5)


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


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("graph", ["", "none.onnx"])
def test_a_graph_that_is_not_there_is_told(tmp_path, backend, graph):
    """Whoever needs the version learns how to make one."""
    file = tmp_path / "mine.toml"
    file.write_text(f'model = "minilm"\nbackend = "{backend}"\ngraph = "{graph}"\n')
    with pytest.raises(Fatal, match=r"graph=.* is not there: `manyray pin FILE\.toml` exports it"):
        resolve_spec(str(file))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_package_that_is_not_there_is_told(monkeypatch, tmp_path, bert, backend):
    """By the extra that brings it, before anything is loaded or exported."""
    monkeypatch.setitem(sys.modules, backend, None)
    remedy = rf"backend={backend} needs {backend}.*pip install 'manyray\[{backend}\]'"
    with pytest.raises(Fatal, match=remedy):
        load_encoder(**bert, backend=backend, device="cpu")
    with pytest.raises(Fatal, match=remedy):
        ensure_graph(ModelSpec(bert["model"], backend=backend), tmp_path / "new.onnx")
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(Fatal, match=rf"backend={backend} needs onnxscript"):
        ensure_graph(ModelSpec(bert["model"], backend=backend), tmp_path / "new.onnx")


@pytest.mark.parametrize("device", ["cuda", "cuda:0", "tpu"])
def test_graphs_run_on_a_cpu(bert, device):
    """Another device is refused with the remedy, also where there is one."""
    with pytest.raises(
        Fatal, match=f"device={device}, and backend=openvino runs on a CPU: set device to cpu, or backend"
    ):
        load_encoder(**bert, backend="openvino", device=device)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('model = "minilm"\nbackend = "jax"', "backend=jax is unknown: set it to torch, onnxruntime, openvino"),
        (
            'model = "minilm"\ngraph = "a.onnx"',
            "is for backend=onnxruntime or openvino: set backend, or leave graph out",
        ),
        ('model = "hash"\nbackend = "openvino"', "leave every other choice out"),
    ],
)
def test_a_file_that_says_nonsense_is_refused(tmp_path, text, said):
    """The message names the choice and what may be."""
    file = tmp_path / "bad.toml"
    file.write_text(text)
    with pytest.raises(Fatal, match=said):
        resolve_spec(str(file))
    if "hash" in text:
        with pytest.raises(Fatal, match="has no layers: leave backend out"):
            pin_spec(load_settings(), file, None, layout=None, text_field="text")


WANTING = """
import resource, sys
from pathlib import Path
import numpy as np
import torch
from encoders import load_encoder
torch.set_num_threads(1)  # OpenVINO may abort where it begins threads for another batch while memory is wanting
encoder = load_encoder(sys.argv[1], graph=sys.argv[2], backend=sys.argv[3], device="cpu")
few, many = (encoder.tokenise(["the quick fox " * 4, "a"] * count) for count in (9, 9_000))
before = encoder.encode(few, 64).vectors
for room in (20, 60, 120):
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + room * 2**20, resource.RLIM_INFINITY))
    try:
        encoder.encode(many, 10**6)
    except MemoryError as error:
        print(error)
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert np.array_equal(encoder.encode(few, 64).vectors, before)
"""


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_batch_that_does_not_fit_harms_no_other(bert, backend):
    """It is a MemoryError wherever in the graph memory is wanting, and what comes after it has the vectors it had."""
    command = [sys.executable, "-c", WANTING, bert["model"], bert["graph"], backend]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["a batch of batch_tokens=1000000 does not fit the memory of cpu"] * 3


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


WATCH = """
import os, sys
def watch(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "os.fork"):
        sys.stderr.write(f"{event} {arguments}"); sys.stderr.flush(); os._exit(3)
sys.addaudithook(watch)
from encoders import load_encoder
encoder = load_encoder(sys.argv[1], graph=sys.argv[2], backend="openvino", device="cpu")
encoder.encode(encoder.tokenise(["a"]), 100)
"""


def test_openvino_tells_nobody(tmp_path, bert):
    """Left alone, its import writes a client's id into the home folder and sends an event to an analytics service."""
    command = [sys.executable, "-c", WATCH, bert["model"], bert["graph"]]
    env = {**os.environ, "HOME": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


def test_files_are_encoded_with_a_graph(tmp_path, exported):
    """From a spec of two lines to vectors, as a user types it: torch's, and not a word more on the terminal."""
    folder = shutil.copytree(exported("Bert")[0], tmp_path / "tiny")
    (tmp_path / "mine.toml").write_text('model = "tiny"\nbackend = "openvino"\n')
    (tmp_path / "posts.txt").write_text("\n".join(TEXTS[1:]))
    done = manyray("pin", "mine.toml", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert (
        done.stdout
        == f"pinned version {resolve_spec(str(tmp_path / 'mine.toml')).version} in mine.toml: 32 dims, float32\n"
    )
    done = manyray("encode-file", "posts.txt", "out.npy", "--model", "mine.toml", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert cosine(np.load(tmp_path / "out.npy"), ours(folder, TEXTS[1:])) >= 0.99999
