"""Certificates that stop drawing as soon as they are decided: "certified at radius r?", "largest radius of a grid?".

A class whose probability under the smoothing is p is certified at r when p >= p_r, the least probability whose radius
reaches r (at every distance below r the class keeps the majority). A sequential test of p >= p_r takes as many draws
as the input needs instead of n for every one, at the same failure probability alpha (`sequential_plan`). Selection
draws choose the class, as in `certify`, and no other draw looks at which class leads.

**Grid.** Let r_1 < ... < r_m, so the hypotheses H_j: p < p_{r_j} grow with j. All are tested on the same draws, each
at level alpha, and r_j is certified when H_1, ..., H_j are all rejected (fixed-sequence testing, Maurer et al. 1995).
Let j be the first with p < p_{r_j}. Any false claim needs the rejection of H_j, whose probability is alpha at most,
however the tests depend on each other: there is nothing to correct for. A rejection stays when draws go on for a
larger radius.

Three outcomes: True, certified, wrong with probability at most alpha. False, refuted: p is below p_r, wrong with
probability at most `futility` per radius; that says nothing about attacks, and when wrong only costs a certificate.
None, undecided after all draws, or out of reach: `most` draws that all agree would not certify it.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from scipy.optimize import brentq
from torch import Tensor

from stochade.certify.confidence import ceiling, check_alpha, check_count, check_draws
from stochade.certify.procedure import ABSTAIN, checked_ids, first_look
from stochade.certify.sequential_plan import Plan, plan_for
from stochade.certify.smoothing import Model, Smoothing
from stochade.certify.votes import Voter
from stochade.errors import BudgetError
from stochade.randomness import untouched


@dataclass(frozen=True)
class Decision:
    """Whether the majority class is certified at one radius.

    Attributes:
        radius: that was asked for. certified: True, False (refuted) or None (undecided or out of reach).
        prediction: the class if certified, otherwise -1.
        chosen: the class that the selection draws chose; -1 where nothing was drawn.
        votes: for it, of the draws after the selection. draws: how many were made in all, the selection included.
        seconds: wall time.
    """

    radius: float
    certified: bool | None
    prediction: int
    chosen: int
    votes: int
    draws: int
    seconds: float = 0.0


@dataclass(frozen=True)
class Largest:
    """The largest radius of a grid that is certified.

    Attributes:
        radii: the grid. certified: one outcome per radius, first True, then False or None.
        radius: the largest certified one, 0 if none. prediction: the class if any is certified, otherwise -1.
        chosen, votes, draws, seconds: as of `Decision`.
    """

    radii: tuple[float, ...]
    certified: tuple[bool | None, ...]
    radius: float
    prediction: int
    chosen: int
    votes: int
    draws: int
    seconds: float = 0.0


def threshold(smoothing: Smoothing, radius: float, x: Tensor | None = None, top: float = 1.0) -> float | None:
    """A probability p <= top with smoothing.radius(p, x) >= radius, about 1e-9 beyond the least one and never below
    it. None where even `top` has a smaller radius. x: as for `Smoothing.radius`."""
    if smoothing.radius(top, x) < radius:
        return None

    def beyond_it(p: float) -> float:  # never 0, where the search would end: a radius may be flat
        return min(smoothing.radius(p, x), 1e9) - radius or 1e-300

    root = float(brentq(beyond_it, 0.5, top, xtol=1e-9))  # type: ignore[arg-type]
    for step in range(16):
        beyond = min(top, root + 1e-9 * (4**step - 1))
        if smoothing.radius(beyond, x) >= radius:
            return beyond
    return top


def check_radii(radii: Sequence[float]) -> tuple[float, ...]:
    """BudgetError unless finite radii above 0, from small to large."""
    numbers = [float(r) for r in radii if isinstance(r, int | float) and not isinstance(r, bool) and 0 < r < math.inf]
    if not numbers or len(numbers) != len(radii) or any(b <= a for a, b in pairwise(numbers)):
        raise BudgetError("radii above 0, each larger than the one before", repr(tuple(radii)))
    return tuple(numbers)


def decide(
    voter: Voter, classes: int, radius: float, *, selection: int = 100, most: int = 100_000, alpha: float = 0.001,
    futility: float = 0.01, method: str = "spending",
) -> Decision:  # fmt: skip
    """Whether the class that `selection` draws choose is certified at a radius, after as few draws as that takes.

    Args:
        voter: of one input; inside `untouched(model)`. classes: K.
        most: draws at most, besides the selection. alpha: chance of a wrong certificate, at most.
        futility: chance to refute a radius whose threshold the class reaches, at most.
        method: "spending" (the default: fewer draws, and nearly the power of the fixed test) or "betting".

    Raises:
        BudgetError: impossible numbers, before any draw.
    """
    found = largest(
        voter, classes, (radius,), selection=selection, most=most, alpha=alpha, futility=futility, method=method
    )
    return Decision(
        float(radius), found.certified[0], found.prediction, found.chosen, found.votes, found.draws, found.seconds
    )


def largest(
    voter: Voter, classes: int, radii: Sequence[float], *, selection: int = 100, most: int = 100_000,
    alpha: float = 0.001, futility: float = 0.01, method: str = "spending",
) -> Largest:  # fmt: skip
    """The largest radius of the grid at which the class that `selection` draws choose is certified. Draws end with
    the first radius that is refuted, with the last one certified, or after `most`. Arguments and errors as
    `decide`."""
    start = time.perf_counter()
    grid = check_radii(radii)
    check_draws(selection, most, check_alpha(alpha))
    plans = plans_for(voter.smoothing, voter.x[0], grid, most, alpha, futility, method)
    if not plans:
        return Largest(grid, (None,) * len(grid), 0.0, ABSTAIN, ABSTAIN, 0, 0, time.perf_counter() - start)
    chosen = int(voter.votes("selection", selection, classes).argmax())
    certified, refuted, votes, drawn = _follow(voter, chosen, plans)
    open_end = [False if refuted else None] * (len(grid) - certified)
    return Largest(
        grid, tuple([True] * certified + open_end), grid[certified - 1] if certified else 0.0,
        chosen if certified else ABSTAIN, chosen, votes, selection + drawn, time.perf_counter() - start,
    )  # fmt: skip


def plans_for(
    smoothing: Smoothing, x: Tensor | None, radii: Sequence[float], most: int, alpha: float, futility: float,
    method: str,
) -> list[Plan]:  # fmt: skip
    """The tests of the radii at one input, up to the first that so many draws cannot certify."""
    plans: list[Plan] = []
    for radius in radii:
        least = threshold(smoothing, radius, x, ceiling(most, alpha))
        plan = None if least is None else plan_for(least, most, alpha, futility, method)
        if plan is None or not plan.reachable:
            break
        plans.append(plan)
    return plans


def _follow(voter: Voter, chosen: int, plans: Sequence[Plan]) -> tuple[int, bool, int, int]:
    """(radii certified, whether the next one is refuted, votes, draws), looking at the votes as the plans do."""
    certified, votes, drawn, index = 0, 0, 0, 0
    crossed = [False] * len(plans)
    for look, n in enumerate(plans[0].looks):
        while drawn < n:
            size = min(voter.batch, n - drawn)
            votes += int((voter.block("sequential", index, size) == chosen).sum())
            drawn, index = drawn + size, index + 1
        outcomes = [plan.outcome(look, votes) for plan in plans]
        crossed = [before or now is True for before, now in zip(crossed, outcomes, strict=True)]
        while certified < len(plans) and crossed[certified]:
            certified += 1
        if certified == len(plans) or outcomes[certified] is False:
            return certified, certified < len(plans), votes, drawn
    return certified, False, votes, drawn


def certify_sequential(
    model: Model, x: Tensor, smoothing: Smoothing, radii: Sequence[float], *, selection: int = 100,
    most: int = 100_000, alpha: float = 0.001, futility: float = 0.01, method: str = "spending", batch: int = 1000,
    seed: int = 0, ids: Tensor | None = None, independent: bool = False,
) -> list[Largest]:  # fmt: skip
    """The largest certified radius of a grid for every input; the model and the global generators come back as they
    were.

    Args:
        model, x, smoothing, batch, seed, ids, independent: as for `certify`.
        radii: from small to large, in the smoothing's norm.
        selection, most, alpha, futility, method: as for `decide`, per input.

    Raises:
        BudgetError: a radius that `most` draws certify at no input even when all agree, too few draws for alpha,
            n0 >= n, or other impossible numbers; before any compute.
        ModelError: a model whose draws would not be independent (see `check_independent`).
    """
    grid = check_radii(radii)
    check_draws(selection, most, check_alpha(alpha))
    check_count(batch, "draws per forward (batch)")
    plan_for(0.5, most, alpha, futility, method)
    top = ceiling(most, alpha)
    smoothing.check_inputs(x)
    reach = max((smoothing.radius(top, one) for one in x), default=math.inf)
    if grid[-1] > reach:
        told = f"radii of at most {reach:.4g}, which {most} draws that all agree certify at alpha={alpha:g}"
        raise BudgetError(told, f"{grid[-1]:g}", "smaller radii, or more draws (most)")
    check_count(seed, "a seed", 0)
    classes = first_look(model, x, smoothing, independent, batch)
    known = checked_ids(ids, x)
    with untouched(model):
        return [
            largest(
                Voter(model, smoothing, x[i : i + 1], seed, int(known[i]), batch), classes, grid,
                selection=selection, most=most, alpha=alpha, futility=futility, method=method,
            )
            for i in range(len(x))
        ]  # fmt: skip
