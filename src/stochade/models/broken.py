"""Published designs that adaptive attacks have broken, small enough to train in seconds. An adaptive search that
does not break them by itself is too weak.

Two more stand elsewhere: k-winners-take-all (`KWTACNN`) and hard straight-through gates (`GatedNet`).
"""

from functools import partial

from torch import Tensor, nn

from stochade.models.plain import CNN2, Shape, _Plain
from stochade.nn import LWTA, SAP, Quantise


def _pruned_relu(share: float) -> nn.Module:
    return nn.Sequential(nn.ReLU(), SAP(share))


class SAPCNN(_Plain):
    """`CNN2` with stochastic activation pruning after each ReLU, in training and evaluation. [N,C,H,W] -> [N,K].

    Args:
        share: draws per layer as a share of its units, as in `SAP`.
        activation: of the dense layer: "relu" (pruned too), or binary units, "stochastic" (the thesis' SAP) or
            "deterministic", which are not pruned.
    """

    def __init__(
        self,
        input_shape: Shape = (1, 28, 28),
        classes: int = 10,
        share: float = 1.0,
        hidden: int = 100,
        activation: str = "relu",
    ):
        super().__init__(input_shape, classes, (32, 64), hidden, activation, "soft", partial(_pruned_relu, share))
        if activation == "relu":
            self.activation = _pruned_relu(share)


class LWTACNN(_Plain):
    """`CNN2` with local winner-takes-all in place of every ReLU. [N,C,H,W] -> [N,K].

    Args:
        units, temperature, test_temperature, hard, stochastic: of the competition, as in `LWTA`; `units` must
            divide 32, 64 and `hidden`.
    """

    def __init__(
        self,
        input_shape: Shape = (1, 28, 28),
        classes: int = 10,
        units: int = 2,
        temperature: float = 0.67,
        test_temperature: float = 0.01,
        hard: bool = False,
        stochastic: bool = True,
        hidden: int = 100,
    ):
        competition = partial(LWTA, units, temperature, test_temperature, hard, stochastic)
        super().__init__(input_shape, classes, (32, 64), hidden, "relu", "soft", competition)
        self.activation = competition()


class QuantisedInput(nn.Module):
    """`model` on images rounded to `levels` grey levels. [N,C,H,W] -> [N,K]."""

    scope = "composite"

    def __init__(self, model: nn.Module, levels: int = 4):
        super().__init__()
        self.quantise = Quantise(levels)
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(self.quantise(x))


def quantised_cnn(input_shape: Shape = (1, 28, 28), classes: int = 10, levels: int = 4) -> QuantisedInput:
    """`CNN2` behind an input quantisation."""
    return QuantisedInput(CNN2(input_shape, classes), levels)
