"""What stands between a sum and its step (batch norm, ReLU, scales), folded into a threshold of the sum, exactly.

A step fires where v >= t (or v > t). v = gamma (z - mean) / sqrt(q) + beta, ReLUs and further such maps are monotone
in z, so the step fires on a half line of z, z >= tau or z <= tau. tau is computed in rational numbers from the
parameters as they are stored; square roots are enclosed to 2^-256. Where the rational number falls on an integer, an
integer sum meets it exactly.

The network itself evaluates v in floating point, and rounds. So a threshold is a pair (low, high): below low the step
cannot fire, above high it must, between them it may do either. low = high where rounding cannot matter (all terms are
zero, or a single difference, whose sign IEEE arithmetic keeps).

Products may underflow besides: what a map does to its value is then off by an absolute error, taken as the smallest
normal number `tiny` for every operation, far above the half of the smallest subnormal one that gradual underflow
costs. Behind scales alone (no mean, no shift, threshold 0) it can only turn the signs of numbers near 0, never that
of an integer: it is kept apart, as `Cut.slack`.
"""

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

_BITS = 256
_ROUNDINGS = 16  # roundings of a batch norm, in units of its terms' absolute sum: at most 7, in any of its orders
_GRAINS = 4  # underflows of a batch norm, for each of the numbers that one may be multiplied by
_FAINT = 1 << 20  # a scale below so many tiny numbers may be off by a share that is not small
_NEVER, _ALWAYS = Fraction(10) ** 30, -(Fraction(10) ** 30)  # beyond every sum that is exact in floating point


Entry = tuple[Fraction, Fraction, Fraction, Fraction]


@dataclass(frozen=True)
class Norm:
    """v = gamma (z - mean) / sqrt(variance) + beta, for every entry of a table; `index` [M] gives a unit's entry."""

    table: tuple[Entry, ...]
    index: np.ndarray


@dataclass(frozen=True)
class Relu:
    """max(z, 0)."""


Chain = tuple[Norm | Relu, ...]


@dataclass(frozen=True)
class Cut:
    """A step of u = direction * z: may be high from `low` on, may be low up to `high`.

    Attributes:
        strict: for low = high: high only above it, not at it.
        slack: how far beyond both ends numbers that are no integers may underflow to the other side.
    """

    low: Fraction
    high: Fraction
    strict: bool = False
    direction: int = 1
    slack: Fraction = Fraction(0)

    def integers(self) -> tuple[int, int]:
        """(least integer u that may be high, largest that may be low)."""
        if self.low < self.high:
            return math.ceil(self.low), math.floor(self.high)
        if self.strict:
            return math.floor(self.low) + 1, math.floor(self.low)
        return math.ceil(self.low), math.ceil(self.low) - 1


@dataclass(frozen=True)
class Cuts:
    """The cuts of M units as arrays [M]: thresholds of u = direction * z, outward in float64, and for integer z."""

    direction: np.ndarray
    low: np.ndarray
    high: np.ndarray
    first: np.ndarray
    last: np.ndarray


def square_root(value: Fraction) -> tuple[Fraction, Fraction]:
    """Rational bounds of the square root, equal where it is rational."""
    top, bottom = math.isqrt(value.numerator), math.isqrt(value.denominator)
    if top * top == value.numerator and bottom * bottom == value.denominator:
        return Fraction(top, bottom), Fraction(top, bottom)
    root = math.isqrt((value.numerator << 2 * _BITS) // value.denominator)
    return Fraction(root, 1 << _BITS), Fraction(root + 1, 1 << _BITS)


def before_norm(cut: Cut, entry: Entry, unit: Fraction, tiny: Fraction = Fraction(0)) -> Cut:
    """The cut of z from that of v = gamma (z - mean) / sqrt(q) + beta.

    u = d v = |g| (u' - d' mean) / sqrt(q) + b with g = d gamma, b = d beta, d' = sign g and u' = d' z, so u >= t is
    u' >= d' mean + sqrt(q) (t - b) / |g|.

    Args:
        entry: gamma, mean, q, beta. unit, tiny: the unit roundoff and the smallest normal one of the network's
            numbers.
    """
    gamma, mean, q, beta = entry
    g, b = cut.direction * gamma, cut.direction * beta
    if g == 0:
        slack = cut.slack if b else Fraction(0)
        low, high = cut.low - slack, cut.high + slack
        may_high = b > low or (b == low and (low < high or not cut.strict))
        may_low = b < high or (b == high and (low < high or cut.strict))
        return Cut(_ALWAYS if may_high else _NEVER, _NEVER if may_low else _ALWAYS)
    direction = 1 if g > 0 else -1
    roots = square_root(q)
    plain = beta == 0 and cut.low == cut.high == 0
    exact = abs(gamma) == 1 and q == 1 and plain
    grain = roots[1] / abs(g)
    if not exact and tiny * _FAINT * grain > 1:
        return Cut(_ALWAYS, _NEVER, direction=direction)
    apart = plain and mean == 0
    before = cut.slack * grain
    ends, slack = [], before if apart else Fraction(0)
    for threshold, side, choose in ((cut.low, -1, min), (cut.high, 1, max)):
        if abs(threshold) >= _NEVER:
            ends.append(threshold)
            continue
        tau = direction * mean + choose(root * (threshold - b) / abs(g) for root in roots)
        terms = abs(mean) + abs(tau) + roots[1] * (abs(threshold) + abs(b)) / abs(g)
        lost = 0 if exact else _GRAINS * tiny * ((1 + abs(mean) + abs(tau)) * grain + roots[1])
        if apart:
            slack = before + lost
            ends.append(tau)
        else:
            ends.append(tau + side * (before + lost + (0 if exact else _ROUNDINGS * unit * terms)))
    return Cut(ends[0], ends[1], cut.strict, direction, slack)


def before_relu(cut: Cut) -> Cut:
    """The cut of z from that of max(z, 0).

    Rising (u = v): at t > 0, and strictly at t = 0, relu(z) passes t where z does; otherwise it always does.
    Falling (u = -v): at t <= 0, -relu(z) >= t where -z >= t; -relu(z) > 0 never, and >= t > 0 never; it is <= 0
    always.
    """
    sharp, low, high = cut.low == cut.high, cut.low, cut.high
    if cut.direction > 0:
        if low < 0 or (low == 0 and not (sharp and cut.strict)):
            low = _ALWAYS
        if high < 0 or (high == 0 and sharp and not cut.strict):
            high = _ALWAYS
    else:
        if low > 0 or (low == 0 and sharp and cut.strict):
            low = _NEVER
        if high > 0 or (high == 0 and not (sharp and not cut.strict)):
            high = _NEVER
    return Cut(low, high, cut.strict and sharp, cut.direction, cut.slack)


def fold(cut: Cut, chain: Chain, units: int, unit: Fraction, tiny: Fraction = Fraction(0)) -> Cuts:
    """The cut of every unit's sum from that of the last value of a chain of elementwise maps; numbers as in
    `before_norm`."""
    norms = [op for op in chain if isinstance(op, Norm)]
    keys = np.stack([op.index for op in norms] or [np.zeros(units, dtype=np.int64)], axis=1)
    kinds, inverse = np.unique(keys, axis=0, return_inverse=True)
    found = []
    for kind in kinds:
        entries = list(kind)
        here = cut
        for op in reversed(chain):
            relu = isinstance(op, Relu)
            here = before_relu(here) if relu else before_norm(here, op.table[entries.pop()], unit, tiny)
        low, high = here.low - here.slack, here.high + here.slack
        found.append((here.direction, _down(low), -_down(-high), *here.integers()))
    columns = np.array(found, dtype=np.float64)[inverse.reshape(-1)].T
    return Cuts(*columns)


def _down(value: Fraction) -> float:
    """The float64 below, or the number itself."""
    near = float(value)
    return near if Fraction(near) <= value else math.nextafter(near, -math.inf)
