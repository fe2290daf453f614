"""Weights gated by what the input looks like: h = g(x), w' = w * h, anew for every example (SGBN).

A gate module g looks at the input of a layer and gives logits; `Gates` turns them into gate values. Every variant
of the thesis behind SGBN (chapter 4: equation 4.1, tables 4.1 to 4.4, 4.9 and 4.10) is an option here, and so is a
factored head, which gives one logit per channel instead of one per weight.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stochade.errors import ModelError, UsageError
from stochade.nn import surrogates
from stochade.nn.binary import Backward, DeterministicBinary, StochasticBinary
from stochade.nn.discrete import Discrete
from stochade.nn.masking import MaskedConv2d, MaskedLinear
from stochade.nn.wide_linear import WideLinear

Shape = Sequence[int]
Kind = Literal["stochastic", "deterministic", "rounded"]
Head = Literal["full", "factored"]
Squash = Literal["sigmoid", "tanh", "asinh", "relu"]
_SQUASH = {"sigmoid": torch.sigmoid, "tanh": torch.tanh, "asinh": torch.asinh, "relu": torch.relu}


def _known(value: str, names: Sequence[str], what: str) -> None:
    if value not in names:
        raise UsageError(f"{what} among {list(names)}", repr(value))


class Shuffle(Discrete):
    """In evaluation, the rows of a batch change places at random (one permutation per call); in training nothing.

    The control of table 4.8: gates stay what they were, but belong to other images. An image alone in its batch
    keeps its own gates. The noise is shared by the batch, so attacks must draw by looping, never by tiling.

    What an image's own gates would have said does not reach its output, so the backward is "zero"; "identity" and
    the relaxed "own" pretend that nothing was shuffled.
    """

    scope = "call"

    def __init__(self):
        zero, identity = surrogates.zero(), surrogates.identity()
        super().__init__(zero, {"zero": zero, "identity": identity}, {"own": surrogates._identity})

    def hard(self, x: Tensor) -> Tensor:
        return x[torch.randperm(x.shape[0], device=x.device)]

    def forward(self, x: Tensor) -> Tensor:
        return x if self.training else super().forward(x)


class Gates(nn.Module):
    """Logits of any shape [N, ...] -> gate values of the same shape.

    Args:
        kind: "stochastic" (ST): 1 with probability sigmoid(logit), else 0, drawn for every example in training and
            evaluation. "deterministic" (DT): `squash` of the logit, no draw. "rounded": 1 where the logit is
            positive, else 0, no draw.
        signed: values 2 h - 1, so that binary gates are -1 or 1 (the thesis' control with +1 and -1).
        backward: of binary gates, "hard" (derivative 1 to the logit, the thesis' choice) or "soft" (the sigmoid's);
            signed gates have twice that.
        squash: of deterministic gates. "sigmoid" is the thesis' experiment, the others its outlook (section 5.2).
        shuffled: in evaluation, gates go to other images of the batch (`Shuffle`); the scope is then "call".
    """

    scope = "composite"

    def __init__(
        self,
        kind: Kind = "stochastic",
        signed: bool = False,
        backward: Backward = "hard",
        squash: Squash = "sigmoid",
        shuffled: bool = False,
    ):
        super().__init__()
        _known(kind, ("stochastic", "deterministic", "rounded"), "a kind of gates")
        _known(squash, tuple(_SQUASH), "a squashing function")
        if squash != "sigmoid" and (kind != "deterministic" or signed):
            raise UsageError(
                'squash "sigmoid" for binary or signed gates',
                repr(squash),
                'other functions need kind="deterministic"',
            )
        self.kind, self.signed, self.squash = kind, signed, squash
        self.unit: nn.Module | None = None
        if kind == "stochastic":
            self.unit = StochasticBinary(backward=backward, anneal=False)
        elif kind == "rounded":
            self.unit = DeterministicBinary(backward=backward)
        self.shuffle = Shuffle() if shuffled else None

    def forward(self, logits: Tensor) -> Tensor:
        values = _SQUASH[self.squash](logits) if self.unit is None else self.unit(logits)
        if self.signed:
            values = 2 * values - 1
        return values if self.shuffle is None else self.shuffle(values)

    def extra_repr(self) -> str:
        return f"kind={self.kind!r}, signed={self.signed}, squash={self.squash!r}"


def _dense(inputs: int, outputs: int, bias: bool = True) -> nn.Linear:
    layer = WideLinear(inputs, outputs, bias)
    nn.init.xavier_uniform_(layer.weight)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


class GateNetwork(nn.Module):
    """A shallow network from the input of a convolution to gate logits, [N,C,H,W] -> [N, count].

    conv -> ReLU -> batch norm -> dense + ReLU + batch norm -> dense + `squash` -> dense (tables 4.1 to 4.4).

    Args:
        input_shape: (channels, height, width).
        count: number of logits.
        channels, kernel, stride, padding: of its convolution, which has the form of the one it gates.
        width: units of both dense layers; 512 in the thesis.
        squash: "asinh" (the thesis' first gate module), "tanh" (the others) or "relu".
        own: has filters of its own (2W); else the caller passes filters and bias (1W).
    """

    scope = "composite"

    def __init__(
        self,
        input_shape: Shape,
        count: int,
        channels: int,
        kernel: int,
        stride: int = 1,
        padding: int = 0,
        width: int = 512,
        squash: Squash = "asinh",
        own: bool = True,
    ):
        super().__init__()
        _known(squash, ("asinh", "tanh", "relu"), "an activation of the second dense layer")
        inputs, *size = input_shape
        positions = math.prod((extent + 2 * padding - kernel) // stride + 1 for extent in size)
        self.stride, self.padding, self.squash = stride, padding, squash
        self.conv = None
        if own:
            self.conv = nn.Conv2d(inputs, channels, kernel, stride, padding)
            nn.init.xavier_uniform_(self.conv.weight)
            nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]
        self.conv_norm = nn.BatchNorm2d(channels)
        self.first, self.first_norm = _dense(channels * positions, width), nn.BatchNorm1d(width)
        self.second, self.head = _dense(width, width), _dense(width, count)

    def features(self, x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """What the logits are read from, [N, width]: the place for a probe (section 4.6.2)."""
        if self.conv is not None:
            weight, bias = self.conv.weight, self.conv.bias
        if weight is None:
            raise ModelError("filters from the gated convolution", "none", "a gate network with own=False has none")
        seen = self.conv_norm(torch.relu(F.conv2d(x, weight, bias, self.stride, self.padding)))
        seen = self.first_norm(torch.relu(self.first(seen.flatten(1))))
        return _SQUASH[self.squash](self.second(seen))

    def forward(self, x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        return self.head(self.features(x, weight, bias))


class InputGatedConv2d(nn.Module):
    """A convolution whose weights are multiplied by gates that look at its input: o = f(x; w * g(x)).

    Args:
        input_shape: (channels, height, width) of the input.
        outputs, kernel, stride, padding: of the convolution. Its bias is not gated.
        gates: logits -> values; None: `Gates()`.
        head: "full", one logit for every weight. "factored", one logit for every output channel and (where there is
            more than one) every input channel; the gate of filter (o, i) is the product of the two draws. Such a mask
            needs no filters per example: the convolution is shared, its input and output channels are scaled.
        own: the gate network has filters of its own (the thesis' 2W); False: it shares these, ungated (1W).
        width, squash: of the gate network.
    """

    scope = "composite"

    def __init__(
        self,
        input_shape: Shape,
        outputs: int,
        kernel: int,
        stride: int = 1,
        padding: int = 0,
        gates: Gates | None = None,
        head: Head = "full",
        own: bool = True,
        width: int = 512,
        squash: Squash = "asinh",
    ):
        super().__init__()
        _known(head, ("full", "factored"), "a head")
        inputs = input_shape[0]
        self.head: Head = head
        self.conv = MaskedConv2d(inputs, outputs, kernel, stride, padding)
        self.inner = inputs if inputs > 1 else 0  # a single input channel would only scale everything
        count = self.conv.weight.numel() if head == "full" else self.inner + outputs
        self.module = GateNetwork(input_shape, count, outputs, kernel, stride, padding, width, squash, own)
        self.gates = Gates() if gates is None else gates

    def logits(self, x: Tensor) -> Tensor:
        """[N, O * I * k * k], or [N, I + O] (input channels first; O for one input channel) with a factored head."""
        return self.module(x) if self.module.conv is not None else self.module(x, self.conv.weight, self.conv.bias)

    def mask(self, x: Tensor) -> Tensor:
        """One draw of what multiplies the weights, [N, O, I, k, k], with either head."""
        values = self.gates(self.logits(x))
        shape = self.conv.weight.shape
        if self.head == "full":
            return values.view(-1, *shape)
        inside, outside = self._factors(values)
        pairs = outside[:, :, None] * inside[:, None, :]
        return pairs[..., None, None].expand(-1, *shape)

    def _factors(self, values: Tensor) -> tuple[Tensor, Tensor]:
        if not self.inner:
            return values.new_ones(values.shape[0], 1), values
        return values[:, : self.inner], values[:, self.inner :]

    def forward(self, x: Tensor) -> Tensor:
        conv = self.conv
        if self.head == "full":
            return conv(x, self.mask(x))
        inside, outside = self._factors(self.gates(self.logits(x)))
        seen = x * inside[..., None, None] if self.inner else x
        out = F.conv2d(seen, conv.weight, None, conv.stride, conv.padding) * outside[..., None, None]
        return out if conv.bias is None else out + conv.bias.view(1, -1, 1, 1)


class InputGatedLinear(nn.Module):
    """A dense layer whose weights are multiplied by gates that look at its input, [N, I] -> [N, O].

    Args:
        inputs, outputs: sizes. The bias is not gated.
        gates: logits -> values; None: `Gates()`.
        hidden: widths of the gate module's hidden layers (tanh); () is the perceptron of the thesis' toy task.
        weight_input: the gate module sees the layer's weights too, behind the input (figure 4.26, table 4.10).
        bias: of this layer and of the gate module.
    """

    scope = "composite"

    def __init__(
        self,
        inputs: int,
        outputs: int,
        gates: Gates | None = None,
        hidden: Sequence[int] = (),
        weight_input: bool = False,
        bias: bool = True,
    ):
        super().__init__()
        self.dense = MaskedLinear(inputs, outputs, bias=bias)
        self.weight_input = weight_input
        widths = [inputs + (inputs * outputs if weight_input else 0), *hidden]
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            layers += [_dense(before, after), nn.Tanh()]
        self.module = nn.Sequential(*layers, _dense(widths[-1], inputs * outputs, bias))
        self.gates = Gates() if gates is None else gates

    def logits(self, x: Tensor) -> Tensor:
        """[N, O * I]."""
        if self.weight_input:
            x = torch.cat([x, self.dense.weight.flatten().expand(x.shape[0], -1)], 1)
        return self.module(x)

    def mask(self, x: Tensor) -> Tensor:
        """One draw of what multiplies the weights, [N, O, I]."""
        return self.gates(self.logits(x)).view(-1, *self.dense.weight.shape)

    def forward(self, x: Tensor) -> Tensor:
        return self.dense(x, self.mask(x))
