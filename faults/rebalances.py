"""Row 8: workers that come and go faster than a group likes."""

from collections import Counter
from functools import partial

from faults.fault import Fault, add
from faults.run import Run
from streams import clock

EVERY_S = 5.0
LASTS_S = 600.0


def come_or_go(run: Run, role: str, most: int) -> str:
    """A worker of a role joins or leaves, in order or killed; there are 1 to `most`. What it did: for a note."""
    workers = list(run.pids(role))
    if len(workers) == 1 or (len(workers) < most and run.random.random() < 0.5):
        run.pipeline.start_role(role)
        return "came"
    is_killed = bool(run.random.random() < 0.3)
    run.pipeline.stop_process(workers[int(run.random.integers(len(workers)))], kill=is_killed)
    return "killed" if is_killed else "went"


def _storm(role: str, most: int, run: Run) -> None:
    """Every 5 s for 10 minutes a worker joins or leaves; one that leaves in order may take longer."""
    counts: Counter[str] = Counter()
    now_s = began_s = clock.monotonic_s()
    while now_s < began_s + LASTS_S:
        counts[come_or_go(run, role, most)] += 1
        run.rest(max(0.0, now_s + EVERY_S - clock.monotonic_s()))
        now_s = clock.monotonic_s()
    run.note(", ".join(f"{count} {what}" for what, count in sorted(counts.items())))


for _most in (3, 5):
    add(
        Fault(
            f"rebalances-of-{_most}-workers",
            8,
            partial(_storm, "dedup", _most),
            roles={"dedup": _most},
            settings={"partitions": 8},
            rate=300,
            silent_s=(1.0, LASTS_S / 4),
        )
    )
