"""The signs of obfuscated gradients (Athalye et al. 2018, section 3.1), each measured (wu2024, tables 1 and 2)."""

from dataclasses import dataclass

import numpy as np

from stochade.attacks import Descent, RandomSearch
from stochade.attacks.registry import parse_attack
from stochade.evaluate.intervals import Estimate, mean, paired
from stochade.recipes.result import Reproduction, budgets_of, named
from stochade.recipes.views.black_box import passed_on, targets_of
from stochade.report.figures import Figure

LEFT = 0.05  # accuracy that an unbounded attack may leave
_COLOURS = ("single", "vote", "all", "claimed")


@dataclass(frozen=True)
class Parts:
    """What the recipe's attacks are in the checklist, as (name, budget of the paper, budget here): one gradient step,
    several, several with averaged gradients, random points, all at the audit's budget; an iterated attack at several
    budgets, and the largest of these where it reaches every image."""

    single: tuple[str, float, float] | None
    iterated: tuple[str, float, float] | None
    averaged: tuple[str, float, float] | None
    sampled: tuple[str, float, float] | None
    growing: list[tuple[str, float, float]]
    unbounded: tuple[str, float, float] | None


def parts_of(r: Reproduction) -> Parts:
    """The roles that the recipe's attacks play, the first of each kind."""
    found: dict[str, list[tuple[str, float, float]]] = {}
    growing: list[tuple[str, float, float]] = []
    for attack in (a for a in r.recipe.attack if a.norm == "linf"):
        for budget, here in budgets_of(attack, r.settings):
            made = parse_attack(attack.attack, attack.threat(here))
            if isinstance(made, RandomSearch):
                kind = "sampled"
            elif isinstance(made, Descent):
                averaged = getattr(made.gradient, "draws", 1) > 1
                kind = "single" if made.steps == 1 else "averaged" if averaged else "iterated"
                if kind == "iterated" and len(attack.budgets) > 1:
                    growing.append((named(attack, budget), budget, here))
            else:
                continue
            found.setdefault(kind, []).append((named(attack, budget), budget, here))
    about = r.recipe.audit

    def at(kind: str) -> tuple[str, float, float] | None:
        mine = [key for key in found.get(kind, []) if about is None or key[1] == about.budget]
        return mine[0] if mine else None

    growing.sort(key=lambda key: key[2])
    whole = growing[-1] if growing and growing[-1][2] >= 1 else None
    return Parts(at("single"), at("iterated"), at("averaged"), at("sampled"), growing, whole)


def obfuscation(r: Reproduction) -> list[Figure]:
    """One line for each network and sign, with the paired difference that decides it (first seed)."""
    rows, data, parts = [], [], parts_of(r)
    twins = targets_of(r)
    for index, name in enumerate(n for n in r.records if n in twins or n not in twins.values()):
        lines = _signs(r, name, twins.get(name), parts)
        rows += [[name, sign, _points(e), told] for sign, e, told in lines]
        data.append(
            {"type": "bar", "name": name, "x": [sign for sign, _, _ in lines], "y": [e.value for _, e, _ in lines],
             "meta": {"colour": _COLOURS[index % len(_COLOURS)]}}
        )  # fmt: skip
    layout = {"barmode": "group", "yaxis": {"title": {"text": "difference of accuracies"}, "tickformat": ".0%"}}
    note = (
        "Bars above zero point at obfuscated gradients. A sign is there when the 95 % interval of the difference of "
        "the same images lies above 0 (of the accuracy that is left, above 5 %), absent when it lies below, else not "
        "decided. The last line is no sign of the list: what averaging gradients over draws gains."
    )
    columns = ["network", "sign", "difference, points", "there"]
    return [Figure("obfuscation", "Signs of obfuscated gradients", note, data, layout, columns, rows, True)]


def _signs(r: Reproduction, name: str, twin: str | None, parts: Parts) -> list[tuple[str, Estimate, str]]:
    records, lines = r.records[name], []
    block = records.noise_block()

    def difference(sign: str, weaker: np.ndarray, stronger: np.ndarray, pairs: int = 1) -> None:
        gain = paired(weaker, stronger, 1 - 0.05 / pairs, shared=block)
        lines.append((sign, gain, told(gain)))

    if parts.iterated is not None:
        own = records.right(parts.iterated[0])
        if parts.single is not None:
            difference("one step stronger than many", own, records.right(parts.single[0]))
        if twin is not None:
            difference("black box stronger than white box", own, _outside(r, name, twin, parts.iterated, len(own)))
        if parts.sampled is not None:
            difference("random points stronger than gradients", own, records.right(parts.sampled[0]))
    if parts.unbounded is not None:
        left = mean(records.right(parts.unbounded[0]), shared=block)
        lines.append(("unbounded attack leaves some right", left, told(left, LEFT)))
    steps = [
        (records.right(a[0]), records.right(b[0])) for a, b in zip(parts.growing, parts.growing[1:], strict=False)
    ]
    if steps:
        worst = max(steps, key=lambda pair: pair[1].mean() - pair[0].mean())
        difference("larger budget weaker than smaller", worst[1], worst[0], len(steps))
    if parts.iterated is not None and parts.averaged is not None:
        difference("averaged gradients stronger", records.right(parts.iterated[0]), records.right(parts.averaged[0]))
    return lines


def _outside(r: Reproduction, name: str, twin: str, key: tuple[str, float, float], count: int) -> np.ndarray:
    assert r.test is not None
    x, y = r.test[:count]
    attack = next(a for a in r.recipe.attack if named(a, key[1]) == key[0])
    made = parse_attack(attack.attack, attack.threat(key[2]))
    return passed_on(made, r.networks[twin].model, r.networks[name].model, x, y, r.settings.draws, name, key[0])


def told(e: Estimate, least: float = 0.0) -> str:
    """ "yes" when the interval lies above `least`, "no" when it lies at or below it, else "not decided"."""
    if e.low is None or e.high is None:
        return "not decided"
    return "yes" if e.low > least else "no" if e.high <= least else "not decided"


def _points(e: Estimate) -> str:
    if e.value is None:
        return "–"
    limits = "" if e.low is None or e.high is None else f" [{100 * e.low:+.1f}, {100 * e.high:+.1f}]"
    return f"{100 * e.value:+.1f}{limits}"
