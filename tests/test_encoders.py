"""Encoders: moments and flip distances against closed forms, backwards against enumeration, centring, refusals.

Random tests use fixed seeds; each states the chance at which a right encoder would fail.
"""

import pickle
from itertools import pairwise, product

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import binomtest, norm

from stochade.attacks.flip_budgets import coupled_flips, encoding_randomness, independent_flips
from stochade.errors import BudgetError, ImagesError, UsageError
from stochade.nn import backward_as, forward_as, scope_of
from stochade.nn.encoders import BernoulliRate, Direct, SignedRate, mean_over
from stochade.nn.encoders_gaussian import RSC, clamped_mean, clamped_variance
from stochade.nn.encoders_latency import Latency

ALL = [Direct(3), BernoulliRate(3), SignedRate(3, 0.4), RSC(0.3, 3), RSC(0.3, 3, "II"), Latency(3)]
NAMES = ["direct", "rate", "signed", "rsc-1", "rsc-2", "latency"]
PIXELS = torch.tensor([0.0, 0.02, 0.3, 0.5, 0.77, 1.0])


def gradient(encoder, x, weights) -> torch.Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad((encoder(x) * weights).sum(), x)[0]


@pytest.mark.parametrize("encoder", ALL, ids=NAMES)
def test_codes_are_batch_first_and_travel(encoder):
    x = torch.rand(4, 2, 5, 6, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(1)
    codes = encoder(x)
    assert (codes.shape, codes.dtype) == ((4, 3, 2, 5, 6), x.dtype)
    torch.manual_seed(1)
    assert torch.equal(pickle.loads(pickle.dumps(encoder))(x), codes)
    assert encoder.double()(x.double()).dtype == torch.float64
    random = not isinstance(encoder, Direct | Latency)
    assert scope_of(encoder.float()) == ("example" if random else "none")
    assert len(encoder(x[:1].expand(9, 2, 5, 6)).unique(dim=0)) == (9 if random else 1)
    if encoder.alphabet is not None:
        assert set(codes.unique().tolist()) <= set(encoder.alphabet)
        assert not bool(torch.signbit(codes[codes == 0]).any())  # -0 would be another code to a hash


@pytest.mark.parametrize(("floor", "mean"), [(0.0, 0.4), (0.1, 0.4), (0.1, None)])
def test_rates_fire_as_often_as_they_should(floor, mean):
    """Exact binomial tests at 1e-7 each, 36 in all: 4e-6. Letters in {-1, 0, 1} have a fixed sign per pixel, so the
    mean gives the variance."""
    torch.manual_seed(0)
    x = PIXELS.view(1, 1, 1, 6).expand(300, 1, 1, 6)
    for encoder in (BernoulliRate(40, floor), SignedRate(40, mean, floor)):
        codes = encoder(x)
        shift = 0.0 if mean is None or isinstance(encoder, BernoulliRate) else mean
        for i, pixel in enumerate(PIXELS.tolist()):
            rate = min(max(abs(pixel - shift), floor), 1 - floor)
            fired = codes[..., i]
            assert binomtest(int((fired != 0).sum()), 12000, rate).pvalue > 1e-7
            assert set(fired.unique().tolist()) <= {0.0, -1.0 if pixel < shift else 1.0}


def test_letters_are_independent_over_examples_time_and_pixels():
    """Equal frames among fair 256-letter ones: below 1e-70."""
    torch.manual_seed(0)
    codes = SignedRate(8)(torch.full((6, 1, 16, 16), 0.5))
    assert len(codes.flatten(0, 1).unique(dim=0)) == 48


@pytest.mark.parametrize("encoder", [BernoulliRate(50), SignedRate(50, 0.45)], ids=["rate", "signed"])
def test_flip_distances_have_their_closed_forms(encoder):
    """Independent encodings of x and of x + delta, and encodings that share their uniforms: flips in 20,000 frames
    against a normal law with the exact mean and variance, two-sided at 1e-6 each."""
    n, frames = 400, 20000
    x = torch.tensor([0.05, 0.3, 0.42, 0.5, 0.81, 0.93], dtype=torch.float64).view(1, 1, 1, 6)
    other = (x + torch.tensor([0.1, -0.2, 0.1, 0.05, -0.5, 0.07], dtype=torch.float64)).clamp(0, 1)
    many, changed = x.expand(n, 1, 1, 6), other.expand(n, 1, 1, 6)
    shift = 0.45 if isinstance(encoder, SignedRate) else 0.0

    def close(a, b, each) -> None:
        """each: [1, 6] the probability of a flip by pixel."""
        flips = float((a != b).sum())
        spread = np.sqrt(frames * float((each * (1 - each)).sum()))
        assert abs(flips - frames * float(each.sum())) < norm.isf(5e-7) * spread

    torch.manual_seed(0)
    first, again, third = encoder(many), encoder(many), encoder(changed)
    r, s = x - shift, other - shift
    alone = torch.cat([encoding_randomness(r[..., i : i + 1]) for i in range(6)])
    close(first, again, alone)
    close(first, third, torch.cat([independent_flips(r[..., i : i + 1], s[..., i : i + 1]) for i in range(6)]))
    torch.manual_seed(0)
    shared = encoder(changed)
    close(first, shared, torch.cat([coupled_flips(r[..., i : i + 1], s[..., i : i + 1]) for i in range(6)]))
    if shift == 0:
        torch.testing.assert_close(coupled_flips(r, s), (r - s).abs().sum((1, 2, 3)))


@pytest.mark.parametrize("sigma", [0.05, 0.3, 1.0])
@pytest.mark.parametrize("x", [0.0, 0.1, 0.5, 0.97])
def test_gaussian_closed_forms_equal_their_integrals(sigma, x):
    def expected(f):
        edges = sorted({-9.0, *(v for v in (-x / sigma, (1 - x) / sigma) if -9 < v < 9), 9.0})
        parts = pairwise(edges)
        return sum(quad(lambda n: f(min(max(x + sigma * n, 0.0), 1.0)) * norm.pdf(n), a, b)[0] for a, b in parts)

    mean = expected(lambda v: v)
    at = torch.tensor([x], dtype=torch.float64, requires_grad=True)
    assert float(clamped_mean(at.detach(), sigma)) == pytest.approx(mean, abs=1e-9)
    assert float(clamped_variance(at.detach(), sigma)) == pytest.approx(expected(lambda v: (v - mean) ** 2), abs=1e-9)
    slope = torch.autograd.grad(clamped_mean(at, sigma).sum(), at)[0]
    assert float(slope) == pytest.approx(norm.cdf((1 - x) / sigma) - norm.cdf(-x / sigma), abs=1e-12)


@pytest.mark.parametrize("kind", ["I", "II"])
def test_gaussian_codes_have_their_moments(kind):
    """Mean (normal law with the exact variance, at 1e-7 each) and variance (within six standard errors) of the codes
    and of their means over time, at 0.3 and 0.9."""
    torch.manual_seed(0)
    n, steps, sigma = 40000, 5, 0.1**0.5
    for pixel in (0.3, 0.9):
        at = torch.tensor([pixel], dtype=torch.float64)
        mean, variance = float(clamped_mean(at, sigma)), float(clamped_variance(at, sigma))
        codes = RSC(sigma, steps, kind)(torch.full((n, 1), pixel, dtype=torch.float64))[:, :, 0]
        assert bool((codes == codes[:, :1]).all()) == (kind == "I")
        of_means = variance if kind == "I" else variance / steps
        over_time = codes.mean(1)
        assert abs(float(over_time.mean()) - mean) < norm.isf(5e-8) * (of_means / n) ** 0.5
        assert abs(float(over_time.var()) / of_means - 1) < 0.05  # standard error below 0.008
        assert abs(float(codes[:, 2].var()) / variance - 1) < 0.05
        assert 0 <= float(codes.min()) <= float(codes.max()) <= 1


def test_gaussian_backwards():
    """Its own is 1 where the noisy image is inside the box, by draw; ste is 1; expectation the probability."""
    torch.manual_seed(2)
    x, weights = torch.rand(64, 1, 4, dtype=torch.float64), torch.rand(64, 3, 1, 4, dtype=torch.float64)
    for kind in ("I", "II"):
        encoder = RSC(0.5, 3, kind)
        torch.manual_seed(3)
        codes = encoder(x)
        torch.manual_seed(3)
        inside = ((codes > 0) & (codes < 1)).double()
        torch.testing.assert_close(gradient(encoder, x, weights), (weights * inside).sum(1))
        with backward_as(encoder, {"*": "ste"}):
            torch.testing.assert_close(gradient(encoder, x, weights), weights.sum(1))
        share = torch.special.ndtr((1 - x) / 0.5) - torch.special.ndtr(-x / 0.5)
        with backward_as(encoder, {"*": "expectation"}):
            torch.manual_seed(3)
            assert torch.equal(encoder(x.clone().requires_grad_()), codes)
            torch.testing.assert_close(gradient(encoder, x, weights), weights.sum(1) * share)
        with forward_as(encoder, {"*": "mean-field"}):
            torch.testing.assert_close(encoder(x)[:, 1], clamped_mean(x, 0.5))
        with forward_as(encoder, {"*": "quiet"}):
            assert torch.equal(encoder(x)[:, 1], x)


def multilinear(codes: torch.Tensor) -> torch.Tensor:
    """[n] a function of codes [n, 2, 2] with every product of different entries."""
    z = codes.flatten(1)
    return (1 + 0.3 * z[:, 0]) * (0.5 - z[:, 1]) * (0.2 + 0.9 * z[:, 2]) * (0.7 - 0.4 * z[:, 3]) + z[:, 0] * z[:, 3]


@pytest.mark.parametrize("encoder", [BernoulliRate(2), SignedRate(2, 0.45)], ids=["rate", "signed"])
def test_straight_through_is_unbiased_where_the_network_is_multilinear(encoder):
    """Sum over every code of its probability times the layer's gradient there = derivative of the enumerated
    expectation; and "mean-field" has that derivative too. Pixels 0.3 and 0.8 have different signs when centred."""
    x = torch.tensor([[0.3, 0.8]], dtype=torch.float64)
    words = torch.tensor(list(product(encoder.alphabet, repeat=4)), dtype=torch.float64).view(-1, 2, 2)
    shift = 0.45 if isinstance(encoder, SignedRate) else 0.0

    def chances(at: torch.Tensor) -> torch.Tensor:
        rate = at - shift
        up, down = rate.clamp_min(0), (-rate).clamp_min(0)
        each = torch.where(words > 0, up, torch.where(words < 0, down, 1 - rate.abs()))
        return each.prod(2).prod(1)

    leaf = x.clone().requires_grad_()
    wanted = torch.autograd.grad((chances(leaf) * multilinear(words)).sum(), leaf)[0]
    for surrogate in (encoder.surrogate, encoder.substitutes["ste"], encoder.substitutes["expectation"]):
        leaf = (x - shift).expand(len(words), 2).clone().requires_grad_()
        codes = surrogate(words, leaf)
        assert torch.equal(codes.detach(), words)
        each = torch.autograd.grad(multilinear(codes).sum(), leaf)[0]
        torch.testing.assert_close((chances(x)[:, None] * each).sum(0, keepdim=True), wanted)
    with forward_as(encoder, {"*": "mean-field"}):
        leaf = x.clone().requires_grad_()
        torch.testing.assert_close(torch.autograd.grad(multilinear(encoder(leaf)).sum(), leaf)[0], wanted)


def test_expectation_backward_is_zero_where_rates_are_clipped():
    x = torch.tensor([[0.02, 0.3, 0.44, 0.5, 0.97]], dtype=torch.float64)
    weights = torch.rand(1, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for encoder, free in (
        (BernoulliRate(3, floor=0.1), [0, 1, 1, 1, 0]),
        (SignedRate(3, 0.45, floor=0.1), [1, 1, 0, 0, 1]),
        (SignedRate(3, 0.97), [1, 1, 1, 1, 1]),  # a pixel at its mean has a derivative
    ):
        torch.testing.assert_close(
            gradient(encoder, x[:, None, None], weights[:, :, None, None])[0, 0], weights.sum(1)
        )
        with backward_as(encoder, {"*": "expectation"}):
            found = gradient(encoder, x[:, None, None], weights[:, :, None, None])[0, 0]
            torch.testing.assert_close(found, weights.sum(1) * torch.tensor([free], dtype=torch.float64))


def test_centring_per_channel_and_per_pixel():
    images = torch.rand(20, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    channels, pixels = mean_over(images), mean_over(images, "pixel")
    assert (channels.shape, pixels.shape) == ((3, 1, 1), (3, 4, 5))
    torch.testing.assert_close(channels, images.mean((0, 2, 3))[:, None, None])
    for mean in (0.5, channels, channels.flatten().tolist(), pixels):
        flat = torch.as_tensor(mean)
        flat = flat[:, None, None] if flat.dim() == 1 else flat
        torch.testing.assert_close(Direct(2, mean)(images)[:, 1], images - flat)
        encoder = SignedRate(2, mean)
        with forward_as(encoder, {"*": "mean-field"}):
            torch.testing.assert_close(encoder(images)[:, 0], images - flat)
    assert "mean" in SignedRate(2, channels).state_dict()
    loaded = SignedRate(2, torch.zeros(3))
    loaded.load_state_dict(SignedRate(2, channels).state_dict())
    assert torch.equal(loaded.mean, channels)
    with pytest.raises(UsageError, match="fit the mean"):
        Direct(2, pixels)(images[:, :, :3])
    with pytest.raises(UsageError, match="fit the mean"):
        SignedRate(2, channels)(images[:, :2])


def test_latency_fires_once_the_earlier_the_brighter():
    x = torch.tensor([0.0, 0.1, 0.3, 0.5, 0.74, 1.0]).view(1, 1, 1, 6)
    codes = Latency(5)(x)
    assert codes.sum(1).eq(1).all()
    assert codes[0, :, 0, 0].argmax(0).tolist() == [4, 4, 3, 2, 1, 0]  # times 4, 3.6, 2.8, 2, 1.04, 0
    assert torch.equal(Latency(1)(x), torch.ones(1, 1, 1, 1, 6))


def test_latency_backwards_are_derivatives_of_their_relaxed_forwards():
    """Against central differences of the same code in float64; "ste" adds the gradient up over time."""
    x = torch.tensor([0.07, 0.3, 0.55, 0.9], dtype=torch.float64).view(1, 1, 1, 4)
    weights = torch.rand(1, 5, 1, 1, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    encoder = Latency(5)
    for backward, forward in ((None, "mean-field"), ("interpolated", "mean-field"), ("soft", "warm")):
        with forward_as(encoder, {"*": forward}):
            up, down = ((encoder(x + h) * weights).sum((0, 1, 2, 3)) for h in (1e-6, -1e-6))
            assert float((encoder(x).sum(1) - 1).abs().max()) < 1e-12
        with backward_as(encoder, {} if backward is None else {"*": backward}):
            torch.testing.assert_close(
                gradient(encoder, x, weights).flatten(), (up - down) / 2e-6, rtol=1e-6, atol=1e-8
            )
    with backward_as(encoder, {"*": "ste"}):
        torch.testing.assert_close(gradient(encoder, x, weights), weights.sum(1))
    with forward_as(encoder, {"*": "warm"}):
        bump = norm.pdf(np.arange(5)[:, None], 4 * (1 - x.flatten().numpy()), 1.0)
        np.testing.assert_allclose(encoder(x)[0, :, 0, 0].numpy(), bump / bump.sum(0), rtol=1e-12)


@pytest.mark.parametrize("steps", [0, -1, 2.5, True, "4"])
def test_steps_are_refused(steps):
    for made in (Direct, BernoulliRate, SignedRate, Latency, lambda s: RSC(0.1, s)):
        with pytest.raises(BudgetError, match="time steps"):
            made(steps)


def test_other_refusals():
    for floor in (-0.1, 0.6, "0.1", True):
        with pytest.raises(UsageError, match="least rate"):
            BernoulliRate(2, floor)
        with pytest.raises(UsageError, match="least rate"):
            SignedRate(2, None, floor)
    for mean in (1.2, [0.1, -0.2], torch.zeros(2, 2), [float("nan")]):
        with pytest.raises(UsageError, match="mean"):
            SignedRate(2, mean)
        with pytest.raises(UsageError, match="mean"):
            Direct(2, mean)
    for sigma in (-1, float("nan"), float("inf"), "1"):
        with pytest.raises(UsageError, match="standard deviation"):
            RSC(sigma)
    with pytest.raises(UsageError, match="kind"):
        RSC(0.1, 2, "III")
    with pytest.raises(UsageError, match="per="):
        mean_over(torch.rand(2, 1, 2, 2), "image")
    with pytest.raises(UsageError, match="float images"):
        mean_over(torch.zeros(2, 1, 2, 2, dtype=torch.uint8))


@pytest.mark.parametrize("encoder", [BernoulliRate(3), SignedRate(3, 0.4), SignedRate(3), Latency(3)])
def test_what_would_become_silent_codes_is_refused(encoder):
    """NaN compares as no spike, and whole numbers are all clipped to one."""
    x = torch.full((4, 1, 2, 2), 0.5)
    for place, value in ((2, torch.nan), (1, torch.inf), (3, -torch.inf)):
        wrong = x.clone()
        wrong[place, 0, 1, 1] = value
        with pytest.raises(ImagesError, match=f"NaN or infinity in 1 images, first {place}"):
            encoder(wrong)
    for kind, told in ((torch.uint8, "divide by 255"), (torch.long, "cast to float"), (torch.bool, "cast to float")):
        with pytest.raises(ImagesError, match=f"dtype {kind}.*{told}"):
            encoder(torch.ones(4, 1, 2, 2, dtype=kind))
    encoder(torch.full((2, 1, 1, 1), 3e38))  # finite, though their sum is not
