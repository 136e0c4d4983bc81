"""Laws of what is replayed: compacted topics, mixed formats, filters, and files in the place of topics."""

import csv
import json
import threading
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import NewTopic
from pyarrow import parquet

from manyray.file_ranges import FileRanges
from manyray.job_orders import go_on
from manyray.job_words import summary
from schemas.errors import Fatal
from schemas.public_pb2 import Post
from streams import clients
from streams.metrics import Metrics
from streams.replay import Replay
from streams.settings import Settings
from streams.topics import Topics
from streams.up import Pipeline
from tests.oracle import post, read_records, read_rejected, send, topics_of
from tests.replaying import begin, embedded, embeddings, into, run
from tests.waiting import wait_until

pytestmark = pytest.mark.broker

ROWS = 400


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """JSONL, CSV and Parquet of 400 posts each, with a field beside id and text; one post of each has no text."""
    folder = tmp_path / "old posts"
    folder.mkdir()
    texts = ["", *(f"text {number}" for number in range(1, ROWS))]
    langs = ["de" if number % 4 else "en" for number in range(ROWS)]
    ids = {kind: [f"{kind}{number}" for number in range(ROWS)] for kind in ("j", "c", "p")}
    rows = zip(ids["j"], texts, langs, strict=True)
    lines = [json.dumps({"id": each, "text": text, "lang": lang}) for each, text, lang in rows]
    (folder / "a.jsonl").write_text("\n".join(lines))
    with (folder / "b.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("id", "text", "lang"), *zip(ids["c"], texts, langs, strict=True)])
    parquet.write_table(pa.table({"id": ids["p"], "text": texts, "lang": langs}), folder / "c.parquet")
    (folder / "notes.md").write_text("not of posts")
    return folder


def test_a_compacted_topic_gives_what_it_holds(settings: Settings, pipeline: Pipeline, topic: str) -> None:
    """Neither the gaps that compaction leaves nor tombstones are taken for records that retention removed."""
    name = f"{topic}-compacted"
    config = {"cleanup.policy": "compact", "segment.bytes": "1048576", "min.cleanable.dirty.ratio": "0.01"}
    admin = clients.admin_client(settings)
    for future in admin.create_topics([NewTopic(name, 1, 1, config={**config, "segment.ms": "100"})]).values():
        future.result(30)
    producer = Producer({"bootstrap.servers": settings.bootstrap_servers})
    for turn in range(6):
        for number in range(100):
            producer.produce(name, post(f"k{number}", f"text {turn} {number}"), key=f"k{number}")
        producer.produce(name, None, key=f"k{turn}")
        assert producer.flush(30) == 0
    job = begin(settings, name, "compacted")
    records = 6 * 101
    assert job.offsets == records

    def is_compacted() -> bool:
        producer.produce(name, post("roll", "it over"), key="roll")  # segments that are written to are left alone
        assert producer.flush(30) == 0
        return len(read_records(settings, name)) < records / 2

    wait_until(is_compacted, "it is compacted")
    done = run(settings, job)
    assert done.counts.gone == 0
    assert embedded(settings, job.name).total() == done.counts.posts <= 200
    assert set(embedded(settings, job.name)) >= {f"k{number}" for number in range(6, 100)}
    assert f"{done.counts.tombstones} tombstones passed on" in summary(job, done)


def test_a_range_may_end_in_what_is_no_record(settings: Settings, pipeline: Pipeline, topic: str) -> None:
    """The marker of a transaction at the end of a range is read past, and what came after it is no part of it."""
    producer = clients.producer(settings, topic)
    producer.init_transactions(30)

    def write(name: str) -> None:
        producer.begin_transaction()
        for number in range(20):
            producer.produce(topic, post(f"{name}{number}", f"{name} {number}"), partition=0)
        producer.commit_transaction(30)

    write("old")
    job = begin(settings, topic, "marked")
    assert job.offsets == 21
    write("late")
    done = run(settings, job)
    assert (done.counts.posts, done.counts.gone) == (20, 0)
    assert embedded(settings, job.name) == Counter(f"old{number}" for number in range(20))


def test_formats_may_be_mixed_and_a_filter_sees_both(settings: Settings, pipeline: Pipeline, topic: str) -> None:
    """JSON and Protobuf of one topic come out; a filter is asked about posts alone, so what is none is rejected."""
    values = [json.dumps({"id": f"j{number}", "text": "t", "lang": "de"}).encode() for number in range(10)]
    values += [Post(id=f"p{number}", text="t").SerializeToString() for number in range(10)]
    send(into(settings, topic), [*values, b"{", b"\xff"])
    done = run(settings, begin(settings, topic, "both"))
    assert (done.counts.posts, done.counts.rejected) == (20, 2)
    assert set(embedded(settings, "both")) == {f"{kind}{number}" for kind in "jp" for number in range(10)}
    job = begin(settings, topic, "filtered", filter="lang == 'de' || id == 'p3'")
    done = run(settings, job)
    assert (done.counts.posts, done.counts.filtered, done.counts.rejected) == (11, 9, 2)
    assert set(embedded(settings, "filtered")) == {*(f"j{number}" for number in range(10)), "p3"}
    assert "9 filtered out" in summary(job, done)


def test_files_come_out_once_however_often_it_stops(settings: Settings, pipeline: Pipeline, folder: Path) -> None:
    """Each row has one embedding, which names file and row; a row that cannot be embedded is kept whole."""
    job = begin(settings, folder, "files")
    assert [each.end for each in job.ranges] == [ROWS] * 3
    stops = 0

    def goes_on() -> bool:
        nonlocal stops
        assert job.files is not None
        source = FileRanges(job.topic, job.files, job.ranges)
        topics, stop = topics_of(settings), threading.Event()
        with Replay(settings, topics, Metrics.create(), job, source=source, stop=stop) as replay:
            replay.recover()
            before = replay.done.counts.posts
            while replay.done.counts.posts < min(before + 250, 3 * (ROWS - 1)):
                replay.step()
            stops += 1
            return replay.done.counts.posts == 3 * (ROWS - 1)

    wait_until(goes_on, "all is sent")
    assert stops > 2
    done = run(settings, job)
    assert (done.counts.posts, done.counts.rejected) == (3 * (ROWS - 1), 3)
    found = embeddings(settings, job.name)
    assert Counter(each.post_id for each in found) == Counter(
        {f"{kind}{number}": 1 for kind in "jcp" for number in range(1, ROWS)}
    )
    assert {each.source_topic for each in found} == {"file:old posts"}
    assert all("jcp"[each.source_partition] + str(each.source_offset) == each.post_id for each in found)
    rejected = read_rejected(into(settings, "file:old posts"))
    assert {json.loads(value or b"")["id"] for value, _ in rejected} >= {"j0", "c0", "p0"}
    assert all(json.loads(value or b"")["lang"] == "en" for value, _ in rejected)
    assert run(settings, begin(settings, folder, "english", filter="lang == 'en'")).counts.posts == 3 * (ROWS // 4 - 1)


def test_every_refusal_of_files_names_the_remedy(settings: Settings, topics: Topics, folder: Path) -> None:
    """A path that holds no posts, a row that is none, a range of times, and a file that changes before it is read."""
    assert topics
    (folder.parent / "empty").mkdir()
    (folder.parent / "bad.jsonl").write_text('{"id": "a", "text": "b"}\n{"id": "a"\n')
    for source, how, said in (
        (folder.parent / "empty", {}, "holds no file of posts: those whose name ends in .jsonl"),
        (folder.parent / "none.jsonl", {}, "is no file that can be read again where a replay goes on: save it as one"),
        ("-", {}, "- is no file that can be read again"),
        (folder.parent / "bad.jsonl", {}, "bad.jsonl:2: not JSON: one object a line is wanted"),
        (folder, {"start": "1h"}, "files have neither times nor offsets: leave --from and --to out, or use --filter"),
    ):
        with pytest.raises(Fatal, match=said):
            begin(settings, source, "new", **how)
    job = begin(settings, folder / "a.jsonl", "changed")
    (folder / "a.jsonl").write_text('{"id": "other", "text": "short"}')
    with pytest.raises(Fatal, match=r"a.jsonl is not as it was when the job began: put it back, or cancel the job"):
        run(settings, job)
    assert "changed of file:a.jsonl cancelled" in go_on(settings, job.name, "cancel", threading.Event())
    job = begin(settings, folder / "b.csv", "fewer")
    data = (folder / "b.csv").read_bytes()
    lines = data.splitlines(keepends=True)
    (folder / "b.csv").write_bytes(b"".join(lines[:-1]) + b"\n" * len(lines[-1]))  # of the same size
    with pytest.raises(Fatal, match=r"b.csv has fewer rows than when the job began: put it back, or cancel the job"):
        run(settings, job)
