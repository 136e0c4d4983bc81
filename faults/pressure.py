"""Rows 12 and 13: stages that are slow, and clocks that jump."""

from functools import partial

from bench.machine import rss_mib
from faults.fault import Fault, add, fault
from faults.run import FaultError, Run

SLOW_S = 60.0
GROWTH_MIB_MAX = 100.0
"""Of a role's memory while another is slow: what it may hold of the load, a transaction's worth, and Python's own."""
HOUR_S = 3_600.0
LASTS_S = 20.0


def _stay_flat(run: Run, seconds: float) -> None:
    """Let it last; no role may grow meanwhile."""
    before = {name: rss_mib(pid) for name, pid in run.pipeline.pids.items()}
    run.rest(seconds)
    grown = {name: rss_mib(pid) - before[name] for name, pid in run.pipeline.pids.items()}
    run.note(", ".join(f"{name} {mib:+.0f} MiB" for name, mib in grown.items()))
    if max(grown.values()) > GROWTH_MIB_MAX:
        raise FaultError(f"memory grew: {grown}")


@fault(12, launch="slow-encoder")
def slow_encoder(run: Run) -> None:
    """The encoder takes a second for each window: misses wait in Kafka, nowhere else, and come out when it is fast."""
    run.arm("slow", "1.0")
    _stay_flat(run, SLOW_S)
    (run.points / "slow").unlink()


@fault(12)
def slow_output(run: Run) -> None:
    """What the roles write takes two seconds to arrive: they do less, and hold no more."""
    link = run.cluster.clients(1)
    link.delay(1.0)
    _stay_flat(run, SLOW_S)
    link.heal()


def _jump(whose: str, seconds: float, run: Run) -> None:
    run.set_clock(whose, seconds)
    run.rest(LASTS_S)
    run.await_flow()
    run.set_clock(whose, 0.0)


for _whose in ("roles", "brokers"):
    for _way, _seconds in (("forward", HOUR_S), ("back", -HOUR_S)):
        add(Fault(f"clock-of-{_whose}-{_way}", 13, partial(_jump, _whose, _seconds), clock=True))
