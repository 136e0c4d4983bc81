"""What a fault is, and the list of all of them."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from faults.run import Run

Strike = Callable[["Run"], None]

THREE_BROKERS: Mapping[str, Any] = {
    "brokers": 3,
    "rate": 500,
    "settings": {"commit_interval_ms": 300, "encode_wait_ms": 100},
}
"""What a `Fault` of three brokers takes, with which two cores are two thirds busy: commits are what costs."""


@dataclass(frozen=True)
class Fault:
    """A fault: `strike` is called while posts flow, and returns when it has struck and what it broke is whole again.

    `row` groups faults in the report. `roles` says how many processes of each role run, one if it says nothing; `rate`
    is in posts a second.
    """

    name: str
    row: int
    strike: Strike
    brokers: int = 1
    roles: Mapping[str, int] = field(default_factory=dict[str, int])
    rate: float = 2_500
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    launch: str = ""
    """What `faults.launch` changes in the roles before it starts them; nothing if empty."""
    disk: str = ""
    """A folder of the run that has a disk of its own, which can be filled; none if empty."""
    text_chars: int = 0
    """How long the posts' texts are at least."""
    clock: bool = False
    """Whether the clocks of roles and brokers can be shifted."""
    doubles: bool = False
    """Whether posts may come out more than once."""
    secured: bool = False
    """Whether the brokers ask the roles for a password, and for rights."""
    replays: tuple[str, str] | None = None
    """A topic that ingest does not read, and the job that replays all of it meanwhile."""
    silent_s: tuple[float, float] = (0.0, math.inf)
    """The least and the most that its output is silent: after less it did not strike, after more it took too long."""


FAULTS: dict[str, Fault] = {}


def add(fault: Fault) -> None:
    """Add a fault to the list; its name is its own."""
    assert fault.name not in FAULTS
    FAULTS[fault.name] = fault


def fault(row: int, **how: Any) -> Callable[[Strike], Strike]:
    """Add the function below as a fault; its name with hyphens is the fault's."""

    def added(strike: Strike) -> Strike:
        add(Fault(strike.__name__.replace("_", "-"), row, strike, **how))
        return strike

    return added
