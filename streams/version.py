"""The version that settings name."""

from encoders.model_spec import ModelSpec, model_spec
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


def version_of(settings: Settings) -> str:
    """The version of that encoder, 12 hexadecimal digits.

    Raises:
        Fatal: as `spec_of`.
    """
    return spec_of(settings).version
