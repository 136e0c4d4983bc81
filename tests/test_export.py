"""Laws of `export`, on a real broker: what a range holds has its row once, however often the export was ended."""

import json
import os
import re
import shutil
import signal
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from confluent_kafka import Producer
from pyarrow import parquet

from manyray.export_folder import claimed
from manyray.exporting import export_ray
from schemas.embedding import EmbeddingParts
from schemas.errors import Fatal, Retry
from schemas.internal_pb2 import Standing
from schemas.public_pb2 import COMPUTED, Embedding
from streams import clients
from streams.ranges import Read, TopicRanges
from streams.settings import Settings
from streams.topics import Topics, create_topics, list_partitions
from streams.up import Pipeline
from tests.oracle import await_embeddings, post, read_records, remove, send, topics_of
from tests.test_cli import flags, launch, manyray, told
from tests.waiting import WAIT_S, wait_until

pytestmark = pytest.mark.broker

DIMS = 8
ROWS = 500


class StopAfter(threading.Event):
    """An event that is set from its so many-th look on."""

    def __init__(self, looks: int) -> None:
        super().__init__()
        self._looks = looks

    def is_set(self) -> bool:
        """Whether so many looks were taken."""
        self._looks -= 1
        return self._looks < 0


def export(settings: Settings, folder: Path, **how: Any) -> tuple[str, bool]:
    """All that there is, unless told otherwise."""
    choices = {"start": "beginning", "end": "now", "file_rows": 100, "stop": threading.Event(), **how}
    return export_ray(settings, choices.pop("ray", settings.ray), folder, **choices)


def embedding(settings: Settings, number: int, **fields: Any) -> bytes:
    """An embedding of the version of the settings, whose vector is its number."""
    parts = EmbeddingParts(settings.ray, topics_of(settings).version)
    vector = np.full(DIMS, number, "<f4").tobytes()
    whole = parts.head(COMPUTED, 5, Standing()) + parts.content(bytes(16), vector) + parts.post(f"p{number}", number, 1)
    return whole + Embedding(**fields).SerializeToString()


def put(settings: Settings, *values: bytes | None) -> None:
    """Write records to the embeddings topic, half of them to each of its first two partitions."""
    producer = clients.producer(settings)
    for number, value in enumerate(values):
        clients.produce(producer, topics_of(settings).embeddings, value, key=f"p{number}", partition=number % 2)
    assert producer.flush(WAIT_S) == 0


def rows_in(folder: Path) -> list[dict[str, Any]]:
    """All rows of a folder, read as anybody reads a folder of Parquet."""
    return parquet.read_table(folder).to_pylist()


def ids_in(folder: Path) -> Counter[str]:
    """How often each post is in it."""
    return Counter(row["post_id"] for row in rows_in(folder))


def once(*numbers: range) -> Counter[str]:
    """Each of these posts once."""
    return Counter(f"p{number}" for some in numbers for number in some)


@pytest.fixture
def filled(settings: Settings, topics: Topics) -> Settings:
    """With a topic of 500 embeddings."""
    put(settings, *(embedding(settings, number) for number in range(ROWS)))
    return settings


def test_what_the_pipeline_gave_has_its_rows(settings: Settings, topics: Topics, tmp_path: Path) -> None:
    """Every embedding once, with all that its record says."""
    with Pipeline(settings) as pipeline:
        pipeline.wait_ready(WAIT_S)
        send(settings, [post(f"p{number}", f"text {number % 50}") for number in range(200)])
        await_embeddings(settings, 200)
    said, is_whole = export(settings, tmp_path / "out")
    assert is_whole
    assert re.match(
        rf"exported 200 embeddings of {topics.embeddings}, beginning to now as of 2\d{{3}}-.* UTC, into "
        rf"{tmp_path}/out: \d files, float32, 384 dims; 200 embeddings in [\d.]+ s \([\d,]+/s\)$",
        said,
    )
    records = [Embedding.FromString(record.value() or b"") for record in read_records(settings, topics.embeddings)]
    rows = {row["post_id"]: row for row in rows_in(tmp_path / "out")}
    assert len(rows) == len(records) == 200
    for one in records:
        row = rows[one.post_id]
        assert row["vector"] == np.frombuffer(one.vector, "<f4").tolist()
        assert row["fingerprint"] == one.fingerprint
        place = (row["source_topic"], row["source_partition"], row["source_offset"])
        assert place == (one.source_topic, one.source_partition, one.source_offset)
        assert row["posted_ms"].timestamp() * 1000 == pytest.approx(one.posted_ms)
        assert row["embedded_ms"].timestamp() * 1000 == pytest.approx(one.embedded_ms)
        assert row["origin"] == ("computed" if one.origin == COMPUTED else "cached")


@pytest.mark.parametrize("looks", [0, 1, 2, 3, 5, 8])
def test_an_export_that_is_stopped_goes_on_where_it_was(filled: Settings, tmp_path: Path, looks: int) -> None:
    """Stopped after so many looks, again and again: every embedding once, in files of which none is above its limit."""
    lives, is_whole = 0, False
    while not is_whole:
        said, is_whole = export(filled, tmp_path / "out", file_rows=60, stop=StopAfter(looks + 3 * lives))
        assert is_whole == ("done, the same command goes on" not in said)
        lives += 1
    assert lives > 1
    assert ids_in(tmp_path / "out") == once(range(ROWS))
    files = {path.name: parquet.ParquetFile(path).metadata.num_rows for path in tmp_path.glob("out/part-*")}
    assert max(files.values()) <= 60
    assert json.loads((tmp_path / "out" / "_export.json").read_text())["files"] == files
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*files, "_export.json"}
    again, is_whole = export(filled, tmp_path / "out")
    assert is_whole
    assert "500 kept from before" in again


def test_a_stop_does_not_wait_for_the_end_of_a_file(
    filled: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was read by then is a file of its own."""
    monkeypatch.setattr("manyray.exporting.READ_RECORDS", 10)
    rows, looks = 0, 5
    while not rows:  # at the first looks there may be nothing yet
        _, is_whole = export(filled, tmp_path / "out", stop=StopAfter(looks))
        assert not is_whole
        rows = sum(json.loads((tmp_path / "out" / "_export.json").read_text())["files"].values())
        looks += 1
    assert rows <= 10 * looks
    assert ids_in(tmp_path / "out") == once(range(0, 2 * rows, 2))


def test_rows_are_in_the_order_of_their_partition(filled: Settings, tmp_path: Path) -> None:
    """A file is of one partition, from the offset in its name on."""
    export(filled, tmp_path / "out", file_rows=60)
    for path in (tmp_path / "out").glob("part-*"):
        partition, start = map(int, re.findall(r"\d+", path.name))
        numbers = [int(row["vector"][0]) for row in parquet.read_table(path).to_pylist()]
        assert numbers == [2 * offset + partition for offset in range(start, start + len(numbers))]


def test_files_of_wide_vectors_have_fewer_rows(
    filled: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file ends behind the read that takes it to its limit of bytes."""
    monkeypatch.setattr("manyray.exporting.READ_RECORDS", 10)
    monkeypatch.setattr("manyray.exporting.FILE_BYTES", 15 * DIMS * 4)
    export(filled, tmp_path / "out")
    assert ids_in(tmp_path / "out") == once(range(ROWS))
    assert max(parquet.ParquetFile(path).metadata.num_rows for path in tmp_path.glob("out/part-*")) <= 20


def test_a_range_is_fixed_when_it_begins(filled: Settings, tmp_path: Path) -> None:
    """What is written later is no part of it, whoever goes on with it."""
    _, is_whole = export(filled, tmp_path / "out", stop=StopAfter(3))
    assert not is_whole
    put(filled, *(embedding(filled, number) for number in range(ROWS, ROWS + 100)))
    export(filled, tmp_path / "out")
    assert ids_in(tmp_path / "out") == once(range(ROWS))
    export(filled, tmp_path / "new")
    assert ids_in(tmp_path / "new") == once(range(ROWS + 100))


def test_offsets_and_times_choose_records(filled: Settings, tmp_path: Path) -> None:
    """Offsets mean the partitions that they name, from the first of them up to, and without, the last."""
    export(filled, tmp_path / "some", start="0:10,1:200", end="0:25,1:203")
    assert ids_in(tmp_path / "some") == once(range(20, 50, 2), range(401, 407, 2))
    export(filled, tmp_path / "today", start="1h")
    assert ids_in(tmp_path / "today") == once(range(ROWS))
    with pytest.raises(Fatal, match="holds no record from 2001-01-01 to 2001-01-02: choose another --from and --to"):
        export(filled, tmp_path / "none", start="2001-01-01", end="2001-01-02")


def test_strange_records_cost_their_neighbours_nothing(settings: Settings, topics: Topics, tmp_path: Path) -> None:
    """Tombstones, and what is no embedding of the version, are counted and left out, also where they come first."""
    strange = [
        b"{}",
        embedding(settings, 1_000, dims=2 * DIMS, vector=bytes(8 * DIMS)),
        embedding(settings, 1_001, version="other"),
        embedding(settings, 1_002, vector=b"short"),
    ]
    values: list[bytes | None] = [None, None, *strange]
    for number in range(100):
        values += [embedding(settings, number), [None, *strange][number % 5]]
    put(settings, *values)
    said, is_whole = export(settings, tmp_path / "out", file_rows=7)
    assert is_whole
    assert "22 tombstones passed over, 84 records left out, as they are no embeddings of this version" in said
    assert ids_in(tmp_path / "out") == once(range(100))


def test_a_range_without_embeddings_is_an_export_without_files(
    settings: Settings, topics: Topics, tmp_path: Path
) -> None:
    """It is whole, and says what there was."""
    put(settings, *[None] * 6, b"{}", b"{}")
    said, is_whole = export(settings, tmp_path / "out")
    assert is_whole
    assert said.endswith(
        "/out: 0 files, 6 tombstones passed over, 2 records left out, as they are no embeddings of this version"
    )
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["_export.json"]


def test_what_retention_removes_is_told(filled: Settings, tmp_path: Path) -> None:
    """Of what was removed after it began the offsets are counted, and the rest comes out."""
    export(filled, tmp_path / "out", stop=StopAfter(0))
    remove(filled, topics_of(filled).embeddings, 150)
    said, is_whole = export(filled, tmp_path / "out")
    assert is_whole
    assert "150 offsets gone, as retention removed them before they were read" in said
    assert ids_in(tmp_path / "out") == once(range(300, ROWS, 2), range(1, ROWS, 2))


def test_a_topic_that_was_made_anew_is_not_mixed_with_the_old_one(
    filled: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it holds at those offsets is something else, which is told."""
    monkeypatch.setattr("manyray.exporting.READ_RECORDS", 10)
    rows, looks = Counter[str](), 5
    while not rows:
        export(filled, tmp_path / "out", file_rows=10, stop=StopAfter(looks))
        rows = ids_in(tmp_path / "out") if list(tmp_path.glob("out/part-*")) else rows
        looks += 1
    topic = topics_of(filled).embeddings
    admin = clients.admin_client(filled)  # while it is there, its futures are
    for future in admin.delete_topics([topic]).values():
        future.result(WAIT_S)
    wait_until(lambda: topic not in list_partitions(filled), "it is gone")
    create_topics(filled, topics_of(filled).version)
    wait_until(lambda: list_partitions(filled).get(topic) == 4, "it is there again")
    put(filled, *(embedding(filled, 9_000 + number) for number in range(30)))
    with pytest.raises(Fatal, match=rf"{topic}/0 ends before the 250 of the range: made anew"):
        export(filled, tmp_path / "out", file_rows=10)
    assert ids_in(tmp_path / "out") == rows


def test_what_was_not_committed_is_no_part_of_it(filled: Settings, tmp_path: Path) -> None:
    """Embeddings of a transaction that was aborted were never there."""
    producer = Producer({"bootstrap.servers": filled.bootstrap_servers, "transactional.id": f"aborted-{filled.ray}"})
    producer.init_transactions(WAIT_S)
    for number, end in ((1_000, producer.abort_transaction), (1_001, producer.commit_transaction)):
        producer.begin_transaction()
        producer.produce(topics_of(filled).embeddings, embedding(filled, number), partition=3)
        producer.flush(WAIT_S)
        end(WAIT_S)
    _, is_whole = export(filled, tmp_path / "out")
    assert is_whole
    assert ids_in(tmp_path / "out") == once(range(ROWS), range(1_001, 1_002))


def test_a_file_that_was_not_written_down_is_written_again(filled: Settings, tmp_path: Path) -> None:
    """Who ends between a file's name and the note of it leaves that file to the next one."""
    out = tmp_path / "out"
    export(filled, out, file_rows=60, stop=StopAfter(6))
    before = (out / "_export.json").read_bytes()
    files = len(list(out.glob("part-*")))
    export(filled, out, file_rows=60, stop=StopAfter(6))
    assert len(list(out.glob("part-*"))) > files
    (out / "_export.json").write_bytes(before)
    for path in sorted(out.glob("part-*"), key=lambda path: path.stat().st_mtime_ns)[files + 1 :]:
        path.unlink()
    (out / "_part-9-9.parquet.new").write_bytes(b"half a file")
    _, is_whole = export(filled, out, file_rows=50)
    assert is_whole
    assert ids_in(out) == once(range(ROWS))


def test_a_file_whose_reading_fails_is_read_again(
    filled: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From its first offset on, once the brokers answer: nothing is missing or twice."""
    failures = [False, True, False, False, True, False, True]

    class Failing(TopicRanges):
        def read(self, records_max: int) -> Read:
            read = super().read(min(records_max, 20))
            if read.records and failures and failures.pop():
                raise Retry("a broker that is away")
            return read

    monkeypatch.setattr("manyray.exporting.TopicRanges", Failing)
    said, is_whole = export(filled, tmp_path / "out")
    assert is_whole
    assert not failures
    assert said.startswith("exported 500 embeddings")
    assert ids_in(tmp_path / "out") == once(range(ROWS))


def test_an_export_that_is_killed_goes_on_where_it_was(filled: Settings, tmp_path: Path) -> None:
    """kill -9 in the middle, twice: every embedding once, and what was whole is kept."""
    command = ("export", filled.ray, "out", *flags(filled), "--file-rows=2")
    out = tmp_path / "out"
    for _ in range(2):
        before = len(list(out.glob("part-*")))
        with launch(*command, cwd=tmp_path) as process:
            wait_until(lambda before=before: len(list(out.glob("part-*"))) > before + 5, "files are written")
            process.send_signal(signal.SIGKILL)
            assert process.wait(WAIT_S) == -signal.SIGKILL
    kept = {path: path.stat().st_mtime_ns for path in out.glob("part-*")}
    assert len(kept) < ROWS / 2
    noted = json.loads((out / "_export.json").read_text())["files"]
    done = manyray(*command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"{sum(noted.values())} kept from before" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in kept if path.name in noted}.items() <= kept.items()
    assert ids_in(out) == once(range(ROWS))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_in_order(number: signal.Signals, code: int, filled: Settings, tmp_path: Path) -> None:
    """What was read is kept, a line says how to go on, and the exit code is no success."""
    command = ("export", filled.ray, "out", *flags(filled), "--file-rows=2", "--log-level=warning")
    with launch(
        *command,
        cwd=tmp_path,
        stdout=-1,
        stderr=-1,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        wait_until(lambda: len(list(tmp_path.glob("out/part-*"))) > 5, "files are written")
        process.send_signal(number)
        said, complained = process.communicate(timeout=WAIT_S)
    assert (process.returncode, complained) == (code, "")
    assert re.search(r"% done, the same command goes on\n$", said)
    done = manyray(*command, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert ids_in(tmp_path / "out") == once(range(ROWS))


def test_where_nobody_looks_at_a_bar_lines_say_how_far_it_is(
    filled: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The share of the offsets, and the embeddings among them, as often as is told."""
    monkeypatch.setattr("manyray.progress.LOG_EVERY_S", 0.0)
    with caplog.at_level("INFO", "manyray"):
        export(filled, tmp_path / "out", file_rows=60)
    lines = [record.getMessage() for record in caplog.records if record.name == "manyray.progress"]
    assert len(lines) > ROWS // 60
    assert lines[-1] == "100%: 500 embeddings"


def test_every_refusal_names_the_remedy(filled: Settings, tmp_path: Path) -> None:
    """A folder of something else, or in which something is missing or too much, and two at a time; and no such ray."""
    out, other = tmp_path / "out", tmp_path / "other"
    export(filled, out)
    other.mkdir()
    (other / "holiday.jpg").touch()
    (tmp_path / "file").touch()
    topic = topics_of(filled).embeddings
    for folder, how, said in (
        (other, {}, f"{other} holds holiday.jpg, and no export: name a new folder, or an empty one"),
        (tmp_path / "file", {}, f"{tmp_path}/file cannot be a folder of files (File exists): name another"),
        (
            out,
            {"start": "0:0"},
            f"{out} holds an export of {topic} from beginning to now, and not of {topic} from 0:0 to now: "
            "ask for the same to go on with it, or name another folder",
        ),
        (tmp_path / "new", {"ray": "none"}, "no ray none on these brokers"),
        (tmp_path / "new", {"start": "yesterday"}, "--from yesterday is neither of beginning, now, a time"),
    ):
        with pytest.raises(Fatal, match=re.escape(said)):
            export(filled, folder, **how)
    with claimed(out), pytest.raises(Fatal, match=f"another process exports into {out}: wait for it, or name"):
        export(filled, out)
    shutil.copy(out / "part-0-0.parquet", out / "part-0-1.parquet")
    with pytest.raises(Fatal, match=r"holds part-0-1\.parquet, which is not of its export: move it away, or name"):
        export(filled, out)
    (out / "part-0-1.parquet").unlink()
    (out / "part-0-0.parquet").unlink()
    with pytest.raises(Fatal, match=rf"{out} lacks part-0-0\.parquet, which was written: put it back, or remove"):
        export(filled, out)
    (out / "_export.json").write_text("{")
    with pytest.raises(Fatal, match=rf"_export\.json cannot be read \(.*\): remove {out}, or name another folder"):
        export(filled, out)


def test_without_pyarrow_its_package_is_named(tmp_path: Path) -> None:
    """In one line, before anything is asked of a broker."""
    (tmp_path / "pyarrow.py").write_text("raise ImportError")
    path = os.pathsep.join([str(tmp_path), *sys.path])
    done = manyray("export", "textray", "out", "--model=hash", cwd=tmp_path, PYTHONPATH=path)
    assert told(done) == "manyray: Parquet needs pyarrow: pip install 'manyray[parquet]'\n"
    assert done.returncode == 1


def test_a_full_disk_keeps_what_is_done(settings: Settings, topics: Topics, small_disk: Path) -> None:
    """One line that says so; with room again the export goes on."""
    from tests.test_full_disk import fill

    numbers = np.random.default_rng(0)
    values = [embedding(settings, number, dims=4096, vector=numbers.bytes(4 * 4096)) for number in range(200)]
    put(settings, *values)
    fill(small_disk / "others")
    with (small_disk / "others").open("r+b") as file:  # room for a file or two of ten, and not for twenty
        file.truncate(file.seek(0, 2) - 500_000)
    command = ("export", settings.ray, str(small_disk / "out"), *flags(settings), "--file-rows=10")
    done = manyray(*command, "--log-level=warning", cwd=small_disk.parent)
    assert done.returncode == 1
    assert "/out cannot be written (No space left on device): what is done is kept, run it again" in told(done)
    (small_disk / "others").unlink()
    done = manyray(*command, cwd=small_disk.parent)
    assert done.returncode == 0, done.stderr
    assert re.search("[1-9]0 kept from before", done.stdout)
    assert ids_in(small_disk / "out") == once(range(200))
