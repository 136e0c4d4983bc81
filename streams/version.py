"""The version that settings name."""

from pathlib import Path

from encoders.model_spec import ModelSpec, model_spec
from encoders.source import FolderSource, parse_source
from encoders.version import VersionSpec, resolve_spec
from streams.settings import Settings


def model_of(settings: Settings) -> ModelSpec:
    """What the settings, or the file that they name, say of the encoder.

    Raises:
        Fatal: a choice that cannot be.
    """
    return model_spec(settings.model, revision=settings.revision, dtype=settings.dtype, max_tokens=settings.max_tokens)


def spec_of(settings: Settings) -> VersionSpec:
    """What decides the vectors of the encoder that the settings name; imports no torch.

    Raises:
        Fatal: they name no encoder that can be.
    """
    return resolve_spec(model_of(settings))


def place_of(model: str, revision: str = "") -> str:
    """How a model is named wherever roles run: a file or folder by its whole path, others as they are."""
    path = Path(model).expanduser()
    # A name, such as minilm, is of a folder too, but of each machine's own.
    is_path = model.endswith(".toml") or parse_source(model, revision) == FolderSource(path)
    return str(path.resolve()) if is_path else model


def version_of(settings: Settings) -> str:
    """The version of that encoder, 12 hexadecimal digits.

    Raises:
        Fatal: as `spec_of`.
    """
    return spec_of(settings).version
