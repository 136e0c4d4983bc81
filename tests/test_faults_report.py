"""Laws of the table in docs/reliability.md."""

from dataclasses import replace
from pathlib import Path

from faults.report import line, write
from faults.run import Verdict

ROOT = Path(__file__).resolve().parents[1]
GOOD = Verdict("a-fault", 2, 1, 1000, 10, 0, 0, 3, 5.25, 60.0)


def test_a_row_has_the_last_runs_of_its_fault(tmp_path: Path) -> None:
    """Sums over the runs, each one's silence, and what failed; another fault's row and all words stay."""
    path = tmp_path / "reliability.md"
    text = (ROOT / "docs" / "reliability.md").read_text()
    rule = "|---|---|---|---|---|---|---|---|---|---|"
    path.write_text(text[: text.index(rule)] + rule + "\n\nwords after\n")
    write(path, [replace(GOOD, fault="other", row=10)], "abc")
    write(path, [GOOD, replace(GOOD, seed=2, lost=1, problems=["1 lost"])], "abc")
    write(path, [replace(GOOD, seed=3), replace(GOOD, seed=4, lost=1, silent_s=7.0, problems=["1 lost"])], "def-dirty")
    lines = path.read_text().splitlines()
    head = next(at for at, one in enumerate(lines) if one.startswith("| row | fault "))
    rows = [one for one in lines[head + 1 :] if one.startswith("| ")]
    assert rows == [
        "| 2 | a-fault | 2, 1 FAILED | 2,000 | 1 | 0 | 20 | 6 | 5.2, 7.0 | def-dirty |",
        "| 10 | other | 1 | 1,000 | 0 | 0 | 10 | 3 | 5.2 | abc |",
    ]
    assert lines[-2:] == ["", "words after"]
    assert any(one.startswith("Machine: ") and "cores" in one for one in lines)


def test_what_failed_is_told_below_its_line() -> None:
    """A line begins with the verdict; problems and notes follow."""
    told = line(replace(GOOD, lost=1, problems=["1 lost"], notes=["a figure"])).splitlines()
    assert told[0].startswith("FAIL a-fault")
    assert [one.strip() for one in told[1:]] == ["1 lost", "a figure"]
    assert line(GOOD).startswith("ok ")
