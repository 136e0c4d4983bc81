"""OpenVINO as a backend: an exported graph on a CPU, in float32 or bfloat16."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from encoders.backend import import_extra, wants_memory
from encoders.device import BATCH_TOKENS_PADDED
from encoders.graph_file import REMEDY, check_graph
from encoders.outline import Outline
from encoders.packing import Packed
from schemas.errors import Fatal

_PRECISIONS = {torch.float32: "f32", torch.bfloat16: "bf16"}


class OpenVino:
    """A compiled graph with a stream of one thread for each batch that is run side by side."""

    is_packed = False
    batch_tokens = BATCH_TOKENS_PADDED

    def __init__(self, graph: Path, outline: Outline, dtype: torch.dtype, workers: int) -> None:
        """Load a graph.

        Fatal: the package is not installed, the graph is broken or not this model's, or the CPU has no bfloat16.
        """
        self._core = import_extra("openvino", "openvino").Core()
        if dtype == torch.bfloat16 and "BF16" not in self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise Fatal("dtype=bfloat16: OpenVINO has none on this CPU: set dtype to float32, or backend to torch")
        self._graph = str(graph)
        self._how = {
            "INFERENCE_PRECISION_HINT": _PRECISIONS[dtype],
            "INFERENCE_NUM_THREADS": workers,
            "NUM_STREAMS": workers,
            "ENABLE_CPU_PINNING": False,  # two encoders of one machine would choose the same cores
        }
        try:
            self._compiled = compiled = self._compile()
        except RuntimeError as error:
            raise Fatal(f"graph={graph}: OpenVINO cannot load it ({error}): {REMEDY}") from error
        takes, gives = ([one.any_name for one in ports] for ports in (compiled.inputs, compiled.outputs))
        check_graph(graph, takes, gives, compiled.outputs[0].partial_shape[-1].get_length(), outline.width)
        # What its binding makes at the first call it makes under a lock, and lets go of Python's on the way: of two
        # first calls at the same time, each could hold one and wait for ever for the other's.
        compiled.create_infer_request().infer([np.ones((1, 1), np.int64)] * len(takes))
        self._pad_id = outline.pad_id
        self._lock = threading.Lock()
        self._of_thread = threading.local()

    def run(self, batch: Packed) -> Tensor:
        """As `Backend.run`."""
        ids, real = batch.padded(self._pad_id)
        compiled = None
        try:
            compiled = self._ready()
            hidden = self._request(compiled).infer([ids.numpy(), real.long().numpy()], share_outputs=True)[0]
            if hidden.shape[:2] == ids.shape:  # where memory was wanting, it may say nothing and give what it gave last
                return torch.from_numpy(hidden)[real]  # a copy, as the next batch overwrites it
        except RuntimeError as error:
            with self._lock:
                if not wants_memory(error) and self._compiled is compiled:
                    raise  # else it came to this after another's want of memory
        with self._lock:
            if self._compiled is compiled:
                self._compiled = None
        raise MemoryError

    def _compile(self) -> Any:
        return self._core.compile_model(self._graph, "CPU", self._how)

    def _ready(self) -> Any:
        """The compiled graph; anew after memory was wanting, as a stream then keeps shapes of what it could not do."""
        with self._lock:
            if self._compiled is None:
                self._compiled = self._compile()
            return self._compiled

    def _request(self, compiled: Any) -> Any:
        """A request computes one batch at a time, so each thread has its own."""
        if getattr(self._of_thread, "compiled", None) is not compiled:
            self._of_thread.request = compiled.create_infer_request()
            self._of_thread.compiled = compiled
        return self._of_thread.request
