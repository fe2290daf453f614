"""Spiking residual networks: ResNet-19 of Zheng et al. 2021 and SEW-ResNets of Fang et al. 2021, for small images."""

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from stochade.errors import ModelError, UsageError
from stochade.models.encoded import Encoded
from stochade.models.plain import Shape
from stochade.models.spiking import Options, encoder_named, initialise, neuron_maker
from stochade.nn import SpikingNeuron
from stochade.nn.over_time import Merged, OverTime

Maker = Callable[[], SpikingNeuron]


def _convolution(inputs: int, outputs: int, stride: int = 1, kernel: int = 3) -> Merged:
    return Merged(
        nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False), nn.BatchNorm2d(outputs)
    )


class _Block(nn.Module):
    """Two convolutions with neurons beside a shortcut, which is a convolution of 1x1 where the shape changes."""

    scope = "composite"
    fires = False  # whether neurons follow the shortcut's convolution

    def __init__(self, inputs: int, outputs: int, stride: int, make: Maker):
        super().__init__()
        self.first, self.fire1 = _convolution(inputs, outputs, stride), make()
        self.second, self.fire2 = _convolution(outputs, outputs), make()
        self.shortcut: nn.Module = nn.Identity()
        if inputs != outputs or stride != 1:
            beside = _convolution(inputs, outputs, stride, 1)
            self.shortcut = nn.Sequential(beside, make()) if self.fires else beside


class ResidualBlock(_Block):
    """neurons(second(neurons(first(x))) + shortcut(x)): what is added are currents (Zheng et al. 2021)."""

    def forward(self, x: Tensor) -> Tensor:
        return self.fire2(self.second(self.fire1(self.first(x))) + self.shortcut(x))


class SEWBlock(_Block):
    """neurons(second(neurons(first(x)))) + shortcut(x): what is added are spikes, so that a block can be the identity
    (ADD of Fang et al. 2021). Sums of spikes are small whole numbers."""

    fires = True

    def forward(self, x: Tensor) -> Tensor:
        return self.fire2(self.second(self.fire1(self.first(x)))) + self.shortcut(x)


# block, channels of the stem, (channels, blocks) of every stage, hidden units before the head
RESIDUAL: dict[str, tuple[type[nn.Module], int, tuple[tuple[int, int], ...], int]] = {
    "resnet19": (ResidualBlock, 128, ((128, 3), (256, 3), (512, 2)), 256),
    "sew-resnet18": (SEWBlock, 64, ((64, 2), (128, 2), (256, 2), (512, 2)), 0),
    "sew-resnet34": (SEWBlock, 64, ((64, 3), (128, 4), (256, 6), (512, 3)), 0),
}


def residual(input_shape: Shape, classes: int, plan: str, width: float, make: Maker) -> nn.Sequential:
    """[T, N, C, H, W] -> [T, N, K] by a plan of `RESIDUAL`: a 3x3 stem, stages that halve the map but for the first,
    the mean over positions, a linear head.

    Raises:
        UsageError: an unknown plan, or a width that leaves no channel. ModelError: an input shape that is none.
    """
    if len(input_shape) != 3:
        raise ModelError("an input shape (channels, height, width)", repr(tuple(input_shape)))
    if plan not in RESIDUAL:
        raise UsageError(f"a plan among {list(RESIDUAL)}", repr(plan))
    block, stem, stages, hidden = RESIDUAL[plan]
    if isinstance(width, bool) or not isinstance(width, int | float) or not 1 <= stem * width < 1e6:
        raise UsageError(f"a width that leaves at least one of {stem} channels", repr(width))
    inputs = int(stem * width)
    layers: list[nn.Module] = [_convolution(input_shape[0], inputs), make()]
    for stage, (channels, blocks) in enumerate(stages):
        for index in range(blocks):
            outputs = int(channels * width)
            layers.append(block(inputs, outputs, 2 if stage and not index else 1, make))
            inputs = outputs
    pooled: list[nn.Module] = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    if hidden:
        layers += [Merged(*pooled, nn.Linear(inputs, int(hidden * width))), make()]
        inputs, pooled = int(hidden * width), []
    return nn.Sequential(*layers, Merged(*pooled, nn.Linear(inputs, classes)))


def spiking_resnet(
    input_shape: Sequence[int], classes: int, plan: str = "resnet19", encoder: str = "direct", steps: int = 4,
    width: float = 1.0, neuron: str = "lif", encoder_options: Options | None = None,
    neuron_options: Options | None = None,
) -> Encoded:  # fmt: skip
    """A spiking residual network behind an encoder: images [N,C,H,W] in [0,1] -> logits [N,K]. Arguments and errors
    as for `spiking_vgg`, plans from `RESIDUAL`."""
    make = neuron_maker(neuron, neuron_options)
    body = residual(tuple(input_shape), classes, plan, width, make)  # type: ignore[arg-type]
    initialise(body, make().threshold)
    return Encoded(encoder_named(encoder, steps, encoder_options), OverTime(body))
