"""Parametric noise injection: Gaussian noise of the tensor's own spread times a strength that is trained.

v' = v + alpha * eta, eta ~ N(0, std(v)^2), for weights, inputs or outputs of a layer (He et al. 2019, equations 2 and
3). No gradient goes through std(v); d v' / d v = 1 and d v' / d alpha = eta. Noise is on in training and evaluation.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stochade.errors import ModelError, UsageError
from stochade.nn import surrogates
from stochade.nn.discrete import Discrete
from stochade.nn.masking import conv2d_per_example

On = Literal["weights", "inputs", "outputs"]
ON = ("weights", "inputs", "outputs")


def _unchanged(x: Tensor) -> Tensor:
    return x


class ParametricNoise(Discrete):
    """x + alpha * std(x) * n with n standard normal and `alpha` trained (never decayed).

    Args:
        alpha: the strength at first, 0.25 in the paper.
        scope: "example": every row has its own noise and its own standard deviation, so that a row depends on no
            other; "call": one draw and one deviation for the whole batch.

    Shapes: [N, ...]. The deviation is that of equation 3 (divided by the number of elements, not one less).
    The relaxed "mean-field" is x itself. A backward that an attacker swaps in stands for dx'/dx; the noise keeps
    its derivative by alpha.

    Raises:
        UsageError: a strength that is negative or not finite, or another scope.
    """

    parameter_options = {"alpha": {"weight_decay": 0.0}}  # noqa: RUF012  # decay would switch the defence off

    def __init__(self, alpha: float = 0.25, scope: Literal["example", "call"] = "example"):
        if isinstance(alpha, bool) or not (isinstance(alpha, int | float) and math.isfinite(alpha) and alpha >= 0):
            raise UsageError("a strength alpha >= 0", repr(alpha))
        if scope not in ("example", "call"):
            raise UsageError('scope "example" or "call"', repr(scope))
        identity = surrogates.identity()
        super().__init__(identity, {"identity": identity, "ste": identity}, {"mean-field": _unchanged})
        self.alpha = nn.Parameter(torch.tensor(float(alpha)))
        self.scope = scope

    def hard(self, x: Tensor) -> Tensor:
        return x + self._noise(x, self.deviation(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.around(x, self.deviation(x))

    def deviation(self, x: Tensor) -> Tensor:
        """The standard deviation of each row, [N, 1, ...], or of all of x as [1, ...], without a gradient."""
        rows = x.detach().float()
        rows = rows.flatten(1) if self.scope == "example" else rows.reshape(1, -1)
        return rows.std(1, correction=0).to(x.dtype).view(-1, *[1] * (x.ndim - 1))

    def around(self, y: Tensor, scale: Tensor) -> Tensor:
        """y + alpha * scale * n, with one n for every row or one for all (see `scope`); y itself where an attacker
        has relaxed the noise."""
        if self._forward is not None:
            return self._forward(y)
        kept = y if self._backward is None else self._backward(y.detach(), y)
        return kept + self._noise(y, scale)

    def _noise(self, y: Tensor, scale: Tensor) -> Tensor:
        shape = (len(y) if self.scope == "example" else 1, *y.shape[1:])
        return self.alpha.to(y.dtype) * scale * torch.randn(shape, dtype=y.dtype, device=y.device)

    def extra_repr(self) -> str:
        return f"alpha={self.alpha.item():.3g}, scope={self.scope!r}"


class _Noisy(nn.Module):
    """Weights, bias and the noise of a layer whose parameters were taken over from an ordinary one."""

    scope = "composite"

    def __init__(self, layer: nn.Linear | nn.Conv2d, on: On, alpha: float, scope: Literal["example", "call"]):
        super().__init__()
        if on not in ON:
            raise UsageError(f"noise on one of {list(ON)}", repr(on))
        self.weight, self.bias, self.on = layer.weight, layer.bias, on
        self.noise = ParametricNoise(alpha, scope)

    def forward(self, x: Tensor) -> Tensor:
        if self.on == "weights":
            return self.with_noisy_weights(x)
        if self.on == "inputs":
            return self.apply_weight(self.noise(x), self.weight)
        return self.noise(self.apply_weight(x, self.weight))

    def spread(self) -> Tensor:
        """The standard deviation of the weights, shaped [1, ...] like one set of them."""
        return self.noise.deviation(self.weight[None])

    def apply_weight(self, x: Tensor, weight: Tensor) -> Tensor:
        """The layer with these weights."""
        raise TypeError(f"{type(self).__name__} must define apply_weight(x, weight)")

    def with_noisy_weights(self, x: Tensor) -> Tensor:
        """The layer with fresh noise on its weights."""
        raise TypeError(f"{type(self).__name__} must define with_noisy_weights(x)")


class PNILinear(_Noisy):
    """A dense layer with parametric noise. [N, ..., I] -> [N, ..., O].

    Noise on the weights of every example is drawn at the outputs: (W + alpha s N) x is Gaussian around W x with
    deviation alpha s |x|, independent over outputs and examples, so the forward has exactly the law of drawing
    [N, O, I] weights, at the cost of [N, O] numbers. Gradients by x differ draw by draw but agree on average. Inputs
    of more than two dimensions take weights of their own for every example.

    Args:
        layer: its weight and bias are taken over, not copied.
        on: "weights", "inputs" or "outputs".
        alpha, scope: as in `ParametricNoise`.
    """

    def __init__(
        self, layer: nn.Linear, on: On = "weights", alpha: float = 0.25, scope: Literal["example", "call"] = "example"
    ):
        super().__init__(layer, on, alpha, scope)

    def apply_weight(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.linear(x, weight, self.bias)

    def with_noisy_weights(self, x: Tensor) -> Tensor:
        if self.noise.scope == "call":
            return self.apply_weight(x, self.noise(self.weight[None])[0])
        if x.ndim == 2:
            spread = self.spread()[0] * torch.linalg.vector_norm(x, dim=1)[:, None]
            return self.noise.around(self.apply_weight(x, self.weight), spread)
        filters = self.noise.around(self.weight.expand(len(x), *self.weight.shape), self.spread())
        out = torch.bmm(x.flatten(1, -2), filters.transpose(1, 2)).view(*x.shape[:-1], -1)
        return out if self.bias is None else out + self.bias


class PNIConv2d(_Noisy):
    """A convolution with parametric noise. [N, I, H, W] -> [N, O, H', W'].

    Noise on the weights of every example takes filters of its own for each (`conv2d_per_example`): noise at the
    outputs would not do, because neighbouring outputs share their weights' noise.

    Args:
        layer: its weight and bias are taken over, not copied; square strides and paddings, no groups, no dilation.
        on, alpha, scope: as in `PNILinear`.

    Raises:
        ModelError: a convolution of another kind.
    """

    def __init__(
        self, layer: nn.Conv2d, on: On = "weights", alpha: float = 0.25, scope: Literal["example", "call"] = "example"
    ):
        super().__init__(layer, on, alpha, scope)
        square = all(isinstance(v, tuple) and len(set(v)) == 1 for v in (layer.stride, layer.padding))
        if not square or layer.groups != 1 or set(layer.dilation) != {1} or layer.padding_mode != "zeros":
            raise ModelError("a convolution with square strides, zero padding, no groups, no dilation", repr(layer))
        self.stride, self.padding = layer.stride[0], int(layer.padding[0])

    def apply_weight(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)

    def with_noisy_weights(self, x: Tensor) -> Tensor:
        if self.noise.scope == "call":
            return self.apply_weight(x, self.noise(self.weight[None])[0])
        filters = self.noise.around(self.weight.expand(len(x), *self.weight.shape), self.spread())
        out = conv2d_per_example(x, filters, self.stride, self.padding)
        return out if self.bias is None else out + self.bias.view(1, -1, 1, 1)
