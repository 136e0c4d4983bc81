"""What a user can type, set or watch is documented."""

import re
from dataclasses import fields
from pathlib import Path

import pytest
import typer

from encoders.model_spec import ModelSpec
from manyray.cli import app
from streams.gpu import GpuCollector
from streams.metrics import Metrics
from streams.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
DOCS = "\n".join(path.read_text() for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))])


def named(name: str) -> bool:
    """Whether the docs hold the name as a word of its own, not as a part of another one."""
    return re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", DOCS) is not None


def commands(command, path: tuple[str, ...] = ()) -> list[str]:
    """Every command of the command line, as it is typed."""
    inner = getattr(command, "commands", {})
    own = [] if inner else [" ".join(path)]
    return own + [found for name, one in inner.items() for found in commands(one, (*path, name))]


METRICS = [
    family.name + ("_total" if family.type == "counter" else "")
    for family in [*Metrics.create().registry.collect(), *GpuCollector.describe()]
]
COMMANDS = commands(typer.main.get_command(app), ("manyray",))


def test_there_is_something_to_document():
    """The lists below are those of the program."""
    assert {"manyray up", "manyray ingest", "manyray topics create"} <= set(COMMANDS)
    assert "manyray_dedup_posts_total" in METRICS


@pytest.mark.parametrize("setting", sorted(Settings.model_fields))
def test_every_setting_is_documented(setting):
    """By its name in README.md or docs/."""
    assert named(setting)


@pytest.mark.parametrize("choice", [field.name for field in fields(ModelSpec)])
def test_every_choice_of_a_spec_is_documented(choice):
    """In the table of docs/encoders.md."""
    assert f"\n| `{choice}` |" in (ROOT / "docs" / "encoders.md").read_text()


@pytest.mark.parametrize("metric", METRICS)
def test_every_metric_is_documented(metric):
    """By the name that Prometheus shows."""
    assert named(metric)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_documented(command):
    """As it is typed."""
    assert named(command)


def test_no_documented_metric_is_gone():
    """A name in the docs is one that there is, or a series of a histogram."""
    series = {f"{name}{end}" for name in METRICS for end in ("", "_bucket", "_sum", "_count")}
    written = set(re.findall(r"\bmanyray_[a-z_]*[a-z]\b", DOCS))
    roles = ("manyray_ingest", "manyray_dedup", "manyray_encode", "manyray_gpu")
    assert {name for name in written if name.startswith(roles)} <= series


def test_every_setting_of_the_examples_exists():
    """A `MANYRAY_...` variable in the docs is a setting."""
    written = set(re.findall(r"\bMANYRAY_([A-Z][A-Z_]*[A-Z])\b", DOCS))
    known = {name.upper() for name in Settings.model_fields} | {"CONFIG"}
    assert {name for name in written if not name.startswith("KAFKA__")} <= known
