"""`manyray pin`: a model and its choices in a TOML file, with what tells whether another machine has the same."""

import json
import re
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np

from encoders.encoder import Encoder
from encoders.engine import Engine
from encoders.golden import sketch
from encoders.load import load_encoder
from encoders.model_spec import FIELDS, ModelSpec, parse_spec
from encoders.version import resolve_spec
from manyray.reading import Format, open_posts
from schemas.content import normalise
from schemas.errors import Fatal
from schemas.vectors import Matrix, VectorForm, suited_scale
from streams.settings import Settings
from streams.version import model_of

CALIBRATION_POSTS = 10_000
"""The first so many of the file: more hardly move the largest number, and take a CPU minutes."""


def pin_spec(settings: Settings, file: Path, calibrate: str | None, *, layout: Format | None, text_field: str) -> str:
    """Write `golden`, and with `calibrate`, a file of posts, the `scale` of int8, into a spec; return what sums it up.

    A backend's graph that is not there is exported, beside the file.

    The spec's other lines stay as they are; a file that is not there is begun with what the settings say.

    Raises:
        Fatal: the spec cannot be, or be written, or exported; its output is int8 and nothing says the scale; there are
            no posts.
        Retry: the hub cannot be reached.
    """
    if file.suffix != ".toml":
        raise Fatal(f"{file} is no name of a spec: name it .toml")
    text = _read(file) if file.exists() else _begin(model_of(settings))
    wanted = parse_spec(file, text)
    if wanted.backend != "torch":
        text = _with_graph(file, text, wanted)
        wanted = parse_spec(file, text)
    encoder = load_encoder(replace(wanted, output="float32", scale=None, golden=()), device=settings.device)
    told = ""
    if calibrate is not None:
        if wanted.output != "int8":
            raise Fatal(f"{file} has output={wanted.output}, which has no scale: set int8, or leave --calibrate out")
        vectors = _vectors(encoder, calibrate, layout, text_field)
        scale = suited_scale(vectors)
        told = f"; int8 keeps {len(vectors):,} posts to a mean cosine of {_kept(vectors, scale):.6f}"
        text = _set(text, "scale", repr(scale))
    lines = "".join(f"    {json.dumps(one)},\n" for one in sketch(encoder))
    text = _set(text, "golden", f"[\n{lines}]")
    pinned = parse_spec(file, text)
    version = resolve_spec(pinned).version
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise Fatal(f"{file} cannot be written: {error.strerror}") from None
    return f"pinned version {version} in {file}: {encoder.dims} dims, {pinned.output}{told}"


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Fatal(f"{file} cannot be read: {error}") from None


def _begin(spec: ModelSpec) -> str:
    """The text of a new spec: what differs from a choice's default; a folder by its whole path."""
    lines = ["# What decides the vectors of a version. `manyray pin` writes golden, and the scale of int8.\n"]
    for field in FIELDS:
        value = getattr(spec, field.name)
        if field.name == "model":
            value = str(Path(value).resolve()) if Path(value).is_dir() else value
        elif value == field.default:
            continue
        lines.append(f"{field.name} = {json.dumps(value, ensure_ascii=False)}\n")
    return "".join(lines)


def _with_graph(file: Path, text: str, spec: ModelSpec) -> str:
    """The text of a spec whose graph is there, and computes what its model does."""
    from encoders.export import ensure_graph  # noqa: PLC0415 - imports torch, which a hash encoder does without

    if spec.graph and Path(spec.graph).exists():
        ensure_graph(spec, Path(spec.graph))
        return text
    graph = file.with_suffix(".onnx")
    ensure_graph(spec, graph)
    return _set(text, "graph", json.dumps(graph.name, ensure_ascii=False))


def _set(text: str, name: str, value: str) -> str:
    """Replace the line of a key, or the lines of its array, or add it."""
    line = f"{name} = {value}\n"
    found = re.compile(rf"^{name}\s*=\s*(\[[^\]]*\]|[^\n]*)\n?", re.MULTILINE)
    if found.search(text):
        return found.sub(lambda _: line, text, count=1)
    return text + ("" if text.endswith("\n") or not text else "\n") + line


def _vectors(encoder: Encoder, path: str, layout: Format | None, text_field: str) -> Matrix:
    """The finite vectors of a file's first posts."""
    with open_posts(path, layout, None, text_field) as (posts, _):
        texts = [normalise(post.text) for post in islice(posts, CALIBRATION_POSTS)]
    if not texts:
        raise Fatal(f"{path} holds no posts: name a file of some hundred at least")
    with Engine(encoder, encoder.batch_tokens) as engine:
        vectors = engine.submit(texts).result().vectors
    return vectors[np.isfinite(vectors).all(axis=1)]


def _kept(vectors: Matrix, scale: float) -> float:
    """The mean cosine of vectors with what comes back of them."""
    form = VectorForm("int8", scale)
    back = form.unpack(form.pack(vectors).tobytes(), len(vectors))
    dots = np.einsum("ij,ij->i", back, vectors)
    return float((dots / (np.linalg.norm(back, axis=1) * np.linalg.norm(vectors, axis=1))).mean())
