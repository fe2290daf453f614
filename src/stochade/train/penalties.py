"""Penalties on weights as part of the objective: L1 and L2 weight decay as the thesis has them."""

import math
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from stochade.errors import BudgetError
from stochade.train.objectives import Standard, TrainingObjective, measured


def weights_of(model: nn.Module) -> list[Tensor]:
    """The weights of every layer: the trainable parameters of two dimensions and more (no biases, no scales)."""
    return [p for p in model.parameters() if p.requires_grad and p.ndim >= 2]


@dataclass(frozen=True)
class Penalised:
    """inner + l1 sum |w| + l2 sum w^2 over every layer's weights; the parts are told as terms.

    The gradient of the L2 part is 2 l2 w, so that l2 is half of what optimizers call weight decay.

    Args:
        inner: the objective that is penalised.
        l1, l2: lambda; the thesis takes 1e-5 to 1e-1 (kubo2019, equation in section 2.3 and section 3.2).

    Raises:
        BudgetError: a penalty that is negative or not finite.
    """

    inner: TrainingObjective = field(default_factory=Standard)
    l1: float = 0.0
    l2: float = 0.0

    def __post_init__(self):
        for name in ("l1", "l2"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
                raise BudgetError(f"{name} >= 0", repr(value))

    def __call__(self, forward, x: Tensor, y: Tensor, *, model: nn.Module, seed: int, epoch: int = 0) -> Any:
        loss, logits, terms = measured(self.inner, forward, x, y, model=model, seed=seed, epoch=epoch)
        terms = dict(terms) or {"ce": loss}
        weights = weights_of(model)
        if self.l1:
            terms["l1"] = self.l1 * sum((w.abs().sum() for w in weights), loss.new_zeros(()))
            loss = loss + terms["l1"]
        if self.l2:
            terms["l2"] = self.l2 * sum((w.square().sum() for w in weights), loss.new_zeros(()))
            loss = loss + terms["l2"]
        return loss, logits, terms
