"""The sparse balls: `L1` (sum of absolute changes) and `L0` (number of changed values or pixels)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from stochade.attacks.ball import Ball, Threat, rows_of
from stochade.attacks.filling import threshold
from stochade.errors import BudgetError


@dataclass(frozen=True)
class L1(Ball):
    """The sum of absolute changes is at most eps."""

    name = "l1"

    def move(self, gradient, x, x0=None, size=None):
        """Whole budget: the coordinates with the largest gradient go to their bound until eps is spent (a fractional
        knapsack, so exact). A step of `size` does the same from x, and pays for what then exceeds eps by taking back
        the changes that the gradient wants least. That reaches the optimum of a linear model from anywhere, where
        the Euclidean projection takes from all changes alike and stops short of it."""
        base = x if x0 is None else x0
        if size is None:
            return (base + _fill(gradient, base, self._budget(x))).clamp_(0, 1)
        step = size[:, None].to(x) if isinstance(size, Tensor) else size
        return (base + _shed(gradient, x + _fill(gradient, x, step) - base, self._budget(x))).clamp_(0, 1)

    def _budget(self, x: Tensor) -> float | Tensor:
        """The budget beside rows [N, D]: a number, or [N, 1]."""
        return self.eps if self._each is None else self._each.to(x)[:, None]

    def project(self, x, x0):
        out = x.clamp(0, 1)
        budget = self._budget(x)
        over = rows_of(out - x0).abs().sum(1, keepdim=True) > budget
        if bool(over.any()):
            hard = over[:, 0]
            base = x0[hard]
            d, low, high = rows_of(x[hard] - base), -rows_of(base), 1 - rows_of(base)
            limit = budget[hard] if isinstance(budget, Tensor) else budget
            mu = threshold(d.abs(), torch.clamp(d * torch.finfo(d.dtype).max, low, high).abs_(), limit)
            change = torch.clamp(d.sign() * (d.abs() - mu).clamp_min_(0), low, high)
            out[hard] = (rows_of(base) + change).clamp_(0, 1).view_as(base)
        return out

    def start(self, x0, generator):
        """Uniform in the ball (exponential spacings with random signs), then projected onto the box; uniform in a
        box that the ball holds entirely."""
        shape = x0.shape[1:]
        count = math.prod(shape)
        if self._each is None and self.eps >= count:
            return generator.uniform(shape, x0.dtype)
        parts = generator.exponential((count + 1,), x0.dtype)
        parts = parts / parts.sum(1, keepdim=True) * self._budget(x0)
        return self.project(x0 + parts[:, :count].view_as(x0) * generator.signs(shape, x0.dtype), x0)

    def distance(self, x, x0):
        return rows_of(x - x0).abs().sum(1)


def _fill(gradient: Tensor, base: Tensor, budget: float | Tensor) -> Tensor:
    """The exact maximiser of <gradient, change> with sum |change| <= budget and base + change in the box."""
    g, b = rows_of(gradient), rows_of(base)
    room = torch.where(g > 0, 1 - b, torch.where(g < 0, b, torch.zeros_like(b)))
    order = g.abs().argsort(dim=1, descending=True, stable=True)
    sorted_room = room.gather(1, order)
    spent_before = sorted_room.cumsum(1) - sorted_room
    amount = torch.minimum(sorted_room, (budget - spent_before).clamp_min(0))
    change = torch.zeros_like(g).scatter_(1, order, amount)
    return (change * g.sign()).view_as(base)


def _shed(gradient: Tensor, change: Tensor, budget: float | Tensor) -> Tensor:
    """The change with its least wanted parts taken back until its absolute sum is the budget: exactly the largest
    <gradient, change> that shrinking entries can keep."""
    g, d = rows_of(gradient), rows_of(change)
    excess = (d.abs().sum(1, keepdim=True) - budget).clamp_min(0)
    order = (g * d.sign()).argsort(dim=1, stable=True)
    amount = d.abs().gather(1, order)
    taken = torch.minimum(amount, (excess - (amount.cumsum(1) - amount)).clamp_min(0))
    return (d - d.sign() * torch.zeros_like(d).scatter_(1, order, taken)).view_as(change)


@dataclass(frozen=True)
class L0(Ball):
    """At most eps values of an image change (per="value"), or at most eps positions, all channels together
    (per="pixel"). The changed values may take anything inside the box."""

    per: str = "value"

    name = "l0"

    def __post_init__(self):
        super().__post_init__()
        if self.per not in ("value", "pixel"):
            raise BudgetError("per='value' or per='pixel'", repr(self.per), "L0(k) counts values by default")
        if math.isfinite(self.eps) and self.eps != int(self.eps):
            raise BudgetError(
                "a whole number of values that may change", repr(self.eps), "L0(k) counts, it has no scale"
            )

    def resized(self, eps: float) -> "L0":
        return L0(int(eps) if math.isfinite(eps) else eps, self.per)

    def contains(self, other: Threat) -> bool:
        if not isinstance(other, L0) or other.eps > self.eps:
            return False
        return other.per == self.per or self.per == "pixel"  # k values never touch more than k positions

    def _count(self) -> float | Tensor:
        return self.eps if self._each is None else self._each

    def _merge(self, score: Tensor) -> Tensor:
        """Per-value scores [N, ...] -> per-unit scores [N, units]."""
        if self.per == "pixel" and score.dim() == 4:
            return rows_of(score.sum(1))
        return rows_of(score)

    def _spread(self, mask: Tensor, x: Tensor) -> Tensor:
        """Per-unit mask [N, units] -> mask over values."""
        if self.per == "pixel" and x.dim() == 4:
            return mask.view(x.shape[0], 1, *x.shape[2:]).expand_as(x)
        return mask.view_as(x)

    def move(self, gradient, x, x0=None, size=None):
        """The best eps units to their bounds, all others back to x0 (exact: gains are separable). With `size`,
        at most that many units that x does not change yet may enter."""
        x0 = x if x0 is None else x0
        best = torch.where(gradient > 0, 1.0, torch.where(gradient < 0, 0.0, x0)).to(x.dtype)
        gain = self._merge(gradient * (best - x0))
        if size is not None:
            present = self._merge((x != x0).to(x.dtype)) > 0
            entering = size.round().clamp_min(1) if isinstance(size, Tensor) else max(1, round(min(size, 1e9)))
            fresh = largest_mask(gain.masked_fill(present, -1), entering)
            gain = gain.masked_fill(~(present | fresh), -1)
        chosen = self._spread(largest_mask(gain, self._count()), x)
        return torch.where(chosen, best, x0)

    def project(self, x, x0):
        inside = x.clamp(0, 1)
        saved = (x - x0).square() - (x - inside).square()  # what leaving a value at x0 would cost in squared distance
        keep = self._spread(largest_mask(self._merge(saved), self._count()), x)
        return torch.where(keep, inside, x0)

    def start(self, x0, generator):
        values = generator.uniform(x0.shape[1:], x0.dtype)
        order = generator.uniform(self._merge(x0).shape[1:])
        return torch.where(self._spread(largest_mask(order, self._count()), x0), values, x0)

    def distance(self, x, x0):
        return (self._merge((x != x0).to(x.dtype)) > 0).sum(1).to(x.dtype)


def largest_mask(score: Tensor, count: float | Tensor) -> Tensor:
    """Mask of the `count` largest positive scores in each row; a count for all rows, or [N]."""
    if isinstance(count, Tensor):
        rank = score.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        return (rank < count.to(score.device)[:, None]) & (score > 0)
    units = score.shape[1]
    count = units if count >= units else int(count)
    if count == 0:
        return torch.zeros_like(score, dtype=torch.bool)
    index = score.topk(count, dim=1).indices
    return torch.zeros_like(score, dtype=torch.bool).scatter_(1, index, True) & (score > 0)
