"""`manyray demo`: a whole pipeline on posts, watched while it runs, and what came out of it."""

import importlib.resources
import math
import tempfile
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from itertools import islice
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.live import Live

from manyray.client import Client
from manyray.harvest import Harvest
from manyray.live import Snapshot, live_line, live_table, scrape
from manyray.reading import open_posts
from manyray.summary import print_summary
from schemas.errors import Fatal
from schemas.post import ID_BYTES_MAX, Post
from streams import clients, clock
from streams.settings import Settings
from streams.up import Pipeline

POSTS = 10_000
PUBLISH_S = 12.0  # the sample is published over this long, so that there is something to watch
READY_S_MAX = 120.0
STALLED_S = 120.0

_REFRESH_S = 0.5
_PACE_S = 0.02
_LINE_EVERY_S = 3.0
_GROUP = "demo"
_BYTES_NO_POST = (b"this is no JSON", b'{"id": "demo-cut", "text": "cut sho', b"\xff\xfe\xfd")


def run_demo(settings: Settings, path: str | None, count: int | None, seed: int) -> None:
    """Start a pipeline with a broker of its own in a temporary folder, send posts through it and sum up.

    `path` is a file of the user's posts, of which the first `count` are published, else all. Without one, `count`
    posts (10,000 if not given) are drawn from the sample with Zipf's frequencies, decided by `seed`.

    Raises:
        Fatal: something cannot start, or posts do not come out.
    """
    console = Console(highlight=False)
    with ExitStack() as stack:
        source: Iterable[Post]
        if path is None:
            source = paced(replay(sample_texts(), count or POSTS, seed), PUBLISH_S)
        else:
            source = islice(stack.enter_context(open_posts(path))[0], count)
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="manyray-demo-"))
        own = settings.model_copy(
            update={
                "data_dir": Path(folder),
                "bootstrap_servers": "",
                "kafka": {},  # passwords and the like are those of another broker
                "replication": 1,
                "metrics_port": 0,
                "log_level": "debug" if settings.log_level == "debug" else "warning",
            }
        )
        console.print("starting a Kafka broker, ingest, dedup and encode ...")
        began_s = clock.monotonic_s()
        pipeline = stack.enter_context(Pipeline(own))
        pipeline.wait_ready(READY_S_MAX)
        console.print(f"ready after {clock.monotonic_s() - began_s:.1f} s")
        harvest = Harvest()
        took_s, last = _run(pipeline, source, harvest, with_bad=path is None, console=console)
    print_summary(console, last, harvest, took_s, meaningful=not settings.model.startswith("hash"))


def _run(
    pipeline: Pipeline, source: Iterable[Post], harvest: Harvest, *, with_bad: bool, console: Console
) -> tuple[float, Snapshot]:
    """Publish and subscribe on a thread each, and watch until all has come out; return the seconds and the counts."""
    stop = threading.Event()

    def publish() -> int:
        with Client(pipeline.settings) as client:
            count = client.publish(harvest.remember(source, stop))
        return count + (_publish_bad(pipeline.settings) if with_bad else 0)

    with ThreadPoolExecutor(2) as pool:
        try:
            began_s = clock.monotonic_s()
            subscribed = pool.submit(_subscribe, pipeline.settings, harvest, stop)
            published = pool.submit(publish)
            last = _watch(pipeline, harvest, published, subscribed, console)
            return clock.monotonic_s() - began_s, last
        finally:
            stop.set()


def _subscribe(settings: Settings, harvest: Harvest, stop: threading.Event) -> None:
    with (
        Client(settings) as client,
        client.subscribe(settings.ray, _GROUP, wait_s=0.02, idle_s=_REFRESH_S) as subscription,
    ):
        while not stop.is_set():
            for batch in subscription:
                harvest.take(batch, clock.now_ms())


def _watch(
    pipeline: Pipeline, harvest: Harvest, published: Future[int], subscribed: Future[None], console: Console
) -> Snapshot:
    """Show the counts until everything published has come out.

    Raises:
        Fatal: nothing moved for `STALLED_S`, or a process was given up.
    """
    before = now = Snapshot(clock.monotonic_s())
    moved_s = line_s = now.at_s
    with Live(console=console, refresh_per_second=4) if console.is_terminal else ExitStack() as view:
        while not (published.done() and now.done >= published.result()):
            clock.sleep_s(_REFRESH_S)
            pipeline.raise_failure()
            if subscribed.done():
                subscribed.result()
            before, now = now, scrape(pipeline.metrics_urls, clock.monotonic_s(), harvest.published, harvest.received)
            if (now.done, now.published) != (before.done, before.published):
                moved_s = now.at_s
            if now.at_s - moved_s > STALLED_S:
                raise Fatal(
                    f"{now.published - now.done:,} of {now.published:,} posts have not come out, and nothing moved for "
                    f"{STALLED_S:.0f} s: --log-level debug tells more"
                )
            if isinstance(view, Live):
                view.update(live_table(now, before))
            elif now.at_s - line_s >= _LINE_EVERY_S:
                line_s = now.at_s
                console.print(live_line(now, before), soft_wrap=True)
    return now


def sample_texts() -> list[str]:
    """The sample: short posts in several languages, written for this project."""
    text = (importlib.resources.files("manyray") / "sample_posts.txt").read_text("utf-8")
    return [line for line in text.split("\n") if line]


def replay(texts: list[str], count: int, seed: int) -> Iterator[Post]:
    """Draw posts from texts as popular posts come back: the k-th text has a weight of 1 / k (Zipf's law)."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(texts))
    weights = 1 / np.arange(1, len(texts) + 1)
    drawn = rng.choice(order, size=count, p=weights / weights.sum())
    for number, index in enumerate(drawn.tolist()):
        yield Post(f"demo-{number}", texts[index])


def paced(posts: Iterable[Post], over_s: float) -> Iterator[Post]:
    """Hand posts on over a time, ever faster, as most of what is new is at the beginning: the n-th at sqrt(n)."""
    held = list(posts)
    began_s = clock.monotonic_s()
    for number, post in enumerate(held):
        due_s = over_s * math.sqrt(number / len(held))
        if (wait_s := began_s + due_s - clock.monotonic_s()) > _PACE_S:
            clock.sleep_s(wait_s)
        yield post


def _publish_bad(settings: Settings) -> int:
    """Publish what is no post, so that `rejected` shows something; return how many records."""
    posts = [
        Post("", "a post without an id"),
        Post("demo-empty", ""),
        Post("x" * (ID_BYTES_MAX + 1), "a post with a long id"),
        Post("demo-long", "x" * (settings.text_bytes_max + 1)),
    ]
    with Client(settings) as client:
        client.publish(posts)
    producer = clients.producer(settings)
    for value in _BYTES_NO_POST:
        producer.produce(settings.posts_topics[0], value)
    producer.flush(READY_S_MAX)
    return len(posts) + len(_BYTES_NO_POST)
