"""Row 17: processes, brokers, networks and groups fail together for an hour.

python -m faults.soak [--minutes 60] [--seed 1] [--report docs/reliability.md]
"""

import argparse
import signal
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from faults.fault import THREE_BROKERS, Fault
from faults.processes import STEPS
from faults.rebalances import come_or_go
from faults.report import commit, line, write
from faults.run import WAIT_S, FaultError, Run, run_fault
from streams import clock
from streams.up import ROLES

RATE = 250
"""Posts a second: some 900,000 an hour."""
AT_ONCE = 2
LASTS_S_MAX = 15.0
STOP_S_MAX = 15.0
"""A broker that cannot end in order is killed: cut off from the controller it asks for minutes."""
CALM_S_MAX = 10.0
WORKERS_MAX = 3

Mend = Callable[[], object]
Item = TypeVar("Item")


def _choose(run: Run, items: list[Item]) -> Item:
    return items[int(run.random.integers(len(items)))]


def _kill(run: Run) -> Mend:
    """At once, or at a step of a transaction; at once after all if none is reached in time."""
    role = _choose(run, list(ROLES))
    if run.random.random() < 0.5:
        run.kill(role)
        return lambda: None
    step = f"{role}.{_choose(run, list(STEPS[role]))}"
    run.arm(step, "kill")

    def mend() -> None:
        if (run.points / step).exists():
            (run.points / step).unlink(missing_ok=True)
            with suppress(FaultError):  # it is dead already
                run.kill(role)

    return mend


def _bounce(run: Run) -> Mend:
    server = _choose(run, list(run.cluster.servers.values()))
    if run.random.random() < 0.5:
        server.kill()
    else:
        server.terminate()

    def mend() -> None:
        server.gone(STOP_S_MAX)
        server.launch()

    return mend


def _cut(run: Run) -> Mend:
    one, other = _choose(run, [(one, other) for one in run.cluster.servers for other in run.cluster.servers])
    links = [run.cluster.clients(one)] if one == other else run.cluster.between(one, other)
    directions = _choose(run, [{}, {"to_client": False}, {"to_target": False}])
    for link in links:
        if run.random.random() < 0.3:
            link.delay(0.5)
        else:
            link.cut(**directions)

    def mend() -> None:
        for link in links:
            link.heal()

    return mend


def _come_or_go(run: Run) -> Mend:
    if come_or_go(run, _choose(run, list(ROLES)), WORKERS_MAX) == "came":
        run.pipeline.wait_ready(WAIT_S)  # who dies before it was ever ready is not started again
    return lambda: None


ACTIONS = {"kill": _kill, "worker": _come_or_go, "network": _cut, "broker": _bounce}
"""In this order: a worker that starts needs brokers, as by hand, while other workers may die."""


def _strike(minutes: float, run: Run) -> None:
    """Two kinds at once, mended after seconds; each time new posts have to come out of every flow before the next."""
    end_s = clock.monotonic_s() + minutes * 60
    counts: Counter[str] = Counter()
    waited_s: list[float] = []
    while clock.monotonic_s() < end_s:
        drawn = run.random.permutation(len(ACTIONS))[:AT_ONCE]
        chosen = [list(ACTIONS)[at] for at in sorted(drawn.tolist())]
        counts.update(chosen)
        mends = [ACTIONS[name](run) for name in chosen]
        run.rest(LASTS_S_MAX * run.random.random())
        for mend in mends:
            mend()
        began_s = clock.monotonic_s()
        run.cluster.wait_until_whole(WAIT_S)
        run.pipeline.wait_ready(WAIT_S)
        run.await_flow()
        waited_s.append(clock.monotonic_s() - began_s)
        print(f"{len(waited_s):>4}  {' and '.join(chosen):<20} flows {waited_s[-1]:.1f} s after", flush=True)
        run.rest(CALM_S_MAX * run.random.random())
    told = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
    run.note(f"{minutes:.0f} minutes: {told}; all flowed again {max(waited_s):.1f} s after the mending at the latest")


def main() -> int:
    """Run it once, and print the verdict."""
    parser = argparse.ArgumentParser(description="faults of all kinds together, judged by an oracle")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--report", type=Path, help="a file whose table of figures is brought up to date")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # so that nothing is left behind
    of = commit()
    soak = Fault(f"soak-of-{arguments.minutes:.0f}-minutes", 17, partial(_strike, arguments.minutes), **THREE_BROKERS)
    verdict = run_fault(replace(soak, rate=RATE), arguments.seed, posts=100_000)
    print(line(verdict))
    if arguments.report:
        write(arguments.report, [verdict], of)
    return 1 if verdict.problems else 0


if __name__ == "__main__":
    sys.exit(main())
