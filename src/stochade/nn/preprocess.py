"""Preprocessing as a defence: random shifts, rotations, resizing and padding; JPEG, bit depth and smoothing.

Random ones draw parameters of their own for every example, in training and evaluation alike. An attacker averages
over them (EOT) and puts the identity in the place of those without a useful derivative (BPDA, Athalye et al. 2018;
pallaprolu2020).
"""

import io
import math
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stochade.errors import ModelError, UsageError
from stochade.nn import surrogates
from stochade.nn.discrete import Discrete, Surrogate
from stochade.nn.quantise import Quantise


class Preprocess(Discrete):
    """A map of images [N, C, H, W] that torch can differentiate; subclasses write `transformed`.

    Its own backward is the true derivative of the very draw of the forward. Substitutes: "identity" and "ste"
    (derivative of `undone`). Relaxed forwards: "dense" (`undone`: no preprocessing).
    """

    def __init__(self, undone: Callable[[Tensor], Tensor] = surrogates._identity):
        identity = Surrogate(undone, "identity")
        own = Surrogate(undone, "own derivative")  # never asked: `forward` differentiates the draw itself
        super().__init__(own, {"identity": identity, "ste": identity}, {"dense": undone})

    def transformed(self, x: Tensor) -> Tensor:
        """One draw of the map."""
        raise TypeError(f"{type(self).__name__} must define transformed(x)")

    def hard(self, x: Tensor) -> Tensor:
        return self.transformed(_pictures(x))

    def forward(self, x: Tensor) -> Tensor:
        if self._forward is None and self._backward is None:
            return self.hard(x)
        return super().forward(x)


def _pictures(x: Tensor) -> Tensor:
    if x.ndim != 4:
        raise ModelError("images [N, C, H, W]", f"{list(x.shape)}")
    return x


def _uniform(x: Tensor, *shape: int) -> Tensor:
    """Uniform numbers in [0, 1) for each example, [N, *shape], in full precision."""
    return torch.rand(len(x), *shape, device=x.device)


def _whole(u: Tensor, low: int | Tensor, high: int | Tensor) -> Tensor:
    """Whole numbers from `low` to `high`, both included, for uniform `u` (whose largest value is below 1)."""
    return low + (u * (high - low + 1)).long()


def shifted(x: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Each image moved by whole pixels [N]; what comes in is 0."""
    n, _, height, width = x.shape
    i = torch.arange(height, device=x.device) - down[:, None]
    j = torch.arange(width, device=x.device) - right[:, None]
    inside = ((i >= 0) & (i < height))[:, None, :, None] & ((j >= 0) & (j < width))[:, None, None, :]
    rows = x.gather(2, i.clamp(0, height - 1)[:, None, :, None].expand(x.shape))
    return rows.gather(3, j.clamp(0, width - 1)[:, None, None, :].expand(n, x.shape[1], height, width)) * inside


def rotated(x: Tensor, angle: Tensor) -> Tensor:
    """Each image turned counter-clockwise about its centre by angles [N] in radians, bilinear, 0 outside."""
    _, _, height, width = x.shape
    i = (torch.arange(height, device=x.device) + 0.5 - height / 2)[None, :, None]
    j = (torch.arange(width, device=x.device) + 0.5 - width / 2)[None, None, :]
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    grid = torch.stack([2 * (cos * j - sin * i) / width, 2 * (sin * j + cos * i) / height], 3)
    return F.grid_sample(x, grid.to(x.dtype), mode="bilinear", padding_mode="zeros", align_corners=False)


def placed(x: Tensor, size: Tensor, corner: Tensor, canvas: tuple[int, int]) -> Tensor:
    """Each image resized (bilinear, as `F.interpolate`) to `size` [N, 2], on a black canvas at `corner` [N, 2].

    Returns: [N, C, *canvas].
    """
    inside, grid = [], []
    for axis in range(2):
        at = torch.arange(canvas[axis], device=x.device) - corner[:, axis, None]
        inside.append((at >= 0) & (at < size[:, axis, None]))
        grid.append((at + 0.5) / size[:, axis, None] * 2 - 1)
    shape = (len(x), *canvas)
    points = torch.stack([grid[1][:, None, :].expand(shape), grid[0][:, :, None].expand(shape)], 3).to(x.dtype)
    out = F.grid_sample(x, points, mode="bilinear", padding_mode="border", align_corners=False)
    return out * (inside[0][:, None, :, None] & inside[1][:, None, None, :])


def resized(x: Tensor, canvas: tuple[int, int]) -> Tensor:
    """Images resized (bilinear) to fill the canvas; themselves where they do."""
    return x if x.shape[2:] == canvas else F.interpolate(x, canvas, mode="bilinear", align_corners=False)


class RandomShift(Preprocess):
    """Moves every image by whole pixels, uniform in [-pixels, pixels] in each direction; what comes in is black.

    Raises:
        UsageError: pixels that are no whole number >= 0.
    """

    scope = "example"

    def __init__(self, pixels: int = 2):
        if isinstance(pixels, bool) or not isinstance(pixels, int) or pixels < 0:
            raise UsageError("a whole number of pixels >= 0", repr(pixels))
        super().__init__()
        self.pixels = pixels

    def transformed(self, x: Tensor) -> Tensor:
        steps = _whole(_uniform(x, 2), -self.pixels, self.pixels)
        return shifted(x, steps[:, 0], steps[:, 1])

    def extra_repr(self) -> str:
        return f"pixels={self.pixels}"


class RandomRotation(Preprocess):
    """Turns every image about its centre by an angle that is uniform in [-degrees, degrees]; bilinear, black outside.

    Raises:
        UsageError: degrees outside [0, 180].
    """

    scope = "example"

    def __init__(self, degrees: float = 15.0):
        _check_number(degrees, "degrees", 0, 180)
        super().__init__()
        self.degrees = float(degrees)

    def transformed(self, x: Tensor) -> Tensor:
        return rotated(x, (2 * _uniform(x) - 1) * math.radians(self.degrees))

    def extra_repr(self) -> str:
        return f"degrees={self.degrees:g}"


class RandomResizePad(Preprocess):
    """Resizes every image to a random size and pads it with black at a random place (Xie et al. 2018).

    A side of S pixels becomes round(low S) to round(high S), uniform over whole numbers, on a canvas of
    round(high S); both sides share one draw. Xie et al. take 299 to 330 on 331: low = 1, high = 331/299.

    Args:
        input_shape: (channels, height, width) of the images.
        low, high: 0 < low <= high; with high = 1 images keep their size.

    The output is [N, C, *canvas]. "identity" and "dense" stand for the image resized to the whole canvas.

    Raises:
        UsageError: factors that make no sense. ModelError: images of another size.
    """

    scope = "example"

    def __init__(self, input_shape: tuple[int, int, int], low: float = 0.8, high: float = 1.0):
        _check_number(low, "low", 0, 16)
        _check_number(high, "high", low, 16)
        sides = tuple(int(side) for side in input_shape[1:])
        least = tuple(round(low * side) for side in sides)
        if min(least) < 1:
            raise UsageError("factors that leave a pixel", f"low={low!r} of {list(sides)}")
        canvas = (round(high * sides[0]), round(high * sides[1]))
        super().__init__(partial(resized, canvas=canvas))
        self.low, self.high, self.sides, self.least, self.canvas = float(low), float(high), sides, least, canvas

    def transformed(self, x: Tensor) -> Tensor:
        if tuple(x.shape[2:]) != self.sides:
            raise ModelError(f"images [N, C, {self.sides[0]}, {self.sides[1]}]", f"{list(x.shape)}")
        u, canvas = _uniform(x, 3), torch.tensor(self.canvas, device=x.device)
        size = _whole(u[:, :1], torch.tensor(self.least, device=x.device), canvas)
        return placed(x, size, _whole(u[:, 1:], torch.zeros_like(size), canvas - size), self.canvas)

    def extra_repr(self) -> str:
        return f"low={self.low:g}, high={self.high:g}, canvas={self.canvas}"


class GaussianSmoothing(Preprocess):
    """Convolves every channel with a Gaussian of deviation `sigma` pixels, cut at 3 sigma; edges are repeated.

    Deterministic and linear. (The lab report's "smoothing" is noise: see `GaussianNoise`.)

    Raises:
        UsageError: a deviation that is negative or above 100.
    """

    scope = "none"

    def __init__(self, sigma: float = 1.0):
        _check_number(sigma, "sigma", 0, 100)
        super().__init__()
        self.sigma = float(sigma)

    def transformed(self, x: Tensor) -> Tensor:
        if self.sigma == 0:
            return x
        radius = math.ceil(3 * self.sigma)
        kernel = torch.exp(-((torch.arange(-radius, radius + 1, device=x.device) / self.sigma) ** 2) / 2)
        kernel = (kernel / kernel.sum()).to(x.dtype)
        channels = x.shape[1]
        x = F.pad(x, (radius, radius, radius, radius), mode="replicate")
        x = F.conv2d(x, kernel.view(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels)
        return F.conv2d(x, kernel.view(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)

    def extra_repr(self) -> str:
        return f"sigma={self.sigma:g}"


class JPEG(Discrete):
    """Every image through a real JPEG file (Pillow's encoder and decoder); its own derivative is 0.

    Args:
        quality: 1 to 100, as Pillow counts; colour is subsampled as Pillow does by default.

    Shapes: [N, 1 or 3, H, W]; values are clipped to [0, 1] and rounded to 8 bits. One image at a time on the CPU.
    Substitutes: "identity" and "ste" (derivative 1). Relaxed forward: "dense" (no compression).

    Raises:
        UsageError: another quality. ModelError: neither grey nor RGB.
    """

    scope = "none"

    def __init__(self, quality: int = 75):
        if isinstance(quality, bool) or not isinstance(quality, int) or not 1 <= quality <= 100:
            raise UsageError("a quality from 1 to 100", repr(quality))
        identity = surrogates.identity()
        substitutes = {"identity": identity, "ste": identity}
        super().__init__(surrogates.zero(), substitutes, {"dense": surrogates._identity})
        self.quality = quality

    def hard(self, x: Tensor) -> Tensor:
        if _pictures(x).shape[1] not in (1, 3):
            raise ModelError("images with 1 or 3 channels for JPEG", f"{list(x.shape)}")
        levels = (x.detach().float().clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        through = np.stack([self._through(image) for image in levels]) if len(levels) else levels
        return (torch.from_numpy(through).to(x.device).permute(0, 3, 1, 2).float() / 255).to(x.dtype).contiguous()

    def _through(self, image: np.ndarray) -> np.ndarray:
        from PIL import Image

        file = io.BytesIO()
        Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).save(file, "JPEG", quality=self.quality)
        return np.asarray(Image.open(file)).reshape(image.shape)

    def extra_repr(self) -> str:
        return f"quality={self.quality}"


def bit_depth(bits: int = 3) -> Quantise:
    """Images of 2^bits grey levels (Xu et al. 2018's feature squeezing): `Quantise` with that many.

    Raises:
        UsageError: bits that are no whole number from 1 to 16.
    """
    if isinstance(bits, bool) or not isinstance(bits, int) or not 1 <= bits <= 16:
        raise UsageError("a whole number of bits from 1 to 16", repr(bits))
    return Quantise(2**bits)


def _check_number(value: object, name: str, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise UsageError(f"{name} in [{low:g}, {high:g}]", repr(value))
