"""`manyray up` and its supervisor: roles are kept alive, given up with a reason, and never left behind."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from manyray.client import Client
from schemas.errors import Fatal
from streams import restarts
from streams.broker import Broker
from streams.control import create_ray
from streams.metrics import read_metrics
from streams.ports import choose_ports
from streams.settings import Settings, load_settings
from streams.up import ROLES, Pipeline
from tests.test_cli import flags, launch, manyray
from tests.waiting import WAIT_S, wait_until

pytestmark = pytest.mark.broker


def has_failed(pipeline: Pipeline) -> bool:
    """Whether a role was given up."""
    try:
        pipeline.raise_failure()
    except Fatal:
        return True
    return False


def test_up_serves_a_file_and_leaves_nothing(tmp_path: Path):
    """`up` brings its own broker; `publish` and `tail` find it by the data directory; SIGTERM ends all of it with 0."""
    common = ["--model", "hash", "--data-dir", str(tmp_path / "data")]
    with launch("up", *common, cwd=tmp_path, stderr=subprocess.PIPE) as up:
        assert up.stderr is not None
        said: list[str] = []
        for line in up.stderr:
            said.append(line)
            if line.startswith("manyray is up"):
                break
        assert said[-1].startswith("manyray is up"), said
        everyone = psutil.Process(up.pid).children(recursive=True)
        assert len(everyone) == 4
        (tmp_path / "posts.txt").write_text("one\ntwo\none\n")
        done = manyray("publish", "posts.txt", *common, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert re.fullmatch(r"published 3 posts to posts in .*\n", done.stdout)
        assert done.stderr == ""
        tail = manyray("tail", "textray", "--from", "earliest", "--limit", "3", *common, cwd=tmp_path)
        assert tail.returncode == 0, tail.stderr
        lines = [line.split("\t") for line in tail.stdout.splitlines()]
        assert {line[0] for line in lines} == {"posts-1", "posts-2", "posts-3"}
        assert all(re.fullmatch(r"\[([+-]0\.\d{4} ){4}\.\.\. 384 numbers\]", line[1]) for line in lines)
        assert all(re.fullmatch(r"\d+ ms", line[3]) for line in lines)
        up.send_signal(signal.SIGTERM)
        rest = up.stderr.read()
        assert up.wait(60) == 0
    assert "Traceback" not in rest
    assert not [process for process in everyone if process.is_running()]
    assert manyray("tail", "textray", *common, cwd=tmp_path).returncode == 1


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal is Linux's")
def test_the_roles_end_with_a_supervisor_that_is_killed(tmp_path: Path):
    """Even `kill -9` leaves no role and no broker behind."""
    command = ("up", "--model", "hash", "--data-dir", str(tmp_path / "data"))
    with launch(*command, cwd=tmp_path, stderr=subprocess.PIPE) as up:
        assert up.stderr is not None
        assert any(line.startswith("manyray is up") for line in up.stderr)
        everyone = psutil.Process(up.pid).children(recursive=True)
        up.kill()
    assert len(everyone) == 4
    gone, alive = psutil.wait_procs(everyone, timeout=30)
    assert len(gone) == 4
    assert not alive


def test_a_role_that_dies_is_started_again_and_then_given_up(settings: Settings, monkeypatch: pytest.MonkeyPatch):
    """A killed role comes back and works; one that keeps dying is given up, by name, with how it died."""
    create_ray(settings)
    with Pipeline(settings) as pipeline:
        pipeline.wait_ready(WAIT_S)
        first = pipeline.pids["encode"]
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: pipeline.pids["encode"] != first, "encode is started again")
        pipeline.wait_ready(WAIT_S)
        with Client(pipeline.settings) as client:
            assert client.embed(["served again"]).shape == (1, 384)
        monkeypatch.setattr(restarts, "PAUSE_MAX_S", restarts.PAUSE_S)  # ten of them in less than a minute
        for _ in range(restarts.RESTARTS_MAX):
            pid = pipeline.pids["encode"]
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda pid=pid: pipeline.pids["encode"] != pid or has_failed(pipeline), "it dies")
        with pytest.raises(Fatal, match=r"encode died 11 times within 300 s: killed by SIGKILL"):
            pipeline.wait_ready(WAIT_S)


def test_a_role_that_is_stopped_is_killed_and_started_again(settings: Settings, caplog: pytest.LogCaptureFixture):
    """SIGSTOP holds its own watchdog too: `up` sees that it does not answer, says so once, mends and counts it."""
    settings = settings.model_copy(update={"stall_timeout_s": 4.0})
    create_ray(settings)
    with Pipeline(settings) as pipeline:
        pipeline.wait_ready(WAIT_S)
        first = pipeline.pids["encode"]
        os.kill(first, signal.SIGSTOP)
        wait_until(lambda: pipeline.pids["encode"] != first, "encode is started again")
        pipeline.wait_ready(WAIT_S)
        with Client(pipeline.settings) as client:
            assert client.embed(["served again"]).shape == (1, 384)
        urls = pipeline.metrics_urls
        counts = {
            name: [one.value for one in read_metrics(url) if one.name == "manyray_restarts"]
            for name, url in urls.items()
        }
    assert counts == {"ingest": [0], "dedup": [0], "encode": [1]}
    said = "\n".join(record.message for record in caplog.records if record.name == "manyray.up")
    assert re.fullmatch(
        r"encode has not said that it is live for \d s: killing it\n"
        r"encode ended \(killed by SIGKILL\): starting it again in 0.5 s, restart 1",
        said,
    )


def test_roles_outlive_an_outage_of_the_brokers(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    """Who runs waits, and who dies meanwhile is started again and waits too, however long: then posts come out."""
    port = choose_ports([0])[0]
    broker = Broker.start(tmp_path / "broker", port=port)
    try:
        settings = load_settings(bootstrap_servers=broker.bootstrap_servers, data_dir=tmp_path / "data", model="hash")
        create_ray(settings)
        with Pipeline(settings) as pipeline:
            pipeline.wait_ready(WAIT_S)
            broker.stop()
            for role, first in pipeline.pids.items():
                os.kill(first, signal.SIGKILL)
                wait_until(lambda role=role, first=first: pipeline.pids[role] != first, f"{role} is started again")
            said: list[str] = []

            def waiting() -> int:
                said.append(capfd.readouterr().err)
                return sum("no broker answers: waiting for one" in line for line in "".join(said).splitlines())

            wait_until(lambda: waiting() == len(ROLES), "each waits for a broker")
            pipeline.raise_failure()
            broker = Broker.start(tmp_path / "broker", port=port)
            pipeline.wait_ready(WAIT_S)
            with Client(settings) as client:
                assert client.embed(["served again"]).shape == (1, 384)
    finally:
        broker.stop()


def test_a_role_that_cannot_start_is_given_up_with_its_own_words(settings: Settings):
    """What is wrong from the start is told at once, in the role's words, and not tried five times."""
    settings = settings.model_copy(update={"metrics_host": "192.0.2.1"})
    create_ray(settings)
    with (
        Pipeline(settings, roles={"ingest": 1}) as pipeline,
        pytest.raises(Fatal, match=r"^metrics_host = 192\.0\.2\.1 cannot be served"),
    ):
        pipeline.wait_ready(WAIT_S)


def test_secrets_reach_the_roles_and_no_command_line(settings: Settings, tmp_path: Path):
    """Every setting is handed over as it is, and what other users of the machine can see has none of them."""
    from streams.handover import environment_for

    settings = settings.model_copy(
        update={"kafka": {"sasl.password": "hunter2"}, "max_tokens": 7, "salt": type(settings.salt)("pepper")}
    )
    code = (
        "import os; from streams.handover import inherited_settings as get; s = get(); "
        "print(s.model_dump() | {'salt': s.salt.get_secret_value()}, 'hunter2' in str(os.environ), get())"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        env={**environment_for(settings, "dedup"), "MANYRAY_MODEL": "ignored"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    whole = settings.model_dump() | {"salt": "pepper"}
    assert done.stdout == f"{whole} False None\n"


def test_a_command_finds_the_topics_of_its_own_settings(settings: Settings, tmp_path: Path):
    """What `topics create` made is what `up` on the same brokers checks: flags are the same everywhere."""
    assert manyray("topics", "create", *flags(settings), cwd=tmp_path).returncode == 0
    with Pipeline(settings, roles={}) as pipeline:
        assert pipeline.bootstrap_servers == settings.bootstrap_servers


def test_roles_whose_brokers_are_gone_can_be_stopped(tmp_path: Path):
    """SIGTERM ends each in a bounded time, though Kafka's clients would wait for brokers much longer."""
    with Broker.start(tmp_path / "broker", port=0) as broker:
        settings = load_settings(bootstrap_servers=broker.bootstrap_servers, data_dir=tmp_path / "data", model="hash")
        create_ray(settings)
        roles = [launch(role, *flags(settings), cwd=tmp_path, stderr=subprocess.PIPE) for role in ROLES]
        for role in roles:
            assert role.stderr is not None
            assert any("ready: " in line for line in role.stderr)
        with Client(settings) as client:
            client.publish(f"text {number}" for number in range(20_000))
        os.kill(broker.pids[0], signal.SIGKILL)
        for role in roles:
            role.terminate()
        for role in roles:
            role.communicate(timeout=90)
            assert role.returncode in (0, 1)
