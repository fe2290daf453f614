"""Networks with a class of their own for attacked images: who is right, who is flagged, who is wrong (kubo2019,
section 3.3, which proposes it and does not try it).

An attacker who knows of the class avoids it. That attack is 40 steps of PGD on the largest logit that is neither the
true class nor the flag, over the larger of those two.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from stochade.attacks import PGD, Linf
from stochade.randomness import reseed, seed_for, untouched
from stochade.recipes.result import Reproduction
from stochade.recipes.views.crafting import CHUNK, crafted, predicted
from stochade.report.figures import Figure

MOST = {"smoke": 40, "small": 1000, "paper": 10_000}
STEPS = {"smoke": 5, "small": 40, "paper": 40}
KINDS = {"right": "single", "flagged": "vote", "wrong": "found"}


def unflagged(logits: Tensor, y: Tensor, targets: Tensor | None = None, *, classes: int) -> Tensor:
    """[N]: the best wrong class of the first `classes` logits, less the larger of the true one and the flags behind
    them; positive exactly when the network is wrong and raises no flag."""
    true = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, y[:, None], True)
    true[:, classes:] = True
    low = torch.finfo(logits.dtype).min
    return logits.masked_fill(true, low).amax(1) - logits.masked_fill(~true, low).amax(1)


def avoiding(model: nn.Module, x: Tensor, y: Tensor, budget: float, steps: int, classes: int) -> Tensor:
    """Examples that are to be wrong without a flag. Nobody leaves early: being flagged would count as fooled."""
    objective: Callable = partial(unflagged, classes=classes)
    attack = PGD(Linf(budget), steps=steps, objective=objective, drop_fooled=False, keep="best")
    parts = []
    with untouched(model):
        model.eval()
        for start in range(0, len(x), CHUNK):
            reseed(seed_for(0, "view", "avoiding", budget, start))
            parts.append(attack(model, x[start : start + CHUNK], y[start : start + CHUNK]))
    return torch.cat(parts)


def shares(said: Tensor, y: Tensor, classes: int) -> dict[str, float]:
    """Of predictions [N]: right, flagged (a class behind the labels), wrong (the rest)."""
    right, flag = said == y, said >= classes
    return {k: float(v.double().mean()) for k, v in {
        "right": right, "flagged": flag, "wrong": ~right & ~flag}.items()}  # fmt: skip


def flagged(r: Reproduction) -> list[Figure]:
    """One figure for each network: clean images, every attack at its largest budget, and the attack that avoids the
    flag at the largest budget of all."""
    assert r.test is not None
    x, y = r.test[: MOST[r.scale]]
    classes = r.test.num_classes
    largest = max(max(a.budgets) for a in r.recipe.attack)
    figures = []
    for number, (name, net) in enumerate(r.networks.items()):
        under = {"clean": x}
        for attack in r.recipe.attack:
            budget = max(attack.budgets)
            under[f"{attack.name} {budget:g}"] = crafted(net.model, attack, budget * r.settings.budgets, x, y)
        key = f"PGD {largest:g}, no flag"
        under[key] = avoiding(net.model, x, y, largest * r.settings.budgets, STEPS[r.scale], classes)
        found = {text: shares(predicted(net.model, made), y, classes) for text, made in under.items()}
        data = [
            {"type": "bar", "name": kind, "x": list(found), "y": [f[kind] for f in found.values()],
             "meta": {"colour": colour}}
            for kind, colour in KINDS.items()
        ]  # fmt: skip
        rows = [[text, *[f"{100 * f[kind]:.1f} %" for kind in KINDS]] for text, f in found.items()]
        layout = {"yaxis": {"title": {"text": "share of images"}, "range": [0, 1]}, "barmode": "stack", "bargap": 0.4}
        note = (
            f"{len(y)} images, one draw; a flagged image counts as wrong in the tables above. No flag: PGD that "
            f"avoids it."
        )
        figures.append(Figure(f"flagged-{number}", f"Right, flagged or wrong: {name}", note, data, layout,
                              ["images", *KINDS], rows))  # fmt: skip
    return figures
