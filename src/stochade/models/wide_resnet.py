"""Wide residual networks (Zagoruyko and Komodakis 2016), pre-activation, with any activation of this library.

With depth 34, widening 1 and LWTA in blocks of two this is the network of the lab report and, layer by layer, of
the code that Panousis et al. released (kaspar2024, section 4; survey, section 1).
"""

from torch import Tensor, nn

from stochade.errors import UsageError
from stochade.models.plain import Shape
from stochade.models.resnet import Builder, Options, check_channels, initialise


class WideBlock(nn.Module):
    """Batch norm, activation, convolution, twice, beside a shortcut; where the shape changes, the shortcut starts
    after the first activation."""

    scope = "composite"

    def __init__(self, build: Builder, outputs: int, stride: int):
        super().__init__()
        inputs = build.channels
        self.bn1, self.act1 = nn.BatchNorm2d(inputs), build.activation()
        self.conv1 = build.convolution(outputs, stride, gated=True)
        self.bn2, self.act2 = nn.BatchNorm2d(outputs), build.activation()
        self.conv2 = build.convolution(outputs)
        same = inputs == outputs and stride == 1
        self.shortcut = None if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = self.act1(self.bn1(x))
        out = self.conv2(self.act2(self.bn2(self.conv1(active))))
        return out + (x if self.shortcut is None else self.shortcut(active))


class WideResNet(nn.Module):
    """WRN-depth-widening: stem of 16 channels, three stages of (depth - 4) / 6 blocks with 16, 32 and 64 times
    `widening` channels, global average pooling, logits. [N,C,H,W] -> [N,K].

    Args:
        depth: 6 n + 4, at least 10.
        widening: k, at least 1.
        activation, activation_options, gates, gate_options: as in `ResNet`.

    Raises:
        UsageError: another depth or widening, or options that make no sense. ModelError: an input shape that is none.
    """

    scope = "composite"

    def __init__(
        self,
        input_shape: Shape = (3, 32, 32),
        classes: int = 10,
        depth: int = 34,
        widening: int = 1,
        activation: str = "relu",
        activation_options: Options | None = None,
        gates: str = "none",
        gate_options: Options | None = None,
    ):
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise UsageError("a depth of 10, 16, 22, 28, 34, ...", repr(depth))
        if widening < 1:
            raise UsageError("a widening of at least 1", repr(widening))
        build = Builder(input_shape, activation, activation_options, gates, gate_options)
        channels = [16 * widening, 32 * widening, 64 * widening]
        check_channels(activation, activation_options, [16, *channels])
        self.stem = build.convolution(16)
        self.stages = nn.Sequential(
            *(
                WideBlock(build, outputs, 2 if stage and not index else 1)
                for stage, outputs in enumerate(channels)
                for index in range((depth - 4) // 6)
            )
        )
        self.bn, self.act = nn.BatchNorm2d(channels[-1]), build.activation()
        self.classifier = nn.Linear(channels[-1], classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.act(self.bn(self.stages(self.stem(x)))).mean((2, 3)))
