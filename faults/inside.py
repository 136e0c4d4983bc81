"""What must agree inside the pipeline once it has ended: chunk numbers, checkpoints, vectors, tables and embeddings."""

from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from confluent_kafka import KafkaError, KafkaException, Message, TopicPartition

from bench.load import Load
from encoders.load import load_encoder
from schemas.content import fingerprinter, normalise, partition_of
from schemas.errors import Fatal, Retry
from schemas.internal_pb2 import Chunk
from schemas.public_pb2 import COMPUTED, Embedding
from streams import clients, clock
from streams.checkpoint import Progress, read_progress
from streams.learned import Learned
from streams.rocks_table import RocksTable
from streams.settings import Settings
from streams.table_folder import folder_of, spare_of
from streams.topics import Topics, plan_topics

TOLERANCE = 1e-6
ENDED_S_MAX = 60.0
"""For what dead processes left open to be ended: far more than transaction_timeout_ms."""
NEXT_S_MAX = 60.0
"""For the next record of a partition that has more."""
_AT_ONCE = 1_000
_PATIENCE_S = 0.05
"""For a batch that is not full, as the last one of each partition is."""
Vector = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Expected:
    """What a run without a fault gives: vectors by fingerprint, and fingerprints by the number of their text."""

    vectors: dict[bytes, Vector]
    fingerprints: list[bytes]
    load: Load

    @classmethod
    def of(cls, settings: Settings, topics: Topics, load: Load) -> "Expected":
        """Computed here, in batches."""
        encoder = load_encoder(settings.model)
        fingerprint = fingerprinter(topics.version, settings.salt.get_secret_value())
        vectors: dict[bytes, Vector] = {}
        fingerprints: list[bytes] = []
        for start in range(0, load.texts, _AT_ONCE):
            texts = [normalise(load.text(number)) for number in range(start, min(start + _AT_ONCE, load.texts))]
            rows = encoder.encode(encoder.tokenise(texts), encoder.batch_tokens).vectors
            fingerprints += (batch := [fingerprint(text.encode()) for text in texts])
            vectors.update(zip(batch, rows, strict=True))
        return cls(vectors, fingerprints, load)

    def is_of(self, post_id: str, fingerprint: bytes) -> bool:
        """Whether the post has this content."""
        number = self.load.number_of(post_id)
        return number is not None and self.fingerprints[number] == fingerprint

    def is_vector(self, vector: bytes, fingerprint: bytes) -> bool:
        """Whether the content has this vector."""
        expected, found = self.vectors.get(fingerprint), np.frombuffer(vector, "<f4")
        if expected is None or found.shape != expected.shape:
            return False
        return bool(np.abs(found - expected).max() <= TOLERANCE)


def await_ends(settings: Settings, topics: Topics) -> None:
    """Wait until no transaction is open: behind one, a reader of committed records sees nothing.

    Raises:
        Fatal: one stays open.
    """
    deadline_s = clock.monotonic_s() + ENDED_S_MAX
    names = [plan.name for plan in plan_topics(settings, topics.version) if plan.name not in topics.all_posts]
    with closing(clients.reader(settings)) as stable, closing(clients.reader(settings, committed=False)) as all_there:
        for topic in names:
            for partition in stable.list_topics(topic, 30).topics[topic].partitions:
                while clients.watermarks(stable, topic, partition) != clients.watermarks(all_there, topic, partition):
                    if clock.monotonic_s() > deadline_s:
                        raise Fatal(f"a transaction on {topic}/{partition} is still open")
                    clock.sleep_s(0.2)


def find_problems(settings: Settings, topics: Topics, load: Load) -> list[str]:
    """Everything that does not agree, a line each."""
    expected = Expected.of(settings, topics, load)
    problems, computed = _embeddings(settings, topics, expected)
    for partition in range(settings.partitions):
        problems += _lookups(settings, topics, partition)
        found, known = _vectors(settings, topics, partition, expected)
        problems += found
        missing = {
            fingerprint for fingerprint in computed if partition_of(fingerprint, settings.partitions) == partition
        }
        if not _watermarks(settings, topics.vectors, partition)[0] and missing - known:
            problems.append(f"{len(missing - known)} vectors are not in {topics.vectors}/{partition}")
        problems += _table(settings, topics, partition)
    return problems


def _records(settings: Settings, topic: str, partition: int) -> Iterator[Message]:
    """The committed records of a partition.

    Raises:
        KafkaException: it cannot be read.
        Fatal: none came for a long time.
    """
    with closing(clients.reader(settings)) as reader:
        reader.assign([TopicPartition(topic, partition, 0)])
        deadline_s = clock.monotonic_s() + NEXT_S_MAX
        while clock.monotonic_s() < deadline_s:
            for message in reader.consume(_AT_ONCE, _PATIENCE_S):
                error = message.error()
                if error is None:
                    yield message
                    deadline_s = clock.monotonic_s() + NEXT_S_MAX
                elif error.code() == KafkaError._PARTITION_EOF:
                    return
                elif not error.retriable():
                    raise KafkaException(error)
    raise Fatal(f"{topic}/{partition} gives no record, and no end, for {NEXT_S_MAX:.0f} s")


def _watermarks(settings: Settings, topic: str, partition: int) -> tuple[int, int]:
    with closing(clients.reader(settings)) as reader:
        return clients.watermarks(reader, topic, partition)


def _lookups(settings: Settings, topics: Topics, partition: int) -> list[str]:
    """The numbers of the chunks have no gap, and the checkpoint is at their end."""
    progress = Progress()
    epochs: set[tuple[str, int, int]] = set()
    repeats = settings.delivery == "at_least_once"
    try:
        for message in _records(settings, topics.lookups, partition):
            chunk = Chunk.FromString(message.value() or b"")
            live = [source for source in chunk.sources if not source.job]  # jobs' lines end with them
            epochs.update((source.topic, source.partition, source.epoch_ms) for source in live)
            progress = progress.after(chunk, message.offset() or 0, repeats=repeats)
    except Fatal as error:
        return [str(error)]
    problems: list[str] = []
    if len(epochs) > len(progress.sources):
        problems.append(f"chunks of {topics.lookups}/{partition} were numbered anew")
    checkpoint = read_progress(settings, topics.checkpoints, partition)
    at, last = checkpoint.lookups_offset, progress.lookups_offset
    _, end = _watermarks(settings, topics.lookups, partition)
    if not last <= at <= end or checkpoint.sources != progress.sources:  # behind the last chunk lies its marker
        problems.append(
            f"the checkpoint of partition {partition} is at {at}, and its chunks end at {last}, or with other numbers"
        )
    return problems


def _vectors(settings: Settings, topics: Topics, partition: int, expected: Expected) -> tuple[list[str], set[bytes]]:
    """Vectors are those of their content, and where they belong; also the fingerprints."""
    wrong = astray = 0
    known: set[bytes] = set()
    for message in _records(settings, topics.vectors, partition):
        for fingerprint, vector in Learned.of(message.value(), topics.version).vectors.items():
            known.add(fingerprint)
            wrong += not expected.is_vector(vector, fingerprint)
            astray += partition_of(fingerprint, settings.partitions) != partition
    where = f"vectors of {topics.vectors}/{partition}"
    counts = {f"{where} are not those of a run without faults": wrong, f"{where} belong into another partition": astray}
    return _told(counts), known


def _table(settings: Settings, topics: Topics, partition: int) -> list[str]:
    """What a table gives is what `vectors` has, it lacks nothing before its offset, unless some was evicted, and its
    offset is at the end; of two tables, as where another process held the one, that of one of them.
    """
    folder = folder_of(settings, topics, partition)
    folders = [one for one in (folder, spare_of(folder)) if one.exists()]
    if not folders:
        return [f"partition {partition} has no table"]
    compared = [_compare(settings, topics, partition, folder) for folder in folders]
    problems = [problem for found, _ in compared for problem in found]
    if behind := min(behind for _, behind in compared):
        problems.append(f"the table of partition {partition} has not taken the last {behind} records of its changelog")
    return problems


def _compare(settings: Settings, topics: Topics, partition: int, folder: Path) -> tuple[list[str], int]:
    """What is wrong with a table, and how many records lie behind its offset."""
    size = settings.table_disk_mib * 2**20 // settings.partitions
    damaged: list[str] = []
    wrong = missing = behind = 0
    try:
        with closing(RocksTable(folder, size, on_corrupt=lambda: damaged.append("damaged"))) as table:
            has_evicted = not (folder / "1").exists()  # its first generation
            for message in _records(settings, topics.vectors, partition):
                if (message.offset() or 0) >= table.offset:
                    behind += 1
                    continue
                vectors = Learned.of(message.value(), topics.version).vectors
                for found, expected in zip(table.get_many(list(vectors)), vectors.values(), strict=True):
                    missing += found is None and not has_evicted
                    wrong += found is not None and found != expected
    except Retry as error:
        damaged.append(str(error))
    problems = [f"table {folder.name}: {reason}" for reason in damaged[:1]]
    if wrong or missing:
        problems.append(f"table {folder.name}: {wrong} vectors are not those of its changelog, {missing} are missing")
    return problems, behind


def _embeddings(settings: Settings, topics: Topics, expected: Expected) -> tuple[list[str], set[bytes]]:
    """Each embedding is of its post's content, and has that content's vector; also what was computed."""
    wrong = swapped = 0
    computed: set[bytes] = set()
    for partition in range(settings.partitions):
        for message in _records(settings, topics.embeddings, partition):
            embedding = Embedding.FromString(message.value() or b"")
            wrong += not expected.is_vector(embedding.vector, embedding.fingerprint)
            swapped += not expected.is_of(embedding.post_id, embedding.fingerprint)
            if embedding.origin == COMPUTED:
                computed.add(embedding.fingerprint)
    counts = {
        "embeddings are not those of a run without faults": wrong,
        "embeddings are of another content than their post's": swapped,
    }
    return _told(counts), computed


def _told(counts: Mapping[str, int]) -> list[str]:
    return [f"{count} {what}" for what, count in counts.items() if count]
