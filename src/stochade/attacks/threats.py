"""Threats: which inputs an attacker may hand in. `Linf`, `L2`, `L1` and `L0` balls inside the box [0,1].

Each knows the *exact* feasible change of steepest ascent, so that one step with the whole budget is the
closed-form worst case of a linear model, box included; and the *exact* Euclidean projection onto ball and box.
Shapes: x, x0 and gradients [N, ...]; distances [N].
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from stochade.attacks.ball import Ball, Threat, like, rows_of, spread
from stochade.attacks.filling import level
from stochade.attacks.sparse_balls import L0, L1
from stochade.errors import BudgetError

__all__ = ["L0", "L1", "L2", "THREATS", "Ball", "Linf", "Threat", "parse_threat"]


@dataclass(frozen=True)
class Linf(Ball):
    """No pixel moves by more than eps, at most 1. eps=inf: anything inside the box.

    Raises:
        BudgetError: a budget that is negative or no number, or above 1 (grey levels instead of fractions).
    """

    name = "linf"

    def __post_init__(self):
        super().__post_init__()
        if 1 < self.eps < math.inf:
            hint = f"for {self.eps:g} grey levels of 255 write {self.eps:g}/255"
            raise BudgetError("a budget eps in [0,1] for Linf, or inf", f"{self.eps:g}", hint)

    def move(self, gradient, x, x0=None, size=None):
        step = 1.0 if size is None else spread(size, x)  # the box is 1 wide
        if isinstance(step, Tensor):
            moved = torch.addcmul(x, gradient.sign(), step)
        else:
            moved = x.add(gradient.sign(), alpha=min(step, 1.0))
        return self.project(moved, x if x0 is None else x0)

    def project(self, x, x0):
        if not math.isfinite(self.eps):
            return x.clamp(0, 1)
        eps = self.limit(x0)
        return torch.clamp(x, x0 - eps, x0 + eps).clamp_(0, 1)

    def start(self, x0, generator):
        eps = self.limit(x0)
        eps = eps.clamp(max=1.0) if isinstance(eps, Tensor) else min(eps, 1.0)
        noise = generator.uniform(x0.shape[1:], x0.dtype)
        return self.project(x0 + (2 * noise - 1) * eps, x0)

    def distance(self, x, x0):
        return rows_of(x - x0).abs().amax(1)


@dataclass(frozen=True)
class L2(Ball):
    """The Euclidean length of the change is at most eps."""

    name = "l2"

    def move(self, gradient, x, x0=None, size=None):
        """Whole budget: max <g, z - x0> over ball and box is z = x0 + clip(t g) for the largest t that fits. A step
        of `size` goes straight towards that point (Frank and Wolfe 1956; attacks: Chen et al. 2020). It stays in
        the convex set without a projection and reaches the optimum of a linear model in at most 2 eps / size
        steps, where projected steps of that length stop short of it."""
        best = _ray_into_box(gradient, x if x0 is None else x0, self._radius(x))
        if size is None:
            return best
        gap = self.distance(best, x)
        best = torch.where(like(rows_of(gradient).any(1), x), best, x)  # no gradient, no step
        return torch.lerp(x, best, like((size / gap.clamp_min(1e-30)).clamp(max=1), x))

    def _radius(self, x: Tensor) -> float | Tensor:
        """The budget beside rows [N, D]: a number, or [N, 1]."""
        return self.eps if self._each is None else self._each.to(x)[:, None]

    def project(self, x, x0):
        out = x.clamp(0, 1)
        radius = self._radius(x)
        over = rows_of(out - x0).norm(dim=1, keepdim=True) > radius
        if bool(over.all()):
            return _ray_into_box(x - x0, x0, radius)
        if bool(over.any()):
            hard = over[:, 0]
            radius = radius[hard] if isinstance(radius, Tensor) else radius
            out[hard] = _ray_into_box(x[hard] - x0[hard], x0[hard], radius)
        return out

    def start(self, x0, generator):
        """Uniform in the ball, then projected onto the box; uniform in a box that the ball holds entirely."""
        shape = x0.shape[1:]
        if self._each is None and self.eps >= math.prod(shape) ** 0.5:
            return generator.uniform(shape, x0.dtype)
        direction = generator.normal(shape, x0.dtype)
        radius = generator.uniform((), x0.dtype) ** (1 / max(math.prod(shape), 1))
        unit = direction / like(rows_of(direction).norm(dim=1).clamp_min(1e-30), x0)
        return self.project(x0 + unit * like(radius, x0) * self.limit(x0), x0)

    def distance(self, x, x0):
        return rows_of(x - x0).norm(dim=1)


def _ray_into_box(direction: Tensor, x0: Tensor, eps: float | Tensor) -> Tensor:
    """x0 + clip(t * direction into the box) with the largest t whose length is at most eps.

    This solves both max <direction, z - x0> over {|z - x0|_2 <= eps, 0 <= z <= 1} and the projection of
    x0 + direction onto that set when the ball binds: the KKT conditions give the same one-parameter family.
    """
    d, low, high = rows_of(direction), -rows_of(x0), 1 - rows_of(x0)
    d = d / d.abs().amax(1, keepdim=True).clamp_min(1e-30)  # so that squares neither overflow nor vanish
    room = torch.clamp(d * torch.finfo(d.dtype).max, low, high)
    t = level(d.square(), room.square_(), eps**2).sqrt_()
    return (rows_of(x0) + torch.clamp(d * t, low, high)).clamp_(0, 1).view_as(x0)


THREATS: dict[str, type[Ball]] = {"linf": Linf, "l2": L2, "l1": L1, "l0": L0}


def parse_threat(text: str) -> Ball:
    """`"linf=0.3"`, `"linf 8/255"`, `"l2:1.5"`, `"l0=10"` -> a threat, for the command line.

    Raises:
        BudgetError: an unknown norm or a budget that is no number.
    """
    norm, _, amount = text.strip().lower().replace("=", " ").replace(":", " ").partition(" ")
    if norm not in THREATS:
        raise BudgetError(f"a threat such as linf=0.3 (norms: {', '.join(THREATS)})", repr(text), "write NORM=BUDGET")
    try:
        top, _, bottom = amount.strip().partition("/")
        eps = float(top) / (float(bottom) if bottom else 1.0)
    except (ValueError, ZeroDivisionError):
        raise BudgetError("a budget such as 0.3 or 8/255", repr(amount), f"for example {norm}=8/255") from None
    return THREATS[norm](eps)
