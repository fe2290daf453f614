"""How sure networks are of the true class under attack: the confidence histograms of the thesis."""

from itertools import pairwise

import numpy as np
import torch

from stochade.attacks.registry import parse_attack
from stochade.randomness import reseed, seed_for, untouched
from stochade.recipes.result import Reproduction
from stochade.report.figures import Figure

BINS = 10
MOST = 500  # images
SHOWN = 3  # budgets


def confidence(r: Reproduction) -> list[Figure]:
    """One figure for each network: the share of images over the softmax probability of the true class (one draw), at
    the smallest, a middle and the largest budget of the first attack (kubo2019, figures 3.3, 3.6, 3.7, 3.11 and
    appendix A)."""
    assert r.test is not None
    attack = r.recipe.attack[0]
    budgets = sorted(attack.budgets)
    chosen = [budgets[i] for i in sorted({0, len(budgets) // 2, len(budgets) - 1})][:SHOWN]
    edges = np.linspace(0, 1, BINS + 1)
    names = [f"{100 * low:.0f}-{100 * high:.0f}" for low, high in pairwise(edges)]
    x, y = r.test[:MOST]
    figures = []
    for number, (name, net) in enumerate(r.networks.items()):
        data, rows = [], []
        for index, budget in enumerate(chosen):
            made = parse_attack(attack.attack, attack.threat(budget * r.settings.budgets))  # type: ignore[arg-type]
            with untouched(net.model):
                reseed(seed_for(0, "confidence", budget))
                with torch.no_grad():
                    logits = net.model(made(net.model, x, y))
            true = logits.softmax(1)[torch.arange(len(y)), y].numpy()
            shares = np.histogram(true, edges)[0] / len(true)
            tone = {"colour": ("single", "vote", "all")[index]}
            data.append({"type": "bar", "name": f"{budget:g}", "x": names, "y": shares.tolist(), "meta": tone})
            rows.append([f"{budget:g}", *[f"{s:.3f}" for s in shares]])
        layout = {
            "xaxis": {"title": {"text": "confidence in the true class, %"}},
            "yaxis": {"title": {"text": "share of images"}, "range": [0, 1]}, "barmode": "group", "bargap": 0.2,
        }  # fmt: skip
        columns = ["budget", *[f"to {100 * e:.0f} %" for e in edges[1:]]]
        note = f"{attack.name} at three budgets, {len(y)} images."
        figures.append(Figure(f"confidence-{number}", f"Confidence of {name}", note, data, layout, columns, rows))
    return figures
