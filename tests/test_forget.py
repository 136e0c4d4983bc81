"""Laws of forgetting: no table, no record of `vectors` and no file of a table holds what was forgotten."""

import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from manyray.client import Client
from manyray.forgetting import forget, forget_contents, hash_in, hashes_of
from manyray.ray_orders import add_version
from schemas.content import fingerprints_in
from schemas.errors import Fatal
from schemas.post import Post
from schemas.public_pb2 import COMPUTED, Embedding
from streams import failpoints
from streams.learned import Learned
from streams.probe import count_hits
from streams.rewriting import scan
from streams.settings import Settings
from streams.topics import Topics
from streams.up import Pipeline
from streams.version import version_of
from tests.oracle import read_records
from tests.test_cli import flags
from tests.waiting import wait_until

pytestmark = pytest.mark.broker

CONTENTS = 400
SECRETS = ["a secret", "another secret"]


def vectors_of(settings: Settings, version: str) -> Learned:
    """What all records of a version's `vectors` come to, those that were written first for all partitions first."""
    learned = Learned()
    for record in read_records(settings, Topics.of(settings, version).vectors):
        learned.take(Learned.of(record.value(), version))
    return learned


def in_records(settings: Settings, version: str, fingerprints: set[bytes]) -> set[bytes]:
    """Those of which any record has a vector."""
    records = [Learned.of(one.value(), version) for one in read_records(settings, Topics.of(settings, version).vectors)]
    return {fingerprint for record in records for fingerprint in fingerprints & record.vectors.keys()}


def origin(settings: Settings, version: str, post_id: str) -> int | None:
    """How the embedding of a post came about, if there is one."""
    for record in read_records(settings, Topics.of(settings, version).embeddings):
        if record.key() == post_id.encode():
            return Embedding.FromString(record.value() or b"").origin
    return None


@pytest.fixture
def hashes(settings: Settings) -> set[bytes]:
    """Of the contents that are to be forgotten."""
    return hashes_of(settings, [Post("", text) for text in SECRETS])


@pytest.fixture
def known(settings: Settings, pipeline: Pipeline, hashes: set[bytes]) -> Settings:
    """The settings of a pipeline of two versions whose tables hold many contents, and those."""
    assert pipeline
    other = settings.model_copy(update={"model": "hash:64"})
    add_version(other, settings.ray, 1.0)
    with Client(settings) as client:
        client.publish([(f"p{number}", f"text {number}") for number in range(CONTENTS)])
        client.publish([(text, text) for text in SECRETS])
    for each in (settings, other):
        topics = Topics.of(settings, version_of(each))
        wait_until(lambda: count_hits(settings, topics, hashes) == len(SECRETS), "the tables hold them")  # noqa: B023
        wait_until(lambda: len(vectors_of(settings, topics.version).vectors) == CONTENTS + 2, "all is learned")  # noqa: B023
    return other


def test_nothing_holds_what_is_forgotten(settings: Settings, known: Settings, hashes: set[bytes]) -> None:
    """In no version; all other vectors are there, as they were. A post with such a content is computed again."""
    versions = [version_of(settings), version_of(known)]
    before = {version: vectors_of(settings, version).vectors for version in versions}
    done = forget(settings, hashes, threading.Event())
    assert [(each.version, each.removed, each.again) for each in done or ()] == [(one, 2, 0) for one in versions]
    for version in versions:
        topics = Topics.of(settings, version)
        fingerprints = {fingerprints_in(version)(each) for each in hashes}
        assert fingerprints <= before[version].keys()
        assert not in_records(settings, version, fingerprints)
        left = {each: vector for each, vector in before[version].items() if each not in fingerprints}
        assert vectors_of(settings, version).vectors == left
        assert count_hits(settings, topics, hashes) == 0
        files = [path for path in settings.data_dir.rglob("*") if path.is_file()]
        assert files
        wait_until(lambda: not any(holds(files, before[version][each]) for each in fingerprints), "no file holds them")  # noqa: B023
    with Client(settings) as client:
        client.publish([("again", SECRETS[0]), ("known", "text 7")])
    wait_until(lambda: origin(settings, versions[0], "again") == COMPUTED, "it is computed again")
    wait_until(lambda: origin(settings, versions[0], "known") not in (None, COMPUTED), "the other is not")


def holds(files: list[Path], vector: bytes) -> bool:
    """Whether a file of a table does."""
    return any(vector in path.read_bytes() for path in files if path.exists())


def test_a_table_that_is_made_anew_learns_nothing_of_it(
    settings: Settings, known: Settings, hashes: set[bytes], pipeline: Pipeline
) -> None:
    """A restart from no table at all finds it in no record."""
    assert forget(settings, hashes, threading.Event())
    pid = pipeline.pids["dedup"]
    for path in (settings.data_dir / "tables").rglob("CURRENT"):
        path.unlink()  # as if the disk had failed
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: pipeline.pids.get("dedup") not in (None, pid), "dedup is started again")
    topics = Topics.of(settings, version_of(settings))
    others = hashes_of(settings, [Post("", f"text {number}") for number in range(CONTENTS)])
    wait_until(lambda: count_hits(settings, topics, others) == CONTENTS, "the table is whole")
    assert count_hits(settings, topics, hashes) == 0


def test_who_is_killed_forgets_it_the_next_time(
    settings: Settings, known: Settings, hashes: set[bytes], tmp_path: Path
) -> None:
    """Killed between what is written anew and what is deleted: the same command, with a fingerprint for a text."""
    version = version_of(settings)
    (tmp_path / "secrets.txt").write_text("\n".join(SECRETS))
    (tmp_path / "points").mkdir()
    (tmp_path / "points" / "forget.rewritten").write_text("kill")
    command = [sys.executable, "-P", "-m", "manyray", "forget", settings.ray, str(tmp_path / "secrets.txt")]
    environment = {**os.environ, failpoints.VARIABLE: str(tmp_path / "points")}
    struck = subprocess.run([*command, *flags(settings)], env=environment, capture_output=True, check=False)
    assert struck.returncode == -signal.SIGKILL, struck.stderr
    fingerprints = {fingerprints_in(version)(each) for each in hashes}
    done = subprocess.run([*command, *flags(settings)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"{settings.ray}@{version}: 2 contents forgotten" in done.stdout
    assert "proved: the tables hold none" in done.stdout
    assert SECRETS[0] not in done.stdout + done.stderr
    assert not in_records(settings, version, fingerprints)
    assert len(vectors_of(settings, version).vectors) == CONTENTS
    assert {hash_in(version, each.hex()) for each in fingerprints} == hashes


def test_what_was_forgotten_before_is_told_still(settings: Settings, known: Settings, hashes: set[bytes]) -> None:
    """Records that tell of it are deleted with others; a table that was away since before learns it from the copy."""
    version = version_of(settings)
    topics = Topics.of(settings, version)
    assert forget(settings, hashes, threading.Event())
    later = hashes_of(settings, [Post("", f"later {number}") for number in range(40)])  # in each partition
    with Client(settings) as client:
        client.publish([(f"later{number}", f"later {number}") for number in range(40)])
    wait_until(lambda: len(vectors_of(settings, version).vectors) == CONTENTS + 40, "they are learned")
    begins = begins_of(settings, topics)
    assert forget(settings, later, threading.Event())
    assert all(after > before for before, after in zip(begins, begins_of(settings, topics), strict=True))
    told = vectors_of(settings, version).forgotten
    assert {fingerprints_in(version)(each) for each in hashes} <= told


def begins_of(settings: Settings, topics: Topics) -> list[int]:
    """The first offset of each partition of `vectors`."""
    return [scan(settings, topics, partition, set()).low for partition in range(settings.partitions)]


def test_what_cannot_be_forgotten_is_refused(settings: Settings, topics: Topics, tmp_path: Path) -> None:
    """With the remedy: nothing is named, no fingerprint, no version, or nobody who serves."""
    name, texts = settings.ray, tmp_path / "texts.txt"
    texts.write_text("a text")
    at = f"{name}@{topics.version}"
    for ray, file, fingerprints, said in (
        (name, None, [], "nothing to forget: name a file of posts with the contents, or a --fingerprint"),
        (name, None, ["00"], f"fingerprints are of one version: name it, as {at}"),
        (at, None, ["00"], "--fingerprint 00 is none: it has 32 hexadecimal digits"),
        (name, str(texts), [], f"no dedup serves {at} now: start the roles"),
        ("another", str(texts), [], "and not another: set ray"),
    ):
        with pytest.raises(Fatal) as raised:
            forget_contents(settings, ray, file, fingerprints, threading.Event(), layout=None, text_field="text")
        assert said in str(raised.value)


def test_posts_that_come_meanwhile_are_told(settings: Settings, known: Settings, hashes: set[bytes]) -> None:
    """A content that is published while it is forgotten is computed again, and the rest is proved all the same."""

    def publish(step: str) -> None:
        if "anew" in step:
            with Client(settings) as client:
                client.publish([("again", SECRETS[0])])
            wait_until(lambda: origin(settings, version_of(settings), "again") == COMPUTED, "it is computed again")

    done = forget(settings, hashes, threading.Event(), publish)
    assert done
    assert done[0].again == 1


def test_two_who_forget_at_one_moment_lose_nothing(settings: Settings, known: Settings, hashes: set[bytes]) -> None:
    """The second begins where the first is about to write anew, and is done before it: all else is there."""
    version = version_of(settings)
    before = vectors_of(settings, version).vectors
    others: list[object] = []

    def begin_another(step: str) -> None:
        if "anew" in step and not others:
            others.append(0)
            others.append(forget(settings, hashes, threading.Event()))

    with suppress(Fatal):  # it is fenced where it has something left to write
        forget(settings, hashes, threading.Event(), begin_another)
    assert others[1]
    fingerprints = {fingerprints_in(version)(each) for each in hashes}
    assert not in_records(settings, version, fingerprints)
    left = {each: vector for each, vector in before.items() if each not in fingerprints}
    assert vectors_of(settings, version).vectors == left
