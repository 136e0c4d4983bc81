"""Failpoints: off unless asked for, and each armed file strikes once."""

import os
import signal
import subprocess
import sys

import pytest

from schemas.errors import Retry
from streams import failpoints
from streams.handover import environment_for
from streams.settings import load_settings

PROGRAM = "from streams.failpoints import reach; reach('a.point'); print('passed'); reach('a.point'); print('twice')"


def run(**environment):
    """What a process says that passes one point twice, and how it ends."""
    environment = {**os.environ, **environment}
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, check=False, env=environment, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout.split()


def test_nothing_happens_where_no_folder_is_named(tmp_path):
    """A file that would kill is not even looked for."""
    (tmp_path / "a.point").write_text("kill")
    assert run() == (0, ["passed", "twice"])
    assert (tmp_path / "a.point").exists()


def test_nothing_happens_at_a_point_that_is_not_armed(tmp_path):
    """Other points of the folder strike nobody else."""
    (tmp_path / "another.point").write_text("kill")
    assert run(**{failpoints.VARIABLE: str(tmp_path)}) == (0, ["passed", "twice"])


def test_kill_ends_the_process_there_and_the_next_one_passes(tmp_path):
    """As kill -9: nothing is said after it. The file is gone with it, so whoever comes next goes on."""
    (tmp_path / "a.point").write_text("kill")
    assert run(**{failpoints.VARIABLE: str(tmp_path)}) == (-signal.SIGKILL, [])
    assert run(**{failpoints.VARIABLE: str(tmp_path)}) == (0, ["passed", "twice"])


def test_raise_and_crash_strike_once(tmp_path):
    """The one is an error to be tried again, the other one that nobody expects."""
    reach = failpoints.reacher(str(tmp_path))
    for action, error in (("raise", Retry), ("crash", RuntimeError)):
        (tmp_path / "a.point").write_text(action)
        with pytest.raises(error, match=r"a\.point"):
            reach("a.point")
        reach("a.point")


def test_actions_come_one_after_another(tmp_path):
    """So a process can be made to wait before it ends."""
    (tmp_path / "a.point").write_text("hang 0.01, raise, kill")
    with pytest.raises(Retry):
        failpoints.reacher(str(tmp_path))("a.point")


def test_stop_stops_the_process_until_it_may_go_on(tmp_path):
    """As SIGSTOP does."""
    (tmp_path / "a.point").write_text("stop")
    environment = {**os.environ, failpoints.VARIABLE: str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", PROGRAM], env=environment, stdout=subprocess.PIPE) as process:
        assert os.WIFSTOPPED(os.waitpid(process.pid, os.WUNTRACED)[1])
        process.send_signal(signal.SIGCONT)
        assert process.communicate(timeout=60)[0].split() == [b"passed", b"twice"]


def test_roles_under_up_inherit_the_folder(monkeypatch):
    """It is no setting, which are handed over in another way."""
    monkeypatch.setenv(failpoints.VARIABLE, "somewhere")
    assert environment_for(load_settings(), "dedup")[failpoints.VARIABLE] == "somewhere"
