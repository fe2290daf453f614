"""Noise and encoders: distributions, scopes, gradients."""

import pickle

import pytest
import torch
from beartype import beartype
from jaxtyping import Float, jaxtyped
from scipy.stats import binomtest, chi2, norm

from stochade.errors import BudgetError, UsageError
from stochade.nn import BernoulliRate, GaussianNoise, backward_as, forward_as, scope_of, surrogates


@jaxtyped(typechecker=beartype)
def encode(encoder: BernoulliRate, images: Float[torch.Tensor, "n c h w"]) -> Float[torch.Tensor, "n t c h w"]:
    return encoder(images)


def test_gaussian_moments():
    """Two-sided tests of mean and variance at 1e-6 each, fixed seed."""
    torch.manual_seed(0)
    n = 200000
    noise = (GaussianNoise(0.3)(torch.full((n, 1), 0.5)) - 0.5).double()
    assert abs(float(noise.mean())) < norm.isf(5e-7) * 0.3 / n**0.5
    statistic = float((noise**2).sum()) / 0.3**2
    assert 5e-7 < chi2.sf(statistic, n) < 1 - 5e-7


def test_scope_example_draws_rows_apart_and_scope_call_shares_one_draw():
    torch.manual_seed(0)
    x = torch.zeros(16, 3, 4)
    own, shared = GaussianNoise(1.0), GaussianNoise(1.0, scope="call")
    assert len(own(x).unique(dim=0)) == 16
    assert len(shared(x).unique(dim=0)) == 1
    assert not torch.equal(shared(x), shared(x))
    assert (scope_of(own), scope_of(shared)) == ("example", "call")


@pytest.mark.parametrize("scope", ["example", "call"])
def test_gradient_is_one_and_the_mean_field_is_the_input(scope):
    layer = pickle.loads(pickle.dumps(GaussianNoise(0.5, scope)))
    x = torch.rand(5, 2, requires_grad=True)
    assert torch.autograd.grad(layer(x).sum(), x)[0].eq(1).all()
    with forward_as(layer, {"*": "mean-field"}):
        assert layer(x) is x


def test_noise_is_on_in_training_and_evaluation_and_off_only_at_zero():
    layer = GaussianNoise(0.5).eval()
    x = torch.rand(5, 2)
    assert not torch.equal(layer(x), x)
    assert torch.equal(GaussianNoise(0.0)(x), x)
    for sigma in (-1.0, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="standard deviation"):
            GaussianNoise(sigma)
    with pytest.raises(UsageError, match="scope"):
        GaussianNoise(0.1, "batch")  # type: ignore[arg-type]


def test_rate_codes_fire_with_the_clipped_pixel():
    """Four exact binomial tests at 1e-6 inside the box; outside it firing is certain."""
    torch.manual_seed(0)
    pixels = torch.tensor([-0.5, 0.0, 0.03, 0.4, 0.6, 0.97, 1.0, 1.5])
    codes = encode(BernoulliRate(50), pixels.view(1, 1, 2, 4).expand(200, 1, 2, 4))
    assert codes.shape == (200, 50, 1, 2, 4)
    assert set(codes.unique().tolist()) == {0.0, 1.0}
    fired = codes.sum((0, 1)).flatten().int().tolist()
    assert [fired[0], fired[1], fired[6], fired[7]] == [0, 0, 10000, 10000]
    for count, p in zip(fired[2:6], pixels[2:6].tolist(), strict=True):
        assert binomtest(count, 10000, p).pvalue > 1e-6


def test_rate_codes_are_independent_over_examples_and_time():
    """Equal codes among fair 256-bit rows happen with probability below 1e-70."""
    torch.manual_seed(0)
    codes = BernoulliRate(8)(torch.full((6, 1, 16, 16), 0.5))
    assert len(codes.flatten(0, 1).unique(dim=0)) == 48
    assert scope_of(BernoulliRate(2)) == "example"


def test_rate_backwards_sum_over_time():
    x = torch.tensor([-0.5, 0.0, 0.4, 1.0, 1.5]).view(1, 1, 1, 5).requires_grad_()
    weights = torch.rand(1, 3, 1, 1, 5, generator=torch.Generator().manual_seed(0))
    encoder = pickle.loads(pickle.dumps(BernoulliRate(3)))
    summed = weights.sum(1)

    def gradient():
        return torch.autograd.grad((encoder(x) * weights).sum(), x)[0]

    torch.testing.assert_close(gradient(), summed)
    with backward_as(encoder, {"*": "identity"}):
        torch.testing.assert_close(gradient(), summed)
    inside = summed * torch.tensor([0.0, 1, 1, 1, 0])
    with backward_as(encoder, {"*": "clipped"}):
        torch.testing.assert_close(gradient(), inside)
    with forward_as(encoder, {"*": "mean-field"}):
        torch.testing.assert_close(encoder(x)[:, 2], x.detach().clamp(0, 1))
        torch.testing.assert_close(gradient(), inside)
    with backward_as(encoder, {"*": surrogates.identity()}), pytest.raises(UsageError, match="time axis"):
        encoder(x)
    for steps in (0, -1, 2.5):
        with pytest.raises(BudgetError, match="steps"):
            BernoulliRate(steps)  # type: ignore[arg-type]
