"""Laws of readers of the bare name: members of a group, and one that begins at the end, go from version to version."""

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from manyray.client import Client
from manyray.ray_orders import add_version, change_share, find_ray, promote_version
from schemas.errors import Fatal
from streams.control import change_ray
from streams.readers import find_readers
from streams.settings import Settings
from streams.topics import Topics
from streams.up import Pipeline
from streams.version import version_of
from streams.versions import Ray, shadow
from tests.oracle import read_records
from tests.waiting import WAIT_S, wait_until

pytestmark = pytest.mark.broker

POSTS = 200


@pytest.fixture
def names(settings: Settings, pipeline: Pipeline) -> tuple[str, str]:
    """Both versions of a ray, as they are named; the first one is promoted, and the other embeds all posts too."""
    assert pipeline
    other = settings.model_copy(update={"model": "hash:64"})
    add_version(other, settings.ray, 1.0)
    return f"{settings.ray}@{version_of(settings)}", f"{settings.ray}@{version_of(other)}"


def promote(settings: Settings, name: str) -> None:
    """Without a backfill."""
    promote_version(settings, name, None, threading.Event())


def publish(settings: Settings, kind: str) -> set[str]:
    """Posts of a kind, which are out in the version that is promoted."""
    ids = {f"{kind}{number}" for number in range(POSTS)}
    with Client(settings) as client:
        client.publish([(post_id, f"text of {post_id}") for post_id in sorted(ids)])
    topic = Topics.of(settings, find_ray(settings, settings.ray).promoted).embeddings
    wait_until(lambda: {(one.key() or b"").decode() for one in read_records(settings, topic)} >= ids, f"{kind} is out")
    return ids


def test_members_of_a_group_share_every_version(settings: Settings, names: tuple[str, str]) -> None:
    """Two that read while it is promoted, rolled back and promoted see each post once between them, and each is told
    of switches in turn.
    """
    over = threading.Event()
    told: dict[int, list[tuple[str, str]]] = {0: [], 1: []}
    seen: dict[int, Counter[str]] = {0: Counter(), 1: Counter()}

    def read(member: int) -> None:
        with Client(settings) as client:
            readers = client.subscribe(
                settings.ray, "readers", idle_s=1.0, on_switch=lambda *two: told[member].append(two)
            )
            with readers as batches:
                while not over.is_set():
                    for batch in batches:
                        seen[member].update(batch.ids)

    with ThreadPoolExecutor(2) as pool:
        try:
            members = [pool.submit(read, member) for member in told]
            expected = publish(settings, "first")
            for name, kind in ((names[1], "second"), (names[0], "third"), (names[1], "fourth")):
                promote(settings, name)
                expected |= publish(settings, kind)
            wait_until(lambda: set(seen[0] | seen[1]) == expected, "all is read")
        finally:
            over.set()
        for member in members:
            member.result(WAIT_S)
    assert seen[0] + seen[1] == Counter(expected)
    one, two = (name.partition("@")[2] for name in names)
    expected_switches = [(one, two), (two, one), (one, two)]
    for switches in told.values():  # of who had nothing of the first version to read from the next on
        assert switches in [expected_switches[first:last] for first in range(4) for last in range(first, 4)]


def test_who_begins_at_the_end_goes_on_with_the_next_version(settings: Settings, names: tuple[str, str]) -> None:
    """It sees what came since, of the version that was promoted then and of the next, and nothing of before."""
    publish(settings, "before")
    seen: Counter[str] = Counter()
    versions: list[str] = []
    topic = Topics.of(settings, names[0].partition("@")[2]).embeddings

    def has_begun() -> bool:
        """Whether it has told the group of where it begins in each partition."""
        offsets = [one.offsets for one in find_readers(settings, topic) if one.group == group]
        return bool(offsets) and len(offsets[0]) == settings.partitions

    group = f"late-{settings.ray}"
    with Client(settings) as client, client.subscribe(settings.ray, group, start="latest", idle_s=0.3) as batches:

        def read() -> None:
            for batch in batches:
                seen.update(batch.ids)
                versions.append(batch.version)

        wait_until(has_begun, "it has begun", read)
        assert not seen
        expected = publish(settings, "since")
        promote(settings, names[1])
        expected |= publish(settings, "then")
        wait_until(lambda: seen.total() >= len(expected), "all is read", read)
    assert seen == Counter(expected)
    assert list(dict.fromkeys(versions)) == [name.partition("@")[2] for name in names]


def test_of_two_changes_at_one_moment_one_is_refused(settings: Settings, names: tuple[str, str]) -> None:
    """Nothing of it is made, and it says to try again; the other one holds."""
    version = names[1].partition("@")[2]

    def change_too(ray: Ray) -> Ray:
        change_share(settings, names[1], 0.25)
        return shadow(ray, version, 0.75)

    with pytest.raises(Fatal, match=f"control.{settings.ray} was changed by somebody else at this moment: try again"):
        change_ray(settings, change_too)
    assert find_ray(settings, settings.ray).find(version).share == 0.25
