"""An exported graph on disk: an ONNX file, and those beside it that hold weights too large for one file."""

import mmap
from collections.abc import Sequence
from pathlib import Path

from encoders.folder_digest import files_digest
from schemas.errors import Fatal

INPUTS = ("ids", "mask")
"""int64 (n, longest) each, a row a text: its ids, and 1 where they are its own and no padding."""
OUTPUT = "hidden"
"""float32 (n, longest, width): the last hidden states."""
REMEDY = "remove it, and `manyray pin FILE.toml` exports it anew"

# A tensor's `external_data` begins with this entry in ONNX's protobuf: key (field 1) "location", value (field 2), whose
# length and text follow. Looked for as bytes, as naming a version needs no onnx and reads no tensor.
_LOCATION = b"\n\x08location\x12"
_NAME_BYTES_MAX = 127


def graph_digest(graph: Path) -> str:
    """SHA-256 (hex) over a graph's files, wherever they lie.

    Fatal: it is not there, or its weights lie elsewhere than in files beside it.
    """
    if not graph.is_file():
        raise Fatal(f"graph={graph} is not there: `manyray pin FILE.toml` exports it")
    return files_digest({"": graph, **{path.name: path for path in data_files(graph)}})


def data_files(graph: Path) -> list[Path]:
    """The files beside a graph that hold its weights: mostly none, as they fit into its own up to 1.5 GB.

    Fatal: as `graph_digest`.
    """
    names: set[bytes] = set()
    with graph.open("rb") as file:
        if not graph.stat().st_size:
            raise Fatal(f"graph={graph} is empty: {REMEDY}")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            at = content.find(_LOCATION)
            while at >= 0:
                start = at + len(_LOCATION) + 1
                length = int(content[start - 1]) if start <= len(content) else 0
                names.add(content[start : start + length] if length <= _NAME_BYTES_MAX else b"")
                at = content.find(_LOCATION, start)
    return [_beside(graph, name.decode(errors="replace")) for name in sorted(names)]


def check_graph(graph: Path, takes: Sequence[str], gives: Sequence[str], width: object, expected: int) -> None:
    """Refuse a graph whose inputs and outputs are not ours, or whose tokens' vectors are not of `expected` numbers.

    Fatal: so it is.
    """
    if tuple(takes) != INPUTS or tuple(gives) != (OUTPUT,):
        what = f"takes {', '.join(takes)} and gives {', '.join(gives)}, not {', '.join(INPUTS)} and {OUTPUT}"
        raise Fatal(f"graph={graph} {what}: {REMEDY}")
    if width != expected:
        raise Fatal(f"graph={graph} gives {width} numbers a token, and the model {expected}: {REMEDY}")


def _beside(graph: Path, name: str) -> Path:
    path = graph.parent / name
    if not name or Path(name).name != name or not path.is_file():
        raise Fatal(f"graph={graph}: its weights lie in {name!r}, which is no file beside it: {REMEDY}")
    return path
