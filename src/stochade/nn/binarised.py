"""Weights of -1 and +1, by sign or by chance, and the layers that multiply with them.

Sources: Courbariaux et al. 2015 and 2016 (equations 2.17 to 2.22 of the SGBN thesis), and the binarised networks of
Galloway et al. 2018 with their released code. The two disagree about the backward: the papers let the gradient
through where |r| <= 1, the code clips the gradient's value to [-1, 1]. Both are here, by name.
"""

from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stochade.errors import UsageError
from stochade.nn import surrogates
from stochade.nn.discrete import Discrete, Surrogate
from stochade.nn.masking import conv2d_per_example, linear_per_example
from stochade.nn.sampling import uniform_like

SignBackward = Literal["mask", "clip"]


class _ClippedGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bound: float) -> Tensor:
        ctx.bound = bound
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return gradients[0].clamp(-ctx.bound, ctx.bound), None


def _clipped_gradient(x: Tensor, bound: float) -> Tensor:
    return _ClippedGradient.apply(x, bound)  # type: ignore[return-value]


def clipped_gradient(bound: float = 1.0) -> Surrogate:
    """Straight-through, with the gradient itself clipped to [-bound, bound], number by number.

    Not linear: what passes depends on the scale of the loss.

    Raises:
        UsageError: a bound that is not positive.
    """
    if isinstance(bound, bool) or not (isinstance(bound, int | float) and bound > 0):
        raise UsageError("a positive bound of the gradient", repr(bound))
    return Surrogate(partial(_clipped_gradient, bound=float(bound)), f"clipped_gradient({bound:g})")


def sign_backward(name: SignBackward) -> Surrogate:
    """The backward of a sign: "mask", 1 where |r| <= 1, else 0 (equation 2.21 of the thesis); "clip", the released
    code's: 1, with the gradient's value clipped to [-1, 1].

    Raises:
        UsageError: another name.
    """
    if name == "mask":
        return surrogates.clipped(-1.0, 1.0)
    if name == "clip":
        return clipped_gradient(1.0)
    raise UsageError('a backward "mask" (|r| <= 1) or "clip" (of the gradient)', repr(name))


def _mean_weight(r: Tensor) -> Tensor:
    return r.clamp(-1, 1)


class BinaryWeight(Discrete):
    """Turns real weights r into weights of -1 and +1.

    By sign, +1 where r >= 0; or, if `drawn`, +1 with probability clip((r + 1)/2, 0, 1), drawn anew in every
    forward, in training and evaluation alike. The mean of a draw is clip(r, -1, 1).

    Args:
        drawn: by chance instead of by sign.
        scope: of the chance: "example", weights of their own for every example, or "call", one draw for the batch,
            as in the released code (whose draws belong to one run of the graph).
        backward: from the binary to the real weight, "mask" or "clip" as in `sign_backward`.

    An attacker needs no substitute for what does not depend on the image; the relaxed "mean-field" of drawn weights
    is their mean.

    Raises:
        UsageError: a scope or a backward of another name.
    """

    def __init__(
        self, drawn: bool = False, scope: Literal["example", "call"] = "example", backward: SignBackward = "mask"
    ):
        if scope not in ("example", "call"):
            raise UsageError('scope "example" or "call"', repr(scope))
        super().__init__(sign_backward(backward), {}, {"mean-field": _mean_weight} if drawn else {})
        self.drawn, self.backward = bool(drawn), backward
        self.scope = scope if drawn else "none"

    def hard(self, x: Tensor) -> Tensor:
        if not self.drawn:
            return torch.where(x >= 0, 1.0, -1.0).to(x.dtype)
        # 1[2u - 1 < r], in place: a draw for every example is the largest tensor of the network.
        return uniform_like(x).mul_(2).sub_(1).lt_(x).mul_(2).sub_(1).to(x.dtype)

    def weights(self, count: int, r: Tensor) -> Tensor:
        """Binary weights for `count` examples, [count, *r.shape]; [1, *r.shape] where all examples share them."""
        if self._forward is not None:
            return self._forward(r)[None]
        rows = count if self.scope == "example" else 1
        binary = self.hard(r.detach().expand(rows, *r.shape))
        if torch.is_grad_enabled() and r.requires_grad:
            soft = (self._backward or self.surrogate).primitive(r)
            binary.add_(soft - soft.detach())
        return binary

    def extra_repr(self) -> str:
        return f"drawn={self.drawn}, scope={self.scope!r}, backward={self.backward!r}"


class BinaryLinear(nn.Module):
    """A dense layer with weights of -1 and +1 and no bias. [N, I] -> [N, O].

    Args:
        binary: how weights become binary; None: by sign.
    """

    scope = "composite"

    def __init__(self, inputs: int, outputs: int, binary: BinaryWeight | None = None):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.binary = BinaryWeight() if binary is None else binary
        _initialise(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.binary.weights(len(x), self.weight)
        return F.linear(x, weight[0]) if len(weight) == 1 else linear_per_example(x, weight)


class BinaryConv2d(nn.Module):
    """A convolution with weights of -1 and +1 and no bias. [N, I, H, W] -> [N, O, H', W'].

    Args:
        binary: how weights become binary; None: by sign.
    """

    scope = "composite"

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        stride: int = 1,
        padding: int = 0,
        binary: BinaryWeight | None = None,
    ):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs, kernel, kernel))
        self.stride, self.padding = stride, padding
        self.binary = BinaryWeight() if binary is None else binary
        _initialise(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.binary.weights(len(x), self.weight)
        if len(weight) == 1:
            return F.conv2d(x, weight[0], None, self.stride, self.padding)
        return conv2d_per_example(x, weight, self.stride, self.padding)


class ScaledReLU(nn.Module):
    """scale * relu(x) with one learned number, which brings sums of many +-1 back to a useful size."""

    scope = "none"

    def __init__(self, scale: float = 0.05):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(float(scale)))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x) * self.scale


def _initialise(weight: Tensor) -> None:
    """As the released code: normal with deviation 0.2, cut at two deviations."""
    nn.init.trunc_normal_(weight, std=0.2, a=-0.4, b=0.4)
