"""The version that settings name."""

from encoders.version import resolve_spec
from streams.settings import Settings


def version_of(settings: Settings) -> str:
    """The version of the encoder that the settings name, 12 hexadecimal digits; imports no torch.

    Raises:
        Fatal: they name no encoder that can be.
    """
    return resolve_spec(
        settings.model, revision=settings.revision, dtype=settings.dtype, max_tokens=settings.max_tokens
    ).version
