"""Row 16: a transaction that nobody ends."""

import math
from pathlib import Path

import yaml
from confluent_kafka import Producer

from faults.fault import fault
from faults.run import FaultError, Run
from streams import clock
from streams.up import ROLES

TIMEOUT_S = 30.0
LATE_S = 10.0
"""After its timeout a broker ends it within a second, and readers go on."""
ALERTS = Path(__file__).parent.parent / "docker" / "alerts.yaml"


@fault(16, silent_s=(TIMEOUT_S / 2, math.inf))
def open_transaction_of_a_dead_client(run: Run) -> None:
    """Somebody's transaction on `posts`, `lookups` and `misses` is never ended: readers wait for its timeout, no
    longer, and the alert fires meanwhile.
    """
    producer = Producer(
        {
            "bootstrap.servers": run.cluster.direct_servers,
            "transactional.id": "nobody",
            "transaction.timeout.ms": int(TIMEOUT_S * 1000),
            "log_level": 0,
        }
    )
    producer.init_transactions()
    producer.begin_transaction()
    for topic in (*run.topics.posts, run.topics.lookups, run.topics.misses):
        for partition in range(run.settings.partitions):
            producer.produce(topic, b"never committed", partition=partition)
    producer.flush()
    began_s = clock.monotonic_s()
    run.wait_until(lambda: all(_alerts(run, role) for role in ROLES), "every role's alert fires")
    fired_s = clock.monotonic_s() - began_s
    run.await_flow()  # the producer lives on, and does nothing: as good as dead
    stalled_s = clock.monotonic_s() - began_s
    run.wait_until(lambda: not any(_alerts(run, role) for role in ROLES), "the alerts end")
    run.note(f"alerts after {fired_s:.0f} s, all flowed after {stalled_s:.0f} s of a timeout of {TIMEOUT_S:.0f} s")
    if stalled_s > TIMEOUT_S + LATE_S:
        raise FaultError(f"stalled for {stalled_s:.0f} s")


def _alerts(run: Run, role: str) -> bool:
    """Whether the rule of docker/alerts.yaml is true of a role's metrics now."""
    (group,) = yaml.safe_load(ALERTS.read_text(encoding="utf-8"))["groups"]
    (rule,) = (rule["expr"] for rule in group["rules"] if rule["alert"] == "ManyrayOpenTransaction")
    name, comparison, threshold = rule.split()
    assert comparison == ">"
    return any(value > float(threshold) for value in run.samples(role, name))
