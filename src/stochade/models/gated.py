"""A small stochastic-gated partially binarised network, after SGBN (chapter 4 of its thesis).

A gate module looks at the input of a convolution and gives one logit per weight. Bernoulli gates, drawn for
every example, multiply the weights: h = g(x), w' = w * h (equation 4.1). The gate's backward is the hard
straight-through estimator, the dense layer's the soft one with slope annealing, as in the thesis.

Its gradients are large, noisy and biased, which makes one-step attacks look weak. That is what the audit is
there to find out; nothing here is a defence.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from stochade.errors import ModelError
from stochade.models.plain import Shape, xavier
from stochade.nn import MaskedConv2d, StochasticBinary
from stochade.nn.binary import Backward


class GateModule(nn.Module):
    """Gate logits for every weight of a filter bank: [N,C,H,W] -> [N, *gates].

    conv -> ReLU -> dense + ReLU + batch norm -> dense + asinh -> logits (table 4.1, with widths to choose).
    """

    scope = "composite"

    def __init__(self, input_shape: Shape, gates: Sequence[int], channels: int = 8, width: int = 64):
        super().__init__()
        inputs, height, rows = input_shape
        positions = math.ceil(height / 2) * math.ceil(rows / 2)
        self.conv = nn.Conv2d(inputs, channels, 5, stride=2, padding=2)
        self.first = nn.Linear(channels * positions, width)
        self.norm = nn.BatchNorm1d(width)
        self.second = nn.Linear(width, width)
        self.head = nn.Linear(width, math.prod(gates))
        self.gates = tuple(gates)
        self.apply(xavier)

    def forward(self, x: Tensor) -> Tensor:
        features = torch.relu(self.conv(x)).flatten(1)
        features = self.norm(torch.relu(self.first(features)))
        return self.head(torch.asinh(self.second(features))).view(-1, *self.gates)


class GatedConv2d(nn.Module):
    """A convolution whose weights are gated, weight by weight, by Bernoulli draws that depend on its input.

    Args:
        input_shape: (channels, height, width) of the input.
        outputs, kernel, stride: of the convolution; padding keeps ceil(size / stride).
        backward: of the gates, "hard" as in the thesis, or "soft".
        width: hidden units of the gate module.
    """

    scope = "composite"

    def __init__(
        self,
        input_shape: Shape,
        outputs: int,
        kernel: int,
        stride: int = 1,
        backward: Backward = "hard",
        width: int = 64,
    ):
        super().__init__()
        self.conv = MaskedConv2d(input_shape[0], outputs, kernel, stride, kernel // 2)
        self.logits = GateModule(input_shape, self.conv.weight.shape, width=width)
        self.gate = StochasticBinary(backward=backward, anneal=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x, self.gate(self.logits(x)))


class GatedNet(nn.Module):
    """Two stochastic-gated convolutions, a stochastic binary dense layer, logits. [N,C,H,W] -> [N,K].

    Args:
        input_shape: (channels, height, width); made for 8x8 and 28x28 digits.
        channels: of the two convolutions.
        hidden: stochastic binary units of the dense layer.
        width: hidden units of each gate module.
        gate_backward: own backward of the gates.
        gated: which convolutions have gates: (0, 1), (0,), (1,) or ().
        kernel: size of the filters, odd.
    """

    scope = "composite"

    def __init__(
        self,
        input_shape: Shape = (1, 8, 8),
        classes: int = 10,
        channels: Sequence[int] = (8, 16),
        hidden: int = 100,
        width: int = 64,
        gate_backward: Backward = "hard",
        gated: Sequence[int] = (0, 1),
        kernel: int = 3,
    ):
        super().__init__()
        if len(input_shape) != 3 or len(channels) != 2 or kernel % 2 == 0:
            raise ModelError(
                "an input shape (channels, height, width), two channel counts and an odd kernel",
                f"{tuple(input_shape)}, {tuple(channels)} and {kernel}",
            )
        inputs, height, columns = input_shape
        strides = (1, 2) if height < 16 else (2, 2)
        layers: list[nn.Module] = []
        for index, (outputs, stride) in enumerate(zip(channels, strides, strict=True)):
            shape = (inputs, height, columns)
            if index in gated:
                layers.append(GatedConv2d(shape, outputs, kernel, stride, gate_backward, width))
            else:
                plain = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2)
                xavier(plain)
                layers.append(plain)
            layers += [nn.BatchNorm2d(outputs), nn.ReLU()]
            inputs, height, columns = outputs, math.ceil(height / stride), math.ceil(columns / stride)
        self.features = nn.Sequential(*layers, nn.Flatten())
        self.dense = nn.Linear(inputs * height * columns, hidden)
        self.activation = StochasticBinary(backward="soft")
        self.classifier = nn.Linear(hidden, classes)
        xavier(self.dense)
        xavier(self.classifier)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.activation(self.dense(self.features(x))))
