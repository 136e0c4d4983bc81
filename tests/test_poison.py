"""Posts that break the encoder: each is rejected once, with its own bytes, and no other post is held up or doubled."""

from pathlib import Path

import pytest
from confluent_kafka import Message

from schemas.content import fingerprinter, normalise
from streams.clients import producer
from streams.control import create_ray
from streams.learned import Learned
from streams.settings import Settings
from streams.unembedded import UNEMBEDDED_MAX
from streams.up import Pipeline
from streams.version import version_of
from tests.oracle import await_embeddings, post, read_embeddings, read_records, topics_of
from tests.waiting import WAIT_S, wait_until

pytestmark = pytest.mark.broker

ROOT = Path(__file__).resolve().parents[1]
GOOD = 2_000
STALL_S = 4.0
REASONS = {"nan": "not_finite", "oom": "out_of_memory", "kill": "kills_encoder", "hang": "kills_encoder"}


@pytest.fixture
def poisoned(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings of a ray whose encoder does what its texts ask for."""
    monkeypatch.setenv("FAULTS_LAUNCH", "poison")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return settings


def start(settings: Settings) -> Pipeline:
    """The roles as processes, one each, whose encoder may be poisoned."""
    create_ray(settings)
    return Pipeline(settings, module="faults.launch")


def send(settings: Settings, posts: dict[str, str]) -> None:
    """Posts with a key and a header of their own."""
    writer = producer(settings)
    for post_id, text in posts.items():
        writer.produce(
            settings.posts_topics[0], post(post_id, text), key=f"key {post_id}", headers=[("own", post_id.encode())]
        )
    assert writer.flush(WAIT_S) == 0


def rejected(settings: Settings) -> list[Message]:
    """The rejected records of this test's posts."""
    return [
        message
        for message in read_records(settings, "rejected")
        if dict(message.headers())["manyray-topic"].decode() == settings.posts_topics[0]
    ]


def assert_told_apart(settings: Settings, good: dict[str, str], bad: dict[str, str]) -> None:
    """The verdict, when nothing runs any more; a post of `bad` names its poison."""
    seen = read_embeddings(settings)
    assert sorted(good.keys() ^ seen.ids.keys())[:5] == [], "lost, or never to be embedded"
    assert [post_id for post_id, count in seen.ids.items() if count != 1][:5] == [], "doubled"
    found = {}
    for message in rejected(settings):
        headers = dict(message.headers())
        post_id = headers["own"].decode()
        assert post_id not in found, "rejected twice"
        assert (message.key(), message.value()) == (f"key {post_id}".encode(), post(post_id, bad[post_id]))
        found[post_id] = headers["manyray-reason"].decode()
    assert found == {post_id: REASONS[text.partition("poison:")[2].split()[0]] for post_id, text in bad.items()}
    fingerprint = fingerprinter(version_of(settings), "")
    known = {
        one
        for message in read_records(settings, topics_of(settings).vectors)
        for one in Learned.of(message.value(), version_of(settings)).vectors
    }
    assert not known & {fingerprint(normalise(text).encode()) for text in bad.values()}, "a vector of poison"


def test_poison_is_rejected_and_all_else_comes_out_once(poisoned: Settings) -> None:
    """Of 2,000 posts and 6 that give NaN, do not fit the memory or kill the process, all at once: the 6 are rejected
    with their bytes, key and headers, the others embedded once, and new posts go through afterwards.
    """
    good = {f"p{number}": f"a good text {number}" for number in range(GOOD)}
    kinds = ("nan", "oom", "kill", "nan", "oom")
    bad = {f"bad{number}": f"{number} poison:{kind}" for number, kind in enumerate(kinds)}
    bad["again"] = bad["bad0"]  # the same content: it has the same fate
    posts = list(good.items())
    for index, one in enumerate(bad.items()):
        posts.insert(200 + 300 * index, one)
    later = {f"later{number}": f"a later text {number}" for number in range(100)}
    with start(poisoned) as pipeline:
        pipeline.wait_ready(WAIT_S)
        send(poisoned, dict(posts))
        await_embeddings(poisoned, len(good))
        wait_until(lambda: len(rejected(poisoned)) == len(bad), "poison is rejected")
        send(poisoned, later)
        await_embeddings(poisoned, len(good) + len(later))
        pipeline.raise_failure()
    assert_told_apart(poisoned, good | later, bad)


def test_poison_of_a_backfill_is_told_apart_beside_live_posts(poisoned: Settings) -> None:
    """Live ones go through while a content of the other lane is tried, and none of them is blamed for its deaths."""
    poisoned = poisoned.model_copy(update={"backfill_topics": (f"{poisoned.posts_topics[0]}-backfill",)})
    in_backfill = poisoned.model_copy(update={"posts_topics": poisoned.backfill_topics})
    old = {f"old{number}": f"an old text {number}" for number in range(500)}
    new = {f"new{number}": f"a new text {number}" for number in range(500)}
    bad = {"bad": "poison:kill", "odd": "poison:nan"}
    with start(poisoned) as pipeline:
        pipeline.wait_ready(WAIT_S)
        send(in_backfill, old | bad)
        send(poisoned, new)
        await_embeddings(poisoned, len(old) + len(new))
        wait_until(lambda: len(rejected(in_backfill)) == len(bad), "poison is rejected")
        pipeline.raise_failure()
    assert rejected(poisoned) == []
    assert_told_apart(in_backfill, old | new, bad)


def test_a_post_that_hangs_the_encoder_is_rejected_too(poisoned: Settings) -> None:
    """The watchdog ends the process as often as it takes; here without transactions, by which nothing is lost."""
    poisoned = poisoned.model_copy(update={"delivery": "at_least_once", "stall_timeout_s": STALL_S, "partitions": 1})
    good = {f"p{number}": f"a good text {number}" for number in range(200)}
    bad = {"bad": "poison:hang"}
    with start(poisoned) as pipeline:
        pipeline.wait_ready(WAIT_S)
        send(poisoned, good | bad)
        await_embeddings(poisoned, len(good))
        wait_until(lambda: len(rejected(poisoned)) == 1, "poison is rejected")
        pipeline.raise_failure()
    assert_told_apart(poisoned, good, bad)


@pytest.mark.parametrize("kind", ["nan", "oom"])
def test_an_encoder_that_has_no_vectors_ends(poisoned: Settings, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """That many texts in a row are not the fault of texts: none of them is rejected."""
    bad = {f"bad{number}": f"{number} poison:{kind}" for number in range(UNEMBEDDED_MAX)}
    one_window = poisoned.model_copy(update={"partitions": 1, "encode_wait_ms": 1_000})
    with start(one_window) as pipeline:
        pipeline.wait_ready(WAIT_S)
        first = pipeline.pids["encode"]
        send(one_window, bad)
        wait_until(lambda: pipeline.pids["encode"] != first, "the encoder ends")
    assert f"has no vector for {UNEMBEDDED_MAX} contents in a row ({REASONS[kind]})" in caplog.text
    assert rejected(one_window) == []
