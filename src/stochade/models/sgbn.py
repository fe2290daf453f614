"""The stochastic-gated partially binarised network (SGBN), its variants and its controls.

Source: chapter 4 of the thesis behind SGBN. Every convolution is followed by ReLU and batch norm; a gated one is an
`InputGatedConv2d`; then a dense layer of stochastic binary units with the soft straight-through estimator and slope
annealing. Its gradients are large, noisy and biased, which makes one-step attacks look weak; nothing here is a
defence.

The thesis leaves open strides and padding (taken: stride 2, SAME: 32.4 million parameters on MNIST, near the 43.9
million of its control of "the same size"), the order of ReLU and batch norm, and where the CIFAR network's "one dense
layer" is (taken: the classes, since the thesis has no CIFAR network with binary units). The readings are listed in
`docs/deviations.md`.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from stochade.errors import ModelError, UsageError
from stochade.models.plain import Shape, activation, xavier
from stochade.nn import MaskedConv2d, RandomMask
from stochade.nn.binary import Backward
from stochade.nn.gates import Gates, Head, InputGatedConv2d, InputGatedLinear, Kind, Squash

Padding = Literal["same", "valid"]
_SMALL = 16  # pixels: below, 5x5 filters and strides of 2 leave nothing to look at


class SGBN(nn.Module):
    """Convolutions, some of them gated, then a dense layer and classes. Images [N,C,H,W] -> logits [N,K].

    Args:
        input_shape: (channels, height, width).
        channels: of every convolution.
        kernels, strides: of every convolution; None: 5x5 and 2 from 16 pixels on, else 3x3 and 1, 2, 2, ...
        padding: "same" or "valid" for every convolution; None: "same".
        gated: which convolutions have gates, counted from 0; () is the same network without gates.
        dense: activation of the dense layer, "stochastic", "deterministic" or "relu".
        hidden: units of the dense layer; 0: none, classes come right after the convolutions.
        width: units of the gate networks' dense layers; None: 512 from 16 pixels on, else 64.
        gates: "stochastic" (ST), "deterministic" (DT), "rounded"; or "random": no gate networks, every weight kept
            with probability `keep` (the masking controls of table 4.8).
        keep, rescale: of random gates, a probability for every gated convolution; whether weights are divided by it
            (DropConnect as usually written).
        head: "full" (a logit per weight) or "factored" (a logit per channel).
        own: gate networks have filters of their own (2W); False: they share the convolution's (1W).
        signed: gates are -1 or 1 instead of 0 or 1.
        squash: of deterministic gates, "sigmoid", "tanh", "asinh" or "relu".
        gate_activation: of the gate networks' second dense layer; None: asinh in the first, tanh in the others.
        gate_backward: own backward of binary gates, "hard" or "soft".
        shuffled: in evaluation, gates belong to other images of the batch; the scope is then "call".
        backward: of binary units in the dense layer.

    Raises:
        ModelError: convolutions that leave no pixels, or lists of different lengths.
        UsageError: names that are not among the choices.
    """

    scope = "composite"

    def __init__(
        self,
        input_shape: Shape = (1, 28, 28),
        classes: int = 10,
        channels: Sequence[int] = (32, 64),
        kernels: Sequence[int] | None = None,
        strides: Sequence[int] | None = None,
        padding: Sequence[Padding] | None = None,
        gated: Sequence[int] = (0, 1),
        dense: str = "stochastic",
        hidden: int = 100,
        width: int | None = None,
        gates: Kind | Literal["random"] = "stochastic",
        keep: Sequence[float] = (0.6, 0.5),
        rescale: bool = False,
        head: Head = "full",
        own: bool = True,
        signed: bool = False,
        squash: Squash = "sigmoid",
        gate_activation: Squash | None = None,
        gate_backward: Backward = "hard",
        shuffled: bool = False,
        backward: Backward = "soft",
    ):
        super().__init__()
        if len(input_shape) != 3:
            raise ModelError("an input shape (channels, height, width)", repr(tuple(input_shape)))
        depth, small = len(channels), min(input_shape[1:]) < _SMALL
        kernels = (3 if small else 5,) * depth if kernels is None else kernels
        strides = ((1,) + (2,) * (depth - 1) if small else (2,) * depth) if strides is None else strides
        padding = ("same",) * depth if padding is None else padding
        if not len(kernels) == len(strides) == len(padding) == depth > 0:
            sizes = f"{len(kernels)} kernels, {len(strides)} strides, {len(padding)} paddings"
            raise ModelError(f"a kernel, a stride and a padding for each of {depth} convolutions", sizes)
        if any(index not in range(depth) for index in gated) or len(set(gated)) < len(gated):
            raise ModelError(f"different gated convolutions among {list(range(depth))}", repr(tuple(gated)))
        if gates == "random" and len(keep) != len(gated):
            raise ModelError(f"a probability to keep for each of {len(gated)} gated convolutions", repr(tuple(keep)))
        width = (64 if small else 512) if width is None else width
        inputs, *size = input_shape
        layers: list[nn.Module] = []
        for index, (outputs, kernel, stride, pad) in enumerate(zip(channels, kernels, strides, padding, strict=True)):
            if pad not in ("same", "valid"):
                raise UsageError('padding "same" or "valid"', repr(pad))
            border = (kernel - 1) // 2 if pad == "same" else 0
            after = [(extent + 2 * border - kernel) // stride + 1 for extent in size]
            if min(after) < 1:
                hint = "pass smaller kernels or strides, or padding 'same'"
                raise ModelError(f"a map of at least {kernel}x{kernel} before convolution {index}", f"{size}", hint)
            if index not in gated:
                layers.append(nn.Conv2d(inputs, outputs, kernel, stride, border))
                layers[-1].apply(xavier)
            elif gates == "random":
                mask = RandomMask(keep[list(gated).index(index)], rescale=rescale)
                layers.append(MaskedConv2d(inputs, outputs, kernel, stride, border, mask))
            else:
                unit = Gates(gates, signed, gate_backward, squash, shuffled)
                bend: Squash = gate_activation or ("asinh" if index == min(gated) else "tanh")
                shape = (inputs, *size)
                layers.append(InputGatedConv2d(shape, outputs, kernel, stride, border, unit, head, own, width, bend))
            layers += [nn.ReLU(), nn.BatchNorm2d(outputs)]
            inputs, size = outputs, after
        self.features = nn.Sequential(*layers, nn.Flatten())
        positions = inputs * size[0] * size[1]
        self.dense = nn.Linear(positions, hidden) if hidden else None
        self.activation = activation(dense, backward) if hidden else nn.Identity()
        self.classifier = nn.Linear(hidden or positions, classes)
        for layer in (self.dense, self.classifier):
            if layer is not None:
                xavier(layer)

    def gated_layers(self) -> list[InputGatedConv2d]:
        """The convolutions with gate networks, in order."""
        return [layer for layer in self.features if isinstance(layer, InputGatedConv2d)]

    def forward(self, x: Tensor) -> Tensor:
        seen = self.features(x)
        if self.dense is not None:
            seen = self.activation(self.dense(seen))
        return self.classifier(seen)


def sgbn_cifar(
    input_shape: Shape = (3, 32, 32),
    classes: int = 10,
    kernels: Sequence[int] | None = None,
    padding: Sequence[Padding] | None = None,
    gated: Sequence[int] = (1, 2),
    head: Head = "full",
    hidden: int = 0,
    width: int | None = None,
    gates: Kind | Literal["random"] = "stochastic",
    own: bool = True,
) -> SGBN:
    """The CIFAR-10 network of section 4.3.1: 64 8x8, 128 6x6 and 128 5x5 filters, gates on the second and third.

    Strides 2, 2, 1 and padding SAME, VALID, VALID are those of the architecture that it is taken from. With the full
    head (294,912 and 409,600 logits) it has 366 million parameters, with the factored one 4.8 million. Images below
    16 pixels get 3x3 filters, padding "same" and gate networks of width 64.
    """
    small = min(input_shape[1:]) < _SMALL
    return SGBN(
        input_shape,
        classes,
        (64, 128, 128),
        ((3, 3, 3) if small else (8, 6, 5)) if kernels is None else kernels,
        (2, 2, 1),
        (("same",) * 3 if small else ("same", "valid", "valid")) if padding is None else padding,
        gated,
        hidden=hidden,
        width=width,
        head=head,
        gates=gates,
        own=own,
    )


def plain_cnn(
    input_shape: Shape = (1, 28, 28),
    classes: int = 10,
    channels: Sequence[int] = (64, 128),
    kernels: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
    hidden: int | None = None,
    dense: str = "relu",
    parameters: int | None = None,
) -> SGBN:
    """SGBN's main network without gates: the controls of the same size (CNN and, with binary units, CNN-BIN).

    Args:
        channels, kernels, strides: (64, 128) with hidden 6952 is table 4.12 (MNIST), (64, 256, 256) with hidden 1176
            table 4.13 (CIFAR-10).
        hidden: units of the dense layer.
        parameters: instead of `hidden`, the number of parameters to match; the dense layer is as wide as brings the
            network nearest to it. With neither, that of `SGBN(input_shape, classes)`.

    Raises:
        UsageError: both, or fewer parameters than a dense layer of one unit needs.
    """

    def network(units: int) -> SGBN:
        return SGBN(input_shape, classes, channels, kernels, strides, gated=(), dense=dense, hidden=units)

    def size(model: nn.Module) -> int:
        return sum(p.numel() for p in model.parameters())

    if hidden is not None and parameters is not None:
        raise UsageError("hidden or parameters", "both")
    if hidden is None:
        with torch.device("meta"):
            wanted = size(SGBN(input_shape, classes)) if parameters is None else parameters
            one, two = size(network(1)), size(network(2))
        hidden = round((wanted - one) / (two - one)) + 1
        if hidden < 1:
            raise UsageError(f"at least {one} parameters", repr(parameters))
    return network(hidden)


class GatedRegression(nn.Module):
    """The toy network of section 4.6.5, [N,1] -> [N,1]: tanh units, then one output whose weights are gated.

    Args:
        hidden: tanh units, 2 in the thesis.
        gates: "stochastic", "deterministic", "rounded"; or None: no gates, the baseline (WOGM).
        weight_input: the gate perceptron sees the gated weights too (GM); else not (GMWOW).
        squash: of deterministic gates.
    """

    scope = "composite"

    def __init__(
        self,
        hidden: int = 2,
        gates: Kind | None = "stochastic",
        weight_input: bool = False,
        squash: Squash = "sigmoid",
    ):
        super().__init__()
        self.first = nn.Linear(1, hidden)
        self.last: nn.Module = nn.Linear(hidden, 1)
        if gates is not None:
            self.last = InputGatedLinear(hidden, 1, Gates(gates, squash=squash), weight_input=weight_input)
        self.apply(xavier)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(x)))
