"""Laws of versions, on real brokers and roles: every post once in each, and one of them for the bare name."""

import os
import re
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from manyray import comparing
from manyray.client import Client
from manyray.ray_orders import (
    add_version,
    change_share,
    deprecate_version,
    find_ray,
    mirror_ray,
    promote_version,
    retire_version,
)
from schemas.content import hasher, is_in_share
from schemas.errors import Fatal
from schemas.public_pb2 import Embedding
from streams import clock, failpoints
from streams.control import change_ray, create_ray
from streams.readers import find_readers
from streams.settings import Settings
from streams.topics import Topics, create_topics, list_partitions
from streams.up import Pipeline
from streams.version import spec_of, version_of
from streams.versions import Served, add, retire
from tests.oracle import post, read_records, send
from tests.test_cli import flags
from tests.tiny_models import save_bert
from tests.waiting import wait_until

pytestmark = pytest.mark.broker

OTHER = "hash:64"
CONTENTS = 300
OLD, LAST = 1_000_000, "last"
OLD_IDS = {f"p{number}" for number in range(OLD, OLD + CONTENTS)}
Source = tuple[str, int, int, str]
"""Topic, partition, offset and job: what an embedding is of."""


@pytest.fixture
def other(settings: Settings) -> Settings:
    """The settings that name another model."""
    return settings.model_copy(update={"model": OTHER})


def embeddings(settings: Settings, version: str) -> list[Embedding]:
    """All there are of a version."""
    records = read_records(settings, Topics.of(settings, version).embeddings)
    return [Embedding.FromString(record.value() or b"") for record in records]


def sources(found: list[Embedding]) -> Counter[Source]:
    """How often there is one of each source."""
    return Counter((one.source_topic, one.source_partition, one.source_offset, one.job) for one in found)


def text_of(number: int) -> str:
    """So many contents there are, again and again."""
    return f"text {number % CONTENTS}"


def publish(settings: Settings, numbers: range) -> None:
    """Posts with these numbers."""
    send(settings, [post(f"p{number}", text_of(number)) for number in numbers])


class Load:
    """Live posts, some every moment, until it is ended."""

    def __init__(self, settings: Settings) -> None:
        self.count = 0
        self._settings, self._over = settings, threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def end(self) -> int:
        """How many there were."""
        self._over.set()
        self._thread.join()
        return self.count

    def _run(self) -> None:
        while not self._over.wait(0.05):
            publish(self._settings, range(self.count, self.count + 10))
            self.count += 10


class Subscriber:
    """A reader of the bare name, in a group, and what it saw: the versions in turn, and how often each post."""

    def __init__(self, settings: Settings, group: str) -> None:
        self.versions: list[str] = []
        self.switches: list[tuple[str, str]] = []
        self.ids: Counter[str] = Counter()
        self._settings, self._group, self._over = settings, group, threading.Event()
        self._pool = ThreadPoolExecutor(1)
        self._done = self._pool.submit(self._run)

    def join(self, posts: set[str]) -> None:
        """Wait until it has seen all of these; which partition it reads last is not known."""
        try:
            wait_until(lambda: self._done.done() or self.ids.keys() >= posts, "all is read")
        finally:
            self.end()
        self._done.result()

    def end(self) -> None:
        """Read no more; what went wrong is told where it is joined."""
        self._over.set()
        self._pool.shutdown()

    def _run(self) -> None:
        ray, group = self._settings.ray, self._group
        with (
            Client(self._settings) as client,
            client.subscribe(ray, group, idle_s=0.5, on_switch=lambda *two: self.switches.append(two)) as batches,
        ):
            while not self._over.is_set():
                for batch in batches:
                    self.ids.update(batch.ids)
                    if not self.versions or self.versions[-1] != batch.version:
                        self.versions.append(batch.version)


@pytest.fixture
def subscribe(settings: Settings) -> Iterator[Callable[[str], Subscriber]]:
    """Begins readers of the bare name, by their group, which end with the test however it ends."""
    with ExitStack() as readers:

        def begin(group: str) -> Subscriber:
            subscriber = Subscriber(settings, group)
            readers.callback(subscriber.end)
            return subscriber

        yield begin


def test_a_shadow_embeds_its_share(settings: Settings, other: Settings, pipeline: Pipeline) -> None:
    """Of live posts those whose content is in it, each once, as the same post of the promoted version; and none is one
    of the bare name. A share that is changed holds from then on.
    """
    one, two = version_of(settings), version_of(other)
    add_version(other, settings.ray, 0.5)
    publish(settings, range(CONTENTS))
    hash_of = hasher()
    expected = {f"p{n}" for n in range(CONTENTS) if is_in_share(hash_of(text_of(n).encode()), 0.5)}
    assert len(expected) == pytest.approx(CONTENTS / 2, rel=0.25)
    wait_until(lambda: len(embeddings(settings, two)) >= len(expected), "the share is embedded")
    wait_until(lambda: len(embeddings(settings, one)) >= CONTENTS, "all is embedded")
    change_share(settings, f"{settings.ray}@{two}", 0.0)
    publish(settings, range(CONTENTS, 2 * CONTENTS))
    wait_until(lambda: len(embeddings(settings, one)) >= 2 * CONTENTS, "all is embedded")
    shadows, ours = embeddings(settings, two), embeddings(settings, one)
    assert {found.post_id for found in shadows} == expected
    assert max(sources(shadows).values()) == max(sources(ours).values()) == 1
    assert sources(shadows).keys() <= sources(ours).keys()
    assert not any(found.promoted for found in shadows)
    assert all(found.promoted for found in ours)
    assert {(found.dims, found.version) for found in shadows} == {(64, two)}


def test_a_version_that_cannot_be_served_harms_no_other(settings: Settings, pipeline: Pipeline, tmp_path: Path) -> None:
    """Its model is gone where the encoder runs: the promoted version goes on in the same process, as before, and what
    cannot be served can be retired.
    """
    folder = tmp_path / "model"
    save_bert(folder)
    bert = settings.model_copy(update={"model": str(folder)})
    two = version_of(bert)
    pids = pipeline.pids
    create_topics(settings, two)
    served = Served.of(bert, spec_of(bert), clock.now_ms())
    folder.rename(tmp_path / "gone")
    change_ray(settings, lambda ray: add(ray, served))
    publish(settings, range(CONTENTS))
    wait_until(lambda: len(embeddings(settings, version_of(settings))) == CONTENTS, "the promoted version is served")
    wait_until(lambda: read_records(settings, Topics.of(settings, two).misses), "the other waits for its encoder")
    assert pipeline.pids == pids
    retire_version(settings, f"{settings.ray}@{two}", force=False)
    publish(settings, range(CONTENTS))
    wait_until(lambda: len(embeddings(settings, version_of(settings))) == 2 * CONTENTS, "it still is")
    assert pipeline.pids == pids


def test_every_refusal_names_the_remedy(settings: Settings, topics: Topics, other: Settings, tmp_path: Path) -> None:
    """A version that there is none of, that is there already, that nobody serves, or no version at all."""
    ray, one, two = settings.ray, topics.version, version_of(other)
    (spec := tmp_path / "unfit.toml").write_text(f'model = "minilm"\ngolden = {["00" * 32] * 6}\n'.replace("'", '"'))
    unfit = settings.model_copy(update={"model": str(spec)})
    v1, v2, third = f"{ray}@{one}", f"{ray}@{two}", settings.model_copy(update={"model": "hash:32"})
    add_version(other, ray, 0.0)
    for call, said in (
        (lambda: add_version(other, ray, 0.0), f"version {two} is served already: change its share"),
        (lambda: add_version(other, "another", 0.0), f"the settings serve ray {ray}, and not another: set ray"),
        (lambda: add_version(unfit, ray, 0.0), "the model does not give the vectors of golden"),
        (lambda: change_share(settings, ray, 0.5), f"{ray} names no version: choose {v1} or {v2}"),
        (lambda: change_share(settings, f"{ray}@none", 0.5), f"there are {one}, {two}; add one by"),
        (lambda: promote(settings, v2), f"no dedup serves {v2} now: start the roles, or see in the log"),
        (lambda: promote(settings, v1), "is the promoted one already: to go back, promote the one"),
        (lambda: deprecate_version(settings, v2, "soon"), "--on soon is no day: write it as 2026-12-31"),
        (lambda: deprecate_version(settings, v2, "2020-01-01"), "--on 2020-01-01 is over: name a day to come"),
        (lambda: retire_version(settings, v1, force=True), "promote another one first, by"),
        (lambda: create_ray(third), f"`manyray rays add {ray} --model hash:32`"),
    ):
        with pytest.raises(Fatal, match=re.escape(said)):
            call()


def test_who_retires_is_gone_on_after(settings: Settings, topics: Topics, other: Settings) -> None:
    """Ended once the roles were told, the same command deletes the topics; then there is no such version."""
    name, two = f"{settings.ray}@{version_of(other)}", version_of(other)
    add_version(other, settings.ray, 0.0)
    change_ray(settings, lambda ray: retire(ray, two))
    assert (
        retire_version(settings, name, force=False)
        == f"{name} is retired: its 5 topics are deleted, and roles remove its tables"
    )
    wait_until(
        lambda: not {topic for topic in list_partitions(settings) if f"{settings.ray}.{two}" in topic}, "they are gone"
    )
    with pytest.raises(Fatal, match=f"there is no version {two} of this ray"):
        retire_version(settings, name, force=False)
    assert find_ray(settings, settings.ray).names == (topics.version,)


def promote(settings: Settings, name: str) -> str:
    """Without a backfill."""
    return promote_version(settings, name, None, threading.Event())


def test_everyone_moves_to_another_version(
    settings: Settings,
    other: Settings,
    pipeline: Pipeline,
    subscribe: Callable[[str], Subscriber],
    tmp_path: Path,
) -> None:
    """Under live load: v2 is shadowed, backfilled, promoted, rolled back and promoted again, and v1 deprecated and
    retired, while the replay and a worker are killed on the way. Of each post each version has one embedding, the
    bare name one in all, and who reads it sees every post and is told of every switch.
    """
    ray, one, two = settings.ray, version_of(settings), version_of(other)
    v1, v2 = f"{ray}@{one}", f"{ray}@{two}"
    publish(settings, range(OLD, OLD + CONTENTS))
    wait_until(lambda: len(embeddings(settings, one)) == CONTENTS, "v1 serves")
    mirror_ray(settings, ray, on=True)
    subscriber, load = subscribe(f"group-{ray}"), Load(settings)
    try:
        add_version(other, ray, 0.3)
        wait_until(lambda: len({each.fingerprint for each in embeddings(settings, two)}) >= 60, "v2 is shadowed")
        compared(settings, v1, v2, tmp_path / "plot.png")

        backfill_and_promote(settings, pipeline, v2, tmp_path)
        more(settings, two)
        promote(settings, v1)
        more(settings, one)
        promote(settings, v2)
        more(settings, two)
        deprecate_version(settings, v1, "2999-12-31")
        more(settings, two)
    finally:
        count = load.end()
    everything = OLD_IDS | {f"p{number}" for number in range(count)}
    wait_until(lambda: ids(settings, one) == ids(settings, two) == everything, "all is out in both")
    check_outputs(settings, one, two, everything)

    # Who begins late reads the same, version after version, though the topic of v1 goes on behind each of its parts.
    send(settings, [post("late", "a late one")])
    everything.add("late")
    late = subscribe(f"late-{ray}")
    late.join(everything)
    check_read(late, [one, two, one, two], everything)

    # Whoever reads v1 by its name keeps it from being retired; who reads the bare name has moved on.
    with Client(settings) as client, client.subscribe(v1, f"named-{ray}") as named:
        next(named)
        with pytest.raises(Fatal, match=rf"{v1} is read by named-{ray} \(1 member, .* let them read {ray} or {v2}"):
            retire_version(settings, v1, force=False)
    assert {reader.group for reader in find_readers(settings, Topics.of(settings, one).embeddings)} == {
        f"named-{ray}",
        f"group-{ray}",
        f"late-{ray}",
    }
    retire_version(settings, v1, force=True)
    assert not {topic for topic in list_partitions(settings) if f"{ray}.{one}" in topic}
    send(settings, [post(LAST, "the last one")])
    everything.add(LAST)
    subscriber.join(everything)
    check_read(subscriber, [one, two, one, two], everything)
    assert subscriber.switches == [(one, two), (two, one), (one, two)]
    tables = settings.data_dir / "tables"
    wait_until(lambda: [each.name for each in tables.iterdir()] == [f"{ray}-{two}"], "its tables are gone")


def check_read(reader: Subscriber, versions: list[str], posts: set[str]) -> None:
    """It saw these versions in turn, and each post once; what is wrong is told in few words."""
    missing, more_than_once = sorted(posts - reader.ids.keys()), sorted((reader.ids - Counter(posts)).elements())
    told = f"{len(missing)} missing: {missing[:9]}; {len(more_than_once)} too many: {more_than_once[:9]}"
    assert (reader.versions, missing, more_than_once) == (versions, [], []), told


def check_outputs(settings: Settings, one: str, two: str, everything: set[str]) -> None:
    """Each version has each source once, the bare name each post once, and its mirror those that came since."""
    found = {version: embeddings(settings, version) for version in (one, two)}
    assert [max(sources(each).values()) for each in found.values()] == [1, 1]
    assert not any(each.job for each in found[one])
    live = Counter(each.post_id for version in found for each in found[version] if each.promoted)
    assert live == Counter(everything)
    mirrored = [
        Embedding.FromString(one.value() or b"") for one in read_records(settings, f"embeddings.{settings.ray}")
    ]
    assert Counter(each.post_id for each in mirrored) == Counter(everything - OLD_IDS)
    assert all(each.promoted for each in mirrored)
    assert {each.retires_ms for each in found[one]} == {0, 32503593600000}
    assert {each.retires_ms for each in found[two]} == {0}


def backfill_and_promote(settings: Settings, pipeline: Pipeline, version: str, folder: Path) -> None:
    """By a process that is killed in a transaction, and goes on, beside an encoder that is killed."""
    command = [sys.executable, "-P", "-m", "manyray", "rays", "promote", version, *flags(settings)]
    command += ["--backfill", settings.posts_topics[0]]
    (points := folder / "points").mkdir()
    (points / "replay.sent").write_text("kill")
    before = find_ray(settings, settings.ray).promoted
    struck = subprocess.run(command, env={**os.environ, failpoints.VARIABLE: str(points)}, check=False)
    assert struck.returncode == -signal.SIGKILL
    assert find_ray(settings, settings.ray).promoted == before
    os.kill(pipeline.pids["encode"], signal.SIGKILL)
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"means version {version.partition('@')[2]} from here on, and of {before} all that came" in done.stdout


def compared(settings: Settings, one: str, other: str, plot: Path) -> None:
    """Hashes of other lengths have nothing in common, and the file is a picture."""
    found = comparing.compare(settings, one, other, 2_000)
    assert len(found.overlaps) >= 50
    assert found.overlaps.mean() < 0.5 > abs(found.correlations.mean())
    assert found.vector_bytes == (4 * 384, 4 * 64)
    comparing.plot(found, plot)
    assert plot.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(Fatal, match="is compared with itself: name another version"):
        comparing.compare(settings, one, one, 2_000)


def more(settings: Settings, version: str) -> None:
    """Wait until some more live posts are out in a version, as those of the bare name."""

    def out() -> int:
        return sum(found.promoted for found in embeddings(settings, version))

    before = out()
    wait_until(lambda: out() > before + 50, "more posts come")


def ids(settings: Settings, version: str) -> set[str]:
    """The posts that a version has embeddings of."""
    return {found.post_id for found in embeddings(settings, version)}
