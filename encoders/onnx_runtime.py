"""ONNX Runtime as a backend: an exported graph on a CPU, in float32."""

from pathlib import Path

import torch
from torch import Tensor

from encoders.backend import import_extra, wants_memory
from encoders.device import BATCH_TOKENS_PADDED
from encoders.graph_file import INPUTS, OUTPUT, REMEDY, check_graph
from encoders.outline import Outline
from encoders.packing import Packed
from schemas.errors import Fatal


class OnnxRuntime:
    """A session that computes on the thread that calls it: so many threads, so many batches side by side."""

    is_packed = False
    batch_tokens = BATCH_TOKENS_PADDED

    def __init__(self, graph: Path, outline: Outline) -> None:
        """Load a graph. Fatal: the package is not installed, or the graph is broken or not this model's."""
        ort = import_extra("onnxruntime", "onnxruntime")
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.enable_mem_pattern = False  # one for each shape of a batch would be kept
        options.log_severity_level = 4
        try:
            self._session = ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # it has many, which share no base
            raise Fatal(f"graph={graph}: ONNX Runtime cannot load it ({error}): {REMEDY}") from error
        outputs = self._session.get_outputs()
        takes, gives = ([one.name for one in ports] for ports in (self._session.get_inputs(), outputs))
        check_graph(graph, takes, gives, outputs[0].shape[-1], outline.width)
        self._pad_id = outline.pad_id

    def run(self, batch: Packed) -> Tensor:
        """As `Backend.run`."""
        ids, real = batch.padded(self._pad_id)
        given = dict(zip(INPUTS, (ids.numpy(), real.long().numpy()), strict=True))
        try:
            return torch.from_numpy(self._session.run([OUTPUT], given)[0])[real]
        except Exception as error:
            if wants_memory(error):
                raise MemoryError from None
            raise
