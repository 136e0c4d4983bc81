"""What a user says of a version: a model and what to make of it, in settings or in a TOML file that can be pinned."""

import math
import tomllib
from dataclasses import KW_ONLY, dataclass, fields, replace
from pathlib import Path
from typing import Any, cast, get_args, get_origin

from encoders.model_folder import POOLINGS
from schemas.errors import Fatal
from schemas.vectors import OUTPUTS

DTYPES = ("auto", "float32", "bfloat16")
SIDES = ("left", "right")
BACKENDS = ("torch", "onnxruntime", "openvino")


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """What decides a vector besides the model and the text; None leaves a choice to the model's own folder.

    dtype: of the computation. "auto" is float32 on a CPU and bfloat16 on a GPU, and the word itself is in the version's
    digest: the vectors of a fleet of both share one version and agree to a cosine of about 0.999 only. Choose float32
    or bfloat16 where one exact type is wanted. backend: what computes the layers, one of `BACKENDS`; all but torch run
    an exported graph, on a CPU. max_tokens: longer texts are cut. prompt: goes before every text. pooling: one of
    `POOLINGS`. truncation_side: where a longer text is cut. normalise: vectors have length 1. dims: a prefix of the
    vector, scaled to length 1 again where they are. output, scale: how numbers are stored, as
    `schemas.vectors.VectorForm`.
    """

    dtype: str = "auto"
    backend: str = "torch"
    max_tokens: int | None = None
    prompt: str | None = None
    pooling: str | None = None
    truncation_side: str | None = None
    normalise: bool | None = None
    dims: int | None = None
    output: str = "float32"
    scale: float | None = None

    @property
    def chosen(self) -> dict[str, Any]:
        """These choices by name, for another that makes them."""
        return {field.name: getattr(self, field.name) for field in fields(Choices)}


@dataclass(frozen=True, slots=True)
class ModelSpec(Choices):
    """A model and how to use it.

    model, revision: as the settings of these names. graph: the file of the model's exported graph, which every backend
    but torch runs. matryoshka_dims: the values of `dims` for which its authors say that it was trained, where its
    config.json does not. golden: sketches of the vectors of `golden.TEXTS`.
    """

    model: str = "minilm"
    revision: str = ""
    _: KW_ONLY
    graph: str = ""
    matryoshka_dims: tuple[int, ...] = ()
    golden: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Fatal: a choice that cannot be."""
        _one_of("backend", self.backend, BACKENDS)
        _one_of("dtype", self.dtype, DTYPES)
        _one_of("pooling", self.pooling, (None, *POOLINGS))
        _one_of("truncation_side", self.truncation_side, (None, *SIDES))
        _one_of("output", self.output, OUTPUTS)
        if self.graph and self.backend == "torch":
            raise Fatal(f"graph={self.graph} is for backend=onnxruntime or openvino: set backend, or leave graph out")
        if self.backend == "onnxruntime" and self.dtype == "bfloat16":
            raise Fatal("backend=onnxruntime computes float32 on a CPU: set dtype to it, or backend to openvino")
        for name in ("max_tokens", "dims"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise Fatal(f"{name}={value}: set it to 1 or more, or leave it out for the model's own")
        if self.scale is not None and self.output != "int8":
            raise Fatal(f"scale={self.scale} is for output=int8, and output={self.output}: leave scale out")
        if self.scale is not None and not 0 < self.scale < math.inf:
            raise Fatal(f"scale={self.scale}: set it to a number above 0, as `manyray pin` finds it")


FIELDS = tuple(sorted(fields(ModelSpec), key=lambda field: field.kw_only is True))
"""Of a spec, as one reads it: the model comes first."""


def model_spec(model: str = "minilm", **choices: Any) -> ModelSpec:
    """The spec of a model's name, or in a TOML file, which then has to hold all `choices` but those of the default.

    Fatal: the file cannot be read, holds what is no choice, or a choice that cannot be.
    """
    if not model.endswith(".toml"):
        return ModelSpec(model, **choices)
    path = Path(model).expanduser()
    try:
        spec = parse_spec(path, path.read_text(encoding="utf-8"))
    except OSError as error:
        raise Fatal(f"model={path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise Fatal(f"model={path} is not UTF-8: {error}") from None
    if given := [name for name, value in choices.items() if value != getattr(ModelSpec(), name)]:
        raise Fatal(f"model={model} is a file, and {', '.join(given)} is set beside it: set it in the file")
    return spec


def parse_spec(path: Path, text: str) -> ModelSpec:
    """The spec that a file of this text holds.

    Fatal: it is not TOML, holds what is no choice, or a choice that cannot be.
    """
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise Fatal(f"model={path} is not TOML: {error}") from None
    kinds = {field.name: field.type for field in FIELDS}
    for name, value in values.items():
        if name not in kinds:
            raise Fatal(f"model={path} sets {name}, which is no choice: known ones are {', '.join(kinds)}")
        if not _fits(value, kinds[name]):
            wanted = getattr(kinds[name], "__name__", kinds[name])
            raise Fatal(f"model={path} sets {name}={value!r}, which has to be {wanted}: correct it")
    if not values.get("model"):
        raise Fatal(f"model={path} names no model: set model in it")
    choices: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
    }
    return _beside(path, ModelSpec(**choices))


def _beside(path: Path, spec: ModelSpec) -> ModelSpec:
    """A folder and a graph are named as seen from the file, so that all may be moved together."""
    folder = path.parent / Path(spec.model).expanduser()
    model = str(folder) if spec.model.startswith(".") or folder.is_dir() else spec.model
    return replace(spec, model=model, graph=spec.graph and str(path.parent / Path(spec.graph).expanduser()))


def _fits(value: object, kind: Any) -> bool:
    """Whether a value of TOML is one of a field's type; true is no number to us, as it is to Python."""
    if get_origin(kind) is tuple:
        return isinstance(value, list) and all(type(one) is get_args(kind)[0] for one in cast(list[Any], value))
    allowed = get_args(kind) or (kind,)
    return type(value) in allowed or (type(value) is int and float in allowed)


def _one_of(name: str, value: object, allowed: tuple[object, ...]) -> None:
    if value not in allowed:
        names = ", ".join(str(one) for one in allowed if one is not None)
        raise Fatal(f"{name}={value} is unknown: set it to {names}")
