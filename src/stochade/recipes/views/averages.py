"""Accuracies averaged over the attacks of a table, as mukhoty2025 has them in the last row of tables 6 and 8, and
differences between pairs of attacks (table 11)."""

import numpy as np

from stochade.evaluate.intervals import mean, paired
from stochade.evaluate.records import CLEAN
from stochade.recipes.result import Reproduction, named
from stochade.recipes.tables import NONE, published
from stochade.recipes.views.codes import points
from stochade.recipes.views.curves import PERCENT, line
from stochade.report.figures import Figure

AVERAGE = "Avg"  # the row of the paper's tables
SETS = {"mnist": "MNIST", "cifar10": "CIFAR-10"}


def average_over_attacks(r: Reproduction) -> list[Figure]:
    """The mean of the accuracies on clean images and under every attack at every budget, each counted once: here
    (first seed), from the numbers that the paper prints for the same columns, and as it prints the average."""
    keys = [(a, b) for a in r.recipe.attack for b in a.budgets]
    told = next(
        (p.values for p in r.recipe.printed if p.row == AVERAGE and p.table.endswith(SETS[r.recipe.dataset])), {}
    )
    rows, here = [], []
    for name, records in r.records.items():
        rights = [records.right(CLEAN), *[records.right(named(a, b)) for a, b in keys]]
        here.append(mean(np.concatenate(rights, 1), shared=records.noise_block()))
        numbers = [published(r, name, "clean"), *[published(r, name, "attack", a.name, b) for a, b in keys]]
        known = [p.value for p in numbers if p is not None]
        summed = f"{sum(known) / len(known):.2f}" if len(known) == len(numbers) else NONE
        rows.append([name, here[-1], summed, f"{told[name]:g}" if name in told else NONE])
    names = [row[0] for row in rows]
    data = [line(0, "here", names, here) | {"mode": "markers"}]
    paper = [told[name] / 100 if name in told else None for name in names]
    if any(value is not None for value in paper):
        data.append(
            {"type": "scatter", "mode": "markers", "name": "paper", "x": names, "y": paper,
             "marker": {"symbol": "x-thin", "size": 11, "line": {"width": 2}}, "meta": {"colour": "published"}}
        )  # fmt: skip
    note = (
        "An average over attacks is no accuracy under any of them: what holds against an attacker is at most the "
        "lowest of its parts, and an attack that raises accuracy raises the average."
    )
    columns = ["network", "here", "paper, from its columns", "paper, as printed"]
    return [Figure("averages", "Average over attacks", note, data, {"yaxis": PERCENT}, columns, rows, wide=True)]


def pairs_of_attacks(r: Reproduction) -> list[Figure]:
    """The recipe's attacks two by two: accuracy under the second less that under the first, on the same images (first
    seed), beside the paper's difference."""
    found = list(zip(r.recipe.attack[::2], r.recipe.attack[1::2], strict=False))
    rows, data = [], []
    for number, (first, second) in enumerate(found):
        names, gaps = [], []
        for name, records in r.records.items():
            for budget in sorted(set(first.budgets) & set(second.budgets)):
                block = records.noise_block()
                one, other = (records.right(named(a, budget)) for a in (first, second))
                gap = paired(other, one, shared=block)
                printed = [published(r, name, "attack", a.name, budget) for a in (first, second)]
                told = NONE if None in printed else f"{printed[1].value - printed[0].value:+.2f}"  # type: ignore[union-attr]
                rows.append([name, f"{second.name} - {first.name}", f"{budget:.4g}", mean(one, shared=block)])
                rows[-1] += [mean(other, shared=block), points(gap), told]
                names.append(name)
                gaps.append(gap)
        data.append(line(number, f"{second.name} - {first.name}", names, gaps) | {"mode": "markers"})
    columns = ["network", "attacks", "budget", "first", "second", "difference, points", "paper, points"]
    layout = {"yaxis": {"title": {"text": "difference of accuracies"}, "tickformat": ".0%"}}
    note = "Above zero the first attack of a pair is the stronger one. 95 % intervals over the same images."
    return [Figure("pairs", "Pairs of attacks", note, data, layout, columns, rows, wide=True)]
