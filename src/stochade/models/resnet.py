"""Residual networks with any activation of this library, and with convolutions that look at their input.

Source: He et al. 2016, the CIFAR form (3x3 stem, global average pooling). The thesis behind SGBN leaves gates in a
ResNet to future work; `gates="factored"` is what a ResNet can afford.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from stochade.errors import ModelError, UsageError
from stochade.models.plain import Shape
from stochade.nn import KWTA, LWTA, SAP, DeterministicBinary, StochasticBinary
from stochade.nn.gates import Gates, InputGatedConv2d

Options = Mapping[str, Any]


def _pruned_relu(**options: Any) -> nn.Module:
    return nn.Sequential(nn.ReLU(), SAP(**options))


ACTIVATIONS: dict[str, Callable[..., nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "lwta": LWTA,
    "kwta": KWTA,
    "sap": _pruned_relu,
    "stochastic": partial(StochasticBinary, backward="soft"),
    "deterministic": partial(DeterministicBinary, backward="soft"),
}
GATES = ("none", "full", "factored")


def activation_maker(name: str, options: Options | None = None) -> Callable[[], nn.Module]:
    """Makes fresh activations of that name with these options of its layer.

    Raises:
        UsageError: a name that is not among `ACTIVATIONS`, or options that its layer does not have.
    """
    if name not in ACTIVATIONS:
        raise UsageError(f"an activation among {list(ACTIVATIONS)}", repr(name))
    make = partial(ACTIVATIONS[name], **dict(options or {}))
    try:
        make()
    except TypeError as error:
        raise UsageError(f"options of the activation {name!r}", f"{dict(options or {})} ({error})") from None
    return make


def check_channels(name: str, options: Options | None, channels: Sequence[int]) -> None:
    """UsageError unless every feature map splits into the blocks of a local competition."""
    units = dict(options or {}).get("units", 2)
    if name == "lwta" and any(count % units for count in channels):
        raise UsageError(f"channels that split into blocks of {units}", f"{list(channels)}")


class Builder:
    """Makes the layers of one residual network and keeps the size of its feature maps.

    Args:
        input_shape: (channels, height, width) of the images.
        activation, activation_options: as in `activation_maker`.
        gates: "none", or the head ("factored", "full") of gates on the first convolution of every residual block,
            see `InputGatedConv2d`.
        gate_options: `width`, `own`, `squash` of the gated convolution; under "values" the options of `Gates`.
    """

    def __init__(
        self,
        input_shape: Shape,
        activation: str = "relu",
        activation_options: Options | None = None,
        gates: str = "none",
        gate_options: Options | None = None,
    ):
        if len(input_shape) != 3:
            raise ModelError("an input shape (channels, height, width)", repr(tuple(input_shape)))
        if gates not in GATES:
            raise UsageError(f"gates among {list(GATES)}", repr(gates))
        self.activation = activation_maker(activation, activation_options)
        self.channels, self.height, self.width = input_shape
        self._gated = dict(gate_options or {})
        self._values = self._gated.pop("values", {})
        self._head = gates

    def convolution(self, outputs: int, stride: int = 1, gated: bool = False, inputs: int | None = None) -> nn.Module:
        """A 3x3 convolution from the current feature map, which it replaces."""
        shape = (self.channels if inputs is None else inputs, self.height, self.width)
        self.channels, self.height, self.width = outputs, -(-self.height // stride), -(-self.width // stride)
        if not gated or self._head == "none":
            return nn.Conv2d(shape[0], outputs, 3, stride, 1, bias=False)
        try:
            gates = Gates(**self._values)
            return InputGatedConv2d(shape, outputs, 3, stride, 1, gates, head=self._head, **self._gated)  # type: ignore[arg-type]
        except TypeError as error:
            raise UsageError("options of gates and their network", str(error)) from None


class BasicBlock(nn.Module):
    """Two convolutions with batch norm beside a shortcut, then the activation."""

    scope = "composite"

    def __init__(self, build: Builder, outputs: int, stride: int):
        super().__init__()
        inputs = build.channels
        self.conv1, self.bn1 = build.convolution(outputs, stride, gated=True), nn.BatchNorm2d(outputs)
        self.act1 = build.activation()
        self.conv2, self.bn2 = build.convolution(outputs), nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        self.act2 = build.activation()

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.act1(self.bn1(self.conv1(x)))))
        return self.act2(out + self.shortcut(x))


class ResNet(nn.Module):
    """Stem, stages of `BasicBlock`s, global average pooling, logits. [N,C,H,W] -> [N,K].

    Depth is 2 sum(blocks) + 2: blocks (3, 3, 3) and width 16 are ResNet-20, (5, 5, 5) ResNet-32, (2, 2, 2, 2) and
    width 64 ResNet-18. Every stage after the first halves the feature map and doubles the channels.

    Args:
        blocks: residual blocks of each stage.
        width: channels of the first stage.
        activation: a key of `ACTIVATIONS`, with `activation_options` of its layer, {"units": 4} for instance.
        gates, gate_options: as in `Builder`.

    Raises:
        UsageError: names, options, blocks or a width that make no sense. ModelError: an input shape that is none.
    """

    scope = "composite"

    def __init__(
        self,
        input_shape: Shape = (3, 32, 32),
        classes: int = 10,
        blocks: Sequence[int] = (3, 3, 3),
        width: int = 16,
        activation: str = "relu",
        activation_options: Options | None = None,
        gates: str = "none",
        gate_options: Options | None = None,
    ):
        super().__init__()
        if not blocks or min(blocks) < 1 or width < 1:
            raise UsageError("at least one block in every stage and one channel", f"{list(blocks)} and {width}")
        build = Builder(input_shape, activation, activation_options, gates, gate_options)
        channels = [width * 2**stage for stage in range(len(blocks))]
        check_channels(activation, activation_options, channels)
        self.stem = nn.Sequential(build.convolution(width), nn.BatchNorm2d(width), build.activation())
        layers: list[nn.Module] = []
        for stage, (count, outputs) in enumerate(zip(blocks, channels, strict=True)):
            layers += [BasicBlock(build, outputs, 2 if stage and not index else 1) for index in range(count)]
        self.stages = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels[-1], classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.stages(self.stem(x)).mean((2, 3)))


def initialise(network: nn.Module) -> None:
    """He's normal weights by fan-out for plain convolutions, no bias for the classifier; gated layers keep theirs."""
    gated = {id(m) for g in network.modules() if isinstance(g, InputGatedConv2d) for m in g.modules()}
    for module in network.modules():
        if id(module) in gated:
            continue
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
