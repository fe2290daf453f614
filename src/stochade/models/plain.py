"""The plain networks of the binary-unit experiments: a multilayer perceptron and one or two convolutions.

Source: tables 3.1 to 3.3 of the thesis behind SGBN: dense 100, or conv 32x5x5 stride 2 (then conv 64x5x5
stride 2) before it, all with Xavier initialisation. The dense layer's activation is a ReLU, a stochastic
binary unit or a deterministic one; convolutions use ReLU. `dropout` drops units of the dense layer in
training only, as in section 3.2 there. The original pads "SAME" (one pixel before, two
after at stride 2); two pixels on both sides give the same sizes.
"""

import math
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from stochade.errors import ModelError, UsageError
from stochade.nn import DeterministicBinary, StochasticBinary
from stochade.nn.binary import Backward

Shape = Sequence[int]
_ACTIVATIONS = ("relu", "stochastic", "deterministic")


def activation(name: str, backward: Backward = "soft") -> nn.Module:
    """A fresh activation: "relu", "stochastic" or "deterministic" (binary units with that backward)."""
    if name == "relu":
        return nn.ReLU()
    if name == "stochastic":
        return StochasticBinary(backward=backward)
    if name == "deterministic":
        return DeterministicBinary(backward=backward)
    raise UsageError(f"an activation among {list(_ACTIVATIONS)}", repr(name))


def xavier(module: nn.Module) -> None:
    """Xavier weights and zero biases for a dense or convolutional layer; use with `Module.apply`."""
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class Plain(nn.Module):
    """features -> flatten -> dense -> activation -> classes."""

    scope = "composite"

    def __init__(
        self,
        input_shape: Shape,
        classes: int,
        channels: Sequence[int],
        hidden: int,
        activation_name: str,
        backward: Backward,
        between: Callable[[], nn.Module] = nn.ReLU,
        dropout: float = 0.0,
    ):
        super().__init__()
        if len(input_shape) != 3:
            raise ModelError("an input shape (channels, height, width)", repr(tuple(input_shape)))
        if not 0 <= dropout < 1:
            raise ModelError("a dropout rate in [0, 1)", repr(dropout))
        inputs, height, width = input_shape
        convolutions: list[nn.Module] = []
        for outputs in channels:
            convolutions += [nn.Conv2d(inputs, outputs, 5, stride=2, padding=2), between()]
            inputs, height, width = outputs, math.ceil(height / 2), math.ceil(width / 2)
        self.features = nn.Sequential(*convolutions, nn.Flatten())
        self.dense = nn.Linear(inputs * height * width, hidden)
        self.activation = activation(activation_name, backward)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.classifier = nn.Linear(hidden, classes)
        self.apply(xavier)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.dropout(self.activation(self.dense(self.features(x)))))


class MLP(Plain):
    """Dense 100, then classes (table 3.1). Images [N,C,H,W] -> logits [N,K]."""

    def __init__(
        self,
        input_shape: Shape = (1, 28, 28),
        classes: int = 10,
        hidden: int = 100,
        activation: str = "relu",
        backward: Backward = "soft",
        dropout: float = 0.0,
    ):
        super().__init__(input_shape, classes, (), hidden, activation, backward, dropout=dropout)


class CNN1(Plain):
    """Conv 32x5x5 stride 2, dense 100, classes (table 3.2). Images [N,C,H,W] -> logits [N,K]."""

    def __init__(
        self,
        input_shape: Shape = (1, 28, 28),
        classes: int = 10,
        hidden: int = 100,
        activation: str = "relu",
        backward: Backward = "soft",
        dropout: float = 0.0,
    ):
        super().__init__(input_shape, classes, (32,), hidden, activation, backward, dropout=dropout)


class CNN2(Plain):
    """Conv 32x5x5 and 64x5x5, both stride 2, dense 100, classes (table 3.3). [N,C,H,W] -> [N,K].

    With activation="stochastic" this is the thesis' CNN-BIN, the base network of SGBN.
    """

    def __init__(
        self,
        input_shape: Shape = (1, 28, 28),
        classes: int = 10,
        hidden: int = 100,
        activation: str = "relu",
        backward: Backward = "soft",
        dropout: float = 0.0,
    ):
        super().__init__(input_shape, classes, (32, 64), hidden, activation, backward, dropout=dropout)
