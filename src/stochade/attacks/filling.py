"""How far boxes must be filled until they hold a total: the equations behind exact projections onto a ball or a
hyperplane inside the box.

Both are piecewise linear in one unknown per row, and Newton's method solves them in a few rounds. Masks are numbers
here, 0 and 1: on a CPU, torch compares and selects ten to thirty times as slowly as it adds.
"""

import torch
from torch import Tensor

ROUNDS = 64  # five to fifteen are usual


def level(rate: Tensor, room: Tensor, total: Tensor | float) -> Tensor:
    """The least u >= 0 at which sum_i min(u rate_i, room_i) reaches `total`; the largest number there is where all
    the room is less than that.

    The sum is concave in u, so Newton's method from 0 climbs to the root: each round asks which boxes are full and
    solves for the others. A row that is not done after the last round has a level too low, never one too high.

    Args:
        rate, room: [N, D], none negative. total: [N, 1] or a number.

    Returns:
        [N, 1]
    """
    most = torch.finfo(room.dtype).max
    u = torch.zeros_like(room[:, :1])
    for _ in range(ROUNDS):
        open_ = torch.addcmul(room, rate, u, value=-1).sign_().clamp_(min=0)  # 1 where there is room left
        speed = torch.linalg.vecdot(open_, rate)[:, None]
        held = torch.linalg.vecdot(open_.neg_().add_(1), room)[:, None]
        higher = torch.where(speed > 0, (total - held) / speed, torch.where(held < total, most, u)).clamp_(max=most)
        if not bool((higher > u).any()):
            break
        u = torch.maximum(u, higher)
    return u


def threshold(size: Tensor, room: Tensor, total: Tensor | float) -> Tensor:
    """The mu >= 0 at which sum_i min(max(size_i - mu, 0), room_i) falls to `total`: what the Euclidean projection
    onto an l1 ball and the box takes from every change (Croce and Hein 2021, proposition 2.1).

    Newton's method inside a bracket that every eighth round halves; exact on the last linear piece.

    Args:
        size, room: [N, D], none negative, with a sum of min(size, room) above `total`. total: [N, 1] or a number.

    Returns:
        [N, 1]
    """
    bottom, top = torch.zeros_like(size[:, :1]), size.amax(1, keepdim=True)
    mu, done = bottom.clone(), torch.zeros_like(bottom, dtype=torch.bool)
    close = torch.finfo(size.dtype).eps * top
    for i in range(ROUNDS):
        left = (size - mu).clamp_(min=0)
        excess = torch.minimum(left, room).sum(1, keepdim=True) - total
        bottom, top = torch.where(excess > 0, mu, bottom), torch.where(excess > 0, top, mu)
        slope = left.sign().sum(1, keepdim=True) - left.sub_(room).sign_().clamp_(min=0).sum(1, keepdim=True)
        newton = mu + excess / slope
        inside = (newton >= bottom) & (newton <= top) & (i % 8 < 7)
        new = torch.where(inside, newton, (bottom + top) / 2)
        done |= (excess == 0) | ((new - mu).abs() <= close)
        mu = torch.where(done, mu, new)
        if bool(done.all()):  # settled rows stayed put: no row depends on how long the others take
            break
    return mu
