"""Cluttered translated images: every image somewhere on a larger black canvas, among pieces of others.

Source: Mnih et al. 2014 (recurrent models of visual attention), whose cluttered translated MNIST the thesis behind
SGBN names as a task to come: digits at a random place of 60 x 60 pixels, with four 8 x 8 pieces of other digits.
"""

from dataclasses import replace

import numpy as np

from stochade.data.images import Images
from stochade.errors import DataError


def cluttered(images: Images, side: int = 60, pieces: int = 4, patch: int | None = None, seed: int = 0) -> Images:
    """The same labels in the same order; pixels [N,C,side,side], bytes where they were bytes.

    Each image lies at a uniformly random place; `pieces` squares of `patch` pixels, cut at random places out of
    random images of the set, are laid on the canvas first, and the brighter pixel wins where they overlap. Row i
    depends on the seed and i alone, given the images.

    Args:
        side: of the canvas. pieces: of other images. patch: their side; None: two sevenths of an image's (8 of 28).

    Raises:
        DataError: a canvas smaller than an image, a patch larger than one, or a negative number of pieces.
    """
    count, channels, height, width = images.shape
    patch = max(1, round(2 * min(height, width) / 7)) if patch is None else patch
    if side < max(height, width):
        raise DataError(f"a canvas of at least {max(height, width)} pixels", repr(side))
    if not 1 <= patch <= min(height, width) or pieces < 0:
        raise DataError(f"a patch of 1 to {min(height, width)} pixels and pieces >= 0", f"{patch=}, {pieces=}")
    canvas = np.zeros((count, channels, side, side), dtype=images.pixels.dtype)
    for row in range(count):
        draw = np.random.Generator(np.random.PCG64([seed, row]))
        for _ in range(pieces):
            source = np.asarray(images.pixels[int(draw.integers(count))])
            top, left = draw.integers(height - patch + 1), draw.integers(width - patch + 1)
            piece = source[:, top : top + patch, left : left + patch]
            _lay(canvas[row], piece, *draw.integers(0, side - patch + 1, 2).tolist())
        down, right = draw.integers(side - height + 1), draw.integers(side - width + 1)
        _lay(canvas[row], np.asarray(images.pixels[row]), int(down), int(right))
    name, note = f"cluttered-{images.name}", f"{images.note}, cluttered and translated ({side}x{side})"
    return replace(images, pixels=canvas, name=name, note=note)


def _lay(canvas: np.ndarray, piece: np.ndarray, top: int, left: int) -> None:
    under = canvas[:, top : top + piece.shape[1], left : left + piece.shape[2]]
    np.maximum(under, piece, out=under)
