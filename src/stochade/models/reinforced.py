"""The plain networks with stochastic binary units that learn by REINFORCE (tables 3.4 to 3.6 of the SGBN thesis)."""

from collections.abc import Sequence

from stochade.models.plain import Plain, Shape
from stochade.nn.reinforce import ReinforceBinary


class ReinforcedNet(Plain):
    """5x5 convolutions of stride 2 with ReLUs, dense, REINFORCE units, classes. [N,C,H,W] -> [N,K].

    Train it with the objective `stochade.train.reinforced.Reinforced()`, which `stochade train` takes by itself;
    backpropagation in training mode is refused.

    Args:
        channels: of the convolutions: (), (32,) and (32, 64) are the thesis' MLP, 1CNN and 2CNN.
        hidden: units of the dense layer.
        decay: of the running means behind the baselines.
    """

    def __init__(
        self,
        input_shape: Shape = (1, 28, 28),
        classes: int = 10,
        channels: Sequence[int] = (32,),
        hidden: int = 100,
        decay: float = 0.9,
    ):
        super().__init__(input_shape, classes, tuple(channels), hidden, "relu", "soft")
        self.activation = ReinforceBinary(hidden, decay)
