"""Where `Square` begins and what it tries next, for each norm; a window of its own for every example.

Images are [N, C, H, W]; anything else counts as planes of its last two dimensions, and rows of numbers as images
one pixel high.
"""

import math
from functools import lru_cache

import torch
from torch import Tensor

from stochade.attacks.ball import like
from stochade.attacks.threats import L1, L2, Ball, Linf
from stochade.randomness import Stream


def start(threat: Ball, x0: Tensor, stream: Stream) -> Tensor:
    """Vertical stripes of + and - eps under linf; else a grid of about 5 x 5 pyramids that spends the budget."""
    planes = _planes(x0)
    n, c, h, w = planes.shape
    if isinstance(threat, Linf):
        return (planes + stream.signs((c, 1, w), x0.dtype) * _budget(threat, planes)).clamp_(0, 1).view_as(x0)
    side = max(1, min(h, w) // 5)
    down, across = h // side, w // side
    pattern = _pyramids(stream, (down, across), side, threat, x0.dtype)  # [N, down, across, side, side]
    signs = stream.signs((c, down, across), x0.dtype)[..., None, None]
    grid = (pattern[:, None] * signs).transpose(3, 4).reshape(n, c, down * side, across * side)
    top, left = (h - down * side) // 2, (w - across * side) // 2
    delta = torch.zeros_like(planes)
    delta[:, :, top : top + down * side, left : left + across * side] = grid
    return _spend(threat, delta, planes).view_as(x0)


def propose(threat: Ball, x: Tensor, x0: Tensor, stream: Stream, share: float) -> Tensor:
    """x with new values in a window of `share` of its area; always another point than x, where there is one."""
    planes, original = _planes(x), _planes(x0)
    if isinstance(threat, Linf):
        return _repainted(threat, planes, original, stream, share).view_as(x)
    return _moved(threat, planes - original, original, stream, share).view_as(x)


def _planes(x: Tensor) -> Tensor:
    return x.reshape(len(x), -1, *x.shape[-2:]) if x.dim() > 2 else x[:, None, None]


def _budget(threat: Ball, planes: Tensor) -> Tensor:
    """[N, 1, 1, 1], at most what the box leaves any use for."""
    count = planes[0].numel()
    most = 1.0 if isinstance(threat, Linf) else count**0.5 if isinstance(threat, L2) else float(count)
    limit = threat.limit(planes)
    if isinstance(limit, Tensor):
        return limit.clamp(max=most)
    return planes.new_full((len(planes), 1, 1, 1), min(limit, most))


def _corner(stream: Stream, room: tuple[int, ...]) -> Tensor:
    """Whole numbers [N, len(room)], each uniform in 0 ... room."""
    most = torch.tensor(room, device=stream.ids.device)
    return torch.minimum((stream.uniform((len(room),), torch.float64) * (most + 1)).long(), most)


def _repainted(threat: Linf, x: Tensor, x0: Tensor, stream: Stream, share: float) -> Tensor:
    """Every channel of a window at + or - eps."""
    _, c, h, w = x.shape
    side = max(round(math.sqrt(share * h * w)), 1)
    short = min(side, h, w)
    long = side if short == side else min(max(round(share * h * w / short), 1), max(h, w))
    tall, wide = (short, long) if h <= w else (long, short)
    corner = _corner(stream, (h - tall, w - wide))
    down, across = torch.arange(h, device=x.device), torch.arange(w, device=x.device)
    rows = (down >= corner[:, :1]) & (down < corner[:, :1] + tall)
    columns = (across >= corner[:, 1:]) & (across < corner[:, 1:] + wide)
    window = (rows[:, None, :, None] & columns[:, None, None, :]).expand_as(x)
    change = stream.signs((c, 1, 1), x.dtype) * _budget(threat, x)
    new = torch.where(window, (x0 + change).clamp_(0, 1), x)
    same = (new == x).flatten(1).all(1)
    if bool(same.any()):  # small windows of grey images would propose what is there every second time
        new[same] = torch.where(window[same], (x0 - change)[same].clamp_(0, 1), x[same])
    return new


def _moved(threat: Ball, delta: Tensor, x0: Tensor, stream: Stream, share: float) -> Tensor:
    """The change of two windows, and what is left of the budget, as a pyramid on the change of the first; the
    second is emptied (Andriushchenko et al. 2020, algorithm 3)."""
    n, c, h, w = delta.shape
    side = max(round(math.sqrt(share * h * w)), 3)
    side = min(side + 1 - side % 2, h, w)
    eps, power = _budget(threat, delta), 1 if isinstance(threat, L1) else 2
    room = tuple(most - side - (most > 16 and most > side) for most in (h, w))  # borders matter least
    corner = _corner(stream, room * 2)
    into, emptied = (_window(at, side, n, c) for at in (corner[:, :2], corner[:, 2:]))
    mass = delta.abs() if power == 1 else delta.square()
    there = mass[into].sum((2, 3), keepdim=True)
    total = mass.sum((1, 2, 3), keepdim=True)
    outside = mass.clone()
    outside[into] = 0
    outside[emptied] = 0
    both = mass.sum((2, 3), keepdim=True) - outside.sum((2, 3), keepdim=True)
    pattern = _pyramids(stream, (1,), side, threat, delta.dtype) * stream.signs((c, 1, 1), delta.dtype)
    pattern = pattern + delta[into] / (there ** (1 / power) + 1e-12)
    size = pattern.abs().sum((2, 3), keepdim=True) if power == 1 else pattern.square().sum((2, 3), keepdim=True)
    spare = (eps**power - total).clamp_min(0)
    room = spare + c * both if power == 1 else spare / c + both
    delta = delta.clone()
    delta[emptied] = 0
    delta[into] = pattern / (size ** (1 / power) + 1e-12) * room ** (1 / power)
    return _spend(threat, delta, x0)


def _window(corner: Tensor, side: int, n: int, c: int) -> tuple[Tensor, ...]:
    """Indices of a window of every example, for [N, C, H, W] -> [N, C, side, side]."""
    device = corner.device
    reach = torch.arange(side, device=device)
    rows, columns = corner[:, 0, None] + reach, corner[:, 1, None] + reach
    images, channels = torch.arange(n, device=device), torch.arange(c, device=device)
    return images[:, None, None, None], channels[:, None, None], rows[:, None, :, None], columns[:, None, None, :]


def _spend(threat: Ball, delta: Tensor, x0: Tensor) -> Tensor:
    """x0 plus the change, scaled to the whole budget under l2 and projected under l1."""
    if isinstance(threat, L2):
        length = like(delta.flatten(1).norm(dim=1).clamp_min(1e-12), delta)
        return (x0 + delta * (_budget(threat, x0) / length)).clamp_(0, 1)
    return threat.project(x0 + delta, x0)


def _pyramids(stream: Stream, shape: tuple[int, ...], side: int, threat: Ball, dtype: torch.dtype) -> Tensor:
    """[N, *shape, side, side]: two pyramids of opposite signs, one above the other or side by side."""
    upright = _pyramid(side, isinstance(threat, L1)).to(stream.ids.device, dtype)
    turn = stream.uniform((*shape, 1, 1), torch.float64) > 0.5
    return torch.where(turn, upright.T, upright)


@lru_cache(maxsize=64)
def _pyramid(side: int, sparse: bool) -> Tensor:
    """[side, side] of unit l2 length (sparse: unit l1 length): a pyramid in the upper half, its negative below."""
    power = 4 if sparse else 2
    top, bottom = _half(side // 2, side, power), _half(side - side // 2, side, power)
    norm = 1 if sparse else 2
    parts = [half / torch.linalg.vector_norm(half, norm) for half in (top, bottom) if half.numel()]
    whole = torch.cat([parts[0], -parts[1]] if len(parts) == 2 else [-parts[0]])
    return whole / torch.linalg.vector_norm(whole, norm)


def _half(rows: int, columns: int, power: int) -> Tensor:
    """The sum of 1 / k^power over nested squares of half width k around the middle."""
    down = (torch.arange(rows) - rows // 2).abs()
    across = (torch.arange(columns) - columns // 2).abs()
    ring = torch.maximum(down[:, None], across[None, :])
    steps = 1 / torch.arange(1, max(rows // 2, columns // 2) + 2, dtype=torch.float64) ** power
    return steps.flip(0).cumsum(0).flip(0)[ring]
