"""The seam between a text encoder and what computes its model's layers."""
# ruff: noqa: PLC0415 - a backend's package is imported where it is chosen

import sys
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from encoders.outline import Outline
from encoders.packing import Packed
from schemas.errors import Fatal

_WANTING = ("bad_alloc", "bad allocation", "failed to allocate", "could not allocate", "can not allocate")
"""What ONNX Runtime, OpenVINO and what they are built on say, in small letters, where memory is wanting."""


class Backend(Protocol):
    """A model's layers on one device. Several threads may `run` batches side by side."""

    @property
    def is_packed(self) -> bool:
        """It computes the tokens there are, and else pads a batch to its longest text."""
        ...

    @property
    def batch_tokens(self) -> int:
        """Tokens of a batch, padding included, that suit it."""
        ...

    def run(self, batch: Packed) -> Tensor:
        """Last hidden states (T, width) of texts of T tokens in all, one after another.

        MemoryError, or torch's own errors for it: the device has not the memory.
        """
        ...


def load_graph(backend: str, graph: Path, outline: Outline, dtype: torch.dtype, workers: int) -> Backend:
    """Load an exported graph into a backend other than torch; workers: batches that are run side by side.

    Fatal: as `OnnxRuntime` and `OpenVino`.
    """
    if backend == "onnxruntime":
        from encoders.onnx_runtime import OnnxRuntime

        return OnnxRuntime(graph, outline)
    from encoders.openvino import OpenVino

    return OpenVino(graph, outline, dtype, workers)


def import_extra(module: str, backend: str) -> Any:
    """A module that one of the extras brings; extras have the names of the backends.

    Fatal: it is not installed.
    """
    # OpenVINO, when it is imported, tells an analytics service so; without this module it has a stub in its place.
    cast(dict[str, Any], sys.modules).setdefault("openvino_telemetry", None)
    try:
        return import_module(module)
    except ImportError as error:
        raise Fatal(f"backend={backend} needs {module} ({error}): pip install 'manyray[{backend}]'") from error


def wants_memory(error: Exception) -> bool:
    """Whether ONNX Runtime or OpenVINO says that memory is wanting: neither has a class of its own for it."""
    said = str(error).lower()
    return any(words in said for words in _WANTING)
