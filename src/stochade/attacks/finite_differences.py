"""Attacks by values of the objective alone: simultaneous perturbation (SPSA), natural evolution strategies (NES).

Both estimate a gradient from differences across random directions. `Evolution` draws them from a Gaussian, `Spsa`
from fair signs; NES feeds its estimate to projected descent, SPSA to Adam.
"""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from stochade.attacks.base import Attack, Attempt, Task
from stochade.attacks.descent import PGD, Descent
from stochade.attacks.flips import refuse_codes
from stochade.attacks.gradients import Evolution, Gradient, check_whole
from stochade.attacks.ledger import Ledger
from stochade.attacks.objectives import Objective, margin
from stochade.attacks.threats import Ball, Threat
from stochade.errors import BudgetError
from stochade.randomness import Stream

FIRST, SECOND = 0.9, 0.999  # decay of Adam's two moments (Kingma and Ba 2015)


@dataclass(frozen=True)
class Spsa(Evolution):
    """Simultaneous perturbation (Spall 1992; attacks: Uesato et al. 2018): as `Evolution`, with directions of fair
    signs, so that every pixel moves by exactly sigma in every query.

    g = mean over v of (L(x + sigma v) - L(x - sigma v)) / (2 sigma) * v, v uniform in {-1, 1}^D. The mean is the
    gradient of the objective up to terms of order sigma^2; on a quadratic objective it is exact.
    """

    pairs: int = 64
    sigma: float = 0.01

    def directions(self, stream: Stream, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return stream.signs(shape, dtype)


@dataclass(frozen=True)
class SPSA(Attack):
    """The SPSA attack (Uesato et al. 2018): Adam on an estimated gradient, projected after every step.

    Fooled examples leave. The others hand back the point of the last step on random models, whose values are noisy,
    and the best one by mean objective on deterministic models.

    Args:
        steps: estimates of the gradient.
        rate: Adam's step, in units of images; None: 2.5 budgets / steps under linf, and 0.01 else (Uesato et al.).
        gradient: how it is estimated, `Spsa(pairs, sigma)` by default: 64 pairs of queries per step.
        objective: what is maximised.

    Raises:
        BudgetError: numbers that make no sense.
    """

    threat: Threat
    steps: int = 100
    rate: float | None = None
    gradient: Gradient = field(default_factory=Spsa)
    objective: Objective = margin

    def __post_init__(self):
        if not isinstance(self.threat, Ball):
            raise BudgetError("a threat such as Linf(0.3)", repr(self.threat), "use Linf, L2, L1 or L0")
        refuse_codes(self.threat, "SPSA")
        check_whole(self.steps, "steps")
        if self.rate is not None and not (isinstance(self.rate, int | float) and 0 < self.rate < float("inf")):
            raise BudgetError("rate > 0 or None", repr(self.rate), "0.01 is usual")
        if not callable(self.gradient) or not callable(self.objective):
            raise BudgetError("a callable gradient and objective", f"{self.gradient!r}, {self.objective!r}")

    def cost(self) -> tuple[int, int]:
        return self.steps * self.gradient.forwards + 1, self.steps * self.gradient.backwards

    def search(self, task: Task) -> Attempt:
        ledger = Ledger(task, max(10, getattr(self.gradient, "draws", 1)))
        rows, x0, threat, stream = ledger.open, task.x, task.threat, task.stream
        x = x0.clone() if task.start is None else threat.project(task.start, x0)
        first, second = torch.zeros_like(x), torch.zeros_like(x)
        rate = self._rate(threat)
        for step in range(1, self.steps + 1):
            value, gradient, logits, *_ = ledger.gradient(self.gradient, x, rows, self.objective, stream)
            ledger.note(rows, value, threat.distance(x, x0))
            if ledger.watch.deterministic:
                ledger.keep(rows, x, value)
            saved = (self.steps - step + 1) * (self.gradient.forwards + 2 * self.gradient.backwards)
            leave = ledger.leaving(x, logits, rows, saved)
            if leave is not None:
                ledger.settle(rows[leave], x[leave], value[leave])
                stay = ~leave
                rows, stream, threat = rows[stay], stream.subset(stay), threat.rows(stay)
                if not len(rows):
                    return ledger.attempt()
                x, x0, gradient, first, second = (t[stay] for t in (x, x0, gradient, first, second))
            first, second = torch.lerp(gradient, first, FIRST), torch.lerp(gradient.square(), second, SECOND)
            change = first / (1 - FIRST**step) / ((second / (1 - SECOND**step)).sqrt() + 1e-12)
            x = threat.project(x + rate * change, x0)
        if not ledger.watch.deterministic:
            ledger.replace(rows, x)
        else:
            value, _ = ledger.look(x, rows, self.objective)
            ledger.keep(rows, x, value)
        return ledger.attempt()

    def _rate(self, threat: Ball) -> float:
        if self.rate is not None:
            return self.rate
        return 2.5 * min(threat.size, 1.0) / self.steps if threat.name == "linf" else 0.01


def NES(
    threat: Threat | float, steps: int = 100, pairs: int = 25, sigma: float = 0.001, draws: int = 1, **parts
) -> Descent:
    """Natural evolution strategies (Ilyas et al. 2018): projected descent on a gradient from `pairs` antithetic
    Gaussian directions of standard deviation `sigma`. Their sigma is for models that are smooth at that scale: where
    layers round, take one of the size of the steps (`evolution` on the command line)."""
    defaults: dict = {"objective": margin, "random_start": False}
    return replace(PGD(threat, steps, gradient=Evolution(pairs, sigma, draws)), **defaults | parts)
