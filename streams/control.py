"""The control topic: a ray's versions as one record, read and followed by roles and clients, changed by commands.

A change and what it means to posts are one transaction: each partition of `lookups` gets a record of what versions are
from there on, and all versions' dedup, which read the same records, take it at the same place among the posts.
"""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace

import msgspec

from schemas.errors import Fatal
from schemas.internal_pb2 import Chunk, Standing
from streams import clock
from streams.attempts import with_retries
from streams.checkpoint import KEY, Progress, read_progress
from streams.compacted import Latest, changing
from streams.settings import Settings
from streams.topics import Topics, check_topics, create_topics, list_partitions
from streams.transactions import StageProducer
from streams.version import spec_of, version_of
from streams.versions import Ray, Served, begin_ray, changed_standings

_log = logging.getLogger("manyray.control")

_KEY = "ray"


def ray_in(latest: Latest) -> Ray:
    """The versions, as far as the control topic was taken.

    Raises:
        Fatal: what is there is not ours.
    """
    value = latest.get(_KEY)
    try:
        return msgspec.json.decode(value, type=Ray) if value is not None else Ray()
    except msgspec.MsgspecError as error:
        raise Fatal(
            f"the control topic holds what this release does not know ({error}): another program writes to it, or "
            "another release; run the newest one"
        ) from None


def read_ray(settings: Settings) -> Ray:
    """The versions of the ray of these settings, as the control topic has them now.

    Raises:
        Fatal: there is no such ray.
        Retry: the brokers did not answer in time.
    """
    topic = Topics.of(settings, "").control
    if topic not in list_partitions(settings):
        raise Fatal(f"topic {topic} is missing: run `manyray topics create`")
    return check_begun(_read(settings, topic), topic)


def check_begun(ray: Ray, topic: str) -> Ray:
    """The ray, if it has a version.

    Raises:
        Fatal: it has none.
    """
    if not ray.versions:
        raise Fatal(f"topic {topic} names no version: run `manyray topics create`")
    return ray


def change_ray(settings: Settings, decide: Callable[[Ray], Ray]) -> Ray:
    """Change the versions into what `decide` says of those there are, and return that.

    Raises:
        Fatal: `decide` refuses, or another change was made at this moment.
        Retry: the brokers did not answer in time.
    """
    topics = Topics.of(settings, "")
    with changing(settings, topics.control, f"manyray.control.{topics.ray}") as (latest, producer):
        before = ray_in(latest)
        after = decide(before)
        # Asked for first: a transaction has seconds.
        begins = [
            (Topics.of(settings, version).checkpoints, partition, progress)
            for version in after.names
            if version not in before.names
            for partition, progress in _first_progress(settings, before.promoted, after.standing(version))
        ]
        producer.begin()
        _produce_standings(settings, topics, producer, before, after)
        for topic, partition, progress in begins:
            producer.produce(topic, progress.to_bytes(), key=KEY, partition=partition)
        producer.produce(topics.control, msgspec.json.encode(after), key=_KEY.encode(), partition=0)
    return after


def create_ray(settings: Settings) -> list[str]:
    """Create the topics that are missing, of a ray that is new for the version of the settings; return their names.

    Raises:
        Fatal: no broker answers, or it refuses; or the ray is served, and not in the version of the settings.
    """
    topics, spec = Topics.of(settings, ""), spec_of(settings)
    created = create_topics(settings)
    ray = _read(settings, topics.control)
    check_named(settings, ray, spec.version)
    created += create_topics(settings, *(ray.planned or (spec.version,)))
    if not ray.versions:
        served = Served.of(settings, spec, clock.now_ms())
        # Of two that begin it at the same moment the second one finds it begun.
        change_ray(settings, lambda before: before if before.versions else begin_ray(served))
    return created


def planned_versions(settings: Settings) -> tuple[str, ...]:
    """Whose topics there are to be, as `plan_topics` takes it: those of the ray, or of the settings before it is begun.

    Raises:
        Fatal: no broker answers, or the settings name no encoder that can be.
        Retry: the brokers did not answer in time.
    """
    topic = Topics.of(settings, "").control
    planned = _read(settings, topic).planned if topic in list_partitions(settings) else ()
    return planned or (version_of(settings),)


def check_named(settings: Settings, ray: Ray, version: str) -> None:
    """Refuse settings whose model the ray neither is nor was served with: they would not be obeyed.

    Raises:
        Fatal: as said.
    """
    known = {*ray.names, *(promotion.version for promotion in ray.promotions)}
    if not ray.versions or version in known:
        return
    promoted = ray.find(ray.promoted)
    raise Fatal(
        f"ray {settings.ray} is served in version {promoted.version} (model={promoted.model}), and the settings name "
        f"version {version} (model={settings.model}): set model = {promoted.model!r}, and add the other beside it by "
        f"`manyray rays add {settings.ray} --model {settings.model}`"
    )


def check_ray(settings: Settings) -> Ray:
    """The ray, with all its topics as they have to be.

    Raises:
        Fatal: there is no such ray, or the first problem with its topics.
        Retry: the brokers did not answer in time.
    """
    check_topics(settings)
    ray = read_ray(settings)
    check_topics(settings, *ray.planned)
    return ray


def topics_of(settings: Settings, served: Served) -> Topics:
    """The topics of a version."""
    return Topics.of(settings, served.version, served.form)


def _read(settings: Settings, topic: str) -> Ray:
    """What the control topic holds now; brokers that have just made it are asked again until they lead it."""
    with closing(Latest(settings, topic)) as latest:
        with_retries(latest.catch_up, threading.Event())
        return ray_in(latest)


def _produce_standings(settings: Settings, topics: Topics, producer: StageProducer, before: Ray, after: Ray) -> None:
    """Tell dedup, in every partition at once, what versions are from here on."""
    if not (changed := changed_standings(before, after)):
        return
    told = Chunk(standings=changed).SerializeToString()
    for partition in range(settings.partitions):
        producer.produce(topics.lookups, told, partition=partition)


def _first_progress(settings: Settings, other: str, standing: Standing) -> Iterator[tuple[int, Progress]]:
    """Where a new version's dedup begins in each partition: where another's is, with the next chunk of every line."""
    checkpoints = Topics.of(settings, other).checkpoints
    for partition in range(settings.partitions):
        progress = read_progress(settings, checkpoints, partition) if other else Progress()
        yield partition, replace(progress, standing=standing)
