"""Random crops and mirror images of training images."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from stochade.errors import BudgetError, ImagesError, UsageError
from stochade.randomness import Stream, seed_for

PADDING = 4  # pixels on every side, on images of 32 x 32 (He et al. 2016, and the code of mukhoty2025)
_EXAMPLE = 'write "crop flip", "crop=2" or "flip"'


@dataclass(frozen=True)
class Augment:
    """Shifts by up to `crop` pixels (zeros come in from outside), and mirror images with probability one half.

    What happens to an image in an epoch follows from (seed, epoch, its index in the data set) alone; no generator is
    touched.

    Args:
        crop: padding on every side before a crop of the original size, in pixels; 0: no crop.
        flip: whether left and right may be exchanged.

    Raises:
        BudgetError: a padding that is no whole number >= 0. UsageError: neither of the two.
    """

    crop: int = PADDING
    flip: bool = True

    def __post_init__(self):
        if isinstance(self.crop, bool) or not isinstance(self.crop, int) or self.crop < 0:
            raise BudgetError("a whole number of pixels >= 0 for crop", repr(self.crop))
        if not self.crop and not self.flip:
            raise UsageError("crop, flip or both", "neither", "leave augmentation out")

    def __call__(self, x: Tensor, index: Tensor, *, seed: int, epoch: int) -> Tensor:
        """Images [N,C,H,W] with numbers `index` [N] -> images of the same shape.

        Raises:
            ImagesError: no images [N,C,H,W], or not one number for each.
        """
        if x.dim() != 4 or len(x) != len(index):
            raise ImagesError("images [N,C,H,W] with one number each", f"{list(x.shape)} and {len(index)} numbers")
        n, _, height, width = x.shape
        stream = Stream(seed_for(seed, "augment", epoch), index.to(x.device))
        down, across, mirrored = stream.uniform((3,), torch.float64).unbind(1)
        rows = (down * (2 * self.crop + 1)).long()[:, None] + torch.arange(height, device=x.device)
        columns = torch.arange(width, device=x.device).expand(n, width)
        if self.flip:
            columns = torch.where(mirrored[:, None] < 0.5, columns.flip(1), columns)
        columns = (across * (2 * self.crop + 1)).long()[:, None] + columns
        padded = F.pad(x, (self.crop,) * 4)
        channels = torch.arange(x.shape[1], device=x.device)[:, None, None]
        example = torch.arange(n, device=x.device)[:, None, None, None]
        return padded[example, channels, rows[:, None, :, None], columns[:, None, None, :]]


def parse_augment(text: str) -> Augment | None:
    """`"crop flip"`, `"crop=2"`, `"flip"` -> what they say; "" -> None.

    Raises:
        UsageError: another word, or one twice. BudgetError: a padding that makes no sense.
    """
    told: dict[str, int | bool] = {}
    for word in text.split():
        name, equals, value = word.partition("=")
        if name not in ("crop", "flip") or name in told or (equals and name == "flip"):
            raise UsageError("crop and flip for augmentation, each at most once", repr(word), _EXAMPLE)
        if equals and (not value.isdigit() or not int(value)):
            raise BudgetError("a whole number of pixels >= 1 for crop", repr(value))
        told[name] = True if name == "flip" else int(value) if equals else PADDING
    return Augment(int(told.get("crop", 0)), bool(told.get("flip", False))) if told else None
