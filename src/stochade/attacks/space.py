"""The space that the adaptive search looks through: how an attacker may see a model (`views`), and what else an
attack is made of (objective, draws, step rule, start)."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product

from torch import nn

from stochade.attacks.apgd import APGD
from stochade.attacks.ball import Ball
from stochade.attacks.base import Attack
from stochade.attacks.descent import PGD
from stochade.attacks.ensemble import Ensemble
from stochade.attacks.gradients import Backprop, Evolution, Gradient
from stochade.attacks.objectives import OBJECTIVES
from stochade.attacks.square import Square
from stochade.describe import describe
from stochade.nn.discrete import Discrete, discrete_layers

MOST_VIEWS = 40  # of one kind; networks with many types of layers have products of choices
LEAST_STEPS = 5
RULES = {"l0": ("pgd", "momentum", "average"), "flips": ("pgd", "starts", "momentum", "average")}
STARTS = 4  # runs of the rule of that name


@dataclass(frozen=True)
class View:
    """One way to get a direction out of a model.

    Attributes:
        name: "own backward", "backward soft", "forward mean-field", "evolution sigma=0.1", "square", ...
        gradient: draws -> the gradient part; None for attacks by queries alone.
        averages: whether more draws per gradient change anything.
    """

    name: str
    gradient: Callable[[int], Gradient] | None = None
    averages: bool = True


@dataclass(frozen=True)
class Candidate:
    """A view with everything else that makes an attack of it.

    Attributes:
        rule: "pgd" (steps of 2.5 budgets / steps), "apgd", "momentum", "average" (a running mean of gradients),
            "starts" (several runs of fewer steps).
        start: "random" or "image".
    """

    view: View
    objective: str = "margin"
    draws: int = 1
    rule: str = "pgd"
    start: str = "random"

    @property
    def name(self) -> str:
        if self.view.gradient is None:
            return f"{self.view.name} {self.objective}"
        many = f" draws={self.draws}" if self.view.averages and self.draws > 1 else ""
        return f"{self.rule} {self.view.name} {self.objective}{many} from {self.start}"

    @property
    def free(self) -> bool:
        """Whether it needs no backpropagation."""
        return self.view.gradient is None or isinstance(self.view.gradient(1), Evolution)

    @property
    def least(self) -> int:
        """Passes per example below which it is not worth trying."""
        if self.view.gradient is None:
            return 20 * self.draws
        gradient = self.view.gradient(self.draws)
        return LEAST_STEPS * (gradient.forwards + gradient.backwards)

    def attack(self, threat: Ball, passes: int) -> Attack:
        """The attack that spends about `passes` forwards and backwards per example."""
        objective = OBJECTIVES[self.objective]
        if self.view.gradient is None:
            return Square(threat, queries=max(2, passes // self.draws), draws=self.draws)
        gradient = self.view.gradient(self.draws)
        if isinstance(gradient, Evolution):
            steps = max(LEAST_STEPS, min(40, passes // 50))
            gradient = replace(gradient, pairs=max(1, (passes // steps - 1) // 2))
        else:
            runs = STARTS if self.rule == "starts" else 1
            steps = max(LEAST_STEPS, passes // (runs * (gradient.forwards + gradient.backwards)))
        if self.rule == "apgd":
            return APGD(threat, steps=steps, gradient=gradient, objective=objective)
        more: dict = {"random_start": self.start == "random"}
        if self.rule == "starts":
            return PGD(threat, steps, gradient=gradient, objective=objective, restarts=STARTS, **more)
        if self.rule in ("momentum", "average"):
            more[self.rule] = 1.0 if self.rule == "momentum" else 0.9
        return PGD(threat, steps, gradient=gradient, objective=objective, **more)


def views(model: object, threat: Ball, random: bool, differentiable: bool = True) -> list[View]:
    """Every view the model allows: its own backward, every substituted backward and relaxed forward that its layers
    declare (one name for all layers, and a choice per type of layer), ensembles of them, and attacks without a
    gradient at several widths."""
    found: list[View] = []
    if differentiable:
        found.append(View("own backward", Backprop, random))
        table = layer_types(model)
        backwards = _choices({kind: layer.substitutes for kind, layer in table.items()})
        forwards = _choices({kind: layer.relaxed for kind, layer in table.items()})
        distinct: list[object] = [_effect(model, {}, {})]
        for choice, kind in [*((c, "backward") for c in backwards), *((c, "forward") for c in forwards)]:
            effect = _effect(model, *((choice, {}) if kind == "backward" else ({}, choice)))
            if effect in distinct:
                continue
            distinct.append(effect)
            found.append(_view(kind, choice, random))
        parts = [v for v in found if not v.name.startswith("forward")][:4]
        if len(parts) > 1:
            found.append(
                View("ensemble of backwards", lambda draws, parts=tuple(parts): _ensemble(parts, draws), random)
            )
    if threat.name == "flips":  # codes: nothing may be asked about between letters
        return found
    widths = {"linf": (0.25, 1.0, 2.0)}.get(threat.name, (1.0,))
    base = threat.size if threat.name == "linf" else 0.05
    for width in widths:
        sigma = float(min(0.5, max(0.005, base * width)))
        found.append(View(f"evolution sigma={sigma:.3g}", lambda draws, s=sigma: Evolution(10, s), False))
    if threat.name in ("linf", "l2"):
        found.append(View("square", None, random))
    return found


def _ensemble(parts: tuple[View, ...], draws: int) -> Gradient:
    return Ensemble(tuple(v.gradient(max(1, draws // len(parts))) for v in parts if v.gradient is not None))


def _view(kind: str, choice: dict[str, str], random: bool) -> View:
    names = set(choice.values())
    text = names.pop() if len(names) == 1 and "*" in choice else " ".join(f"{k}:{v}" for k, v in choice.items())
    if kind == "backward":
        return View(f"backward {text}", lambda draws: Backprop(draws, substitutes=choice), random)
    return View(f"forward {text}", lambda draws: Backprop(draws, relaxed=choice), random)


def layer_types(model: object) -> dict[str, Discrete]:
    """One discrete layer of each type by the name of its class."""
    layers = discrete_layers(model).values() if isinstance(model, nn.Module) else []
    return {type(layer).__name__: layer for layer in reversed(list(layers))}


def _choices(tables: dict[str, dict]) -> list[dict[str, str]]:
    """{"*": name} for every name that is declared, then every product over types of layers (None: its own)."""
    names = sorted({name for table in tables.values() for name in table})
    found: list[dict[str, str]] = [{"*": name} for name in names]
    if len(tables) > 1:
        options = [[(kind, name) for name in (None, *sorted(table))] for kind, table in tables.items()]
        for combination in product(*options):
            choice = {kind: name for kind, name in combination if name is not None}
            if choice and len(found) < MOST_VIEWS:
                found.append(choice)
    return found


def _effect(model: object, backwards: dict[str, str], forwards: dict[str, str]) -> list:
    """What a choice does to every layer, as plain data: equal effects are one attack."""
    effect = []
    for layer in discrete_layers(model).values() if isinstance(model, nn.Module) else []:
        kind = type(layer).__name__
        back = backwards.get(kind, backwards.get("*"))
        front = forwards.get(kind, forwards.get("*"))
        chosen = layer.substitutes.get(back, layer.surrogate) if back else layer.surrogate
        effect.append((describe(chosen), describe(layer.relaxed.get(front) if front else None)))
    return effect


def variations(base: Candidate, random: bool, norm: str = "linf") -> list[Candidate]:
    """The candidate, and every other that differs from it in one part. Under l0 and on codes there is no auto-PGD;
    codes have restarts instead."""
    if base.view.gradient is None:
        return [base]
    if base.free:
        return [base, replace(base, rule="average"), replace(base, start="image")]
    options: dict[str, tuple] = {
        "objective": tuple(OBJECTIVES),
        "rule": RULES.get(norm, ("pgd", "apgd", "momentum", "average")),
        "start": ("random", "image"),
    }
    if base.view.averages:
        options["draws"] = (1, 4, 16)
    changed = [
        replace(base, **{part: value})
        for part, values in options.items()
        for value in values
        if value != getattr(base, part) and not (part == "rule" and value == "average" and not random)
    ]
    return [base, *changed]
