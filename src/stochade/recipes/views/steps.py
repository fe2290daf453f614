"""Attacks side by side: how a defence falls step by step, and accuracies that were added up."""

from collections import Counter

from stochade.evaluate.intervals import Estimate
from stochade.recipes.result import Reproduction
from stochade.recipes.tables import cell
from stochade.recipes.views.curves import PERCENT
from stochade.report.figures import Figure

_COLOURS = ("single", "vote", "all", "claimed")
_PATTERNS = ("", "/", "x", ".")


def accuracy_by_attack(r: Reproduction) -> list[Figure]:
    """Bars of accuracy under every attack of the recipe, in its order, after the clean ones and before the lowest
    accuracy found; one colour for each network."""
    data, rows = [], []
    times = Counter(a.name for a in r.recipe.attack for _ in a.budgets)
    for index, row in enumerate(r.rows):
        points: list[tuple[str, Estimate]] = [("clean", row.scores["clean", 0.0])]
        for attack in r.recipe.attack:
            for budget in attack.budgets:
                name = attack.name if times[attack.name] == 1 else f"{attack.name} {budget:.3g}"
                points.append((name, row.scores[attack.name, budget]))
        if row.found is not None:
            points.append(("adaptive", row.found))
        up = [None if e.high is None or e.value is None else e.high - e.value for _, e in points]
        down = [None if e.low is None or e.value is None else e.value - e.low for _, e in points]
        data.append(
            {"type": "bar", "name": row.name, "x": [n for n, _ in points], "y": [e.value for _, e in points],
             "error_y": {"type": "data", "symmetric": False, "array": up, "arrayminus": down, "width": 3},
             "marker": {"pattern": {"shape": _PATTERNS[index // len(_COLOURS) % len(_PATTERNS)]}},
             "meta": {"colour": _COLOURS[index % len(_COLOURS)]}}
        )  # fmt: skip
        rows += [[row.name, name, estimate] for name, estimate in points]
    layout = {"yaxis": PERCENT, "barmode": "group", "bargap": 0.3}
    note = "From left to right as in the recipe; every accuracy is an upper bound."
    columns = ["network", "attack", "accuracy"]
    return [Figure("steps", "Accuracy attack by attack", note, data, layout, columns, rows, wide=True)]


def added_norms(r: Reproduction) -> list[Figure]:
    """The accuracies under all attacks of the recipe that stand in the paper as one sum, each alone and added up
    (kaspar2024, table 2, whose column goes up to 200)."""
    figures = []
    for number, told in enumerate(p for p in r.recipe.published if p.what == "sum"):
        row = next((row for row in r.rows if row.name == told.network), None)
        if row is None:
            continue
        parts = [
            (f"{a.norm} {b:g}", row.scores[a.name, b])
            for a in r.recipe.attack
            for b in a.budgets
            if a.name.split()[0] == told.attack
        ]
        values = [100 * (e.value or 0.0) for _, e in parts]
        total = sum(values)
        data = [
            {"type": "bar", "name": name, "x": ["here"], "y": [value], "meta": {"colour": ("single", "vote")[i % 2]}}
            for i, ((name, _), value) in enumerate(zip(parts, values, strict=True))
        ]
        data.append(
            {"type": "bar", "name": "paper, sum", "x": ["paper"], "y": [told.value], "meta": {"colour": "published"}}
        )
        rows = [[name, cell(estimate)] for name, estimate in parts]
        rows += [["sum here", f"{total:.1f}"], ["sum, paper", f"{told.value:g}"]]
        layout = {
            "barmode": "stack", "bargap": 0.5,
            "yaxis": {"title": {"text": "accuracies added, %"}, "range": [0, 100 * len(parts)]},
        }  # fmt: skip
        note = f"A sum of {len(parts)} accuracies, at most {100 * len(parts)}; it is no accuracy. {told.note}"
        figures.append(
            Figure(f"sum-{number}", f"{told.attack}: accuracies added up, {row.name}", note, data, layout,
                   ["part", "accuracy, %"], rows)
        )  # fmt: skip
    return figures
