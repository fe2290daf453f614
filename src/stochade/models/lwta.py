"""Networks of local winner-takes-all: dense, and Bayesian with Gaussian weights and utilities for every block.

Source: Panousis, Chatzis and Theodoridis 2019 and 2021. The wide residual network stands in `wide_resnet`.
"""

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from stochade.errors import ModelError, UsageError
from stochade.models.plain import Shape, xavier
from stochade.nn import LWTA
from stochade.nn.bayesian import BlockUtility, GaussianConv2d, GaussianLinear, Sampling, Test


def _blocks_of(units: int, widths: Sequence[int]) -> None:
    if not widths or any(width < 1 or width % units for width in widths):
        raise UsageError(f"widths that split into blocks of {units}", f"{list(widths)}")


class LWTAMLP(nn.Module):
    """Dense layers with local winner-takes-all, then classes. [N,C,H,W] -> [N,K].

    Args:
        hidden: units of each layer; `units` must divide them.
        units, temperature, test_temperature, hard, stochastic: of the competition, as in `LWTA`.
    """

    scope = "composite"

    def __init__(
        self,
        input_shape: Shape = (1, 28, 28),
        classes: int = 10,
        hidden: Sequence[int] = (100, 100),
        units: int = 2,
        temperature: float = 0.67,
        test_temperature: float = 0.01,
        hard: bool = False,
        stochastic: bool = True,
    ):
        super().__init__()
        layers: list[nn.Module] = [nn.Flatten()]
        inputs = math.prod(input_shape)
        for width in hidden:
            layers += [nn.Linear(inputs, width), LWTA(units, temperature, test_temperature, hard, stochastic)]
            inputs = width
        _blocks_of(units, hidden)
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(inputs, classes)
        self.apply(xavier)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x))


class BayesianLWTA(nn.Module):
    """3x3 convolutions of stride 2 and dense layers with Gaussian weights, block utilities and stochastic winners,
    each followed by batch norm as in the released code; then classes. [N,C,H,W] -> [N,K].

    Train it with `train.elbo.ELBO`.

    Args:
        channels, hidden: widths of the convolutions and dense layers; `units` must divide them.
        units, temperature, test_temperature: of the competition; the utilities relax at the same temperatures.
        gaussian: False gives point estimates of the weights (no KL_w).
        utilities: False leaves the Indian buffet process out (no KL_z, KL_u).
        alpha, cut_off: of the utilities. sampling: of the weights. test: "sample" or "mean", of both.
    """

    scope = "composite"

    def __init__(
        self,
        input_shape: Shape = (1, 28, 28),
        classes: int = 10,
        channels: Sequence[int] = (16, 32),
        hidden: Sequence[int] = (64,),
        units: int = 2,
        temperature: float = 0.67,
        test_temperature: float = 0.01,
        gaussian: bool = True,
        utilities: bool = True,
        alpha: float = 1.0,
        cut_off: float = 0.01,
        sampling: Sampling = "local",
        test: Test = "sample",
    ):
        super().__init__()
        if len(input_shape) != 3:
            raise ModelError("an input shape (channels, height, width)", repr(tuple(input_shape)))
        noise: dict[str, Any] = {"sampling": sampling, "test": test}

        def competing(width: int) -> list[nn.Module]:
            winners = LWTA(units, temperature, test_temperature)
            if not utilities:
                return [winners]
            blocks = width // units
            return [BlockUtility(blocks, units, alpha, temperature, test_temperature, cut_off, test), winners]

        inputs, height, columns = input_shape
        layers: list[nn.Module] = []
        _blocks_of(units, [*channels, *hidden])
        for width in channels:
            plain = nn.Conv2d(inputs, width, 3, 2, 1, bias=False)
            layers.append(GaussianConv2d(inputs, width, 3, 2, 1, False, **noise) if gaussian else plain)
            layers += [*competing(width), nn.BatchNorm2d(width)]
            inputs, height, columns = width, math.ceil(height / 2), math.ceil(columns / 2)
        inputs *= height * columns
        layers.append(nn.Flatten())
        for width in hidden:
            layers.append(
                GaussianLinear(inputs, width, False, **noise) if gaussian else nn.Linear(inputs, width, False)
            )
            layers += [*competing(width), nn.BatchNorm1d(width)]
            inputs = width
        self.features = nn.Sequential(*layers)
        self.classifier = GaussianLinear(inputs, classes, **noise) if gaussian else nn.Linear(inputs, classes)
        self.apply(xavier)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x))
