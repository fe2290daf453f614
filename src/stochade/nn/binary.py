"""Binary units: stochastic and deterministic, with the slope that training may anneal.

Sources: Bengio, Leonard and Courville 2013 (hard and soft straight-through estimators); Chung et al. 2017
(slope annealing); stochastic unit p = sigmoid(m a), h = 1[u < p].
"""

import math
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from stochade.errors import UsageError
from stochade.nn import surrogates
from stochade.nn.discrete import Discrete, Surrogate
from stochade.nn.sampling import bernoulli

Backward = Literal["hard", "soft"]


def slope_annealing(epoch: int) -> float:
    """The slope of an epoch counted from 0: min(5, 1 + 0.04 epoch). The cap binds from epoch 100 on."""
    return min(5.0, 1.0 + 0.04 * epoch)


def _mean_field(a: Tensor, slope: float) -> Tensor:
    return torch.sigmoid(slope * a)


class SlopedUnit(Discrete):
    """A unit with p = sigmoid(slope * a). The slope is part of the state dict, because it is part of the model."""

    def __init__(self, slope: float, backward: Backward, anneal: bool | None):
        if backward not in ("hard", "soft"):
            raise UsageError('backward "hard" (derivative 1) or "soft" (derivative of the sigmoid)', repr(backward))
        super().__init__(surrogates.identity())
        self.backward: Backward = backward
        self.anneal = (backward == "soft") if anneal is None else anneal
        self.set_slope(slope)

    def set_slope(self, slope: float) -> None:
        """Set m in p = sigmoid(m a): forward, soft backward and mean field all follow.

        Raises:
            UsageError: a slope that is not a positive finite number.
        """
        if not (math.isfinite(slope) and slope > 0):
            raise UsageError("a positive slope", repr(slope))
        own = getattr(self, "_own_surrogate", None)
        self.slope = float(slope)
        hard, soft = surrogates.identity(), surrogates.sigmoid(self.slope)
        if own is None or self.surrogate is own:  # a training surrogate that the user set stays
            self.surrogate = self._own_surrogate = hard if self.backward == "hard" else soft
        self.substitutes.update({"ste": hard, "identity": hard, "soft": soft})
        self.relaxed["mean-field"] = partial(_mean_field, slope=self.slope)

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self.slope, dtype=torch.float64)

    def set_extra_state(self, state: Any) -> None:
        self.set_slope(float(state))

    def extra_repr(self) -> str:
        return f"slope={self.slope:g}, backward={self.backward!r}"


class StochasticBinary(SlopedUnit):
    """Fires 1 with probability sigmoid(slope * a), independently for every example and unit; else 0.

    Args:
        slope: m > 0, the inverse temperature.
        backward: "hard", dh/da = 1: the straight-through estimator from h to the pre-sigmoid a (Bengio et al.
            2013, whatever the slope); "soft", dh/da = m p (1 - p).
        anneal: whether training moves the slope by its schedule; None: only with the soft backward.

    Shapes: any, floating point; the output has the type of the input.
    """

    scope = "example"

    def __init__(self, slope: float = 1.0, backward: Backward = "hard", anneal: bool | None = None):
        super().__init__(slope, backward, anneal)

    def hard(self, x: Tensor) -> Tensor:
        return bernoulli(torch.sigmoid(self.slope * x))


class DeterministicBinary(SlopedUnit):
    """Fires round(sigmoid(a)): 1 for a > 0, else 0 (round goes to even, so a = 0 gives 0). No noise.

    Args:
        slope: scales the soft backward and the relaxed forward; the hard output does not depend on it.
        backward: as in `StochasticBinary`.
        anneal: whether training moves the slope; None: no.
    """

    scope = "none"

    def __init__(self, slope: float = 1.0, backward: Backward = "soft", anneal: bool | None = None):
        super().__init__(slope, backward, bool(anneal))

    def hard(self, x: Tensor) -> Tensor:
        return torch.round(torch.sigmoid(x))


class Sign(Discrete):
    """The sign of the input in {-1, 1}; 0 gives 1. Backward: straight-through inside [-1, 1] (Hubara et al. 2016)."""

    scope = "none"

    def __init__(self, surrogate: Surrogate | None = None):
        ste, soft = surrogates.identity(), surrogates.tanh(1.0)
        table = {"ste": ste, "identity": ste, "soft": soft, "clipped": surrogates.clipped(-1.0, 1.0)}
        super().__init__(surrogate or table["clipped"], table, {"warm": torch.tanh})

    def hard(self, x: Tensor) -> Tensor:
        return torch.where(x >= 0, 1.0, -1.0).to(x.dtype)
