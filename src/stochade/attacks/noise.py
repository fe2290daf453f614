"""Attacks without gradients: noise, random search, and the thesis's unprojected BIM for replication."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from stochade.attacks.base import Attack, Attempt
from stochade.attacks.fooled import Watch, misses
from stochade.attacks.gradients import Backprop, Gradient, Model, _objective, _whole, check_logits
from stochade.attacks.objectives import Objective, cross_entropy, margin
from stochade.attacks.threats import Linf, Threat
from stochade.errors import BudgetError
from stochade.randomness import Stream


def _attempt(threat: Threat, inputs: Tensor, x0: Tensor, forwards: int, value: Tensor | None = None) -> Attempt:
    n, device = len(x0), x0.device
    value = torch.full((n,), torch.nan, dtype=x0.dtype, device=device) if value is None else value
    count = torch.full((n,), forwards, dtype=torch.long, device=device)
    return Attempt(inputs, value, threat.distance(inputs, x0), count, torch.zeros_like(count), value[None])


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

    def search(self, model, x, y, targets, stream) -> Attempt:
        return _attempt(self.threat, self.threat.start(x, stream), x, 0)


@dataclass(frozen=True)
class GaussianNoise(Attack):
    """Gaussian noise of standard deviation `sigma` (None: half the budget under linf, and the budget spread over
    the pixels under l2), projected onto the threat and the box."""

    threat: Threat
    sigma: float | None = None
    probabilities_allowed = True

    def __post_init__(self):
        _need_threat(self.threat)
        if self.sigma is not None and not 0 <= self.sigma < float("inf"):
            raise BudgetError("sigma >= 0 or None", repr(self.sigma), "None follows the budget")

    def cost(self) -> tuple[int, int]:
        return 0, 0

    def search(self, model, x, y, targets, stream) -> Attempt:
        size = min(self.threat.size, 1.0)
        if self.sigma is not None:
            sigma = self.sigma
        elif isinstance(self.threat, Linf):
            sigma = size / 2
        else:
            sigma = self.threat.size / x[0].numel() ** 0.5
        noisy = x + min(sigma, 10.0) * stream.normal(x.shape[1:], x.dtype)
        return _attempt(self.threat, self.threat.project(noisy, x), x, 0)


@dataclass(frozen=True)
class RandomSearch(Attack):
    """The best of `samples` random points of the threat, by mean objective over `draws` forwards each.

    Half of the points under linf are corners (every pixel at + or - eps), where linear models have their worst
    case. On deterministic models fooled examples leave.
    """

    threat: Threat
    samples: int = 100
    draws: int = 1
    objective: Objective = margin
    probabilities_allowed = True

    def __post_init__(self):
        _need_threat(self.threat)
        _whole(self.samples, "samples")
        _whole(self.draws, "draws")

    def cost(self) -> tuple[int, int]:
        return self.samples * self.draws, 0

    @torch.no_grad()
    def search(self, model: Model, x: Tensor, y: Tensor, targets: Tensor | None, stream: Stream) -> Attempt:
        watch, found = Watch(model), x.clone()
        best = torch.full((len(x),), -torch.inf, dtype=x.dtype, device=x.device)
        rows = torch.arange(len(x), device=x.device)
        forwards = torch.zeros(len(x), dtype=torch.long, device=x.device)
        for sample in range(self.samples):
            x0, goal = x[rows], None if targets is None else targets[rows]
            if isinstance(self.threat, Linf) and sample % 2:
                corner = stream.signs(x.shape[1:], x.dtype) * min(self.threat.eps, 1.0)
                point = self.threat.project(x0 + corner, x0)
            else:
                point = self.threat.start(x0, stream)
            value = torch.zeros(len(rows), dtype=x.dtype, device=x.device)
            with watch:
                logits = torch.stack([check_logits(model(point), len(rows)) for _ in range(self.draws)])
            for z in logits:
                value += _objective(self.objective, z, y[rows], goal) / self.draws
            forwards[rows] += self.draws
            better = value > best[rows]
            found[rows[better]], best[rows[better]] = point[better], value[better]
            if watch.deterministic:
                fooled = misses(logits, y[rows], goal).all(0)
                if bool(fooled.any()) and not watch.repeats(point[fooled], logits[-1][fooled]):
                    continue
                found[rows[fooled]], best[rows[fooled]] = point[fooled], value[fooled]
                rows, stream = rows[~fooled], stream.subset(~fooled)
                if not len(rows):
                    break
        return Attempt(found, best, self.threat.distance(found, x), forwards, torch.zeros_like(forwards), best[None])


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
        _whole(self.steps, "steps")
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

    def search(self, model, x, y, targets, stream) -> Attempt:
        point, trace = x.clone(), []
        for _ in range(self.steps):
            value, gradient, _ = self.gradient(model, point, y, self.objective, targets=targets, stream=stream)
            trace.append(value)
            point = point + self.step * gradient.sign()
            if self.clip == "step":
                point = point.clamp(0, 1)
        point = point.clamp(0, 1)
        n = torch.ones(len(x), dtype=torch.long, device=x.device)
        value = torch.full((len(x),), torch.nan, dtype=x.dtype, device=x.device)
        forwards, backwards = self.cost()
        return Attempt(
            point,
            value,
            (point - x).flatten(1).abs().amax(1),
            n * forwards,
            n * backwards,
            torch.stack(trace),
        )


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

    def search(self, model, x, y, targets, stream) -> Attempt:
        return _attempt(self.threat, self.function(model, x, y).detach(), x, 0)
