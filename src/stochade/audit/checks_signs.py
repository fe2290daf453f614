"""Signs of obfuscated gradients (Athalye, Carlini and Wagner 2018): one step beats many, attacks without the gradient
beat those with it, random points succeed, the unbounded attack fails, a larger budget does not help.

They are signs. On random models none of them need show although the gradient is mostly noise (Popovic et al. 2022):
their silence proves nothing.
"""

from itertools import pairwise

import numpy as np

from stochade.audit import plan
from stochade.audit.evidence import ATHALYE, AUTO_ATTACK, CARLINI, Evidence, established, percent, points
from stochade.audit.findings import Finding

FEW_POINTS = 0.002  # auto-attack warns from 0.2 points on


def one_step_beats_iterated(e: Evidence) -> Finding | None:
    """Steps of the same gradient must help: one step that beats many means that the gradient misleads."""
    if not e.has(e.names.one_step) or not e.own():
        return None
    best = e.best(e.own())
    drop = e.stronger(e.names.one_step, best)
    if drop is None:
        return None
    return Finding(
        "one-step-beats-iterated", "masking",
        f"one step finds {points(drop)} points more than many steps with the same gradient",
        {e.names.one_step: e.text(e.names.one_step), best: e.text(best), "difference": str(drop)},
        "average the gradient over draws, and try substituted backwards",
        ATHALYE,
    )  # fmt: skip


def gradient_free_beats_gradient(e: Evidence) -> Finding | None:
    """An attack without the gradient must not take examples that every attack with it leaves standing. Compared
    example by example: equal means may hide different examples."""
    free = [n for n in plan.GRADIENT_FREE if e.has(n)]
    if not free or not e.own():
        return None
    drop = e.breaks_alone(free, e.own())
    if not established(drop):
        return None
    shown = {n: e.text(n) for n in (e.best(free), e.best(e.own()))}
    return Finding(
        "gradient-free-beats-gradient", "masking",
        f"attacks without gradients take {points(drop)} points that the model's own gradient leaves standing",
        {**shown, "taken without gradients only": str(drop)},
        "the model's backward is wrong or mostly noise: substitute it",
        f"{ATHALYE}; per example: {CARLINI}",
    )  # fmt: skip


def square_lowers_accuracy(e: Evidence) -> Finding | None:
    """On a deterministic model a query attack that takes more than 0.2 points off what all gradients leave says that
    these were not enough."""
    gradients = [n for n in e.inside() if n in plan.OWN_GRADIENT or n.startswith((plan.BACKWARD, plan.FORWARD))]
    if not e.has(plan.SQUARE) or not gradients or e.probes["random"]:
        return None
    drop = e.breaks_alone([plan.SQUARE], gradients)
    if drop.value is None or drop.value <= FEW_POINTS:
        return None
    return Finding(
        "square-lowers-accuracy", "incomplete",
        f"Square takes {points(drop)} points that no gradient takes",
        {plan.SQUARE: e.text(plan.SQUARE), "taken by Square only": str(drop), "threshold": "0.2 points"},
        "more steps and restarts of the gradient attacks, other objectives, more queries",
        AUTO_ATTACK,
    )  # fmt: skip


def random_search_succeeds(e: Evidence) -> Finding | None:
    """Random points must not take examples that the gradient leaves standing."""
    if not e.has(e.names.search) or not e.own():
        return None
    drop = e.breaks_alone([e.names.search], e.own())
    if not established(drop):
        return None
    return Finding(
        "random-search-succeeds", "masking",
        f"the best of random points takes {points(drop)} points that the model's own gradient leaves standing",
        {e.names.search: e.text(e.names.search), e.best(e.own()): e.text(e.best(e.own())),
         "taken by random points only": str(drop),
         "points per example": float(e.record(e.names.search).forwards.mean())},
        "the gradient points away from adversarial images that are easy to find: substitute the backward",
        ATHALYE,
    )  # fmt: skip


def noise_beats_gradient(e: Evidence) -> Finding | None:
    """Undirected noise must not beat the gradient."""
    noises = [n for n in e.names.noises if e.has(n)]
    if not noises or not e.own():
        return None
    noise, own = e.best(noises), e.best(e.own())
    drop = e.stronger(noise, own)
    if drop is None:
        return None
    return Finding(
        "noise-beats-gradient", "masking",
        f"plain noise finds {points(drop)} points more than the model's own gradient",
        {noise: e.text(noise), own: e.text(own), "difference": str(drop)},
        "check the sign of the objective and the model's backward",
        ATHALYE,
    )  # fmt: skip


def unbounded_survives(e: Evidence) -> Finding | None:
    """With the whole box allowed, every example must fall to the model's own gradient (margin objective, which does
    not saturate)."""
    own = [p for p in e.curves.get("budget", []) if p["attack"].startswith(e.names.margin)]
    if not own:
        return None
    last = max(own, key=lambda p: p["x"])
    return _survives(
        e, last["attack"], max(0.05, 1 / e.probes["classes"]), "unbounded-survives",
        f"an attack that may change every {e.names.entry} at will", last["x"], ATHALYE,
    )  # fmt: skip


def grey_image_survives(e: Evidence) -> Finding | None:
    """At linf 0.5 every image can become the same grey one: no classifier is right on more than the commonest class
    there, and the strongest attack must find that."""
    grey = [p for p in e.curves.get("budget", []) if 0.5 <= p["x"] < 1]
    if e.threat["norm"] != "linf" or not grey:
        return None
    best = e.best([p["attack"] for p in grey])
    chance = float(np.bincount(e.records.labels).max()) / len(e.records)
    budget = next(p["x"] for p in grey if p["attack"] == best)
    return _survives(e, best, max(0.05, chance), "grey-image-survives", "at linf 0.5, where all images may turn "
                     "into the same grey one,", budget, CARLINI)  # fmt: skip


def _survives(
    e: Evidence, name: str, limit: float, check: str, what: str, budget: float, source: str
) -> Finding | None:
    score = e.records.score(name)
    if score.low is None or score.low <= limit or score.value is None:
        return None
    return Finding(
        check, "masking",
        f"{percent(score.value)} survive {what}",
        {"budget": budget, "accuracy": str(score), "expected at most": percent(limit)},
        "the gradient does not lead anywhere: substitute the backward or attack without gradients",
        source,
    )  # fmt: skip


def budget_does_not_help(e: Evidence) -> Finding | None:
    """A larger budget must never raise accuracy under the same attack."""
    series: dict[str, list[dict]] = {}
    for point in e.curves.get("budget", []):
        series.setdefault(point.get("series", ""), []).append(point)
    right = e.records.right
    for line in series.values():
        line = sorted(line, key=lambda p: p["x"])
        for small, large in pairwise(line):
            rise = e.paired(right(large["attack"]), right(small["attack"]))
            if established(rise):
                return Finding(
                    "budget-does-not-help", "masking",
                    f"accuracy rises by {points(rise)} points when the budget grows from {small['x']:.3g} "
                    f"to {large['x']:.3g}",
                    {small["attack"]: str(e.records.score(small["attack"])),
                     large["attack"]: str(e.records.score(large["attack"])), "difference": str(rise)},
                    "the attack gets lost: more steps, averaged gradients, another backward",
                    ATHALYE,
                )  # fmt: skip
    return None
