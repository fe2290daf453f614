"""Expectation over image transformations (Athalye et al. 2018, "Synthesizing robust adversarial examples"):
`Transforms`, with `Shift`, `Rotate`, `Scale`, `Brightness` and `UniformJitter`.

A transformation is called with images [N, C, H, W] and a `Stream`, draws parameters for every image from it, and
returns images of the same shape. Torch differentiates through it. What comes from outside of the image is black.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from stochade.attacks.expectation import (
    Around,
    Copies,
    check_gradient,
    check_tiles,
    draws_per_call,
    repeated,
    spent_by,
)
from stochade.attacks.gradients import TILE, Backprop, Gradient, Pass, check_whole
from stochade.errors import BudgetError, GradientError, ImagesError
from stochade.randomness import Stream


class Transform(Protocol):
    """A random image transformation, differentiable in the images; its numbers per image come from the stream."""

    def __call__(self, images: Tensor, stream: Stream) -> Tensor: ...


def _number(value: object, name: str, top: float = float("inf")) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= top or value == math.inf:
        limit = "" if top == float("inf") else f" <= {top:g}"
        raise BudgetError(f"{name} >= 0{limit}", repr(value), "0 leaves images as they are")


def _spread(stream: Stream, shape: Sequence[int], size: float, dtype: torch.dtype) -> Tensor:
    """Uniform numbers in (-size, size), [N, *shape]."""
    return (2 * stream.uniform(shape, dtype) - 1) * size


def _pictures(images: Tensor) -> Tensor:
    if images.dim() != 4:
        raise ImagesError("images [N,C,H,W]", f"shape {tuple(images.shape)}", "only pictures can be moved or turned")
    return images


def shifted(images: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Images moved by whole pixels [N], without interpolation."""
    n, _, height, width = _pictures(images).shape
    rows = torch.arange(height, device=images.device) - down[:, None]  # where each pixel comes from
    columns = torch.arange(width, device=images.device) - right[:, None]
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]
    source = rows.clamp(0, height - 1)[:, :, None] * width + columns.clamp(0, width - 1)[:, None, :]
    source = source.flatten(1)[:, None].expand(n, images.shape[1], -1)
    return images.flatten(2).gather(2, source).view_as(images) * inside[:, None]


def _resampled(images: Tensor, matrix: Tensor) -> Tensor:
    """Bilinear images at the points that `matrix` [N, 2, 2] (in pixels from the centre, columns x and y) gives for
    every pixel."""
    n, _, height, width = _pictures(images).shape
    aspect = torch.tensor([[1.0, height / width], [width / height, 1.0]], dtype=matrix.dtype, device=matrix.device)
    theta = torch.cat([matrix * aspect, matrix.new_zeros(n, 2, 1)], 2)  # grid_sample counts in half sides
    grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def rotated(images: Tensor, angle: Tensor) -> Tensor:
    """Images turned counter-clockwise about their centre by angles [N] in radians, bilinear."""
    cos, sin = angle.cos(), angle.sin()
    return _resampled(images, torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1))


def scaled(images: Tensor, factor: Tensor) -> Tensor:
    """Images zoomed about their centre by factors [N] > 0, bilinear: below 1 smaller with a black margin, above 1
    cropped."""
    return _resampled(images, torch.eye(2, dtype=images.dtype, device=images.device) / factor[:, None, None])


@dataclass(frozen=True)
class Shift:
    """Moved by a whole number of pixels in each direction, uniform in [-pixels, pixels]: crop and pad."""

    pixels: int

    def __post_init__(self):
        check_whole(self.pixels, "pixels", 0)

    def __call__(self, images: Tensor, stream: Stream) -> Tensor:
        steps = (stream.uniform((2,), torch.float64) * (2 * self.pixels + 1)).long() - self.pixels
        return shifted(images, steps[:, 0], steps[:, 1])


@dataclass(frozen=True)
class Rotate:
    """Turned about the centre by an angle that is uniform in [-degrees, degrees]."""

    degrees: float

    def __post_init__(self):
        _number(self.degrees, "degrees", 180)

    def __call__(self, images: Tensor, stream: Stream) -> Tensor:
        return rotated(images, _spread(stream, (), math.radians(self.degrees), images.dtype))


@dataclass(frozen=True)
class Scale:
    """Zoomed about the centre by a factor that is uniform in [low, high]; followed by `Shift` it is the random
    resizing and padding of Xie et al. (2018)."""

    low: float
    high: float

    def __post_init__(self):
        numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in (self.low, self.high))
        if not (numbers and 0 < self.low <= self.high < float("inf")):
            raise BudgetError("0 < low <= high", f"low={self.low!r}, high={self.high!r}", "Scale(0.8, 1.2), say")

    def __call__(self, images: Tensor, stream: Stream) -> Tensor:
        return scaled(images, self.low + stream.uniform((), images.dtype) * (self.high - self.low))


@dataclass(frozen=True)
class Brightness:
    """Made brighter or darker by an amount that is uniform in [-amount, amount], the same for all pixels, clipped to
    the box."""

    amount: float

    def __post_init__(self):
        _number(self.amount, "amount", 1)

    def __call__(self, images: Tensor, stream: Stream) -> Tensor:
        shift = _spread(stream, (1,) * (images.dim() - 1), self.amount, images.dtype)
        return (images + shift).clamp(0, 1)


@dataclass(frozen=True)
class UniformJitter:
    """Uniform noise in [-size, size] on every value, clipped to the box."""

    size: float

    def __post_init__(self):
        _number(self.size, "size", 1)

    def __call__(self, images: Tensor, stream: Stream) -> Tensor:
        return (images + _spread(stream, images.shape[1:], self.size, images.dtype)).clamp(0, 1)


@dataclass(frozen=True)
class Transforms(Around):
    """The mean of the inner gradient over random transformations of the image: d/dx E[L(f(t(x)))].

    Every draw transforms each image by numbers of its own, asks the inner gradient there and pulls its answer back
    through the transformation, so that the inner gradient may be any (other backwards, evolution, averaged). The
    numbers come from the attack's stream: neither the other images nor the tiling matters.

    Value and logits are those of the transformed images, so the pass calls itself relaxed and nobody leaves the
    attack on their account. Where the best of several points has to be chosen, attacks look at the images as they
    are; the last point (`keep="last"`) needs no choice.

    Args:
        inner: the gradient at a transformed image.
        transforms: one transformation, or several that are applied in this order.
        draws: transformations per gradient, each with all passes of the inner gradient.

    Raises:
        BudgetError: an inner that is no gradient, no transformations, a number of draws that makes no sense; without
            a stream of random numbers.
    """

    inner: Gradient = field(default_factory=Backprop)
    transforms: Sequence[Transform] | Transform = ()
    draws: int = 10
    tile: int = field(default=TILE, repr=False)

    def __post_init__(self):
        check_gradient(self.inner)
        check_tiles(self.inner)
        chain = (self.transforms,) if callable(self.transforms) else self.transforms
        if not isinstance(chain, Sequence) or not len(chain) or not all(callable(t) for t in chain):
            raise BudgetError("a transformation, or a list of them", repr(self.transforms), "Rotate(30), say")
        object.__setattr__(self, "transforms", tuple(chain))
        check_whole(self.draws, "draws")
        check_whole(self.tile, "tile")

    @property
    def relaxed(self) -> object:
        return super().relaxed or "transformed images"

    @property
    def forwards(self) -> int:
        return self.draws * self.inner.forwards

    @property
    def backwards(self) -> int:
        return self.draws * self.inner.backwards

    def __call__(self, model, x, y, objective, *, targets=None, stream=None) -> Pass:
        if stream is None:
            raise BudgetError("a stream of per-example randomness", "none", "pass stream=Stream(seed, ids)")
        n, done, copies = len(x), 0, Copies(y, targets, stream)
        gradient, value = torch.zeros_like(x), torch.zeros(n, dtype=x.dtype, device=x.device)
        spent, logits = torch.zeros(2, n, dtype=torch.long, device=x.device), []
        per_call = draws_per_call(model, n, self.tile)
        while done < self.draws:
            d = min(per_call, self.draws - done)
            labels, goals, streams = copies.of(done, d)
            with torch.enable_grad():
                leaf = x.detach().requires_grad_()
                image = self._applied(repeated(leaf, d), streams)
            if not image.requires_grad:
                raise GradientError(
                    "transformations that torch can differentiate", "images without a graph", "do not detach them"
                )
            result = self.inner(model, image.detach(), labels, objective, targets=goals, stream=streams)
            (pulled,) = torch.autograd.grad(image, leaf, result.gradient)
            gradient += pulled
            value += result.value.view(d, n).sum(0)
            spent += spent_by(self.inner, result).view(2, d, n).sum(1)
            logits.append(result.logits.view(len(result.logits), d, n, -1).transpose(0, 1).flatten(0, 1))
            done += d
        return Pass(value / self.draws, gradient / self.draws, torch.cat(logits), spent)

    def _applied(self, images: Tensor, stream: Stream | None) -> Tensor:
        for transform in self.transforms:  # type: ignore[union-attr]
            images = transform(images, stream)  # type: ignore[arg-type]
        return images
