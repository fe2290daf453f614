"""Additive Gaussian noise on inputs or activations, active in training and evaluation alike."""

import math
from typing import Literal

import torch
from torch import Tensor

from stochade.errors import UsageError
from stochade.nn import surrogates
from stochade.nn.discrete import Discrete


def _unchanged(x: Tensor) -> Tensor:
    return x


class GaussianNoise(Discrete):
    """x + sigma * n with n standard normal. The derivative is 1; the relaxed "mean-field" is x itself.

    Args:
        sigma: standard deviation in units of the input (pixels in [0, 1] at the input).
        scope: "example", independent noise for every example; "call", one draw shared by the whole batch, as
            defences that perturb once per call do. Certificates need "example".

    Shapes: [N, ...]. Inputs are not clipped: noise at the input may leave [0, 1].
    """

    def __init__(self, sigma: float, scope: Literal["example", "call"] = "example"):
        if not (math.isfinite(sigma) and sigma >= 0):
            raise UsageError("a standard deviation >= 0", repr(sigma))
        if scope not in ("example", "call"):
            raise UsageError('scope "example" or "call"', repr(scope))
        identity = surrogates.identity()
        super().__init__(identity, {"identity": identity, "ste": identity}, {"mean-field": _unchanged})
        self.sigma, self.scope = float(sigma), scope

    def hard(self, x: Tensor) -> Tensor:
        shape = x.shape if self.scope == "example" else (1, *x.shape[1:])
        return x + self.sigma * torch.randn(shape, dtype=x.dtype, device=x.device)

    def extra_repr(self) -> str:
        return f"sigma={self.sigma:g}, scope={self.scope!r}"
