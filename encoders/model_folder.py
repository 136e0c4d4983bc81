"""What a model folder says: where its weights lie, how to pool, what it may not ask for. JSON only, no torch.

Follows sentence-transformers' folders (modules.json) and plain transformers folders (config.json alone).
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from schemas.errors import Fatal

_Root = TypeVar("_Root", dict[str, Any], list[Any])

POOLINGS = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
# The older way to name them, in the order in which several are concatenated.
_POOLING_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}

# What a Transformer's configuration may hold that changes nothing for text, or that we honour.
_TRANSFORMER_KEYS = {"max_seq_length", "do_lower_case", "unpad_inputs"}
_TRANSFORMER_DEFAULTS = {"transformer_task": "feature-extraction", "module_output_name": "token_embeddings"}
_WEIGHTS = re.compile(r"[\w.-]+\.safetensors")
_KINDS = ("Transformer", "Pooling", "Dense", "Normalize")
# As sentence-transformers' Dense names them; what is not here would be code of another package.
ACTIVATIONS = {
    "torch.nn.modules.linear.Identity": "identity",
    "torch.nn.modules.activation.Tanh": "tanh",
    "torch.nn.modules.activation.ReLU": "relu",
    "torch.nn.modules.activation.GELU": "gelu",
    "torch.nn.modules.activation.SiLU": "silu",
}
_DENSE_KEYS = {"in_features", "out_features", "bias", "activation_function", "use_residual"}


@dataclass(frozen=True, slots=True)
class Dense:
    """A linear layer on pooled vectors, what follows it (a value of `ACTIVATIONS`), and whether its input is added."""

    folder: Path
    dims: int
    activation: str
    is_residual: bool


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A folder we can run: a transformer, a pooling, maybe dense layers, and whether vectors have length 1.

    weights: the folder of config.json, tokenizer.json and the safetensors. folders: those of all modules.
    poolings: some of `POOLINGS`; their vectors are concatenated. pools_prompt: whether a prompt's tokens count there.
    max_tokens: None leaves it to model and tokenizer. prompt: what it puts before every text. dims: the prefix of
    its vectors that it gives out, None for all. matryoshka_dims: the prefixes for which it says that it was
    trained, () for none; is_matryoshka: it says so of any.
    """

    weights: Path
    folders: tuple[Path, ...]
    poolings: tuple[str, ...]
    pools_prompt: bool
    denses: tuple[Dense, ...]
    normalise: bool
    max_tokens: int | None
    lower_case: bool
    prompt: str
    dims: int | None
    matryoshka_dims: tuple[int, ...]
    is_matryoshka: bool


def read_model_folder(folder: Path) -> ModelFolder:
    """Read a folder's configuration.

    Fatal: no safetensors, no tokenizer.json, code of its own, an adapter, quantised weights, a module or an
    option that we do not run: what would change vectors is refused, never ignored.
    """
    whole = _json(folder / "config_sentence_transformers.json", dict, optional=True)
    if (kind := whole.get("model_type", "SentenceTransformer")) != "SentenceTransformer":
        raise Fatal(f"model={folder}: it is a {kind}, which gives no single vector: choose a SentenceTransformer")
    modules = _modules(folder)
    found = dict(modules)
    weights = found["Transformer"]
    config = _check_weights(weights)
    options = _transformer_options(folder, weights)
    pooling = _json(found["Pooling"] / "config.json", dict) if "Pooling" in found else {}
    return ModelFolder(
        weights=weights,
        folders=tuple(path for _, path in modules),
        poolings=_poolings(folder, pooling) if "Pooling" in found else (_default_pooling(config),),
        pools_prompt=bool(pooling.get("include_prompt", True)),
        denses=tuple(_dense(path) for kind, path in modules if kind == "Dense"),
        normalise="Normalize" in found,
        max_tokens=options.get("max_seq_length"),
        lower_case=bool(options.get("do_lower_case")),
        prompt=_prompt(folder, whole),
        dims=whole.get("truncate_dim"),
        matryoshka_dims=tuple(config.get("matryoshka_dimensions") or ()),
        is_matryoshka=bool(config.get("is_matryoshka")),
    )


def check_dims(folder: ModelFolder, dims: int | None, declared: tuple[int, ...]) -> None:
    """Refuse a prefix for which the model was not trained: its vectors would be worse than a smaller model's.

    Fatal: neither the folder nor `declared`, by whom the spec was written, says that it may be `dims` long.
    """
    allowed = {*folder.matryoshka_dims, *declared, *([folder.dims] if folder.dims else [])}
    if dims is None or dims in allowed or (folder.is_matryoshka and not folder.matryoshka_dims):
        return
    names = f"those of {', '.join(map(str, sorted(allowed)))}" if allowed else "none, so leave dims out"
    raise Fatal(
        f"dims={dims}: the model says of no such prefix that it was trained for it, but of {names}; if its authors "
        "say it elsewhere, list the prefixes as matryoshka_dims beside dims"
    )


def _modules(folder: Path) -> list[tuple[str, Path]]:
    """Each module's kind and folder, in their order; without modules.json, a transformer alone."""
    path = folder / "modules.json"
    if not path.exists():
        return [("Transformer", folder)]
    modules: list[tuple[str, Path]] = []
    for module in _json(path, list):
        if not isinstance(module, dict) or not all(isinstance(module.get(key), str) for key in ("type", "path")):
            raise Fatal(f"model={folder}: modules.json holds a module without type and path: fetch the model again")
        package, _, kind = module["type"].rpartition(".")
        where = PurePosixPath(module["path"])
        if not package.startswith("sentence_transformers.") or kind not in _KINDS:
            raise Fatal(
                f"model={folder}: modules.json names {module['type']}, which is not run: "
                "a model may be a Transformer, a Pooling, Dense layers and a Normalize"
            )
        if where.is_absolute() or ".." in where.parts:
            raise Fatal(f"model={folder}: modules.json names the path {where}, outside the folder: correct it")
        modules.append((kind, folder / where))
    kinds = " ".join(kind for kind, _ in modules)
    if not re.fullmatch(r"Transformer Pooling( Dense)*( Normalize)?", kinds):
        raise Fatal(
            f"model={folder}: modules.json names {kinds.replace(' ', ', ') or 'nothing'}: a model must be a "
            "Transformer, a Pooling, any Dense layers and maybe a Normalize, in this order"
        )
    return modules


def _dense(folder: Path) -> Dense:
    """A Dense module, whose weights lie beside its configuration."""
    config = _json(folder / "config.json", dict)
    activation = ACTIVATIONS.get(config.get("activation_function", "torch.nn.modules.activation.Tanh"))
    ways = ("module_input_name", "module_output_name")
    others = {key for key, value in config.items() if key not in _DENSE_KEYS and value is not None}
    if any(config.get(way, "sentence_embedding") not in ("sentence_embedding", None) for way in ways):
        raise Fatal(f"model={folder}: its Dense works on tokens, which is not supported: choose another model")
    if activation is None or not isinstance(config.get("out_features"), int) or others - set(ways):
        odd = config.get("activation_function") if activation is None else ", ".join(others - set(ways)) or "no size"
        raise Fatal(f"model={folder}: its Dense has {odd}, which is not run: choose another model")
    if not (folder / "model.safetensors").exists():
        raise Fatal(f"model={folder}: it has no model.safetensors, and pickled weights are never read: convert them")
    return Dense(folder, config["out_features"], activation, bool(config.get("use_residual")))


def _prompt(folder: Path, whole: dict[str, Any]) -> str:
    """What a folder puts before every text: its default prompt."""
    name = whole.get("default_prompt_name")
    prompts = whole.get("prompts") or {}
    if name is not None and name not in prompts:
        raise Fatal(f"model={folder}: it sets default_prompt_name={name}, which its prompts lack: fetch it again")
    return prompts[name] or "" if name is not None else ""


def _transformer_options(folder: Path, weights: Path) -> dict[str, Any]:
    """The Transformer module's own configuration, named after the kind of model that was trained."""
    found = sorted(weights.glob("sentence_*_config.json"))
    options = _json(found[0], dict) if found else {}
    output = options.pop("modality_config", {}).get("text", {}).get("method_output_name", "last_hidden_state")
    if output != "last_hidden_state":
        raise Fatal(f"model={folder}: its vectors come from {output}, which is not supported: choose another model")
    for key, value in options.items():
        if value and key not in _TRANSFORMER_KEYS and value != _TRANSFORMER_DEFAULTS.get(key):
            raise Fatal(f"model={folder}: its Transformer sets {key}, which is not supported: choose another model")
    return options


def _poolings(folder: Path, config: dict[str, Any]) -> tuple[str, ...]:
    """Read both forms of the configuration: `pooling_mode`, and the older flags `pooling_mode_<name>`."""
    modes = config.get("pooling_mode") or [mode for flag, mode in _POOLING_FLAGS.items() if config.get(flag)] or "mean"
    modes = (modes,) if isinstance(modes, str) else tuple(modes)
    for mode in modes:
        if mode not in POOLINGS:
            raise Fatal(f"model={folder}: its pooling {mode} is not run: choose a model with {', '.join(POOLINGS)}")
    return modes


def _default_pooling(config: dict[str, Any]) -> str:
    """A plain folder's pooling, as sentence-transformers chooses it."""
    architecture = (config.get("architectures") or [""])[0]
    return "lasttoken" if architecture.endswith("ForCausalLM") and config.get("is_causal", True) else "mean"


def _check_weights(weights: Path) -> dict[str, Any]:
    """Return config.json, having refused every folder that needs code, a network or a pickle to load."""
    if (weights / "adapter_config.json").exists():
        raise Fatal(f"model={weights}: it is an adapter: merge it into its base model and save that")
    config = _json(weights / "config.json", dict)
    tokenizer = _json(weights / "tokenizer_config.json", dict, optional=True)
    if config.get("auto_map") or tokenizer.get("auto_map"):
        raise Fatal(f"model={weights}: it needs code of its own (auto_map), which is never run: choose another model")
    if config.get("quantization_config"):
        raise Fatal(f"model={weights}: its weights are quantised, which is not supported: choose the original")
    _check_weight_files(weights, config)
    if not any(weights.glob("*.safetensors")):
        raise Fatal(
            f"model={weights}: it has no .safetensors, and pickled weights (.bin), which may run code, are "
            "never read: convert them, or choose a revision that has safetensors"
        )
    if not (weights / "tokenizer.json").exists():
        raise Fatal(f"model={weights}: it has no tokenizer.json: save its AutoTokenizer into it")
    return config


def _check_weight_files(weights: Path, config: dict[str, Any]) -> None:
    """Refuse weights elsewhere than beside config.json: the version's digest would not see them change."""
    if name := config.get("transformers_weights"):
        raise Fatal(f"model={weights}: config.json sets transformers_weights={name}, which is not supported: unset it")
    for index in weights.glob("*.index.json"):
        for name in set(_json(index, dict).get("weight_map", {}).values()):
            if not _WEIGHTS.fullmatch(str(name)):
                raise Fatal(
                    f"model={weights}: {index.name} names {name}, which is no .safetensors beside it: correct it"
                )


def _json(path: Path, kind: type[_Root], *, optional: bool = False) -> _Root:
    """Read a JSON file whose root is a `kind`; an optional one that is not there is empty."""
    if optional and not path.exists():
        return kind()
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise Fatal(f"model={path.parent}: it has no {path.name}: set model to a whole model folder") from error
    except ValueError as error:
        raise Fatal(f"model={path.parent}: {path.name} is not JSON: fetch the model again") from error
    if not isinstance(value, kind):
        raise Fatal(f"model={path.parent}: {path.name} is no JSON {kind.__name__}: fetch the model again")
    return value
