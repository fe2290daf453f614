"""Networks with parametric noise: any network of dense layers and convolutions, and a small one by name."""

from typing import Literal

from torch import Tensor, nn

from stochade.errors import ModelError, UsageError
from stochade.models.plain import CNN2, Shape
from stochade.nn.pni import PNIConv2d, PNILinear

WHERE = ("weights", "activations", "inputs")


def with_parametric_noise(
    model: nn.Module,
    where: Literal["weights", "activations", "inputs"] = "weights",
    alpha: float = 0.25,
    scope: Literal["example", "call"] = "example",
) -> nn.Module:
    """The same network, changed in place: its dense layers and convolutions get parametric noise (He et al. 2019).

    Args:
        model: with layers of exactly `nn.Linear` and `nn.Conv2d`, in the order in which they are used; its weights
            stay, under the same names.
        where: "weights" of every layer; "activations": what enters every layer but the first; "inputs": what enters
            the first, the image.
        alpha: strength at first, one for each layer.
        scope: "example": noise of its own for every image; "call": one draw for a batch, as in the released code.

    Returns: the model.

    Raises:
        UsageError: another place, scope or strength. ModelError: no layers, or convolutions with groups or dilation.
    """
    if where not in WHERE:
        raise UsageError(f"noise on one of {list(WHERE)}", repr(where))
    found = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if type(child) in (nn.Linear, nn.Conv2d)
    ]
    order = {id(module): i for i, module in enumerate(model.modules())}
    found.sort(key=lambda entry: order[id(entry[2])])
    chosen = {"weights": found, "activations": found[1:], "inputs": found[:1]}[where]
    if not chosen:
        raise ModelError("a network with dense layers or convolutions", f"{type(model).__name__} without enough")
    for parent, name, child in chosen:
        on = "weights" if where == "weights" else "inputs"
        if isinstance(child, nn.Conv2d):
            setattr(parent, name, PNIConv2d(child, on, alpha, scope))
        elif isinstance(child, nn.Linear):
            setattr(parent, name, PNILinear(child, on, alpha, scope))
    return model


class PNICNN(nn.Module):
    """`CNN2` (two convolutions, dense 100) with parametric noise. Images [N,C,H,W] -> logits [N,K]."""

    scope = "composite"

    def __init__(
        self,
        input_shape: Shape = (1, 28, 28),
        classes: int = 10,
        where: Literal["weights", "activations", "inputs"] = "weights",
        alpha: float = 0.25,
        scope: Literal["example", "call"] = "example",
        hidden: int = 100,
    ):
        super().__init__()
        self.network = with_parametric_noise(CNN2(input_shape, classes, hidden), where, alpha, scope)

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)
