"""wu2024's trade-off estimate (equation 6) under every attack that has one budget."""

from stochade.metrics import tradeoff
from stochade.recipes.result import Reproduction, budgets_of
from stochade.recipes.tables import published
from stochade.report.figures import Figure

LEVELS = 255  # the paper counts budgets in grey levels
_COLOURS = ("single", "vote", "all", "claimed")


def tradeoffs(r: Reproduction) -> list[Figure]:
    """F-QTE and P-QTE of tables 3 and 6: the area under a line from clean accuracy to that under an attack, beside
    what the paper's accuracies give, and the same for the lowest accuracy found (over all seeds)."""
    rows, data = [], []
    chosen = [a for a in r.recipe.attack if a.norm == "linf" and len(a.budgets) == 1]
    for index, row in enumerate(r.rows):
        clean, told = row.scores["clean", 0.0].value, published(r, row.name, "clean")
        shown = []
        for attack in chosen:
            ((budget, here),) = budgets_of(attack, r.settings)
            paper = published(r, row.name, "attack", attack.name, budget)
            area = qte(clean, row.scores[attack.name, budget].value, here)
            printed = None
            if told is not None and paper is not None:
                printed = qte(told.value / 100, paper.value / 100, budget)
            shown.append((attack.name, area, printed))
        about = r.recipe.audit
        if row.found is not None and about is not None and about.norm == "linf":
            shown.append(("adaptive", qte(clean, row.found.value, about.budget * r.settings.budgets), None))
        rows += [[row.name, name, _text(area), _text(printed)] for name, area, printed in shown]
        data.append(
            {"type": "bar", "name": row.name, "x": [part[0] for part in shown], "y": [part[1] for part in shown],
             "meta": {"colour": _COLOURS[index % len(_COLOURS)]}}
        )  # fmt: skip
    layout = {"barmode": "group", "yaxis": {"title": {"text": "trade-off estimate"}, "rangemode": "tozero"}}
    note = (
        "Budget in grey levels times the mean of clean accuracy and accuracy under attack. A network that nothing "
        "protects keeps half of the best value: with 91 % clean and none right under an attack of 8 it has 3.6."
    )
    columns = ["network", "attack", "here", "from the paper's accuracies"]
    return [Figure("tradeoff", "Trade-off estimate (QTE)", note, data, layout, columns, rows, True)]


def qte(clean: float | None, attacked: float | None, budget: float) -> float | None:
    """The estimate for a linf budget in units of images; None where an accuracy is."""
    return None if clean is None or attacked is None else tradeoff(clean, attacked, LEVELS * budget)


def _text(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
