"""Two convolutions with masks in place of learned gates: the controls of the SGBN thesis (sections 4.6.4 and 4.7).

The base is its CNN-BIN: conv 32x5x5 and 64x5x5 of stride 2 with batch norm, a dense layer of 100 stochastic binary
units, classes. Masks are drawn for every example, in training and at test.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

from torch import Tensor, nn

from stochade.errors import ModelError, UsageError
from stochade.models.plain import Shape, activation, xavier
from stochade.nn import AlwaysDropout, MaskedConv2d, RandomMask, Standout
from stochade.nn.standout import MaskBackward, Mode

_FILTERS = (32, 64)


class _Control(nn.Module):
    """Twice (convolution, batch norm, `between`), flatten, dense, binary units or ReLU, `last`, classes."""

    scope = "composite"

    def __init__(
        self,
        input_shape: Shape,
        classes: int,
        hidden: int,
        activation_name: str,
        norm: bool,
        convolution: Callable[[int, int, int], nn.Module] | None = None,
        between: Callable[[], nn.Module] = nn.ReLU,
        last: nn.Module | None = None,
    ):
        super().__init__()
        if len(input_shape) != 3:
            raise ModelError("an input shape (channels, height, width)", repr(tuple(input_shape)))
        inputs, height, width = input_shape
        layers: list[nn.Module] = []
        for index, outputs in enumerate(_FILTERS):
            layers.append((convolution or _plain)(index, inputs, outputs))
            layers += [nn.BatchNorm2d(outputs)] if norm else []
            layers.append(between())
            inputs, height, width = outputs, math.ceil(height / 2), math.ceil(width / 2)
        self.features = nn.Sequential(*layers, nn.Flatten())
        self.dense = nn.Linear(inputs * height * width, hidden)
        self.activation = activation(activation_name)
        self.last = last or nn.Identity()
        self.classifier = nn.Linear(hidden, classes)
        self.apply(xavier)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.last(self.activation(self.dense(self.features(x)))))


def _plain(index: int, inputs: int, outputs: int) -> nn.Module:
    return nn.Conv2d(inputs, outputs, 5, stride=2, padding=2)


class StandoutCNN(_Control):
    """Adaptive dropout after both convolutions (section 4.7: 62.7 % stochastic and 54.8 % deterministic under FGSM).

    Args:
        mode, at_test, alpha, beta, mask_backward: as in `Standout`; the thesis' deterministic variant is "expected".
        hidden, activation: of the dense layer. norm: batch norm after each convolution.
    """

    def __init__(
        self,
        input_shape: Shape = (1, 28, 28),
        classes: int = 10,
        mode: Mode = "stochastic",
        at_test: Mode | None = None,
        alpha: float = 1.0,
        beta: float = 0.0,
        mask_backward: MaskBackward = "soft",
        hidden: int = 100,
        activation: str = "stochastic",
        norm: bool = True,
    ):
        between = partial(Standout, alpha, beta, mode, at_test, mask_backward)
        super().__init__(input_shape, classes, hidden, activation, norm, between=between)


class DropConnectCNN(_Control):
    """The filters of both convolutions masked at random (table 4.8). With `rescale` this is the thesis' DropConnect
    (drop 0.4 and 0.5), without it its random masking (keep 0.6 and 0.5): otherwise the two are the same.

    Args:
        keep: probability that a weight of each convolution stays.
        scope: "example", masks for every example; "call", for the batch.
        rescale: divide by `keep`.
        hidden, activation, norm: as in `StandoutCNN`.

    Raises:
        UsageError: not two probabilities in (0, 1].
    """

    def __init__(
        self,
        input_shape: Shape = (1, 28, 28),
        classes: int = 10,
        keep: Sequence[float] = (0.6, 0.5),
        scope: Literal["example", "call"] = "example",
        rescale: bool = True,
        hidden: int = 100,
        activation: str = "stochastic",
        norm: bool = True,
    ):
        if len(keep) != len(_FILTERS):
            raise UsageError("a probability to keep weights for each of two convolutions", repr(tuple(keep)))
        masks = [RandomMask(share, scope, rescale) for share in keep]

        def masked(index: int, inputs: int, outputs: int) -> nn.Module:
            return MaskedConv2d(inputs, outputs, 5, stride=2, padding=2, mask=masks[index])

        super().__init__(input_shape, classes, hidden, activation, norm, masked)


class DropoutCNN(_Control):
    """Dropout of activations that stays on at test. For dropout in training only, `CNN2` has an option.

    Args:
        rate: probability to drop an activation.
        where: "dense", after the dense layer's activation; "conv", after each convolution's; or "both".
        scope, rescale: as in `AlwaysDropout`.
        hidden, activation, norm: as in `StandoutCNN`.

    Raises:
        UsageError: another name in `where`, or a rate outside [0, 1).
    """

    def __init__(
        self,
        input_shape: Shape = (1, 28, 28),
        classes: int = 10,
        rate: float = 0.5,
        where: str = "dense",
        scope: Literal["example", "call"] = "example",
        rescale: bool = True,
        hidden: int = 100,
        activation: str = "stochastic",
        norm: bool = True,
    ):
        if where not in ("dense", "conv", "both"):
            raise UsageError('dropout "dense", "conv" or "both"', repr(where))
        dropped = partial(AlwaysDropout, rate, scope, rescale)

        def dropped_relu() -> nn.Module:
            return nn.Sequential(nn.ReLU(), dropped())

        between = nn.ReLU if where == "dense" else dropped_relu
        last = None if where == "conv" else dropped()
        super().__init__(input_shape, classes, hidden, activation, norm, between=between, last=last)
