"""A benchmark that measures in one process of its own and writes one page: its command line, and what it leaves."""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from provenance import QUICK, ROOT, commit, provenance, save
from workers import environment

Told = tuple[list[dict], dict[str, Any]]  # rows for the page, and facts for its provenance


def main(
    name: str, doc: str | None, file: str, work: Callable[[int], list[dict]], markdown: Callable[[dict], str],
    repeats: int, *, python: str = sys.executable, source: bool = False,
    finish: Callable[[list[dict]], Told] = lambda rows: (rows, {}),
) -> None:  # fmt: skip
    """Parse the command line; in the worker print `work(repeats)`, else start one, and save <name>.json and .md.

    Args:
        doc, file: of the benchmark's module. python: the worker's. source: whether the worker finds the package by
            its path, in an environment of a peer.
        finish: rows as the worker gave them -> (rows as they are kept, facts).
    """
    parser = argparse.ArgumentParser(description=(doc or "").split("\n")[0])
    parser.add_argument("--repeats", type=int, default=repeats)
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "cost")
    parser.add_argument("--quick", action="store_true", help="two rounds: a smoke run")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    rounds = 2 if arguments.quick else arguments.repeats
    if arguments.worker:
        print(json.dumps(work(rounds)))
        return
    where, command = commit(), [python, file, "--worker", "--repeats", str(rounds)]
    told = subprocess.run(
        command, env=environment(steady=True, source=source), stdout=subprocess.PIPE, text=True, check=True
    )
    rows, facts = finish(json.loads(told.stdout.splitlines()[-1]))
    result = {"rows": rows, "provenance": provenance(commit=where, repeats=rounds, **facts)}
    save(QUICK if arguments.quick else arguments.out, name, result, markdown(result))
