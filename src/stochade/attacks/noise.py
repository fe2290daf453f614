"""Attacks without gradients: noise, random search, and the thesis's unprojected BIM for replication."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from stochade.attacks.ball import spread
from stochade.attacks.base import Attack, Attempt, Task
from stochade.attacks.flips import refuse_codes
from stochade.attacks.fooled import misses
from stochade.attacks.gradients import TILE, Backprop, Gradient, Model, check_whole, objective_values
from stochade.attacks.ledger import Ledger
from stochade.attacks.objectives import Objective, cross_entropy, margin
from stochade.attacks.threats import Ball, Linf, Threat
from stochade.errors import BudgetError
from stochade.randomness import Stream


def _as_attempt(task: Task, inputs: Tensor) -> Attempt:
    """Inputs that cost no pass."""
    ledger = Ledger(task)
    ledger.found = inputs  # as a caller's function gave them: evaluation checks shape, box and budget
    return ledger.attempt()


def _need_threat(threat: object) -> None:
    if not isinstance(threat, Threat):
        raise BudgetError(
            "a threat such as Linf(0.3)", repr(threat), "pass threat=Linf(eps), L2(eps), L1(eps) or L0(k)"
        )


@dataclass(frozen=True)
class UniformNoise(Attack):
    """One random point of the threat: the baseline that no attack may fall behind."""

    threat: Threat
    probabilities_allowed = True

    def __post_init__(self):
        _need_threat(self.threat)

    def cost(self) -> tuple[int, int]:
        return 0, 0

    def search(self, task: Task) -> Attempt:
        return _as_attempt(task, task.threat.start(task.x, task.stream))


@dataclass(frozen=True)
class GaussianNoise(Attack):
    """Gaussian noise of standard deviation `sigma` (None: half the budget under linf, and the budget spread over
    the pixels under l2), projected onto the threat and the box."""

    threat: Threat
    sigma: float | None = None
    probabilities_allowed = True

    def __post_init__(self):
        _need_threat(self.threat)
        refuse_codes(self.threat, "Gaussian noise")
        if self.sigma is not None and not 0 <= self.sigma < float("inf"):
            raise BudgetError("sigma >= 0 or None", repr(self.sigma), "None follows the budget")

    def cost(self) -> tuple[int, int]:
        return 0, 0

    def search(self, task: Task) -> Attempt:
        x, threat = task.x, task.threat
        if self.sigma is not None:
            sigma = self.sigma
        elif isinstance(threat, Linf):
            sigma = spread(threat.scaled(min(threat.size, 1.0)), x) / 2
        else:
            sigma = spread(threat.scaled(min(threat.size, 1e9)), x) / x[0].numel() ** 0.5
        sigma = sigma.clamp(max=10.0) if isinstance(sigma, Tensor) else min(sigma, 10.0)
        return _as_attempt(task, threat.project(x + sigma * task.stream.normal(x.shape[1:], x.dtype), x))


@dataclass(frozen=True)
class RandomSearch(Attack):
    """The best of `samples` random points of the threat, by mean objective over `draws` forwards each.

    Half of the points under linf are corners (every pixel at + or - eps), where linear models have their worst
    case. Examples that are fooled beyond doubt leave. Where the model's scope is known to allow it, several points of
    a small batch share a forward (at most TILE images, doubling from one); which points are tried does not change.
    """

    threat: Threat
    samples: int = 100
    draws: int = 1
    objective: Objective = margin
    probabilities_allowed = True

    def __post_init__(self):
        _need_threat(self.threat)
        check_whole(self.samples, "samples")
        check_whole(self.draws, "draws")

    def cost(self) -> tuple[int, int]:
        return self.samples * self.draws, 0

    @torch.no_grad()
    def search(self, task: Task) -> Attempt:
        ledger = Ledger(task)
        rows, x0, stream, threat, done, width = ledger.open, task.x, task.stream, task.threat, 0, 1
        while done < self.samples and len(rows):
            fit = TILE // (len(rows) * self.draws) if ledger.tiled else 1
            count = max(1, min(width, self.samples - done, fit))
            points = torch.stack([self._point(task, done + i, rows, x0, stream, threat) for i in range(count)])
            values, missed, logits = self._look(ledger, points, rows)
            found, best, every = (
                missed.any(0),
                _first(values == values.amax(0)),
                torch.arange(len(rows), device=x0.device),
            )
            point, value = points[best, every], values[best, every]
            ledger.note(rows, value, threat.distance(point, x0))
            ledger.keep(rows, point, value)
            done, width = done + count, 2 * width
            if not bool(found.any()):
                continue
            tried = found.nonzero()[
                :, 0
            ]  # who leaves, leaves with the first miss, as if one point came after the other
            first, saved = _first(missed)[tried], self.draws * (self.samples - done)
            leave = ledger.leaving(points[first, tried], logits[first, tried][None], rows[tried], saved)
            if leave is not None:
                gone, first = tried[leave], first[leave]
                ledger.settle(rows[gone], points[first, gone], values[first, gone])
                stay = torch.ones_like(rows, dtype=torch.bool)
                stay[gone] = False
                rows, stream, threat, x0 = rows[stay], stream.subset(stay), threat.rows(stay), x0[stay]
        return ledger.attempt()

    def _point(self, task: Task, sample: int, rows: Tensor, x0: Tensor, stream: Stream, threat: Ball) -> Tensor:
        if sample == 0 and task.start is not None:
            return threat.project(task.start[rows], x0)
        if isinstance(threat, Linf) and sample % 2:
            return threat.move(stream.signs(x0.shape[1:], x0.dtype), x0)
        return threat.start(x0, stream)

    def _look(self, ledger: Ledger, points: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """At points [count, n, ...]: mean objective, whether all draws are misses [count, n], and the logits of the
        last draw [count, n, K]."""
        count, n = points.shape[:2]
        y, targets = (None if t is None else t.repeat(count) for t in ledger.goals(rows))
        assert y is not None
        logits = ledger.logits(points.flatten(0, 1), rows.repeat(count), self.draws)
        value = (
            torch.stack([objective_values(self.objective, z, y, targets) for z in logits]).mean(0).to(points.dtype)
        )
        missed = misses(logits, y, targets).all(0)
        return value.view(count, n), missed.view(count, n), logits[-1].view(count, n, -1)


def _first(mask: Tensor) -> Tensor:
    """[n] the first row of [count, n] that holds, 0 where none does."""
    order = torch.arange(len(mask), 0, -1, device=mask.device)
    return (mask * order[:, None]).argmax(0)


@dataclass(frozen=True)
class kubo2019_bim(Attack):
    """The thesis's BIM (kubo2019, equation 2.27 and section 4.3), for replication only: `steps` sign steps of
    `step` each, never projected onto a ball, clipped to the box at the end ("end", as its experiments say) or
    after every step ("step", as its section 2.4.3 says). A pixel may move by steps * step, 1.0 in its figures.
    """

    step: float = 0.1
    steps: int = 10
    clip: str = "end"
    gradient: Gradient = field(default_factory=Backprop)
    objective: Objective = cross_entropy

    def __post_init__(self):
        check_whole(self.steps, "steps")
        if not (isinstance(self.step, int | float) and 0 < self.step < float("inf")) or self.clip not in (
            "end",
            "step",
        ):
            raise BudgetError("step > 0 and clip='end'|'step'", f"{self.step!r}, {self.clip!r}")

    @property
    def threat(self) -> Linf:  # type: ignore[override]
        """What the attack really allows itself."""
        return Linf(min(1.0, self.step * self.steps))

    def cost(self) -> tuple[int, int]:
        return self.steps * self.gradient.forwards, self.steps * self.gradient.backwards

    def search(self, task: Task) -> Attempt:
        ledger = Ledger(task)
        point = task.x.clone() if task.start is None else task.start.clamp(0, 1)
        for _ in range(self.steps):
            value, gradient, *_ = ledger.gradient(self.gradient, point, ledger.open, self.objective, task.stream)
            ledger.note(ledger.open, value, (point - task.x).flatten(1).abs().amax(1))
            point = point + self.step * gradient.sign()
            if self.clip == "step":
                point = point.clamp(0, 1)
        ledger.replace(ledger.open, point.clamp(0, 1))
        return ledger.attempt()


@dataclass(frozen=True)
class Custom(Attack):
    """Any function as an attack: `function(model, x, y) -> inputs`. What it returns is checked against the threat
    by evaluation like everything else, and success is decided there, on fresh draws."""

    function: Callable[[Model, Tensor, Tensor], Tensor]
    threat: Threat
    probabilities_allowed = True

    def __post_init__(self):
        _need_threat(self.threat)
        if not callable(self.function):
            raise BudgetError("a function (model, x, y) -> inputs", repr(self.function))

    def cost(self) -> tuple[int, int]:
        return 0, 0

    def search(self, task: Task) -> Attempt:
        return _as_attempt(task, self.function(task.model, task.x, task.y).detach())
