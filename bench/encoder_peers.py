"""Other ways from texts to vectors, beside which our encoder is measured: each where it is installed or has an address.

From texts to vectors means tokenising too. ONNX Runtime and OpenVINO have none of it, so they get our tokens, counted
in their time; and the whole list at once, sorted by length, which is the most that they could be given.
"""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.request import ProxyHandler, Request, build_opener

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from encoders.backend import import_extra
from encoders.batching import Batch, plan_batches
from encoders.encoder import Tokens
from encoders.export import export_graph
from encoders.model_folder import ModelFolder
from encoders.packing import pack
from encoders.text import TextEncoder
from encoders.transformer import load_model
from schemas.vectors import Matrix

_ST_BATCH = 32
"""sentence-transformers' own default."""
_ST_BATCH_GPU = 256
_HTTP_IN_FLIGHT = 64
_HTTP_TEXTS = 32
"""Of a request: the most that text-embeddings-inference takes unless told otherwise."""
_HTTP_TIMEOUT_S = 120.0
_WEIGHED = ("mean", "cls")
_PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}


@dataclass(frozen=True, slots=True)
class Answer:
    """Vectors of texts, and the tokens computed for them with padding; None where that cannot be seen."""

    vectors: Matrix
    computed: int | None = None


@dataclass(frozen=True, slots=True)
class Side:
    """One way from texts to vectors."""

    name: str
    encode: Callable[[list[str]], Answer]


@dataclass(frozen=True, slots=True)
class Setup:
    """What every peer is to compute, and with what. scratch: a folder for files of theirs. cores: of the CPU."""

    encoder: TextEncoder
    folder: Path
    found: ModelFolder
    dtype: str
    cores: int
    scratch: Path
    tei: str | None
    infinity: str | None


class NotMeasuredError(Exception):
    """Why a peer is left out."""


def make_peers(setup: Setup, texts: list[str]) -> tuple[list[Side], list[str]]:
    """All sides that can be measured, each tried on `texts`; and of each other project why it was not, in a line."""
    onnx = ("onnx", "onnxscript")
    projects: list[tuple[str, tuple[str, ...], Callable[[Setup], list[Side]]]] = [
        ("sentence-transformers", ("sentence_transformers",), _sentence_transformers)
    ]
    if setup.encoder.device.type == "cpu":
        projects += [
            ("ONNX Runtime", ("onnxruntime", *onnx), _onnx_runtime),
            ("OpenVINO", ("openvino", *onnx), _openvino),
            ("text-embeddings-inference", (), _text_embeddings_inference),
            ("infinity", (), _infinity),
        ]
    sides: list[Side] = []
    left_out: list[str] = []
    for name, modules, make in projects:
        try:
            if not all(map(find_spec, modules)):
                raise NotMeasuredError(f"pip install {' '.join(modules).replace('_', '-')}")
            made = make(setup)
            for side in made:
                side.encode(texts)
            sides += made
        except Exception as error:  # a peer that fails is no reason not to measure the others
            reason = str(error).strip().split("\n")[0]
            told = reason if isinstance(error, NotMeasuredError) else f"{type(error).__name__}: {reason}"
            left_out.append(f"not measured: {name}: {told}")
    return sides, left_out


def _sentence_transformers(setup: Setup) -> list[Side]:
    """Its own encode: called for 32 texts at a time as they come, and for all at once, which it sorts by length."""
    from sentence_transformers import SentenceTransformer  # noqa: PLC0415 - need not be there

    name, device, kwargs = "sentence-transformers", str(setup.encoder.device), {"dtype": setup.dtype}
    model = SentenceTransformer(str(setup.folder), device=device, local_files_only=True, model_kwargs=kwargs)
    model.max_seq_length = setup.encoder.max_tokens
    computed = 0

    def count(_: nn.Module, features: tuple[dict[str, Tensor]]) -> None:
        nonlocal computed
        computed += features[0]["input_ids"].numel()

    next(iter(model.children())).register_forward_pre_hook(count)  # the transformer, the first of its modules

    def encode(texts: list[str], at_once: int, batch_size: int) -> Answer:
        nonlocal computed
        computed = 0
        torch.set_num_threads(setup.cores)  # of this thread; ours set those of their own
        parts = _parts(texts, at_once)
        found = [model.encode(part, batch_size=batch_size, show_progress_bar=False) for part in parts]
        return Answer(np.concatenate(found).astype(np.float32, copy=False), computed)

    def sorted_side(batch_size: int) -> Side:
        return Side(f"{name} {batch_size} sorted", lambda texts: encode(texts, len(texts), batch_size))

    as_they_come = Side(f"{name} {_ST_BATCH} as they come", lambda texts: encode(texts, _ST_BATCH, _ST_BATCH))
    larger = [] if setup.encoder.device.type == "cpu" else [sorted_side(_ST_BATCH_GPU)]
    return [as_they_come, sorted_side(_ST_BATCH), *larger]


def graph_of(setup: Setup) -> Path:
    """The model as an exported graph, which is made once."""
    path = setup.scratch / "model.onnx"
    if not path.exists():
        export_graph(load_model(setup.found.weights, torch.float32), path)
    return path


@dataclass(frozen=True, slots=True)
class _Padded:
    """A batch as wide as its first text, the longest: ids and mask (n, longest), lengths (n,); rows: its texts."""

    rows: Batch
    ids: npt.NDArray[np.int64]
    mask: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int32]


def _padded(tokens: Tokens, batch_tokens: int, pad_id: int) -> Iterator[_Padded]:
    """All texts, sorted by length, in batches of so many tokens, padding included."""
    for rows in plan_batches(tokens.lengths, batch_tokens, padded=True):
        batch = pack(tokens, rows, None)
        ids, real = batch.padded(pad_id)
        yield _Padded(rows, ids.numpy(), real.long().numpy(), batch.lengths)


class _Gathered:
    """The vectors of batches as they are computed, in any order and by any thread."""

    def __init__(self, setup: Setup, texts: list[str], batch_tokens: int) -> None:
        if len(setup.found.poolings) != 1 or setup.found.poolings[0] not in _WEIGHED or setup.found.denses:
            raise NotMeasuredError(f"a model has to pool by {' or '.join(_WEIGHED)}, and no dense layers may follow")
        tokens = setup.encoder.tokenise(texts)
        config = json.loads((setup.found.weights / "config.json").read_bytes())
        self.batches = _padded(tokens, batch_tokens, config.get("pad_token_id") or 0)
        self.vectors = np.empty((len(texts), setup.encoder.dims), np.float32)
        self.computed: list[int] = []
        self._pooling = setup.found.poolings[0]
        self._normalises = setup.found.normalise

    def put(self, batch: _Padded, hidden: npt.NDArray[np.float32]) -> None:
        """Pool last hidden states (n, longest, width)."""
        if self._pooling == "cls":
            vectors = hidden[:, 0]
        else:
            weights = (batch.mask / batch.lengths[:, None]).astype(np.float32)
            vectors = (weights[:, None] @ hidden)[:, 0]
        if self._normalises:
            vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        self.vectors[batch.rows] = vectors
        self.computed.append(batch.ids.size)

    def answer(self) -> Answer:
        """Once all are put."""
        return Answer(self.vectors, sum(self.computed))


def _onnx_runtime(setup: Setup) -> list[Side]:
    """All cores at one batch, and a batch a core."""
    if setup.dtype != "float32":
        raise NotMeasuredError("on a CPU it computes float32")
    ort = import_extra("onnxruntime", "onnxruntime")
    path = graph_of(setup)

    def session(threads: int) -> Any:
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def encode(texts: list[str], session: Any, streams: int) -> Answer:
        gathered = _Gathered(setup, texts, 1_024)

        def one(batch: _Padded) -> None:
            gathered.put(batch, session.run(None, {"ids": batch.ids, "mask": batch.mask})[0])

        with ThreadPoolExecutor(streams) as pool:
            list(pool.map(one, gathered.batches))
        return gathered.answer()

    together, alone = session(setup.cores), session(1)
    return [
        Side("ONNX Runtime all cores 1024", lambda texts: encode(texts, together, 1)),
        Side("ONNX Runtime a core each 1024", lambda texts: encode(texts, alone, setup.cores)),
    ]


def _openvino(setup: Setup) -> list[Side]:
    """All cores at one batch, and a stream a core."""
    ov = import_extra("openvino", "openvino")
    core = ov.Core()
    model = core.read_model(str(graph_of(setup)))
    options = {"INFERENCE_PRECISION_HINT": _PRECISIONS[setup.dtype], "INFERENCE_NUM_THREADS": setup.cores}
    together = core.compile_model(model, "CPU", {**options, "PERFORMANCE_HINT": "LATENCY"})
    streams = core.compile_model(model, "CPU", {**options, "NUM_STREAMS": setup.cores})

    def latency(texts: list[str]) -> Answer:
        gathered = _Gathered(setup, texts, 1_024)
        for batch in gathered.batches:
            gathered.put(batch, together([batch.ids, batch.mask])[0])
        return gathered.answer()

    def throughput(texts: list[str], batch_tokens: int) -> Answer:
        gathered = _Gathered(setup, texts, batch_tokens)
        # One more than streams, so that none waits for the next batch to be padded.
        queue = ov.AsyncInferQueue(streams, setup.cores + 1)

        def computed(request: Any, batch: _Padded) -> None:
            gathered.put(batch, request.get_output_tensor(0).data)

        queue.set_callback(computed)
        for batch in gathered.batches:
            queue.start_async([batch.ids, batch.mask], batch)
        queue.wait_all()
        return gathered.answer()

    return [
        Side("OpenVINO all cores 1024", latency),
        Side("OpenVINO streams 512", lambda texts: throughput(texts, 512)),
        Side("OpenVINO streams 1024", lambda texts: throughput(texts, 1_024)),
    ]


def _text_embeddings_inference(setup: Setup) -> list[Side]:
    """Its /embed: a list of vectors."""
    if setup.tei is None:
        raise NotMeasuredError("give the address of one that serves this model: --tei http://127.0.0.1:8080")
    url = f"{setup.tei.rstrip('/')}/embed"
    return [_over_http("text-embeddings-inference", lambda texts: _post(url, {"inputs": texts, "truncate": True}))]


def _infinity(setup: Setup) -> list[Side]:
    """Its /embeddings, in OpenAI's form."""
    if setup.infinity is None:
        raise NotMeasuredError("give the address of one that serves this model: --infinity http://127.0.0.1:7997")
    url = f"{setup.infinity.rstrip('/')}/embeddings"

    def embed(texts: list[str]) -> list[list[float]]:
        rows = sorted(_post(url, {"input": texts})["data"], key=lambda row: row["index"])
        return [row["embedding"] for row in rows]

    return [_over_http("infinity", embed)]


def _over_http(name: str, embed: Callable[[list[str]], list[list[float]]]) -> Side:
    """Many requests at a time, as many clients would send them."""

    def encode(texts: list[str]) -> Answer:
        with ThreadPoolExecutor(_HTTP_IN_FLIGHT) as pool:
            return Answer(np.concatenate([np.array(found) for found in pool.map(embed, _parts(texts, _HTTP_TEXTS))]))

    return Side(name, encode)


def _post(url: str, content: object) -> Any:
    """What a server answers to JSON. OSError: it refuses, or is not there."""
    request = Request(url, json.dumps(content).encode(), {"Content-Type": "application/json"})
    with build_opener(ProxyHandler({})).open(request, timeout=_HTTP_TIMEOUT_S) as response:
        return json.load(response)


def _parts(texts: list[str], size: int) -> list[list[str]]:
    return [texts[start : start + size] for start in range(0, len(texts), size)]
