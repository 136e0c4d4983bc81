"""Row 11, and of row 3 the memory that does not suffice and the kernel that hangs: posts that break their encoder.

Other bad records (no JSON, no UTF-8, no text, oversize) are in the load of every fault.
"""

import json
from collections.abc import Mapping

from faults.fault import fault
from faults.run import Run

BOMB_BYTES = 32 * 2**20
"""Of one record; compressed, some 130 KB."""
STALL_S = 10.0


def _send(run: Run, reasons: Mapping[str, int], *texts: str) -> None:
    """Send such texts, and wait until so many are rejected for these reasons."""
    posts = [{"id": f"poison{number}", "text": text} for number, text in enumerate(texts)]
    run.load.poison.extend(json.dumps(post).encode() for post in posts)
    run.wait_until(
        lambda: all(run.live.reasons[reason] >= count for reason, count in reasons.items()), f"{reasons} rejected"
    )


@fault(11, launch="poison")
def poison(run: Run) -> None:
    """Vectors that are not finite, texts that do not fit the memory, and a record that grows 250-fold."""
    reasons = {"not_finite": 5, "out_of_memory": 5}
    _send(
        run, reasons, *(f"{number} poison:{kind}" for number in range(5) for kind in ("nan", "oom")), "x" * BOMB_BYTES
    )


@fault(11, launch="poison")
def poison_that_kills(run: Run) -> None:
    """Two posts at which the encoder is killed, as by the kernel for its memory."""
    _send(run, {"kills_encoder": 2}, "one poison:kill", "two poison:kill")


@fault(11, launch="poison", settings={"stall_timeout_s": STALL_S})
def poison_that_hangs(run: Run) -> None:
    """A post at which the encoder hangs, as in a kernel of a GPU, until the watchdog ends it."""
    _send(run, {"kills_encoder": 1}, "poison:hang")
