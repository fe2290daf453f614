"""Bounds of affine functions over what a threat allows: boxes, and boxes in which only k units leave their place.

A unit's value is an affine function A v + c of the last discrete values v before it (pixels, or binary units), so
terms that cancel are seen. Over a box its minimum is c + sum_j min(A_j l_j, A_j u_j). Where at most k units of v may
differ from a centre m, its minimum is A m + c less the k largest of the drops max(A_j (m_j - l_j), A_j (m_j - u_j)):
the drops do not depend on each other, so the k largest are the worst case. Both are exact for one unit by itself.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy import sparse

FLOAT64_NOISE = 1e-12  # of a sum's absolute terms: far above the rounding of these bounds themselves


@dataclass(frozen=True)
class Base:
    """Values that everything behind them is a function of.

    Attributes:
        ids: [V] columns of the optimisation problem. low, high: [V] bounds.
        center: [V] the values at the image itself. groups: [V] units that count together (a pixel's channels).
        budget: how many groups may leave the centre; None: all.
    """

    ids: np.ndarray
    low: np.ndarray
    high: np.ndarray
    center: np.ndarray | None = None
    groups: np.ndarray | None = None
    budget: int | None = None


@dataclass(frozen=True)
class State:
    """Units of one place of the network, [M]: the network's own value lies within `error` of A v + c.

    Attributes:
        matrix: A, [M, V]. shift: c, [M]. error: [M], of floating-point evaluation.
        shape: of one example; its product is M.
        whole: A, c and v are integers and the network's sums are exact.
        levels: (low, high) where every unit takes one of two values, by a step.
    """

    matrix: sparse.csr_array
    shift: np.ndarray
    error: np.ndarray
    base: Base
    shape: tuple[int, ...]
    whole: bool = False
    levels: tuple[float, float] | None = None


def bounds(state: State) -> tuple[np.ndarray, np.ndarray]:
    """([M], [M]) least and largest value of A v + c, `error` not included; integers are exact."""
    low, high, total = _bounds(state.matrix, state.base)
    noise = 0.0 if state.whole else FLOAT64_NOISE * (total + np.abs(state.shift))
    return low + state.shift - noise, high + state.shift + noise


def _bounds(matrix: sparse.csr_array, base: Base) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    positive, negative = matrix.maximum(0), matrix.minimum(0)
    total = abs(matrix) @ np.maximum(np.abs(base.low), np.abs(base.high))
    if base.budget is None or base.center is None or base.groups is None:
        return positive @ base.low + negative @ base.high, positive @ base.high + negative @ base.low, total
    below, above = base.center - base.low, base.high - base.center
    middle = matrix @ base.center
    columns = np.unique(base.groups, return_inverse=True)[1]
    count = int(columns.max(initial=-1)) + 1
    ones = (np.ones(len(columns)), (np.arange(len(columns)), columns))
    merge = sparse.csr_array(ones, shape=(len(columns), count))
    drops = (positive * below[None, :] - negative * above[None, :]) @ merge
    rises = (positive * above[None, :] - negative * below[None, :]) @ merge
    return middle - _largest(drops, base.budget), middle + _largest(rises, base.budget), total


def _largest(gains: sparse.csr_array, budget: int) -> np.ndarray:
    """[M] sum of the `budget` largest entries of each row; none is negative."""
    gains = sparse.csr_array(gains)
    out = np.zeros(len(gains.indptr) - 1)
    for row in range(len(out)):
        entries = gains.data[gains.indptr[row] : gains.indptr[row + 1]]
        entries = np.sort(entries)[max(len(entries) - budget, 0) :]
        out[row] = math.fsum(entries)
    return out
