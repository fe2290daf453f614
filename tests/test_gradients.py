"""Gradients against closed forms: expectation over randomness, tiling, substitutes, evolution strategies."""

import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp
from torch import nn

from counting import Recording
from stochade.attacks import Backprop, Evolution, cross_entropy, margin
from stochade.attacks.gradients import check_logits
from stochade.errors import BudgetError, GradientError, LogitsError, UsageError
from stochade.models.known_answer import BernoulliLinear, KnownAnswer, NoisyLinear, ThresholdedInput
from stochade.nn.discrete import Scope, discrete_layers
from stochade.randomness import Stream, forked


def data(count: int = 5, pixels: int = 9, seed: int = 0):
    g = torch.Generator().manual_seed(seed)
    side = int(pixels**0.5)
    x = torch.rand(count, 1, side, side, generator=g)
    return x, torch.randint(0, 2, (count,), generator=g)


def weight(pixels: int = 9, seed: int = 1) -> torch.Tensor:
    return torch.randn(pixels, generator=torch.Generator().manual_seed(seed))


def cosine(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return nn.functional.cosine_similarity(a.flatten(1), b.flatten(1), dim=1)


def expected_slope(model: NoisyLinear, x: torch.Tensor, y: torch.Tensor) -> np.ndarray:
    """E[sigmoid(-s (m + sigma g))], by Gauss-Hermite quadrature: the gradient of E[cross-entropy] is -s w times
    this."""
    nodes, mass = np.polynomial.hermite_e.hermegauss(80)
    s, m = (2 * y - 1).numpy(), model.margin(x).detach().double().numpy()
    inner = s[:, None] * (m[:, None] + model.noise.sigma * nodes)
    return ((1 / (1 + np.exp(inner))) * mass).sum(1) / mass.sum()


@pytest.mark.parametrize("scope", ["example", "call"])
def test_backprop_averages_over_the_models_noise(scope):
    """Tiled (example) and looped (call): both reach the quadrature. 5 standard errors: 3e-6 false alarms."""
    model, draws = NoisyLinear(weight(), 0.1, 1.5, scope), 3000
    x, y = data()
    with forked(0):
        got = Backprop(draws)(model, x, y, cross_entropy)
    slope = expected_slope(model, x, y)
    s = (2 * y - 1).double().numpy()
    ratio = (got.gradient.flatten(1) @ model.weight / model.weight.square().sum()).detach().numpy()
    assert np.abs(ratio + s * slope).max() < 5 * 0.5 / draws**0.5
    torch.testing.assert_close(cosine(got.gradient, model.weight.detach().expand(5, 9)).abs(), torch.ones(5))
    assert got.logits.shape == (draws, 5, 2)
    assert got.value.shape == (5,)


def test_tiled_and_looped_draws_have_one_distribution():
    """Two-sample Kolmogorov-Smirnov on 1500 single-draw gradients per way, level 1e-4, fixed seeds."""
    model = NoisyLinear(weight(), 0.1, 1.5, "example")
    x, y = data(1)

    def first_pixels(model, seed):
        with forked(seed):
            logits = Backprop(1500)(model, x, y, cross_entropy).logits
        return (logits[:, 0, 1] - logits[:, 0, 0]).numpy()

    tiled, looped = first_pixels(model, 0), first_pixels(Recording(model, "unknown"), 1)
    assert ks_2samp(tiled, looped).pvalue > 1e-4
    assert len(np.unique(tiled)) > 1490  # no draw is used twice


@pytest.mark.parametrize(
    ("scope", "calls"),
    [("none", [35]), ("example", [35]), ("call", [5] * 7), ("unknown", [5] * 7)],
)
def test_only_noise_per_example_is_tiled(scope, calls):
    model = Recording(KnownAnswer(weight()), scope)
    Backprop(7)(model, *data(), cross_entropy)
    assert model.log.rows == calls


def test_an_undeclared_model_is_looped():
    model = Recording(KnownAnswer(weight()), "unknown")
    Backprop(4)(lambda x: model(x), *data(), cross_entropy)
    assert model.log.rows == [5] * 4


def test_tiles_stay_below_the_limit_and_every_draw_is_made():
    model = Recording(KnownAnswer(weight()), "example")
    out = Backprop(10, tile=20)(model, *data(), cross_entropy)
    assert model.log.rows == [20, 20, 10]
    assert len(out.logits) == 10
    one = Backprop(1)(model, *data(), cross_entropy)
    torch.testing.assert_close((out.value, out.gradient), (one.value, one.gradient))


class SharedMultiplier(nn.Module):
    """Weights w + sigma n, with n shared by the whole call: its gradient is wrong by the one draw it saw."""

    def __init__(self, w: torch.Tensor, sigma: float, scope: Scope):
        super().__init__()
        self.weight, self.sigma, self.scope = nn.Parameter(w), sigma, scope

    def forward(self, x):
        m = x.flatten(1) @ (self.weight + self.sigma * torch.randn_like(self.weight))
        return torch.stack([-m / 2, m / 2], 1)


def test_per_call_noise_must_be_looped():
    """50 draws tiled see one draw of per-call noise: the cosine to the true gradient is 1/sqrt(1 + r), about 0.18
    for a noise-to-signal ratio r = 30; looped 1/sqrt(1 + r/50) = 0.79."""
    pixels, ratio = 1024, 30.0
    w = weight(pixels)
    w = w / w.norm()
    x, y = data(4, pixels)
    found = {}
    for scope in ("call", "example"):
        model = SharedMultiplier(w, (ratio / pixels) ** 0.5, scope)
        with forked(0):
            g = Backprop(50)(model, x, y, margin).gradient
        sign = (1 - 2 * y).float()[:, None]
        found[scope] = float(cosine(g, sign * w).mean())
    assert found["call"] == pytest.approx((1 + ratio / 50) ** -0.5, abs=0.1)
    assert found["example"] == pytest.approx((1 + ratio) ** -0.5, abs=0.1)


def test_substitutes_give_another_backward_and_are_taken_back():
    model = ThresholdedInput(weight())
    x, y = data()
    zero = Backprop()(model, x, y, margin)
    assert not bool(zero.gradient.any())
    ste = Backprop(substitutes="ste")(model, x, y, margin)
    sign = (1 - 2 * y).float()[:, None]
    torch.testing.assert_close(ste.gradient.flatten(1), sign * model.weight.detach())
    assert torch.equal(ste.logits, zero.logits)  # the forward is the real one
    assert not bool(Backprop()(model, x, y, margin).gradient.any())


def test_relaxed_forwards_are_differentiated_and_taken_back():
    """The mean field of the Bernoulli code is the image itself: the margin of a plain linear model."""
    model = BernoulliLinear(weight())
    x, y = data()
    out = Backprop(relaxed="mean-field")(model, x, y, cross_entropy)
    plain = Backprop()(KnownAnswer(weight()), x, y, cross_entropy)
    torch.testing.assert_close((out.value, out.gradient, out.logits), (plain.value, plain.gradient, plain.logits))
    assert all(layer._forward is None for layer in discrete_layers(model).values())
    with forked(0):
        assert not torch.equal(model(x), model(x))


def test_swaps_are_taken_back_after_an_exception():
    model = ThresholdedInput(weight())

    def fails(logits, y):
        raise KeyError

    for gradient in (Backprop(substitutes="ste"), Backprop(relaxed={"threshold": "warm"})):
        with pytest.raises(KeyError):
            gradient(model, *data(), fails)
    (layer,) = discrete_layers(model).values()
    assert layer._backward is None
    assert layer._forward is None


def test_a_substitute_nobody_declares_is_refused_by_name():
    with pytest.raises(UsageError, match="threshold"):
        Backprop(substitutes={"nothing": "ste"})(ThresholdedInput(weight()), *data(), margin)


class Nets(nn.Module):
    """A smooth nonlinear model with a gradient that differs from example to example."""

    scope: Scope = "none"

    def __init__(self, pixels: int = 16):
        super().__init__()
        g = torch.Generator().manual_seed(5)
        self.a = nn.Parameter(torch.randn(pixels, 8, generator=g) / 2)
        self.b = nn.Parameter(torch.randn(8, 3, generator=g))

    def forward(self, x):
        return torch.tanh(x.flatten(1) @ self.a) @ self.b


def test_evolution_points_along_the_gradient_of_every_example_whatever_the_batch():
    """Other libraries share one mean loss over the batch: their cosine falls from 0.78 to 0.07 as it grows. With P
    pairs in D dimensions the expected cosine is about sqrt(P / (P + D)) = 0.96."""
    model, es = Nets(), Evolution(pairs=200, sigma=0.01)
    x, y = data(64, 16)
    true = Backprop()(model, x, y, cross_entropy).gradient
    ids = torch.arange(64)
    whole = es(model, x, y, cross_entropy, stream=Stream(0, ids)).gradient
    assert float(cosine(whole, true).min()) > 0.85
    assert float(cosine(whole, true).mean()) > 0.93
    for i in (0, 17, 63):
        alone = es(model, x[i : i + 1], y[i : i + 1], cross_entropy, stream=Stream(0, ids[i : i + 1])).gradient
        torch.testing.assert_close(alone[0], whole[i], atol=2e-3, rtol=1e-2)


def test_evolution_is_unbiased_and_needs_no_derivative():
    """On a linear margin each pair gives u <w, u>, of mean w and variance w_i^2 + |w|^2 per pixel. 5 standard
    errors on 45 numbers: 3e-5 false alarms."""
    model, pairs = KnownAnswer(weight()), 4000
    x, y = data()
    out = Evolution(pairs=pairs)(model, x, y, margin, stream=Stream(0, torch.arange(5)))
    w = model.weight.detach()
    wanted = (1 - 2 * y).float()[:, None] * w
    error = ((w.square() + w.square().sum()) / pairs).sqrt()
    assert bool(((out.gradient.flatten(1) - wanted).abs() < 5 * error).all())


@pytest.mark.parametrize("scope", ["example", "unknown"])
def test_evolution_costs_what_it_says(scope):
    model, es = Recording(KnownAnswer(weight()), scope), Evolution(pairs=6, draws=2)
    es(model, *data(), margin, stream=Stream(0, torch.arange(5)))
    assert sum(model.log.rows) == 5 * es.forwards == 5 * 14
    assert es.backwards == 0


def test_tiling_does_not_change_evolution():
    model, x, y = Nets(), *data(5, 16)
    wide = Evolution(pairs=7)(model, x, y, margin, stream=Stream(0, torch.arange(5)))
    narrow = Evolution(pairs=7, tile=20)(model, x, y, margin, stream=Stream(0, torch.arange(5)))
    torch.testing.assert_close(wide.gradient, narrow.gradient, atol=1e-4, rtol=1e-4)


def test_gradients_that_are_not_finite_become_numbers():
    class Broken(nn.Module):
        def forward(self, x):
            flat = x.flatten(1)
            root = (flat[:, :1] - flat[:, :1]).abs().sqrt()  # derivative inf * 0 = NaN
            steep = (flat[:, 1:2] - flat[:, 1:2].detach()).sqrt()  # derivative +inf
            return torch.cat([root + flat[:, 2:3], steep], 1)

    x, y = data()
    g = Backprop()(Broken(), x, torch.zeros_like(y), margin).gradient.flatten(1)
    assert torch.isfinite(g).all()
    assert bool((g[:, 0] == 0).all())
    assert bool((g[:, 1] > 1e20).all())


def test_missing_gradients_are_named():
    class Detached(nn.Module):
        def forward(self, x):
            return torch.stack([x.detach().flatten(1).sum(1), x.detach().flatten(1).amax(1)], 1)

    class Elsewhere(Detached):
        def __init__(self):
            super().__init__()
            self.bias = nn.Parameter(torch.zeros(2))

        def forward(self, x):
            return super().forward(x) + self.bias

    for model in (Detached(), Elsewhere()):
        with pytest.raises(GradientError, match="Evolution"):
            Backprop()(model, *data(), margin)


def test_a_graph_kept_from_an_earlier_call_does_not_reach_the_gradient():
    """Membranes carried over undetached make other libraries go backward through a freed graph."""

    class Charged(nn.Module):
        def __init__(self):
            super().__init__()
            self.v = torch.zeros(())

        def forward(self, x):
            self.v = self.v + (x**2).flatten(1).sum(1)
            return torch.stack([self.v, -self.v], 1)

    x, y = data()
    out = Backprop(3)(Charged(), x, torch.zeros_like(y), margin)
    torch.testing.assert_close(out.gradient, -4 * x)


@pytest.mark.parametrize("wrong", [0, -1, 1.5, "20", None, True])
def test_draws_and_pairs_that_make_no_sense_are_refused(wrong):
    for make in (Backprop, Evolution, lambda n: Evolution(draws=n)):
        with pytest.raises(BudgetError):
            make(wrong)


@pytest.mark.parametrize("sigma", [0, -1, float("nan"), float("inf"), "a"])
def test_evolution_needs_a_scale_and_a_stream(sigma):
    with pytest.raises(BudgetError):
        Evolution(sigma=sigma)
    with pytest.raises(BudgetError):
        Evolution()(KnownAnswer(weight()), *data(), margin)


def test_check_logits_names_what_is_wrong():
    for bad in (torch.zeros(3), torch.zeros(4, 2), torch.zeros(5, 2, 1), "logits", torch.full((5, 2), float("nan"))):
        with pytest.raises(LogitsError):
            check_logits(bad, 5)
    good = torch.zeros(5, 2)
    assert check_logits(good, 5) is good
