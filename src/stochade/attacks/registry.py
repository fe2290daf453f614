"""Attacks by the name that the command line takes."""

import difflib
from collections.abc import Callable
from typing import Any

from stochade.attacks.base import Attack
from stochade.attacks.descent import BIM, FGSM, ILL, MIFGSM, PGD
from stochade.attacks.gradients import Backprop, Evolution
from stochade.attacks.noise import GaussianNoise, RandomSearch, UniformNoise, kubo2019_bim
from stochade.attacks.objectives import OBJECTIVES
from stochade.attacks.targeted import Targeted
from stochade.attacks.threats import Ball, parse_threat
from stochade.errors import BudgetError, UsageError

ATTACKS: dict[str, tuple[Callable[..., Attack], str]] = {
    "fgsm": (FGSM, "one step with the whole budget"),
    "bim": (BIM, "basic iterative method, projected, 10 steps from the image"),
    "ill": (ILL, "iterative least-likely class, 10 steps"),
    "pgd": (PGD, "projected gradient descent, random start, 40 steps"),
    "mifgsm": (MIFGSM, "momentum iterative FGSM, 10 steps"),
    "evolution": (PGD, "PGD on an antithetic evolution-strategies gradient (no backpropagation)"),
    "uniform-noise": (UniformNoise, "one random point of the threat"),
    "gaussian-noise": (GaussianNoise, "Gaussian noise, projected"),
    "random-search": (RandomSearch, "the best of many random points"),
    "kubo2019-bim": (kubo2019_bim, "the thesis's BIM without projection, for replication (10 steps of eps/10)"),
}

_OPTIONS: dict[str, Callable[[str], object]] = {
    "steps": int,
    "restarts": int,
    "samples": int,
    "pairs": int,
    "draws": int,
    "step_size": float,
    "momentum": float,
    "sigma": float,
    "objective": str,
    "backward": str,
    "forward": str,
    "clip": str,
    "eps": str,
    "norm": str,
    "target": str,
}


def parse_attack(text: str, threat: Ball) -> Attack:
    """`"pgd"`, `"pgd steps=100 draws=20 objective=margin backward=soft"`, `"fgsm eps=0.3"` -> an attack.

    Options: steps, restarts, step_size, momentum, samples, sigma, clip; draws (per gradient), pairs (of evolution),
    backward and forward (substitutes for all discrete layers that declare them), objective. Every attack takes eps
    and norm (a threat of its own instead of `threat`) and target (least-likely, runner-up, random or a class).

    Raises:
        UsageError: an unknown attack or option. BudgetError: a value that makes no sense.
    """
    name, *pairs = text.split() or [""]
    if name not in ATTACKS:
        near = difflib.get_close_matches(name, ATTACKS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(ATTACKS)}"
        raise UsageError("the name of an attack", repr(name), hint)
    options = dict(_option(name, pair) for pair in pairs)
    threat = _own_threat(threat, options.pop("norm", None), options.pop("eps", None))
    if (goal := options.pop("target", None)) is not None:
        rest = [pair for pair in pairs if not pair.startswith("target=")]
        return Targeted(parse_attack(" ".join([name, *rest]), threat), int(goal) if goal.isdigit() else goal)
    if "objective" in options:
        if options["objective"] not in OBJECTIVES:
            raise UsageError(f"an objective out of {', '.join(OBJECTIVES)}", repr(options["objective"]))
        options["objective"] = OBJECTIVES[str(options["objective"])]
    if name == "kubo2019-bim":
        options.setdefault("step", threat.eps / int(options.get("steps", 10)))  # type: ignore[call-overload]
        return _built(name, {k: v for k, v in options.items() if k != "threat"})
    if name in ("fgsm", "bim", "ill", "pgd", "mifgsm"):
        draws = options.pop("draws", 1)
        gradient = Backprop(draws, options.pop("backward", None), options.pop("forward", None))  # type: ignore[arg-type]
        options["gradient"] = gradient
    if name == "evolution":
        sigma, count = options.pop("sigma", 0.05), options.pop("pairs", 50)
        options["gradient"] = Evolution(count, sigma, options.pop("draws", 1))  # type: ignore[arg-type]
    return _built(name, {"threat": threat} | options)


def _own_threat(threat: Ball, norm: str | None, eps: str | None) -> Ball:
    """The threat of an attack that names its own budget or norm."""
    if norm is None:
        return threat if eps is None else parse_threat(f"{threat.name}={eps}")
    if eps is None and norm != threat.name:
        raise BudgetError("a budget beside another norm", f"norm={norm}", f"write norm={norm} eps=NUMBER")
    return parse_threat(f"{norm}={threat.eps if eps is None else eps}")


def _option(name: str, pair: str) -> tuple[str, Any]:
    key, equals, value = pair.partition("=")
    if not equals or key not in _OPTIONS:
        near = difflib.get_close_matches(key, _OPTIONS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"options: {', '.join(_OPTIONS)}"
        raise UsageError(f"option=value for {name}", repr(pair), hint)
    try:
        return key, _OPTIONS[key](value)
    except ValueError:
        raise BudgetError(f"a number for {key}", repr(value)) from None


def _built(name: str, options: dict) -> Attack:
    try:
        return ATTACKS[name][0](**options)
    except TypeError as problem:
        raise UsageError(f"options that {name} takes", str(problem).split(") ")[-1]) from None
