"""Laws of backends: an exported graph gives torch's vectors, side by side and where memory is wanting."""

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from tiny_models import BACKENDS, TEXTS, cosine, ours

from encoders import Engine, load_encoder, resolve_spec
from encoders.backend import import_extra
from encoders.export import ensure_graph
from encoders.model_spec import ModelSpec
from manyray.pinning import pin_spec
from schemas.errors import Fatal
from streams.settings import load_settings
from tests.test_cli import manyray

pytest_plugins = ("tiny_graphs",)


@pytest.mark.parametrize("family", ["Bert", "XLMRoberta", "MPNet", "ModernBert", "Qwen3"])
def test_every_family_has_torchs_vectors(exported, family):
    """Mixed lengths, empty and over-long texts, in several batches: cosine at least 0.99999 in float32."""
    folder, graph = exported(family)
    expected = ours(folder)
    for backend in BACKENDS:
        assert cosine(ours(folder, backend=backend, graph=str(graph)), expected) >= 0.99999


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
