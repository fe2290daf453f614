"""Examples made on a second training of the same network (wu2024, table 4)."""

import numpy as np
from torch import Tensor, nn

from stochade.attacks import Attack
from stochade.attacks.registry import parse_attack
from stochade.attacks.transfer import for_transfer
from stochade.evaluate.intervals import Estimate, mean, paired
from stochade.recipes.result import Reproduction, budgets_of, named
from stochade.recipes.views.curves import PERCENT
from stochade.recipes.views.looking import device_of, draws_for, logits_of
from stochade.recipes.views.tradeoff import qte
from stochade.report.figures import Figure

MOST = 1000  # images


def twin_of(r: Reproduction, name: str) -> str | None:
    """The row that is another training of the same network by the same settings; None where there is none."""
    rows = {n.name: n for n in r.recipe.network if n.name in r.networks}
    mine = rows[name]
    return next(
        (
            n.name
            for n in rows.values()
            if n.seed != mine.seed
            and (n.model_at(r.scale), n.at(r.scale)) == (mine.model_at(r.scale), mine.at(r.scale))
        ),
        None,
    )


def targets_of(r: Reproduction) -> dict[str, str]:
    """target -> its twin, for the rows with the lower seed of each pair."""
    seeds = {n.name: n.seed for n in r.recipe.network}
    twins = {name: twin_of(r, name) for name in r.records}
    return {name: twin for name, twin in twins.items() if twin is not None and seeds[name] < seeds[twin]}


def passed_on(
    attack: Attack, source: nn.Module, target: nn.Module, x: Tensor, y: Tensor, draws: int, *purpose: object
) -> np.ndarray:
    """[N, draws] whether the target is right on examples that were made on the source, where nobody left early."""
    made = for_transfer(attack)(source, x.to(device_of(source)), y.to(device_of(source)))
    made = made.to(device_of(target))
    said = logits_of(target, made, "passed on", *purpose, draws=draws_for(target, draws)).argmax(2)
    return (said == y.to(said.device)).T.cpu().numpy()


def black_box(r: Reproduction) -> list[Figure]:
    """Every network under the recipe's attacks, made on itself and on its second training (first seed)."""
    assert r.test is not None
    x, y = r.test[:MOST]
    rows: list[list] = []
    data: list[dict] = []
    for target, source in targets_of(r).items():
        records = r.records[target]
        clean = records.right("clean")[: len(x)]
        inside, outside = [], []
        for attack in (a for a in r.recipe.attack if a.norm == "linf"):
            for budget, here in budgets_of(attack, r.settings):
                made = parse_attack(attack.attack, attack.threat(here))
                name = named(attack, budget)
                theirs = passed_on(
                    made, r.networks[source].model, r.networks[target].model, x, y, r.settings.draws, target, name
                )
                own = records.right(name)[: len(x)]
                gain = paired(own, theirs, shared=records.noise_block())
                hidden = "yes" if gain.low is not None and gain.low > 0 else "no"
                white, black = mean(own, shared=records.noise_block()), mean(theirs)
                key = (target, "transfer", source, attack.name, budget)
                paper = next(
                    (p for p in r.recipe.published if (p.network, p.what, p.source, p.attack, p.budget) == key), None
                )
                area = qte(float(clean.mean()), black.value, here)
                rows.append(
                    [target, attack.name, f"{budget:.3g}", white, black,
                     "–" if paper is None else f"{paper.value:g}", "–" if area is None else f"{area:.2f}", hidden]
                )  # fmt: skip
                label = f"{attack.name}, {budget:.3g}"
                inside.append((label, white))
                outside.append((label, black))
        data += [_bars(f"{target}, own", inside, len(data)), _bars(f"{target}, from outside", outside, len(data) + 1)]
    layout = {"yaxis": PERCENT, "barmode": "group"}
    note = (
        "White box: examples made on the network itself. Black box: made on another training of it, by the same "
        "settings and another seed. Where the black box is the stronger one (95 % intervals of paired differences), "
        "the network's own gradient hides the way."
    )
    columns = ["network", "attack", "budget", "white box", "black box", "black box, paper", "QTE of the black box",
               "black box stronger"]  # fmt: skip
    return [Figure("black-box", "White box and black box", note, data, layout, columns, rows, True)]


def _bars(name: str, points: list[tuple[str, Estimate]], index: int) -> dict:
    return {
        "type": "bar", "name": name, "x": [label for label, _ in points], "y": [e.value for _, e in points],
        "meta": {"colour": ("single", "vote", "all", "claimed")[index % 4]},
    }  # fmt: skip
