"""Stochastic binary units that learn by REINFORCE instead of a straight-through estimator.

The estimate of dE[L]/da is g_a = (h - p)(L - b): unbiased for every baseline b that does not depend on h, and of
least variance at b = E[(h - p)^2 L] / E[(h - p)^2] (Williams 1992; Bengio, Leonard and Courville 2013; equations
2.14 and 2.15 of the SGBN thesis). It needs the loss L of every example, which a layer cannot know; so units record
their draws while `recorded` is open, and `score_function_loss` turns losses into gradients afterwards.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stochade.errors import ModelError, UsageError
from stochade.nn import surrogates
from stochade.nn.discrete import Discrete
from stochade.nn.sampling import bernoulli


class _NoOwnBackward(torch.autograd.Function):
    """The hard value; who asks for its derivative is told that there is none."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, hard: Tensor) -> Tensor:
        return hard.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise UsageError(
            "a REINFORCE unit trained by its own estimator, or a substitute chosen by name",
            "backpropagation through the unit in training mode",
            "train with the objective Reinforced(); attack in evaluation mode, or with substitutes='ste' or 'soft'",
        )


class ReinforceBinary(Discrete):
    """Fires 1 with probability sigmoid(a), independently for every example and unit; learns by REINFORCE.

    While `recorded` is open (the objective `Reinforced` opens it) nothing is backpropagated through
    the unit: layers below learn through g_a alone. Outside, in training mode, a backward pass is refused, because it
    would train another network than the name says. In evaluation mode the gradient is the soft straight-through
    one: the unit's own estimate is noise to an attacker, and is never given to one.

    Args:
        units: units of an example, or the shape of its activations.
        decay: of the running means behind the baseline, in [0, 1). They are part of the state dict.

    Shapes: [N, *units], floating point; the output has the type of the input.
    Substitutes: "ste", "identity" (derivative 1) and "soft" (p (1 - p)). Relaxed "mean-field": p.

    Raises:
        UsageError: a decay outside [0, 1).
        ModelError: no units, or an input of another shape.
    """

    scope = "example"
    baseline_square: Tensor
    baseline_weighted: Tensor

    def __init__(self, units: int | Sequence[int], decay: float = 0.9):
        shape = (units,) if isinstance(units, int) else tuple(units)
        if isinstance(units, bool) or not shape or min(shape) < 1:
            raise ModelError("a number of units, or the shape of an example's activations", repr(units))
        if isinstance(decay, bool) or not (isinstance(decay, int | float) and 0 <= decay < 1):
            raise UsageError("a decay of the running means in [0, 1)", repr(decay))
        ste, soft = surrogates.identity(), surrogates.sigmoid(1.0)
        super().__init__(soft, {"ste": ste, "identity": ste, "soft": soft}, {"mean-field": torch.sigmoid})
        self._own = soft
        self._draws: list[Draw] | None = None
        self.units, self.decay = shape, float(decay)
        self.register_buffer("baseline_weighted", torch.zeros(shape))
        self.register_buffer("baseline_square", torch.zeros(shape))

    def hard(self, x: Tensor) -> Tensor:
        return bernoulli(torch.sigmoid(x))

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1:] != self.units:
            raise ModelError(f"activations [N, {', '.join(map(str, self.units))}]", f"{list(x.shape)}")
        if self._draws is not None:
            h = self.hard(x.detach())
            self._draws.append(Draw(self, x, h))
            return h
        own = self._backward is None and self._forward is None and self.surrogate is self._own
        if own and self.training and torch.is_grad_enabled() and x.requires_grad:
            return _NoOwnBackward.apply(x, self.hard(x.detach()))  # type: ignore[return-value]
        return super().forward(x)

    @property
    def baseline(self) -> Tensor:
        """b of every unit, [*units]; 0 before the first batch."""
        # Both means start at 0 and forget alike, so their ratio needs no correction for the start.
        known = self.baseline_square > 0
        return torch.where(known, self.baseline_weighted / torch.where(known, self.baseline_square, 1.0), 0.0)

    @torch.no_grad()
    def observe(self, score: Tensor, losses: Tensor) -> None:
        """Move the running means by one batch: h - p, [N, *units], and the losses [N]."""
        kind = self.baseline_square.dtype
        square = score.to(kind).square()
        weighted = square * losses.to(kind).view(-1, *[1] * len(self.units))
        self.baseline_square.lerp_(square.mean(0), 1 - self.decay)
        self.baseline_weighted.lerp_(weighted.mean(0), 1 - self.decay)

    def extra_repr(self) -> str:
        return f"units={list(self.units)}, decay={self.decay:g}"


@dataclass(frozen=True)
class Draw:
    """What a unit saw and drew in one forward: pre-activations `a` (with their graph) and states `h`."""

    unit: ReinforceBinary
    a: Tensor
    h: Tensor

    def log_probability(self) -> Tensor:
        """log p(h | a), shaped like `a`; its derivative in `a` is h - sigmoid(a)."""
        wide = self.a if self.a.dtype == torch.float64 else self.a.float()
        return -F.binary_cross_entropy_with_logits(wide, self.h.to(wide.dtype), reduction="none")

    def score(self) -> Tensor:
        return self.h - torch.sigmoid(self.a.detach())


@contextmanager
def recorded(model: nn.Module) -> Iterator[list[Draw]]:
    """Inside the block, the model's REINFORCE units record their draws in the list and let no gradient through.

    Raises:
        ModelError: a model without such units. UsageError: a block inside another one.
    """
    units = [module for module in model.modules() if isinstance(module, ReinforceBinary)]
    if not units:
        raise ModelError("a model with REINFORCE units", type(model).__name__, "train it with the standard objective")
    if any(unit._draws is not None for unit in units):
        raise UsageError("one recording at a time", "recorded(...) inside recorded(...)")
    draws: list[Draw] = []
    try:
        for unit in units:
            unit._draws = draws
        yield draws
    finally:
        for unit in units:
            unit._draws = None


def score_function_loss(draws: Sequence[Draw], losses: Tensor) -> Tensor:
    """A number per example whose derivative in every recorded pre-activation a is (h - p)(L - b).

    Args:
        draws: of one forward.
        losses: L of every example, [N]; taken as constants. Baselines are those of earlier batches, so they do not
            depend on `draws`: call `ReinforceBinary.observe` afterwards.

    Returns: [N]; add it to the losses and take the mean. Its value means nothing.

    Raises:
        ModelError: losses that are not one per row of the draws.
    """
    total = torch.zeros_like(losses)
    for draw in draws:
        if losses.ndim != 1 or len(draw.a) != len(losses):
            raise ModelError(f"one loss per example, [{len(draw.a)}]", f"{list(losses.shape)}")
        logs = draw.log_probability()
        advantage = losses.detach().view(-1, *[1] * (logs.ndim - 1)) - draw.unit.baseline
        total = total + (advantage * logs).flatten(1).sum(1)
    return total
