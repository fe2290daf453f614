"""A linear layer with a great many outputs, by the faster of the two backends that torch has for it on a CPU.

Heads that give one logit to each weight of a convolution are products with matrices of tens of millions of numbers.
Torch hands float32 products to its BLAS, which on processors of other makers than its own reaches half of what
oneDNN reaches (`benchmarks/wide_linear.py`).
"""

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stochade.native.tensors import readable

_WIDE = 1 << 20  # numbers in the larger factor, from where the choice matters


class WideLinear(nn.Linear):
    """`nn.Linear` in values and names of parameters; only the time differs. Function transforms and tracing see the
    ordinary operation."""

    def forward(self, input: Tensor) -> Tensor:
        return wide_linear(input, self.weight, self.bias)


def wide_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b, as `torch.nn.functional.linear`, equal up to rounding.

    Args:
        x: [N, I]. weight: [O, I]. bias: [O] or None.

    Returns: [N, O], differentiable (twice too) in all three.
    """
    plain = (
        max(x.numel(), weight.numel()) < _WIDE
        or x.ndim != 2
        or len(x) == 0
        or x.shape[1] != weight.shape[1]
        or not readable(x, weight, *(() if bias is None else (bias,)))
        or torch.is_autocast_enabled("cpu")
        or not available()
    )
    return F.linear(x, weight, bias) if plain else _Wide.apply(x, weight, bias)  # type: ignore[return-value]


@cache
def available() -> bool:
    """Whether this torch can be asked for a product by oneDNN."""
    try:
        return torch.backends.mkldnn.is_available() and _product(torch.ones(1, 1), torch.ones(1, 1)).item() == 1
    except (AttributeError, RuntimeError):
        return False


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class _Wide(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        for_x, for_weight, for_bias = ctx.needs_input_grad
        return (
            wide_linear(upstream, weight.t()) if for_x else None,
            wide_linear(upstream.t(), x.t()) if for_weight else None,
            upstream.sum(0) if for_bias else None,
        )
