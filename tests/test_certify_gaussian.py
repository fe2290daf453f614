"""Gaussian certificates: equal to the reference procedure on equal draws, tight on half spaces, and sound for codes
that draw anew in every frame; models whose draws are not independent are refused."""

import math

import numpy as np
import pytest
import torch
from scipy.special import ndtr, ndtri
from scipy.stats import beta, binom, binomtest
from torch import nn

from stochade.certify import ABSTAIN, Gaussian, SmoothingCode, certify, l2_radius, predict_one
from stochade.certify.votes import Voter
from stochade.errors import BudgetError, ModelError
from stochade.models.encoded import Encoded
from stochade.nn.encoders_gaussian import RSC
from stochade.randomness import untouched


class HalfSpace(nn.Module):
    """Class 1 where w x > b; scope none."""

    scope = "none"

    def __init__(self, w, b=0.0):
        super().__init__()
        self.w, self.b = nn.Parameter(w), b

    def forward(self, x):
        score = x.flatten(1) @ self.w - self.b
        return torch.stack([-score, score], 1)


class MeanFrame(nn.Module):
    scope = "none"

    def __init__(self, body):
        super().__init__()
        self.body = body

    def forward(self, codes):
        return self.body(codes.mean(1))


def reference(voter, classes, n0, n, alpha, sigma):
    """CERTIFY as its authors' code writes it, on the same draws."""
    counts0 = voter.votes("selection", n0, classes).numpy()
    top = counts0.argmax()
    counts = voter.votes("bound", n, classes).numpy()
    nA = counts[top]
    low = beta.ppf(alpha, nA, n - nA + 1) if nA else 0.0  # proportion_confint(nA, n, alpha=2 * alpha, method="beta")
    return (-1, 0.0) if low < 0.5 else (int(top), sigma * float(ndtri(low)))


@pytest.mark.parametrize("seed", range(6))
def test_equals_the_reference_procedure_on_the_same_draws(seed):
    generator = torch.Generator().manual_seed(seed)
    model = HalfSpace(torch.randn(6, generator=generator), 0.1)
    x = torch.rand(3, 1, 2, 3, generator=generator)
    found = certify(
        model, x, Gaussian(0.3), selection=20, draws=500, alpha=0.01, batch=64, seed=seed, ids=torch.arange(3)
    )
    with untouched(model):
        for i, one in enumerate(found):
            voter = Voter(model, Gaussian(0.3), x[i : i + 1], seed, i, 64)
            assert (one.prediction, one.radius) == pytest.approx(reference(voter, 2, 20, 500, 0.01, 0.3))
            assert sum(one.votes) == 500
            assert one.draws == 520


def test_predicts_as_the_reference_does():
    model, x = HalfSpace(torch.ones(4)), torch.full((1, 1, 2, 2), 0.02)
    for identity in range(12):
        voter = Voter(model, Gaussian(0.4), x, 0, identity, 100)
        with untouched(model):
            chosen, votes = predict_one(voter, 2, 100, 0.05)
        expected = max(range(2), key=votes.__getitem__) if binomtest(max(votes), 100, 0.5).pvalue <= 0.05 else ABSTAIN
        assert chosen == expected


def test_is_the_exact_distance_on_half_spaces():
    """With the true probability in place of its bound the radius is the distance to the hyperplane."""
    w = torch.tensor([0.6, -1.3, 0.2])
    for shift in (0.01, 0.2, 0.5):
        distance = shift / float(w.norm())
        p = float(ndtr(distance / 0.25))
        assert l2_radius(p, 0.25) == pytest.approx(distance, rel=1e-6)
    assert l2_radius(0.5, 0.25) == l2_radius(0.2, 0.25) == 0
    assert math.isinf(l2_radius(1.0, 0.25))


def turning_point(ends, sigma, frames, x):
    """(probability of a union of intervals for the mean of `frames` draws, the least |delta| at which it loses its
    majority): a scan of the line, since the probability is known in closed form. A little too large at most."""
    spread = sigma / math.sqrt(frames)

    def p(at):
        return (ndtr((ends[1::2] - at[:, None]) / spread) - ndtr((ends[::2] - at[:, None]) / spread)).sum(1)

    here = float(p(np.array([x]))[0])
    steps = np.linspace(0, 6 * sigma, 6001)
    lost = (np.minimum(p(x + steps), p(x - steps)) <= 0.5).nonzero()[0]
    return here, steps[lost[0]] if lost.size else np.inf


def sound(cases, seed):
    rng, tight = np.random.default_rng(seed), 0
    for _ in range(cases):
        ends = np.sort(rng.normal(size=2 * rng.integers(1, 4)))
        ends[-1] = rng.choice([ends[-1], 50.0])  # often a half line, where the radius is exact
        sigma, frames = float(rng.choice([0.1, 0.3, 1.0])), int(rng.choice([1, 2, 4]))
        here, true = turning_point(ends, sigma, frames, float(rng.normal()))
        radius = l2_radius(min(here, 1 - 1e-9), sigma, frames)  # the closed form is rounded near 1
        assert radius <= true + 1e-9, (ends, sigma, frames, here)
        tight += radius > 0 and true < radius + 0.003 * sigma
    assert tight > cases / 50


def test_no_radius_exceeds_the_true_one_on_a_line():
    sound(300, 0)


@pytest.mark.slow
def test_no_radius_exceeds_the_true_one_on_a_line_in_ten_thousand_cases():
    sound(10_000, 1)


def test_a_certificate_fails_as_rarely_as_it_says():
    """2,000 certificates at alpha = 0.05 of a class whose true radius is known: how many are too large follows the
    binomial; the limit is exceeded by chance in 1 of 1,000 seeds."""
    true, alpha = 0.1, 0.05
    model = HalfSpace(torch.ones(1))
    x = torch.full((2000, 1, 1, 1), true)
    found = certify(model, x, Gaussian(0.25), selection=10, draws=100, alpha=alpha, ids=torch.arange(2000))
    failed = sum(one.prediction == 1 and one.radius > true for one in found)
    failed += sum(one.prediction == 0 for one in found)  # the wrong class is no better
    assert 0.2 * alpha * 2000 < failed <= binom.ppf(0.999, 2000, alpha)


def test_codes_with_noise_in_every_frame_have_the_smaller_radius_and_no_larger_one_holds():
    """A network that averages T frames sees noise of sigma / sqrt(T): its true distance is the radius itself."""
    sigma, steps, w = 0.2, 4, torch.tensor([1.0, 0.5])
    shift, length = 0.05, float(w.norm())
    p = float(ndtr(shift / length / (sigma / steps**0.5)))  # of the mean of frames
    assert l2_radius(p, sigma, steps) == pytest.approx(shift / length, rel=1e-6)
    assert l2_radius(p, sigma) > 1.9 * shift / length  # the radius of kind I would be unsound here
    x = torch.full((1, 1, 1, 2), 0.5)
    base = Encoded(RSC(sigma, steps, "II"), MeanFrame(HalfSpace(w, float(w.sum()) / 2 - shift)))
    one = certify(base, x, SmoothingCode(sigma, steps, "II"), selection=50, draws=4000, alpha=0.001)[0]
    assert one.prediction == 1
    assert 0.6 * shift / length < one.radius < shift / length
    with pytest.raises(ModelError, match="RSC"):
        certify(base, x, SmoothingCode(sigma, steps, "I"))


def test_seeds_and_shorter_runs():
    model, x = HalfSpace(torch.ones(4)), torch.rand(2, 1, 2, 2, generator=torch.Generator().manual_seed(1)) / 10
    run = {"selection": 10, "draws": 300, "alpha": 0.05, "batch": 50, "ids": torch.arange(2)}
    first, again = certify(model, x, Gaussian(0.4), **run), certify(model, x, Gaussian(0.4), **run)
    alone = certify(model, x[1:], Gaussian(0.4), **(run | {"ids": torch.tensor([1])}))
    assert [c.votes for c in first] == [c.votes for c in again]
    assert alone[0].votes == first[1].votes
    assert certify(model, x, Gaussian(0.4), **run, seed=1)[0].votes != first[0].votes
    voter = Voter(model, Gaussian(0.4), x[:1], 0, 0, 50)
    with untouched(model):
        assert all(voter.votes("bound", 250, 2) <= voter.votes("bound", 300, 2))


def test_leaves_the_generators_and_the_model():
    model = HalfSpace(torch.ones(4)).train()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    certify(model, torch.rand(1, 1, 2, 2, generator=torch.Generator()), Gaussian(0.4), selection=5, draws=50)
    assert torch.equal(before, torch.get_rng_state())
    assert model.training
    assert model.w.requires_grad


class Shared(nn.Module):
    """One draw of noise for the whole batch."""

    def __init__(self, scope=None):
        super().__init__()
        if scope:
            self.scope = scope

    def forward(self, x):
        return x.flatten(1)[:, :2] + torch.randn(1, 2)


class Own(nn.Module):
    def forward(self, x):
        return x.flatten(1)[:, :2] + torch.randn(len(x), 2)


class Remembering(nn.Module):
    def __init__(self):
        super().__init__()
        self.v = torch.zeros(())

    def forward(self, x):
        self.v = self.v + 1
        return x.flatten(1)[:, :2] + self.v


class Crowd(nn.Module):
    def forward(self, x):
        return x.flatten(1)[:, :2] - x.mean()


@pytest.mark.parametrize(
    ("model", "told"),
    [
        (nn.Sequential(nn.Flatten(), nn.BatchNorm1d(4)), "eval"),
        (Shared(), "whole batch"),
        (Shared("call"), "whole batch"),
        (Own(), "independent=True"),
        (Remembering(), "state"),
        (Crowd(), "sees the others"),
    ],
)
def test_refuses_draws_that_are_not_independent(model, told):
    with pytest.raises(ModelError, match=told):
        certify(model, torch.rand(1, 1, 2, 2), Gaussian(0.1), selection=5, draws=50)


def test_takes_the_callers_word_for_a_foreign_model_but_not_against_what_it_sees():
    x = torch.rand(1, 1, 2, 2)
    certify(Own(), x, Gaussian(0.1), selection=5, draws=50, independent=True)
    with pytest.raises(ModelError, match="whole batch"):
        certify(Shared(), x, Gaussian(0.1), selection=5, draws=50, independent=True)


@pytest.mark.parametrize("sigma", [0, -1, float("nan"), float("inf"), True, "0.2"])
def test_impossible_sigmas_are_refused(sigma):
    with pytest.raises(BudgetError, match="sigma"):
        Gaussian(sigma)


def test_impossible_draws_are_refused_before_the_model_is_called():
    def model(x):
        raise AssertionError("called")

    for settings in ({"selection": 100, "draws": 100}, {"draws": 9}, {"alpha": 0.0}, {"batch": 0}):
        with pytest.raises(BudgetError):
            certify(model, torch.rand(1, 1, 2, 2), Gaussian(0.1), **({"selection": 5} | settings))
