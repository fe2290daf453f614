"""How many draws per gradient an attack needs: doubled until the accuracy under it stops moving."""

from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

from stochade.attacks import Attack, Averaged, Backprop, Ensemble, Evolution, Gradient, Transforms
from stochade.attacks.gradients import Model, check_whole
from stochade.errors import BudgetError
from stochade.evaluate import Estimate, Records, evaluate
from stochade.evaluate.intervals import paired


@dataclass(frozen=True)
class DrawsRow:
    """The attack with one number of draws.

    Attributes:
        draws: per gradient.
        accuracy: under the attack, on fresh draws.
        reference: the number of draws it is compared with, None in the first row.
        difference: accuracy minus that of the reference, example by example, with its interval.
    """

    draws: int
    accuracy: Estimate
    reference: int | None
    difference: Estimate | None

    @property
    def moved(self) -> bool:
        """Whether the interval of the difference excludes zero; what is unknown counts as moved."""
        if self.difference is None or self.difference.low is None or self.difference.high is None:
            return self.reference is not None
        return self.difference.low > 0 or self.difference.high < 0

    def __str__(self) -> str:
        against = "" if self.reference is None else f", {self.difference} against {self.reference}"
        return f"{self.draws} draws: {self.accuracy}{against}"


@dataclass(frozen=True)
class StableDraws:
    """The outcome of `draws_until_stable`.

    Attributes:
        draws: the number to use.
        stable: whether neither twice nor four times as many moved the accuracy; False where `most` came first.
        attack: the attack with that number.
        rows: everything that was tried, in order; the width of its intervals says how small a change would show.
    """

    draws: int
    stable: bool
    attack: Attack
    rows: tuple[DrawsRow, ...]

    def __str__(self) -> str:
        verdict = "stable from" if self.stable else "still moving at"
        return "\n".join([f"{verdict} {self.draws} draws per gradient", *map(str, self.rows)])


def draws_until_stable(
    attack: Attack,
    model: Model,
    x: Any,
    y: Any = None,
    *,
    start: int = 1,
    most: int = 64,
    scoring_draws: int = 100,
    seed: int = 0,
    **options,
) -> StableDraws:
    """Double the draws per gradient of an attack until the accuracy under it stops moving beyond its interval.

    A number of draws n is the answer when neither 2n nor 4n draws give an accuracy whose paired difference from that
    of n excludes zero: one comparison alone would overlook a slow fall, a bit per doubling. Where one of them does,
    it takes the place of n. Where `most` comes before there were two such comparisons, it is the answer, and not
    stable. "Not moved" means no more than the intervals can tell; more examples see more.

    Args:
        attack: with a `gradient` that has draws (`Backprop`, `Transforms`, `Averaged`: its `most`; `Evolution`: its
            pairs; `Ensemble`: of every part), or with `draws` of its own; its threat is the budget.
        x, y: as for `evaluate`.
        start: the first number of draws; must suit the gradient (`Averaged` needs two).
        most: the last number of draws.
        scoring_draws: draws of the model per example on which each accuracy rests.
        seed: the seed of every evaluation.
        options: `chunk`, `workers`, `threads`, `device`, `show_progress` of `evaluate`.

    Raises:
        BudgetError: numbers that make no sense, or an attack without draws; before any compute.
    """
    check_whole(start, "start")
    check_whole(most, "most", start)
    check_whole(scoring_draws, "scoring_draws", 2)  # one draw says nothing about its spread
    numbers = [start]
    while numbers[-1] < most:
        numbers.append(min(2 * numbers[-1], most))
    attacks = {n: with_draws(attack, n) for n in numbers}
    records: dict[int, Records] = {}
    rows: list[DrawsRow] = []
    best, still = start, 0  # the number to beat, and how many larger ones did not
    for n in numbers:
        name = f"{n} draws"
        records[n] = evaluate(model, x, y, {name: attacks[n]}, scoring_draws, seed, **options)
        row = DrawsRow(n, records[n].score(name), None, None)
        if rows:
            row = replace(row, reference=best, difference=_difference(records[n], n, records[best], best))
            still = 0 if row.moved else still + 1
            best = n if row.moved else best
        rows.append(row)
        if still == 2:
            return StableDraws(best, True, attacks[best], tuple(rows))
    return StableDraws(most, False, attacks[most], tuple(rows))


def _difference(second: Records, n: int, first: Records, m: int) -> Estimate:
    """accuracy(second) - accuracy(first), paired."""
    shared = second.noise_block() or first.noise_block()
    return paired(second.right(f"{n} draws"), first.right(f"{m} draws"), shared=shared)


def with_draws(attack: Attack, draws: int) -> Attack:
    """The same attack with so many draws per gradient.

    Raises:
        BudgetError: an attack or a gradient that has no number of draws, or cannot have this one.
    """
    names = {f.name for f in fields(attack)} if is_dataclass(attack) else set()
    if "gradient" in names:
        return replace(attack, gradient=_gradient(attack.gradient, draws))  # type: ignore[attr-defined,type-var]
    if "draws" in names:
        return replace(attack, draws=draws)  # type: ignore[type-var]
    raise BudgetError("an attack with draws", repr(attack), "PGD(threat), for example")


def _gradient(gradient: Gradient, draws: int) -> Gradient:
    if isinstance(gradient, Ensemble):
        return replace(gradient, parts=[_gradient(part, draws) for part in gradient.parts])
    if isinstance(gradient, Averaged):
        return replace(gradient, most=draws, least=min(gradient.least, draws))
    if isinstance(gradient, Evolution):
        return replace(gradient, pairs=draws)
    if isinstance(gradient, Backprop | Transforms):
        return replace(gradient, draws=draws)
    raise BudgetError("a gradient with draws", repr(gradient), "Backprop(), Evolution(), Averaged(), Transforms(...)")
