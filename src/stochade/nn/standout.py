"""Adaptive dropout, or standout (Ba and Frey 2013; equation 2.8 of the SGBN thesis): units that are likely to be
active are likely to be kept.

The network that decides shares its weights with the layer it decides about, so P(m = 1) = sigmoid(alpha z + beta)
with z the layer's own pre-activation. The thesis states neither number; alpha = 1 and beta = 0 are its equation.
"""

import math
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from stochade.errors import UsageError
from stochade.nn.discrete import Discrete, Surrogate
from stochade.nn.sampling import bernoulli

Mode = Literal["stochastic", "expected", "round"]
MaskBackward = Literal["soft", "hard", "constant"]


def _kept(z: Tensor, alpha: float, beta: float) -> Tensor:
    return torch.sigmoid(alpha * z + beta)


def _linear(z: Tensor, alpha: float, beta: float) -> Tensor:
    return alpha * z + beta


def _flat(z: Tensor, alpha: float, beta: float) -> Tensor:
    return z * 0


class KeepGate(Discrete):
    """The mask m of adaptive dropout, from pre-activations z of any shape; arguments as in `Standout`.

    Substitutes: "soft" (derivative of the probability), "ste" and "identity" (1 from m to alpha z + beta), "mask"
    (the mask as a constant). Relaxed "mean-field": the probability.
    """

    def __init__(
        self,
        alpha: float = 1.0,
        beta: float = 0.0,
        mode: Mode = "stochastic",
        at_test: Mode | None = None,
        backward: MaskBackward = "soft",
    ):
        for name, value in (("alpha", alpha), ("beta", beta)):
            if isinstance(value, bool) or not (isinstance(value, int | float) and math.isfinite(value)):
                raise UsageError(f"a finite number as {name}", repr(value))
        for value in (mode, mode if at_test is None else at_test):
            if value not in ("stochastic", "expected", "round"):
                raise UsageError('"stochastic", "expected" or "round"', repr(value))
        made = {
            name: Surrogate(partial(f, alpha=float(alpha), beta=float(beta)), name)
            for name, f in (("soft", _kept), ("hard", _linear), ("constant", _flat))
        }
        if backward not in made:
            raise UsageError('a backward "soft", "hard" or "constant"', repr(backward))
        table = {"soft": made["soft"], "ste": made["hard"], "identity": made["hard"], "mask": made["constant"]}
        super().__init__(made[backward], table, {"mean-field": made["soft"].primitive})
        self.alpha, self.beta, self.backward = float(alpha), float(beta), backward
        self.mode: Mode = mode
        self.at_test: Mode = mode if at_test is None else at_test

    @property
    def now(self) -> Mode:
        return self.mode if self.training else self.at_test

    @property
    def scope(self) -> Literal["none", "example"]:  # type: ignore[override]
        return "example" if self.now == "stochastic" else "none"

    def hard(self, x: Tensor) -> Tensor:
        p = _kept(x, self.alpha, self.beta)
        if self.now == "expected":
            return p
        return bernoulli(p) if self.now == "stochastic" else torch.round(p)

    def forward(self, x: Tensor) -> Tensor:
        if self.now == "expected" and self._forward is None and self._backward is None:
            return _kept(x, self.alpha, self.beta)  # smooth: it needs no substitute
        return super().forward(x)

    def extra_repr(self) -> str:
        return f"alpha={self.alpha:g}, beta={self.beta:g}, mode={self.mode!r}, at_test={self.at_test!r}"


class Standout(nn.Module):
    """relu(z) * m, with m in {0, 1} drawn for every example and unit from P(m = 1) = sigmoid(alpha z + beta).

    An activation: put it after a dense layer or a convolution, whose weights it then shares.

    Args:
        alpha, beta: scale and shift of what decides; alpha = 0 is dropout of a constant rate.
        mode: "stochastic", m is drawn (the thesis' stochastic variant); "expected", m is the probability itself
            (its deterministic one, "non-binarized"); "round", m = 1 where the probability is above one half.
        at_test: the mode of evaluation. None: that of training, as in the thesis; "expected" is what Ba and Frey do.
        backward: of the mask in training. "soft", the derivative of the probability, which makes the gradient of
            relu(z) m the gradient of its mean on average; "hard", straight-through to alpha z + beta; "constant",
            no gradient through the mask, as in Ba and Frey where weights are shared.

    Shapes: any; noise only where a mask is drawn.

    Raises:
        UsageError: numbers that are not finite, or names that are not among these.
    """

    scope = "composite"

    def __init__(
        self,
        alpha: float = 1.0,
        beta: float = 0.0,
        mode: Mode = "stochastic",
        at_test: Mode | None = None,
        backward: MaskBackward = "soft",
    ):
        super().__init__()
        self.gate = KeepGate(alpha, beta, mode, at_test, backward)

    def forward(self, z: Tensor) -> Tensor:
        return torch.relu(z) * self.gate(z)
