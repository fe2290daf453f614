"""Auto-PGD: projected gradient ascent that chooses its own step sizes (Croce and Hein 2020; l1: 2021)."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from stochade.attacks.ascent import ASCENTS, Ascent
from stochade.attacks.ball import Ball
from stochade.attacks.base import Attack, Attempt, Task
from stochade.attacks.gradients import Backprop, Gradient, check_whole
from stochade.attacks.ledger import Ledger
from stochade.attacks.objectives import Objective, cross_entropy, dlr, margin
from stochade.attacks.threats import L1, L2, Linf, Threat
from stochade.attacks.tiles import Race, folded, groups, tiled
from stochade.errors import BudgetError
from stochade.randomness import Stream

Aim = Callable[[Tensor], Objective]  # rows -> what is maximised for them
WIDE = ((3.0, 0.3), (2.0, 0.3))  # budgets and shares of the steps before the last phase (Croce and Hein 2021, 3.2)


@dataclass(frozen=True)
class APGD(Attack):
    """Auto-PGD under linf, l2 and l1, untargeted or towards given targets.

    On deterministic models a fooled example leaves at once with the point that fooled it; the others hand back their
    point of highest objective. On random models everything rests on the mean objective over the draws of `gradient`,
    never on one draw: best points, step sizes, and, by the sequential test of `Ledger.leaving`, who leaves. A running
    maximum of noisy values is partly luck, so at the end the best point and the last one are looked at again on fresh
    draws, as many for either, and the higher mean is handed back; restarts are compared by the same fresh means.

    Args:
        threat: Linf, L2 or L1.
        steps: moves per restart: as many gradients, and one look at the last point.
        objective: what is maximised.
        gradient: `Backprop(draws, substitutes)`, `Evolution(...)`.
        restarts: independent random starts (a warm start takes the place of the first).
        rho: share of the steps between two checkpoints that must raise the objective, or the step size halves.
        wide: begin with 30 % of the steps at three times the budget and 30 % at twice it, as AutoAttack does for l1.
        drop_fooled: examples that are fooled beyond doubt leave. Off for transfer, detection and training.

    Raises:
        BudgetError: another threat, or numbers that make no sense.
    """

    threat: Threat
    steps: int = 100
    objective: Objective = cross_entropy
    gradient: Gradient = field(default_factory=Backprop)
    restarts: int = 1
    rho: float = 0.75
    wide: bool = False
    drop_fooled: bool = True

    def __post_init__(self):
        if not isinstance(self.threat, Linf | L2 | L1):
            raise BudgetError("Linf, L2 or L1 for auto-PGD", repr(self.threat), "for L0 try SigmaZero")
        check_whole(self.steps, "steps")
        check_whole(self.restarts, "restarts")
        if isinstance(self.rho, bool) or not isinstance(self.rho, int | float) or not 0 <= self.rho <= 1:
            raise BudgetError("rho in [0, 1]", repr(self.rho), "0.75 is usual")
        if not callable(self.gradient) or not callable(self.objective):
            raise BudgetError("a callable gradient and objective", f"{self.gradient!r}, {self.objective!r}")

    @property
    def draws(self) -> int:
        """Forwards on which points are compared where the model is random."""
        return max(10, getattr(self.gradient, "draws", 1))

    def _runs(self) -> int:
        return self.restarts

    def cost(self) -> tuple[int, int]:
        looks = 2 * self.draws
        per_run = self.steps * self.gradient.forwards + looks
        return self._runs() * per_run, self._runs() * self.steps * self.gradient.backwards

    def search(self, task: Task) -> Attempt:
        ledger = Ledger(task, self.draws)
        for restart in range(self.restarts):
            if len(ledger.open):
                stream = ledger.stream.subset(ledger.open).fork("restart", restart)
                self._run(ledger, stream, lambda rows: self.objective, restart == 0, self.restarts - restart - 1)
        return ledger.attempt()

    def _run(self, ledger: Ledger, stream: Stream, aim: Aim, first: bool, later: int) -> None:
        """One start and all its steps, on the examples that are still open, to which `stream` belongs; the first run
        begins at the caller's start, and `later` ones would follow."""
        rows, task = ledger.open, ledger.task
        x0, threat = ledger.images(rows), task.threat.rows(rows)
        given = task.start is not None and first
        *wider, (_, steps) = self._phases()
        widest = _widened(threat, wider[0][0] if wider else 1.0)
        if given:
            x = widest.project(task.start[rows], x0)  # type: ignore[index]
        else:
            x = ASCENTS[threat.name].begin(widest, x0, stream)
        for factor, wide_steps in wider:  # nobody may leave with a point out of the budget
            allowed = _widened(threat, factor)
            state = self._state(allowed, x0, allowed.project(x, x0), wide_steps, fresh=False)
            self._climb(ledger, rows, state, stream, aim, wide_steps, None)
            x = state.best
        state = self._state(threat, x0, threat.project(x, x0) if wider else x, steps, fresh=not (wider or given))
        rows = self._climb(ledger, rows, state, stream, aim, steps, later)
        if len(rows):
            self._finish(ledger, rows, state, aim(rows))

    def _state(self, threat: Ball, x0: Tensor, x: Tensor, steps: int, fresh: bool) -> Ascent:
        return ASCENTS[threat.name](threat, x0, x, steps, self.rho, fresh)

    def _phases(self) -> list[tuple[float, int]]:
        """(factor of the budget, steps) of each phase; the last has the budget itself."""
        phases = [(factor, math.ceil(share * self.steps)) for factor, share in WIDE] if self.wide else []
        left = self.steps - sum(steps for _, steps in phases)
        return [*phases, (1.0, left)] if left > 0 else [(1.0, self.steps)]

    def _climb(
        self, ledger: Ledger, rows: Tensor, state: Ascent, stream: Stream, aim: Aim, steps: int, later: int | None
    ) -> Tensor:
        """All steps of one phase. `later`: runs still to come, None where nobody may leave (the budget is too wide).
        Returns the rows that are left, on which `state` stands."""
        objective = aim(rows)
        for step in range(steps):
            value, gradient, logits, *_ = ledger.gradient(self.gradient, state.x, rows, objective, stream)
            ledger.note(rows, value, state.threat.distance(state.x, state.x0))
            if later is not None:
                leave = self._leaving(ledger, state.x, logits, rows, steps - step + later * self.steps)
                if leave is not None:
                    ledger.settle(rows[leave], state.x[leave], value[leave])
                    stay = ~leave
                    rows, value, gradient, stream = rows[stay], value[stay], gradient[stay], stream.subset(stay)
                    state.keep(stay)
                    if not len(rows):
                        return rows
                    objective = aim(rows)
            state.move(state.saw(value, gradient))
        return rows

    def _leaving(self, ledger: Ledger, x: Tensor, logits: Tensor, rows: Tensor, steps: int) -> Tensor | None:
        """[n] who leaves now, or None when nobody does."""
        if not self.drop_fooled or getattr(self.gradient, "relaxed", None) is not None:
            return None  # relaxed logits are not the model's
        return ledger.leaving(x, logits, rows, steps * (self.gradient.forwards + 2 * self.gradient.backwards))

    def _finish(self, ledger: Ledger, rows: Tensor, state: Ascent, objective: Objective) -> None:
        """Look at the last point, choose between it and the best one, and between this run and those before."""
        value, logits = ledger.see(state.x, rows, objective, gradient=self.gradient)
        best, best_value = state.best, state.best_value
        if not ledger.watch.deterministic:
            best_value, _ = ledger.look(best, rows, objective, gradient=self.gradient)
        better = value > best_value
        best[better], best_value = state.x[better], torch.maximum(value, best_value)
        ledger.keep(rows, best, self._rank(ledger, rows, best, best_value))
        leave = self._leaving(ledger, state.x, logits, rows, 0)
        if leave is not None:
            ledger.settle(rows[leave], state.x[leave], value[leave])

    def _rank(self, ledger: Ledger, rows: Tensor, x: Tensor, value: Tensor) -> Tensor:
        """[n] what points of different runs are compared by."""
        return value


@dataclass(frozen=True)
class APGDTargeted(APGD):
    """Auto-PGD towards one class after the other, the most likely ones on the clean image (by mean logits) first,
    on the examples that no class before has broken. An example is done when it is misclassified in whatever way.

    Points of different classes are compared by their margin, on random models by its mean over fresh draws. With
    targets given by the caller, these are the only class. Few examples are pulled to several classes at once, which
    leaves the result as it is and takes less time.

    Args:
        objective: what is maximised, with the class as its target.
        restarts: runs per class.
        targets: classes to try at most.
    """

    objective: Objective = dlr
    targets: int = 9

    def __post_init__(self):
        super().__post_init__()
        check_whole(self.targets, "targets")

    def _runs(self) -> int:
        return self.targets * self.restarts

    def cost(self) -> tuple[int, int]:
        forwards, backwards = super().cost()
        return forwards + self.draws * (1 + self._runs()), backwards

    def search(self, task: Task) -> Attempt:
        ledger = Ledger(task, self.draws)
        logits = ledger.logits(task.x, ledger.open)
        classes = likely(logits.mean(0), task.y, task.targets, self.targets)
        left = classes.shape[1] * self.restarts
        leave = self._leaving(ledger, task.x, logits, ledger.open, left * self.steps)
        if leave is not None:
            ledger.settle(ledger.open[leave], task.x[leave])
        for restart in range(self.restarts):
            for group in groups(classes.shape[1], len(ledger.open)):
                left -= len(group)
                if len(ledger.open):
                    self._at_once(ledger, classes, group, restart, left)
        return ledger.attempt()

    def _at_once(self, ledger: Ledger, classes: Tensor, group: range, restart: int, later: int) -> None:
        """A run towards each class of the group, side by side."""
        rows = ledger.open
        own = ledger.stream.subset(rows)
        task = tiled(ledger.task, rows, [own.fork("restart", restart, "class", number) for number in group])
        race = Race(task, self.draws, len(group))
        goals = classes[rows][:, group.start : group.stop].T.flatten()
        self._run(race, task.stream, lambda index: Towards(self.objective, goals[index]), restart == 0, later)
        pick = race.pick()
        part = folded(race.attempt(), pick)
        found_at = ledger.join(rows, part)
        broke = race.broke.view(len(group), -1).any(0)
        better = broke | (part.value > ledger.value[rows])
        ledger.replace(rows[better], part.inputs[better], part.value[better])
        ledger.found_at[rows[better]] = found_at[better]
        ledger.close(rows[broke])

    def _rank(self, ledger: Ledger, rows: Tensor, x: Tensor, value: Tensor) -> Tensor:
        return ledger.look(x, rows, margin, gradient=self.gradient)[0]


def likely(logits: Tensor, y: Tensor, targets: Tensor | None, count: int) -> Tensor:
    """[n, at most count] the wrong classes by descending logit; the caller's targets alone where there are any."""
    if targets is not None:
        return targets[:, None]
    wrong = logits.scatter(1, y[:, None], -torch.inf)
    return wrong.argsort(dim=1, descending=True, stable=True)[:, : min(count, logits.shape[1] - 1)]


@dataclass(frozen=True)
class Towards:
    """An objective with classes [n] of its own as targets, whatever the task's; tiled draws repeat them."""

    objective: Objective
    classes: Tensor

    def __call__(self, logits: Tensor, y: Tensor, targets: Tensor | None = None) -> Tensor:
        return self.objective(logits, y, self.classes.repeat(len(logits) // len(self.classes)))


def _widened(threat: Ball, factor: float) -> Ball:
    """The threat with `factor` times the budget of every row."""
    if factor == 1:
        return threat
    size = factor * threat.size if threat.name != "linf" else min(1.0, factor * threat.size)
    wide, each = threat.resized(size), threat.scaled(size)
    return wide.for_each(each) if isinstance(each, Tensor) else wide
