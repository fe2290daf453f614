"""The log of the adaptive search: what was tried, what each bought, what was kept."""

from dataclasses import dataclass

import numpy as np

from stochade.audit.result import Audit
from stochade.evaluate.intervals import Estimate
from stochade.report.figures import Figure
from stochade.report.rows import UNKNOWN, percent, threat_text
from stochade.report.successes import axes, drawn_line, style


@dataclass(frozen=True)
class Step:
    """One line of the search log, ready to be written. `bought`: points below the lowest of its round before it."""

    attack: str
    parts: str
    rung: int
    examples: int
    passes: float | None
    accuracy: Estimate
    bought: str
    kept: bool
    note: str


def search_steps(log: list[dict]) -> list[Step]:
    """The search log in the order tried; what is missing or no number counts as unknown."""
    steps, lowest = [], {}
    for line in log:
        rung, value = int(line.get("rung") or 0), _known(line.get("accuracy"))
        bought = ""
        if value is not None and not line.get("note"):
            if rung in lowest and value < lowest[rung]:
                bought = f"{100 * (lowest[rung] - value):.1f} points"
            lowest[rung] = min(value, lowest.get(rung, np.inf))
        accuracy = Estimate(
            value, _known(line.get("low")), _known(line.get("high")), int(line.get("examples") or 0), 0
        )
        steps.append(
            Step(
                str(line.get("attack", "")), str(line.get("parts", "")), rung, accuracy.examples,
                _known(line.get("passes")), accuracy, bought, bool(line.get("kept")), str(line.get("note") or ""),
            )
        )  # fmt: skip
    return steps


def _known(value) -> float | None:
    finite = isinstance(value, int | float) and not isinstance(value, bool) and np.isfinite(value)
    return float(value) if finite else None


def search_figure(audit: Audit) -> Figure | None:
    """The lowest accuracy found over the passes spent, one line a round: later rounds rest on more examples."""
    steps = search_steps(audit.search)
    spent, points = 0.0, {}
    for step in steps:
        spent += (step.passes or 0.0) * step.examples
        if step.accuracy.value is None or step.note:
            continue
        line = points.setdefault(step.rung, [])
        low = min(step.accuracy.value, line[-1][1] if line else 1.0)
        line.append((spent, low, step))
    if not points:
        return None
    data, rows = [], []
    for i, (rung, line) in enumerate(sorted(points.items())):
        name = f"round {rung + 1}, {line[-1][2].examples} examples"
        text = [f"{step.attack}: {step.accuracy}; lowest so far {percent(low)}" for _, low, step in line]
        trace = drawn_line(name, [x for x, _, _ in line], [low for _, low, _ in line], text, i)
        marker = {"symbol": ["circle" if step.kept else "circle-open" for *_, step in line], "size": 7}
        data.append(trace | {"mode": "lines+markers", "line": {"shape": "hv", **style(i)}, "marker": marker})
        rows += [[f"{x:.0f}", str(rung + 1), step.attack, step.accuracy, percent(low)] for x, low, step in line]
    note = (
        "The lowest accuracy that each round of the search had found, over forwards and backwards spent on all of "
        "its examples together. Rounds look at ever more examples, so their levels differ; filled marks were kept."
    )
    label = f"accuracy ({threat_text(audit.threat) or UNKNOWN})"
    layout = axes("passes spent on all examples", label, log=False)
    columns = ["passes", "round", "attack", "accuracy", "lowest so far"]
    return Figure("search-progress", "What the search found", note, data, layout, columns, rows, wide=True)
