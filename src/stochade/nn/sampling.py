"""Draws from torch's default generator of the tensor's device, exact also in half precision."""

import torch
from torch import Tensor

_ROOM = 2**-24  # between a uniform number and the ends, so that its logit stays finite


def uniform_like(x: Tensor) -> Tensor:
    """Uniform numbers in [0, 1) shaped like `x`.

    Half types are drawn in float32: bfloat16 knows 256 uniform values, so a unit of probability 0.001 would
    fire four times too often.
    """
    wide = x.dtype if x.dtype in (torch.float32, torch.float64) else torch.float32
    return torch.rand(x.shape, dtype=wide, device=x.device)


def bernoulli(p: Tensor) -> Tensor:
    """1 with probability `p`, else 0, in the type of `p`: 1[u < p], so p = 0 never fires and p = 1 always does."""
    return (uniform_like(p) < p).to(p.dtype)


def gumbel_like(x: Tensor) -> Tensor:
    """Standard Gumbel noise shaped like `x`, -log(-log u), in the type of `uniform_like`; always finite.

    u lies on a grid of 2^-24 (float32), so values above 16.7 do not occur (probability 6e-8).
    """
    return -uniform_like(x).clamp_(2**-25, 1 - 2**-24).log_().neg_().log_()


def logistic_like(x: Tensor) -> Tensor:
    """Standard logistic noise shaped like `x`, log u - log(1 - u), in the type of `uniform_like`; always finite.

    It has the law of the difference of two independent Gumbel variables, at a quarter of their cost.
    """
    return uniform_like(x).logit_(_ROOM)


def logistic_(out: Tensor) -> Tensor:
    """Fills `out` (float32 or float64) with the numbers that `logistic_like` would give."""
    return out.uniform_().logit_(_ROOM)
