"""The version: one exact encoder, and its digest, which is part of every fingerprint and topic name."""

import hashlib
import json
from dataclasses import asdict, dataclass

from encoders.folder_digest import folder_digest
from encoders.source import FolderSource, HashSource, parse_source
from schemas.errors import Fatal

DTYPES = ("auto", "float32", "bfloat16")
# Raise it when the code changes what a given spec computes: every cached vector is then computed anew.
FORMAT = 1


@dataclass(frozen=True, slots=True)
class VersionSpec:
    """Everything that decides a vector, besides the text.

    kind: "text", or "hash" (no model, for load tests). source: `sha256:<hex>` over a folder's files, wherever
    it lies; `hub:<id>@<commit>`; or `shake_128:<dims>`. dtype: the type the model computes in; what it emits
    is float32 always. "auto" is float32 on a CPU and bfloat16 on
        a GPU, and the word itself is in the digest: the vectors of a fleet of both share one version and
        agree to a cosine of about 0.999 only. Choose float32 or bfloat16 where one exact type is wanted.
    max_tokens: longer texts are cut; None is the model's own limit.
    """

    kind: str
    source: str
    dtype: str = "auto"
    max_tokens: int | None = None

    @property
    def version(self) -> str:
        """12 hexadecimal characters: BLAKE2b of the spec as canonical JSON. The same in every process and
        place.
        """
        canonical = json.dumps({"format": FORMAT, **asdict(self)}, sort_keys=True, separators=(",", ":"))
        return hashlib.blake2b(canonical.encode(), digest_size=6).hexdigest()


def resolve_spec(model: str, *, revision: str = "", dtype: str = "auto", max_tokens: int | None = None) -> VersionSpec:
    """Say what encoder the settings name, reading a folder's files (0.1-0.3 s for 90 MB) and no network.

    Fatal: as `parse_source` and, for a folder, `read_model_folder`; or a dtype or max_tokens that cannot be.
    """
    if dtype not in DTYPES:
        raise Fatal(f"dtype={dtype} is unknown: set it to {', '.join(DTYPES)}")
    if max_tokens is not None and max_tokens < 1:
        raise Fatal(f"max_tokens={max_tokens}: set it to 1 or more, or leave it out for the model's own limit")
    source = parse_source(model, revision)
    if isinstance(source, HashSource):
        if dtype == "bfloat16" or max_tokens is not None:
            raise Fatal(f"model={model} computes float32 from whole texts: leave dtype and max_tokens out")
        return VersionSpec("hash", f"shake_128:{source.dims}", dtype)
    identity = (
        f"sha256:{folder_digest(source.folder)}"
        if isinstance(source, FolderSource)
        else f"hub:{source.repo}@{source.revision}"
    )
    return VersionSpec("text", identity, dtype, max_tokens)
