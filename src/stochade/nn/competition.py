"""Competition between units: k-winners-take-all (Xiao, Zhong and Zheng 2020).

Deterministic and discontinuous: the loss surface jumps at every change of winners, which starves gradient
attacks. Gradient-free estimates and the substitutes here see past it (Tramer et al. 2020).
"""

import math
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from stochade.errors import ModelError, UsageError
from stochade.nn import surrogates
from stochade.nn.discrete import Discrete, Surrogate

Per = Literal["volume", "channel"]


def _threshold(x: Tensor, ratio: float, per: Per) -> Tensor:
    """The k-th largest value of each group, shaped to broadcast against `x`."""
    groups = x.flatten(1) if per == "volume" else x.flatten(2)
    count = groups.shape[-1]
    k = max(1, math.floor(ratio * count + 1e-9))  # 0.29 * 100 is 28.999999999999996
    kth = groups.topk(k, dim=-1, sorted=False).values.amin(-1)
    return kth.reshape(*kth.shape, *[1] * (x.ndim - kth.ndim))


def winners(x: Tensor, ratio: float, per: Per = "volume") -> Tensor:
    """`x` where it is among the k = floor(ratio * N) largest of its group (at least one; ties stay), else 0.

    The derivative is the mask of winners. Groups: "volume", all units of an example; "channel", all positions
    of one channel of an example.
    """
    return torch.where(x >= _threshold(x.detach(), ratio, per), x, 0.0)


def _soft_winners(x: Tensor, ratio: float, per: Per, temperature: float) -> Tensor:
    gate = torch.sigmoid((x - _threshold(x.detach(), ratio, per)) / temperature)
    return x * gate


def _dense(x: Tensor) -> Tensor:
    return x


class KWTA(Discrete):
    """Keeps the k = floor(ratio * N) largest activations of each example and sets the others to 0.

    Args:
        ratio: share of winners, in (0, 1].
        per: "volume" compares all C*H*W units of an example (the paper's default), "channel" the positions of
            each channel.
        temperature: width of the soft gate around the threshold, in units of the activation.

    Shapes: [N, ...]; "channel" needs [N, C, ...positions].
    Substitutes: "identity" and "ste" (the gradient passes everywhere), "soft" (a sigmoid gate around the
    threshold). Relaxed forwards: "dense" (no competition), "warm" (the soft gate).
    """

    scope = "none"

    def __init__(self, ratio: float = 0.1, per: Per = "volume", temperature: float = 0.1):
        if not 0 < ratio <= 1:
            raise UsageError("a share of winners in (0, 1]", repr(ratio))
        if per not in ("volume", "channel"):
            raise UsageError('per "volume" or "channel"', repr(per))
        if not temperature > 0:
            raise UsageError("a positive temperature", repr(temperature))
        soft = partial(_soft_winners, ratio=ratio, per=per, temperature=temperature)
        own = Surrogate(partial(winners, ratio=ratio, per=per), "winners")
        dense = surrogates.identity()
        super().__init__(
            own,
            {"identity": dense, "ste": dense, "soft": Surrogate(soft, "soft-winners")},
            {"dense": _dense, "warm": soft},
        )
        self.ratio = ratio
        self.per: Per = per
        self._own = own

    def hard(self, x: Tensor) -> Tensor:
        return winners(x, self.ratio, self.per)

    def forward(self, x: Tensor) -> Tensor:
        least = 3 if self.per == "channel" else 2
        if x.ndim < least:
            raise ModelError(f"an input of at least {least} dimensions for per={self.per!r}", f"{list(x.shape)}")
        if self._forward is None and self._backward is None and self.surrogate is self._own:
            return winners(x, self.ratio, self.per)  # its own backward: select the winners once, not twice
        return super().forward(x)

    def extra_repr(self) -> str:
        return f"ratio={self.ratio:g}, per={self.per!r}"
