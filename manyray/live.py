"""The live view: what each stage has done so far, read from the roles' Prometheus endpoints."""

from collections import Counter
from dataclasses import dataclass, field

from rich.table import Table

from streams.metrics import read_metrics


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The counts of all processes together at one moment, since their start."""

    at_s: float
    ingested: int = 0
    rejected: Counter[str] = field(default_factory=Counter[str])
    looked_up: int = 0
    hits: int = 0
    encoded: int = 0
    computed: int = 0
    lag: Counter[str] = field(default_factory=Counter[str])
    """Records not yet processed, by role."""
    published: int = 0
    received: int = 0

    @property
    def done(self) -> int:
        """Posts that have come out, on whichever topic."""
        return self.received + self.rejected.total()


def scrape(urls: dict[str, str], at_s: float, published: int, received: int) -> Snapshot:
    """Read the endpoints, by process name; one that does not answer counts as zero until it does again."""
    totals: Counter[str] = Counter()
    rejected: Counter[str] = Counter()
    lag: Counter[str] = Counter()
    for name, url in urls.items():
        try:
            samples = read_metrics(url)
        except OSError:
            continue
        for sample in samples:
            value = int(sample.value)
            totals[sample.name] += value
            if sample.name in ("manyray_ingest_rejected_total", "manyray_encode_rejected_total"):
                rejected[sample.labels["reason"]] += value
            elif sample.name == "manyray_consumer_lag":
                lag[name.partition("-")[0]] += value
    return Snapshot(
        at_s=at_s,
        ingested=totals["manyray_ingest_posts_total"],
        rejected=+rejected,
        looked_up=totals["manyray_dedup_posts_total"],
        hits=totals["manyray_dedup_hits_total"],
        encoded=totals["manyray_encode_posts_total"],
        computed=totals["manyray_encode_computed_total"],
        lag=lag,
        published=published,
        received=received,
    )


def live_table(now: Snapshot, before: Snapshot) -> Table:
    """The stages in the order of the flow; rates are those between two snapshots."""
    table = Table(box=None, pad_edge=False)
    for column, justify in (
        ("stage", "left"),
        ("posts", "right"),
        ("posts/s", "right"),
        ("lag", "right"),
        ("", "left"),
    ):
        table.add_column(column, justify=justify, min_width=10)  # pyright: ignore[reportArgumentType]
    took_s = max(now.at_s - before.at_s, 1e-3)

    def row(stage: str, count: int, earlier: int, lag: str, note: str) -> None:
        table.add_row(stage, f"{count:,}", f"{max(0, count - earlier) / took_s:,.0f}", lag, note)

    row("publish", now.published, before.published, "", "")
    row("ingest", now.ingested, before.ingested, f"{now.lag['ingest']:,}", f"{now.rejected.total():,} rejected")
    row("dedup", now.looked_up, before.looked_up, f"{now.lag['dedup']:,}", f"{now.hits:,} hits")
    row("encode", now.encoded, before.encoded, f"{now.lag['encode']:,}", f"{now.computed:,} computed")
    row("subscribe", now.received, before.received, f"{max(0, now.published - now.done):,}", "")
    return table


def live_line(now: Snapshot, before: Snapshot) -> str:
    """The same as a line, for where nobody looks at a terminal."""
    rate = max(0, now.received - before.received) / max(now.at_s - before.at_s, 1e-3)
    return (
        f"published {now.published:,}  received {now.received:,} ({rate:,.0f}/s)  hits {now.hits:,}  "
        f"computed {now.computed:,}  rejected {now.rejected.total():,}  "
        f"lag ingest {now.lag['ingest']:,} dedup {now.lag['dedup']:,} encode {now.lag['encode']:,}"
    )
