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
_KINDS = ("Transformer", "Pooling", "Normalize")


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A folder we can run: a transformer, a pooling, and whether vectors are scaled to length 1.

    weights: the folder of config.json, tokenizer.json and the safetensors. folders: those of all modules.
    poolings: some of `POOLINGS`; their vectors are concatenated.
    max_tokens: None leaves it to model and tokenizer.
    """

    weights: Path
    folders: tuple[Path, ...]
    poolings: tuple[str, ...]
    normalise: bool
    max_tokens: int | None
    lower_case: bool


def read_model_folder(folder: Path) -> ModelFolder:
    """Read a folder's configuration.

    Fatal: no safetensors, no tokenizer.json, code of its own, an adapter, quantised weights, a module or an
    option that we do not run: what would change vectors is refused, never ignored.
    """
    _check_whole(folder)
    modules = _modules(folder)
    weights = modules["Transformer"]
    config = _check_weights(weights)
    options = _transformer_options(folder, weights)
    return ModelFolder(
        weights=weights,
        folders=tuple(modules.values()),
        poolings=_poolings(folder, modules["Pooling"]) if "Pooling" in modules else (_default_pooling(config),),
        normalise="Normalize" in modules,
        max_tokens=options.get("max_seq_length"),
        lower_case=bool(options.get("do_lower_case")),
    )


def _modules(folder: Path) -> dict[str, Path]:
    """Each module's kind and folder; without modules.json, a transformer alone."""
    path = folder / "modules.json"
    if not path.exists():
        return {"Transformer": folder}
    modules: dict[str, Path] = {}
    for module in _json(path, list):
        if not isinstance(module, dict) or not all(isinstance(module.get(key), str) for key in ("type", "path")):
            raise Fatal(f"model={folder}: modules.json holds a module without type and path: fetch the model again")
        package, _, kind = module["type"].rpartition(".")
        where = PurePosixPath(module["path"])
        if not package.startswith("sentence_transformers.") or kind not in _KINDS or kind in modules:
            raise Fatal(
                f"model={folder}: modules.json names {module['type']}, which is not run: "
                "a model may be one Transformer, one Pooling and a Normalize"
            )
        if where.is_absolute() or ".." in where.parts:
            raise Fatal(f"model={folder}: modules.json names the path {where}, outside the folder: correct it")
        modules[kind] = folder / where
    if tuple(modules) not in (_KINDS[:2], _KINDS):
        raise Fatal(
            f"model={folder}: modules.json names {', '.join(modules) or 'nothing'}: "
            "a model must be a Transformer, a Pooling and maybe a Normalize, in this order"
        )
    return modules


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


def _poolings(folder: Path, pooling: Path) -> tuple[str, ...]:
    """Read both forms of the configuration: `pooling_mode`, and the older flags `pooling_mode_<name>`."""
    config = _json(pooling / "config.json", dict)
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


def _check_whole(folder: Path) -> None:
    """Refuse what config_sentence_transformers.json sets and we would not do."""
    config = _json(folder / "config_sentence_transformers.json", dict, optional=True)
    if name := config.get("default_prompt_name"):
        raise Fatal(f"model={folder}: it sets default_prompt_name={name}, and prompts are not supported yet: unset it")
    if dims := config.get("truncate_dim"):
        raise Fatal(f"model={folder}: it sets truncate_dim={dims}, which is not supported: unset it")
    if (kind := config.get("model_type", "SentenceTransformer")) != "SentenceTransformer":
        raise Fatal(f"model={folder}: it is a {kind}, which gives no single vector: choose a SentenceTransformer")


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
