"""Intervals for accuracies of random models: the one module that reduces over examples and draws.

The examples are the clusters, the draws within one are exchangeable. Two targets:

* "population": the accuracy on the population that the examples are a sample of. Sampling of examples and of
  draws both count; the variance is that of the per-example means.
* "test set": the accuracy on exactly these examples. Only the draws are random; with a deterministic model the
  interval is a point.

Both use the Korn-Graubard interval: Clopper-Pearson at the effective sample size p(1-p)/variance, with the
degrees of freedom of the clusters. It is exact for independent examples with one draw, conservative elsewhere,
and is the exact binomial interval where everything is right or everything is wrong.

Noise that is drawn once per call ties the examples of a call together: 60 examples under 20 such draws are 20
draws, not 1200. There the draws are clusters too (two-way clustering, Cameron, Gelbach and Miller 2011).
"""

from dataclasses import asdict, dataclass

import numpy as np

from stochade.errors import RecordsError

CONFIDENCE = 0.95
EDGE = 5  # clusters on the rarer side below which an interval is near the edge


@dataclass(frozen=True)
class Estimate:
    """An accuracy with its interval.

    Attributes:
        value: in [0,1], or None where nothing was measured.
        low, high: limits of the interval, None where the data do not determine one (never 0 for "unknown").
        examples: how many examples it rests on.
        draws: draws of the model per example.
        target: "population" or "test set".
        kind: "single", "vote", "all" or "difference".
    """

    value: float | None
    low: float | None
    high: float | None
    examples: int
    draws: int
    target: str = "population"
    kind: str = "single"

    def __str__(self) -> str:
        if self.value is None:
            return "unknown"
        text = f"{100 * self.value:.1f} %"
        if self.low is None or self.high is None:
            return text
        return f"{text} [{100 * self.low:.1f}, {100 * self.high:.1f}]"

    def as_dict(self) -> dict:
        return asdict(self)


def binomial(successes: float, trials: float, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Clopper-Pearson limits; `successes` and `trials` may be fractional (effective sizes)."""
    from scipy.stats import beta

    if trials <= 0:
        return 0.0, 1.0
    tail = (1 - confidence) / 2
    low = 0.0 if successes <= 0 else float(beta.ppf(tail, successes, trials - successes + 1))
    high = 1.0 if successes >= trials else float(beta.ppf(1 - tail, successes + 1, trials - successes))
    return low, high


def mean(
    right: np.ndarray,
    kind: str = "single",
    target: str = "population",
    confidence: float = CONFIDENCE,
    shared: int | None = None,
) -> Estimate:
    """The mean of right [N, draws] (bool) with its interval.

    Args:
        shared: rows per block in which all examples saw the same noise in each draw (noise per call, scored in
            chunks of so many); None: every example has noise of its own. One draw of shared noise says nothing
            about its spread, so it has no limits.
    """
    right = np.asarray(right)
    if right.ndim != 2:
        raise RecordsError("right [N, draws]", f"shape {right.shape}", "one row per example")
    if target not in ("population", "test set"):
        raise RecordsError("target='population' or 'test set'", repr(target))
    n, draws = right.shape
    if n == 0 or draws == 0:
        return Estimate(None, None, None, n, draws, target, kind)
    per_example = right.mean(1)
    value = float(per_example.mean())
    clusters = n
    if shared is not None:
        if draws == 1:
            return Estimate(value, None, None, n, draws, target, kind)
        low, high = _shared(right, value, target, shared, confidence)
        clusters = min(n, _of_draws(right, shared)[1] + 1)
    elif target == "test set":
        low, high = _test_set(per_example, value, draws, confidence)
    else:
        low, high = _population(per_example, value, draws, confidence)
    if target == "population" or shared is not None:
        low, high = _near_edges(value, low, high, clusters, confidence)
    return Estimate(value, min(low, value), max(high, value), n, draws, target, kind)


def _near_edges(value: float, low: float, high: float, clusters: int, confidence: float) -> tuple[float, float]:
    """Wider limits where fewer than EDGE clusters stand against the rest: an estimated variance then misses what no
    cluster has shown yet (a few images that are always right among many that are wrong). What was not seen among
    m clusters is a share of at most 1 - tail^(1/m); but never wider than Clopper-Pearson at m clusters, which
    assumes nothing about draws."""
    if min(value, 1 - value) * clusters >= EDGE:
        return low, high
    unseen = 1 - ((1 - confidence) / 2) ** (1 / clusters)
    widest = binomial(value * clusters, clusters, confidence)
    return min(low, max(low * (1 - unseen), widest[0])), max(high, min(high + unseen * (1 - high), widest[1]))


def _population(per_example: np.ndarray, value: float, draws: int, confidence: float) -> tuple[float, float]:
    n = len(per_example)
    if value in (0.0, 1.0) or n == 1:
        return binomial(value * n, n, confidence)
    variance = float(per_example.var(ddof=1)) / n
    return _korn_graubard(value, variance, n - 1, n * draws, confidence)


def _test_set(per_example: np.ndarray, value: float, draws: int, confidence: float) -> tuple[float, float]:
    n = len(per_example)
    if draws == 1:
        return value, value  # one draw says nothing about its own spread; deterministic models need none
    variance = float((per_example * (1 - per_example)).sum()) / (draws - 1) / n**2
    if variance == 0:  # no example changed its answer yet
        return binomial(value * n * draws, n * draws, confidence)
    return _korn_graubard(value, variance, n * (draws - 1), np.inf, confidence)


def _of_draws(right: np.ndarray, block: int) -> tuple[float, int]:
    """The variance of the mean that comes from draws shared by each block of rows, with its degrees of freedom."""
    n, draws = right.shape
    sums = np.stack([right[i : i + block].sum(0) for i in range(0, n, block)])  # [blocks, draws]
    return float(sums.var(1, ddof=1).sum()) / draws / n**2, len(sums) * (draws - 1)


def _shared(right: np.ndarray, value: float, target: str, block: int, confidence: float) -> tuple[float, float]:
    n, draws = right.shape
    variance, freedom = _of_draws(right, block)
    most = np.inf
    if target == "population":
        rows = float(right.mean(1).var(ddof=1)) / n if n > 1 else 0.0
        cells = float((right.var(1, ddof=1) / draws).sum()) / n**2  # counted in both
        variance, most = max(rows, variance, rows + variance - cells), n * draws
        freedom = min(max(n - 1, 1), freedom)
    if variance == 0:
        return binomial(value * (freedom + 1), freedom + 1, confidence)
    return _korn_graubard(value, variance, freedom, most, confidence)


def _korn_graubard(
    value: float, variance: float, freedom: int, most: float, confidence: float
) -> tuple[float, float]:
    """Clopper-Pearson at the effective size m = p (1 - p) / variance, times (t_(m-1) / t_freedom)^2 for a variance
    that rests on few degrees of freedom, and at most `most` (after Korn and Graubard 1998). One draw of each example
    has m = n exactly, and so have many draws that never differ."""
    from scipy.stats import t

    size = value * (1 - value) / variance * (freedom + 1) / freedom if variance > 0 else most
    tail = (1 - confidence) / 2
    ratio = float(t.ppf(tail, max(min(size, 1e9) - 1, freedom)) / t.ppf(tail, freedom)) ** 2
    size = min(size * ratio, most)
    return binomial(value * size, size, confidence)


def paired(
    first: np.ndarray, second: np.ndarray, confidence: float = CONFIDENCE, shared: int | None = None
) -> Estimate:
    """mean(first - second) over the same examples [N, draws each], with a t interval over examples (and over draws
    where they are `shared`, as in `mean`; the two sides have draws of their own).

    Where no example differs the interval comes from the rule of three on examples, never a point.
    """
    from scipy.stats import t

    first, second = np.asarray(first), np.asarray(second)
    if len(first) != len(second):
        raise RecordsError("the same examples on both sides", f"{len(first)} and {len(second)}")
    difference = first.mean(1) - second.mean(1)
    n, draws = len(difference), min(first.shape[1], second.shape[1])
    if n == 0:
        return Estimate(None, None, None, 0, draws, kind="difference")
    value = float(difference.mean())
    if n == 1 or (shared is not None and draws == 1):
        return Estimate(value, None, None, n, draws, kind="difference")
    variance, freedom = float(difference.var(ddof=1)) / n, n - 1
    if shared is not None:
        parts = [_of_draws(side, shared) for side in (first, second)]
        variance, freedom = variance + sum(v for v, _ in parts), min(freedom, *(f for _, f in parts))
    half = float(t.ppf((1 + confidence) / 2, freedom)) * float(np.sqrt(variance))
    if variance == 0:
        half = 1 - ((1 - confidence) / 2) ** (1 / n)
    return Estimate(value, max(-1.0, value - half), min(1.0, value + half), n, draws, kind="difference")
