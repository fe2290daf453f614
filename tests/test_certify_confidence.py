"""Clopper-Pearson bounds and the vote test: exact coverage by binomial sums, the reference's own formula, and numbers
of draws that can never certify."""

import numpy as np
import pytest
from scipy.stats import binom, binomtest

from stochade.certify.confidence import ceiling, check_draws, fewest_draws, lower_bound, upper_bound, vote_decided
from stochade.errors import BudgetError


@pytest.mark.parametrize("draws", [1, 7, 60])
@pytest.mark.parametrize("alpha", [0.001, 0.05, 0.5])
def test_exceeds_the_truth_with_probability_alpha_at_most(draws, alpha):
    """Exactly, by summing the binomial: the worst truths are the bounds themselves."""
    bounds = np.array([lower_bound(k, draws, alpha) for k in range(draws + 1)])
    assert (np.diff(bounds) > 0).all()
    assert bounds[0] == 0
    for truth in np.concatenate([bounds, bounds + 1e-9, np.linspace(0, 1, 41)]):
        failure = binom.pmf(np.arange(draws + 1), draws, min(truth, 1))[bounds > truth].sum()
        assert failure <= alpha * (1 + 1e-9)
    # tight: just below a bound the failure probability is alpha itself
    tight = binom.sf(draws - 1, draws, bounds[-1])
    assert tight == pytest.approx(alpha)


def test_equals_the_definition_and_the_two_sided_interval_of_scipy():
    for count, draws in [(3, 10), (97, 100), (9990, 10_000)]:
        low = lower_bound(count, draws, 0.001)
        assert binom.sf(count - 1, draws, low) == pytest.approx(0.001, rel=1e-6)
        assert low == pytest.approx(binomtest(count, draws).proportion_ci(0.998, "exact").low, rel=1e-9)
        assert upper_bound(count, draws, 0.001) == pytest.approx(
            binomtest(count, draws).proportion_ci(0.998, "exact").high, rel=1e-9
        )


def test_what_draws_can_reach():
    assert ceiling(100, 0.001) == pytest.approx(0.9333, abs=1e-4)
    assert ceiling(100_000, 0.001) == pytest.approx(0.99993, abs=1e-5)
    for alpha in (0.001, 0.05, 0.3, 0.5):
        least = fewest_draws(alpha)
        assert ceiling(least, alpha) > 0.5 >= ceiling(max(1, least - 1), alpha) or least == 1
    assert fewest_draws(0.5) == 2  # one draw gives exactly 1/2


@pytest.mark.parametrize(
    ("numbers", "told"),
    [((10, 9, 0.001), "n0 < n"), ((1, 9, 0.001), "at least 10 draws"), ((0, 100, 0.001), "choose the class")],
)
def test_impossible_numbers_of_draws_are_refused(numbers, told):
    with pytest.raises(BudgetError, match=told):
        check_draws(*numbers)


@pytest.mark.parametrize("alpha", [0, 1, 0.6, -0.1, float("nan"), True, "0.1"])
def test_alpha_outside_its_range_is_refused(alpha):
    with pytest.raises(BudgetError, match="alpha"):
        lower_bound(1, 10, alpha)


def test_counts_outside_the_draws_are_refused():
    for count in (-1, 11, 2.5):
        with pytest.raises(BudgetError):
            lower_bound(count, 10, 0.05)


def test_a_vote_is_wrong_with_probability_alpha_at_most():
    """At a fair coin any decision is wrong half the time at worst; exactly by the binomial."""
    for draws, alpha in [(20, 0.05), (100, 0.001)]:
        k = np.arange(draws + 1)
        decided = np.array([vote_decided(max(i, draws - i), min(i, draws - i), alpha) for i in k.tolist()])
        assert binom.pmf(k, draws, 0.5)[decided].sum() <= alpha
        assert decided[0]
        assert decided[-1]
        assert not decided[draws // 2]
