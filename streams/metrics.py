"""Every metric of every role, with units.

The names are a contract with dashboards: a metric is added or deprecated, never renamed.
Those of a GPU are in `streams.gpu`.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, disable_created_metrics
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from streams.endpoint import DIRECT

READ_TIMEOUT_S = 5.0
RESTARTS_VARIABLE = "MANYRAY__RESTARTS"
"""Set by `manyray up` for a role it starts again; two underscores, so it is no setting."""

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_POSTS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
_BYTES = (1_000, 4_000, 16_000, 64_000, 256_000, 1_000_000)
_TOKENS = (64, 256, 1024, 4096, 16_384, 65_536)


@dataclass(frozen=True, slots=True)
class Metrics:
    """The metrics of one process; each role moves its own, the others stay at zero."""

    registry: CollectorRegistry
    # ingest
    ingest_posts: Counter
    ingest_deletions: Counter
    ingest_rejected: Counter
    chunk_posts: Histogram
    chunk_bytes: Histogram
    # dedup
    dedup_posts: Counter
    dedup_hits: Counter
    dedup_misses: Counter
    table_entries: Gauge
    table_bytes: Gauge
    table_restoring: Gauge
    table_refilled: Counter
    table_corrupt: Counter
    table_learned: Counter
    # encode
    encode_posts: Counter
    encode_rejected: Counter
    encode_computed: Counter
    encode_batch_tokens: Gauge
    encode_splits: Counter
    encode_reused: Counter
    encode_tokens: Counter
    encode_padded_tokens: Counter
    encode_flops: Counter
    encode_peak_flops: Gauge
    encode_window_tokens: Histogram
    encode_queue_seconds: Histogram
    encode_seconds: Histogram
    # all
    transaction_seconds: Histogram
    transaction_failures: Counter
    consumer_lag: Gauge
    open_transaction_seconds: Gauge
    queue_length: Gauge
    partitions_owned: Gauge

    @classmethod
    def create(cls) -> "Metrics":
        """Fresh metrics in a registry of their own."""
        disable_created_metrics()  # they double the number of series, and nobody reads them
        registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"manyray_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"manyray_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"manyray_{name}", text, buckets=buckets, registry=registry)

        return cls(
            registry=registry,
            ingest_posts=counter("ingest_posts_total", "posts accepted"),
            ingest_deletions=counter("ingest_deletions_total", "posts whose deletion was passed on"),
            ingest_rejected=counter("ingest_rejected_total", "posts sent to the rejected topic", "reason"),
            chunk_posts=histogram("ingest_chunk_posts", "posts in a chunk", _POSTS),
            chunk_bytes=histogram("ingest_chunk_bytes", "bytes of a chunk", _BYTES),
            dedup_posts=counter("dedup_posts_total", "posts looked up"),
            dedup_hits=counter("dedup_hits_total", "posts whose vector the table held"),
            dedup_misses=counter("dedup_misses_total", "posts sent to the encoder"),
            table_entries=gauge("table_entries", "vectors in the tables of this process (RocksDB's estimate)"),
            table_bytes=gauge(
                "table_bytes", "bytes of the tables of this process on disk, and of what they have yet to write"
            ),
            table_restoring=gauge("table_restoring", "partitions whose table is being refilled now"),
            table_refilled=counter(
                "table_refilled_total", "vectors read back from the vectors topic, at assignment or after a failure"
            ),
            table_corrupt=counter("table_corrupt_total", "tables that were found damaged, set aside and begun anew"),
            table_learned=counter("table_learned_total", "vectors taken from the vectors topic as they were computed"),
            encode_posts=counter("encode_posts_total", "posts given an embedding by the encoder"),
            encode_rejected=counter(
                "encode_rejected_total", "posts that cannot be embedded, sent to the rejected topic", "reason"
            ),
            encode_batch_tokens=gauge(
                "encode_batch_tokens", "most tokens of a batch that fit the device's memory so far"
            ),
            encode_splits=counter("encode_splits_total", "times that a batch was halved for want of memory"),
            encode_computed=counter("encode_computed_total", "distinct contents computed"),
            encode_reused=counter("encode_reused_total", "posts served by a vector computed moments before"),
            encode_tokens=counter("encode_tokens_total", "tokens of the contents computed"),
            encode_padded_tokens=counter("encode_padded_tokens_total", "tokens computed, padding included"),
            encode_flops=counter("encode_flops_total", "floating point operations of the tokens there are"),
            encode_peak_flops=gauge(
                "encode_peak_flops_per_second",
                "what matrix products reached on the encoder's device at its start; 0 where that is not known",
            ),
            encode_window_tokens=histogram("encode_window_tokens", "tokens in a window", _TOKENS),
            encode_queue_seconds=histogram("encode_queue_seconds", "a window's age at its submission", _SECONDS),
            encode_seconds=histogram(
                "encode_seconds", "compute of a window, but for what the one before it had of it", _SECONDS
            ),
            transaction_seconds=histogram("transaction_seconds", "from begin to committed", _SECONDS),
            transaction_failures=counter("transaction_failures_total", "transactions aborted or given up"),
            consumer_lag=gauge("consumer_lag", "records not yet processed", "topic", "partition"),
            open_transaction_seconds=gauge(
                "open_transaction_seconds",
                "how long an unended transaction has kept this role from the records behind its beginning",
                "topic",
                "partition",
            ),
            queue_length=gauge(
                "queue_length",
                "records of the lane that has most, windows in flight, posts of the window that is gathered",
                "queue",
            ),
            partitions_owned=gauge("partitions_owned", "partitions that this process works on"),
        )


class ByVersion(Collector):
    """The metrics of each version that a process serves, with the label `version`. One thread changes which."""

    def __init__(self) -> None:
        self._of: dict[str, Metrics] = {}

    def of(self, version: str) -> Metrics:
        """Those of a version that is begun: fresh ones."""
        self._of = {**self._of, version: Metrics.create()}
        return self._of[version]

    def forget(self, version: str) -> None:
        """A version is served no longer."""
        self._of = {one: metrics for one, metrics in self._of.items() if one != version}

    def collect(self) -> Iterable[Metric]:
        """All of them, of each name together."""
        families: dict[str, Metric] = {}
        for version, metrics in self._of.items():
            for one in metrics.registry.collect():
                family = families.setdefault(one.name, Metric(one.name, one.documentation, one.type, one.unit))
                family.samples += [
                    sample._replace(labels={**sample.labels, "version": version}) for sample in one.samples
                ]
        return families.values()


def restarts() -> int:
    """How often `manyray up` has started this role again; 0 for who was started otherwise."""
    return int(os.environ.get(RESTARTS_VARIABLE, "0"))


def read_metrics(url: str) -> list[Sample]:
    """The samples of an endpoint of ours, whatever proxy the environment names for others.

    Raises:
        OSError: it does not answer.
    """
    with DIRECT.open(url, timeout=READ_TIMEOUT_S) as answer:
        text = answer.read().decode()
    return [sample for family in text_string_to_metric_families(text) for sample in family.samples]
