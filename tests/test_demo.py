"""The demo, as a newcomer runs it, and what it makes of what it sees."""

import re
import subprocess
import threading
from pathlib import Path

import numpy as np
import psutil
import pytest

from manyray.harvest import Harvest
from manyray.live import scrape
from manyray.subscription import Batch
from schemas.post import Post
from schemas.public_pb2 import Embedding
from streams.endpoint import serve
from streams.health import Health
from streams.metrics import Metrics
from streams.settings import load_settings
from tests.test_cli import launch, manyray


def rows(said: str) -> dict[str, str]:
    """The summary's rows."""
    names = "posts|embeddings|hit ratio|encoded|rejected|latency"
    return dict(re.findall(rf"^({names}) +(.*?) *$", said, re.MULTILINE))


@pytest.mark.broker
def test_the_sample_comes_out_and_nothing_is_left(tmp_path: Path):
    """Good posts are embedded, the bad ones among them rejected by reason; no process and no file stays behind."""
    command = ("demo", "--model", "hash", "--count", "500")
    with launch(*command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as demo:
        assert demo.stdout is not None
        said = ""
        everyone: list[psutil.Process] = []
        for line in demo.stdout:
            said += line
            if line.startswith("ready after"):
                everyone = psutil.Process(demo.pid).children(recursive=True)
    assert demo.returncode == 0, said
    assert len(everyone) == 4
    assert not [process for process in everyone if process.is_running()]
    assert not list(tmp_path.iterdir())
    found = rows(said)
    assert found["posts"].startswith("507 ")
    assert found["embeddings"] == "500"
    assert found["rejected"].startswith("7 (1 id_too_long, 3 malformed, 1 no_id, 1 no_text, 1 text_too_long)")
    assert re.fullmatch(r"p50 [\d,]+ ms, p99 [\d,]+ ms, from post to subscriber", found["latency"])


@pytest.mark.broker
def test_a_file_of_ones_own_comes_out(tmp_path: Path):
    """Each line once, in a folder whose settings are made for another broker."""
    (tmp_path / "mine.txt").write_text("one\ntwo\none\n")
    (tmp_path / "manyray.toml").write_text('replication = 3\n[kafka]\n"security.protocol" = "SSL"\n')
    done = manyray("demo", "--model", "hash", "--posts", "mine.txt", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = rows(done.stdout)
    assert (found["embeddings"], found["encoded"], found["rejected"]) == ("3", "2 distinct contents", "0")


def test_the_live_view_adds_up_what_the_endpoints_say(monkeypatch: pytest.MonkeyPatch):
    """Over the processes of a role, whatever proxy is set; an endpoint that is away counts as nothing."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    urls = {}
    for name in ("ingest", "ingest-2", "dedup"):
        metrics = Metrics.create()
        metrics.ingest_posts.inc(2)
        metrics.ingest_rejected.labels("no_id").inc(3)
        metrics.consumer_lag.labels("posts", "0").set(5)
        port = serve(metrics.registry, Health(threading.Event()), load_settings(), "ingest")
        urls[name] = f"http://127.0.0.1:{port}/metrics"
    urls["encode"] = "http://127.0.0.1:1/metrics"
    seen = scrape(urls, 0.0, published=30, received=20)
    assert (seen.ingested, seen.rejected, seen.lag) == (6, {"no_id": 9}, {"ingest": 10, "dedup": 5})
    assert seen.done == 29


def harvest(vectors: dict[str, list[float]], latencies_ms: list[int]) -> Harvest:
    """What is known once a post of each text has come out, its vector as given."""
    seen = Harvest()
    posts = [Post(str(number), text) for number, text in enumerate(vectors)]
    assert list(seen.remember(posts, threading.Event())) == posts
    embeddings = [Embedding(post_id=post.id, fingerprint=post.id.encode().ljust(16)) for post in posts]
    for embedding, latency_ms in zip(embeddings, latencies_ms, strict=True):
        embedding.posted_ms = 1_000 - latency_ms
    matrix = np.array(list(vectors.values()), np.float32)
    seen.take(Batch([post.id for post in posts], matrix, embeddings), arrived_ms=1_000)
    return seen


def test_neighbours_are_the_nearest_by_cosine():
    """However long the vectors are; a post is no neighbour of its own, and none is shown twice."""
    seen = harvest({"east": [1, 0], "far east": [9, 1], "north": [0, 1], "far north": [1, 9]}, [1, 2, 3, 4])
    found = dict(seen.neighbours(2, 1))
    assert {frozenset([text, nearest[0][1]]) for text, nearest in found.items()} == {
        frozenset(["east", "far east"]),
        frozenset(["north", "far north"]),
    }
    assert all(cosine == pytest.approx(9 / 82**0.5) for [(cosine, _)] in found.values())


def test_latencies_are_quantiles_of_what_came():
    """p50 is the time that half of the posts stayed within."""
    seen = harvest({str(number): [1, number] for number in range(4)}, [10, 20, 30, 400])
    assert (seen.latency_ms(0.5), seen.latency_ms(0.99)) == (20, 400)
    assert seen.received == 4
