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
    mixture(parts)       weighted mean of the parts'
    steps(widths)        piecewise constant: the mean of rectangles
    ensemble()           17 of these by name                    Ozdenizci and Legenstein 2024
    adaptive(...)        atan, alpha from each neuron's own potentials (nn/adaptive.py)

Those of elementwise form say their derivative themselves (`ClosedForm`), which lets spiking layers run a whole
sequence as one operation; any other `Surrogate` goes through automatic differentiation.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from stochade.errors import UsageError
from stochade.nn.adaptive import adaptive as adaptive
from stochade.nn.discrete import Surrogate


def _cauchy(z: Tensor) -> Tensor:
    return z.square_().add_(1).reciprocal_()


def _logistic(z: Tensor) -> Tensor:
    e = z.abs_().neg_().exp_()  # 4 s (1 - s) of s = sigmoid(z), without overflow
    return e.mul(4).div_(e.add_(1).square_())


def _hat(z: Tensor) -> Tensor:
    return z.abs_().neg_().add_(1).clamp_(min=0)


def _box(z: Tensor) -> Tensor:
    return z.abs_().le(1).to(z.dtype)


def _normal(z: Tensor) -> Tensor:
    return z.square_().mul_(-0.5).exp_()


def _laplace(z: Tensor) -> Tensor:
    return z.abs_().neg_().exp_()


PROFILES: dict[str, Callable[[Tensor], Tensor]] = {  # of height one; each may write over its argument
    "cauchy": _cauchy, "logistic": _logistic, "hat": _hat, "box": _box, "normal": _normal, "laplace": _laplace,
}  # fmt: skip


@dataclass(frozen=True)
class ClosedForm(Surrogate):
    """A surrogate whose derivative at x is `height * profile(scale * (x - centre))`, `profile` one of `PROFILES`."""

    profile: str = field(default="box", repr=False)
    height: float = field(default=1.0, repr=False)
    scale: float = field(default=0.0, repr=False)
    centre: float = field(default=0.0, repr=False)

    def derivative(self, x: Tensor, origin: float = 0.0) -> Tensor:
        """The derivative of `primitive` at `x - origin`, elementwise, as a constant (no graph)."""
        with torch.no_grad():
            z = x - origin if self.centre == 0 else (x - origin).sub_(self.centre)
            return PROFILES[self.profile](z.mul_(self.scale)).mul_(self.height)


@dataclass(frozen=True)
class Mixture(Surrogate):
    """The weighted sum of surrogates in closed form."""

    parts: tuple[tuple[float, ClosedForm], ...] = ()

    def derivative(self, x: Tensor, origin: float = 0.0) -> Tensor:
        """As `ClosedForm.derivative`."""
        total = torch.zeros_like(x, requires_grad=False)
        for weight, part in self.parts:
            total.add_(part.derivative(x, origin), alpha=weight)
        return total


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


@dataclass(frozen=True)
class Whole(Surrogate):
    """A surrogate whose primitive takes the whole input of a spiking layer, [T, N, ...], instead of distances to the
    threshold; its derivative, shaped alike, is that of the layer (a backward through rates, for instance)."""


def _scaled(x: Tensor, inner: Callable[[Tensor], Tensor], factor: float) -> Tensor:
    return factor * inner(x)


def _mixed(x: Tensor, parts: Sequence[tuple[float, Callable[[Tensor], Tensor]]]) -> Tensor:
    total = x * 0
    for weight, primitive in parts:
        total = total + weight * primitive(x)
    return total


def _checked(name: str, **parameters: float) -> str:
    """The surrogate's name with its parameters; UsageError for one that is not a positive number."""
    for key, value in parameters.items():
        if isinstance(value, bool) or not (isinstance(value, int | float) and math.isfinite(value) and value > 0):
            raise UsageError(f"a positive number as {key} of the surrogate {name}", repr(value))
    shown = ", ".join(f"{key}={value:g}" for key, value in parameters.items())
    return f"{name}({shown})"


def identity() -> ClosedForm:
    """Straight-through estimator: derivative 1 everywhere."""
    return ClosedForm(_identity, "identity")


def clipped(low: float = -1.0, high: float = 1.0) -> ClosedForm:
    """Straight-through inside [low, high] (ends included), 0 outside."""
    if not low < high:
        raise UsageError("low < high for the surrogate clipped", f"low={low!r}, high={high!r}")
    name = f"clipped(low={low:g}, high={high:g})"
    return ClosedForm(partial(_clipped, low=low, high=high), name, "box", 1.0, 2 / (high - low), (low + high) / 2)


def sigmoid(alpha: float = 1.0) -> ClosedForm:
    """Derivative of sigmoid(alpha x); its peak is alpha/4."""
    name = _checked("sigmoid", alpha=alpha)
    return ClosedForm(partial(_sigmoid, alpha=alpha), name, "logistic", alpha / 4, alpha)


def atan(alpha: float = 2.0) -> ClosedForm:
    """Derivative of atan(pi/2 alpha x)/pi + 1/2; its peak is alpha/2 and its tails are heavy."""
    name = _checked("atan", alpha=alpha)
    return ClosedForm(partial(_atan, alpha=alpha), name, "cauchy", alpha / 2, math.pi / 2 * alpha)


def tanh(alpha: float = 1.0) -> ClosedForm:
    """Derivative of tanh(alpha x), for units with outputs in {-1, 1}; its peak is alpha."""
    return ClosedForm(partial(_tanh, alpha=alpha), _checked("tanh", alpha=alpha), "logistic", alpha, 2 * alpha)


def triangle(width: float = 1.0) -> ClosedForm:
    """A triangle of half-width `width` and height 1/width."""
    name = _checked("triangle", width=width)
    return ClosedForm(partial(_triangle, width=width), name, "hat", 1 / width, 1 / width)


def rectangle(width: float = 1.0) -> ClosedForm:
    """A box of full width `width` and height 1/width."""
    name = _checked("rectangle", width=width)
    return ClosedForm(partial(_rectangle, width=width), name, "box", 1 / width, 2 / width)


def gaussian(sigma: float = 0.5) -> ClosedForm:
    """The normal density of deviation `sigma`."""
    name, height = _checked("gaussian", sigma=sigma), 1 / (sigma * math.sqrt(2 * math.pi))
    return ClosedForm(partial(_gaussian, sigma=sigma), name, "normal", height, 1 / sigma)


def exponential(alpha: float = 2.0, height: float | None = None) -> ClosedForm:
    """Two-sided exponential height exp(-alpha |x|); `height` is alpha/2 (area one) unless given."""
    if height is None:
        name = _checked("exponential", alpha=alpha)
        return ClosedForm(partial(_exponential, alpha=alpha), name, "laplace", alpha / 2, alpha)
    name = _checked("exponential", alpha=alpha, height=height)
    scaled = partial(_scaled, inner=partial(_exponential, alpha=alpha), factor=2 * height / alpha)
    return ClosedForm(scaled, name, "laplace", height, alpha)


def zero() -> ClosedForm:
    """No gradient: what a network looks like to an attacker whose library cannot see through the layer."""
    return ClosedForm(_zero, "zero", "box", 0.0)


def mixture(parts: Sequence[ClosedForm], weights: Sequence[float] | None = None) -> Mixture:
    """The weighted mean of surrogates in closed form, `weights` equal unless given.

    Raises:
        UsageError: no parts, a part that is not in closed form, or weights that are not one positive number for each.
    """
    wrong = [part for part in parts if not isinstance(part, ClosedForm)]
    if not parts or wrong:
        raise UsageError("surrogates in closed form to mix", repr(wrong or parts), "surrogates.atan(), ...")
    given = [1.0] * len(parts) if weights is None else list(weights)
    if len(given) != len(parts) or not all(math.isfinite(w) and w > 0 for w in given):
        raise UsageError(f"{len(parts)} positive weights", repr(weights))
    shares = [w / sum(given) for w in given]
    primitive = partial(_mixed, parts=[(w, part.primitive) for w, part in zip(shares, parts, strict=True)])
    name = "mixture(" + ", ".join(f"{w:g} {part.name}" for w, part in zip(shares, parts, strict=True)) + ")"
    return Mixture(primitive, name, tuple(zip(shares, parts, strict=True)))


def steps(widths: Sequence[float] = (0.25, 0.5, 1.0, 2.0, 4.0)) -> Mixture:
    """Piecewise constant: the mean of rectangles of these widths, high near the threshold and low far from it."""
    return mixture([rectangle(width) for width in widths])


def ensemble() -> Mapping[str, ClosedForm]:
    """The elementwise backwards that a spiking network should be attacked with one after the other, by name.

    Triangles ("PCW"), two families of exponentials that are not of area one, rectangles and the identity: those of
    Ozdenizci and Legenstein 2024 (arXiv 2311.09266) and their code, which adds a backward through rates and the
    network without spikes.
    """
    table: dict[str, ClosedForm] = {f"triangle-{w:g}": triangle(w) for w in (0.25, 0.5, 1.0, 2.0, 3.0)}
    for height, kind in ((1.0, "exponential"), (0.3, "low-exponential")):
        table |= {f"{kind}-{alpha:g}": exponential(alpha, height) for alpha in (0.5, 1.0, 2.0)}
    table |= {f"rectangle-{w:g}": rectangle(w) for w in (0.25, 0.5, 1.0, 2.0, 4.0)}
    return table | {"identity": identity()}


ste = identity
ATan = atan  # the field writes it so
