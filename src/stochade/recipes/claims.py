"""The page of claims: what was published, what we replicated, what an adaptive attack leaves, why.

    python -m stochade.recipes.claims results/recipes docs/claims.md

Every number comes from the `result.json` of a recipe's run; the page is generated and not written by hand.
"""

import json
import sys
from pathlib import Path
from typing import Any

from stochade.errors import RecordsError
from stochade.evaluate.intervals import Estimate
from stochade.files import write_atomically
from stochade.recipes.tables import NONE, cell, reasons_of, table

INTRO = """# Claims

What the papers say about a defence, what their own attack leaves here, and what an attack leaves that was searched
for the very network. Accuracies in percent with 95 % intervals; every accuracy under attack is an upper bound.
*Replicated* is the audit's own run of that attack, on draws of its own: the recipe's table has other draws and may
differ by tenths. Paper numbers stand beside runs of another size wherever the scale is not `paper`: read the last
column. Generated from
`results/recipes` by `python -m stochade.recipes.claims results/recipes docs/claims.md`.
"""
NUMBERS = "../results/recipes"  # as seen from the page
HEAD = ["network", "attack of the paper", "claimed", "replicated", "adaptive", "why the claim is too high", "run"]


def rows_of(document: dict[str, Any]) -> list[list[str]]:
    """One row for each network of a run that was audited."""
    about = document["audit"]
    if about is None:
        return []
    found = []
    meta = document["meta"]
    run = (
        f"{document['scale']}: {document['data']}, {meta['train']} train, {meta['test']} test, seeds {meta['seeds']}"
    )
    for row in document["rows"]:
        if not row["audits"]:
            continue
        printed = row["published"]
        text = NONE if printed is None else f"{printed['value']:g}"
        if printed is not None and printed["spread"] is not None:
            text += f" ± {printed['spread']:g}"
        replicated = Estimate(**row["claimed"])
        found_in_audits = [finding for one in row["audits"] for finding in one["findings"]]
        reasons = "; ".join(reasons_of(found_in_audits)[:2]) or "no such finding"
        attack = f"{about['attack']}, {about['norm']} {about['budget'] * document['budgets_times']:.3g}"
        found.append(
            [row["network"], attack, text, cell(replicated), cell(Estimate(**row["adaptive"])), reasons, run]
        )
    return found


def markdown(folder: str | Path) -> str:
    """The page for all runs under a folder; RecordsError where there are none."""
    files = sorted(Path(folder).glob("*/result.json"))
    if not files:
        raise RecordsError(
            f"results of recipes under {folder}", "none", "run: stochade reproduce NAME, and keep its result.json"
        )
    lines, others = [INTRO], []
    for file in files:
        document = json.loads(file.read_text())
        rows = rows_of(document)
        told = f"{document['title']} ({document['paper']}, {document['place']}): {document['claim']}"
        if not rows:
            others.append(f"- {told} [What was found]({NUMBERS}/{file.parent.name}/table.md).")
        else:
            lines += [
                f"## {document['title']}",
                "",
                f"{document['paper']}, {document['place']}. {document['claim']}",
                "",
            ]
            lines += table(HEAD, rows)
            lines += [
                "",
                f"`{document['meta']['command']}`, [all of its numbers]({NUMBERS}/{file.parent.name}/table.md).",
            ]
            lines += [""]
    if others:
        lines += ["## What claims no robustness", "", *others, ""]
    return "\n".join(lines)


if __name__ == "__main__":
    write_atomically(Path(sys.argv[2]), markdown(sys.argv[1]).encode())
