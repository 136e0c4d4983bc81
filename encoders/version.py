"""The version: one exact encoder, and its digest, which is part of every fingerprint and topic name."""

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from encoders.folder_digest import folder_digest
from encoders.graph_file import graph_digest
from encoders.model_folder import check_dims, read_model_folder
from encoders.model_spec import Choices, ModelSpec, model_spec
from encoders.source import FolderSource, HashSource, parse_source
from schemas.errors import Fatal
from schemas.vectors import VectorForm

# Raise it when the code changes what a given spec computes: every cached vector is then computed anew.
FORMAT = 1
_ALWAYS = ("kind", "source", "dtype", "max_tokens")
"""In every digest; what was added later is where it is not its default, so that older versions keep their names."""


@dataclass(frozen=True, slots=True)
class VersionSpec(Choices):
    """Everything that decides a vector, besides the text.

    kind: "text", or "hash" (no model, for load tests). source: `sha256:<hex>` over a folder's files, wherever
    it lies; `hub:<id>@<commit>`; or `shake_128:<dims>`. graph: `sha256:<hex>` over the files of an exported graph, of a
    backend that runs one.
    """

    kind: str
    source: str
    graph: str = ""

    @property
    def version(self) -> str:
        """12 hexadecimal characters: BLAKE2b of the spec as canonical JSON. The same in every process and
        place.
        """
        values: dict[str, Any] = {"format": FORMAT, **asdict(self)}
        for field in fields(self):
            if field.name not in _ALWAYS and values[field.name] == field.default:
                del values[field.name]
        canonical = json.dumps(values, sort_keys=True, separators=(",", ":"))
        return hashlib.blake2b(canonical.encode(), digest_size=6).hexdigest()

    @property
    def form(self) -> VectorForm:
        """How the numbers of a vector are stored."""
        return VectorForm(self.output, self.scale or 0.0)


def resolve_spec(model: str | ModelSpec, **choices: Any) -> VersionSpec:
    """Say what encoder a spec names, reading the files of a folder and a graph (0.1-0.3 s for 90 MB) and no network.

    `choices` are those of `ModelSpec`, for a model's name.
    Fatal: as `model_spec`, `parse_source`, `graph_digest` and, for a folder, `read_model_folder` and `check_dims`.
    """
    spec = model if isinstance(model, ModelSpec) else model_spec(model, **choices)
    if spec.output == "int8" and spec.scale is None:
        raise Fatal("output=int8 needs a scale, one for all vectors of the version: `manyray pin` finds it")
    source = parse_source(spec.model, spec.revision)
    if isinstance(source, HashSource):
        if spec != ModelSpec(spec.model, dtype=spec.dtype, output=spec.output, scale=spec.scale, golden=spec.golden):
            raise Fatal(f"model={spec.model} computes unit vectors from whole texts: leave every other choice out")
        if spec.dtype == "bfloat16":
            raise Fatal(f"model={spec.model} computes float32: leave dtype out")
        return VersionSpec("hash", f"shake_128:{source.dims}", **spec.chosen)
    if isinstance(source, FolderSource):
        check_dims(read_model_folder(source.folder), spec.dims, spec.matryoshka_dims)
        identity = f"sha256:{folder_digest(source.folder)}"
    else:
        identity = f"hub:{source.repo}@{source.revision}"
    graph = "" if spec.backend == "torch" else f"sha256:{graph_digest(Path(spec.graph))}"
    return VersionSpec("text", identity, graph, **spec.chosen)
