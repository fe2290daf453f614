"""Exact confidence bounds for the share of draws that vote for a class, and what they allow at all."""

import math

from scipy.stats import beta, binomtest

from stochade.errors import BudgetError


def check_alpha(alpha: object) -> float:
    """BudgetError unless the failure probability is in (0, 1/2]."""
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 < alpha <= 0.5:
        raise BudgetError("a failure probability alpha in (0, 0.5]", repr(alpha), "0.001 is usual")
    return float(alpha)


def check_count(value: object, what: str, least: int = 1) -> int:
    """BudgetError unless a whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise BudgetError(f"{what}: a whole number of at least {least}", repr(value))
    return value


def lower_bound(count: int, draws: int, alpha: float) -> float:
    """One-sided lower Clopper-Pearson bound of a probability of which `count` of `draws` independent draws came true:
    it exceeds the truth with probability at most alpha, whatever the truth.

    p_low solves P(Binomial(draws, p_low) >= count) = alpha; 0 for count = 0, alpha^(1/draws) for count = draws.

    Raises:
        BudgetError: count outside [0, draws], no draws, or alpha outside (0, 1/2].
    """
    check_count(draws, "draws")
    check_alpha(alpha)
    if check_count(count, "a count of draws", 0) > draws:
        raise BudgetError(f"a count of at most {draws}, the draws", str(count))
    return 0.0 if count == 0 else float(beta.ppf(alpha, count, draws - count + 1))


def upper_bound(count: int, draws: int, alpha: float) -> float:
    """One-sided upper Clopper-Pearson bound: below the truth with probability at most alpha. Errors as
    `lower_bound`."""
    return 1.0 - lower_bound(draws - count, draws, alpha)


def ceiling(draws: int, alpha: float) -> float:
    """The largest lower bound that so many draws can give: alpha^(1/draws), when all of them agree."""
    return math.exp(math.log(check_alpha(alpha)) / check_count(draws, "draws"))


def fewest_draws(alpha: float) -> int:
    """The least number of draws whose lower bound can exceed 1/2: below it nothing is ever certified."""
    return math.floor(math.log(check_alpha(alpha)) / math.log(0.5)) + 1


def check_draws(selection: object, draws: object, alpha: float) -> tuple[int, int]:
    """(n0, n) as whole numbers.

    Raises:
        BudgetError: fewer than one of either, no fewer to choose the class than to bound it, or so few that not even
            unanimous draws would bound it above 1/2 at this alpha.
    """
    first, second = check_count(selection, "draws that choose the class"), check_count(draws, "draws")
    if first >= second:
        raise BudgetError("fewer draws to choose the class than to bound it (n0 < n)", f"n0={first}, n={second}")
    if second < (least := fewest_draws(alpha)):
        hint = f"all {second} draws may agree and the bound is {ceiling(second, alpha):.3f}, not above 1/2"
        raise BudgetError(f"at least {least} draws at alpha={alpha:g}", str(second), hint)
    return first, second


def vote_decided(most: int, second: int, alpha: float) -> bool:
    """Whether `most` votes against `second` show the majority class of the smoothed classifier: the two-sided
    binomial test of a fair coin at level alpha (Hung and Fithian 2019; PREDICT of Cohen et al. 2019)."""
    check_alpha(alpha)
    return most > second and float(binomtest(most, most + second, 0.5).pvalue) <= alpha
