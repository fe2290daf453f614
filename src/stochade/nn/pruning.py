"""Stochastic activation pruning (SAP, Dhillon et al. 2018; equations 2.23 to 2.25 of the SGBN thesis).

Units survive with a probability that grows with their size, and survivors are scaled up so that the mean over
draws is the input. What it does to gradients is noise and nothing else: the mean gradient points where the
unpruned network's does, and a margin loss with many small steps breaks it (Athalye et al. 2018).
"""

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from stochade.errors import ModelError, UsageError
from stochade.nn import surrogates
from stochade.nn.discrete import Discrete, Surrogate

_SPREAD = 4  # standard deviations of a Poisson count; beyond them a row is drawn anew, three in 100,000


def drawn(weights: Tensor, draws: int) -> Tensor:
    """Which units occur at least once among `draws` draws with replacement, with chances proportional to `weights`.

    The distribution is exactly multinomial, at a third of the cost of drawing one unit after the other: counts
    of a Poisson process with a little less than `draws` arrivals are multinomial given their sum, and the draws
    that are missing are made one by one. Rows with more arrivals than `draws` are drawn one by one altogether.

    Args:
        weights: [N, D], finite and not negative. A row of zeros draws nothing.
        draws: r >= 1.

    Returns: bool [N, D]; rows are independent.
    """
    count, units = weights.shape
    total = weights.sum(1, keepdim=True)
    p = (weights / total).nan_to_num(0.0)
    arrivals = torch.poisson(p * max(0.0, draws - _SPREAD * math.sqrt(draws)))
    missing = draws - arrivals.sum(1, keepdim=True)
    too_many = missing < 0
    arrivals, missing = arrivals.masked_fill(too_many, 0.0), missing.masked_fill(too_many, draws)
    most = int(missing.max()) if count else 0
    exact = torch.float32 if p.device.type == "mps" else torch.float64
    cumulative = p.to(exact).cumsum(1)
    u = torch.rand(count, most, dtype=exact, device=p.device) * cumulative[:, -1:]
    chosen = torch.searchsorted(cumulative, u, right=True)  # right: a unit of weight 0 is never chosen
    chosen = chosen.masked_fill(torch.arange(most, device=p.device) >= missing, units)  # a column to throw away
    found = torch.zeros(count, units + 1, dtype=torch.bool, device=p.device).scatter_(1, chosen, True)
    return (arrivals > 0) | found[:, :units]


def kept_probability(x: Tensor, share: float) -> Tensor:
    """1 - (1 - p)^r with p = |x| / sum |x| over each example and r = share * units (at least 1), shaped like `x`."""
    size = x.abs()
    total = size.flatten(1).sum(1).view(len(x), *[1] * (x.ndim - 1))
    p = size / torch.where(total > 0, total, 1.0)
    # At p = 1 the derivative would be 0 * inf; one rounding below, the probability is the same.
    return -torch.expm1(_draws(x, share) * torch.log1p(-p.clamp(max=1 - 2**-24)))


def _draws(x: Tensor, share: float) -> int:
    return max(1, round(share * x[:1].numel())) if len(x) else 1


def _scaled(x: Tensor, share: float, through: bool) -> Tensor:
    """x / kept_probability(x), 0 at 0; the derivative treats the probability as constant unless `through`."""
    probability = kept_probability(x if through else x.detach(), share)
    return x / torch.where(probability > 0, probability, 1.0)


@dataclass(frozen=True)
class OnSurvivors(Surrogate):
    """The derivative of `primitive` where the draw of this very forward kept the unit, 0 elsewhere."""

    def __call__(self, hard: Tensor, x: Tensor) -> Tensor:
        if not (torch.is_grad_enabled() and x.requires_grad):
            return hard
        soft = torch.where(hard != 0, self.primitive(x), 0.0)
        return hard.detach() + (soft - soft.detach())


class SAP(Discrete):
    """Keeps each activation with probability 1 - (1 - p)^r, p = |h| / sum |h|, and divides what it keeps by it.

    A unit survives when it is among r draws with replacement from the units of its example; survivals are
    therefore not quite independent. The mean over draws is the input. Active in training and evaluation alike;
    put it after a ReLU. The thesis does not state r; the authors take r = 100 % of the units.

    Args:
        share: r as a share of the units of an example (all of C*H*W), positive; may exceed 1.

    Shapes: [N, ...], floating point; independent draws for every example.
    Substitutes: "mask", its own (the drawn mask with its factors, as constants); "autograd" (the factors are
    differentiated too, as in the formula typed into an autograd library); "identity" and "ste", the derivative
    of the mean. Relaxed "dense": no pruning, which is the mean.

    Raises:
        UsageError: a share that is not a positive finite number.
        ModelError: an input without units, [N].
    """

    scope = "example"

    def __init__(self, share: float = 1.0):
        if isinstance(share, bool) or not (isinstance(share, int | float) and math.isfinite(share) and share > 0):
            raise UsageError(
                "a positive share of the units to draw", repr(share), "1.0 draws as often as units exist"
            )
        share = float(share)
        mask = OnSurvivors(partial(_scaled, share=share, through=False), "mask")
        autograd = OnSurvivors(partial(_scaled, share=share, through=True), "autograd")
        identity = surrogates.identity()
        super().__init__(
            mask,
            {"mask": mask, "autograd": autograd, "identity": identity, "ste": identity},
            {"dense": surrogates._identity},
        )
        self.share = share

    def hard(self, x: Tensor) -> Tensor:
        if x.ndim < 2:
            raise ModelError("an input [N, ...] with units to prune", f"{list(x.shape)}")
        wide = x if x.dtype in (torch.float32, torch.float64) else x.float()
        kept = drawn(wide.abs().flatten(1), _draws(wide, self.share)).view(x.shape)
        return torch.where(kept, _scaled(wide, self.share, False), 0.0).to(x.dtype)

    def extra_repr(self) -> str:
        return f"share={self.share:g}"
