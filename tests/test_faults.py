"""Faults on real brokers: a part of `python -m faults`, and the proof that its oracle sees what it is there to see."""

import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from faults.rows import FAULTS
from faults.run import run_fault

pytestmark = [pytest.mark.broker, pytest.mark.timeout(600)]

POSTS = 5_000
SOME = (
    "kill-dedup-flushed",
    "kill-ingest-flushed",
    "zombie-dedup-began",
    "delayed-add-partitions-to-txn",
    "bounce-leader-hard",
    "clients-cut-replies",
)
WAIT_S = 20.0
"""A pipeline that is broken on purpose may never bring what is waited for."""
BROKEN = {
    "no-fencing": ("zombie-dedup-began", r"^\d+ doubled$"),
    "read-uncommitted": (
        "kill-ingest-flushed",
        r"^dedup ended \((chunks from .* are missing before number|lookups\..* ends at .*, before the checkpoint's)",
    ),
    "remember-uncommitted": ("retry-encode-before-commit", "without ever being computed"),
}


@pytest.mark.parametrize("name", SOME)
def test_nothing_is_lost_or_doubled(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every accepted post comes out once, every bad one is rejected once, and all that the stages keep agrees."""
    monkeypatch.setattr("faults.brokers.BOUNCES", 1)
    verdict = run_fault(FAULTS[name], seed=1, posts=POSTS)
    assert verdict.problems == []
    assert verdict.posts >= POSTS


def test_at_least_once_loses_nothing() -> None:
    """A dedup that dies between its outputs and its checkpoint does them again."""
    verdict = run_fault(FAULTS["kill-dedup-at-least-once"], seed=1, posts=POSTS)
    assert verdict.problems == []
    assert verdict.doubled > 0


@pytest.mark.parametrize("broken", BROKEN)
def test_a_pipeline_that_is_broken_on_purpose_turns_a_fault_red(broken: str) -> None:
    """Fencing, reading committed records only, and remembering only what is committed: without one of them a named
    fault is told, for what it does: what was aborted is missing afterwards, say, and dedup, given it, stops at that.

    What is broken is harmless where something else fails first, as a transaction that ran out of time: of three runs
    one has to tell.
    """
    name, told = BROKEN[broken]
    said: list[list[str]] = []
    for seed in (1, 2, 3):
        verdict = run_fault(replace(FAULTS[name], launch=broken), seed=seed, posts=POSTS, wait_s=WAIT_S)
        said.append(verdict.problems + verdict.notes)
        if verdict.problems and any(re.search(told, text) for text in said[-1]):
            return
    pytest.fail(f"nothing was told of it: {said}")


def test_the_check_from_outside_uses_nothing_of_ours() -> None:
    """examples/verify.py imports confluent-kafka, the standard library and the published schema."""
    from tests.test_layers import imports

    source = (Path(__file__).parents[1] / "examples" / "verify.py").read_text()
    others = {name for name in imports(source) if name.partition(".")[0] not in sys.stdlib_module_names}
    assert {name for name in others if not name.startswith("confluent_kafka.")} == {
        "schemas.public_pb2.COMPUTED",
        "schemas.public_pb2.Embedding",
        "schemas.public_pb2.Post",
    }
