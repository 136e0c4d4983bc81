"""`manyray rays compare`: how alike two versions see the same posts, and what each costs."""

from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from confluent_kafka import KafkaError, TopicPartition
from rich.table import Table

from manyray.likeness import NEIGHBOURS, Numbers, overlaps, rank_correlations, similarities
from manyray.ray_orders import find_version
from manyray.subscription import decode_embedding
from manyray.trial import Trial, try_encoder
from schemas.embedding import vectors_of
from schemas.errors import Fatal, Reject
from schemas.post import Post, decode_post
from schemas.public_pb2 import COMPUTED, Embedding
from streams import clients
from streams.control import topics_of
from streams.rejected import Original, read_back
from streams.settings import Settings
from streams.topics import list_partitions
from streams.versions import Served

RECORDS_MAX = 100_000
"""Of each version's embeddings, the latest: those that are looked at for posts that both have."""
POSTS_MIN = 5 * NEIGHBOURS
"""Of a few contents each is a neighbour of all."""
TEXTS_MAX = 256
"""Read back from their topics, to be computed by both models here."""
LATENCIES_MIN = 20
PLOT_CONTENTS_MAX = 500
"""Whose pairs are drawn."""

Source = tuple[str, int, int]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two versions beside each other: of n contents that both have an embedding of.

    overlaps, correlations: of each content, (n,). latencies_ms: of live posts, computed and cached, by version. trials:
    what this machine made of some of the texts; none where they are gone.
    """

    versions: tuple[str, str]
    overlaps: Numbers
    correlations: Numbers
    similarities: tuple[Numbers, Numbers]
    latencies_ms: tuple[tuple[Numbers, Numbers], tuple[Numbers, Numbers]]
    vector_bytes: tuple[int, int]
    trials: tuple[Trial, Trial] | None


def compare(settings: Settings, one: str, other: str, posts_max: int) -> Comparison:
    """Compare two versions, `<ray>@<version>` each, by up to so many contents that both have embedded lately.

    Raises:
        Fatal: there is no such version, or they have too few contents in common.
    """
    served = [find_version(settings, name)[1] for name in (one, other)]
    if served[0] == served[1]:
        raise Fatal(f"{one} is compared with itself: name another version")
    found = _latest(settings, served[1], 4 * posts_max)
    pairs = [(first, found[source]) for first in _records(settings, served[0]) if (source := _source(first)) in found]
    # A content once: repeats are each other's neighbours in every version.
    pairs = list({second.fingerprint: (first, second) for first, second in pairs}.values())[:posts_max]
    if len(pairs) < POSTS_MIN:
        raise Fatal(
            f"{one} and {other} have {len(pairs)} contents in common among their latest embeddings, and {POSTS_MIN} "
            f"are needed: let {other} embed more by `manyray rays shadow` or `manyray replay`"
        )
    firsts, seconds = [first for first, _ in pairs], [second for _, second in pairs]
    near, near_other = similarities(vectors_of(firsts)), similarities(vectors_of(seconds))
    texts = _texts(settings, firsts[:TEXTS_MAX])
    trials = [try_encoder(each.settings(settings), texts) for each in served] if texts else []
    return Comparison(
        (served[0].version, served[1].version),
        overlaps(near, near_other),
        rank_correlations(near, near_other),
        (near, near_other),
        (_latencies(firsts), _latencies(seconds)),
        (len(firsts[0].vector), len(seconds[0].vector)),
        (trials[0], trials[1]) if trials else None,
    )


def comparison_table(found: Comparison) -> Table:
    """What a comparison found: first how alike the versions are, then a column for each."""
    table = Table("", *found.versions, box=None, pad_edge=False)
    count = len(found.overlaps)
    table.add_row("contents compared", f"{count:,}")
    table.add_row(f"neighbour overlap@{NEIGHBOURS}", f"{found.overlaps.mean():.3f}")
    table.add_row("rank correlation", f"{found.correlations.mean():.3f}")
    table.add_row("bytes of a vector", *(f"{size:,}" for size in found.vector_bytes))
    for number, what in enumerate(("computed", "cached")):
        table.add_row(f"ms from post, {what}", *(_percentiles(latencies[number]) for latencies in found.latencies_ms))
    if found.trials is not None:
        table.add_row("tokens of a text", *(f"{trial.tokens_per_text:.1f}" for trial in found.trials))
        posts = (trial.tokens_per_s / max(1.0, trial.tokens_per_text) for trial in found.trials)
        table.add_row(f"texts a second, {found.trials[0].device} here", *(f"{each:,.0f}" for each in posts))
    return table


def plot(found: Comparison, file: Path) -> None:
    """Draw the overlaps, what one version makes of pairs that the other finds similar, and the latencies.

    Raises:
        Fatal: matplotlib is not installed, or the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415 - heavy, and an extra
    except ImportError:
        raise Fatal("--plot needs matplotlib: pip install 'manyray[plot]'") from None
    figure = Figure(figsize=(15, 4.5), layout="constrained")
    alike, pairs, waits = figure.subplots(1, 3)
    alike.hist(found.overlaps, bins=np.linspace(-0.05, 1.05, NEIGHBOURS + 2), edgecolor="white")
    alike.set(xlabel=f"overlap@{NEIGHBOURS} of a content", ylabel="contents", title="the same neighbours")
    some = np.triu_indices(min(len(found.overlaps), PLOT_CONTENTS_MAX), k=1)
    pairs.hexbin(found.similarities[0][some], found.similarities[1][some], gridsize=60, bins="log", mincnt=1)
    pairs.set(
        xlabel=f"cosine in {found.versions[0]}", ylabel=f"cosine in {found.versions[1]}", title="pairs of contents"
    )
    for version, (computed, cached) in zip(found.versions, found.latencies_ms, strict=True):
        for what, latencies in (("computed", computed), ("cached", cached)):
            if len(latencies):
                waits.ecdf(latencies, label=f"{version}, {what}")
    waits.set(xlabel="ms from post to embedding", ylabel="share of live posts", title="latency")
    waits.legend()
    try:
        figure.savefig(file)
    except (OSError, ValueError) as error:
        raise Fatal(f"{file} cannot be written ({error}): name a .png, .svg or .pdf") from None


def _latest(settings: Settings, served: Served, posts_max: int) -> dict[Source, Embedding]:
    """The latest embeddings of a version by their posts, each content once, so many at most."""
    by_content = {embedding.fingerprint: embedding for embedding in _records(settings, served)}
    return {_source(embedding): embedding for embedding in list(by_content.values())[-posts_max:]}


def _records(settings: Settings, served: Served) -> Iterator[Embedding]:
    """The latest embeddings of a version, as they are now."""
    topic = topics_of(settings, served).embeddings
    with closing(clients.reader(settings)) as reader:
        ends = {at: clients.watermarks(reader, topic, at) for at in range(list_partitions(settings)[topic])}
        each_max = RECORDS_MAX // len(ends)
        reader.assign([TopicPartition(topic, at, max(low, end - each_max)) for at, (low, end) in ends.items()])
        open_ends = {at: end for at, (low, end) in ends.items() if end > low}
        while open_ends:
            for message in reader.consume(1_000, 1.0):
                partition, offset, error = message.partition() or 0, message.offset() or 0, message.error()
                if error is not None and error.code() != KafkaError._PARTITION_EOF:
                    if why := clients.why_unreadable(message):
                        raise why
                elif offset + (error is None) >= open_ends.get(partition, 0):
                    open_ends.pop(partition, None)
                if error is None and (value := message.value()) is not None:
                    yield decode_embedding(message, value)


def _source(embedding: Embedding) -> Source:
    return embedding.source_topic, embedding.source_partition, embedding.source_offset


def _latencies(embeddings: list[Embedding]) -> tuple[Numbers, Numbers]:
    """Of live posts, in ms: of those whose vector was computed, and of those for which it was known."""
    live = [each for each in embeddings if not each.job]
    return (
        np.array([each.embedded_ms - each.posted_ms for each in live if each.origin == COMPUTED], np.float64),
        np.array([each.embedded_ms - each.posted_ms for each in live if each.origin != COMPUTED], np.float64),
    )


def _texts(settings: Settings, embeddings: list[Embedding]) -> list[str]:
    """The texts of posts, those that their topics still hold and let us read."""
    stand_ins = [Original.rebuilt(Post(each.post_id, ""), *_source(each), each.posted_ms) for each in embeddings]
    texts: list[str] = []
    for original in read_back(settings, stand_ins).values():
        if original.headers and original.headers[0][0] == "manyray-original":
            continue
        with suppress(Reject):
            texts.append(decode_post(original.value, settings.text_bytes_max).text)
    return texts


def _percentiles(latencies: Numbers) -> str:
    """The median and the 99th, of some at least."""
    if len(latencies) < LATENCIES_MIN:
        return f"too few ({len(latencies)})"
    return "p50 {:,.0f}, p99 {:,.0f}".format(*np.percentile(latencies, [50, 99]))
