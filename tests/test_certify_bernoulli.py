"""Certificates of rate codes against enumeration: for every pair of images the least probability that any network can
give at the other one is known exactly (Neyman-Pearson on the finite set of codes), and no radius may exceed it."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from stochade.certify import RateCode, certify, l1_radius
from stochade.certify.bernoulli import room, separation
from stochade.errors import BudgetError, ModelError
from stochade.models.encoded import Encoded
from stochade.nn.encoders import BernoulliRate, SignedRate


def distribution(x, steps, signed, floor=0.0):
    """Probabilities of all codes [letters^(d T)] of an image x [d]; places are independent."""
    total = np.ones(1)
    for value in np.repeat(x, steps):
        a = np.clip(abs(value), floor, 1 - floor)
        place = np.array([a * (value < 0), 1 - a, a * (value >= 0)]) if signed else np.array([1 - a, a])
        total = np.outer(total, place).ravel()
    return total


def least(p, here, there):
    """The least probability under `there` of a randomised set with probability p under `here`."""
    ratio = np.divide(there, here, out=np.full_like(here, np.inf), where=here > 0)
    order = np.argsort(ratio)
    mass, moved = 0.0, 0.0
    for i in order:
        take = min(1.0, (p - mass) / here[i]) if here[i] > 0 else 0.0
        if take <= 0:
            break
        mass, moved = mass + take * here[i], moved + take * there[i]
    return moved


def moved(rng, x, radius, norm, low, high):
    """A random image within the radius, often at its very edge and on a single pixel."""
    for _ in range(100):
        direction = rng.normal(size=x.size) * (rng.random(x.size) < rng.choice([0.3, 1.0]))
        if not direction.any():
            direction[rng.integers(x.size)] = rng.choice([-1, 1])
        if norm == "linf":
            step = np.sign(direction) * radius
        else:
            step = direction / np.linalg.norm(direction, 1 if norm == "l1" else 2) * radius
        other = x + step * rng.choice([1.0, 0.999, 0.5])
        if (other >= low).all() and (other <= high).all():
            return other
    return np.clip(x + step, low, high)


def case(rng, signed):
    d, steps = int(rng.integers(1, 3)), int(rng.integers(1, 4))
    x = rng.random(d)
    x = np.where(rng.random(d) < 0.25, rng.choice([0.0, 1.0, 0.5], d), x)
    if signed:
        x = x - rng.choice([0.0, 0.3, 0.5, 1.0])
    p = 1 - 10 ** rng.uniform(-6, math.log10(0.49)) if rng.random() < 0.9 else 1.0
    return x, steps, p


def check(cases, seed):
    rng, certified = np.random.default_rng(seed), 0
    for _ in range(cases):
        signed = rng.random() < 0.5
        x, steps, p = case(rng, signed)
        norm = str(rng.choice(["l1", "linf"] if signed else ["l1", "linf", "l2"]))
        floor = 0.0 if signed else float(rng.choice([0.0, 0.1, 0.3])) if norm != "l2" else 0.2
        smoothing = RateCode(steps, signed, floor, norm=norm)
        radius = smoothing.radius(p, torch.as_tensor(x))
        certified += radius > 0
        low, high = (x.min() * 0 - 1, 1) if signed else (0, 1)
        here = distribution(x, steps, signed, floor)
        for scale in (1 - 1e-9, 0.7):
            other = moved(rng, x, radius * scale, norm, low, high)
            q = least(p, here, distribution(other, steps, signed, floor))
            assert q > 0.5 - 1e-9, (x, other, steps, p, norm, floor, signed, radius, q)
    assert certified > cases / 2


def test_no_radius_exceeds_what_enumeration_allows():
    check(300, 0)


@pytest.mark.slow
def test_no_radius_exceeds_what_enumeration_allows_in_ten_thousand_cases():
    check(10_000, 1)


def test_the_coupling_bound_is_tight():
    """Just beyond the radius a network exists that loses its class: "no spike" at a pixel of 1 - p in one frame, and
    at a black pixel in any number of frames."""
    for steps, p, pixel in [(1, 0.9, 0.1), (1, 0.7, 0.3), (4, 1.0, 0.0), (3, 1.0, 0.0)]:
        radius = l1_radius(p, steps)
        here, there = (distribution(np.array([v]), steps, False) for v in (pixel, pixel + radius))
        assert least(p, here, there) == pytest.approx(0.5, abs=1e-9)
        assert radius == pytest.approx(1 - (1.5 - p) ** (1 / steps))
        assert radius >= (p - 0.5) / steps * (1 - 1e-8)
    assert l1_radius(0.5, 4) == l1_radius(0.1, 4) == 0


def test_a_radius_that_forgets_the_frames_is_unsound():
    """F = 1 if any of four frames fires; x = 0. The unscaled radius p - 1/2 would be 0.5, yet at 0.2 the class is
    lost: P(F = 1) = 1 - 0.8^4 = 0.59."""

    class Any4(nn.Module):
        scope = "none"

        def forward(self, codes):
            fires = codes.flatten(1).amax(1)
            return torch.stack([1 - fires, fires], 1)

    model = Encoded(BernoulliRate(4), Any4())
    one = certify(model, torch.zeros(1, 1, 1, 1), RateCode(4), selection=10, draws=5000, alpha=1e-3)[0]
    assert one.prediction == 0
    assert one.lower > 0.998
    assert one.radius < 0.16 < 0.2 < one.lower - 0.5
    torch.manual_seed(0)
    assert model(torch.full((4000, 1, 1, 1), 0.2)).argmax(1).float().mean() > 0.55  # the vote has turned


@pytest.mark.parametrize("signed", [False, True])
def test_separation_is_that_of_the_distributions(signed):
    rng = np.random.default_rng(3)
    for _ in range(40):
        x, y = (rng.random(2) - 0.5 * signed for _ in range(2))
        floor = 0.0 if signed else float(rng.choice([0, 0.2]))
        both = np.sqrt(distribution(x, 2, signed, floor) * distribution(y, 2, signed, floor)).sum()
        total = 2 * float(separation(torch.as_tensor(x), torch.as_tensor(y), floor).sum())
        assert math.exp(-total) == pytest.approx(both, rel=1e-9)


def test_affinity_room_is_what_the_probabilities_allow():
    for p in (0.6, 0.9, 0.999, 1.0):
        assert math.exp(-3 * room(p, 3)) == pytest.approx(math.sqrt(p / 2) + math.sqrt((1 - p) / 2))
    assert room(0.5, 1) == 0


def test_small_numbers_keep_their_digits():
    """Against 50 digits: a radius that cancellation makes too large would be a wrong proof."""
    from decimal import Decimal, getcontext

    getcontext().prec = 50
    for p in (0.5 + 2.0**-20, 0.5 + 2.0**-34, 0.75):
        exact = (Decimal(p) / 2).sqrt() + ((1 - Decimal(p)) / 2).sqrt()
        assert room(p, 1) == pytest.approx(float(-exact.ln()), rel=1e-12)
    for x, change in ((0.5, 2.0**-20), (0.25, 2.0**-30), (0.0, 2.0**-40), (1.0 - 2.0**-10, 2.0**-25)):
        a, b = Decimal(x), Decimal(x + change)
        exact = -((a * b).sqrt() + ((1 - a) * (1 - b)).sqrt()).ln()
        here, there = torch.tensor([x], dtype=torch.float64), torch.tensor([x + change], dtype=torch.float64)
        assert float(separation(here, there)) == pytest.approx(float(exact), rel=1e-12)


def test_local_radii_beat_the_global_one_in_the_middle_of_the_box_only():
    """At 1/2 a change hides in the noise; at 0 it does not."""
    smoothing = RateCode(4)
    middle, edge = (smoothing.radius(0.95, torch.full((1,), value)) for value in (0.5, 0.0))
    assert edge == pytest.approx(l1_radius(0.95, 4))
    assert middle > 1.5 * edge
    assert RateCode(4, norm="linf").radius(0.99, torch.full((100,), 0.5)) > 0.01
    values = RateCode(2, floor=0.4, norm="l0")
    assert values.unit == "values"
    assert values.radius(1 - 1e-9, torch.full((50,), 0.5)) > 2


def test_l0_radii_by_enumeration():
    rng = np.random.default_rng(5)
    for _ in range(60):
        x, floor, p = rng.random(3), float(rng.choice([0.3, 0.4, 0.45])), 1 - 10 ** rng.uniform(-5, -0.4)
        radius = RateCode(1, floor=floor, norm="l0").radius(p, torch.as_tensor(x))
        here = distribution(x, 1, False, floor)
        for count in range(1, min(4, int(radius))):
            for which in itertools.combinations(range(3), count):
                for ends in itertools.product([0.0, 1.0], repeat=count):
                    other = x.copy()
                    other[list(which)] = ends
                    assert least(p, here, distribution(other, 1, False, floor)) > 0.5


def test_certified_votes_of_a_network_behind_rate_codes():
    """The network counts spikes: its vote turns at one half, and no certificate reaches there."""

    class Count(nn.Module):
        scope = "none"

        def forward(self, codes):
            share = codes.flatten(1).mean(1)
            return torch.stack([1 - share, share], 1)

    model = Encoded(BernoulliRate(5), Count())
    for value in (0.1, 0.35, 0.8):
        x = torch.full((1, 1, 1, 1), value)
        one = certify(model, x, RateCode(5), selection=20, draws=2000, alpha=1e-3)[0]
        assert one.prediction == int(value > 0.5)
        assert 0 < one.radius < abs(value - 0.5)


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"steps": 4, "norm": "l3"}, BudgetError),
        ({"steps": 4, "norm": "l2"}, BudgetError),
        ({"steps": 4, "norm": "l0"}, BudgetError),
        ({"steps": 4, "signed": True, "floor": 0.1}, ModelError),
    ],
)
def test_settings_without_a_proof_are_refused(settings, error):
    with pytest.raises(error):
        RateCode(**settings)


def test_a_floor_under_signed_rates_has_no_such_radius():
    """Why it is refused: two images a hair apart on the sides of the mean have codes 2 eta apart in every frame."""
    here, there = (distribution(np.array([v]), 2, True, 0.2) for v in (1e-9, -1e-9))
    assert least(0.9, here, there) == pytest.approx(0.9 - 0.36, abs=1e-6)
    assert l1_radius(0.9, 2) > 2e-9


def test_other_encoders_are_refused():
    other = Encoded(SignedRate(4), nn.Flatten())
    with pytest.raises(ModelError, match="BernoulliRate"):
        certify(other, torch.rand(1, 1, 2, 2), RateCode(4), selection=5, draws=50)
    with pytest.raises(ModelError, match="SignedRate"):
        certify(
            Encoded(BernoulliRate(4), nn.Flatten()), torch.rand(1, 1, 2, 2), RateCode(4, True), selection=5, draws=50
        )
    with pytest.raises(ModelError, match="floor=0"):
        certify(
            Encoded(BernoulliRate(4, 0.1), nn.Flatten()), torch.rand(1, 1, 2, 2), RateCode(4), selection=5, draws=50
        )
