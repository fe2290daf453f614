"""The attacks of an audit: the authors' own, the baselines, what each substituted backward buys, and the curves."""

import math
from dataclasses import dataclass, replace

from torch import nn

from stochade.attacks import (
    BIM,
    FGSM,
    PGD,
    Attack,
    Backprop,
    Descent,
    Evolution,
    GaussianNoise,
    RandomSearch,
    UniformNoise,
    margin,
)
from stochade.attacks.apgd import APGDTargeted
from stochade.attacks.fmn import FMN
from stochade.attacks.hopskipjump import HopSkipJump
from stochade.attacks.square import Square
from stochade.attacks.threats import Ball
from stochade.describe import describe
from stochade.errors import BudgetError
from stochade.nn.discrete import discrete_layers

OWN, OWN_AVERAGED, OWN_MARGIN = "pgd", "pgd averaged", "pgd margin"
OWN_SINGLE, RESTARTED, TARGETED = "pgd single draws", "pgd margin, ten starts", "apgd-t"
ONE_STEP, ITERATED = "fgsm", "bim"
NOISE, GAUSSIAN, SEARCH, EVOLUTION = "uniform noise", "gaussian noise", "random search", "evolution"
SQUARE, BY_LABELS, MINIMAL = "square", "hopskipjump", "fmn"
BACKWARD, FORWARD, TRANSFER = "pgd backward=", "pgd forward=", "transfer from "

OWN_GRADIENT = (ITERATED, OWN, OWN_AVERAGED, OWN_SINGLE, OWN_MARGIN, RESTARTED, TARGETED, MINIMAL)
GRADIENT_FREE = (EVOLUTION, SQUARE, BY_LABELS)
ON_CURVES = ("eps=", "steps=", "draws=")  # last words of the names of attacks that only make up a curve
ADAPTIVE = "adaptive "


@dataclass(frozen=True)
class Names:
    """What the attacks of a plan are called by the part that they play in it: those of images and those of codes are
    checked alike."""

    one_step: str = ONE_STEP
    own: str = OWN
    averaged: str = OWN_AVERAGED
    single: str = OWN_SINGLE
    margin: str = OWN_MARGIN
    restarted: str = RESTARTED
    search: str = SEARCH
    backward: str = BACKWARD
    forward: str = FORWARD
    noises: tuple[str, ...] = (NOISE, GAUSSIAN)
    own_gradient: tuple[str, ...] = OWN_GRADIENT
    entry: str = "pixel"


IMAGES = Names()
BUDGETS = (0.25, 0.5, 1, 1.5, 2, 4), (0.5, 1, 2)  # of the threat's, for the best attack and the own gradient


@dataclass(frozen=True)
class Effort:
    """How much an audit spends: steps of iterated attacks, draws per gradient on random models, antithetic pairs
    and steps of the gradient-free attack, points of the random search, passes per example of the adaptive search (0:
    none) and how many examples it looks at, queries of the Square attack (0: none), whether restarts, a targeted
    attack, one by labels alone and a minimum-norm attack on random models are made as well (`full`), examples of
    the active test (0: none), and whether accuracy over budget, steps and draws is measured (`curves`)."""

    steps: int
    draws: int
    pairs: int
    evolution_steps: int
    samples: int
    search: int = 0
    searched: int = 32
    queries: int = 50
    full: bool = False
    planted: int = 0
    curves: bool = True


EFFORTS = {
    "quick": Effort(steps=10, draws=5, pairs=10, evolution_steps=10, samples=20, search=600, searched=16),
    "standard": Effort(steps=40, draws=20, pairs=25, evolution_steps=20, samples=100, search=3000, queries=200),
    "thorough": Effort(
        steps=100, draws=50, pairs=100, evolution_steps=50, samples=10_000, search=20000, searched=64, queries=5000,
        full=True, planted=64,
    ),
}  # fmt: skip


def effort_of(name: str | Effort) -> Effort:
    """An effort by name; BudgetError for an unknown one."""
    if isinstance(name, Effort):
        return name
    if name not in EFFORTS:
        raise BudgetError(f"an effort out of {', '.join(EFFORTS)}", repr(name))
    return EFFORTS[name]


def alternatives(model: object) -> tuple[list[str], list[str]]:
    """Names of the substituted backwards and relaxed forwards that the model's layers declare, without those that
    would attack the very same network as the layers' own backward or an earlier name."""
    layers = list(discrete_layers(model).values()) if isinstance(model, nn.Module) else []

    backwards = _distinct([(layer.substitutes, layer.surrogate) for layer in layers])
    forwards = _distinct([(layer.relaxed, "own") for layer in layers])
    return backwards, forwards


def _distinct(layers: list[tuple[dict, object]]) -> list[str]:
    """Names out of the layers' (table, own) pairs that each have an effect of their own."""
    seen, names = [[describe(own) for _, own in layers]], []
    for name in sorted({name for table, _ in layers for name in table}):
        effect = [describe(table.get(name, own)) for table, own in layers]
        if effect not in seen:
            seen.append(effect)
            names.append(name)
    return names


def search_attacks(
    model: object, threat: Ball, random: bool, differentiable: bool, effort: Effort
) -> dict[str, Attack]:
    """The first round: everything that could be the strongest attack, and the baselines it must beat."""
    averaged = Backprop(effort.draws if random else 1)
    table: dict[str, Attack] = {
        NOISE: UniformNoise(threat),
        GAUSSIAN: GaussianNoise(threat),
        SEARCH: RandomSearch(threat, effort.samples),
        EVOLUTION: PGD(
            threat, effort.evolution_steps, gradient=Evolution(effort.pairs, _sigma(threat)), objective=margin
        ),
    }
    few = max(1, effort.draws // 4) if random else 1  # where a look at every point costs several forwards
    if effort.queries and threat.name != "l0":
        table[SQUARE] = Square(threat, effort.queries, draws=few)
    if effort.full and threat.name in ("l2", "linf"):
        table[BY_LABELS] = HopSkipJump(threat)
    if not differentiable:
        return table
    averages = {
        OWN_AVERAGED: PGD(threat, effort.steps, gradient=averaged),
        OWN_SINGLE: PGD(threat, effort.steps * effort.draws),  # as many gradients in all
    }
    own = PGD(threat, effort.steps, gradient=averaged, objective=margin)
    full: dict[str, Attack] = {RESTARTED: replace(own, restarts=10)} if effort.full else {}
    if effort.full and threat.name != "l0":
        full[TARGETED] = APGDTargeted(threat, effort.steps, gradient=averaged)
    if effort.full or not random:
        full[MINIMAL] = FMN(threat, effort.steps, gradient=Backprop(few))
    table = {
        ONE_STEP: FGSM(threat),
        ITERATED: BIM(threat, 10),
        OWN: PGD(threat, effort.steps),
        **(averages if random else {}),
        OWN_MARGIN: own,
        **full,
        **table,
    }
    backwards, forwards = alternatives(model)
    for name in backwards:
        gradient = Backprop(averaged.draws, substitutes=name)
        table[BACKWARD + name] = PGD(threat, effort.steps, gradient=gradient, objective=margin)
    for name in forwards:
        table[FORWARD + name] = PGD(threat, effort.steps, gradient=Backprop(1, relaxed=name), objective=margin)
    return table


def _sigma(threat: Ball) -> float:
    """Search directions of about the size of the budget per pixel; below that, quantised layers see nothing."""
    return min(0.1, max(0.01, threat.eps / 2)) if threat.name == "linf" else 0.05


def budget_of_box(threat: Ball, pixels: int) -> float:
    """The budget from which on the box alone limits the attacker. In codes `pixels` are the letters that one budget
    is for."""
    size = float(pixels)
    return {"linf": 1.0, "l2": math.sqrt(pixels), "l1": size, "l0": size, "flips": size}[threat.name]


def budgets(threat: Ball, pixels: int, factors: tuple[float, ...]) -> list[float]:
    """Budgets for a curve: fractions and multiples of the threat's, and the box."""
    top = budget_of_box(threat, pixels)
    values = [threat.eps * f for f in factors]
    if threat.name in ("l0", "flips"):
        values = [float(max(1, round(v))) for v in values]
    return sorted({round(v, 10) for v in values if v < top} | {top})


@dataclass(frozen=True)
class Curves:
    """The second round: attacks by name, and which of them make up which curve."""

    attacks: dict[str, Attack]
    curves: dict[str, list[dict]]


def curve_attacks(
    best_name: str, best: Attack, own: Attack | None, threat: Ball, pixels: int, random: bool,
    names: Names = IMAGES, factors: tuple[tuple[float, ...], tuple[float, ...]] = BUDGETS,
) -> Curves:  # fmt: skip
    """Accuracy over budget (best attack found, and the model's own gradient), over steps and over draws."""
    attacks: dict[str, Attack] = {}
    curves: dict[str, list[dict]] = {"budget": [], "steps": [], "draws": []}

    def add(curve: str, x: float, name: str, attack: Attack | None, series: str) -> None:
        if attack is not None:
            attacks[name] = attack
        curves[curve].append({"x": x, "attack": name, "series": series})

    for series, name, base, multiples in (
        ("best attack found", best_name, best, factors[0]),
        ("own gradient", names.margin, own, factors[1]),
    ):
        if not isinstance(base, Descent) or (series == "own gradient" and best_name == names.margin):
            continue
        grey = {0.5} if threat.name == "linf" and series == "best attack found" else set()
        for eps in sorted({*budgets(threat, pixels, multiples)} | grey):
            if eps == threat.eps:
                add("budget", eps, name, None, series)
            else:
                sized = replace(base, threat=threat.resized(eps))
                add("budget", eps, f"{name} eps={eps:.4g}", sized, series)
    if isinstance(best, Descent):
        for factor in (0.25, 0.5, 1, 2):
            steps = max(1, round(best.steps * factor))
            name = best_name if factor == 1 else f"{best_name} steps={steps}"
            add("steps", steps, name, None if factor == 1 else replace(best, steps=steps), best_name)
        if random and isinstance(best.gradient, Backprop) and best.gradient.relaxed is None:
            most = best.gradient.draws
            for draws in sorted({1, max(1, most // 4), most, 2 * most}):
                name = best_name if draws == most else f"{best_name} draws={draws}"
                changed = None if draws == most else replace(best, gradient=replace(best.gradient, draws=draws))
                add("draws", draws, name, changed, best_name)
    return Curves(attacks, curves)
