"""Row 8: workers that come and go faster than a group likes."""

from functools import partial

from faults.fault import Fault, add
from faults.run import Run
from streams import clock

EVERY_S = 5.0
LASTS_S = 600.0
LEAST = 1


def _storm(role: str, most: int, run: Run) -> None:
    """Every 5 s for 10 minutes a worker joins or leaves, in order or killed; there are 1 to `most`."""
    end_s = clock.monotonic_s() + LASTS_S
    while clock.monotonic_s() < end_s:
        workers = [name for name in run.pipeline.pids if name.partition("-")[0] == role]
        if len(workers) <= LEAST or (len(workers) < most and run.random.random() < 0.5):
            run.pipeline.start_role(role)
        else:
            leaver = workers[int(run.random.integers(len(workers)))]
            run.pipeline.stop_process(leaver, kill=bool(run.random.random() < 0.3))
        run.rest(EVERY_S)


for _most in (3, 5):
    add(
        Fault(
            f"rebalances-of-{_most}-workers",
            8,
            partial(_storm, "dedup", _most),
            roles={"dedup": _most},
            settings={"partitions": 8},
            rate=300,
        )
    )
