"""What must agree inside the pipeline once it has ended: chunk numbers, checkpoints, vectors and tables."""

from collections.abc import Iterator
from contextlib import closing

import numpy as np
import numpy.typing as npt
from confluent_kafka import KafkaError, KafkaException, Message, TopicPartition

from encoders.load import load_encoder
from faults.load import Load
from schemas.content import fingerprinter, normalise
from schemas.errors import Fatal
from schemas.internal_pb2 import Chunk
from schemas.public_pb2 import Embedding
from streams import clients
from streams.checkpoint import Progress, read_progress
from streams.refill import vectors_by_fingerprint
from streams.rocks_table import RocksTable
from streams.settings import Settings
from streams.topics import Topics

TOLERANCE = 1e-6
_AT_ONCE = 1_000
_PATIENCE_S = 0.05
"""For a batch that is not full, as the last one of each partition is."""
Vector = npt.NDArray[np.float32]


def find_problems(settings: Settings, topics: Topics, load: Load, *, tables: bool) -> list[str]:
    """Everything that does not agree, a line each; `tables` says whether those on disk are looked at too."""
    expected = _vectors_of(settings, topics, load)
    problems: list[str] = []
    for partition in range(settings.partitions):
        problems += _lookups(settings, topics, partition)
        problems += _vectors(settings, topics, partition, expected)
        if tables:
            problems += _table(settings, topics, partition)
    problems += _embeddings(settings, topics, expected)
    return problems


def _vectors_of(settings: Settings, topics: Topics, load: Load) -> dict[bytes, Vector]:
    """The vector of every content of the load, as a run without a fault computes it."""
    encoder = load_encoder(settings.model)
    fingerprint = fingerprinter(topics.version, settings.salt.get_secret_value())
    vectors: dict[bytes, Vector] = {}
    for start in range(0, load.texts, _AT_ONCE):
        texts = [normalise(load.text(number)) for number in range(start, min(start + _AT_ONCE, load.texts))]
        rows = encoder.encode(encoder.tokenise(texts), encoder.batch_tokens).vectors
        vectors.update(zip([fingerprint(text.encode()) for text in texts], rows, strict=True))
    return vectors


def _records(settings: Settings, topic: str, partition: int) -> Iterator[Message]:
    """The committed records of a partition."""
    with closing(clients.reader(settings)) as reader:
        reader.assign([TopicPartition(topic, partition, 0)])
        while True:
            for message in reader.consume(_AT_ONCE, _PATIENCE_S):
                error = message.error()
                if error is None:
                    yield message
                elif error.code() == KafkaError._PARTITION_EOF:
                    return
                elif not error.retriable():
                    raise KafkaException(error)


def _lookups(settings: Settings, topics: Topics, partition: int) -> list[str]:
    """The numbers of the chunks have no gap, and the checkpoint is at their end."""
    progress = Progress()
    try:
        for message in _records(settings, topics.lookups, partition):
            progress = progress.after(Chunk.FromString(message.value() or b""), message.offset() or 0)
    except Fatal as error:
        return [str(error)]
    checkpoint = read_progress(settings, topics.checkpoints, partition)
    if checkpoint == progress:
        return []
    at, end = checkpoint.lookups_offset, progress.lookups_offset
    return [f"the checkpoint of partition {partition} is at {at}, and its chunks end at {end}, or with other numbers"]


def _vectors(settings: Settings, topics: Topics, partition: int, expected: dict[bytes, Vector]) -> list[str]:
    wrong = 0
    for message in _records(settings, topics.vectors, partition):
        for fingerprint, vector in vectors_by_fingerprint(message.value(), topics.version).items():
            wrong += not _equal(vector, expected.get(fingerprint))
    return [f"{wrong} vectors of {topics.vectors}/{partition} are not those of a run without faults"] if wrong else []


def _table(settings: Settings, topics: Topics, partition: int) -> list[str]:
    """The table holds every vector before its offset, and no other vector for its fingerprint."""
    folder = settings.data_dir / "tables" / f"{topics.ray}-{topics.version}" / str(partition)
    if not folder.exists():
        return [f"partition {partition} has no table"]
    wrong = 0
    with closing(RocksTable(folder, settings.table_disk_mib * 2**20 // settings.partitions)) as table:
        for message in _records(settings, topics.vectors, partition):
            if (message.offset() or 0) < table.offset:
                vectors = vectors_by_fingerprint(message.value(), topics.version)
                found = table.get_many(list(vectors))
                wrong += sum(one != other for one, other in zip(found, vectors.values(), strict=True))
    return [f"{wrong} vectors of table {partition} are not those of its changelog"] if wrong else []


def _embeddings(settings: Settings, topics: Topics, expected: dict[bytes, Vector]) -> list[str]:
    wrong = 0
    for partition in range(settings.partitions):
        for message in _records(settings, topics.embeddings, partition):
            embedding = Embedding.FromString(message.value() or b"")
            wrong += not _equal(embedding.vector, expected.get(embedding.fingerprint))
    return [f"{wrong} embeddings are not those of a run without faults"] if wrong else []


def _equal(vector: bytes, expected: Vector | None) -> bool:
    if expected is None:
        return False
    found = np.frombuffer(vector, "<f4")
    return found.shape == expected.shape and bool(np.abs(found - expected).max() <= TOLERANCE)
