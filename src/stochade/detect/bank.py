"""The noise under which logits are looked at: kinds and sizes, and draws that follow a generator."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stochade.errors import BudgetError, UsageError

KINDS = ("gaussian", "uniform", "bernoulli")


@dataclass(frozen=True)
class Noise:
    """Independent noise on every pixel.

    Args:
        kind: "gaussian" (standard deviation `size`), "uniform" (on [-size, size]) or "bernoulli" (size or -size, a
            fair coin each).
        size: in units of images in [0,1].

    Raises:
        BudgetError: another kind, or a size that is not above 0.
    """

    kind: str
    size: float

    def __post_init__(self):
        if self.kind not in KINDS:
            raise BudgetError(f"a kind of noise out of {', '.join(KINDS)}", repr(self.kind))
        number = isinstance(self.size, int | float) and not isinstance(self.size, bool)
        if not (number and math.isfinite(self.size) and self.size > 0):
            raise BudgetError(
                f"a size (sigma) of {self.kind} noise > 0, in units of images in [0,1]", repr(self.size),
                "the paper's are 0.003 to 0.008 for changes of 8/255",
            )  # fmt: skip

    def __str__(self) -> str:
        return f"{self.kind}={self.size:g}"

    def draw(self, like: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Noise like a tensor, from `generator` or the default generator of its device."""
        if self.kind == "gaussian":
            unit = torch.randn(like.shape, dtype=like.dtype, device=like.device, generator=generator)
        else:
            unit = torch.rand(like.shape, dtype=like.dtype, device=like.device, generator=generator).mul_(2).sub_(1)
            unit = unit if self.kind == "uniform" else torch.where(unit < 0, -1.0, 1.0).to(like.dtype)
        return unit.mul_(self.size)


def bank(*sizes: float) -> tuple[Noise, ...]:
    """Every kind of noise at every size.

    Raises:
        BudgetError: no sizes, or one that is not above 0.
    """
    return check_bank([Noise(kind, size) for size in sizes for kind in KINDS])


def check_bank(noises: object) -> tuple[Noise, ...]:
    """BudgetError unless at least one `Noise`."""
    found = (noises,) if isinstance(noises, Noise) else tuple(noises) if isinstance(noises, Sequence) else ()
    if not found or not all(isinstance(noise, Noise) for noise in found):
        raise BudgetError("at least one Noise(kind, size)", repr(noises), "stochade.detect.bank(0.01, 0.03), say")
    return found


PAPER = bank(0.003, 0.005, 0.008)
"""The sources that the authors' released code detects with (CIFAR-10, changes of 8/255)."""


def parse_bank(words: Sequence[str]) -> tuple[Noise, ...]:
    """Noises by name: "gaussian=0.03" is one, "0.03" is every kind at that size, "paper" the paper's nine.

    Raises:
        UsageError: a word that is none of these. BudgetError: a size that is not above 0.
    """
    found: list[Noise] = []
    for word in words:
        kind, equals, size = word.rpartition("=")
        try:
            if word == "paper":
                found += PAPER
            else:
                found += [Noise(kind, float(size))] if equals else bank(float(size))
        except BudgetError:
            raise
        except ValueError:
            kinds = ", ".join(f"{k}=0.03" for k in KINDS)
            raise UsageError(f"noise such as {kinds}, 0.03 (every kind) or paper", repr(word)) from None
    return check_bank(found)
