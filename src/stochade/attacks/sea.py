"""The Sparse Encoding Attack (mukhoty2025, section 4) in one step and in many, and its predecessor.

Both are attacks like any other, on a network whose inputs are codes [N, T, ...]. On a model with an encoder in front
(`models.Encoded`), `evaluate` and `attack_codes` draw the codes.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from stochade.attacks.base import Attack, Attempt, Task
from stochade.attacks.descent import Descent
from stochade.attacks.flips import Flips, refuse_queries
from stochade.attacks.gradients import Backprop, Gradient, check_whole
from stochade.attacks.ledger import Ledger
from stochade.attacks.objectives import Objective, cross_entropy
from stochade.attacks.threats import Threat
from stochade.errors import BudgetError


def need_flips(threat: object, attack: str) -> None:
    if not isinstance(threat, Flips):
        raise BudgetError(f"Flips(k) for {attack}", repr(threat), "it attacks codes: Flips(10), Flips(10, 'signed')")


@dataclass(frozen=True)
class CodeDescent(Descent):
    """Descent on codes whose first run starts at the codes, and every further one (`restarts`) at random flips.

    Raises:
        BudgetError: a threat that is not `Flips`; else as in `Descent`.
    """

    random_start: bool = True

    def __post_init__(self):
        super().__post_init__()
        need_flips(self.threat, "the sparse encoding attack")

    def step(self, threat: Threat) -> float | Tensor | None:
        """Without a budget every letter may change in a step: what is best to first order."""
        return None if self.step_size is None and threat.size == float("inf") else super().step(threat)

    def search(self, task: Task) -> Attempt:
        return super().search(task if task.start is not None else replace(task, start=task.x))


def SEA(threat: Flips | float, steps: int = 1, restarts: int = 1, **parts) -> CodeDescent:
    """The sparse encoding attack. One step is the paper's: the k letters of every frame whose change raises the
    linearised objective most. With more steps, each lets 2.5 k / steps new letters of a frame enter and takes others
    back. A number as threat means Flips(k) of {0, 1}.

    One gradient of one draw is what the paper and its code use. The attacked code is one realised encoding, so the
    only randomness left is the network's own, and `gradient=Backprop(draws)` averages over that (on a deterministic
    network all draws are equal). Averages over encodings belong to `ObliviousSEA`, which sees none.
    """
    threat = threat if isinstance(threat, Flips) or not isinstance(threat, int | float) else Flips(threat)
    paper: dict[str, Any] = {"keep": "last", "drop_fooled": False} if steps == restarts == 1 else {}
    return CodeDescent(threat, steps, restarts=restarts, **paper | parts)


@dataclass(frozen=True)
class MaskedSampling(Attack):
    """The attack of Liang et al. (2021) on spikes, which has no budget of flips: in every step each letter moves by
    one in the direction of its gradient's sign, with probability |gradient| / max |gradient| of its example, and
    stays where it would leave the alphabet. Where the whole gradient is zero every letter moves with probability
    `turnover` instead, in a random direction. Fooled examples leave.

    Args:
        threat: Flips(inf), which says the alphabet.
        steps: gradient evaluations.
        turnover: share of letters that move without a gradient.

    Raises:
        BudgetError: a finite budget, numbers that make no sense.
    """

    threat: Flips  # type: ignore[assignment]
    steps: int = 10
    turnover: float = 0.05
    gradient: Gradient = field(default_factory=Backprop)
    objective: Objective = cross_entropy

    def __post_init__(self):
        need_flips(self.threat, "masked sampling")
        if self.threat.size != float("inf"):
            raise BudgetError(
                "Flips(float('inf')) for masked sampling", str(self.threat), "it has no budget; see SEA"
            )
        check_whole(self.steps, "steps")
        if not (isinstance(self.turnover, int | float) and 0 <= self.turnover <= 1):
            raise BudgetError("turnover in [0,1]", repr(self.turnover), "0.05 is usual")
        refuse_queries(self.threat, self.gradient)

    def cost(self) -> tuple[int, int]:
        return self.steps * self.gradient.forwards, self.steps * self.gradient.backwards

    def search(self, task: Task) -> Attempt:
        ledger = Ledger(task, getattr(self.gradient, "draws", 1))
        rows, stream, threat = ledger.open, task.stream, task.threat
        x = task.x.clone() if task.start is None else threat.project(task.start, task.x)
        for step in range(self.steps):
            value, gradient, logits, *_ = ledger.gradient(self.gradient, x, rows, self.objective, stream)
            ledger.note(rows, value, threat.distance(x, ledger.images(rows)))
            saved = (self.steps - step) * (self.gradient.forwards + 2 * self.gradient.backwards)
            leave = ledger.leaving(x, logits, rows, saved)
            if leave is not None:
                ledger.settle(rows[leave], x[leave], value[leave])
                rows, x, gradient, stream = rows[~leave], x[~leave], gradient[~leave], stream.subset(~leave)
                if not len(rows):
                    break
            x = (x + self._moves(gradient, stream)).clamp(threat.lowest, 1)
        ledger.replace(rows, x)
        return ledger.attempt()

    def _moves(self, gradient: Tensor, stream) -> Tensor:
        """-1, 0 or 1 for every letter."""
        size = gradient.abs()
        largest = size.flatten(1).amax(1).view(-1, *(1,) * (gradient.dim() - 1))
        lost = largest == 0
        chance = torch.where(lost, self.turnover, size / largest.clamp_min(1e-38))
        direction = torch.where(lost, stream.signs(gradient.shape[1:], gradient.dtype), gradient.sign())
        return direction * (stream.uniform(gradient.shape[1:], gradient.dtype) < chance)
