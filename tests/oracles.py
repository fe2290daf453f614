"""Closed forms and brute force that share no code with the package: NumPy and SciPy only, one example at a time."""

from itertools import combinations

import numpy as np
from scipy.optimize import linprog, minimize_scalar
from scipy.stats import binom


def worst_gain(direction: np.ndarray, x: np.ndarray, norm: str, eps: float) -> float:
    """max <direction, z - x> over z in [0,1]^D within eps of x: linear programs for linf and l1, the scalar dual
    for l2, all subsets for l0."""
    d, x = np.asarray(direction, float).ravel(), np.asarray(x, float).ravel()
    n, low, high = len(d), -x, 1 - x
    if norm == "linf":
        bounds = list(zip(np.maximum(low, -eps), np.minimum(high, eps), strict=True))
        return -linprog(-d, bounds=bounds, method="highs").fun
    if norm == "l1":  # change = p - q, p and q >= 0, sum p + q <= eps
        total = None if np.isinf(eps) else np.ones((1, 2 * n))
        bounds = [(0, h) for h in high] + [(0, -b) for b in low]
        limit = None if np.isinf(eps) else [eps]
        return -linprog(np.r_[-d, d], A_ub=total, b_ub=limit, bounds=bounds, method="highs").fun
    if norm == "l2":
        corner = np.where(d > 0, high, low)
        if np.linalg.norm(corner) <= eps:
            return float(d @ corner)
        if eps == 0:
            return 0.0

        def dual(log_multiplier: float) -> float:
            m = np.exp(log_multiplier)
            z = np.clip(d / m, low, high)
            return float(d @ z - m / 2 * (z @ z) + m / 2 * eps**2)

        return float(minimize_scalar(dual, bounds=(-30, 30), method="bounded", options={"xatol": 1e-12}).fun)
    if norm == "l0":
        gains = np.where(d > 0, d * high, d * low)
        k = int(min(eps, n))
        return max(sum(gains[list(s)]) for s in combinations(range(n), k)) if k else 0.0
    raise ValueError(norm)


def nearest(v: np.ndarray, x: np.ndarray, norm: str, eps: float) -> np.ndarray:
    """The point of [0,1]^D within eps of x that is nearest to v: Dykstra's alternating projections for l2 and l1
    (which converge to the projection onto the intersection), all subsets for l0, clipping for linf."""
    v, x = np.asarray(v, float), np.asarray(x, float)
    if norm == "linf":
        return np.clip(np.clip(v, x - eps, x + eps), 0, 1)
    if norm == "l0":
        k, best, least = int(min(eps, len(v))), x.copy(), np.inf
        for s in combinations(range(len(v)), k):
            z = x.copy()
            z[list(s)] = np.clip(v[list(s)], 0, 1)
            if np.sum((z - v) ** 2) < least - 1e-15:
                best, least = z, np.sum((z - v) ** 2)
        return best
    if np.isinf(eps):
        return np.clip(v, 0, 1)
    ball = _l2_ball if norm == "l2" else _l1_ball
    z, p, q = v.copy(), np.zeros_like(v), np.zeros_like(v)
    for _ in range(20000):
        boxed = np.clip(z + p, 0, 1)
        p = z + p - boxed
        before, z = z, x + ball(boxed + q - x, eps)
        q = boxed + q - z
        if np.abs(z - before).max() < 1e-13 and np.abs(z - boxed).max() < 1e-10:
            break
    return z


def _l2_ball(d: np.ndarray, eps: float) -> np.ndarray:
    length = np.linalg.norm(d)
    return d if length <= eps else d * (eps / length)


def _l1_ball(d: np.ndarray, eps: float) -> np.ndarray:
    """Duchi et al. 2008, figure 1: by sorting."""
    if np.abs(d).sum() <= eps:
        return d
    if eps == 0:
        return np.zeros_like(d)
    u = np.sort(np.abs(d))[::-1]
    excess = (np.cumsum(u) - eps) / np.arange(1, len(u) + 1)
    theta = excess[np.nonzero(u > excess)[0][-1]]
    return np.sign(d) * np.maximum(np.abs(d) - theta, 0)


def length(change: np.ndarray, norm: str) -> float:
    change = np.ravel(change)
    return {
        "linf": lambda: float(np.abs(change).max()),
        "l2": lambda: float(np.sqrt((change**2).sum())),
        "l1": lambda: float(np.abs(change).sum()),
        "l0": lambda: float((change != 0).sum()),
    }[norm]()


def official_dlr(z: np.ndarray, y: int) -> float:
    """autoattack/autopgd_base.py, dlr_loss, one row (its + 1e-12 in the denominator included)."""
    order, s = np.argsort(z, kind="stable"), np.sort(z)
    hit = float(order[-1] == y)
    return float(-(z[y] - s[-2] * hit - s[-1] * (1 - hit)) / (s[-1] - s[-3] + 1e-12))


def official_targeted_dlr(z: np.ndarray, y: int, t: int) -> float:
    """autoattack/autopgd_base.py, dlr_loss_targeted, one row."""
    s = np.sort(z)
    return float(-(z[y] - z[t]) / (s[-1] - 0.5 * (s[-3] + s[-4]) + 1e-12))


def cross_entropy(z: np.ndarray, y: int) -> float:
    top = z.max()
    return float(top + np.log(np.exp(z - top).sum()) - z[y])


def kubo_bim(weight: np.ndarray, bias: np.ndarray, x: np.ndarray, y: int, step: float, steps: int, clip: str):
    """Equation 2.27 of the thesis on a linear softmax classifier, its gradient written out: W^T (p - onehot)."""
    x = x.astype(float).copy()
    for _ in range(steps):
        z = weight @ x + bias
        p = np.exp(z - z.max())
        p = p / p.sum()
        p[y] -= 1
        x = x + step * np.sign(weight.T @ p)
        if clip == "step":
            x = np.clip(x, 0, 1)
    return np.clip(x, 0, 1)


def clopper_pearson(successes: int, trials: int, confidence: float) -> tuple[float, float]:
    """The definition: the p at which the tail probabilities equal (1 - confidence) / 2, by bisection."""
    tail = (1 - confidence) / 2

    def solve(f) -> float:
        low, high = 0.0, 1.0
        for _ in range(200):
            middle = (low + high) / 2
            low, high = (middle, high) if f(middle) else (low, middle)
        return (low + high) / 2

    lower = 0.0 if successes == 0 else solve(lambda p: binom.sf(successes - 1, trials, p) < tail)
    upper = 1.0 if successes == trials else solve(lambda p: binom.cdf(successes, trials, p) > tail)
    return lower, upper


def smallest(direction: np.ndarray, x: np.ndarray, norm: str, gap: float) -> float:
    """The length of the shortest change inside [0,1]^D that lowers <direction, x> by `gap`; inf where none does."""
    d, x = np.asarray(direction, float).ravel(), np.asarray(x, float).ravel()
    size, room = np.abs(d), np.where(d > 0, x, 1 - x)
    if gap <= 0:
        return 0.0
    if size @ room < gap:
        return np.inf
    if norm in ("l1", "l0"):
        order = np.argsort(-size if norm == "l1" else -size * room, kind="stable")
        gained, spent = np.cumsum((size * room)[order]), np.cumsum(room[order])
        k = int(np.searchsorted(gained, gap))
        if norm == "l0":
            return k + 1.0
        before, cost = (gained[k - 1], spent[k - 1]) if k else (0.0, 0.0)
        return float(cost + (gap - before) / size[order][k])
    rate, low, high = np.ones_like(size) if norm == "linf" else size, 0.0, 1e6
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (low, middle) if size @ np.minimum(middle * rate, room) >= gap else (middle, high)
    return length(np.minimum(high * rate, room), norm)
