"""Gaussian weights and block utilities: laws of the draws, and every divergence against numerical integration."""

import math
import pickle

import numpy as np
import pytest
import torch
from scipy.integrate import dblquad, quad
from scipy.special import expit, logit
from scipy.stats import kstest, norm

from stochade.errors import ModelError, UsageError
from stochade.nn import backward_as, forward_as, scope_of
from stochade.nn.bayesian import (
    BlockUtility,
    GaussianConv2d,
    GaussianLinear,
    kl_gaussian,
    kl_kumaraswamy,
    kumaraswamy_log,
    kumaraswamy_mean_log,
)

SHAPES = [(2.127, 1.003), (0.7, 3.0), (5.0, 0.4)]  # the first is where training starts


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def double(*values):
    return [torch.tensor(v, dtype=torch.float64) for v in values]


def kumaraswamy(u, a, b):
    return a * b * u ** (a - 1) * (1 - u**a) ** (b - 1)


def integral(f, a, b):
    """E f(u) under Kumaraswamy(a, b), over the quantile x, where nothing is singular but at the ends."""
    return quad(lambda x: f((1 - x ** (1 / b)) ** (1 / a)), 0, 1, limit=500)[0]


@pytest.mark.parametrize(("a", "b"), SHAPES)
def test_draws_of_sticks_follow_the_distribution_function(a, b):
    """P(u <= t) = 1 - (1 - t^a)^b; Kolmogorov-Smirnov at 1e-6."""
    u = kumaraswamy_log(*double([a] * 20000, [b] * 20000)).exp()
    assert kstest(u.numpy(), lambda t: 1 - (1 - t**a) ** b).pvalue > 1e-6


@pytest.mark.parametrize(("a", "b"), SHAPES)
@pytest.mark.parametrize("alpha", [1.0, 0.3, 4.0])
def test_divergence_of_sticks_by_integration(a, b, alpha):
    assert kumaraswamy_mean_log(*double(a, b)).item() == pytest.approx(integral(math.log, a, b), rel=1e-5)
    wanted = integral(
        lambda u: math.log(max(kumaraswamy(u, a, b), 1e-300)) - math.log(alpha) - (alpha - 1) * math.log(u), a, b
    )
    assert kl_kumaraswamy(*double(a, b), alpha).item() == pytest.approx(wanted, rel=1e-4, abs=1e-6)
    assert kl_kumaraswamy(*double(alpha, 1.0), alpha).item() == pytest.approx(0, abs=1e-12)  # the prior itself


@pytest.mark.parametrize(("mean", "sigma"), [(0.0, 1.0), (0.3, 0.0067), (-2.0, 1.7)])
def test_divergence_of_weights_by_integration(mean, sigma):
    def integrand(w):
        return norm.pdf(w, mean, sigma) * (norm.logpdf(w, mean, sigma) - norm.logpdf(w))

    wanted = quad(integrand, mean - 10 * sigma, mean + 10 * sigma)[0]
    assert kl_gaussian(*double(mean, sigma)).item() == pytest.approx(wanted, rel=1e-6, abs=1e-9)


def bernoulli_kl(q, pi):
    return q * math.log(q / pi) + (1 - q) * math.log((1 - q) / (1 - pi))


def utilities(blocks, a=None, b=None, q=None, **options):
    layer = BlockUtility(blocks, 2, **options).double()
    with torch.no_grad():
        for parameter, values in ((layer.raw_a, a), (layer.raw_b, b)):
            if values is not None:
                parameter.copy_(torch.log(torch.expm1(torch.tensor(values, dtype=torch.float64))))
        if q is not None:
            layer.logits.copy_(torch.logit(torch.tensor(q, dtype=torch.float64)))
    return layer


def test_divergence_of_utilities_by_integration():
    """KL_z = E_u KL(Bernoulli(q_k) || Bernoulli(u_1 ... u_k)) in two dimensions, the mean of 40,000 estimates within
    6 standard errors (false alarm 2e-9), which is less than 1 % of it."""
    a, b, q = [1.5, 2.5], [1.2, 0.8], [0.7, 0.2]
    layer = utilities(2, a, b, q)
    first = integral(lambda u: bernoulli_kl(q[0], min(max(u, 1e-12), 1 - 1e-12)), a[0], b[0])
    second = dblquad(
        lambda v, u: kumaraswamy(u, a[0], b[0]) * kumaraswamy(v, a[1], b[1]) * bernoulli_kl(q[1], u * v),
        *(1e-9, 1 - 1e-9, 1e-9, 1 - 1e-9),
        epsabs=1e-4,
    )[0]
    with torch.no_grad():
        estimates = torch.stack([layer.kl_utilities() for _ in range(40000)])
    error = estimates.std().item() / 200
    assert error < 0.01 * (first + second)
    assert abs(estimates.mean().item() - first - second) < 6 * error + 2e-3
    assert layer.kl_sticks().item() == pytest.approx(
        sum(kl_kumaraswamy(*double(x, y), 1.0).item() for x, y in zip(a, b, strict=True))
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_divergences_stay_finite_at_the_ends(dtype):
    layer = utilities(50, [30.0] * 50, [0.01] * 50).to(dtype)
    with torch.no_grad():
        layer.logits.copy_(torch.linspace(-100, 100, 50))
    total = layer.kl_utilities() + layer.kl_sticks()
    total.backward()
    assert torch.isfinite(total)
    assert all(torch.isfinite(p.grad).all() for p in layer.parameters())


@pytest.mark.parametrize(("training", "temperature"), [(True, 0.67), (False, 0.3)])
def test_utilities_follow_the_binary_concrete_law(training, temperature):
    """P(z <= t) = sigmoid(temperature logit t - logit q) per block; Kolmogorov-Smirnov at 1e-6."""
    layer = utilities(2, q=[0.8, 0.3], test_temperature=0.3).train(training)
    out = layer(torch.ones(20000, 4, 2, dtype=torch.float64)).detach()
    assert torch.equal(out, out[:, [1, 1, 2, 2], :1].expand_as(out))  # a block and its positions share one utility
    for column, q in ((0, 0.8), (2, 0.3)):
        z = out[:, column, 0].numpy()
        assert kstest(z, lambda t, q=q: expit(temperature * logit(t) - logit(q))).pvalue > 1e-6
    assert abs(np.corrcoef(out[:, 0, 0].numpy(), out[:, 2, 0].numpy())[0, 1]) < 6 / 20000**0.5


@pytest.mark.parametrize("test", ["mean", "sample"])
def test_evaluation_cuts_unused_blocks_off(test):
    layer = utilities(3, q=[0.9, 0.009, 0.011], test=test)
    x = torch.ones(4000, 6, dtype=torch.float64)
    out = layer.eval()(x).detach()
    assert (out[:, 2:4] == 0).all()
    assert scope_of(layer) == ("none" if test == "mean" else "example")
    if test == "mean":
        torch.testing.assert_close(out[0], double([0.9, 0.9, 0, 0, 0.011, 0.011])[0])
        assert scope_of(layer.train()) == "example"
    else:  # nearly Bernoulli: 4,000 draws within 6 standard errors
        assert abs(out[:, 0].mean().item() - 0.9) < 6 * 0.3 / 4000**0.5
        assert abs(out[:, 4].mean().item() - 0.011) < 6 * 0.105 / 4000**0.5
    assert (layer.train()(x)[:, 2:4] > 0).any()  # training does not cut


@pytest.mark.parametrize("sampling", ["local", "example", "call"])
def test_dense_outputs_are_gaussian_and_independent(sampling):
    """Given the input, out ~ N(W x, sigma^2 |x|^2) with independent outputs; KS at 1e-6, correlation within 6
    standard errors. Rows of one call agree under "call" only."""
    layer = GaussianLinear(3, 2, sampling=sampling).double()
    torch.nn.init.constant_(layer.raw_sigma, 0.3)
    with torch.no_grad():
        layer.bias.copy_(torch.tensor([1.0, -1.0]))
    x = torch.tensor([[0.5, -2.0, 1.0]], dtype=torch.float64)
    with torch.no_grad():
        many = [layer(x) for _ in range(4000)] if sampling == "call" else [layer(x.expand(4000, 3))]
        out = torch.cat(many).numpy()
        mean = (x @ layer.weight.T + layer.bias)[0].tolist()
        together = layer(x.expand(5, 3))
    scale = math.log1p(math.exp(0.3)) * x.norm().item()
    for k in range(2):
        assert kstest(out[:, k], norm(mean[k], scale).cdf).pvalue > 1e-6
    assert abs(np.corrcoef(out.T)[0, 1]) < 6 / 4000**0.5
    assert len(together.unique(dim=0)) == (1 if sampling == "call" else 5)
    assert scope_of(layer) == ("call" if sampling == "call" else "example")


def test_convolution_outputs_have_their_law_and_joint_law():
    """Marginals are N(W * x, sigma^2 * x^2) for every sampling; positions share weights under "example" only."""
    x = torch.rand(1, 2, 3, 3, dtype=torch.float64) + 0.5
    for sampling, joint in (("local", False), ("example", True)):
        layer = GaussianConv2d(2, 1, 3, padding=1, sampling=sampling).double()
        torch.nn.init.constant_(layer.raw_sigma, 0.0)
        with torch.no_grad():
            out = layer(x.expand(6000, -1, -1, -1))[:, 0].flatten(1)
            mean = torch.nn.functional.conv2d(x, layer.weight, padding=1).flatten()
            square = torch.ones_like(layer.weight) * math.log(2) ** 2
            scale = torch.nn.functional.conv2d(x.square(), square, padding=1).sqrt().flatten()
        for k in (0, 4, 8):
            assert kstest(out[:, k].numpy(), norm(mean[k].item(), scale[k].item()).cdf).pvalue > 1e-6
        together = np.corrcoef(out.T.numpy())[4]
        assert (np.abs(together[[1, 3, 5, 7]]) > 0.3).all() == joint
        if not joint:
            assert np.abs(np.delete(together, 4)).max() < 6 / 6000**0.5


@pytest.mark.parametrize("sampling", ["local", "example", "call"])
def test_gradients_reach_mean_and_sigma(sampling):
    """E (w x)^2 = (m x)^2 + s^2 x^2: mean gradients of 20,000 draws within 6 standard errors of 2 m x^2, 2 s x^2."""
    n, x, raw = 20000, 1.5, 0.2
    layer = GaussianLinear(1, 1, bias=False, sampling=sampling).double()
    torch.nn.init.constant_(layer.weight, 0.7)
    torch.nn.init.constant_(layer.raw_sigma, raw)
    if sampling == "call":
        n = 2000
        losses = torch.stack([layer(torch.tensor([[x]], dtype=torch.float64)).square().sum() for _ in range(n)])
    else:
        losses = layer(torch.full((n, 1), x, dtype=torch.float64)).square()
    losses.mean().backward()
    sigma, slope = math.log1p(math.exp(raw)), 1 / (1 + math.exp(-raw))
    spread = 2 * x * x * (2 * sigma + 2 * sigma**2 + 0.7)  # above the standard deviation of one gradient
    assert abs(layer.weight.grad.item() - 2 * 0.7 * x * x) < 6 * spread / n**0.5
    assert abs(layer.raw_sigma.grad.item() - 2 * sigma * x * x * slope) < 6 * spread / n**0.5
    assert layer.kl_weights().item() == pytest.approx(kl_gaussian(*double(0.7, sigma)).item())


LAYERS = {
    "utility": (lambda **o: BlockUtility(3, 2, **o), (5, 6, 2, 2)),
    "dense": (lambda **o: GaussianLinear(6, 4, **o), (5, 6)),
    "convolution": (lambda **o: GaussianConv2d(6, 4, 3, **o), (5, 6, 4, 4)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_mean_field_swaps_and_pickles(name):
    make, shape = LAYERS[name]
    layer, x = make().eval(), torch.randn(shape)
    quiet = make(test="mean").eval()
    quiet.load_state_dict(layer.state_dict())
    with forward_as(layer, {"*": "mean-field"}):
        assert torch.equal(layer(x), quiet(x))
    leaf = x.clone().requires_grad_()
    torch.manual_seed(1)
    plain = layer(x)
    torch.manual_seed(1)
    with backward_as(layer, {"*": "mean-field"}):
        out = layer(leaf)
    torch.testing.assert_close(out, plain)
    slope = torch.autograd.grad(out.sum(), leaf)[0]
    torch.testing.assert_close(slope, torch.autograd.grad(quiet(leaf).sum(), leaf)[0])
    again = pickle.loads(pickle.dumps(layer))
    torch.manual_seed(1)
    assert torch.equal(again(x), plain)
    with torch.no_grad():  # the copy's relaxed forward is that of the copy
        for parameter in again.parameters():
            parameter.zero_()
    with forward_as(again, {"*": "mean-field"}):
        assert not torch.equal(again(x), quiet(x))
    assert scope_of(quiet) == "none"
    assert torch.equal(quiet(x), quiet(x))


def test_dead_inputs_have_finite_gradients():
    layer = GaussianLinear(4, 3)
    layer(torch.zeros(2, 4, requires_grad=True)).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in layer.parameters())


def test_errors():
    with pytest.raises(UsageError, match="one block"):
        BlockUtility(0)
    for option in ("alpha", "temperature", "test_temperature"):
        with pytest.raises(UsageError, match=f"positive {option}"):
            BlockUtility(2, **{option: 0.0})
    with pytest.raises(UsageError, match="cut-off"):
        BlockUtility(2, cut_off=1.0)
    with pytest.raises(UsageError, match="a test"):
        BlockUtility(2, test="best")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="a sampling"):
        GaussianLinear(2, 2, sampling="batch")  # type: ignore[arg-type]
    with pytest.raises(ModelError, match=r"\[N, 6"):
        BlockUtility(3)(torch.rand(2, 4))
