"""What a detector's scores say: detection at a stated false-positive rate, curves, and the area under them."""

from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

from stochade.errors import BudgetError, RecordsError
from stochade.evaluate.intervals import CONFIDENCE, Estimate, binomial


@dataclass(frozen=True)
class Curve:
    """A receiver operating characteristic.

    Attributes:
        false: shares of clean images above each threshold, from 0 to 1. detected: shares of attacked ones.
        area: the probability that an attacked image scores above a clean one, ties counting half.
    """

    false: np.ndarray
    detected: np.ndarray
    area: float


def share(hits: np.ndarray, confidence: float = CONFIDENCE) -> Estimate:
    """The share of True in hits [N] with its exact binomial interval; unknown for none."""
    hits = np.asarray(hits, dtype=bool)
    if not len(hits):
        return Estimate(None, None, None, 0, 1)
    low, high = binomial(int(hits.sum()), len(hits), confidence)
    return Estimate(float(hits.mean()), low, high, len(hits), 1)


def curve(clean: np.ndarray, attacked: np.ndarray) -> Curve:
    """The curve of scores [n] of clean images and [m] of attacked ones: what lies above the threshold is flagged.

    Raises:
        RecordsError: no scores, or scores that are not finite.
    """
    clean, attacked = _checked(clean), _checked(attacked)
    thresholds = np.unique(np.concatenate([clean, attacked]))[::-1]
    above = [np.concatenate([[0.0], (part[:, None] >= thresholds).mean(0)]) for part in (clean, attacked)]
    ranks = rankdata(np.concatenate([attacked, clean]))[: len(attacked)]
    wins = ranks.sum() - len(attacked) * (len(attacked) + 1) / 2  # Mann and Whitney
    return Curve(above[0], above[1], float(wins / len(attacked) / len(clean)))


def detected_at(clean: np.ndarray, attacked: np.ndarray, rate: float) -> Estimate:
    """The share of attacked images whose scores exceed the lowest threshold that at most `rate` of the clean ones
    exceed. The interval covers the sampling of the attacked images.

    Raises:
        BudgetError: a rate outside (0, 1). RecordsError: no scores.
    """
    if not 0 < rate < 1:
        raise BudgetError("a false-positive rate in (0, 1)", repr(rate))
    ordered = np.sort(_checked(clean))
    allowed = int(np.floor(rate * len(ordered) + 1e-9))
    return share(_checked(attacked) > ordered[len(ordered) - 1 - allowed])


def _checked(scores: np.ndarray) -> np.ndarray:
    scores = np.asarray(scores, dtype=np.float64)
    if scores.ndim != 1 or not len(scores) or not np.isfinite(scores).all():
        raise RecordsError("finite scores, one per image", f"shape {scores.shape}")
    return scores
