"""The restore's speed: tables refilled from `vectors`, beside reading that topic and writing tables, each alone.

    python -m bench.restore [--vectors N] [--repeats N]

Vectors have 384 dims; each run begins without tables, and takes one partition of four, then all four on a thread each.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
from confluent_kafka import TopicPartition

from bench.machine import Speed, describe
from schemas.errors import ManyrayError
from schemas.internal_pb2 import Vectors
from streams import clients, clock
from streams.broker import Broker
from streams.lane import Lane, Shared
from streams.metrics import Metrics
from streams.rocks_table import RocksTable, index_cache
from streams.settings import Settings, load_settings
from streams.topics import Topics, create_topics
from streams.version import version_of

DIMS = 384
VECTORS_A_RECORD = 48
"""As the encoder writes them: a window of some 190 posts over four partitions."""


def records(version: str, count: int, seed: int) -> Iterator[bytes]:
    """Records of `vectors` with `count` vectors of length 1, each under a fingerprint of its own."""
    random = np.random.default_rng(seed)
    for start in range(0, count, VECTORS_A_RECORD):
        size = min(VECTORS_A_RECORD, count - start)
        numbers = random.standard_normal((size, DIMS), dtype=np.float32)
        numbers /= np.linalg.norm(numbers, axis=1, keepdims=True)
        message = Vectors(version=version, dims=DIMS, fingerprints=random.bytes(16 * size), vectors=numbers.tobytes())
        yield message.SerializeToString()


def publish(settings: Settings, topics: Topics, count: int) -> None:
    """Fill each partition of `vectors` with `count` vectors, as the encoder's producer would."""
    producer = clients.producer(settings)
    for partition in range(settings.partitions):
        for value in records(topics.version, count, seed=partition):
            clients.produce(producer, topics.vectors, value, partition=partition)
    if producer.flush(120):
        raise SystemExit("the broker did not take the vectors in 120 s")


def timed(work: Callable[[int], object], partitions: int, vectors: int) -> Speed:
    """The speed of `work` on so many partitions of so many vectors each, a thread each."""
    began_cpu_s, began_s = clock.cpu_s(), clock.perf_s()
    with ThreadPoolExecutor(partitions) as threads:
        list(threads.map(work, range(partitions)))
    wall_s, used_s = clock.perf_s() - began_s, clock.cpu_s() - began_cpu_s
    return Speed(partitions * vectors / wall_s, used_s / max(1, partitions * vectors) * 1e6, "vector")


def read(settings: Settings, topics: Topics, partition: int) -> None:
    """The yardstick of reading: a plain consumer that counts."""
    with closing(clients.reader(settings)) as reader:
        reader.assign([TopicPartition(topics.vectors, partition, 0)])
        while all(message.error() is None for message in reader.consume(16, 0.2)):
            pass


def write(settings: Settings, partition: int, vectors: int) -> None:
    """The yardstick of writing: as many vectors of that size, made beforehand, into an empty table."""
    fingerprints = np.random.default_rng(partition).bytes(16 * vectors)
    vector = fingerprints[: DIMS * 4]
    folder = settings.data_dir / "written" / str(partition)
    with closing(RocksTable(folder, settings.table_disk_mib * 2**20 // settings.partitions, index_cache())) as table:
        for first in range(0, vectors, VECTORS_A_RECORD):
            numbers = range(first, min(first + VECTORS_A_RECORD, vectors))
            table.put_many({fingerprints[16 * number : 16 * number + 16]: vector for number in numbers}, first)


def refill(settings: Settings, topics: Topics, vectors: int, partitions: int) -> Speed:
    """What a dedup process does before it serves: lanes are prepared, their tables empty."""

    def fail(error: ManyrayError) -> None:
        raise SystemExit(str(error))

    metrics = Metrics.create()
    shared = Shared(settings, topics, metrics, index_cache(), fail)
    lanes = [Lane(shared, partition) for partition in range(partitions)]
    try:
        speed = timed(lambda number: lanes[number].prepare(), partitions, vectors)
        refilled = sum(sample.value for metric in metrics.table_refilled.collect() for sample in metric.samples)
        if refilled != partitions * vectors:
            raise SystemExit(f"{refilled:.0f} of {partitions * vectors} vectors were refilled")
    finally:
        for lane in lanes:
            lane.stop()
    return speed


def bench(count: int, repeats: int, folder: Path) -> None:
    """Each yardstick and the refill in turn, on one broker."""
    with Broker.start(folder / "broker", port=0) as broker:
        settings = load_settings(
            bootstrap_servers=broker.bootstrap_servers, data_dir=folder, model="hash", log_level="warning"
        )
        version = version_of(settings)
        create_topics(settings, version)
        topics, vectors = Topics.of(settings, version), count // settings.partitions
        refill(settings.model_copy(update={"data_dir": folder / "first"}), topics, 0, settings.partitions)
        publish(settings, topics, vectors)
        for partitions in (1, settings.partitions):
            best: list[float] = []
            for repeat in range(repeats):
                with tempfile.TemporaryDirectory(dir=folder) as data:
                    own = settings.model_copy(update={"data_dir": Path(data)})
                    reading = timed(lambda number: read(settings, topics, number), partitions, vectors)
                    writing = timed(lambda number, own=own: write(own, number, vectors), partitions, vectors)
                    whole = refill(own, topics, vectors, partitions)
                run = f"{partitions} of {settings.partitions} partitions, run {repeat + 1}"
                print(f"{run}, topic alone:  {reading}")
                print(f"{run}, tables alone: {writing}")
                print(f"{run}, refill:       {whole}")
                best.append(whole.per_s)
            print(f"refill of {partitions} of {settings.partitions} partitions, best of {repeats}: {max(best):,.0f}/s")


def main() -> None:
    """Run it and print figures with the machine."""
    parser = argparse.ArgumentParser(description="the restore's speed")
    parser.add_argument("--vectors", type=int, default=300_000, help="vectors in all four partitions")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each side, in turn")
    arguments = parser.parse_args()
    print(describe())
    with tempfile.TemporaryDirectory(prefix="manyray-bench-") as folder:
        bench(arguments.vectors, arguments.repeats, Path(folder))


if __name__ == "__main__":
    main()
