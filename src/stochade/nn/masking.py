"""Weights that differ from example to example: random masks (DropConnect kept on at test) and gates from outside.

Convolutions are done by `stochade.nn.masked_convolution`, without a loop over examples.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stochade.errors import ModelError, UsageError
from stochade.nn import surrogates
from stochade.nn.discrete import Discrete
from stochade.nn.masked_convolution import Method as Method
from stochade.nn.masked_convolution import conv2d_masked as conv2d_masked
from stochade.nn.masked_convolution import conv2d_per_example as conv2d_per_example
from stochade.nn.sampling import bernoulli


def linear_per_example(x: Tensor, weight: Tensor) -> Tensor:
    """Row n of the result is `weight[n] @ x[n]`: [N, I] and [N, O, I] -> [N, O], differentiable in both.

    Raises:
        ModelError: shapes that do not fit each other.
    """
    if x.ndim != 2 or weight.ndim != 3 or weight.shape[0] != x.shape[0] or weight.shape[2] != x.shape[1]:
        raise ModelError("inputs [N, I] and weights [N, O, I]", f"{list(x.shape)} and {list(weight.shape)}")
    return torch.bmm(weight, x.unsqueeze(2)).squeeze(2)


class RandomMask(Discrete):
    """Keeps every weight with probability `keep`, independently for every example (or once for the batch).

    Args:
        keep: probability in (0, 1] that a weight stays.
        scope: "example" (the sound choice) or "call" (one mask shared by the batch).
        rescale: divide by `keep`, so that the masked weight is right on average.

    The relaxed "mean-field" keeps every weight, scaled by `keep` (by 1 when rescaled).
    """

    def __init__(self, keep: float = 0.5, scope: Literal["example", "call"] = "example", rescale: bool = False):
        if not 0 < keep <= 1:
            raise UsageError("a probability to keep a weight in (0, 1]", repr(keep))
        if scope not in ("example", "call"):
            raise UsageError('scope "example" or "call"', repr(scope))
        identity = surrogates.identity()
        super().__init__(identity, {"identity": identity, "ste": identity}, {"mean-field": surrogates._identity})
        self.keep, self.scope, self.rescale = float(keep), scope, rescale

    def hard(self, x: Tensor) -> Tensor:
        return bernoulli(x)

    def gates(self, count: int, weight: Tensor) -> Tensor:
        """A mask for each of `count` examples, [count, *weight.shape]; [1, *weight.shape] if scope is "call"."""
        rows = count if self.scope == "example" else 1
        mask = self(weight.new_full((rows, *weight.shape), self.keep))
        return mask / self.keep if self.rescale else mask

    def extra_repr(self) -> str:
        return f"keep={self.keep:g}, scope={self.scope!r}"


class MaskedLinear(nn.Module):
    """A dense layer whose weights are masked anew for every example.

    Args:
        mask: where masks come from when the caller passes none; None: the caller must pass gates.

    Call with `(x, gates)` to give the masks from outside: [N, O, I], or [1, O, I] for the whole batch. Biases
    are not masked.
    """

    scope = "composite"

    def __init__(self, inputs: int, outputs: int, mask: RandomMask | None = None, bias: bool = True):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None
        self.mask = mask
        nn.init.xavier_uniform_(self.weight)

    def forward(self, x: Tensor, gates: Tensor | None = None) -> Tensor:
        gates = _gates(gates, self.mask, x, self.weight)
        if gates.shape[0] == 1:
            return F.linear(x, self.weight * gates[0], self.bias)
        out = linear_per_example(x, self.weight * gates)
        return out if self.bias is None else out + self.bias


class MaskedConv2d(nn.Module):
    """A convolution whose filters are masked anew for every example.

    Arguments and gates as in `MaskedLinear`; gates are [N, O, I, k, k] or [1, O, I, k, k].
    """

    scope = "composite"

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        stride: int = 1,
        padding: int = 0,
        mask: RandomMask | None = None,
        bias: bool = True,
    ):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None
        self.stride, self.padding, self.mask = stride, padding, mask
        nn.init.xavier_uniform_(self.weight)

    def forward(self, x: Tensor, gates: Tensor | None = None) -> Tensor:
        gates = _gates(gates, self.mask, x, self.weight)
        if gates.shape[0] == 1:
            return F.conv2d(x, self.weight * gates[0], self.bias, self.stride, self.padding)
        out = conv2d_masked(x, self.weight, gates, self.stride, self.padding)
        return out if self.bias is None else out + self.bias.view(1, -1, 1, 1)


def _gates(gates: Tensor | None, mask: RandomMask | None, x: Tensor, weight: Tensor) -> Tensor:
    if gates is None:
        if mask is None:
            raise ModelError("gates, or a layer with a mask of its own", "neither", "pass gates= or build with mask=")
        return mask.gates(x.shape[0], weight)
    if gates.shape[1:] != weight.shape or gates.shape[0] not in (1, x.shape[0]):
        expected = f"[{x.shape[0]} or 1, {', '.join(map(str, weight.shape))}]"
        raise ModelError(f"gates {expected}", f"{list(gates.shape)}")
    return gates
