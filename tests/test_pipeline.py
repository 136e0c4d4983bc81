"""What the pipeline must hold, with every stage in its own process on a real broker."""

import os
import threading
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest

from bench.load import MALFORMED
from encoders import load_encoder
from encoders.text import TextEncoder
from schemas.content import normalise
from streams.control import create_ray
from streams.metrics import read_metrics
from streams.settings import Settings, load_settings
from streams.up import Pipeline
from tests.oracle import await_embeddings, post, read_embeddings, read_rejected, send
from tests.waiting import WAIT_S, wait_until

pytestmark = pytest.mark.broker


@dataclass(frozen=True)
class Load:
    """Posts with malformed records among them, and what is to come of them."""

    values: list[bytes | None]
    good_ids: set[str]
    bad: list[tuple[bytes | None, str]]
    contents: int


def make_load(texts: list[str], prefix: str = "p") -> Load:
    """Every text as a post, and after each hundredth one a malformed record."""
    values, bad = [], []
    good = {f"{prefix}{number}": text for number, text in enumerate(texts)}
    for number, (post_id, text) in enumerate(good.items()):
        values.append(post(post_id, text))
        if not text:
            bad.append((values[-1], "no_text"))
        if number % 100 == 99:
            value, reason = MALFORMED[number // 100 % len(MALFORMED)]
            values.append(value)
            bad.append((value, reason))
    contents = {normalise(text) for text in texts if text}
    return Load(values, {post_id for post_id, text in good.items() if text}, bad, len(contents))


def start(settings: Settings, **roles: int) -> Pipeline:
    """The roles as processes, one each unless said otherwise."""
    create_ray(settings)
    return Pipeline(settings, roles={"ingest": 1, "dedup": 1, "encode": 1, **roles})


def assert_exactly_once(settings: Settings, loads: list[Load]) -> None:
    """The verdict, read from the start once nothing runs any more."""
    seen = read_embeddings(settings)
    expected = {post_id for load in loads for post_id in load.good_ids}
    # Short lists: pytest takes minutes to show how two sets of 127,000 ids differ.
    assert sorted(expected - seen.ids.keys())[:5] == [], "lost"
    assert sorted(seen.ids.keys() - expected)[:5] == [], "never sent"
    assert [post_id for post_id, count in seen.ids.items() if count != 1][:5] == [], "doubled"
    rejected = read_rejected(settings)
    wanted = Counter(bad for load in loads for bad in load.bad)
    assert list((wanted - rejected).items())[:5] == [], "not rejected"
    assert list((rejected - wanted).items())[:5] == [], "rejected too often"


def test_every_post_comes_out_exactly_once(settings: Settings, tweets: list[str]) -> None:
    """Of 127,070 tweets and 1 % malformed records each good one is embedded once, each bad one rejected once,
    and each distinct normalised content computed once.
    """
    load = make_load(tweets)
    with start(settings) as pipeline:
        pipeline.wait_ready(WAIT_S)
        send(settings, load.values)
        await_embeddings(settings, len(load.good_ids))
    assert_exactly_once(settings, [load])
    assert read_embeddings(settings).computed == load.contents


def test_copies_sent_at_once_are_computed_once(settings: Settings) -> None:
    """1,000 copies of one new post: one encode, 1,000 embeddings with one vector."""
    with start(settings) as pipeline:
        pipeline.wait_ready(WAIT_S)
        send(settings, [post(f"copy{number}", "the same new post") for number in range(1_000)])
        await_embeddings(settings, 1_000)
    seen = read_embeddings(settings)
    assert seen.ids.total() == 1_000
    assert seen.computed == 1
    assert len({vector.tobytes() for vector in seen.vectors.values()}) == 1


def test_vectors_are_those_of_sentence_transformers(settings: Settings, tweets: list[str]) -> None:
    """With MiniLM every vector has cosine >= 0.9999 with what sentence-transformers gives for the same text, and the
    endpoint tells the FLOPs of each distinct one, and what the device could do at most.
    """
    from sentence_transformers import SentenceTransformer

    from encoders.source import FolderSource, parse_source

    texts = [text for text in tweets[:: len(tweets) // 2_000] if text][:2_000]
    settings = settings.model_copy(update={"model": "minilm"})
    with start(settings) as pipeline:
        pipeline.wait_ready(WAIT_S)
        send(settings, [post(str(number), text) for number, text in enumerate(texts)])
        await_embeddings(settings, len(texts))
        flops = flops_of({normalise(text) for text in texts})
        wait_until(lambda: values(pipeline, "encode", "manyray_encode_flops_total") == [flops], "all are counted")
        assert values(pipeline, "encode", "manyray_encode_peak_flops_per_second")[0] > 0
    seen = read_embeddings(settings)
    source = parse_source("minilm", "")
    assert isinstance(source, FolderSource)
    expected = SentenceTransformer(str(source.folder), device="cpu").encode(texts, normalize_embeddings=True)
    ours = np.stack([seen.vectors[str(number)] for number in range(len(texts))])
    ours = ours / np.linalg.norm(ours, axis=1, keepdims=True)
    assert float((ours * expected).sum(axis=1).min()) >= 0.9999


def test_a_restart_of_everything_loses_no_vector(tmp_path, tweets: list[str]) -> None:
    """Broker and roles stopped and started between two runs of the same posts: the second computes nothing."""
    settings = load_settings(data_dir=tmp_path / "data", model="hash")
    for run, computes in (("first", True), ("second", False)):
        load = make_load([text for text in tweets[:5_000] if text], run)
        with Pipeline(settings) as pipeline:
            pipeline.wait_ready(WAIT_S)
            there = settings.model_copy(update={"bootstrap_servers": pipeline.bootstrap_servers})
            send(there, load.values)
            await_embeddings(there, len(load.good_ids) * (1 if computes else 2))
            seen = read_embeddings(there)
        assert seen.computed == load.contents  # over both runs: what the first one computed


@pytest.mark.parametrize("stopped", [["ingest"], ["dedup"], ["encode"], ["ingest", "dedup", "encode"]], ids="+".join)
def test_a_stop_under_load_loses_and_doubles_nothing(settings: Settings, tweets: list[str], stopped: list[str]) -> None:
    """A role, or all, stopped with SIGTERM while posts flow, then started: every post comes out exactly once."""
    loads = [make_load(tweets[start_at : start_at + 10_000], f"{start_at}-") for start_at in (0, 10_000, 20_000)]
    with start(settings) as pipeline:
        pipeline.wait_ready(WAIT_S)
        feeding = threading.Thread(target=lambda: [send(settings, load.values) for load in loads])
        feeding.start()
        await_embeddings(settings, 1_000)
        for role in stopped:
            pipeline.stop_role(role)
        for role in stopped:
            pipeline.start_role(role)
        feeding.join()
        await_embeddings(settings, sum(len(load.good_ids) for load in loads))
    assert_exactly_once(settings, loads)


@pytest.mark.parametrize("text", ["x" * 20_000_000, os.urandom(1_700_000).hex()], ids=["shrinks", "does not"])
def test_a_post_that_is_larger_than_a_record_is_rejected(settings: Settings, text: str) -> None:
    """Compression lets a post in that is larger than any limit on records, and lz4 may not shrink it as the user's zstd
    did: it is rejected, its neighbours are not.
    """
    huge = post("huge", text)
    with start(settings) as pipeline:
        pipeline.wait_ready(WAIT_S)
        send(settings, [post("before", "small"), huge, post("after", "small")])
        await_embeddings(settings, 2)
    assert_exactly_once(settings, [Load([], {"before", "after"}, [(huge, "text_too_long")], 1)])


def test_two_of_each_share_the_work(settings: Settings, tweets: list[str]) -> None:
    """Two dedup and two encode processes, each with partitions and work: every post once, every content computed
    once, and on the second pass as many hits as with one process of each: all.
    """
    first, again = make_load(tweets[:20_000], "first"), make_load(tweets[:20_000], "again")
    with start(settings, dedup=2, encode=2) as pipeline:
        pipeline.wait_ready(WAIT_S)
        wait_until(lambda: min(owned(pipeline, "dedup") + owned(pipeline, "encode")) > 0, "each has partitions")
        send(settings, first.values)
        await_embeddings(settings, len(first.good_ids))
        known = ("manyray_table_learned_total", "manyray_table_refilled_total")
        wait_until(
            lambda: sum(sum(values(pipeline, "dedup", name)) for name in known) >= first.contents, "tables are filled"
        )
        hits = sum(values(pipeline, "dedup", "manyray_dedup_hits_total"))
        send(settings, again.values)
        await_embeddings(settings, 2 * len(first.good_ids))
        assert sum(values(pipeline, "dedup", "manyray_dedup_hits_total")) - hits == len(again.good_ids)
        assert min(values(pipeline, "dedup", "manyray_dedup_posts_total")) > 0
        assert min(values(pipeline, "encode", "manyray_encode_posts_total")) > 0
    assert_exactly_once(settings, [first, again])
    assert read_embeddings(settings).computed == first.contents


def values(pipeline: Pipeline, role: str, name: str) -> list[float]:
    """A metric of each process of a role; a process that was given up fails the test at once."""
    pipeline.raise_failure()
    found = []
    for process, url in pipeline.metrics_urls.items():
        if process.startswith(role):
            found.append(sum(sample.value for sample in read_metrics(url) if sample.name == name))
    return found


def flops_of(contents: set[str]) -> float:
    """What MiniLM's layers cost on each of them once."""
    encoder = load_encoder("minilm", device="cpu")
    assert isinstance(encoder, TextEncoder)
    return encoder.cost.flops(encoder.tokenise(list(contents)).lengths)


def owned(pipeline: Pipeline, role: str) -> list[float]:
    """How many partitions each process of a role works on."""
    return values(pipeline, role, "manyray_partitions_owned")
