"""Dropout of activations that stays on at test, with a mask of its own for every example.

For masked weights (DropConnect, random masking) see `stochade.nn.masking`; for dropout in training only,
`torch.nn.Dropout`.
"""

from functools import partial
from typing import Literal

import torch
from torch import Tensor

from stochade.errors import ModelError, UsageError
from stochade.nn import surrogates
from stochade.nn.discrete import Discrete, Surrogate
from stochade.nn.sampling import bernoulli


def _scaled(x: Tensor, factor: float) -> Tensor:
    return x * factor


class AlwaysDropout(Discrete):
    """Sets each activation to 0 with probability `rate`, in training and evaluation alike.

    Args:
        rate: probability in [0, 1) that an activation is dropped.
        scope: "example", an independent mask for every example; "call", one mask shared by the batch.
        rescale: divide what is kept by 1 - rate, so that the mean over masks is the input.

    Shapes: [N, ...]. Its own backward is the drawn mask (with its factor). Substitutes: "identity" and "ste", as if
    nothing was dropped; "mean-field", the derivative of the mean. Relaxed "mean-field": the mean, which is the
    input, times 1 - rate unless rescaled.

    Raises:
        UsageError: a rate outside [0, 1), or another scope.
        ModelError: an input without a dimension for examples.
    """

    def __init__(self, rate: float = 0.5, scope: Literal["example", "call"] = "example", rescale: bool = True):
        if isinstance(rate, bool) or not (isinstance(rate, int | float) and 0 <= rate < 1):
            raise UsageError("a probability to drop an activation in [0, 1)", repr(rate))
        if scope not in ("example", "call"):
            raise UsageError('scope "example" or "call"', repr(scope))
        mean = partial(_scaled, factor=1.0 if rescale else 1.0 - float(rate))
        identity, average = surrogates.identity(), Surrogate(mean, "mean-field")
        super().__init__(
            average, {"identity": identity, "ste": identity, "mean-field": average}, {"mean-field": mean}
        )
        self._own = average
        self.rate, self.scope, self.rescale = float(rate), scope, bool(rescale)

    def hard(self, x: Tensor) -> Tensor:
        shape = x.shape if self.scope == "example" else (1, *x.shape[1:])
        mask = bernoulli(torch.full(shape, 1 - self.rate, dtype=x.dtype, device=x.device))
        return x * (mask / (1 - self.rate) if self.rescale else mask)

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim < 1:
            raise ModelError("an input [N, ...]", "a single number")
        if self._forward is None and self._backward is None and self.surrogate is self._own:
            return self.hard(x)
        return super().forward(x)

    def extra_repr(self) -> str:
        return f"rate={self.rate:g}, scope={self.scope!r}, rescale={self.rescale}"
