"""`manyray rays`: what is asked of a ray's versions."""

import hashlib
import threading
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from functools import partial

from confluent_kafka import KafkaException

from encoders.load import load_encoder
from manyray.epochs import epochs_of
from manyray.replaying import Wanted, begin_replay, run_replay
from manyray.served import LOOK_S, await_out, check_served, members_of
from schemas.errors import Fatal
from streams import clients, clock
from streams.control import change_ray, check_ray, topics_of
from streams.jobs import Jobs
from streams.readers import Reader, find_readers
from streams.settings import Settings
from streams.topics import Topics, create_topics, list_partitions, plan_topics
from streams.version import model_of, spec_of
from streams.versions import Ray, Served, add, deprecate, mirror, note_ends, promote, retire, shadow

LEAVE_S = 90.0
"""For roles to end a version that is retired, before its topics go."""
DELETE_TIMEOUT_S = 30.0


def find_ray(settings: Settings, name: str) -> Ray:
    """The ray of that name.

    Raises:
        Fatal: the settings are for another one, or it is not begun.
    """
    if name != settings.ray:
        raise Fatal(f'the settings serve ray {settings.ray}, and not {name}: set ray = "{name}"')
    return check_ray(settings)


def find_version(settings: Settings, name: str) -> tuple[Ray, Served]:
    """The version that `<ray>@<version>` names.

    Raises:
        Fatal: it names no version, or there is no such one.
    """
    ray, _, version = name.partition("@")
    found = find_ray(settings, ray)
    if not version:
        raise Fatal(f"{name} names no version: choose {ray}@{f' or {ray}@'.join(found.names)}")
    return found, found.find(version)


def add_version(settings: Settings, name: str, share: float, *, untried: bool = False) -> str:
    """Let the roles serve the version of the settings too, beside the others of its ray.

    Its model is loaded here first, unless it is to be `untried`: what cannot be served is better known before it is
    waited for.

    Raises:
        Fatal: there is one already, there are too many, or its model is not to be had.
    """
    spec = spec_of(settings)
    served = Served.of(settings, spec, clock.now_ms(), share)
    add(find_ray(settings, name), served)  # a refusal comes before there are topics
    if not untried:
        load_encoder(model_of(settings), device=settings.device)
    create_topics(settings, served.version)
    change_ray(settings, lambda ray: add(ray, served))
    return (
        f"added {name}@{served.version} (model={served.model}): it embeds {share:.0%} of the contents of live posts; "
        f"each role begins with it as soon as it has loaded it"
    )


def change_share(settings: Settings, name: str, share: float) -> str:
    """Let a version embed another share of the contents of live posts."""
    _, served = find_version(settings, name)
    change_ray(settings, lambda ray: shadow(ray, served.version, share))
    return f"{name} embeds {share:.0%} of the contents of live posts from here on"


def mirror_ray(settings: Settings, name: str, *, on: bool) -> str:
    """Let what the bare name means go to a topic of its own too, from here on, or no longer."""
    find_ray(settings, name)
    topic = Topics.of(settings, "").mirror
    if on:
        create_topics(settings, "")
    change_ray(settings, lambda ray: mirror(ray, on=on))
    if on:
        return f"embeddings of {name}, whatever version that means, go to {topic} too from here on"
    return f"embeddings of {name} go to {topic} no longer; the topic stays: delete it when nobody reads it any more"


def deprecate_version(settings: Settings, name: str, day: str) -> str:
    """Say in a version's records on which day it is to be retired; `never` takes that back."""
    _, served = find_version(settings, name)
    retires_ms = 0 if day == "never" else _ms_of(day)
    change_ray(settings, lambda ray: deprecate(ray, served.version, retires_ms))
    if not retires_ms:
        return f"{name} is no longer deprecated"
    return f"{name} is deprecated: its records say from here on that it is to be retired on {day}"


@dataclass(frozen=True, slots=True)
class Backfill:
    """Old posts that a version is to embed before it is promoted: as of `Wanted`."""

    source: str
    start: str
    end: str


def promote_version(settings: Settings, name: str, backfill: Backfill | None, stop: threading.Event) -> str:
    """Let the bare ray name mean a version, after it has embedded old posts if that is asked for.

    What was asked for and not finished goes on where it was.

    Raises:
        Fatal: there is none of that name, it is the promoted one, none serves it, or its old posts cannot be replayed.
    """
    ray, served = find_version(settings, name)
    version, before = served.version, ray.promoted
    if version == before and not ray.open_promotions:
        promote(ray, version, 0, {})  # which says why not
    if version != before:
        check_served(settings, topics_of(settings, served), name)
        if backfill is not None and not _fill(settings, name, served, backfill, stop):
            return f"stopped before {name} was promoted: the same command goes on with it"
        starts = _ends_of(settings, topics_of(settings, served).embeddings)
        ray = change_ray(settings, lambda now: promote(now, version, clock.now_ms(), starts))
    told = f"{settings.ray} means version {version} from here on"
    for promotion, former in ray.open_promotions:
        if not await_out(settings, topics_of(settings, ray.find(former)), stop):
            return f"{told}; not all of {former} that came before is out: the same command waits for it"
        # Also behind what a transaction still hides: of the bare name nothing comes later.
        ends = _ends_of(settings, Topics.of(settings, former).embeddings, committed=False)
        ray = change_ray(settings, partial(note_ends, at_ms=promotion.at_ms, ends=ends))
    others = [former.version for former in ray.promotions if former.version in ray.names and former.version != version]
    if not others:
        return told
    back = f"to go back: manyray rays promote {ray_at(settings, others[-1])}"
    return f"{told}, and of {others[-1]} all that came before is out; {back}"


def retire_version(settings: Settings, name: str, *, force: bool) -> str:
    """Serve a version no longer, and delete its topics, once nobody reads it; one that was ended half-way goes on.

    Raises:
        Fatal: somebody does, unless `force`; a replay is for it; or it is the promoted one.
    """
    ray_name, _, version = name.partition("@")
    own = {plan.name for plan in plan_topics(settings, version)} - {plan.name for plan in plan_topics(settings)}
    own &= list_partitions(settings).keys()
    ray = find_ray(settings, ray_name)
    if version in ray.names or not (version and own):
        _, served = find_version(settings, name)
        retire(ray, version)  # a refusal comes before anything is asked for
        if not force:
            _check_unread(settings, ray, topics_of(settings, served), name)
        change_ray(settings, lambda now: retire(now, version))
    elif not force and (readers := find_readers(settings, Topics.of(settings, version).embeddings)):
        raise Fatal(f"{name} is served no longer, but {_listed(readers)} have read it: --force deletes its topics")
    _await_left(settings, Topics.of(settings, version))
    admin = clients.admin_client(settings)
    for topic, future in admin.delete_topics(sorted(own), operation_timeout=DELETE_TIMEOUT_S).items():
        try:
            future.result(DELETE_TIMEOUT_S)
        except KafkaException as error:
            raise Fatal(f"{name} is retired, but topic {topic} was not deleted: {error.args[0].str()}") from None
    return f"{name} is retired: its {len(own)} topics are deleted, and roles remove its tables"


def ray_at(settings: Settings, version: str) -> str:
    """How a version of the ray is named."""
    return f"{settings.ray}@{version}"


def _check_unread(settings: Settings, ray: Ray, topics: Topics, name: str) -> None:
    """Refuse while a group reads a version, or a replay is for it."""
    moved = {reader.group for reader in find_readers(settings, Topics.of(settings, ray.promoted).embeddings)}
    epochs = [epoch for epoch in epochs_of(settings.ray, ray) if epoch.version == topics.version]

    def has_moved(reader: Reader) -> bool:
        """Whether a group reads the bare name, and nothing of that is left to it here."""
        left = (epoch.holds(at, offset) for epoch in epochs for at, offset in reader.offsets.items())
        return not reader.members and reader.group in moved and not any(left)

    reading = [one for one in find_readers(settings, topics.embeddings) if not has_moved(one)]
    if reading:
        raise Fatal(
            f"{name} is read by {_listed(reading)}: let them read {settings.ray} or "
            f"{ray_at(settings, ray.promoted)}, and delete the groups that are not used any more; or --force"
        )
    for job, done in Jobs(settings).read().values():
        if job.version == topics.version and not done.ended:
            raise Fatal(f"replay {job.name} is for {name}: wait for its end, or cancel it by `manyray jobs cancel`")


def _listed(readers: Iterable[Reader]) -> str:
    return ", ".join(map(describe_reader, readers))


def describe_reader(reader: Reader) -> str:
    """A group in words."""
    members = "1 member" if reader.members == 1 else f"{reader.members} members"
    return f"{reader.group} ({members}, {reader.lag:,} behind)"


def _ms_of(day: str) -> int:
    try:
        found = date.fromisoformat(day)
    except ValueError:
        raise Fatal(f"--on {day} is no day: write it as 2026-12-31, or never") from None
    at = datetime.combine(found, time(), UTC)
    if at.timestamp() * 1000 < clock.now_ms():
        raise Fatal(f"--on {day} is over: name a day to come, or never")
    return int(at.timestamp() * 1000)


def _fill(settings: Settings, name: str, served: Served, backfill: Backfill, stop: threading.Event) -> bool:
    """Let a version embed old posts, and all live ones from before their end on; say whether it has."""
    if served.share < 1:
        change_ray(settings, lambda ray: shadow(ray, served.version, 1.0))
    # Another backfill of the version, or of one of its name that was retired, is another job.
    asked = repr((backfill, served.added_ms)).encode()
    job = f"promote-{served.version}-{hashlib.blake2b(asked, digest_size=3).hexdigest()}"
    wanted = Wanted(backfill.source, name, backfill.start, backfill.end, name=job)
    known = Jobs(settings).read().get(job)
    if known is None:
        begin_replay(settings, wanted)
    elif known[0].order == "cancel":
        raise Fatal(f"replay {job} was cancelled: `manyray jobs forget {job}`, and promote again")
    elif known[1].ended:
        return True
    run_replay(settings, job, stop)
    return Jobs(settings).read()[job][1].ended and not stop.is_set()


def _ends_of(settings: Settings, topic: str, *, committed: bool = True) -> dict[int, int]:
    """Where the partitions of a topic end, for who reads committed records only or for all."""
    partitions = list_partitions(settings)[topic]  # which users may choose
    with closing(clients.reader(settings, committed=committed)) as reader:
        return {at: clients.watermarks(reader, topic, at)[1] for at in range(partitions)}


def _await_left(settings: Settings, topics: Topics) -> None:
    """Wait until no role is a member of a version's groups."""
    deadline_s = clock.monotonic_s() + LEAVE_S
    while any(members_of(settings, topics).values()):
        if clock.monotonic_s() > deadline_s:
            raise Fatal(
                f"roles still serve {topics.version} {LEAVE_S:.0f} s after it was retired, so its topics are there "
                "yet: see their logs, and retire it again"
            )
        clock.sleep_s(LOOK_S)
