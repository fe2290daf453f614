"""One descent loop: FGSM, BIM, iterative least-likely, PGD in any norm, momentum.

Attack = threat x objective x gradient x search; this file is the search. `FGSM`, `BIM`, `ILL`, `PGD` and
`MIFGSM` are the same loop with different parts.
"""

from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from stochade.attacks.base import Attack, Attempt
from stochade.attacks.fooled import Watch, confirm, draws_needed, misses
from stochade.attacks.gradients import Backprop, Gradient, Model, _objective, _whole, check_logits
from stochade.attacks.objectives import Objective, cross_entropy, least_likely
from stochade.attacks.threats import Ball, Linf, Threat
from stochade.errors import BudgetError
from stochade.randomness import Stream

WHOLE = float("inf")  # step size: the whole budget at once


@dataclass(frozen=True)
class Descent(Attack):
    """Steepest ascent of an objective inside a threat.

    On a linear model one whole-budget step (FGSM) is the closed-form worst case for every norm, box included;
    with more steps the loop converges to the same point.

    Args:
        threat: which inputs are allowed.
        steps: gradient evaluations per restart.
        step_size: length of a step in units of the threat; None: 2.5 * budget / steps (Madry et al. 2018),
            `WHOLE`: everything that is left of the budget.
        gradient: `Backprop(draws, substitutes)`, `Evolution(...)`.
        objective: what is maximised.
        random_start: start at `threat.start` instead of the image.
        restarts: independent runs; the one with the highest mean objective (fresh draws on random models) wins.
        momentum: decay of the accumulated gradient, each normalised by its mean absolute value (Dong et al. 2018).
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
        _whole(self.steps, "steps")
        _whole(self.restarts, "restarts")
        if self.step_size is not None and not (isinstance(self.step_size, int | float) and self.step_size > 0):
            raise BudgetError("step_size > 0 or None", repr(self.step_size), "None means 2.5 * budget / steps")
        if self.momentum is not None and not 0 <= self.momentum < float("inf"):
            raise BudgetError("momentum >= 0 or None", repr(self.momentum), "1.0 is usual")
        if self.keep not in (None, "best", "last") or self.goal not in ("any", "least-likely"):
            raise BudgetError(
                "keep='best'|'last'|None and goal='any'|'least-likely'", f"{self.keep!r}, {self.goal!r}"
            )
        if not callable(self.gradient) or not callable(self.objective):
            raise BudgetError("a callable gradient and objective", f"{self.gradient!r}, {self.objective!r}")

    @property
    def step(self) -> float | None:
        """The step in units of the threat; None for the whole budget."""
        if self.step_size == WHOLE:
            return None
        if self.step_size is not None:
            return float(self.step_size)
        size = 2.5 * self.threat.size / self.steps
        return size if size < 1e9 else 2.5 / self.steps  # eps=inf: the box is the budget

    def cost(self) -> tuple[int, int]:
        looks = max(10, getattr(self.gradient, "draws", 1)) * (
            self.keep == "best" or (self.keep is None and not self.drop_fooled) or self.restarts > 1
        )
        per_run = self.steps * self.gradient.forwards + looks
        return (self.restarts * per_run, self.restarts * self.steps * self.gradient.backwards)

    def search(self, model: Model, x: Tensor, y: Tensor, targets: Tensor | None, stream: Stream) -> Attempt:
        watch = Watch(model)
        draws = getattr(self.gradient, "draws", 1)
        if self.goal == "least-likely" and targets is None:
            targets = least_likely_targets(model, x, y, draws)
        state = _State(self, model, x, y, targets, stream, watch)
        for restart in range(self.restarts):
            state.run(restart)
            if not len(state.open):
                break
        return state.attempt()


@torch.no_grad()
def least_likely_targets(model: Model, x: Tensor, y: Tensor, draws: int = 1) -> Tensor:
    """[N] the class with the lowest mean logit on the clean images; never the true class."""
    logits = torch.stack([check_logits(model(x), len(x)) for _ in range(draws)]).mean(0)
    return least_likely(logits.scatter(1, y[:, None], torch.inf))


class _State:
    """The bookkeeping of one search: what was found per example, who is still open, what it cost."""

    def __init__(self, attack: Descent, model: Model, x0, y, targets, stream, watch: Watch):
        self.attack, self.model, self.watch = attack, model, watch
        self.x0, self.y, self.targets, self.stream = x0, y, targets, stream
        n, device = len(x0), x0.device
        self.found = x0.clone()
        self.value = torch.full((n,), -torch.inf, dtype=x0.dtype, device=device)
        self.open = torch.arange(n, device=device)  # examples not fooled beyond doubt
        self.forwards = torch.zeros(n, dtype=torch.long, device=device)
        self.backwards = torch.zeros(n, dtype=torch.long, device=device)
        self.trace: list[Tensor] = []
        self.looks = 0  # sequential tests made, for spending the level
        self.tiled = watch.scope in ("none", "example")

    def run(self, restart: int) -> None:
        """One restart on the examples that are still open."""
        a = self.attack
        rows = self.open
        stream = self.stream.subset(rows).fork("restart", restart)
        x0, y, targets = self._take(rows)
        x = a.threat.start(x0, stream) if a.random_start else x0.clone()
        velocity = torch.zeros_like(x) if a.momentum is not None else None
        best, best_value = x, torch.full_like(x0.flatten(1)[:, 0], -torch.inf)
        for step in range(a.steps):
            with self.watch:
                value, gradient, logits = a.gradient(self.model, x, y, a.objective, targets=targets, stream=stream)
            self.forwards[rows] += a.gradient.forwards
            self.backwards[rows] += a.gradient.backwards
            self._note(rows, value)
            keep_best = self._keeps_best()
            if keep_best:
                better = value > best_value
                best = torch.where(_wide(better, x), x, best)
                best_value = torch.where(better, value, best_value)
            leave = self._leaving(x, y, targets, logits, rows, a.steps - step)
            if leave is not None:
                self._settle(rows[leave], x[leave], value[leave])
                stay = ~leave
                rows = rows[stay]
                if not len(rows):
                    return
                x, x0, y, gradient, best, best_value = (t[stay] for t in (x, x0, y, gradient, best, best_value))
                targets = None if targets is None else targets[stay]
                velocity = None if velocity is None else velocity[stay]
                stream = stream.subset(stay)
            if velocity is not None and a.momentum is not None:
                scale = gradient.flatten(1).abs().mean(1).clamp_min(1e-30)
                velocity = a.momentum * velocity + gradient / _wide(scale, gradient)
                gradient = velocity
            x = _move(a.threat, gradient, x, x0, a.step)
        x = a.threat.project(x, x0)
        keep_best = self._keeps_best()
        if keep_best or a.restarts > 1:
            last_value = self._look(x, y, targets, rows)
            if keep_best:
                better = last_value > best_value
                x, last_value = torch.where(_wide(better, x), x, best), torch.maximum(last_value, best_value)
                x = a.threat.project(x, x0)
            improved = last_value > self.value[rows]
            self.found[rows[improved]], self.value[rows[improved]] = x[improved], last_value[improved]
        else:
            self.found[rows] = x

    def _keeps_best(self) -> bool:
        a = self.attack
        return a.keep == "best" or (a.keep is None and self.watch.deterministic and not a.drop_fooled)

    def _take(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        if len(rows) == len(self.x0):
            return self.x0, self.y, self.targets
        return self.x0[rows], self.y[rows], None if self.targets is None else self.targets[rows]

    def _note(self, rows: Tensor, value: Tensor) -> None:
        line = torch.full((len(self.x0),), torch.nan, dtype=value.dtype, device=value.device)
        line[rows] = value
        self.trace.append(line)

    def _leaving(self, x, y, targets, logits, rows, steps_left: int) -> Tensor | None:
        """[n] who leaves now, or None when nobody does."""
        a = self.attack
        if not a.drop_fooled or getattr(a.gradient, "relaxed", None) is not None:
            return None  # relaxed logits are not the model's
        candidates = misses(logits, y, targets).all(0)
        if not bool(candidates.any()):
            return None
        if self.watch.deterministic and self.watch.repeats(x[candidates], logits[-1][candidates]):
            return candidates
        free, needed = len(logits), draws_needed(self.looks + 1)
        if steps_left * (a.gradient.forwards + 2 * a.gradient.backwards) <= needed - free:
            return None  # the test would cost more than it can save
        self.looks += 1
        index = candidates.nonzero()[:, 0]
        goal = None if targets is None else targets[index]
        leaves, spent = confirm(self.model, x[index], y[index], goal, free, needed, self.tiled)
        self.forwards[rows[index]] += spent
        candidates[index] = leaves
        return candidates if bool(leaves.any()) else None

    def _settle(self, rows: Tensor, x: Tensor, value: Tensor) -> None:
        self.found[rows], self.value[rows] = x, value
        self.open = self.open[~torch.isin(self.open, rows)]

    @torch.no_grad()
    def _look(self, x, y, targets, rows) -> Tensor:
        """[n] mean objective at x over fresh forward draws of the real model, or of the relaxed one that the
        gradient sees."""
        a = self.attack
        draws = 1 if self.watch.deterministic else max(10, getattr(a.gradient, "draws", 1))
        total = torch.zeros(len(x), dtype=x.dtype, device=x.device)
        swapped = getattr(a.gradient, "swapped", nullcontext)
        with swapped(self.model):
            for _ in range(draws):
                total += _objective(a.objective, check_logits(self.model(x), len(x)), y, targets)
        self.forwards[rows] += draws
        return total / draws

    def attempt(self) -> Attempt:
        value = torch.where(torch.isfinite(self.value), self.value, torch.nan)
        trace = torch.stack(self.trace) if self.trace else value[None]
        distance = self.attack.threat.distance(self.found, self.x0)
        return Attempt(self.found, value, distance, self.forwards, self.backwards, trace)


def _wide(v: Tensor, x: Tensor) -> Tensor:
    return v.reshape(-1, *(1,) * (x.dim() - 1))


def _move(threat: Threat, gradient: Tensor, x: Tensor, x0: Tensor, size: float | None) -> Tensor:
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
    threat = _threat(threat)
    size = threat.size / steps if isinstance(steps, int) and steps > 0 and 0 < threat.size < 1e9 else None
    defaults: dict[str, Any] = {"step_size": size}
    return Descent(threat, steps=steps, momentum=momentum, **defaults | parts)


def sweep(attack: Descent, budgets) -> dict[str, Descent]:
    """The same attack at several budgets: {"eps=0.1": ..., ...}, for accuracy-over-budget curves."""
    return {f"eps={eps:.4g}": replace(attack, threat=attack.threat.resized(eps)) for eps in budgets}  # type: ignore[attr-defined]
