"""Published designs that adaptive attacks have broken, small enough to train in seconds. An adaptive search that
does not break them by itself is too weak.

Two more stand elsewhere: k-winners-take-all (`KWTACNN`) and hard straight-through gates (`GatedNet`).
"""

import math
from functools import partial

from torch import Tensor, nn

from stochade.errors import ModelError
from stochade.models.plain import CNN2, Plain, Shape, xavier
from stochade.nn import LWTA, SAP, Quantise


def _pruned_relu(share: float) -> nn.Module:
    return nn.Sequential(nn.ReLU(), SAP(share))


class SAPCNN(Plain):
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


class LWTACNN(nn.Module):
    """3x3 convolutions, each with batch norm and local winner-takes-all, then classes. [N,C,H,W] -> [N,K].

    The batch norm (which the released wide ResNet has too) keeps activations about as large as the noise of the
    competition, so that winners change from draw to draw; depth multiplies what that does to gradients.

    Args:
        channels: of every convolution; `units` must divide it.
        depth: number of convolutions. Every second one has stride 2 (from 16 pixels on, the first one too).
        units, temperature, test_temperature, hard, stochastic: of the competition, as in `LWTA`.
    """

    scope = "composite"

    def __init__(
        self,
        input_shape: Shape = (1, 28, 28),
        classes: int = 10,
        channels: int = 32,
        depth: int = 8,
        units: int = 2,
        temperature: float = 0.67,
        test_temperature: float = 0.01,
        hard: bool = False,
        stochastic: bool = True,
    ):
        super().__init__()
        if len(input_shape) != 3 or depth < 1:
            raise ModelError(
                "an input shape (channels, height, width) and a depth >= 1", f"{tuple(input_shape)} and {depth}"
            )
        inputs, height, width = input_shape
        layers: list[nn.Module] = []
        for index in range(depth):
            stride = 2 if index % 2 or (index == 0 and height >= 16) else 1
            competition = LWTA(units, temperature, test_temperature, hard, stochastic)
            layers += [nn.Conv2d(inputs, channels, 3, stride, 1), nn.BatchNorm2d(channels), competition]
            inputs, height, width = channels, math.ceil(height / stride), math.ceil(width / stride)
        self.features = nn.Sequential(*layers, nn.Flatten())
        self.classifier = nn.Linear(channels * height * width, classes)
        self.apply(xavier)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x))


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
