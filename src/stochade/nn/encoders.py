"""Encoders from images to codes in time: direct, rate, signed rate. Codes are batch-first: [N, T, C, H, W].

Gaussian and latency codes are in `encoders_gaussian` and `encoders_latency`.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from stochade.errors import BudgetError, ImagesError, UsageError
from stochade.nn.discrete import Discrete, Surrogate
from stochade.nn.sampling import bernoulli


def repeat_over_time(x: Tensor, steps: int) -> Tensor:
    """The same frame `steps` times: [N, ...] -> [N, T, ...]. Its derivative sums over time."""
    return x.unsqueeze(1).expand(-1, steps, *x.shape[1:])


def check_steps(steps: object) -> int:
    """BudgetError unless there is at least one time step."""
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise BudgetError("a number of time steps >= 1", repr(steps))
    return steps


def check_floor(floor: object) -> float:
    """UsageError unless the least rate, eta, is in [0, 1/2]."""
    if isinstance(floor, bool) or not isinstance(floor, int | float) or not 0 <= floor <= 0.5:
        raise UsageError("a least rate in [0, 0.5]", repr(floor), "0 leaves the rates alone")
    return float(floor)


def check_pixels(x: Tensor) -> Tensor:
    """x, when it is floating point and finite; ImagesError otherwise: a comparison with NaN is no spike, without a
    word, and whole numbers would all be clipped to 1. Compiled models are not checked for NaN, which would cut them
    in two."""
    if not x.is_floating_point():
        hint = "divide by 255" if x.dtype == torch.uint8 else "cast to float and scale to [0,1]"
        raise ImagesError("float images in [0,1] to encode", f"dtype {x.dtype}", hint)
    if torch.compiler.is_compiling():
        return x
    total = x.detach().sum()  # NaN and infinity survive a sum
    if not (bool(torch.isfinite(total)) or bool(torch.isfinite(x.detach()).all())):
        bad = (~torch.isfinite(x.detach())).flatten(1).any(1).nonzero()[:, 0]
        raise ImagesError("finite pixels to encode", f"NaN or infinity in {len(bad)} images, first {int(bad[0])}")
    return x


Mean = float | Sequence[float] | Tensor


def mean_over(images: Tensor, per: str = "channel") -> Tensor:
    """What encoders centre by: the mean of images [N,C,H,W] per channel [C,1,1] or per pixel [C,H,W].

    mukhoty2025 centres per pixel; the mean of its released code is that of randomly cropped training images with
    black borders.

    Raises:
        UsageError: another `per`, or images of another shape.
    """
    if per not in ("channel", "pixel"):
        raise UsageError("per='channel' or per='pixel'", repr(per))
    if not (isinstance(images, Tensor) and images.dim() == 4 and images.is_floating_point() and len(images)):
        raise UsageError("float images [N,C,H,W] to take the mean of", f"{getattr(images, 'shape', images)}")
    return images.mean((0, 2, 3))[:, None, None] if per == "channel" else images.mean(0)


def as_mean(mean: Mean | None) -> Tensor | None:
    """A mean as it is taken off images: a number, [C] (as [C,1,1]), [C,1,1] or [C,H,W], in [0, 1]; None for none."""
    if mean is None:
        return None
    try:
        value = torch.as_tensor(mean, dtype=torch.float32).detach().clone()
    except (TypeError, ValueError, RuntimeError):
        value = torch.empty(0, 0)
    if isinstance(mean, bool) or value.dim() == 2:
        raise UsageError("a mean in [0, 1]: a number, [C] or [C,H,W]", repr(mean), "mean_over(images) gives one")
    value = value[:, None, None] if value.dim() == 1 else value
    if value.dim() not in (0, 3) or not bool(((value >= 0) & (value <= 1)).all()):
        got = f"shape {list(value.shape)}" if value.dim() not in (0, 3) else f"{mean!r}"
        raise UsageError("a mean in [0, 1]: a number, [C] or [C,H,W]", got, "mean_over(images) gives one")
    return value


def centred(x: Tensor, mean: Tensor | None) -> Tensor:
    """x less the mean; UsageError where the mean belongs to images of another shape."""
    if mean is None:
        return x
    fits = mean.dim() == 0 or (
        x.dim() == 4 and all(m in (1, s) for m, s in zip(mean.shape, x.shape[1:], strict=True))
    )
    if not fits:
        raise UsageError(f"images that fit the mean {list(mean.shape)}", f"{list(x.shape)}", "one mean per data set")
    return x - mean.to(x)


class Direct(nn.Module):
    """The image, less the mean, in every time step: the first layer of the network makes the spikes.

    Args:
        steps: time steps T.
        mean: taken off first: a number, one per channel [C] or per pixel [C,H,W]; None: nothing.

    Raises:
        BudgetError: fewer than one step. UsageError: a mean outside [0, 1] or of another shape than the images.
    """

    scope = "none"
    alphabet = None  # codes are real numbers: no flips

    mean: Tensor | None

    def __init__(self, steps: int = 4, mean: Mean | None = None):
        super().__init__()
        self.steps = check_steps(steps)
        self.register_buffer("mean", as_mean(mean))

    def forward(self, x: Tensor) -> Tensor:
        return repeat_over_time(centred(x, self.mean), self.steps)

    def extra_repr(self) -> str:
        return f"steps={self.steps}"


def _rate(x: Tensor, steps: int, floor: float) -> Tensor:
    return repeat_over_time(x.clamp(floor, 1 - floor), steps)


def _signed_rate(x: Tensor, steps: int, floor: float) -> Tensor:
    below, above = x.clamp(floor - 1, -floor), x.clamp(floor, 1 - floor)
    return repeat_over_time(torch.where(x < 0, below, above), steps)


class _Rate(Discrete):
    """What the two rate codes share: the substitutes and the relaxed forward."""

    alphabet: ClassVar[tuple[float, ...]]

    def __init__(self, steps: int, floor: float, expected: Callable[..., Tensor]):
        steps, floor = check_steps(steps), check_floor(floor)
        mean = partial(expected, steps=steps, floor=floor)
        ste, expectation = Surrogate(partial(repeat_over_time, steps=steps), "ste"), Surrogate(mean, "expectation")
        backwards = {"ste": ste, "identity": ste, "clipped": expectation, "expectation": expectation}
        super().__init__(ste, backwards, {"mean-field": mean})
        self.steps, self.floor = steps, floor

    def extra_repr(self) -> str:
        return f"steps={self.steps}" + (f", floor={self.floor:g}" if self.floor else "")


class BernoulliRate(_Rate):
    """Fires each pixel in each step with probability clip(x, eta, 1 - eta), independently: [N,C,H,W] ->
    [N,T,C,H,W] in {0, 1} (RATE; Poisson coding).

    Substitutes: "ste", "identity" (the derivative of the expectation inside the box, everywhere) and "expectation" or
    "clipped" (its derivative: 0 where the rate is clipped). Relaxed "mean-field": the rate itself in every step.

    Args:
        steps: time steps T.
        floor: eta, the least rate of firing and of silence, in [0, 1/2]; 0: the pixel itself.

    Raises:
        BudgetError: fewer than one step. UsageError: a floor outside [0, 1/2]. ImagesError (when called): images that
            are not float, or not finite.
    """

    scope = "example"
    alphabet = (0.0, 1.0)

    def __init__(self, steps: int = 8, floor: float = 0.0):
        super().__init__(steps, floor, _rate)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(check_pixels(x))

    def hard(self, x: Tensor) -> Tensor:
        return bernoulli(_rate(x, self.steps, self.floor))


class SignedRate(_Rate):
    """Signed Bernoulli codes of x - mean: sign(x) in each step with probability |x|, else 0, independently:
    [N,C,H,W] -> [N,T,C,H,W] in {-1, 0, 1} (SRATE; mukhoty2025, equation 10).

    Substitutes and relaxed forward as in `BernoulliRate`, for signed rates: "expectation" is 0 where |x - mean| is
    clipped to [eta, 1 - eta]. A pixel that equals its mean counts as positive.

    Args:
        steps: time steps T.
        mean: taken off first: a number, one per channel [C] or per pixel [C,H,W]; None: nothing.
        floor: eta, the least probability of a spike and of silence, in [0, 1/2]. With a floor the expectation
            jumps by 2 eta where a pixel crosses its mean.

    Raises:
        BudgetError: fewer than one step. UsageError: a mean outside [0, 1] or of another shape than the images, a
            floor outside [0, 1/2]. ImagesError (when called): images that are not float, or not finite.
    """

    scope = "example"
    alphabet = (-1.0, 0.0, 1.0)

    mean: Tensor | None

    def __init__(self, steps: int = 4, mean: Mean | None = None, floor: float = 0.0):
        super().__init__(steps, floor, _signed_rate)
        self.register_buffer("mean", as_mean(mean))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(centred(check_pixels(x), self.mean))

    def hard(self, x: Tensor) -> Tensor:
        rate = _signed_rate(x, self.steps, self.floor)
        fires = bernoulli(rate.abs()) > 0
        return torch.where(fires, rate.sign(), 0.0)  # a product would write -0
