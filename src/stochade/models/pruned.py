"""SGBN's main network with units dropped or pruned after its convolutions: rivals of the thesis with no gates."""

from collections.abc import Sequence
from typing import Literal

from torch import nn

from stochade.errors import UsageError
from stochade.models.plain import Shape
from stochade.models.sgbn import SGBN, Padding
from stochade.nn import SAP, Standout

Pruning = Literal["standout", "standout-expected", "sap"]


def _activation(pruning: str, share: float) -> nn.Module:
    if pruning == "sap":
        return nn.Sequential(nn.ReLU(), SAP(share))
    if pruning in ("standout", "standout-expected"):
        return Standout(mode="stochastic" if pruning == "standout" else "expected")
    raise UsageError('a pruning among ["standout", "standout-expected", "sap"]', repr(pruning))


def pruned_cnn(
    input_shape: Shape = (1, 28, 28),
    classes: int = 10,
    pruning: Pruning = "standout",
    channels: Sequence[int] = (32, 64),
    kernels: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
    padding: Sequence[Padding] | None = None,
    hidden: int = 100,
    dense: str = "stochastic",
    share: float = 1.0,
) -> SGBN:
    """Convolutions whose ReLU drops or prunes units, then batch norm, a dense layer and classes. [N,C,H,W] -> [N,K].

    Args:
        pruning: "standout", adaptive dropout that draws, in training and evaluation ("AD, ST" of table 4.11);
            "standout-expected", it multiplies by the probability instead ("AD, DT"); "sap", stochastic activation
            pruning ("SAP (add params)" and the CIFAR-10 rows).
        channels, kernels, strides, padding, hidden, dense: as in `SGBN`.
        share: of `SAP`.

    Raises:
        UsageError: another pruning. ModelError: as in `SGBN`.
    """
    _activation(pruning, share)  # a wrong name comes before any layer is built
    model = SGBN(input_shape, classes, channels, kernels, strides, padding, (), dense, hidden)
    for index, layer in enumerate(model.features):
        if isinstance(layer, nn.ReLU):
            model.features[index] = _activation(pruning, share)
    return model
