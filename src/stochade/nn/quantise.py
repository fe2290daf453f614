"""Input quantisation to a few grey levels: deterministic, with a derivative that is zero wherever it exists.

A network behind it hands attackers no gradient at all, or one that a library invents. With the derivative of
the identity or of a smooth staircase in its place the network is as attackable as without (Athalye et al. 2018).
"""

import math
from functools import partial

import torch
from torch import Tensor

from stochade.errors import UsageError
from stochade.nn import surrogates
from stochade.nn.discrete import Discrete, Surrogate


def staircase(x: Tensor, levels: int) -> Tensor:
    """The nearest of `levels` grey levels 0, 1/(levels - 1), ..., 1; inputs outside [0, 1] count as its ends.
    Halfway between two levels, the even-numbered one (0 counts as even). Derivative 0."""
    return torch.round(x.clamp(0, 1) * (levels - 1)) / (levels - 1)


def soft_staircase(x: Tensor, levels: int, sharpness: float) -> Tensor:
    """A continuous staircase with a continuous derivative inside (0, 1): right at every level and halfway between
    levels; with `sharpness` to infinity the staircase, with 0 the identity.

    Each step is 1/2 + tanh(sharpness (f - 1/2)) / (2 tanh(sharpness / 2)) of a level, f the position inside it.
    """
    position = x.clamp(0, 1) * (levels - 1)
    below = position.detach().floor()
    rise = torch.tanh(sharpness * (position - below - 0.5)) / math.tanh(sharpness / 2)
    return (below + 0.5 + 0.5 * rise) / (levels - 1)


class Quantise(Discrete):
    """Rounds every value to the nearest of `levels` grey levels in [0, 1]; its own derivative is 0.

    Args:
        levels: at least 2; 2 is a threshold at 1/2, 256 the 8 bits of an image file.
        sharpness: of the soft staircase, positive.

    Shapes: any, floating point. Values outside [0, 1] are clipped.
    Substitutes: "identity" and "ste" (derivative 1), "soft" (a smooth staircase, steep where levels change).
    Relaxed forwards: "dense" (no quantisation), "warm" (the smooth staircase).

    Raises:
        UsageError: fewer than two levels, or a sharpness that is not positive.
    """

    scope = "none"

    def __init__(self, levels: int = 4, sharpness: float = 4.0):
        if isinstance(levels, bool) or not isinstance(levels, int) or levels < 2:
            raise UsageError("a whole number of at least two levels", repr(levels))
        if not (isinstance(sharpness, int | float) and math.isfinite(sharpness) and sharpness > 0):
            raise UsageError("a positive sharpness", repr(sharpness))
        soft = partial(soft_staircase, levels=levels, sharpness=float(sharpness))
        identity = surrogates.identity()
        super().__init__(
            surrogates.zero(),
            {"identity": identity, "ste": identity, "soft": Surrogate(soft, "soft-staircase")},
            {"dense": surrogates._identity, "warm": soft},
        )
        self.levels = levels

    def hard(self, x: Tensor) -> Tensor:
        return staircase(x, self.levels)

    def extra_repr(self) -> str:
        return f"levels={self.levels}"
