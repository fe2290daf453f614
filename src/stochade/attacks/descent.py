"""One descent loop: FGSM, BIM, iterative least-likely, PGD in any norm, momentum.

Attack = threat x objective x gradient x search; this file is the search. `FGSM`, `BIM`, `ILL`, `PGD` and
`MIFGSM` are the same loop with different parts.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from stochade.attacks.ball import like
from stochade.attacks.base import Attack, Attempt, Task
from stochade.attacks.flips import refuse_queries
from stochade.attacks.gradients import Backprop, Gradient, Model, check_logits, check_whole
from stochade.attacks.ledger import Ledger
from stochade.attacks.objectives import Objective, cross_entropy, least_likely
from stochade.attacks.threats import Ball, Linf, Threat
from stochade.errors import BudgetError

WHOLE = float("inf")  # step size: the whole budget at once


@dataclass(frozen=True)
class Descent(Attack):
    """Steepest ascent of an objective inside a threat.

    On a linear model one whole-budget step (FGSM) is the closed-form worst case for every norm, box included;
    with more steps the loop converges to the same point.

    Args:
        threat: which inputs are allowed.
        steps: gradient evaluations per restart.
        step_size: length of a step in units of the threat; None: reach * budget / steps (Madry et al. 2018: 2.5),
            `WHOLE`: everything that is left of the budget.
        gradient: `Backprop(draws, substitutes)`, `Evolution(...)`.
        objective: what is maximised.
        random_start: start at `threat.start` instead of the image.
        restarts: independent runs; the one with the highest mean objective (fresh draws on random models) wins.
        momentum: decay of the accumulated gradient, each normalised by its mean absolute value (Dong et al. 2018).
        average: weight of the past in a running mean of gradients, which averages over draws across steps; a plain
            mean of all gradients so far until it reaches that weight. Not together with momentum.
        keep: "best" point by mean objective, or the "last" one. None: the last, where fooled examples leave (no point
            before it fooled the model, so an unseen one cannot be worse) and where values are noisy (the best of
            them is mostly luck); the best on deterministic models when nobody leaves.
        drop_fooled: examples that are fooled beyond doubt leave. Off for transfer, detection and training.
        goal: "any" wrong class or the "least-likely" one on the clean image.

    Raises:
        BudgetError: steps, restarts or step sizes that make no sense.
    """

    threat: Threat
    steps: int = 40
    step_size: float | None = None
    gradient: Gradient = field(default_factory=Backprop)
    objective: Objective = cross_entropy
    random_start: bool = False
    restarts: int = 1
    momentum: float | None = None
    average: float | None = None
    reach: float = 2.5
    keep: str | None = None
    drop_fooled: bool = True
    goal: str = "any"

    def __post_init__(self):
        if not isinstance(self.threat, Threat):
            raise BudgetError(
                "a threat such as Linf(0.3)",
                repr(self.threat),
                "pass threat=Linf(eps), L2(eps), L1(eps) or L0(k)",
            )
        check_whole(self.steps, "steps")
        check_whole(self.restarts, "restarts")
        if self.step_size is not None and not (isinstance(self.step_size, int | float) and self.step_size > 0):
            raise BudgetError("step_size > 0 or None", repr(self.step_size), "None means 2.5 * budget / steps")
        if self.momentum is not None and not 0 <= self.momentum < float("inf"):
            raise BudgetError("momentum >= 0 or None", repr(self.momentum), "1.0 is usual")
        if self.average is not None and (self.momentum is not None or not 0 <= self.average < 1):
            got = f"average={self.average!r}, momentum={self.momentum!r}"
            raise BudgetError("average in [0,1) or None, without momentum", got, "0.9 is usual")
        if not (isinstance(self.reach, int | float) and 0 < self.reach < float("inf")):
            raise BudgetError("reach > 0", repr(self.reach), "2.5 budgets in all steps together is usual")
        if self.keep not in (None, "best", "last") or self.goal not in ("any", "least-likely"):
            raise BudgetError(
                "keep='best'|'last'|None and goal='any'|'least-likely'", f"{self.keep!r}, {self.goal!r}"
            )
        if not callable(self.gradient) or not callable(self.objective):
            raise BudgetError("a callable gradient and objective", f"{self.gradient!r}, {self.objective!r}")
        refuse_queries(self.threat, self.gradient)

    def step(self, threat: Threat) -> float | Tensor | None:
        """The step in units of the threat, a number or [n]; None for the whole budget."""
        if self.step_size == WHOLE:
            return None
        if self.step_size is not None:
            return float(self.step_size)
        size = self.reach * threat.size / self.steps
        if size >= 1e9:
            return self.reach / self.steps  # eps=inf: the box is the budget
        return threat.scaled(size) if isinstance(threat, Ball) else size

    def cost(self) -> tuple[int, int]:
        looks = max(10, getattr(self.gradient, "draws", 1)) * (
            self.keep == "best" or (self.keep is None and not self.drop_fooled) or self.restarts > 1
        )
        per_run = self.steps * self.gradient.forwards + looks
        return (self.restarts * per_run, self.restarts * self.steps * self.gradient.backwards)

    def search(self, task: Task) -> Attempt:
        draws = getattr(self.gradient, "draws", 1)
        if self.goal == "least-likely" and task.targets is None:
            task = replace(task, targets=least_likely_targets(task.model, task.x, task.y, draws))
        ledger = Ledger(task, max(10, draws))
        for restart in range(self.restarts):
            self._run(ledger, restart)
            if not len(ledger.open):
                break
        return ledger.attempt()

    def _run(self, ledger: Ledger, restart: int) -> None:
        """One restart on the examples that are still open."""
        rows, task = ledger.open, ledger.task
        stream = ledger.stream.subset(rows).fork("restart", restart)
        x0, threat = ledger.images(rows), _rows(task.threat, rows)
        if task.start is not None and restart == 0:
            x = threat.project(task.start[rows], x0)
        else:
            x = threat.start(x0, stream) if self.random_start else x0.clone()
        velocity = torch.zeros_like(x) if self.momentum is not None or self.average is not None else None
        best, best_value = x, torch.full_like(x0.flatten(1)[:, 0], -torch.inf)
        for step in range(self.steps):
            value, gradient, logits, *_ = ledger.gradient(self.gradient, x, rows, self.objective, stream)
            ledger.note(rows, value, threat.distance(x, x0))
            if self._keeps_best(ledger):
                better = value > best_value
                best = torch.where(like(better, x), x, best)
                best_value = torch.where(better, value, best_value)
            leave = self._leaving(ledger, x, logits, rows, self.steps - step)
            if leave is not None:
                ledger.settle(rows[leave], x[leave], value[leave])
                stay = ~leave
                rows = rows[stay]
                if not len(rows):
                    return
                x, x0, gradient, best, best_value = (t[stay] for t in (x, x0, gradient, best, best_value))
                velocity = None if velocity is None else velocity[stay]
                stream, threat = stream.subset(stay), _rows(threat, stay)
            if velocity is not None:
                gradient = velocity = self._averaged(velocity, gradient, step)
            x = _move(threat, gradient, x, x0, self.step(threat))
        self._finish(ledger, rows, threat.project(x, x0), x0, threat, best, best_value)

    def _averaged(self, velocity: Tensor, gradient: Tensor, step: int) -> Tensor:
        """The direction of this step out of all gradients so far."""
        if self.momentum is not None:
            scale = gradient.flatten(1).abs().mean(1).clamp_min(1e-30)
            return self.momentum * velocity + gradient / like(scale, gradient)
        assert self.average is not None
        keep = min(self.average, step / (step + 1))  # a plain mean at first, so that the start at zero has no weight
        return keep * velocity + (1 - keep) * gradient

    def _finish(self, ledger: Ledger, rows, x, x0, threat, best, best_value) -> None:
        """Choose between the last and the best point, and between this restart and those before."""
        keep_best = self._keeps_best(ledger)
        if not (keep_best or self.restarts > 1):
            ledger.replace(rows, x)
            return
        value, _ = ledger.look(x, rows, self.objective, gradient=self.gradient)
        if keep_best:
            better = value > best_value
            x, value = torch.where(like(better, x), x, best), torch.maximum(value, best_value)
            x = threat.project(x, x0)
        ledger.keep(rows, x, value)

    def _keeps_best(self, ledger: Ledger) -> bool:
        return self.keep == "best" or (self.keep is None and ledger.watch.deterministic and not self.drop_fooled)

    def _leaving(self, ledger: Ledger, x: Tensor, logits: Tensor, rows: Tensor, steps_left: int) -> Tensor | None:
        """[n] who leaves now, or None when nobody does."""
        if not self.drop_fooled or getattr(self.gradient, "relaxed", None) is not None:
            return None  # relaxed logits are not the model's
        saved = steps_left * (self.gradient.forwards + 2 * self.gradient.backwards)
        return ledger.leaving(x, logits, rows, saved)


@torch.no_grad()
def least_likely_targets(model: Model, x: Tensor, y: Tensor, draws: int = 1) -> Tensor:
    """[N] the class with the lowest mean logit on the clean images; never the true class."""
    logits = torch.stack([check_logits(model(x), len(x)) for _ in range(draws)]).mean(0)
    return least_likely(logits.scatter(1, y[:, None], torch.inf))


def _rows(threat: Threat, index: Tensor) -> Threat:
    """The threat for some rows; a threat of a caller's own knows no budgets per row."""
    return threat.rows(index) if isinstance(threat, Ball) else threat


def _move(threat: Threat, gradient: Tensor, x: Tensor, x0: Tensor, size: float | Tensor | None) -> Tensor:
    if isinstance(threat, Ball):
        return threat.move(gradient, x, x0, size)
    return threat.project(x + threat.steepest(gradient, x, x0, size), x0)


def _threat(threat: Threat | float) -> Threat:
    return threat if isinstance(threat, Threat) else Linf(threat)


def FGSM(threat: Threat | float, **parts) -> Descent:
    """Fast gradient sign method, one step with the whole budget (Goodfellow et al. 2015; kubo2019, equation
    2.26), in the steepest direction of whatever norm the threat has. A number means Linf."""
    defaults: dict[str, Any] = {"keep": "last", "drop_fooled": False}
    return Descent(_threat(threat), steps=1, step_size=WHOLE, **defaults | parts)


def BIM(threat: Threat | float, steps: int = 10, **parts) -> Descent:
    """Basic iterative method (Kurakin et al. 2017): steps from the image, projected. For the thesis's variant
    without projection see `kubo2019_bim`."""
    return Descent(_threat(threat), steps=steps, **parts)


def ILL(threat: Threat | float, steps: int = 10, **parts) -> Descent:
    """Iterative least-likely class method (Kurakin et al. 2017; kubo2019, equation 2.28, projected)."""
    return Descent(_threat(threat), steps=steps, goal="least-likely", **parts)


def PGD(threat: Threat | float, steps: int = 40, **parts) -> Descent:
    """Projected gradient descent with a random start (Madry et al. 2018), in any norm."""
    defaults: dict[str, Any] = {"random_start": True}
    return Descent(_threat(threat), steps=steps, **defaults | parts)


def MIFGSM(threat: Threat | float, steps: int = 10, momentum: float = 1.0, **parts) -> Descent:
    """Momentum iterative FGSM (Dong et al. 2018): momentum 1, steps of budget / steps."""
    defaults: dict[str, Any] = {"reach": 1.0}
    return Descent(_threat(threat), steps=steps, momentum=momentum, **defaults | parts)


def sweep(attack: Descent, budgets) -> dict[str, Descent]:
    """The same attack at several budgets: {"eps=0.1": ..., ...}, for accuracy-over-budget curves."""
    return {f"eps={eps:.4g}": replace(attack, threat=attack.threat.resized(eps)) for eps in budgets}  # type: ignore[attr-defined]
