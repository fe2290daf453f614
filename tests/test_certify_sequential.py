"""Sequential certificates: failure probabilities by enumeration of all paths and by dynamic programs of their own,
boundaries against their definitions, the grid at its edge, and the draws that real inputs take."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import beta, binom, norm

from stochade.certify import ABSTAIN, Gaussian, RateCode, certify_sequential, decide, largest
from stochade.certify.confidence import ceiling
from stochade.certify.sequential import _follow, threshold
from stochade.certify.sequential_plan import METHODS, Plan, few, log_wealth, looks_up_to, plan_for
from stochade.certify.votes import Voter
from stochade.errors import BudgetError, ModelError
from stochade.randomness import untouched
from test_certify_gaussian import HalfSpace, Own, Shared


def by_draws(plan, p, stop):
    """(certified, refuted, draws): one draw after the other, in a table of all counts."""
    mass, certified, refuted, draws = {0: 1.0}, 0.0, 0.0, 0.0
    for n in range(1, plan.looks[-1] + 1):
        draws += math.fsum(mass.values())
        later = {}
        for s, m in mass.items():
            later[s + 1] = later.get(s + 1, 0.0) + m * p
            later[s] = later.get(s, 0.0) + m * (1 - p)
        mass = later
        if n in plan.looks:
            told = {s: plan.outcome(plan.looks.index(n), s) for s in mass}
            certified += math.fsum(m for s, m in mass.items() if told[s] is True)
            refuted += math.fsum(m for s, m in mass.items() if told[s] is False) if stop else 0.0
            mass = {s: m for s, m in mass.items() if told[s] is None or (told[s] is False and not stop)}
    return certified, refuted, draws


def by_looks(plan, p):
    """P(certified) when nothing is refuted: whole vectors, no window, no trimming."""
    mass, before, certified = np.ones(1), 0, 0.0
    for n, least in zip(plan.looks, plan.certify, strict=True):
        mass = np.convolve(mass, binom.pmf(np.arange(n - before + 1), n - before, p))
        certified += mass[least:].sum()
        mass, before = np.where(np.arange(n + 1) < least, mass, 0.0), n
    return certified


@pytest.mark.parametrize("method", METHODS)
def test_chances_are_those_of_all_paths(method):
    plan = plan_for(0.6, 12, 0.2, 0.3, method, 3, 1.4)
    paths = list(itertools.product((0, 1), repeat=12))
    for p in (0.3, 0.6, 0.85):
        outcomes = {True: 0.0, False: 0.0, None: 0.0}
        draws = 0.0
        for path in paths:
            told, used = None, 12
            for look, n in enumerate(plan.looks):
                told = plan.outcome(look, sum(path[:n]))
                if told is not None:
                    used = n
                    break
            weight = p ** sum(path) * (1 - p) ** (12 - sum(path))
            outcomes[told] += weight
            draws += weight * used
        got = plan.chances(p)
        expected = (outcomes[True], outcomes[False], outcomes[None], draws)
        assert (got.certified, got.refuted, got.undecided, got.draws) == pytest.approx(expected, abs=1e-12)
        assert outcomes[True] > 0
        assert outcomes[False] > 0


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("q", "alpha", "most"), [(0.5, 0.05, 60), (0.7, 0.3, 45), (0.69, 0.001, 120), (0.95, 0.01, 150)]
)
def test_fails_with_probability_alpha_at_most_in_small_settings(method, q, alpha, most):
    plan = plan_for(q, most, alpha, 0.05, method, 5)
    assert plan.reachable
    for p in (q, q - 1e-6, q - 0.02, 0.4):
        exact = by_draws(plan, p, stop=False)
        assert exact[0] <= alpha
        assert by_draws(plan, p, stop=True)[0] <= exact[0]
        assert plan.chances(p, stop=False).certified == pytest.approx(exact[0], rel=1e-9, abs=1e-17)
    for p in (q, q + 0.01, (1 + q) / 2, 1.0):
        certified, refuted, draws = by_draws(plan, p, stop=True)
        got = plan.chances(p)
        assert refuted <= 0.05
        assert (got.certified, got.refuted, got.draws) == pytest.approx(
            (certified, refuted, draws), rel=1e-9, abs=1e-15
        )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("q", [0.5, norm.cdf(0.5), norm.cdf(1.0), norm.cdf(2.0), 0.998])
def test_fails_with_probability_alpha_at_most_in_real_settings(method, q):
    """alpha = 0.001, 10,000 draws: at the edge and below it; the spending test nearly uses alpha up."""
    plan = plan_for(float(q), 10_000, 0.001, 0.01, method)
    edge = by_looks(plan, q)
    assert edge <= 0.001
    assert plan.chances(q, stop=False).certified == pytest.approx(edge, rel=1e-9)
    below = [plan.chances(p, stop=False).certified for p in np.linspace(0.4, q, 9)]
    assert (np.diff(below) >= 0).all()
    assert max(below) <= 0.001
    if method == "spending":
        assert edge > 0.0006
    for p in (q, (1 + 3 * q) / 4, 1.0):
        assert plan.chances(p).refuted <= 0.01


def check_levels(cases, seed):
    """Random settings: neither error exceeds its level at the edge, by whole vectors."""
    rng, tight = np.random.default_rng(seed), 0
    for _ in range(cases):
        q = float(1 - 10 ** rng.uniform(-2, math.log10(0.5)))
        most, alpha = int(10 ** rng.uniform(1, 2.8)), float(10 ** rng.uniform(-3, math.log10(0.5)))
        futility = float(10 ** rng.uniform(-4, math.log10(0.5)))
        method = str(rng.choice(METHODS, p=[0.8, 0.2]))
        plan = plan_for(
            q, most, alpha, futility, method, int(rng.integers(1, 40)), rng.uniform(1.1, 3), rng.uniform(0, 0.99)
        )
        certified = by_looks(plan, q)
        flipped = Plan(1 - q, plan.looks, tuple(n - k for n, k in zip(plan.looks, plan.refute, strict=True)), ())
        refuted = by_looks(flipped, 1 - q)  # few votes are many against
        assert certified <= alpha, (q, most, alpha, method)
        assert refuted <= futility, (q, most, futility, method)
        tight += certified > 0.7 * alpha
    assert tight > cases / 20


def test_no_random_setting_fails_more_often_than_it_says():
    check_levels(100, 0)


@pytest.mark.slow
def test_none_of_ten_thousand_random_settings_fails_more_often_than_it_says():
    check_levels(10_000, 1)


def test_a_certificate_at_100_000_draws_fails_with_probability_alpha_at_most():
    for q in (norm.cdf(1.0), norm.cdf(3.0)):
        for method in METHODS:
            plan = plan_for(float(q), 100_000, 0.001, 0.01, method)
            assert 0 < plan.chances(q, stop=False).certified <= 0.001
            told = plan.chances(1 - (1 - q) / 2)
            assert told.certified > 0.99
            assert told.draws < (1000 if q < 0.9 else 50_000)
            assert told.certified + told.refuted + told.undecided == pytest.approx(1, abs=1e-12)


def test_spends_as_much_as_every_level_allows():
    """No boundary can take one count more, by cumulative sums without the dynamic program's windows."""
    looks, levels, chance = (6, 11, 20, 40), (0.02, 0.03, 0.05, 0.1), 0.3
    found = few(looks, chance, levels)

    def spent(boundaries):
        plan = Plan(0.7, looks, tuple(n - f for n, f in zip(looks, boundaries, strict=True)), (-1,) * 4)
        return by_draws(plan, 1 - chance, stop=False)[0]

    for k in range(4):
        until = [*found[: k + 1], *[-1] * (3 - k)]
        assert spent(until) <= levels[k]
        until[k] += 1
        assert spent(until) > levels[k]
    assert found[0] == binom.ppf(0.02, 6, 0.3) - 1


def test_a_single_look_is_the_fixed_test():
    """Its boundary is that of Clopper and Pearson: the least count whose lower bound reaches q."""
    plan = plan_for(0.8, 500, 0.001, first=500)
    assert plan.looks == (500,)
    lower = beta.ppf(0.001, np.arange(1, 501), 500 - np.arange(1, 501) + 1)
    assert plan.certify[0] == 1 + int(np.argmax(lower >= 0.8))


def test_bets_are_the_mixture_and_have_mean_one_at_the_edge():
    q, prior = 0.7, (0.5, 2.0)
    cut = beta.sf(q, *prior)
    for votes, draws in [(0, 0), (5, 5), (30, 40), (20, 40)]:

        def ratio(r, votes=votes, draws=draws):
            likelihood = (r / q) ** votes * ((1 - r) / (1 - q)) ** (draws - votes)
            return likelihood * beta.pdf(r, *prior) / cut

        assert math.exp(log_wealth(q, votes, draws, prior)) == pytest.approx(quad(ratio, q, 1)[0], rel=1e-6)
    for p, low, high in [(q, 1 - 1e-9, 1 + 1e-9), (0.6, 0, 1)]:
        mean = sum(binom.pmf(s, 50, p) * math.exp(log_wealth(q, s, 50, prior)) for s in range(51))
        assert low <= mean <= high
    wealth = [log_wealth(q, s, 80) for s in range(81)]
    assert (np.diff(wealth) > 0).all()


def test_bets_hold_at_every_draw():
    plan = plan_for(0.6, 200, 0.05, 0.05, "betting", 1, 1.0001)
    assert plan.looks == tuple(range(1, 201))
    assert 0.01 < by_draws(plan, 0.6, stop=False)[0] <= 0.05
    for n, least in zip(plan.looks, plan.certify, strict=True):
        assert least > n or log_wealth(0.6, least, n) >= math.log(20) > log_wealth(0.6, least - 1, n)


def test_looks():
    for most in (1, 24, 25, 26, 1000, 100_000):
        looks = looks_up_to(most)
        assert looks[-1] == most
        assert looks[0] == min(25, most)
        assert all(a < b <= math.ceil(1.25 * a) + 1 for a, b in itertools.pairwise(looks))


def test_keeps_half_of_alpha_for_the_last_look():
    plan = plan_for(0.7, 5000, 0.01)
    early = by_looks(Plan(0.7, plan.looks, (*plan.certify[:-1], 5001), plan.refute), 0.7)
    assert 0.0045 < early <= 0.005
    assert by_looks(plan, 0.7) > 0.0095


class Steps(Gaussian):
    """A radius that jumps: 1 from the first place on, 3 from the second."""

    def __init__(self, first=0.6, second=0.9):
        self.first, self.second = first, second

    def radius(self, p, x=None):
        return 0.0 if p < self.first else 1.0 if p < self.second else 3.0


def test_thresholds_reach_the_radius_and_hardly_less_does():
    x = torch.rand(1, 3, 3, generator=torch.Generator().manual_seed(0)) * 0.8 + 0.1
    cases = [(Gaussian(0.25), r) for r in (1e-6, 0.1, 0.5, 0.9)] + [(RateCode(4), r) for r in (0.001, 0.05, 0.1)]
    for smoothing, radius in cases:
        least = threshold(smoothing, radius, x, ceiling(100_000, 0.001))
        assert smoothing.radius(least, x) >= radius > smoothing.radius(least - 1e-7, x)
    assert threshold(Gaussian(0.5), 0.5) == pytest.approx(norm.cdf(1.0), abs=1e-8)
    for first in np.linspace(0.501, 0.79, 50):
        assert first <= threshold(Steps(first), 1.0) < first + 1e-7
        assert first + 0.2 <= threshold(Steps(first, first + 0.2), 2.0) < first + 0.2 + 1e-7
    assert threshold(Gaussian(0.25), 1.0, top=ceiling(100_000, 0.001)) is None
    assert threshold(Steps(), 3.1) is None


class Coin(Voter):
    """Votes for class 1 with probability p; the selection always chooses it."""

    def __init__(self, p, generator, smoothing=None, batch=1000):
        super().__init__(lambda x: x, smoothing or Gaussian(1.0), torch.zeros(1, 1), 0, 0, batch)
        self.p, self.generator, self.asked = p, generator, []

    def block(self, purpose, index, draws):
        self.asked.append((purpose, index, draws))
        if purpose == "selection":
            return torch.ones(draws, dtype=torch.int64)
        return torch.from_numpy((self.generator.random(draws) < self.p).astype(np.int64))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("edge", range(3))
def test_simulated_certificates_fail_as_rarely_as_they_say(method, edge):
    """The edge of each radius of a grid, 2,000 repetitions, alpha = 0.05. A sound procedure fails here with
    probability 1e-6 per case; one of level 0.1 passes with less than 1e-4."""
    radii, allowed = (0.2, 0.5, 0.8), binom.isf(1e-6, 2000, 0.05)
    assert binom.cdf(allowed, 2000, 0.1) < 1e-4
    generator, truth = np.random.default_rng(edge), norm.cdf(radii[edge]) - 1e-9
    rule = {"selection": 5, "most": 300, "alpha": 0.05, "futility": 1e-9, "method": method}
    wrong = sum(largest(Coin(truth, generator), 2, radii, **rule).radius >= radii[edge] for _ in range(2000))
    assert wrong <= allowed
    assert method == "betting" or wrong > binom.ppf(1e-6, 2000, 0.025)


def test_simulated_refutations_fail_as_rarely_as_they_say():
    generator, truth = np.random.default_rng(0), norm.cdf(0.5) + 1e-7
    rule = {"selection": 5, "most": 300, "alpha": 1e-9, "futility": 0.05}
    wrong = sum(decide(Coin(truth, generator), 2, 0.5, **rule).certified is False for _ in range(2000))
    assert binom.ppf(1e-6, 2000, 0.02) < wrong <= binom.isf(1e-6, 2000, 0.05)


def scripted(votes):
    """A voter whose draw i votes for class 1 where votes[i] is 1."""
    voter = Coin(0.5, None, batch=3)
    queue = iter(votes)
    voter.block = lambda purpose, index, draws: torch.tensor([next(queue) for _ in range(draws)])
    return voter


def test_the_grid_goes_from_small_to_large():
    easy = Plan(0.6, (4, 8), (4, 7), (0, 2))
    hard = Plan(0.8, (4, 8), (5, 8), (1, 6))
    yes, no = [1] * 8, [0] * 8
    assert _follow(scripted(yes), 1, [easy, hard]) == (2, False, 8, 8)
    assert _follow(scripted(no), 1, [easy, hard]) == (0, True, 0, 4)
    assert _follow(scripted([1, 1, 1, 1, 0, 0, 0, 0]), 1, [easy, hard]) == (1, True, 4, 8)
    assert _follow(scripted([1, 1, 1, 1, 1, 1, 1, 0]), 1, [easy, hard]) == (1, False, 7, 8)
    assert _follow(scripted([0, 1, 1, 1, 1, 1, 0, 0]), 1, [easy, hard]) == (0, False, 5, 8)
    # the larger radius alone claims nothing, and counts once the smaller one is certified too
    odd = Plan(0.8, (4, 8), (3, 9), (-1, -1))
    assert _follow(scripted([1, 1, 1, 0, 0, 0, 0, 0]), 1, [easy, odd]) == (0, False, 3, 8)
    assert _follow(scripted([1, 1, 1, 0, 1, 1, 1, 1]), 1, [easy, odd]) == (2, False, 7, 8)
    assert _follow(scripted([1, 0, 0, 0, 1, 1, 0, 0]), 1, [easy, hard]) == (0, False, 3, 8)  # hard is not asked yet


def test_outcomes_and_draws_are_told():
    generator = np.random.default_rng(1)
    for p, expected in [(0.9995, (True, True, True)), (norm.cdf(1.5), (True, True, False)), (0.3, (False,) * 3)]:
        voter = Coin(p, generator, batch=20)
        found = largest(voter, 2, (0.5, 1.0, 2.0), selection=20, most=20_000)
        assert found.certified == expected
        assert found.radius == (0.0, 0.5, 1.0, 2.0)[sum(expected)]
        assert (found.prediction, found.chosen) == (1 if sum(expected) else ABSTAIN, 1)
        assert found.draws == sum(size for _, _, size in voter.asked)
        assert max(size for _, _, size in voter.asked) == 20
        assert [i for purpose, i, _ in voter.asked if purpose == "sequential"] == list(range(len(voter.asked) - 1))
    same = decide(Coin(norm.cdf(0.5), generator), 2, 0.5, most=2000, futility=1e-6)
    assert (same.certified, same.prediction, same.draws) == (None, ABSTAIN, 2100)
    assert 900 < same.votes / 2000 * 1000 * 0.5 / norm.cdf(0.5) * 2 < 1100
    far = largest(Coin(0.9999, generator, Gaussian(0.25)), 2, (0.25, 1.0), most=100_000)
    assert far.certified == (True, None)  # 1.0 is out of reach: nothing more is drawn for it
    assert far.draws < 500
    none = decide(Coin(0.9999, generator, Gaussian(0.25)), 2, 1.0, most=100_000)
    assert (none.certified, none.chosen, none.draws) == (None, ABSTAIN, 0)
    rule = {"selection": 5, "most": 1000}  # 1,000 draws that agree: 2.46 by their bound, 2.44 by bets
    assert decide(Coin(1.0, generator), 2, 2.45, **rule).certified
    assert decide(Coin(1.0, generator), 2, 2.45, **rule, method="betting").draws == 0


def test_certifies_half_spaces_below_their_distance_with_few_draws():
    model = HalfSpace(torch.tensor([1.0, 0.0, 0.0, 0.0]), 0.5)
    shifts = (0.02, 0.2, 0.45)
    x = torch.full((3, 1, 2, 2), 0.5)
    x[:, 0, 0, 0] += torch.tensor(shifts)
    radii = [0.05, 0.1, 0.15, 0.3, 0.4, 0.6]
    run = {"batch": 500, "ids": torch.arange(3), "seed": 3}
    torch.manual_seed(5)
    before = torch.get_rng_state()
    found = certify_sequential(model.train(), x, Gaussian(0.25), radii, **run)
    assert torch.equal(before, torch.get_rng_state())
    assert model.training
    assert [one.radius for one in found] == [0.0, 0.15, 0.4]
    assert [one.certified[-1] for one in found] == [False] * 3
    assert all(one.prediction == (1 if one.radius else ABSTAIN) and one.chosen == 1 for one in found)
    assert max(one.draws for one in found) < 10_000
    again = certify_sequential(model, x[1:2], Gaussian(0.25), radii, **(run | {"ids": torch.tensor([1])}))[0]
    assert (again.votes, again.draws) == (found[1].votes, found[1].draws)
    other = certify_sequential(model, x[1:2], Gaussian(0.25), radii, **(run | {"ids": torch.tensor([7])}))[0]
    assert other.votes != again.votes
    with untouched(model):
        voter = Voter(model, Gaussian(0.25), x[1:2], 3, 1, 500)
        assert [decide(voter, 2, r).certified for r in radii] == [True] * 3 + [False] * 3


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"selection": 100, "most": 100}, "n0 < n"),
        ({"most": 9}, "at least 10 draws"),
        ({"alpha": 0.0}, "alpha"),
        ({"futility": 0.7}, "futility in"),
        ({"method": "guess"}, "spending"),
        ({"batch": 0}, "batch"),
        ({"radii": []}, "radii above 0"),
        ({"radii": [0.2, 0.1]}, "radii above 0"),
        ({"radii": [0.1, 0.1]}, "radii above 0"),
        ({"radii": [0.0]}, "radii above 0"),
        ({"radii": [float("nan")]}, "radii above 0"),
        ({"radii": [True]}, "radii above 0"),
        ({"radii": [0.25, 1.0]}, "at most 0.9529, which 100000 draws"),
        ({"radii": [0.5], "most": 100}, "at most 0.3"),
    ],
)
def test_impossible_settings_are_refused_before_the_model_is_called(settings, told):
    def model(x):
        raise AssertionError("called")

    settings = {"radii": [0.1], "selection": 5} | settings
    with pytest.raises(BudgetError, match=told):
        certify_sequential(model, torch.rand(2, 1, 2, 2), Gaussian(0.25), **settings)


@pytest.mark.parametrize(
    "settings",
    [{"threshold": 0.4}, {"threshold": 1.0}, {"growth": 1.0}, {"last_share": 1.0}, {"first": 0}, {"most": 0}],
)
def test_impossible_plans_are_refused(settings):
    with pytest.raises(BudgetError):
        plan_for(**({"threshold": 0.7, "most": 100} | settings))


def test_refuses_draws_that_are_not_independent():
    x = torch.rand(1, 1, 2, 2)
    with pytest.raises(ModelError, match="whole batch"):
        certify_sequential(Shared(), x, Gaussian(0.1), [0.1])
    with pytest.raises(ModelError, match="independent=True"):
        certify_sequential(Own(), x, Gaussian(0.1), [0.1])
    assert len(certify_sequential(Own(), x, Gaussian(0.1), [0.1], most=500, independent=True)) == 1
