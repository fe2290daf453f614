"""The nearest point of a hyperplane inside the box, in linf, l2 and l1: exact, whole batches at once (Croce and Hein
2020b, section 3.2 and appendix B)."""

import torch
from torch import Tensor

from stochade.attacks.ball import rows_of
from stochade.attacks.filling import level


def onto_hyperplane(norm: str, x: Tensor, slope: Tensor, gap: Tensor) -> Tensor:
    """The shortest change d with <slope, d> = gap that leaves x + d in the box [0,1].

    Where no such change exists, the one that comes nearest: every coordinate with a slope at its bound. Every
    coordinate counts alike where several changes are shortest (l1: the first ones).

    Args:
        norm: "linf", "l2" or "l1". x, slope: [N, ...]. gap: [N], of either sign.

    Returns:
        like x
    """
    g, p = rows_of(slope), rows_of(x)
    scale = g.abs().amax(1, keepdim=True).clamp_min(torch.finfo(g.dtype).tiny)
    g, need = g / scale * gap.sign()[:, None], gap.abs()[:, None] / scale
    low, high = -p, 1 - p
    size, room = g.abs(), torch.clamp(g * torch.finfo(g.dtype).max, low, high).abs_()
    if norm == "l1":
        return _greedy(size, room, need).mul_(g.sign()).view_as(x)
    rate = size if norm == "linf" else size.square()
    t = level(rate, size * room, need)
    way = g.sign() if norm == "linf" else g
    return torch.clamp(way.mul_(t), low, high).view_as(x)


def _greedy(size: Tensor, room: Tensor, need: Tensor) -> Tensor:
    """Coordinates of largest slope to their bounds until sum slope * change = need: a fractional knapsack."""
    order = size.argsort(dim=1, descending=True, stable=True)
    slopes = size.gather(1, order)
    gain = slopes * room.gather(1, order)
    used = torch.minimum(gain, (need - (gain.cumsum(1) - gain)).clamp_min(0))
    change = torch.where(slopes > 0, used / slopes, 0)
    return torch.zeros_like(size).scatter_(1, order, change)


def dual_norm(norm: str, slope: Tensor) -> Tensor:
    """[N] what a unit step in `norm` can at most gain along `slope`."""
    order = {"linf": 1.0, "l2": 2.0, "l1": torch.inf}[norm]
    return torch.linalg.vector_norm(rows_of(slope), ord=order, dim=1)
