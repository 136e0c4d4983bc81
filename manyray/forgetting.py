"""`manyray forget`: contents that no table and no record of `vectors` is to hold any longer, and the proof of it."""

import logging
import threading
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace

from manyray.ray_orders import find_ray, ray_at
from manyray.reading import Format, open_posts
from manyray.served import LOOK_S, await_out, check_served
from schemas.content import FINGERPRINT_BYTES, fingerprints_in, hasher, normalise, partition_of, split_fingerprints
from schemas.errors import Fatal
from schemas.internal_pb2 import Chunk
from schemas.post import Post
from streams import clock
from streams.attempts import with_retries
from streams.control import topics_of
from streams.metrics import Metrics
from streams.probe import count_hits
from streams.rewriting import rewrite, scan
from streams.settings import Settings
from streams.topics import Topics, plan_topics
from streams.transactions import Fenced, StageProducer

_log = logging.getLogger("manyray.forget")

CONTENTS_MAX = 10_000
"""At once: they fit a record each partition, whatever the partitions."""
PROVE_S = 60.0
"""For dedup to have taken what `vectors` tells."""


@dataclass(frozen=True, slots=True)
class Forgotten:
    """What was done in a version: vectors that were removed from `vectors`, and those that were copied for that."""

    version: str
    removed: int
    copied: int
    records: int
    """Searched for the proof."""
    again: int
    """Contents that were computed again meanwhile, as posts with them came."""


def hashes_of(settings: Settings, posts: Iterable[Post]) -> set[bytes]:
    """The hashes of posts' contents.

    Raises:
        Fatal: there are too many.
    """
    hash_of, found = hasher(settings.salt.get_secret_value()), set[bytes]()
    for post in posts:
        found.add(hash_of(normalise(post.text).encode()))
        if len(found) > CONTENTS_MAX:
            raise Fatal(f"more than {CONTENTS_MAX:,} contents: forget them in several files")
    return found


def hash_in(version: str, fingerprint: str) -> bytes:
    """The hash of the content that an embedding of a version names by its fingerprint, in hexadecimal digits.

    Raises:
        Fatal: it is none.
    """
    try:
        found = bytes.fromhex(fingerprint)
    except ValueError:
        found = b""
    if len(found) != FINGERPRINT_BYTES:
        raise Fatal(
            f"--fingerprint {fingerprint} is none: it has 32 hexadecimal digits, as `manyray tail --json` shows"
        )
    return fingerprints_in(version)(found)  # XOR is its own inverse


def forget(
    settings: Settings,
    hashes: Collection[bytes],
    stop: threading.Event,
    tell: Callable[[str], object] = lambda _: None,
) -> list[Forgotten] | None:
    """Remove contents from the tables and `vectors` of every version, prove it, and say what was done; None if it was
    told to stop, which leaves some of it undone. Done again, it goes through it all again, which harms nothing.

    `tell` is told of each step.

    Raises:
        Fatal: nobody serves a version; another one forgets at the same time; or something is held still.
        Retry: the brokers did not answer in time.
    """
    ray = find_ray(settings, settings.ray)
    served = [topics_of(settings, each) for each in ray.versions]
    for topics in served:
        check_served(settings, topics, ray_at(settings, topics.version))
    exactly_once = settings.model_copy(update={"delivery": "exactly_once"})
    name = f"manyray.forget.{settings.ray}"
    done: list[Forgotten] = []
    try:
        with closing(StageProducer.create(exactly_once, name, Metrics.create(), stop)) as producer:
            with_retries(producer.open, stop)
            _send(settings, hashes, producer)
            if find_ray(settings, settings.ray).names != ray.names:
                raise Fatal(f"versions of {settings.ray} came or went at this moment: do it again")
            for topics in served:
                tell(f"{ray_at(settings, topics.version)}: waiting until what is under way has come out")
                if not await_out(settings, topics, stop):
                    return None
                done.append(_remove(settings, topics, hashes, producer, tell))
    except Fenced:
        raise Fatal(f"another forget of {settings.ray} has begun: this one ends; do it again after that") from None
    for number, topics in enumerate(served):
        tell(f"{ray_at(settings, topics.version)}: asking the tables")
        again = _await_forgotten(settings, topics, hashes, stop)
        if again is None:
            return None
        done[number] = replace(done[number], again=again)
    return done


def keepers(settings: Settings, versions: Iterable[str]) -> list[str]:
    """Which internal topics hold posts' texts for a while, and for how long."""
    plans = plan_topics(settings, *versions)
    passing = [plan for plan in plans if plan.name.startswith(("lookups.", "misses."))]
    days = {plan.name: int(plan.config["retention.ms"]) // 86_400_000 for plan in passing}
    return [f"{name} ({count} days)" for name, count in days.items()]


def _send(settings: Settings, hashes: Collection[bytes], producer: StageProducer) -> None:
    """Tell all versions, behind all posts so far."""
    producer.begin()
    for partition, its in _by_partition(settings, hashes).items():
        chunk = Chunk(forgotten=b"".join(its)).SerializeToString()
        producer.produce(Topics.of(settings, "").lookups, chunk, partition=partition)
    producer.commit()


def _remove(
    settings: Settings,
    topics: Topics,
    hashes: Collection[bytes],
    producer: StageProducer,
    tell: Callable[[str], object],
) -> Forgotten:
    """Rewrite what must be of a version's `vectors`, and search it again."""
    removed = copied = records = 0
    for partition, fingerprints in _fingerprints(settings, topics, hashes).items():
        where = f"{topics.vectors}/{partition}"
        tell(f"{where}: searching")
        found = scan(settings, topics, partition, fingerprints)
        if not fingerprints <= found.told.keys():
            raise Fatal(f"{where} does not tell to forget: an encode of an older release serves it; update it")
        if found.held:
            tell(f"{where}: writing {found.last + 1 - found.low:,} offsets anew")
            copied += rewrite(
                settings,
                topics,
                partition,
                found,
                producer,
                on_progress=lambda share: tell(f"{where}: {share:.0%}"),  # noqa: B023 - called while it is this one
            )
            removed += found.held
            found = scan(settings, topics, partition, fingerprints)
        if found.held:
            raise Fatal(f"{where} still holds {found.held} of the vectors: do it again")
        records += found.records
    return Forgotten(topics.version, removed, copied, records, 0)


def _await_forgotten(
    settings: Settings, topics: Topics, hashes: Collection[bytes], stop: threading.Event
) -> int | None:
    """Wait until the tables hold none of the contents, but for those that were computed again since; say how many these
    are, or None where it was told to stop.
    """
    deadline_s = clock.monotonic_s() + PROVE_S
    name, left = ray_at(settings, topics.version), set(hashes)
    while left and (hits := count_hits(settings, topics, left)) != 0:
        if clock.monotonic_s() > deadline_s:
            held = "no dedup answered" if hits is None else f"they hold {hits} of {len(left)} contents"
            raise Fatal(f"the tables of {name} were not proved to be rid of it in {PROVE_S:.0f} s: {held}; do it again")
        for partition, fingerprints in _fingerprints(settings, topics, left).items():
            again = scan(settings, topics, partition, fingerprints).again
            left -= set(split_fingerprints(fingerprints_in(topics.version)(b"".join(again))))
        if stop.wait(LOOK_S):
            return None
    return len(hashes) - len(left)


def _fingerprints(settings: Settings, topics: Topics, hashes: Collection[bytes]) -> dict[int, set[bytes]]:
    """Those of contents in a version, by partition."""
    fingerprints_of = fingerprints_in(topics.version)
    return {
        partition: set(split_fingerprints(fingerprints_of(b"".join(its))))
        for partition, its in _by_partition(settings, hashes).items()
    }


def _by_partition(settings: Settings, hashes: Collection[bytes]) -> dict[int, list[bytes]]:
    found: dict[int, list[bytes]] = {}
    for each in sorted(hashes):
        found.setdefault(partition_of(each, settings.partitions), []).append(each)
    return found


def forget_contents(
    settings: Settings,
    name: str,
    file: str | None,
    fingerprints: Sequence[str],
    stop: threading.Event,
    *,
    layout: Format | None,
    text_field: str,
) -> str | None:
    """Forget the contents of a file's posts, and those that a version's fingerprints name; what was done, in lines.

    Raises:
        ManyrayError: as `open_posts` and `forget`; or nothing is named.
    """
    ray_name, _, version = name.partition("@")
    ray = find_ray(settings, ray_name)
    hashes: set[bytes] = set()
    if file is not None:
        with open_posts(file, layout, None, text_field) as (posts, _):
            hashes = hashes_of(settings, posts)
    if fingerprints:
        if not version:
            raise Fatal(f"fingerprints are of one version: name it, as {ray_at(settings, ray.promoted)}")
        hashes |= {hash_in(ray.find(version).version, each) for each in fingerprints}
    if not hashes:
        raise Fatal("nothing to forget: name a file of posts with the contents, or a --fingerprint")
    done = forget(settings, hashes, stop, _log.info)
    if done is None:
        return None
    lines = [_line(ray_at(settings, each.version), each, len(hashes)) for each in done]
    kept = ", ".join(keepers(settings, ray.names))
    lines.append(f"texts of posts stay where they passed, for so long: {kept}; and in the topics of posts")
    return "\n".join(lines)


def _line(name: str, done: Forgotten, contents: int) -> str:
    again = f", but for {done.again:,} that were computed again since, as posts with them came" if done.again else ""
    return (
        f"{name}: {contents:,} contents forgotten; {done.removed:,} vectors removed, {done.copied:,} written anew "
        f"for that; proved: the tables hold none, and none is in the {done.records:,} records of vectors{again}"
    )
