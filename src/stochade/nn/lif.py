"""Integrate-and-fire neurons, leaky and not: inputs [T, N, ...] -> spikes [T, N, ...], 0 and 1.

    h[t] = decay v[t-1] + x[t]        s[t] = 1 where h[t] >= threshold, else 0
    soft reset: v[t] = h[t] - threshold s[t]        hard reset: v[t] = v_reset where it fired, else h[t]

Potentials start at v[-1] = 0 (v_reset with a hard reset) in every forward and are gone when it ends: a network needs
no reset between calls, and gradients of one call never reach into another. With the decay 1 - 1/tau this is
SpikingJelly's `LIFNode(tau)`, whose soft reset is `v_reset=None`.
"""

import math
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from stochade.errors import ModelError, UsageError
from stochade.nn import surrogates
from stochade.nn.discrete import Discrete, Surrogate
from stochade.nn.lif_fused import Dynamics, distances, loop, spikes
from stochade.nn.spike_rules import RULES, pdsg

Reset = Literal["soft", "hard"]
_WARM = 4.0  # slope of the sigmoid in the relaxed forward


class SpikingNeuron(Discrete):
    """Base of `LIF` and `IF`; selects both in `backward_as`.

    A surrogate, the layer's own or one swapped in by `backward_as`, is taken at the distance to the threshold,
    h - threshold, of every step; gradients run back through potentials and, unless detached, resets (backpropagation
    through time). A `surrogates.Whole` replaces the derivative of the layer as a whole.

    Substitutes: "identity" and "ste" (derivative 1), "soft" (sigmoid, slope 4), "atan", "triangle", "rectangle"; and
    the rules of attackers, "bptr", "rga", "hart", "pdsg" (`spike_rules`).
    Relaxed "warm": sigmoids of slope 4 in place of spikes, in the reset too.
    """

    scope = "none"

    def __init__(
        self, decay: float, threshold: float, reset: Reset, surrogate: Surrogate | None, decay_input: bool,
        detach_reset: bool, v_reset: float, trainable: bool,
    ):  # fmt: skip
        if reset not in ("soft", "hard"):
            raise UsageError('reset "soft" (by subtraction) or "hard" (to v_reset)', repr(reset))
        for name, value in (("threshold", threshold), ("v_reset", v_reset)):
            if isinstance(value, bool) or not (isinstance(value, int | float) and math.isfinite(value)):
                raise UsageError(f"a finite number as {name}", repr(value))
        if reset == "soft" and v_reset != 0:
            raise UsageError("v_reset 0 with a soft reset", repr(v_reset), 'use reset="hard"')
        if not threshold > v_reset:
            raise UsageError(f"a threshold above the resting potential {v_reset:g}", repr(threshold))
        if surrogate is not None and not isinstance(surrogate, Surrogate):
            raise UsageError("a surrogate, such as surrogates.ATan(2.0)", repr(surrogate))
        ste = surrogates.identity()
        table: dict[str, Surrogate] = {
            "ste": ste,
            "identity": ste,
            "soft": surrogates.sigmoid(4.0),
            "atan": surrogates.atan(2.0),
        }
        table |= {"triangle": surrogates.triangle(1.0), "rectangle": surrogates.rectangle(1.0)}
        table |= {name: surrogates.Whole(partial(rule, self), name) for name, rule in RULES.items()}
        table["pdsg"] = pdsg()
        super().__init__(surrogate or surrogates.atan(2.0), table, {"warm": partial(_warm, self)})
        self.threshold, self.v_reset, self.reset = float(threshold), float(v_reset), reset
        self.decay_input, self.detach_reset = bool(decay_input), bool(detach_reset)
        self._decay = float(decay)
        start = torch.tensor(math.log(decay / (1 - decay))) if trainable else None
        self.decay_logit: nn.Parameter | None
        self.register_parameter("decay_logit", None if start is None else nn.Parameter(start))

    @property
    def dynamics(self) -> Dynamics:
        """The neuron's constants in the form that `lif_fused` takes: potentials above the resting one."""
        return Dynamics(self.threshold - self.v_reset, self.reset == "hard", self.decay_input, self.detach_reset)

    @property
    def decay(self) -> float:
        """The share of its potential that a neuron keeps from one step to the next."""
        return self._decay if self.decay_logit is None else float(torch.sigmoid(self.decay_logit.detach()))

    def _leak(self) -> float | Tensor:
        return self._decay if self.decay_logit is None else torch.sigmoid(self.decay_logit)

    def hard(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return spikes(x, self._leak(), self.dynamics, surrogates.zero())

    def potentials(self, x: Tensor) -> Tensor:
        """Distances to the threshold before the reset, h - threshold, [T, N, ...], without a gradient."""
        with torch.no_grad():
            return distances(_checked(x), self._leak(), self.dynamics)

    def forward(self, x: Tensor) -> Tensor:
        _checked(x)
        if self._forward is not None:
            return self._forward(x)
        backward = self._backward or self.surrogate
        if isinstance(backward, surrogates.Whole):
            return super().forward(x)
        return spikes(x, self._leak(), self.dynamics, backward)

    def extra_repr(self) -> str:
        parts = [f"threshold={self.threshold:g}, reset={self.reset!r}, surrogate={self.surrogate.name or 'own'}"]
        parts += [f"v_reset={self.v_reset:g}"] * (self.v_reset != 0)
        parts += ["decay_input=True"] * self.decay_input + ["detach_reset=True"] * self.detach_reset
        return ", ".join(parts)


class LIF(SpikingNeuron):
    """Leaky integrate-and-fire neurons.

    Args:
        decay: share of the potential that is left after a step, in [0, 1]; 1 - 1/tau. 0.5 is tau = 2.
        threshold: firing from this potential on.
        reset: "soft" subtracts the threshold, "hard" sets the potential to `v_reset`.
        surrogate: derivative of a spike by its potential's distance to the threshold; ATan(2) where None.
        decay_input: inputs count (1 - decay) times; decay below 1.
        detach_reset: no gradient through resets.
        v_reset: resting potential and start, with a hard reset only; below the threshold.
        trainable: the decay is the sigmoid of a parameter, `decay_logit`, that starts where it gives `decay`,
            strictly between 0 and 1 (in SpikingJelly's `ParametricLIFNode` with the opposite sign).

    Shapes: [T, N, ...] floating point, T >= 1; the output has the type of the input. Inputs of 16 bits are added up
    in float32.

    Raises:
        UsageError: a decay, threshold, reset, v_reset or surrogate of the wrong kind.
        ModelError: an input without a time axis or without a step.
    """

    def __init__(
        self, decay: float = 0.5, threshold: float = 1.0, reset: Reset = "soft", surrogate: Surrogate | None = None,
        *, decay_input: bool = False, detach_reset: bool = False, v_reset: float = 0.0, trainable: bool = False,
    ):  # fmt: skip
        good = not isinstance(decay, bool) and isinstance(decay, int | float) and 0 <= decay <= 1
        if not good or (decay_input and decay == 1) or (trainable and decay in (0, 1)):
            which = "strictly between 0 and 1" if trainable else "in [0, 1)" if decay_input else "in [0, 1]"
            raise UsageError(f"a decay {which}", repr(decay), "the decay of a time constant tau is 1 - 1 / tau")
        super().__init__(decay, threshold, reset, surrogate, decay_input, detach_reset, v_reset, trainable)

    def extra_repr(self) -> str:
        return f"decay={self.decay:g}{' (trainable)' * (self.decay_logit is not None)}, {super().extra_repr()}"


class IF(SpikingNeuron):
    """Integrate-and-fire neurons without a leak: `LIF` with decay 1. Arguments, shapes and errors as there."""

    def __init__(
        self, threshold: float = 1.0, reset: Reset = "soft", surrogate: Surrogate | None = None, *,
        detach_reset: bool = False, v_reset: float = 0.0,
    ):  # fmt: skip
        super().__init__(1.0, threshold, reset, surrogate, False, detach_reset, v_reset, False)


def _checked(x: Tensor) -> Tensor:
    if not isinstance(x, Tensor):
        raise ModelError("floating-point inputs [T, N, ...]", type(x).__name__, "a tensor")
    if x.ndim < 2 or len(x) < 1 or not x.is_floating_point():
        raise ModelError(
            "floating-point inputs [T, N, ...] with at least one step", f"{x.dtype} {list(x.shape)}",
            "time comes first in spiking layers: codes.transpose(0, 1)",
        )  # fmt: skip
    return x


def _warm(neurons: SpikingNeuron, x: Tensor) -> Tensor:
    """Sigmoids in place of spikes."""
    return loop(x, neurons._leak(), neurons.dynamics, lambda t, u: torch.sigmoid(_WARM * u))
