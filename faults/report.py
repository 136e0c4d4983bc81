"""docs/reliability.md: a row for each fault, with the figures of its last runs; the words around the table stay."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

from bench.machine import describe
from faults.fault import FAULTS
from faults.run import Verdict

_HEAD = "| row | fault | runs | posts | lost | doubled | rejected | recomputed | silent, s | commit |"
_RULE = "|---|---|---|---|---|---|---|---|---|---|"
_MACHINE = "Machine: "


def write(path: Path, verdicts: Sequence[Verdict]) -> None:
    """Put the verdicts of one or more faults into the table; rows of other faults stay as they are."""
    lines = path.read_text(encoding="utf-8").splitlines()
    start = lines.index(_HEAD)
    end = next((at for at in range(start, len(lines)) if not lines[at].startswith("|")), len(lines))
    rows = {row.split("|")[2].strip(): row for row in lines[start + 2 : end]}
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], check=True, capture_output=True, text=True).stdout
    for name in dict.fromkeys(verdict.fault for verdict in verdicts):
        rows[name] = _row(name, [verdict for verdict in verdicts if verdict.fault == name], commit.strip())
    order = {name: at for at, name in enumerate(sorted(FAULTS, key=lambda name: (FAULTS[name].row, name)))}
    table = [rows[name] for name in sorted(rows, key=lambda name: order.get(name, len(order)))]
    words = [f"{_MACHINE}{describe()}." if line.startswith(_MACHINE) else line for line in lines[:start]]
    path.write_text("\n".join([*words, _HEAD, _RULE, *table, *lines[end:]]) + "\n", encoding="utf-8")


def _row(name: str, verdicts: Sequence[Verdict], commit: str) -> str:
    failed = sum(bool(verdict.problems) for verdict in verdicts)
    cells = [
        str(FAULTS[name].row),
        name,
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
