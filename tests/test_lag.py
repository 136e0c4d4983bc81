"""Laws of what readers wait for: open transactions are told while they hold something up, and only then."""

import pytest

from streams import clients, clock
from streams.group import Member
from streams.lag import OpenTransactions
from streams.metrics import Metrics
from streams.settings import Settings
from tests.waiting import WAIT_S, wait_until

PLACE = ("topic", 0)


@pytest.fixture
def transactions() -> OpenTransactions:
    """Of a process that has seen none."""
    return OpenTransactions(Metrics.create().open_transaction_seconds)


def seconds(transactions: OpenTransactions) -> float:
    """What the metric says."""
    return transactions.seconds.labels("topic", "0")._value.get()


@pytest.mark.parametrize(
    ("read", "stable", "end"),
    [(5, 5, 5), (3, 5, 9), (0, 0, 0)],
    ids=["nothing is behind it", "there is still something to read", "empty"],
)
def test_what_holds_nobody_up_is_not_told(transactions: OpenTransactions, read: int, stable: int, end: int) -> None:
    """A reader waits for a transaction only where it has read all that it may, and there is more."""
    for _ in range(2):
        transactions.note(*PLACE, read=read, stable=stable, end=end)
    assert seconds(transactions) == 0


def test_it_is_timed_from_when_it_was_first_seen(
    transactions: OpenTransactions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As long as it begins at the same offset; another one, or none, starts over."""
    now_s = [100.0]
    monkeypatch.setattr(clock, "monotonic_s", lambda: now_s[0])

    def after(passed_s: float, *, stable: int, end: int) -> float:
        now_s[0] += passed_s
        transactions.note(*PLACE, read=5, stable=stable, end=end)
        return seconds(transactions)

    assert after(0, stable=5, end=9) == 0
    assert after(7, stable=5, end=12) == 7
    assert after(3, stable=5, end=12) == 10
    assert after(1, stable=4, end=12) == 0
    assert after(2, stable=4, end=12) == 2
    assert after(1, stable=5, end=5) == 0
    assert after(1, stable=5, end=9) == 0


@pytest.mark.broker
def test_a_member_tells_of_a_transaction_until_it_ends(settings: Settings, topic: str) -> None:
    """On a real broker: seconds grow while it is open, and are 0 when it is committed and read."""
    metrics = Metrics.create()
    blocking = clients.producer(settings, f"test{clock.random_id()}")
    blocking.init_transactions(WAIT_S)
    blocking.begin_transaction()
    blocking.produce(topic, b"held", partition=0)
    assert blocking.flush(WAIT_S) == 0
    member = Member.join(settings, f"group{clock.random_id()}", [topic], metrics)
    values: list[bytes] = []

    def held_s() -> float:
        samples = metrics.open_transaction_seconds.collect()[0].samples
        return sum(sample.value for sample in samples if sample.labels["partition"] == "0")

    def read() -> None:
        values.extend(message.value() for message in member.read(10, 0.1))

    try:
        wait_until(lambda: held_s() > 1, "it is told", read)
        assert values == []
        blocking.commit_transaction()
        wait_until(lambda: values == [b"held"] and held_s() == 0, "it is over", read)
    finally:
        member.close()
