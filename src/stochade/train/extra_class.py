"""Training with a class of its own for adversarial examples."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stochade.errors import UsageError
from stochade.train.objectives import check_start, crafted


@dataclass(frozen=True)
class ExtraClass:
    """weight * loss(clean, y) + (1 - weight) * loss(adversarial, last class): the last logit stands for "attacked".

    The thesis behind SGBN proposes an adversarial class in section 3.3 and does not try it. The model needs one logit
    more than there are classes.

    Args:
        attack: `(model, x, y, seed=...) -> x_adv`, crafted in evaluation mode as in `Adversarial`.
        weight: of the clean loss, in (0, 1).
        start: epochs of clean training before.

    Raises:
        UsageError: a weight outside (0, 1), or (when called) a label that is the last class itself.
        BudgetError: a start before epoch 0.
    """

    attack: Callable[..., Any]
    weight: float = 0.5
    start: int = 0

    def __post_init__(self):
        if not 0 < self.weight < 1:
            raise UsageError("a weight of the clean loss in (0, 1)", repr(self.weight))
        check_start(self.start)

    def __call__(
        self,
        forward: Callable[[Tensor], Tensor],
        x: Tensor,
        y: Tensor,
        *,
        model: nn.Module,
        seed: int,
        epoch: int = 0,
    ) -> Any:
        logits = forward(x)
        last = logits.shape[1] - 1
        if int(y.max()) >= last:
            hint = "build the model with one class more than the data has"
            raise UsageError(f"labels below {last}, the class of attacked images", f"label {int(y.max())}", hint)
        clean = F.cross_entropy(logits, y)
        if epoch < self.start:
            return clean, logits
        flagged = F.cross_entropy(forward(crafted(self.attack, model, x, y, seed)), torch.full_like(y, last))
        terms = {"clean": clean.detach(), "flag": flagged.detach()}
        return self.weight * clean + (1 - self.weight) * flagged, logits, terms
