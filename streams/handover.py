"""How `manyray up` hands the settings to the processes it starts, and ties their lives to its own."""

import ctypes
import json
import os
import signal
import sys

from streams import failpoints
from streams.settings import PREFIX, Settings

ROLE_STOP_S = 25.0
"""A role that is told to stop has ended after this, whatever holds it: below the 30 s that Kubernetes gives."""

# Two underscores, so that they are no settings.
_SETTINGS_VARIABLE = "MANYRAY__SETTINGS"
_NAME_VARIABLE = "MANYRAY__NAME"
_PARENT_VARIABLE = "MANYRAY__PARENT"
_PR_SET_PDEATHSIG = 1  # from linux/prctl.h


def environment_for(settings: Settings, name: str) -> dict[str, str]:
    """The environment of a process that is to have exactly these settings, and the name in its log lines.

    Secrets are in it, as no other user can read it; a command line they could.
    """
    values = {**settings.model_dump(mode="json"), "salt": settings.salt.get_secret_value()}
    return {
        **{key: value for key, value in os.environ.items() if not key.startswith(PREFIX) or key == failpoints.VARIABLE},
        "PYTHONUNBUFFERED": "1",
        _SETTINGS_VARIABLE: json.dumps(values),
        _NAME_VARIABLE: name,
        _PARENT_VARIABLE: str(os.getpid()),
    }


def inherited_settings() -> Settings | None:
    """The settings handed over, which are then gone from the environment; None in any other process.

    From then on this process ends when `manyray up` does, in whatever way (on Linux).
    """
    text = os.environ.pop(_SETTINGS_VARIABLE, None)
    if text is None:
        return None
    _die_with_parent(int(os.environ.pop(_PARENT_VARIABLE)))
    return Settings.model_validate_json(text)


def process_name() -> str:
    """The name handed over, such as `dedup-2`; empty in any other process."""
    return os.environ.get(_NAME_VARIABLE, "")


def _die_with_parent(parent: int) -> None:
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before that
        sys.exit(1)
