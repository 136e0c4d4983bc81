"""The command line, as its users run it: what goes wrong is one line with the remedy, and an exit code."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import tomllib
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from manyray.doctor import MODULES
from schemas.errors import Retry
from streams import clients
from streams.broker import DataDirLock
from streams.control import create_ray
from streams.settings import Settings
from streams.version import version_of
from tests.test_client import embedding, write
from tests.waiting import wait_until

ROOT = Path(__file__).resolve().parents[1]


def manyray(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command in an empty environment, as far as Manyray is concerned."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("MANYRAY_")}
    return subprocess.run(
        [sys.executable, "-P", "-m", "manyray", *arguments],
        cwd=cwd,
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def launch(*arguments: str, cwd: Path, **streams: Any) -> subprocess.Popen[str]:
    """Start the command; `streams` are those of Popen that are to be pipes."""
    return subprocess.Popen([sys.executable, "-P", "-m", "manyray", *arguments], cwd=cwd, text=True, **streams)


def told(done: subprocess.CompletedProcess[str]) -> str:
    """The one line on stderr, which has to be the only one."""
    assert re.fullmatch(r"manyray: [^\n]+\n", done.stderr), done.stderr
    return done.stderr


def flags(settings: Settings) -> list[str]:
    """The flags that make a process's settings those of the test."""
    return [
        f"--bootstrap-servers={settings.bootstrap_servers}",
        f"--data-dir={settings.data_dir}",
        f"--model={settings.model}",
        f"--set=ray={settings.ray}",
        f"--set=posts_topics={settings.posts_topics[0]}",
    ]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["ingest", "--set", "partitons=4"], "unknown setting partitons in the flags: did you mean partitions?"),
        (["ingest", "--set", "partitions=many"], "setting partitions = 'many'"),
        (["ingest", "--set", "partitions"], "KEY=VALUE"),
        (["ingest", "--set", "config=x"], "config is a flag and not a setting: --config FILE"),
        (["ingest", "--set", "kafka=x"], "--set kafka.sasl.username=me"),
        (["ingest", "--model", "hash", "--set", "model=minilm"], "given twice"),
        (["ingest", "--log-level", "loud"], "log_level"),
        (["ingest", "--config", "absent.toml"], "absent.toml cannot be read"),
        (["ingest", "--sett", "x=1"], "No such option: --sett"),
        (["injest"], "No such command 'injest'"),
        (["publish"], "Missing argument"),
        (["tail", "textray", "--from", "yesterday"], "--from"),
        (["replay", "old", "--rate", "fast"], "fast is none: posts a second are wanted, as 500 or 500/s"),
        (["jobs", "rate", "again", "-1/s"], "No such option: -1"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(arguments: list[str], says: str, tmp_path: Path):
    """Flags and settings that cannot be meant are refused before anything is done."""
    done = manyray(*arguments, cwd=tmp_path)
    assert says in told(done)
    assert done.returncode == 2


def test_flags_win_over_the_environment_and_that_over_the_file(tmp_path: Path):
    """Precedence, from weakest: manyray.toml, environment, flags; seen in the error that names the model."""
    (tmp_path / "manyray.toml").write_text('model = "m-file"\n')
    command = ["up"]
    assert "model=m-file is unknown" in told(manyray(*command, cwd=tmp_path))
    assert "model=m-env is unknown" in told(manyray(*command, cwd=tmp_path, MANYRAY_MODEL="m-env"))
    flag = manyray(*command, "--model", "m-flag", cwd=tmp_path, MANYRAY_MODEL="m-env")
    assert "model=m-flag is unknown" in told(flag)


def test_a_secret_is_never_shown(tmp_path: Path):
    """Neither the error for a setting nor that for a broker repeats what may be a password."""
    for arguments in (
        ["ingest", "--set", "kafka.sasl.password=hunter2", "--set", "partitions=x"],
        ["ingest", "--set", "kafka.sasl.password=hunter2", "--set", "hunter2"],
        ["ingest", "--set", "salt=hunter2", "--log-level", "debug"],
    ):
        done = manyray(*arguments, cwd=tmp_path)
        assert done.returncode != 0
        assert "hunter2" not in done.stderr + done.stdout


@pytest.mark.parametrize(
    "command",
    [
        ["ingest"],
        ["dedup"],
        ["encode"],
        ["topics", "list"],
        ["tail", "textray"],
        ["rays", "list"],
        ["forget", "textray", "-"],
        ["delete", "a"],
        ["replay", "old", "--rate", "500/s"],
    ],
)
def test_without_a_broker_the_remedy_is_named(command: list[str], tmp_path: Path):
    """Where no embedded broker runs, the line names both ways to have one."""
    done = manyray(*command, "--model", "hash", cwd=tmp_path)
    assert re.search("no broker runs on data directory .*`manyray up`.*--bootstrap-servers", told(done))
    assert done.returncode == 1


def test_a_broker_that_does_not_answer_is_named(tmp_path: Path):
    """An address at which nobody listens is in the line."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{held.getsockname()[1]}"
        done = manyray("ingest", "--model", "hash", "--bootstrap-servers", address, cwd=tmp_path)
    assert f"no Kafka broker answers at {address}" in told(done)
    assert done.returncode == 1


@pytest.mark.broker
def test_a_missing_topic_is_named(settings: Settings, tmp_path: Path):
    """A role refuses to start, and so does a client; `topics check` tells all of it."""
    for command in (["ingest"], ["dedup"], ["encode"], ["publish", "-"]):
        done = manyray(*command, *flags(settings), cwd=tmp_path)
        assert re.search(r"topic posts\w+ is missing: run `manyray topics create`", told(done)), command
        assert done.returncode == 1
    done = manyray("topics", "check", *flags(settings), cwd=tmp_path)
    assert done.returncode == 1
    assert f"topic lookups.{settings.ray} is missing" in done.stdout


@pytest.mark.broker
def test_a_wrong_partition_count_is_named(settings: Settings, tmp_path: Path):
    """The line names the topic, both counts, and the setting that would fit."""
    assert manyray("topics", "create", *flags(settings), cwd=tmp_path).returncode == 0
    assert manyray("topics", "check", *flags(settings), cwd=tmp_path).returncode == 0
    five = [*flags(settings), "--set=partitions=5"]
    done = manyray("ingest", *five, cwd=tmp_path)
    assert re.search(r"topic \S+ has 4 partitions and the setting partitions is 5: set partitions = 4", told(done))
    assert done.returncode == 1
    listed = manyray("topics", "list", *five, cwd=tmp_path)
    assert re.search(rf"^lookups\.{settings.ray} .* has 4 partitions", listed.stdout, re.MULTILINE)


@pytest.mark.broker
def test_topics_are_created_once_and_listed(settings: Settings, tmp_path: Path):
    """`create` is safe to repeat, and `list` shows every topic whole also where it is piped."""
    first = manyray("topics", "create", *flags(settings), cwd=tmp_path)
    assert f"created embeddings.{settings.ray}.{version_of(settings)}" in first.stdout
    again = manyray("topics", "create", *flags(settings), cwd=tmp_path)
    assert "nothing to do" in again.stdout
    listed = manyray("topics", "list", *flags(settings), cwd=tmp_path)
    assert listed.returncode == 0, listed.stderr
    for name in first.stdout.replace("created ", "").split():
        count = 1 if name.startswith(("control.", "replays.")) else 4
        # The ray's first version, and where its dedup begins: in each partition with a transaction's end.
        records = 2 * count if name.startswith(("control.", "checkpoints.")) else 0
        assert re.search(rf"^{re.escape(name)}\s.*\s{count}\s+{records}\s+ok", listed.stdout, re.MULTILINE), name


@pytest.mark.broker
def test_a_metrics_port_in_use_is_named(settings: Settings, tmp_path: Path):
    """A port that was asked for is taken or refused, never changed."""
    create_ray(settings)
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        port = held.getsockname()[1]
        for command in ("ingest", "up"):
            done = manyray(command, *flags(settings), f"--set=metrics_port={port}", cwd=tmp_path)
            assert f"port {port} for metrics is in use: set metrics_port" in done.stderr.splitlines()[-1]
            assert done.returncode == 1


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/none"])
def test_a_data_directory_that_cannot_be_is_named(place: str, tmp_path: Path):
    """A file in its place, or a folder that nobody may make."""
    (tmp_path / "file").touch()
    done = manyray("up", "--model", "hash", "--data-dir", place, cwd=tmp_path)
    assert re.search(rf"data directory {place} cannot be written .*--data-dir", told(done))
    assert done.returncode == 1


def test_a_data_directory_in_use_is_refused(tmp_path: Path):
    """A second `up` names the process that holds the data directory."""
    with DataDirLock(tmp_path / "data"):
        done = manyray("up", "--model", "hash", "--data-dir", str(tmp_path / "data"), cwd=tmp_path)
    assert f"in use by process {os.getpid()}" in told(done)
    assert done.returncode == 1


def tailing(settings: Settings, cwd: Path) -> subprocess.Popen[str]:
    """`manyray tail`, from the earliest embedding on."""
    return launch(
        *("tail", settings.ray, *flags(settings), "--from=earliest"),
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # A test run in the background ignores Ctrl-C, and its children would inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


@pytest.mark.broker
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_command_without_noise(number: signal.Signals, code: int, settings: Settings, tmp_path: Path):
    """Ctrl-C and SIGTERM are no errors: no traceback, no line."""
    create_ray(settings)
    write(settings, embedding(0))
    with tailing(settings, tmp_path) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("p0\t")  # so it is at work, and waits for more
        process.send_signal(number)
        try:
            _, said = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, said) == (code, "")


@pytest.mark.broker
def test_a_publish_that_is_ended_is_not_done(settings: Settings, tmp_path: Path):
    """SIGTERM in the middle of a file must not look like a file that was published."""
    create_ray(settings)
    with launch(
        "publish", "-", *flags(settings), cwd=tmp_path, stdin=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        for number in range(2_000):  # more than is sent without a look at what came back
            process.stdin.write(f"text {number}\n")
        process.stdin.flush()
        await_records(settings, 1)
        process.terminate()
        assert process.wait(60) == 143


def await_records(settings: Settings, count: int) -> None:
    """Wait until the input topic holds so many posts."""
    with closing(clients.reader(settings)) as reader:

        def hold() -> bool:
            with suppress(Retry):  # a topic that was made just now has no leader yet
                return sum(clients.watermarks(reader, settings.posts_topics[0], one)[1] for one in range(4)) >= count
            return False

        wait_until(hold, f"{count} posts are there")


@pytest.mark.broker
def test_a_group_of_tail_misses_nothing(settings: Settings, tmp_path: Path):
    """With a limit no more is committed than was printed: one run goes on where the last one ended. As JSON too."""
    create_ray(settings)
    write(settings, *(embedding(number) for number in range(5)))
    common = [settings.ray, *flags(settings), "--group=mine", "--from=earliest"]
    seen: list[str] = []
    for limit in (2, 1):
        done = manyray("tail", *common, f"--limit={limit}", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        seen += [line.split("\t")[0] for line in done.stdout.splitlines()]
    done = manyray("tail", *common, "--limit=2", "--json", cwd=tmp_path)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert seen + [row["id"] for row in rows] == ["p0", "p1", "p2", "p3", "p4"]
    assert rows[0]["vector"] == [3.0] * 4
    assert rows[0]["origin"] == "cached"


@pytest.mark.broker
def test_a_reader_that_has_enough_ends_tail(settings: Settings, tmp_path: Path):
    """`tail | head` is no error: the exit code is 0 and nothing is said."""
    create_ray(settings)
    write(settings, *(embedding(number) for number in range(2)))
    with tailing(settings, tmp_path) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("p0\t")
        process.stdout.close()
        write(settings, embedding(2), embedding(3))
        assert process.stderr is not None
        said = process.stderr.read()
        assert (process.wait(60), said) == (0, "")


def test_help_imports_no_heavy_library(tmp_path: Path):
    """`--help` is quick because it imports neither Kafka, Faust, torch nor numpy."""
    code = "import sys, manyray.cli; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-P", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert not {"confluent_kafka", "faust", "torch", "numpy", "transformers"} & set(done.stdout.split())


def test_every_command_has_the_common_flags(tmp_path: Path):
    """Each command takes the same flags for settings, and says what it is for."""
    commands = "up ingest dedup encode publish tail doctor demo".split()
    for command in [*([one] for one in commands), *(["topics", one] for one in ("create", "list", "check"))]:
        done = manyray(*command, "--help", cwd=tmp_path, COLUMNS="200")
        assert done.returncode == 0
        for flag in ("--config", "--bootstrap-servers", "--data-dir", "--model", "--log-level", "--set"):
            assert flag in done.stdout, (command, flag)


def test_doctor_looks_at_every_dependency():
    """What pyproject.toml depends on is what the doctor imports."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {re.split(r"[\[>=<]", one)[0] for one in project["dependencies"]} == set(MODULES)


def test_doctor_names_problem_and_remedy(tmp_path: Path):
    """A sound installation exits with 0, a model that cannot be with 1 and its line."""
    sound = manyray("doctor", "--model", "hash", cwd=tmp_path)
    assert sound.returncode == 0, sound.stdout
    assert re.findall("^problem", sound.stdout, re.MULTILINE) == []
    wrong = manyray("doctor", "--model", "minlm", cwd=tmp_path)
    assert wrong.returncode == 1
    assert re.search("^problem model=minlm is unknown: .*did you mean minilm", wrong.stdout, re.MULTILINE)


def test_a_role_that_hangs_in_a_client_ends_all_the_same(tmp_path: Path):
    """SIGTERM is heard though the main thread waits in C, where no handler of Python's runs."""
    code = """
        import ctypes
        import manyray.cli as cli

        def hang(settings, stop):
            libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
            print("hanging", flush=True)
            while True:  # a mutex that is locked twice waits for ever, and no signal interrupts it
                libc.pthread_mutex_lock(mutex)

        cli.ROLE_STOP_S = 0.1
        cli._run_role(hang, None)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as role:
        assert role.stdout is not None
        assert role.stdout.readline() == "hanging\n"
        role.terminate()
        try:
            _, said = role.communicate(timeout=60)
        finally:
            role.kill()
    assert (role.returncode, said[:33]) == (1, "manyray: not ended in order withi")
