"""Plots of what the records of a recipe hold: accuracy over budget, training minus test accuracy."""

from stochade.evaluate.intervals import Estimate
from stochade.recipes.result import Reproduction, Row
from stochade.recipes.tables import published
from stochade.report.figures import Figure

_MARKS = ("circle", "square", "triangle-up", "diamond", "x", "cross", "star", "pentagon")
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
_COLOURS = ("single", "vote", "all", "published")
PERCENT = {"title": {"text": "accuracy"}, "range": [-0.03, 1.03], "tickformat": ".0%", "dtick": 0.25}


def line(index: int, name: str, x: list, estimates: list[Estimate]) -> dict:
    """A line with intervals, in a style of its own."""
    up = [None if e.high is None or e.value is None else e.high - e.value for e in estimates]
    down = [None if e.low is None or e.value is None else e.value - e.low for e in estimates]
    return {
        "type": "scatter", "mode": "lines+markers", "name": name, "x": x, "y": [e.value for e in estimates],
        "error_y": {"type": "data", "symmetric": False, "array": up, "arrayminus": down, "width": 3},
        "marker": {"symbol": _MARKS[index % len(_MARKS)], "size": 8},
        "line": {"dash": _DASHES[index // len(_COLOURS) % len(_DASHES)], "width": 2},
        "meta": {"colour": _COLOURS[index % len(_COLOURS)]},
    }  # fmt: skip


def accuracy_over_budget(r: Reproduction) -> list[Figure]:
    """One figure for each attack with several budgets: ours as lines, the paper's numbers as crosses, the lowest
    accuracy found as diamonds."""
    figures, about = [], r.recipe.audit
    for number, attack in enumerate(r.recipe.attack):
        data, rows = [], []
        for index, row in enumerate(r.rows):
            points = [(0.0, row.scores["clean", 0.0])]
            points += [(b, row.scores[attack.name, b]) for b in sorted(attack.budgets)]
            data.append(line(index, row.name, [x for x, _ in points], [e for _, e in points]))
            rows += [[f"{x:g}", row.name, e] for x, e in points]
            told = [
                (b, p.value / 100)
                for b in attack.budgets
                if (p := published(r, row.name, "attack", attack.name, b)) is not None
            ]
            if told:
                data.append(_points(f"{row.name}, paper", told, "x-thin", "published"))
            if row.found is not None and about is not None and about.norm == attack.norm:
                data.append(_points(f"{row.name}, adaptive", [(about.budget, row.found.value)], "diamond", "found"))
        note = "Lines: this run. Crosses: the paper. Diamonds: the lowest accuracy found by the audit."
        layout = {"xaxis": {"title": {"text": f"budget ({attack.norm}, as in the paper)"}}, "yaxis": PERCENT}
        figures.append(
            Figure(f"budget-{number}", f"Accuracy under {attack.name}", note, data, layout,
                   ["budget", "network", "accuracy"], rows, wide=True)
        )  # fmt: skip
    return figures


def _points(name: str, points: list[tuple], symbol: str, colour: str) -> dict:
    return {
        "type": "scatter", "mode": "markers", "name": name, "x": [x for x, _ in points], "y": [y for _, y in points],
        "marker": {"symbol": symbol, "size": 11, "line": {"width": 2}}, "meta": {"colour": colour},
    }  # fmt: skip


def train_test_gap(r: Reproduction) -> list[Figure]:
    """Training minus test accuracy on clean images, the papers' measure of overfitting."""
    rows = [row for row in r.rows if ("train", 0.0) in row.scores]
    names = [row.name for row in rows]
    gaps = [_gap(row) for row in rows]
    data = [{"type": "bar", "x": names, "y": gaps, "name": "training - test", "meta": {"colour": "single"}}]
    table = [[row.name, row.scores["train", 0.0], row.scores["clean", 0.0]] for row in rows]
    layout = {"yaxis": {"title": {"text": "training - test accuracy"}, "tickformat": ".1%"}, "bargap": 0.5}
    note = "Clean images; as many training images as test images."
    return [Figure("gap", "Training minus test accuracy", note, data, layout, ["network", "train", "test"], table)]


def _gap(row: Row) -> float:
    train, test = row.scores["train", 0.0].value, row.scores["clean", 0.0].value
    return (train or 0.0) - (test or 0.0)
