"""What is told of runs: a line each for people, and docs/reliability.md, a row for each fault with its last figures."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

from bench.machine import describe
from faults.run import Verdict

_HEAD = "| row | fault | runs | posts | lost | doubled | rejected | recomputed | silent, s | commit |"
_RULE = "|---|---|---|---|---|---|---|---|---|---|"
_MACHINE = "Machine: "


def line(verdict: Verdict) -> str:
    """A verdict for people."""
    counts = (
        f"{verdict.posts:>9,} posts  lost {verdict.lost}  doubled {verdict.doubled}  rejected {verdict.rejected:,}  "
        f"recomputed {verdict.recomputed:,}  silent {verdict.silent_s:.1f} s  ({verdict.seconds:.0f} s)"
    )
    told = "".join(f"\n      {text}" for text in (*verdict.problems, *verdict.notes))
    return f"{'FAIL' if verdict.problems else 'ok  '} {verdict.fault:<34} seed {verdict.seed:<3}{counts}{told}"


def commit() -> str:
    """That of what is run; to be asked before, as it may change meanwhile. It says so if files differ from it."""
    head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], check=True, capture_output=True, text=True).stdout
    differs = subprocess.run(["git", "diff", "--quiet", "HEAD", "--", ":!docs"], check=False).returncode
    return f"{head.strip()}{'-dirty' if differs else ''}"


def write(path: Path, verdicts: Sequence[Verdict], commit: str) -> None:
    """Put the verdicts of one or more faults into the table; rows of other faults, and all other words, stay."""
    lines = path.read_text(encoding="utf-8").splitlines()
    start = lines.index(_HEAD)
    end = next((at for at in range(start, len(lines)) if not lines[at].startswith("|")), len(lines))
    rows = {_name(row): row for row in lines[start + 2 : end]}
    for name in dict.fromkeys(verdict.fault for verdict in verdicts):
        rows[name] = _row([verdict for verdict in verdicts if verdict.fault == name], commit)
    table = sorted(rows.values(), key=lambda row: (int(row.split("|")[1]), _name(row)))
    words = [f"{_MACHINE}{describe()}." if line.startswith(_MACHINE) else line for line in lines[:start]]
    path.write_text("\n".join([*words, _HEAD, _RULE, *table, *lines[end:]]) + "\n", encoding="utf-8")


def _name(row: str) -> str:
    return row.split("|")[2].strip()


def _row(verdicts: Sequence[Verdict], commit: str) -> str:
    """The row of one fault: sums, and each run's silence."""
    failed = sum(bool(verdict.problems) for verdict in verdicts)
    cells = [
        str(verdicts[0].row),
        verdicts[0].fault,
        f"{len(verdicts)}, {failed} FAILED" if failed else f"{len(verdicts)}",
        f"{sum(verdict.posts for verdict in verdicts):,}",
        f"{sum(verdict.lost for verdict in verdicts):,}",
        f"{sum(verdict.doubled for verdict in verdicts):,}",
        f"{sum(verdict.rejected for verdict in verdicts):,}",
        f"{sum(verdict.recomputed for verdict in verdicts):,}",
        ", ".join(f"{verdict.silent_s:.1f}" for verdict in verdicts),
        commit,
    ]
    return f"| {' | '.join(cells)} |"
