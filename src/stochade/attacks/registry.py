"""Attacks by the name that the command line takes."""

import difflib
import inspect
import types
import typing
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from functools import partial
from typing import Any

from stochade.attacks.adaptive_suite import Adaptive
from stochade.attacks.apgd import APGD, APGDTargeted
from stochade.attacks.base import Attack
from stochade.attacks.cw import CW
from stochade.attacks.deepfool import DeepFool
from stochade.attacks.descent import BIM, FGSM, ILL, MIFGSM, PGD, Descent
from stochade.attacks.fab import FAB
from stochade.attacks.finite_differences import NES, SPSA, Spsa
from stochade.attacks.flips import Flips, parse_flips
from stochade.attacks.fmn import FMN
from stochade.attacks.gradients import Backprop, Evolution
from stochade.attacks.hopskipjump import HopSkipJump
from stochade.attacks.jsma import JSMA
from stochade.attacks.lbfgs import LBFGS
from stochade.attacks.noise import GaussianNoise, RandomSearch, UniformNoise, kubo2019_bim
from stochade.attacks.objectives import OBJECTIVES, cross_entropy, dlr, margin
from stochade.attacks.oblivious import FixedFlips, ObliviousSEA
from stochade.attacks.sa_pgd import SAPGD
from stochade.attacks.sea import SEA, MaskedSampling
from stochade.attacks.sigma_zero import SigmaZero
from stochade.attacks.square import Square
from stochade.attacks.suites import fast, random, standard
from stochade.attacks.targeted import Targeted
from stochade.attacks.threats import Ball, parse_threat
from stochade.attacks.transfer import Transfer
from stochade.errors import BudgetError, UsageError

Factory = Callable[..., Attack]


def _evolution(
    threat: Ball, steps: int = 40, pairs: int = 50, sigma: float = 0.05, draws: int = 1, **parts
) -> Attack:
    return PGD(threat, steps, gradient=Evolution(pairs, sigma, draws), **parts)


def _spsa(
    threat: Ball, steps: int = 100, pairs: int = 64, sigma: float = 0.01, draws: int = 1, rate: float | None = None,
    objective: Any = margin,
) -> Attack:  # fmt: skip
    return SPSA(threat, steps, rate, Spsa(pairs, sigma, draws), objective)


def _kubo(threat: Ball, steps: int = 10, step: float | None = None, **parts) -> Attack:
    return kubo2019_bim(threat.eps / steps if step is None else step, steps, **parts)


def _flips(threat: Ball, k: int | None, alphabet: str | None, per: str | None, made: type[Flips] = Flips) -> Flips:
    """The threat on codes: what is named, else what a `Flips` threat says, else 10 flips per frame of {0, 1}."""
    base = threat if isinstance(threat, Flips) else Flips(10)
    return made(base.eps if k is None else k, alphabet or base.alphabet, per or base.per)


def _sea(
    threat: Ball, steps: int = 1, restarts: int = 1, k: int | None = None, alphabet: str | None = None,
    per: str | None = None, **parts,
) -> Attack:  # fmt: skip
    return SEA(_flips(threat, k, alphabet, per), steps, restarts, **parts)


def _oblivious(
    threat: Ball, steps: int = 4, draws: int = 20, k: int | None = None, alphabet: str | None = None,
    per: str | None = None, restarts: int = 1, target: str | None = None, objective: Any = cross_entropy,
    gradient: Any = None,
) -> Attack:  # fmt: skip
    made, goal = _flips(threat, k, alphabet, per, FixedFlips), int(target) if target and target.isdigit() else target
    assert isinstance(made, FixedFlips)
    return ObliviousSEA(made, steps, draws, objective, gradient or Backprop(), restarts, goal)


def _masked(
    threat: Ball, steps: int = 10, turnover: float = 0.05, alphabet: str | None = None, objective: Any = cross_entropy
) -> Attack:
    free = _flips(threat, None, alphabet, None).resized(float("inf"))
    return MaskedSampling(free, steps, turnover, objective=objective)


ATTACKS: dict[str, tuple[Factory, str]] = {
    "fgsm": (FGSM, "one step with the whole budget"),
    "bim": (BIM, "basic iterative method, projected, 10 steps from the image"),
    "ill": (ILL, "iterative least-likely class, 10 steps"),
    "pgd": (PGD, "projected gradient descent, random start, 40 steps"),
    "mifgsm": (MIFGSM, "momentum iterative FGSM, 10 steps"),
    "apgd-ce": (partial(APGD, objective=cross_entropy), "auto-PGD on cross entropy, 100 steps (linf, l2, l1)"),
    "apgd-dlr": (partial(APGD, objective=dlr), "auto-PGD on the difference of logits ratio (linf, l2, l1)"),
    "sa-pgd": (SAPGD, "momentum and adaptive steps for surrogate gradients of spiking networks, 100 steps (linf)"),
    "apgd-t": (APGDTargeted, "auto-PGD towards nine classes in turn, targeted DLR (linf, l2, l1)"),
    "fab": (FAB, "fast adaptive boundary, smallest change, 9 classes of 100 steps (linf, l2, l1)"),
    "square": (Square, "random search over squares, 5000 queries, no gradient (linf, l2, l1)"),
    "cw": (CW, "Carlini and Wagner, smallest change, 9 searches of 1000 steps (l2, linf, l0)"),
    "lbfgs": (LBFGS, "smallest change by box-constrained L-BFGS towards one class (l2)"),
    "deepfool": (DeepFool, "smallest change to the nearest boundary of the linearised model, 50 steps (linf, l2)"),
    "fmn": (FMN, "fast minimum norm, smallest change, 100 steps (linf, l2, l1, l0)"),
    "hopskipjump": (HopSkipJump, "smallest change by decisions alone, 40 steps (linf, l2)"),
    "nes": (NES, "natural evolution strategies: 100 steps of 25 pairs of queries, no gradient"),
    "spsa": (_spsa, "simultaneous perturbation with Adam: 100 steps of 64 pairs of queries, no gradient"),
    "sigma-zero": (SigmaZero, "fewest changed values by descent on a smooth count, 1000 steps (l0)"),
    "jsma": (JSMA, "fewest changed values, the most salient pair at a time, at most 112 (l0)"),
    "evolution": (_evolution, "PGD on an antithetic evolution-strategies gradient (no backpropagation)"),
    "uniform-noise": (UniformNoise, "one random point of the threat"),
    "gaussian-noise": (GaussianNoise, "Gaussian noise, projected"),
    "random-search": (RandomSearch, "the best of many random points (samples=10000 for an audit); random is a suite"),
    "transfer": (Transfer, "another attack on a model of the attacker's own: source=digits-mlp attack=pgd"),
    "standard": (standard, "suite: apgd-ce, apgd-t, fab and square, as AutoAttack has them (linf, l2, l1)"),
    "fast": (fast, "suite: the answer of standard in less time (linf, l2, l1)"),
    "random": (random, "suite for random models: apgd-ce and apgd-dlr, 20 draws per gradient (linf, l2, l1)"),
    "adaptive": (Adaptive, "searches for the attack that works on this model, then runs the winners"),
    "kubo2019-bim": (_kubo, "the thesis's BIM without projection, for replication (10 steps of eps/10)"),
}

CODE_ATTACKS: dict[str, tuple[Factory, str]] = {  # on models with an encoder in front; they take k instead of a norm
    "sea": (
        _sea,
        "sparse encoding attack: the k=10 best flips per frame, 1 step; draws= of the network's noise",
    ),
    "sea-oblivious": (
        _oblivious,
        "sparse encoding attack fixed before the encoding is drawn, 4 steps of 20 encodings",
    ),
    "sea-masked": (_masked, "flips drawn by the size of their gradient, 10 steps, no budget (Liang et al. 2021)"),
}

GRADIENT = {"draws": int, "backward": str, "forward": str}  # what attacks with a gradient take besides
DEFAULTS: dict[str, Any] = {"draws": 1, "backward": None, "forward": None}
EVERYWHERE = {"eps": str, "norm": str, "target": str}  # what every attack takes


def options_of(name: str) -> dict[str, Callable[[str], Any]]:
    """The options that an attack takes on the command line, with how each is read."""
    factory = (ATTACKS | CODE_ATTACKS)[name][0]
    if name == "transfer":
        named: dict[str, Callable[[str], Any]] = {"source": str, "attack": str}
        return named | EVERYWHERE
    made = factory.func if isinstance(factory, partial) else factory
    parameters = inspect.signature(made).parameters
    found = {p.name: p.annotation for p in parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD}
    kind: Any = made if is_dataclass(made) else kubo2019_bim if made is _kubo else Descent
    if is_dataclass(made) or any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        found |= {f.name: f.type for f in fields(kind)}
    options = {key: reader for key, annotation in found.items() if (reader := _reader(annotation)) is not None}
    if "objective" in found:
        options["objective"] = _objective_named
    if "gradient" in found and made not in (_evolution, NES):
        options |= GRADIENT
    if name == "sea-oblivious":  # its draws are encodings, and its targets are chosen on images
        return options | {"draws": int}
    return options | ({"target": str} if name in CODE_ATTACKS else EVERYWHERE)


def _reader(annotation: Any) -> Callable[[str], Any] | None:
    """How the text of an option becomes a value: numbers, words and switches; None for everything else."""
    parts = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
    for kind in (int, float, str):
        if kind in parts and bool not in parts:
            return kind
    return _switch if bool in parts else None


def _switch(text: str) -> bool:
    if text.lower() not in ("yes", "no", "true", "false", "1", "0"):
        raise ValueError(text)
    return text.lower() in ("yes", "true", "1")


def _objective_named(text: str) -> Any:
    if text not in OBJECTIVES:
        raise UsageError(f"an objective out of {', '.join(OBJECTIVES)}", repr(text))
    return OBJECTIVES[text]


def parse_attack(text: str, threat: Ball, load: Callable[[str], Any] | None = None) -> Attack:
    """`"pgd"`, `"pgd steps=100 draws=20 objective=margin backward=soft"`, `"fgsm eps=0.3"` -> an attack.

    Options are the attack's own parameters (`options_of`); attacks with a gradient also take draws (per gradient, of
    the model's own noise; for sea-oblivious encodings), backward and forward (substitutes for all discrete layers
    that declare them). Attacks on images take eps and norm (a threat of its own instead of `threat`), those on codes
    k, alphabet and per; all take target (least-likely, runner-up, random or a class). `transfer` takes source (one
    target or several, with commas), attack (by name) and the options of that attack.

    Args:
        load: the name of a target -> its model, for `transfer`; None leaves a stand-in, which serves to check a text.

    Raises:
        UsageError: an unknown attack or option. BudgetError: a value that makes no sense.
    """
    name, *pairs = text.split() or [""]
    table = ATTACKS | CODE_ATTACKS
    if name not in table:
        near = difflib.get_close_matches(name, table, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(table)}"
        raise UsageError("the name of an attack", repr(name), hint)
    if name == "transfer":
        return _transfer(pairs, threat, load)
    known = options_of(name)
    options = dict(_option(name, known, pair) for pair in pairs)
    threat = _own_threat(threat, options.pop("norm", None), options.pop("eps", None))
    if name != "sea-oblivious" and (goal := options.pop("target", None)) is not None:
        rest = [pair for pair in pairs if not pair.startswith("target=")]
        return Targeted(parse_attack(" ".join([name, *rest]), threat), int(goal) if goal.isdigit() else goal)
    swaps = GRADIENT.keys() - ({"draws"} if name == "sea-oblivious" else set())
    if swaps <= known.keys() and swaps & options.keys():
        own = {key: options.pop(key, default) for key, default in DEFAULTS.items() if key in swaps}
        options["gradient"] = Backprop(own.get("draws", 1), own["backward"], own["forward"])
    try:
        return table[name][0](threat, **options)
    except TypeError as problem:  # an option that the name itself fixes, such as the one step of fgsm
        detail = str(problem).split(") ")[-1].removeprefix("got ")
        raise UsageError(f"options that {name} leaves open", detail) from None


def _transfer(pairs: list[str], threat: Ball, load: Callable[[str], Any] | None) -> Attack:
    given = {key: value for key, _, value in (pair.partition("=") for pair in pairs)}
    if not given.get("source"):
        raise UsageError("source=TARGET for transfer", " ".join(pairs) or "none", "for example source=digits-mlp")
    rest = [pair for pair in pairs if pair.partition("=")[0] not in ("source", "attack")]
    inner = parse_attack(" ".join([given.get("attack", "pgd"), *rest]), threat)
    models = [_nobody if load is None else load(name) for name in given["source"].split(",")]
    return Transfer(models if len(models) > 1 else models[0], inner)


def _nobody(x: Any) -> Any:
    raise UsageError("a source that is loaded", "none", "in Python write Transfer(model, attack)")


def _own_threat(threat: Ball, norm: str | None, eps: str | None) -> Ball:
    """The threat of an attack that names its own budget or norm."""
    if isinstance(threat, Flips) and norm in (None, threat.name) and eps is not None:
        return replace(parse_flips(f"flips={eps}", threat.alphabet), per=threat.per)
    if norm is None:
        return threat if eps is None else parse_threat(f"{threat.name}={eps}")
    if eps is None and norm != threat.name:
        raise BudgetError("a budget beside another norm", f"norm={norm}", f"write norm={norm} eps=NUMBER")
    return parse_threat(f"{norm}={threat.eps if eps is None else eps}")


def _option(name: str, known: dict[str, Callable[[str], Any]], pair: str) -> tuple[str, Any]:
    key, equals, value = pair.partition("=")
    if not equals or key not in known:
        near = difflib.get_close_matches(key, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"options: {', '.join(known)}"
        raise UsageError(f"option=value for {name}", repr(pair), hint)
    try:
        return key, known[key](value)
    except ValueError:
        raise BudgetError(
            f"a number for {key}" if known[key] is not _switch else f"yes or no for {key}", repr(value)
        ) from None
