"""How many flips per frame a change of the image is worth: the paper's budgets and the coupling distance.

Rates x are what a rate encoder fires with, [N, ...]: images in [0, 1], or images less their mean in [-1, 1] for the
signed code. The signed formulas are the unsigned ones where nothing is negative, so each function serves both. All
return float [N], expected flips in one frame.
"""

import torch
from torch import Tensor

from stochade.errors import ImagesError


def _checked(x: Tensor, name: str) -> Tensor:
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.dim() < 2 or not bool((x.abs() <= 1).all()):
        got = f"{x.dtype} {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise ImagesError(f"{name}: rates [N,...] in [-1,1]", f"{got} or values outside", "divide by 255, or centre")
    return x.flatten(1)


def _pair(x: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    x, other = _checked(x, "x"), _checked(other, "other")
    if x.shape != other.shape:
        raise ImagesError(f"other rates {tuple(x.shape)}", f"{tuple(other.shape)}")
    return x, other


def independent_flips(x: Tensor, other: Tensor) -> Tensor:
    """Where independent encodings of x and other differ: k-hat of mukhoty2025, equations 20 (RATE) and 21, 22
    (SRATE)."""
    x, other = _pair(x, other)
    same = (x * other).clamp_min(0) + (1 - x.abs()) * (1 - other.abs())  # both fire with one sign, or both are silent
    return (1 - same).sum(1)


def encoding_randomness(x: Tensor) -> Tensor:
    """Where two encodings of x differ: k1 and k2 of mukhoty2025, equations 9 and 12, 2 <|x|, 1 - |x|>."""
    x = _checked(x, "x").abs()
    return 2 * (x * (1 - x)).sum(1)


def randomness_reduction(x: Tensor, mean: Tensor) -> Tensor:
    """k3 = k1(x) / k2(x - mean), mukhoty2025, equation 13: above 1 where centring reduces randomness. The mean
    broadcasts over x."""
    return encoding_randomness(x) / encoding_randomness(x - mean)


def paper_budget(x: Tensor, other: Tensor) -> Tensor:
    """The k that mukhoty2025 calls equivalent to the change from x to other, |k-hat - k| (section 4.3).

    It is the change of an expected number, in which pixels that fire more often and pixels that fire less often
    cancel; what an encoding may change is `coupled_flips`, at least as large.
    """
    return (independent_flips(x, other) - encoding_randomness(x)).abs()


def coupled_flips(x: Tensor, other: Tensor) -> Tensor:
    """Where encodings of x and other differ that share their uniform numbers (each fires where u < rate, with its
    sign): |x - other|, or max(|x|, |other|) where the sign changes.

    No joint law of the two codes differs in fewer places on average (it is the sum of the total variations per
    pixel), so a budget of so many flips per frame is what the change of the image gives the attacker. For unsigned
    codes it is the l1 norm of the change.
    """
    x, other = _pair(x, other)
    return torch.where(x * other < 0, torch.maximum(x.abs(), other.abs()), (x - other).abs()).sum(1)
