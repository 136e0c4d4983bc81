"""Brokers that ask for rights: a role that lacks one ends at once, and says which."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from faults.cluster import Cluster
from faults.guard import Guard
from streams import clock
from streams.settings import Settings, load_settings
from streams.topics import create_topics
from streams.up import ROLES
from streams.version import version_of
from tests.test_cli import flags, manyray

pytestmark = pytest.mark.broker


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One broker that asks for a password, and then for rights."""
    with Cluster.start(tmp_path_factory.mktemp("guarded"), brokers=1, secured=True) as cluster:
        yield cluster


@pytest.fixture
def guard(guarded: Cluster) -> Guard:
    """Of that broker."""
    assert guarded.guard
    return guarded.guard


@pytest.fixture
def settings(guarded: Cluster, guard: Guard, tmp_path: Path) -> Settings:
    """Of the user whose rights are guarded; the topics are there."""
    name = clock.random_id()
    settings = load_settings(
        bootstrap_servers=guarded.bootstrap_servers,
        data_dir=tmp_path / "data",
        ray=f"ray{name}",
        posts_topics=(f"posts{name}",),
        model="hash",
        kafka=guard.kafka,
    )
    create_topics(settings, version_of(settings))
    return settings


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("kind", ["GROUP", "TRANSACTIONAL_ID"])
def test_a_role_without_a_right_ends_and_names_it(
    settings: Settings, guard: Guard, role: str, kind: str, tmp_path: Path
) -> None:
    """It does not wait for a right that may never come: whoever runs it starts it again."""
    given = [f"--set=kafka.{name}={value}" for name, value in settings.kafka.items()]
    guard.revoke(kind)
    try:
        done = manyray(role, *flags(settings), *given, "--set=log_level=error", cwd=tmp_path)
    finally:
        guard.grant(kind)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert re.match("manyray: not (allowed to|let into) .*uthorization.* grant it in the ACLs$", last)
