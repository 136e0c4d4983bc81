"""Fetching a pinned model from the hub into the hub's own cache. Imported for a hub id alone."""

from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    HTTPError,  # pyright: ignore[reportPrivateImportUsage]
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from encoders.folder_digest import SUFFIXES
from schemas.errors import Fatal, Retry


def download(repo: str, revision: str) -> Path:
    """The folder of a model at one commit, fetched unless it is in the cache: no pickled weights and no code.

    Fatal: the hub has no such model or commit, or not for us. Retry: it cannot be reached.
    """
    try:
        folder = snapshot_download(
            repo,
            revision=revision,
            allow_patterns=[f"*{suffix}" for suffix in SUFFIXES],
            ignore_patterns=["onnx/*", "openvino/*", "checkpoint*/*"],
        )
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise Fatal(
            f"model={repo} at revision={revision} is not on the hub, or not for this account: {error}"
        ) from error
    except (OSError, HTTPError) as error:  # the hub's other errors, the network's, and a proxy's
        raise Retry(f"model={repo} at revision={revision} could not be fetched from the hub: {error}") from error
    return Path(folder)
