"""Rows 12 and 13: stages that are slow, and clocks that jump."""

from functools import partial

from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic

from bench.machine import rss_mib
from bench.memory import longest_queues, scrape, too_long
from faults.fault import Fault, add, fault
from faults.frames import Api
from faults.run import FaultError, Run
from streams import clock

# pyright: reportPrivateImportUsage=false

SLOW_S = 60.0
GROWTH_MIB_MAX = 100.0
"""Of a role's memory while another is slow: a transaction's worth of the load, and Python's own."""
TEXT_CHARS = 4_096
WITHHELD_LEAST = int(1.2 * GROWTH_MIB_MAX * 2**20 / TEXT_CHARS)
"""Posts that then wait for the encoder: no role has the memory for them."""
WINDOW_TOKENS = 200_000
"""Some 150 posts of that length: a second each is a fifth of what comes."""
LATE_S = 2.0
HOUR_S = 3_600.0
LASTS_S = 20.0


def _stay_flat(run: Run, seconds: float) -> None:
    """Let it last; no role may grow meanwhile, nor what waits in it.

    Raises:
        FaultError: one did, or it ended.
    """
    before = {process: rss_mib(process[1]) for process in run.pipeline.pids.items()}
    most = dict.fromkeys(before, 0.0)
    queues: dict[str, float] = {}
    end_s = clock.monotonic_s() + seconds
    while clock.monotonic_s() < end_s:
        run.rest(1.0)
        if set(run.pipeline.pids.items()) != before.keys():
            raise FaultError("a role ended")
        for process, mib in before.items():
            most[process] = max(most[process], rss_mib(process[1]) - mib)
        for queue, length in longest_queues(scrape(run.pipeline)).items():
            queues[queue] = max(queues.get(queue, 0), length)
    run.note(", ".join(f"{name} {mib:+.0f} MiB" for (name, _), mib in most.items()))
    run.note(", ".join(f"{queue} at most {length:.0f}" for queue, length in queues.items()))
    grown = [f"{name} grew by {mib:.0f} MiB" for (name, _), mib in most.items() if mib > GROWTH_MIB_MAX]
    if problems := grown + too_long(queues, run.settings):
        raise FaultError("; ".join(problems))


@fault(12, launch="slow-encoder", text_chars=TEXT_CHARS, settings={"window_tokens": WINDOW_TOKENS})
def slow_encoder(run: Run) -> None:
    """The encoder takes a second for each window: misses wait in Kafka, nowhere else, and come out when it is fast."""

    def withheld() -> float:
        sent, done = (("dedup", "manyray_dedup_misses_total"), ("encode", "manyray_encode_posts_total"))
        return sum(run.samples(*sent)) - sum(run.samples(*done))

    run.arm("slow", "1.0")
    _stay_flat(run, SLOW_S)
    most = withheld()
    if most < WITHHELD_LEAST:
        raise FaultError(f"only {most:,.0f} posts wait for the encoder, not {WITHHELD_LEAST:,}")
    (run.points / "slow").unlink()
    began_s = clock.monotonic_s()
    run.wait_until(lambda: withheld() < WITHHELD_LEAST / 10, "the encoder has caught up")
    run.note(f"{most:,.0f} posts waited for the encoder, and were done {clock.monotonic_s() - began_s:.0f} s after")


@fault(12)
def slow_output(run: Run) -> None:
    """What the roles write is acknowledged two seconds late: they do less, hold no more, and go on meanwhile."""
    link = run.cluster.clients(1)
    link.hold_replies([Api.PRODUCE], LATE_S)
    _stay_flat(run, SLOW_S)
    waited = sum(run.samples("ingest", "manyray_consumer_lag"))
    if waited < run.fault.rate * LATE_S:
        raise FaultError(f"only {waited:,.0f} posts wait for ingest")
    run.await_seen(run.live.seen + 1)  # not new posts: what came meanwhile waits before them
    link.heal()
    began_s = clock.monotonic_s()
    run.await_seen(run.publisher.sent)
    run.note(f"{waited:,.0f} posts waited for ingest; all came out {clock.monotonic_s() - began_s:.0f} s after")


def _jump(whose: str, seconds: float, run: Run) -> None:
    told_s = {"roles": lambda: run.live.ahead_s, "brokers": lambda: _brokers_ahead_s(run)}[whose]
    run.set_clock(whose, seconds)
    run.rest(LASTS_S)
    run.await_flow()
    if abs((ahead_s := told_s()) - seconds) > LASTS_S:
        raise FaultError(f"the clock of {whose} is ahead by {ahead_s:.0f} s, not {seconds:.0f} s")
    run.set_clock(whose, 0.0)


def _brokers_ahead_s(run: Run) -> float:
    """By how much the clock of the broker is ahead, as the timestamp says that it gives to a record."""
    topic, stamps = "clock", list[int]()
    stamped = NewTopic(topic, 1, config={"message.timestamp.type": "LogAppendTime"})
    admin = AdminClient({"bootstrap.servers": run.cluster.direct_servers, "log_level": 0})
    admin.create_topics([stamped])[topic].result(30)
    producer = Producer({"bootstrap.servers": run.cluster.direct_servers, "log_level": 0})
    producer.produce(topic, b"", on_delivery=lambda _, message: stamps.append(message.timestamp()[1]))
    producer.flush(30)
    return (stamps[0] - clock.now_ms()) / 1000


for _whose in ("roles", "brokers"):
    for _way, _seconds in (("forward", HOUR_S), ("back", -HOUR_S)):
        add(Fault(f"clock-of-{_whose}-{_way}", 13, partial(_jump, _whose, _seconds), clock=True))
