"""Row 11, and of row 3 the memory that does not suffice and the kernel that hangs: posts that break their encoder.

Other bad records (no JSON, no UTF-8, no text, oversize) are in the load of every fault.
"""

import json
import math
from collections import Counter

from faults.fault import fault
from faults.run import FaultError, Run

BOMB_BYTES = 32 * 2**20
"""Of one record; compressed, some 130 KB."""
STALL_S = 10.0


def _send(run: Run, *texts: tuple[str, str]) -> None:
    """Send such texts, and wait until all are rejected, each for its reason."""
    before, reasons = run.live.reasons.copy(), Counter(reason for _, reason in texts)
    posts = [json.dumps({"id": f"poison{number}", "text": text}).encode() for number, (text, _) in enumerate(texts)]
    run.load.poison.extend(zip(posts, (reason for _, reason in texts), strict=True))
    run.wait_until(lambda: (run.live.reasons - before) >= reasons, f"{dict(reasons)} rejected")


@fault(11, launch="poison")
def poison(run: Run) -> None:
    """Vectors that are not finite, texts that do not fit the memory, and a record that grows 250-fold."""
    kinds = {"nan": "not_finite", "oom": "out_of_memory"}
    texts = [(f"{number} poison:{kind}", reason) for number in range(5) for kind, reason in kinds.items()]
    _send(run, *texts, ("x" * BOMB_BYTES, "text_too_long"))
    if not sum(run.samples("encode", "manyray_encode_splits_total")):
        raise FaultError("what did not fit the memory was not tried in parts")


@fault(11, launch="poison")
def poison_that_kills(run: Run) -> None:
    """Two posts at which the encoder is killed, as by the kernel for its memory."""
    _send(run, ("one poison:kill", "kills_encoder"), ("two poison:kill", "kills_encoder"))


@fault(11, launch="poison", settings={"stall_timeout_s": STALL_S}, silent_s=(STALL_S, math.inf))
def poison_that_hangs(run: Run) -> None:
    """A post at which the encoder hangs, as in a kernel of a GPU, until the watchdog ends it."""
    _send(run, ("poison:hang", "kills_encoder"))
