"""Exporting a model as an ONNX graph, which is kept only if it computes what the model does."""

import shutil
from collections.abc import Generator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity
from transformers import PreTrainedModel

from encoders.backend import import_extra, load_graph
from encoders.encoder import Tokens
from encoders.forward import cacheless, run_padded
from encoders.graph_file import INPUTS, OUTPUT, REMEDY, data_files
from encoders.load import find_folder
from encoders.model_folder import read_model_folder
from encoders.model_spec import ModelSpec
from encoders.outline import Outline, read_outline
from encoders.packing import Packed, pack
from encoders.source import HashSource, parse_source
from encoders.transformer import load_model
from schemas.errors import Fatal

COSINE_MIN = 0.9999
"""Of a token's two vectors, in float32."""
_TRIED = ((700,), (33, 9, 9, 2, 1), (9, 9), (1,))
"""Texts' lengths, a batch each: one text, many, of one length, and longer than most windows of attention."""
_TORCH = "set backend to torch"


def ensure_graph(spec: ModelSpec, graph: Path) -> None:
    """Export a spec's model as `graph`, unless that is there, and compare what its backend computes with the model.

    It gets its name once it is whole and found right; until then it is in a folder beside it, whose name ends in
    `.part`.
    Fatal: as `import_extra`, `load_model`, `read_outline`, `export_graph` and `load_graph`; the graph cannot be
    written, or does not compute what the model does. Retry: as `find_folder`.
    """
    source = parse_source(spec.model, spec.revision)
    if isinstance(source, HashSource):
        raise Fatal(f"model={spec.model} has no layers: leave backend out")
    for module in (spec.backend, "onnx", "onnxscript"):  # told before minutes are spent
        import_extra(module, spec.backend)
    folder = read_model_folder(find_folder(source))
    model = load_model(folder.weights, torch.float32)
    trial = _Trial.of(model, read_outline(folder, spec.max_tokens))
    if graph.exists():
        if not (cosine := trial.cosine(graph, spec.backend)) >= COSINE_MIN:  # so that NaN is wrong too
            raise Fatal(f"graph={graph} does not compute what model={spec.model} does (cosine {cosine:.4f}): {REMEDY}")
        return
    part = graph.with_name(f"{graph.name}.part")
    shutil.rmtree(part, ignore_errors=True)  # of an export that was killed
    try:
        part.mkdir()
        made = part / graph.name
        export_graph(model, made)
        del model  # and its memory
        if not (cosine := trial.cosine(made, spec.backend)) >= COSINE_MIN:
            raise Fatal(f"model={spec.model} computes something else as a graph (cosine {cosine:.4f}): {_TORCH}")
        for path in (*data_files(made), made):  # the graph last, as it says where its weights are
            path.replace(graph.with_name(path.name))
    except OSError as error:
        raise Fatal(f"graph={graph} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def export_graph(model: PreTrainedModel, graph: Path) -> None:
    """Write a model in float32 as an ONNX file that takes and gives what `encoders.graph_file` says.

    Weights of more than 1.5 GB lie in a file beside it.
    Fatal: it cannot be exported.
    """
    example = torch.ones(2, 8, dtype=torch.long)
    shape = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    with _quiet():
        try:
            program = torch.onnx.export(
                _Hidden(model).eval(),
                (example, example.clone()),
                input_names=INPUTS,
                output_names=(OUTPUT,),
                dynamic_shapes=(shape, shape),
                dynamo=True,
                verbose=False,
            )
        except Exception as error:  # whatever a model's code raises when it is traced
            reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
            raise Fatal(f"model={model.name_or_path} cannot be exported to ONNX ({reason}): {_TORCH}") from error
        assert program is not None
        for node in program.model.graph.all_nodes():
            node.metadata_props.clear()  # where each came from, in lines and paths of this machine
        program.save(graph)


class _Hidden(nn.Module):
    """Takes and gives tensors alone, as an ONNX file does."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """(n, longest) each to (n, longest, width)."""
        return self.model(input_ids=ids, attention_mask=mask, **cacheless(self.model)).last_hidden_state


@dataclass(frozen=True, slots=True)
class _Trial:
    """Random texts in batches of several shapes, and what a model makes of them."""

    outline: Outline
    batches: list[Packed]
    expected: list[Tensor]

    @classmethod
    @torch.inference_mode()
    def of(cls, model: PreTrainedModel, outline: Outline) -> "_Trial":
        """No text is longer than the model takes."""
        random = np.random.default_rng(0)
        batches: list[Packed] = []
        for tried in _TRIED:
            lengths = np.minimum(np.array(tried, np.int32), outline.max_tokens)
            ids = random.integers(0, outline.vocabulary, int(lengths.sum()))
            batches.append(pack(Tokens(lengths, ids), np.arange(len(lengths)), outline.pad_position))
        return cls(outline, batches, [run_padded(model, batch, outline.pad_id) for batch in batches])

    def cosine(self, graph: Path, backend: str) -> float:
        """The least of a token's two vectors, the model's and the graph's."""
        other = load_graph(backend, graph, self.outline, torch.float32, workers=1)
        pairs = zip(self.batches, self.expected, strict=True)
        return min(float(cosine_similarity(other.run(batch), hidden).min()) for batch, hidden in pairs)


@contextmanager
def _quiet() -> Generator[None]:
    """Hold back what an export says of its steps, which is for who writes exporters."""
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        yield
