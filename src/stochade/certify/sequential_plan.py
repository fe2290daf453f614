"""Boundaries of sequential tests of a binomial probability: when enough votes have come in to decide.

s of n draws vote for the class, each with probability p. **Certify** when the test of H: p < q is rejected at level
alpha, **refute** when that of p >= q is rejected at level beta; both are boundaries on s at a few looks n_1 < ... <
n_K, fixed before the first draw. Refuting never claims a radius: it only stops draws that would hardly certify.

*Failure probability.* P_p(some look k has s >= c_k) grows with p, since draws at a higher p can be coupled with those
at a lower one so that no vote is lost. Its supremum over p < q is therefore at p = q, a sum over binomial paths that
`Plan.chances` computes by dynamic programming. Stopping to refute can only lower it, so alpha holds whatever rule
refutes. The mirror holds for beta.

*Spending* (Lan and DeMets 1983, with exact binomial sums). Look k may use up what a cumulative level alpha_k allows:
c_k is the least count with P_q(some look j <= k has s >= c_j) <= alpha_k, found by one pass of that dynamic program.
What a discrete boundary leaves over goes to the next look. Of alpha, a share is spent in equal parts on all looks but
the last, which decides clear cases early; the rest is kept for the last look, which is then nearly the fixed test.

*Betting* (Ville 1939; Waudby-Smith and Ramdas 2024; for smoothing Voracek 2024). For r > q the likelihood ratio
(r/q)^s ((1-r)/(1-q))^(n-s) has at p <= q a conditional mean of p r/q + (1-p)(1-r)/(1-q) <= 1 per draw, since this
grows with p and is 1 at p = q. A mixture over r in (q, 1) is a nonnegative supermartingale too, and exceeds 1/alpha
at any time with probability at most alpha. Here r follows a beta distribution cut to (q, 1), for which the mixture is
B(a+s, b+n-s) I / (B(a, b) I_0 q^s (1-q)^(n-s)), with the incomplete shares I, I_0 above q. Valid at every draw, it
pays for looks that are never made.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.special import betaincc, betaln
from scipy.stats import binom

from stochade.certify.confidence import check_alpha, check_count
from stochade.errors import BudgetError

METHODS = ("spending", "betting")
FIRST, GROWTH = 25, 1.25  # draws of the first look, and how much later each next one comes
PRIOR = (0.5, 0.5)  # of the mixture's bets
LAST_SHARE = 0.5  # of alpha, kept for the last look
_TAIL = 1e-20  # probability that the dynamic program may leave out of a step, counted as failure
_SLACK = 1 - 1e-9  # of a level, for rounding


@dataclass(frozen=True)
class Chances:
    """What a plan does at a true probability p: chances of the three outcomes, and the mean number of draws."""

    certified: float
    refuted: float
    undecided: float
    draws: float


@dataclass(frozen=True)
class Plan:
    """A sequential test of p >= threshold.

    Attributes:
        threshold: q. looks: numbers of draws after which it may stop.
        certify: votes that suffice to certify at each look; one more than the draws where none do.
        refute: votes that are few enough to refute; -1 where none are. Where both hold, the class is certified.
    """

    threshold: float
    looks: tuple[int, ...]
    certify: tuple[int, ...]
    refute: tuple[int, ...]

    @property
    def reachable(self) -> bool:
        """Whether any votes certify."""
        return any(least <= n for n, least in zip(self.looks, self.certify, strict=True))

    def outcome(self, look: int, votes: int) -> bool | None:
        """True (certified), False (refuted) or None (go on) for so many votes at a look, counted from 0."""
        if votes >= self.certify[look]:
            return True
        return False if votes <= self.refute[look] else None

    def chances(self, p: float, stop: bool = True) -> Chances:
        """Exact chances at probability p by dynamic programming over (draws, votes), up to 1e-16.

        Args:
            stop: False ignores refuting, as the bound on the failure probability does.
        """
        alive, low, before = np.ones(1), 0, 0
        certified = refuted = draws = 0.0
        for n, least, most in zip(self.looks, self.certify, self.refute, strict=True):
            draws += float(alive.sum()) * (n - before)
            alive, low = _later(alive, low, n - before, p)[:2]
            above = max(0, min(len(alive), least - low))
            below = max(0, min(above, most + 1 - low)) if stop else 0
            certified += float(alive[above:].sum())
            refuted += float(alive[:below].sum())
            alive, low, before = alive[below:above], low + below, n
            if not alive.size:
                break
        return Chances(certified, refuted, float(alive.sum()), draws)


def looks_up_to(most: int, first: int = FIRST, growth: float = GROWTH) -> tuple[int, ...]:
    """Numbers of draws to look after: from `first` to `most` in equal ratios of about `growth`, at most that."""
    if first >= most:
        return (most,)
    steps = math.ceil(math.log(most / first) / math.log(growth))
    return tuple(sorted({round(first * (most / first) ** (k / steps)) for k in range(steps + 1)}))


def _later(alive: np.ndarray, low: int, steps: int, p: float) -> tuple[np.ndarray, int, float]:
    """Masses of counts low, low + 1, ... after `steps` more draws, the new low, and an upper bound of what was left
    out: tails of the new draws by Bernstein's inequality, P(|X - np| >= t) <= 2 exp(-t^2 / (2 (np(1-p) + t/3))), and
    the thin ends of the sum. Sums of positive numbers only, so rounding is relative."""
    width = -math.log(_TAIL)
    reach = width / 3 + math.sqrt(width**2 / 9 + 2 * width * steps * p * (1 - p))
    first, last = max(0, math.floor(steps * p - reach)), min(steps, math.ceil(steps * p + reach))
    mass = np.convolve(alive, binom.pmf(np.arange(first, last + 1), steps, p))
    start = int(np.searchsorted(np.cumsum(mass), _TAIL))
    end = len(mass) - int(np.searchsorted(np.cumsum(mass[::-1]), _TAIL))
    return mass[start:end], low + first + start, 4 * _TAIL


def few(looks: Sequence[int], chance: float, levels: Sequence[float]) -> list[int]:
    """The greatest counts F_k with P(some j <= k has count <= F_j) <= levels[k], one look after the other; -1 where
    no count is that unlikely. Counts are of events with this chance per draw."""
    alive, low, spent, before = np.ones(1), 0, 0.0, 0
    found = []
    for n, level in zip(looks, levels, strict=True):
        alive, low, lost = _later(alive, low, n - before, chance)
        spent, before = spent + lost, n
        tail = spent + np.cumsum(alive)
        taken = int(np.searchsorted(tail, level * _SLACK, side="right"))
        if taken:
            spent = float(tail[taken - 1])
        found.append(low + taken - 1 if taken else -1)
        alive, low = alive[taken:], low + taken
    return found


def _levels(level: float, looks: int, last_share: float) -> list[float]:
    """Cumulative levels: equal parts for all looks but the last, which has its share and what is left."""
    parts = max(1, looks - 1)
    return [*(level * (1 - last_share) * (k + 1) / parts for k in range(looks - 1)), level]


def log_wealth(q: float, votes: int, draws: int, prior: tuple[float, float] = PRIOR) -> float:
    """Logarithm of the mixture of bets against p <= q after so many votes of so many draws."""
    a, b = prior[0] + votes, prior[1] + draws - votes
    above, whole = float(betaincc(a, b, q)), float(betaincc(*prior, q))
    if above == 0:  # below 1e-300: the share of votes is far below q, where every ratio is less than 1
        return -math.inf
    mixed = float(betaln(a, b) - betaln(*prior)) + math.log(above / whole)
    return mixed - votes * math.log(q) - (draws - votes) * math.log1p(-q)


def _bet(q: float, looks: Sequence[int], level: float, prior: tuple[float, float]) -> list[int]:
    """The greatest number of failures at each look at which the mixture exceeds 1/level; -1 where none does. The
    mixture grows with the votes, as every ratio in it does: bisection."""
    found, enough = [], -math.log(level) + 1e-7
    for n in looks:
        below, above = -1, n
        while above - below > 1:
            middle = (below + above) // 2
            below, above = (middle, above) if log_wealth(q, n - middle, n, prior) >= enough else (below, middle)
        found.append(below)
    return found


@lru_cache(maxsize=4096)
def plan_for(
    threshold: float,
    most: int,
    alpha: float = 0.001,
    futility: float = 0.01,
    method: str = "spending",
    first: int = FIRST,
    growth: float = GROWTH,
    last_share: float = LAST_SHARE,
    prior: tuple[float, float] = PRIOR,
) -> Plan:
    """The plan of a test of p >= threshold.

    Args:
        threshold: q in [1/2, 1). most: draws after which it ends undecided.
        alpha: chance to certify where p < q, at most. futility: chance to refute where p >= q, at most.
        method: "spending" or "betting". first, growth: of the looks.
        last_share: of alpha, for the last look (spending). prior: of the mixture (betting).

    Raises:
        BudgetError: numbers out of range or an unknown method.
    """
    check_alpha(alpha)
    if isinstance(futility, bool) or not isinstance(futility, int | float) or not 0 < futility <= 0.5:
        raise BudgetError("a level of futility in (0, 0.5]", repr(futility), "0.01 is usual")
    check_count(most, "draws at most")
    check_count(first, "draws of the first look")
    if method not in METHODS:
        raise BudgetError(f"a method among {list(METHODS)}", repr(method))
    if not 0.5 <= threshold < 1 or growth <= 1 or not 0 <= last_share < 1:
        told = f"{threshold=}, {growth=}, {last_share=}"
        raise BudgetError("a threshold in [1/2, 1), looks that grow and a share in [0, 1)", told)
    looks = looks_up_to(most, first, growth)
    if method == "spending":
        failures = few(looks, 1 - threshold, _levels(alpha, len(looks), last_share))
        refute = few(looks, threshold, _levels(futility, len(looks), 0.0))
    else:
        failures = _bet(threshold, looks, alpha, prior)
        refute = _bet(1 - threshold, looks, futility, prior)
    return Plan(threshold, looks, tuple(n - f for n, f in zip(looks, failures, strict=True)), tuple(refute))
