"""What the tests share: one embedded broker a session, settings of a ray of one's own, real posts."""

import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path

import hypothesis
import pytest
from confluent_kafka.admin import NewTopic

from faults.surroundings import disk
from schemas.errors import Retry
from streams import clients, clock
from streams.attempts import with_retries
from streams.broker import Broker
from streams.control import create_ray
from streams.settings import Settings, load_settings
from streams.topics import Topics, create_topics, list_partitions, plan_topics
from streams.up import Pipeline
from streams.version import version_of
from tests.waiting import WAIT_S, wait_until

hypothesis.settings.register_profile("untimed", deadline=None)  # an example on a busy machine takes what it takes
hypothesis.settings.load_profile("untimed")

TWEETEVAL = Path(__file__).resolve().parents[2] / "shared" / "data" / "tweeteval"


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """Real Apache Kafka, one broker, for the whole session: tests keep apart by the names of their topics."""
    with Broker.start(tmp_path_factory.mktemp("broker"), port=0) as running:
        # All tests share `rejected`: one of fewer partitions, if it came first, would make it with as few.
        others = load_settings(bootstrap_servers=running.bootstrap_servers, ray="others", posts_topics="others")
        create_topics(others, "any")
        yield running


@pytest.fixture
def settings(broker: Broker, tmp_path: Path) -> Settings:
    """Settings of a ray of this test alone, with the hash encoder."""
    name = clock.random_id()
    return load_settings(
        bootstrap_servers=broker.bootstrap_servers,
        data_dir=tmp_path / "data",
        ray=f"ray{name}",
        posts_topics=(f"posts{name}",),
        model="hash",
    )


@pytest.fixture
def topic(settings: Settings) -> str:
    """An empty topic of this test alone, with two partitions."""
    name = f"topic{clock.random_id()}"
    admin = clients.admin_client(settings)
    for future in admin.create_topics([NewTopic(name, 2, 1)]).values():
        future.result(30)
    # The controller has made it; brokers tell clients a moment later, and lead its partitions another one later.
    wait_until(lambda: list_partitions(settings).get(name) == 2, "the topic is listed")
    with closing(clients.reader(settings)) as reader:

        def is_led() -> bool:
            try:
                return [clients.watermarks(reader, name, partition) for partition in range(2)] == [(0, 0)] * 2
            except Retry:
                return False

        wait_until(is_led, "its partitions have leaders")
    return name


@pytest.fixture
def topics(settings: Settings) -> Topics:
    """Those of the settings, which exist, and whose partitions are led: brokers take a moment after they show them."""
    version = version_of(settings)
    create_ray(settings)
    with closing(clients.reader(settings)) as reader:
        for plan in plan_topics(settings, version):
            for partition in range(plan.partitions):
                with_retries(partial(clients.watermarks, reader, plan.name, partition), threading.Event())
    return Topics.of(settings, version)


@pytest.fixture
def pipeline(settings: Settings, topics: Topics) -> Iterator[Pipeline]:
    """One that is ready, and whose processes have not failed when the test ends."""
    assert topics
    with Pipeline(settings) as running:
        running.wait_ready(WAIT_S)
        yield running
        running.raise_failure()


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a self-signed certificate of 127.0.0.1, `cert.pem`, and its key, `key.pem`, made by openssl."""
    folder = tmp_path_factory.mktemp("certificate")
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -keyout key.pem -out cert.pem -subj /CN=127.0.0.1"
    if shutil.which("openssl") is None:
        pytest.skip("TLS is not tested: there is no openssl to make a certificate with")
    name = ["-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*command.split(), *name], check=True, capture_output=True, cwd=folder)
    return folder


@pytest.fixture(scope="session")
def tweets() -> list[str]:
    """127,070 real tweets, one a line; 8 of the lines are empty."""
    if not TWEETEVAL.is_dir():
        pytest.skip(f"real posts are not here: put TweetEval under {TWEETEVAL}")
    files = sorted(TWEETEVAL.glob("*/*_text.txt"))
    # Tweets hold line separators other than \n, which str.splitlines would split at.
    return [line for file in files for line in file.read_bytes().decode().split("\n")[:-1]]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk of 4 MiB."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("a full disk is tested by root only: it takes mounting a small tmpfs")
    with ExitStack() as held:
        try:
            held.enter_context(disk(folder := tmp_path / "disk", mib=4))
        except subprocess.CalledProcessError as error:
            pytest.skip(f"a full disk is not tested: this machine lets nobody mount a tmpfs ({error.stderr.strip()})")
        yield folder
