"""Threats: which inputs an attacker may hand in. `Linf`, `L2`, `L1` and `L0` balls inside the box [0,1].

Each knows the *exact* feasible change of steepest ascent, so that one step with the whole budget is the
closed-form worst case of a linear model, box included; and the *exact* Euclidean projection onto ball and box.
Shapes: x, x0 and gradients [N, ...]; distances [N].
"""

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from stochade.errors import BudgetError
from stochade.randomness import Stream

TOLERANCE = 1e-5  # relative slack for rounding in float32 when membership of a ball is checked


@runtime_checkable
class Threat(Protocol):
    """A set of allowed inputs around each original."""

    @property
    def size(self) -> float:
        """The budget as one number, in the units of `distance`."""
        ...

    def steepest(self, gradient: Tensor, x: Tensor, x0: Tensor | None = None, size: float | None = None) -> Tensor:
        """The feasible change of x that raises <gradient, change> most: at most `size` long, and never out of
        the budget around x0 (default x) or the box. size=None: the whole budget left around x0."""
        ...

    def project(self, x: Tensor, x0: Tensor) -> Tensor:
        """The nearest allowed input."""
        ...

    def start(self, x0: Tensor, generator: Stream) -> Tensor:
        """A random allowed input."""
        ...

    def distance(self, x: Tensor, x0: Tensor) -> Tensor:
        """[N], in the units of the budget."""
        ...

    def contains(self, other: "Threat") -> bool:
        """Whether every input that `other` allows is allowed here."""
        ...


def _rows(t: Tensor) -> Tensor:
    return t.flatten(1)


def _like(v: Tensor, x: Tensor) -> Tensor:
    """[N] -> [N, 1, ...] so that it broadcasts over x."""
    return v.reshape(-1, *(1,) * (x.dim() - 1))


@dataclass(frozen=True)
class Ball:
    """Common ground of the four norms: the budget, its check, containment and the box.

    Raises:
        BudgetError: a budget that is negative, NaN or not a number.
    """

    eps: float

    name = "ball"

    def __post_init__(self):
        value = self.eps
        if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
            raise BudgetError(
                f"a budget eps >= 0 for {type(self).__name__} (in units of images in [0,1])",
                repr(value),
                "for 8 grey levels of 255 write 8/255",
            )
        object.__setattr__(self, "eps", float(value))

    @property
    def size(self) -> float:
        return self.eps

    def contains(self, other: Threat) -> bool:
        return type(other) is type(self) and other.size <= self.size

    def resized(self, eps: float) -> "Ball":
        """The same norm with another budget."""
        return type(self)(eps)

    def move(self, gradient: Tensor, x: Tensor, x0: Tensor | None = None, size: float | None = None) -> Tensor:
        """x after its change of steepest ascent; exact where `x + steepest(...)` would round."""
        raise TypeError(f"{type(self).__name__} must define move")

    def steepest(self, gradient: Tensor, x: Tensor, x0: Tensor | None = None, size: float | None = None) -> Tensor:
        return self.move(gradient, x, x0, size) - x

    def project(self, x: Tensor, x0: Tensor) -> Tensor:
        raise TypeError(f"{type(self).__name__} must define project")

    def start(self, x0: Tensor, generator: Stream) -> Tensor:
        raise TypeError(f"{type(self).__name__} must define start")

    def distance(self, x: Tensor, x0: Tensor) -> Tensor:
        raise TypeError(f"{type(self).__name__} must define distance")

    def __str__(self) -> str:
        return f"{self.name} {self.eps:.4g}"


@dataclass(frozen=True)
class Linf(Ball):
    """No pixel moves by more than eps. eps=inf: anything inside the box."""

    name = "linf"

    def move(self, gradient, x, x0=None, size=None):
        step = min(self.eps * 2 if size is None else size, 1.0)  # the box is 1 wide
        return self.project(x.add(gradient.sign(), alpha=step), x if x0 is None else x0)

    def project(self, x, x0):
        if not math.isfinite(self.eps):
            return x.clamp(0, 1)
        return torch.clamp(x, x0 - self.eps, x0 + self.eps).clamp_(0, 1)

    def start(self, x0, generator):
        eps = min(self.eps, 1.0)
        noise = generator.uniform(x0.shape[1:], x0.dtype)
        return self.project(x0 + (2 * noise - 1) * eps, x0)

    def distance(self, x, x0):
        return _rows(x - x0).abs().amax(1)


@dataclass(frozen=True)
class L2(Ball):
    """The Euclidean length of the change is at most eps."""

    name = "l2"

    def move(self, gradient, x, x0=None, size=None):
        """Whole budget: max <g, z - x0> over ball and box is z = x0 + clip(t g) for the largest t that fits. A step
        of `size` goes straight towards that point (Frank and Wolfe 1956; attacks: Chen et al. 2020). It stays in
        the convex set without a projection and reaches the optimum of a linear model in at most 2 eps / size
        steps, where projected steps of that length stop short of it."""
        best = _ray_into_box(gradient, x if x0 is None else x0, self.eps)
        if size is None:
            return best
        gap = self.distance(best, x)
        best = torch.where(_like(_rows(gradient).any(1), x), best, x)  # no gradient, no step
        return torch.lerp(x, best, _like((size / gap.clamp_min(1e-30)).clamp(max=1), x))

    def project(self, x, x0):
        delta = x - x0
        inside = (x0 + delta * self._shrink(delta)).clamp_(0, 1)
        clipped = _rows(x.clamp(0, 1) - x0).norm(dim=1) <= self.eps
        scaled = x0 + delta * self._shrink(delta)
        exact = (_rows(scaled) >= 0).all(1) & (_rows(scaled) <= 1).all(1)
        hard = ~(exact | clipped)
        out = torch.where(_like(clipped, x), x.clamp(0, 1), inside)
        if hard.any():  # both constraints bind: one multiplier, found by bisection
            out[hard] = _ray_into_box(delta[hard], x0[hard], self.eps)
        return out

    def _shrink(self, delta: Tensor) -> Tensor:
        length = _rows(delta).norm(dim=1).clamp_min(1e-30)
        return _like((self.eps / length).clamp(max=1), delta)

    def start(self, x0, generator):
        """Uniform in the ball, then projected onto the box; uniform in a box that the ball holds entirely."""
        shape = x0.shape[1:]
        if self.eps >= math.prod(shape) ** 0.5:
            return generator.uniform(shape, x0.dtype)
        direction = generator.normal(shape, x0.dtype)
        radius = generator.uniform((), x0.dtype) ** (1 / max(math.prod(shape), 1)) * self.eps
        unit = direction / _like(_rows(direction).norm(dim=1).clamp_min(1e-30), x0)
        return self.project(x0 + unit * _like(radius, x0), x0)

    def distance(self, x, x0):
        return _rows(x - x0).norm(dim=1)


def _ray_into_box(direction: Tensor, x0: Tensor, eps: float, rounds: int = 60) -> Tensor:
    """x0 + clip(t * direction into the box) with the largest t whose length is at most eps.

    This solves both max <direction, z - x0> over {|z - x0|_2 <= eps, 0 <= z <= 1} and the projection of
    x0 + direction onto that set when the ball binds: the KKT conditions give the same one-parameter family.
    """
    d, low, high = _rows(direction), -_rows(x0), 1 - _rows(x0)
    room = torch.where(d > 0, high, torch.where(d < 0, low, torch.zeros_like(d)))
    all_the_way = room.norm(dim=1) <= eps
    scale = d.abs().amax(1, keepdim=True).clamp_min(1e-30)
    d = d / scale  # so that t has the size of the box
    small = torch.where(d != 0, d.abs(), torch.inf).amin(1, keepdim=True)
    bottom = torch.zeros_like(scale)
    top = torch.where(torch.isfinite(small), 1 / small.clamp_min(1e-12), torch.ones_like(small))
    for _ in range(rounds):
        middle = torch.where(
            top > 4 * bottom.clamp_min(1e-12), (top * bottom.clamp_min(1e-12)).sqrt(), (top + bottom) / 2
        )
        fits = torch.clamp(middle * d, low, high).norm(dim=1, keepdim=True) <= eps
        bottom, top = torch.where(fits, middle, bottom), torch.where(fits, top, middle)
    change = torch.where(all_the_way[:, None], room, torch.clamp(bottom * d, low, high))
    return (_rows(x0) + change).clamp_(0, 1).view_as(x0)


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
            return (base + _fill(gradient, base, self.eps)).clamp_(0, 1)
        return (base + _shed(gradient, x + _fill(gradient, x, size) - base, self.eps)).clamp_(0, 1)

    def project(self, x, x0, rounds: int = 50):
        delta, low, high = _rows(x - x0), -_rows(x0), 1 - _rows(x0)
        out = torch.clamp(delta, low, high)
        over = out.abs().sum(1) > self.eps
        if over.any():  # soft threshold mu, then the box; the length falls monotonically in mu
            d, lo, hi = delta[over], low[over], high[over]
            bottom = torch.zeros_like(d[:, :1])
            top = d.abs().amax(1, keepdim=True)
            for _ in range(rounds):
                mu = (bottom + top) / 2
                fits = _soft(d, mu).clamp(lo, hi).abs().sum(1, keepdim=True) <= self.eps
                bottom, top = torch.where(fits, bottom, mu), torch.where(fits, mu, top)
            out[over] = _soft(d, top).clamp(lo, hi)
        return (_rows(x0) + out).clamp_(0, 1).view_as(x)

    def start(self, x0, generator):
        """Uniform in the ball (exponential spacings with random signs), then projected onto the box; uniform in a
        box that the ball holds entirely."""
        shape = x0.shape[1:]
        count = math.prod(shape)
        if self.eps >= count:
            return generator.uniform(shape, x0.dtype)
        parts = generator.exponential((count + 1,), x0.dtype)
        parts = parts / parts.sum(1, keepdim=True) * self.eps
        return self.project(x0 + parts[:, :count].view_as(x0) * generator.signs(shape, x0.dtype), x0)

    def distance(self, x, x0):
        return _rows(x - x0).abs().sum(1)


def _soft(d: Tensor, mu: Tensor) -> Tensor:
    return d.sign() * (d.abs() - mu).clamp_min(0)


def _fill(gradient: Tensor, base: Tensor, budget: float) -> Tensor:
    """The exact maximiser of <gradient, change> with sum |change| <= budget and base + change in the box."""
    g, b = _rows(gradient), _rows(base)
    room = torch.where(g > 0, 1 - b, torch.where(g < 0, b, torch.zeros_like(b)))
    order = g.abs().argsort(dim=1, descending=True, stable=True)
    sorted_room = room.gather(1, order)
    spent_before = sorted_room.cumsum(1) - sorted_room
    amount = torch.minimum(sorted_room, (budget - spent_before).clamp_min(0))
    change = torch.zeros_like(g).scatter_(1, order, amount)
    return (change * g.sign()).view_as(base)


def _shed(gradient: Tensor, change: Tensor, budget: float) -> Tensor:
    """The change with its least wanted parts taken back until its absolute sum is the budget: exactly the largest
    <gradient, change> that shrinking entries can keep."""
    g, d = _rows(gradient), _rows(change)
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

    def _merge(self, score: Tensor) -> Tensor:
        """Per-value scores [N, ...] -> per-unit scores [N, units]."""
        if self.per == "pixel" and score.dim() == 4:
            return _rows(score.sum(1))
        return _rows(score)

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
            fresh = _top(gain.masked_fill(present, -1), max(1, round(min(size, 1e9))))
            gain = gain.masked_fill(~(present | fresh), -1)
        chosen = self._spread(_top(gain, self.eps), x)
        return torch.where(chosen, best, x0)

    def project(self, x, x0):
        inside = x.clamp(0, 1)
        saved = (x - x0).square() - (x - inside).square()  # what leaving a value at x0 would cost in squared distance
        keep = self._spread(_top(self._merge(saved), self.eps), x)
        return torch.where(keep, inside, x0)

    def start(self, x0, generator):
        values = generator.uniform(x0.shape[1:], x0.dtype)
        order = generator.uniform(self._merge(x0).shape[1:])
        return torch.where(self._spread(_top(order, self.eps), x0), values, x0)

    def distance(self, x, x0):
        return (self._merge((x != x0).to(x.dtype)) > 0).sum(1).to(x.dtype)


def _top(score: Tensor, count: float) -> Tensor:
    """Mask of the `count` largest positive scores in each row."""
    units = score.shape[1]
    count = units if count >= units else int(count)
    if count == 0:
        return torch.zeros_like(score, dtype=torch.bool)
    index = score.topk(count, dim=1).indices
    return torch.zeros_like(score, dtype=torch.bool).scatter_(1, index, True) & (score > 0)


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
