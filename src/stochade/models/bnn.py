"""The binarised network of Galloway et al. 2018, which the SGBN thesis compares itself with (BNN, section 4.3).

Their figures come with adversarial training: PGD of 40 steps of 0.01 at epsilon 0.3, from epoch 10 of 15. Gradients
of such networks are badly scaled, which makes attacks fail that others pass (Gupta and Ajanthan 2022).
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from stochade.errors import ModelError, UsageError
from stochade.models.plain import Shape
from stochade.nn import Sign
from stochade.nn.binarised import BinaryConv2d, BinaryLinear, BinaryWeight, ScaledReLU, SignBackward, sign_backward

_PAPER, _SMALL = ((8, 6, 5), (2, 2, 1)), ((4, 3, 2), (2, 1, 1))


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Pixels before and after that give ceil(size / stride) outputs, as TensorFlow's "SAME"."""
    total = max(0, (math.ceil(size / stride) - 1) * stride + kernel - size)
    return total // 2, total - total // 2


def _after(size: int, kernels: Sequence[int], strides: Sequence[int]) -> list[int]:
    """The size after each convolution: the first pads "SAME", the others not at all."""
    sizes = [math.ceil(size / strides[0])]
    for kernel, stride in zip(kernels[1:], strides[1:], strict=True):
        sizes.append((sizes[-1] - kernel) // stride + 1)
    return sizes


class BNN(nn.Module):
    """conv + ReLU in full precision; then batch norm -> sign -> +-1 convolution -> scaled ReLU, repeated; a linear
    head without bias. [N,C,H,W] -> [N,K].

    Args:
        filters: of every convolution, the one in full precision first.
        kernels, strides: of every convolution. None: those of the paper, 8, 6 and 5 with strides 2, 2 and 1 (28
            pixels become 14, 5, 1), or, where the images are too small for them, 4, 3 and 2 with 2, 1 and 1.
        hidden: units of a further +-1 dense layer before the head (100 in the thesis' own BNN); 0: none.
        drawn: whose binary weights are drawn anew instead of given by signs: "none", "last" (the last convolution:
            the released code's third, the thesis' second), or "all". The parameters are the same, so weights trained
            in one way can be tested in another.
        scope: of drawn weights: "example", or "call" as in the released code.
        backward: of signs, "mask" (equation 2.21 of the thesis) or "clip" (the released code), see `sign_backward`.

    Raises:
        ModelError: layers that do not fit each other or the images. UsageError: another name in `drawn`.
    """

    scope = "composite"

    def __init__(
        self,
        input_shape: Shape = (1, 28, 28),
        classes: int = 10,
        filters: Sequence[int] = (64, 128, 128),
        kernels: Sequence[int] | None = None,
        strides: Sequence[int] | None = None,
        hidden: int = 0,
        drawn: str = "none",
        scope: Literal["example", "call"] = "example",
        backward: SignBackward = "mask",
    ):
        super().__init__()
        if drawn not in ("none", "last", "all"):
            raise UsageError('weights drawn in "none", "last" or "all" of the layers', repr(drawn))
        inputs, height, width = _checked(input_shape)
        kernels, strides = _sizes(input_shape, filters, kernels, strides)
        rows, columns = _after(height, kernels, strides), _after(width, kernels, strides)
        before, after = zip(*(same_padding(size, kernels[0], strides[0]) for size in (width, height)), strict=True)
        pad = nn.ZeroPad2d((before[0], after[0], before[1], after[1]))
        first = nn.Conv2d(inputs, filters[0], kernels[0], strides[0], bias=False)
        layers: list[nn.Module] = [pad, first, nn.ReLU()]
        for index in range(1, len(filters)):
            chance = drawn == "all" or (drawn == "last" and index == len(filters) - 1)
            binary = BinaryWeight(chance, scope, backward)
            layers += [
                nn.BatchNorm2d(filters[index - 1]),
                Sign(sign_backward(backward)),
                BinaryConv2d(filters[index - 1], filters[index], kernels[index], strides[index], binary=binary),
                ScaledReLU(),
            ]
        layers.append(nn.Flatten())
        features = filters[-1] * rows[-1] * columns[-1]
        if hidden:
            dense = BinaryLinear(features, hidden, BinaryWeight(drawn == "all", scope, backward))
            layers += [nn.BatchNorm1d(features), Sign(sign_backward(backward)), dense, ScaledReLU()]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(hidden or features, classes, bias=False)
        with torch.no_grad():  # filters and classes of length one, as in the released code
            nn.init.trunc_normal_(first.weight, std=0.1, a=-0.2, b=0.2)
            first.weight.div_(first.weight.flatten(1).norm(dim=1).view(-1, 1, 1, 1) + 1e-7)
            nn.init.normal_(self.classifier.weight)
            self.classifier.weight.div_(self.classifier.weight.norm(dim=1, keepdim=True) + 1e-7)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x))


def _checked(shape: Shape) -> tuple[int, int, int]:
    if len(shape) != 3:
        raise ModelError("an input shape (channels, height, width)", repr(tuple(shape)))
    return shape[0], shape[1], shape[2]


def _sizes(
    shape: Shape, filters: Sequence[int], kernels: Sequence[int] | None, strides: Sequence[int] | None
) -> tuple[Sequence[int], Sequence[int]]:
    least = min(shape[1:])
    if kernels is None and strides is None:
        kernels, strides = _PAPER if min(_after(least, *_PAPER)) >= 1 else _SMALL
    if kernels is None or strides is None or not 2 <= len(filters) == len(kernels) == len(strides):
        raise ModelError(
            "a filter count, a kernel and a stride for each of two or more convolutions",
            f"filters {filters}, kernels {kernels}, strides {strides}",
            "three convolutions have sizes of their own; others need both kernels and strides",
        )
    if min(*kernels, *strides, *filters) < 1 or min(_after(least, kernels, strides)) < 1:
        raise ModelError(
            f"kernels that fit images of {shape[1]} x {shape[2]}",
            f"kernels {tuple(kernels)}, strides {tuple(strides)}",
        )
    return kernels, strides
