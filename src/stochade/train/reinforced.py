"""The objective of networks with REINFORCE units: ordinary backpropagation above them, score functions below."""

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from stochade.nn.reinforce import recorded, score_function_loss


@dataclass(frozen=True)
class Reinforced:
    """Mean cross-entropy; REINFORCE units learn by (h - p)(L - b), with L the cross-entropy of each example.

    Layers above the last unit see ordinary gradients, layers below a unit only what its estimate tells (equation
    2.14 of the SGBN thesis). The value is the cross-entropy alone. Baselines move after each batch.

    Raises:
        ModelError: a model without REINFORCE units.
    """

    def __call__(
        self, forward: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, *, model: nn.Module, seed: int
    ) -> tuple[Tensor, Tensor]:
        with recorded(model) as draws:
            logits = forward(x)
        losses = F.cross_entropy(logits.float(), y, reduction="none")
        estimate = score_function_loss(draws, losses)
        for draw in draws:
            draw.unit.observe(draw.score(), losses)
        return (losses + estimate - estimate.detach()).mean(), logits
