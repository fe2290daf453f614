"""Networks with randomness or competition added: noise at the input, masked weights, winners-take-all."""

from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from stochade.models.plain import Plain, Shape
from stochade.nn import KWTA, GaussianNoise, MaskedConv2d, MaskedLinear, RandomMask
from stochade.nn.competition import Per


class NoisyInput(nn.Module):
    """`model` on images plus Gaussian noise, in training and evaluation alike (the base of randomised smoothing).

    Args:
        model: images [N,C,H,W] -> logits [N,K].
        sigma: standard deviation in pixel units.
        scope: "example" or "call", as in `GaussianNoise`.
    """

    scope = "composite"

    def __init__(self, model: nn.Module, sigma: float = 0.25, scope: Literal["example", "call"] = "example"):
        super().__init__()
        self.noise = GaussianNoise(sigma, scope)
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(self.noise(x))


class KWTACNN(Plain):
    """`CNN2` with k-winners-take-all in place of the convolutions' ReLUs. [N,C,H,W] -> [N,K]."""

    def __init__(
        self,
        input_shape: Shape = (1, 28, 28),
        classes: int = 10,
        ratio: float = 0.1,
        per: Per = "volume",
        hidden: int = 100,
    ):
        super().__init__(input_shape, classes, (32, 64), hidden, "relu", "soft", partial(KWTA, ratio, per))


class MaskedCNN(nn.Module):
    """`CNN1` with weights masked at random for every example, also at test (DropConnect left on). -> [N,K].

    Args:
        keep: probability that a weight of the convolution and of the dense layer stays.
    """

    scope = "composite"

    def __init__(self, input_shape: Shape = (1, 28, 28), classes: int = 10, keep: float = 0.5, hidden: int = 100):
        super().__init__()
        channels, height, width = input_shape
        positions = -(-height // 2) * -(-width // 2)
        self.conv = MaskedConv2d(channels, 32, 5, stride=2, padding=2, mask=RandomMask(keep, rescale=True))
        self.dense = MaskedLinear(32 * positions, hidden, mask=RandomMask(keep, rescale=True))
        self.classifier = nn.Linear(hidden, classes)
        nn.init.xavier_uniform_(self.classifier.weight)

    def forward(self, x: Tensor) -> Tensor:
        features = torch.relu(self.conv(x)).flatten(1)
        return self.classifier(torch.relu(self.dense(features)))
