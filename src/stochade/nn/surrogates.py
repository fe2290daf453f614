"""The family of surrogate backwards: each function returns a `Surrogate` whose derivative has a closed form.

The input is the distance to the threshold (membrane potential minus threshold, or a pre-activation). Every
primitive is a module-level function of one tensor, finite with a finite derivative for every finite input, so
that no surrogate can turn a saturated unit into NaN. Surrogates of step units have area one (a step of height
one is spread out, not scaled), except `tanh`, which has area two for outputs in {-1, 1}.

    name                 derivative at x                        source
    identity, ste        1                                      Bengio et al. 2013 (hard STE)
    clipped(low, high)   1 inside [low, high], else 0           Hubara et al. 2016
    sigmoid(alpha)       alpha s (1 - s), s = sigmoid(alpha x)  Bengio et al. 2013 (soft STE)
    atan(alpha)          alpha/2 / (1 + (pi alpha x / 2)^2)     Fang et al. 2021
    tanh(alpha)          alpha (1 - tanh(alpha x)^2)
    triangle(width)      max(0, 1 - |x|/width) / width          Esser et al. 2016
    rectangle(width)     1/width inside |x| <= width/2          Wu et al. 2018
    gaussian(sigma)      normal density of deviation sigma      Wu et al. 2018
    exponential(alpha)   alpha/2 exp(-alpha |x|)                Shrestha and Orchard 2018
    zero                 0                                      the ablation: no gradient at all
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from stochade.errors import UsageError
from stochade.nn.discrete import Surrogate


def _identity(x: Tensor) -> Tensor:
    return x


def _clipped(x: Tensor, low: float, high: float) -> Tensor:
    return x.clamp(low, high)


def _sigmoid(x: Tensor, alpha: float) -> Tensor:
    return torch.sigmoid(alpha * x)


def _atan(x: Tensor, alpha: float) -> Tensor:
    return torch.atan(math.pi / 2 * alpha * x) / math.pi + 0.5


def _tanh(x: Tensor, alpha: float) -> Tensor:
    return torch.tanh(alpha * x)


def _triangle(x: Tensor, width: float) -> Tensor:
    t = (x / width).clamp(-1, 1)
    return 0.5 + t - 0.5 * t * t.abs()


def _rectangle(x: Tensor, width: float) -> Tensor:
    return (x / width + 0.5).clamp(0, 1)


def _gaussian(x: Tensor, sigma: float) -> Tensor:
    return 0.5 * (1 + torch.erf(x / (sigma * math.sqrt(2))))


def _exponential(x: Tensor, alpha: float) -> Tensor:
    # Each branch is clamped to its own side: the other side's exponential would overflow, and inf * 0 is NaN.
    below, above = 0.5 * torch.exp(alpha * x.clamp(max=0)), 1 - 0.5 * torch.exp(-alpha * x.clamp(min=0))
    return torch.where(x < 0, below, above)


def _zero(x: Tensor) -> Tensor:
    return x * 0


def _made(primitive: Callable[..., Tensor], **parameters: float) -> Surrogate:
    name = primitive.__name__.lstrip("_")
    for key, value in parameters.items():
        if key in ("low", "high"):
            continue
        if not (isinstance(value, int | float) and math.isfinite(value) and value > 0):
            raise UsageError(f"a positive number as {key} of the surrogate {name}", repr(value))
    shown = ", ".join(f"{key}={value:g}" for key, value in parameters.items())
    return Surrogate(partial(primitive, **parameters), f"{name}({shown})" if shown else name)


def identity() -> Surrogate:
    """Straight-through estimator: derivative 1 everywhere."""
    return _made(_identity)


def clipped(low: float = -1.0, high: float = 1.0) -> Surrogate:
    """Straight-through inside [low, high] (ends included), 0 outside."""
    if not low < high:
        raise UsageError("low < high for the surrogate clipped", f"low={low!r}, high={high!r}")
    return _made(_clipped, low=low, high=high)


def sigmoid(alpha: float = 1.0) -> Surrogate:
    """Derivative of sigmoid(alpha x); its peak is alpha/4."""
    return _made(_sigmoid, alpha=alpha)


def atan(alpha: float = 2.0) -> Surrogate:
    """Derivative of atan(pi/2 alpha x)/pi + 1/2; its peak is alpha/2 and its tails are heavy."""
    return _made(_atan, alpha=alpha)


def tanh(alpha: float = 1.0) -> Surrogate:
    """Derivative of tanh(alpha x), for units with outputs in {-1, 1}; its peak is alpha."""
    return _made(_tanh, alpha=alpha)


def triangle(width: float = 1.0) -> Surrogate:
    """A triangle of half-width `width` and height 1/width."""
    return _made(_triangle, width=width)


def rectangle(width: float = 1.0) -> Surrogate:
    """A box of full width `width` and height 1/width."""
    return _made(_rectangle, width=width)


def gaussian(sigma: float = 0.5) -> Surrogate:
    """The normal density of deviation `sigma`."""
    return _made(_gaussian, sigma=sigma)


def exponential(alpha: float = 2.0) -> Surrogate:
    """Two-sided exponential alpha/2 exp(-alpha |x|)."""
    return _made(_exponential, alpha=alpha)


def zero() -> Surrogate:
    """No gradient: what a network looks like to an attacker whose library cannot see through the layer."""
    return _made(_zero)


ste = identity
ATan = atan  # the field writes it so
