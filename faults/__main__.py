"""Strike the pipeline with faults, and say what came of each.

python -m faults [--only NAME ...] [--seeds 3 | --seed N] [--posts 100000] [--broken WAY]
                 [--report docs/reliability.md]
"""

import argparse
import signal
import sys
from dataclasses import replace
from pathlib import Path

from faults.report import commit, line, write
from faults.rows import FAULTS
from faults.run import Verdict, run_fault


def main() -> int:
    """Run faults and print a line each."""
    parser = argparse.ArgumentParser(description="faults on real brokers, judged by an oracle")
    parser.add_argument("--only", nargs="+", default=list(FAULTS), help="names of faults, or the starts of names")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each fault")
    parser.add_argument("--seed", type=int, help="one run, with this seed")
    parser.add_argument("--broken", default="", help="break the roles on purpose, as faults.launch says")
    parser.add_argument("--posts", type=int, default=100_000, help="least posts of a run")
    parser.add_argument("--report", type=Path, help="a file whose table of figures is brought up to date")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # so that nothing is left behind
    seeds = range(1, arguments.seeds + 1) if arguments.seed is None else [arguments.seed]
    starts = tuple(name for name in arguments.only if name not in FAULTS)
    chosen = [one for one in FAULTS.values() if one.name in arguments.only or one.name.startswith(starts)]
    if not chosen:
        parser.error(f"no fault's name begins with {' or '.join(arguments.only)}; there are {', '.join(FAULTS)}")
    failed, of = 0, commit()
    for one in chosen:
        verdicts: list[Verdict] = []
        for seed in seeds:
            verdict = run_fault(replace(one, launch=arguments.broken or one.launch), seed, arguments.posts)
            print(line(verdict), flush=True)
            failed += bool(verdict.problems)
            verdicts.append(verdict)
        if arguments.report and len(seeds) > 1:  # one run is no figure
            write(arguments.report, verdicts, of)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
