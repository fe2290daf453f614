"""Local winner-takes-all: the law of its draws, its limits, and what each backward says."""

import pickle

import numpy as np
import pytest
import torch
from beartype import beartype
from jaxtyping import Float, jaxtyped
from scipy.special import expit, logit
from scipy.stats import chisquare, entropy, ks_2samp, kstest

from stochade.errors import ModelError, UsageError
from stochade.nn import LWTA, Discrete, backward_as, forward_as, scope_of
from stochade.nn.sampling import gumbel_like, logistic_like


@jaxtyped(typechecker=beartype)
def compete(layer: LWTA, a: Float[torch.Tensor, "n c h w"]) -> Float[torch.Tensor, "n c h w"]:
    return layer(a)


def softmax_of_blocks(a, units, temperature):
    """One example and position at a time, by the definition."""
    out = torch.empty_like(a)
    flat, into = a.detach().flatten(2) if a.ndim > 2 else a.detach()[..., None], out.view(*a.shape[:2], -1)
    for n in range(a.shape[0]):
        for b in range(0, a.shape[1], units):
            for position in range(flat.shape[2]):
                e = torch.exp(
                    (flat[n, b : b + units, position] - flat[n, b : b + units, position].max()) / temperature
                )
                into[n, b : b + units, position] = e / e.sum()
    return out


def noisy_scores(blocks):
    """Scores whose softmax is a draw: of two units only the difference counts, and its noise is logistic."""
    if blocks.shape[2] != 2:
        return blocks + gumbel_like(blocks)
    lead = blocks[:, :, 0] - blocks[:, :, 1] + logistic_like(blocks[:, :, 0])
    return torch.stack((lead, torch.zeros_like(lead)), 2)


def gradient(layer, a, weights, seed=1):
    torch.manual_seed(seed)
    leaf = a.detach().clone().requires_grad_()
    out = layer(leaf)
    return out.detach(), torch.autograd.grad((out * weights).sum(), leaf)[0]


@pytest.mark.parametrize("units", [2, 3, 5])
def test_hard_winners_follow_the_softmax(units):
    """Gumbel-max: unit u wins with probability softmax(a)_u. Chi-square at 1e-6, fixed seed."""
    torch.manual_seed(0)
    a = torch.tensor([0.4, -1.0, 1.3, 0.2, -0.3])[:units] + 0.01
    layer, n = LWTA(units, hard=True).eval(), 50000
    out = layer(a.expand(n, units))
    assert (out != 0).sum(1).eq(1).all()
    assert torch.equal(out[out != 0], a.expand(n, units)[out != 0])
    assert chisquare((out != 0).sum(0).tolist(), (n * torch.softmax(a.double(), 0)).tolist()).pvalue > 1e-6


@pytest.mark.parametrize("recorded", [True, False])
@pytest.mark.parametrize(("training", "temperature"), [(True, 0.67), (False, 0.25)])
def test_two_units_share_by_the_binary_concrete_law(training, temperature, recorded):
    """P(share of the first <= t) = sigmoid(temperature logit t - (a1 - a2)); Kolmogorov-Smirnov at 1e-6."""
    torch.manual_seed(0)
    a = torch.tensor([1.2, 0.5], dtype=torch.float64)
    out = LWTA(2, 0.67, 0.25).train(training)(a.expand(20000, 2).clone().requires_grad_(recorded)).detach()
    share = out[:, 0] / a[0]
    torch.testing.assert_close(share + out[:, 1] / a[1], torch.ones_like(share))
    assert kstest(share.numpy(), lambda t: expit(temperature * logit(t) - 0.7)).pvalue > 1e-6


def test_logistic_noise_is_the_difference_of_two_gumbels(monkeypatch):
    """Softmax over two units sees the difference of their Gumbel variables alone, whose law is the logistic one; both
    ways of drawing it against the distribution function and each other, Kolmogorov-Smirnov at 1e-6."""
    torch.manual_seed(0)
    x = torch.empty(50000, dtype=torch.float64)
    drawn, difference = logistic_like(x), gumbel_like(x) - gumbel_like(x)
    assert kstest(drawn.numpy(), expit).pvalue > 1e-6
    assert kstest(difference.numpy(), expit).pvalue > 1e-6
    assert ks_2samp(drawn.numpy(), difference.numpy()).pvalue > 1e-6
    for end in (0.0, 1 - 2**-24):
        monkeypatch.setattr("stochade.nn.sampling.uniform_like", lambda x, end=end: torch.full_like(x, end))
        assert logistic_like(torch.empty(3)).abs().max() < 17


@pytest.mark.parametrize("shape", [(50, 6), (5, 4, 3, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_draws_are_the_same_with_and_without_a_record(shape, dtype):
    """Up to rounding, which the test temperature multiplies by a hundred; and in any memory layout."""
    a = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    near = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {}
    for layer in (LWTA().eval(), LWTA().train()):
        torch.manual_seed(1)
        plain = layer(a)
        assert plain.is_contiguous()
        torch.testing.assert_close(gradient(layer, a, torch.ones(shape).to(dtype))[0], plain, **near)
        torch.manual_seed(1)
        turned = a.transpose(0, -1).contiguous().transpose(0, -1)
        torch.testing.assert_close(layer(turned), plain, **near)


@pytest.mark.parametrize("units", [2, 3])
def test_divergence_of_winners_by_enumeration(units):
    """KL(softmax(a) || uniform), one block at a time; 0 for equal units, log U for a sure winner."""
    torch.manual_seed(0)
    a, layer = torch.randn(4, 2 * units, 3).double(), LWTA(units)
    found = layer.kl(a)
    assert found.shape == (4, 2, 3)
    for n, b, i in ((n, b, i) for n in range(4) for b in range(2) for i in range(3)):
        block = a[n, b * units : (b + 1) * units, i]
        q = (block.exp() / block.exp().sum()).tolist()
        assert found[n, b, i].item() == pytest.approx(entropy(q, [1 / units] * units), rel=1e-9)
    assert layer.kl(torch.ones(1, units)).abs().max() < 1e-6
    sure = torch.tensor([[1000.0, *[0.0] * (units - 1)]])
    assert layer.kl(sure).item() == pytest.approx(np.log(units))


def test_evaluation_is_soft_at_the_test_temperature_and_nearly_hard():
    """P(share of the winner < 0.99) is P(|logistic| < 0.01 logit 0.99) = 0.023 for equal logits; 0.011 to 0.04 is
    more than 6 standard deviations of 2,000 blocks away on either side."""
    torch.manual_seed(0)
    a = torch.ones(20, 10, 5, 4)
    out = compete(LWTA().eval(), a).unflatten(1, (5, 2))
    undecided = (out.amax(2) < 0.99).float().mean().item()
    assert 0.011 < undecided < 0.04
    assert ((out > 0) & (out < 1)).any()
    assert compete(LWTA().train(), a).unflatten(1, (5, 2)).amax(2).lt(0.99).float().mean() > 0.9


@pytest.mark.parametrize("shape", [(4, 6), (3, 6, 2, 3)])
@pytest.mark.parametrize("units", [2, 3])
def test_noise_free_forwards_are_softmaxes_of_blocks(shape, units):
    torch.manual_seed(0)
    a = torch.randn(shape).double()
    layer = LWTA(units, temperature=0.5)
    for name, temperature in (("mean-field", 1.0), ("soft", 0.5)):
        with forward_as(layer, {"*": name}):
            torch.testing.assert_close(layer(a), a * softmax_of_blocks(a, units, temperature))
    cold = LWTA(units, temperature=1e-6)
    with forward_as(cold, {"*": "soft"}):
        torch.testing.assert_close(cold(a), LWTA(units, stochastic=False)(a))


def test_mean_field_is_the_mean_of_hard_draws():
    """12 means within 6 standard errors: false alarm below 1e-7."""
    torch.manual_seed(0)
    a, n = torch.randn(1, 12).double(), 40000
    draws = LWTA(3, hard=True).eval()(a.expand(n, 12))
    with forward_as(layer := LWTA(3), {"*": "mean-field"}):
        mean = layer(a)
    assert ((draws.mean(0) - mean[0]).abs() < 6 * draws.std(0) / n**0.5 + 1e-12).all()


def test_deterministic_winner_by_brute_force():
    torch.manual_seed(0)
    a, weights = torch.randn(5, 8, 2, 2), torch.rand(5, 8, 2, 2)
    layer = LWTA(4, stochastic=False)
    out, g = gradient(layer, a, weights)
    for n, b, i, j in ((n, b, i, j) for n in range(5) for b in (0, 4) for i in range(2) for j in range(2)):
        block = a[n, b : b + 4, i, j].tolist()
        winner = block.index(max(block))
        assert out[n, b : b + 4, i, j].tolist() == [v if k == winner else 0 for k, v in enumerate(block)]
    assert torch.equal(g, weights * (out != 0))
    assert scope_of(layer.eval()) == "none"
    assert torch.equal(layer(a), out)
    assert layer(torch.ones(1, 4)).tolist() == [[1, 0, 0, 0]]  # the first of equals
    assert "warm" not in layer.substitutes


@pytest.mark.parametrize("units", [2, 4])
@pytest.mark.parametrize("training", [True, False])
def test_own_backward_is_the_derivative_of_its_own_draw(training, units):
    torch.manual_seed(0)
    a, weights = torch.randn(6, 4, 3, 3).double(), torch.rand(6, 4, 3, 3).double()
    layer = LWTA(units, 0.67, 0.3).train(training)
    out, g = gradient(layer, a, weights)
    torch.manual_seed(1)
    leaf = a.clone().requires_grad_()
    blocks = leaf.unflatten(1, (-1, units))
    reference = blocks * torch.softmax(noisy_scores(blocks) / (0.67 if training else 0.3), 2)
    torch.testing.assert_close(out, reference.flatten(1, 2))
    torch.testing.assert_close(g, torch.autograd.grad((reference.flatten(1, 2) * weights).sum(), leaf)[0])


@pytest.mark.parametrize("hard", [True, False])
def test_warm_backward_takes_the_noise_of_the_forward(hard):
    """y = a * (xi + s - s.detach()), s the same draw at 0.67; the forward is that of the plain layer bit for bit."""
    torch.manual_seed(0)
    a, weights = torch.randn(6, 4).double(), torch.rand(6, 4).double()
    layer = LWTA(2, hard=hard).eval()
    plain, _ = gradient(layer, a, weights)
    with backward_as(layer, {"*": "warm"}):
        out, g = gradient(layer, a, weights)
    assert torch.equal(out, plain)
    torch.manual_seed(1)
    leaf = a.clone().requires_grad_()
    blocks = leaf.unflatten(1, (2, 2))
    scores = noisy_scores(blocks)
    xi, s = torch.softmax(scores / 0.01, 2).detach(), torch.softmax(scores / 0.67, 2)
    if hard:
        xi = (xi == xi.amax(2, keepdim=True)).double()
    reference = (blocks * (xi + s - s.detach())).flatten(1, 2)
    torch.testing.assert_close(g, torch.autograd.grad((reference * weights).sum(), leaf)[0])
    if hard:  # its own backward is the same at the test temperature
        _, own = gradient(layer, a, weights)
        cold = torch.softmax(scores / 0.01, 2)
        reference = (blocks * (xi + cold - cold.detach())).flatten(1, 2)
        torch.testing.assert_close(own, torch.autograd.grad((reference * weights).sum(), leaf)[0])


@pytest.mark.parametrize(("name", "temperature"), [("soft", 0.67), ("mean-field", 1.0)])
@pytest.mark.parametrize("options", [{}, {"hard": True}, {"stochastic": False}])
def test_noise_free_backwards(name, temperature, options):
    torch.manual_seed(0)
    a, weights = torch.randn(6, 4).double(), torch.rand(6, 4).double()
    layer = LWTA(2, **options).eval()
    plain, _ = gradient(layer, a, weights)
    with backward_as(layer, {LWTA: name}):
        out, g = gradient(layer, a, weights)
    assert torch.equal(out, plain)
    xi = softmax_of_blocks(a, 2, temperature)
    total = (weights * a * xi).unflatten(1, (2, 2)).sum(2, keepdim=True).expand(6, 2, 2).flatten(1)
    torch.testing.assert_close(g, xi * weights + xi * (weights * a - total) / temperature)  # the softmax's Jacobian


def test_examples_and_positions_have_noise_of_their_own():
    """64 fair blocks per row or position: equal ones have probability below 1e-15."""
    torch.manual_seed(0)
    out = LWTA(hard=True).eval()(torch.ones(8, 128, 3, 3))
    assert len(out.unique(dim=0)) == 8
    assert len(out.flatten(2).transpose(0, 2).unique(dim=0)) == 9
    assert scope_of(LWTA().eval()) == scope_of(LWTA()) == "example"
    a = torch.randn(5, 4, requires_grad=True)
    g = torch.autograd.grad(LWTA()(a)[2].sum(), a)[0]
    assert g[2].ne(0).all()
    assert g[[0, 1, 3, 4]].eq(0).all()


def test_own_gradient_of_a_stack_is_large_and_says_nothing():
    """Eight layers on activations of unit size, as batch norm gives: at 0.01 the gradients of two draws have a cosine
    near 0 and norms tens of times those of the mean field. Fixed seed; the bounds have room."""
    torch.manual_seed(0)
    layers = []
    for _ in range(8):
        linear = torch.nn.Linear(64, 64)
        torch.nn.init.normal_(linear.weight, std=(2 / 64) ** 0.5)
        layers += [linear, torch.nn.BatchNorm1d(64), LWTA()]
    model, x, direction = torch.nn.Sequential(*layers), torch.randn(200, 64), torch.randn(64)
    for _ in range(50):  # settle the running statistics
        model(x)
    model.eval()
    first, second = (gradient(model, x, direction, seed)[1] for seed in (1, 2))
    assert abs(torch.cosine_similarity(first, second).mean()) < 0.05
    with forward_as(model, {"*": "mean-field"}):
        mean_field = gradient(model, x, direction)[1]
    assert first.norm(dim=1).median() > 10 * mean_field.norm(dim=1).median()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_types_pickling_and_state(dtype):
    layer = pickle.loads(pickle.dumps(LWTA(2, hard=True))).eval()
    a = (torch.randn(5, 6, generator=torch.Generator().manual_seed(0)) * 1000).to(dtype)  # a / 0.01 is no half
    torch.manual_seed(0)
    out = layer(a)
    assert out.dtype == dtype
    torch.manual_seed(0)
    assert torch.equal(LWTA(2, hard=True).eval()(a), out)
    with backward_as(layer, {"*": "warm"}):  # found by kind, not by identity
        assert gradient(layer, a.double(), torch.ones(5, 6))[1].isfinite().all()
    assert torch.isfinite(LWTA(2).eval()(a)).all()
    assert not layer.state_dict()
    assert isinstance(layer, Discrete)
    assert layer(a[:0]).shape == (0, 6)


def test_gumbel_moments():
    """Mean 0.5772 and variance pi^2/6 of 10^6 draws within 6 standard errors; finite for every uniform number."""
    torch.manual_seed(0)
    g = gumbel_like(torch.empty(1000, 1000)).double()
    assert torch.isfinite(g).all()
    assert abs(g.mean().item() - 0.5772156649) < 6 * 1.2825e-3
    assert abs(g.var().item() - 1.6449340668) < 6 * (4.4 * 1.6449340668**2 / 1e6) ** 0.5  # excess kurtosis 12/5
    assert gumbel_like(torch.empty(3, dtype=torch.bfloat16)).dtype == torch.float32


def test_errors():
    for units in (1, 0, 2.0, True):
        with pytest.raises(UsageError, match="two units"):
            LWTA(units)  # type: ignore[arg-type]
    for value in (0.0, -1.0, float("nan"), float("inf"), "hot"):
        with pytest.raises(UsageError, match="a positive temperature"):
            LWTA(2, value)  # type: ignore[arg-type]
        with pytest.raises(UsageError, match="a positive test_temperature"):
            LWTA(2, 0.67, value)  # type: ignore[arg-type]
    for shape in ((4, 5), (6,), (2, 3, 4, 4)):
        with pytest.raises(ModelError, match="multiple of 2"):
            LWTA(2)(torch.rand(shape))
