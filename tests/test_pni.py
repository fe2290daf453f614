"""Parametric noise injection: the law of the noise, whose draw it is, what is trained, what an attacker may put."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from scipy.stats import chi2, kstest, norm
from torch import nn

from stochade import checkpoint
from stochade.errors import ModelError, UsageError
from stochade.models.plain import CNN2, MLP
from stochade.models.pni import PNICNN, with_parametric_noise
from stochade.nn import backward_as, forward_as, scope_of, surrogates
from stochade.nn.pni import ON, ParametricNoise, PNIConv2d, PNILinear
from stochade.registry import build
from stochade.train.optimizers import optimizer_named, parameter_groups

SCOPES = ("example", "call")


def layers(on="weights", scope="example", alpha=0.5):
    torch.manual_seed(0)
    return [
        (PNILinear(nn.Linear(6, 5), on, alpha, scope), torch.rand(4, 6)),
        (PNILinear(nn.Linear(6, 5, bias=False), on, alpha, scope), torch.rand(4, 3, 6)),
        (PNIConv2d(nn.Conv2d(2, 5, 3, 2, 1), on, alpha, scope), torch.rand(4, 2, 7, 7)),
        (PNIConv2d(nn.Conv2d(4, 5, 3, bias=False), on, alpha, scope), torch.rand(4, 4, 7, 7)),
    ]


@pytest.mark.parametrize("scope", SCOPES)
def test_noise_has_the_spread_of_its_own_tensor(scope):
    """Mean and variance by two-sided tests at 1e-6 each, fixed seed: alpha * std(x), std as in equation 3."""
    torch.manual_seed(0)
    layer = ParametricNoise(0.25, scope)
    x = torch.stack([torch.randn(100000) * 3 + 7, torch.randn(100000)]).double()
    with torch.no_grad():
        noise = layer(x) - x
    std = x.std(1, correction=0) if scope == "example" else x.std(correction=0).expand(2)
    for row, deviation in zip(noise, std, strict=True):
        z = row / (0.25 * deviation)
        assert abs(float(z.mean())) < norm.isf(5e-7) / 1e5**0.5
        assert 5e-7 < chi2.sf(float((z**2).sum()), 100000) < 1 - 5e-7
        assert kstest(z.numpy()[::10], "norm").pvalue > 1e-6
    assert (noise[0] / noise[1] - std[0] / std[1]).abs().max() < 1e-9 or scope == "example"
    if scope == "example":
        assert abs(float(torch.corrcoef(noise)[0, 1])) < norm.isf(5e-7) / 1e5**0.5


def test_the_deviation_is_that_of_equation_3_and_of_a_row_alone():
    layer, x = ParametricNoise(), torch.tensor([[1.0, 3.0], [5.0, 5.0]])
    assert layer.deviation(x).flatten().tolist() == [1.0, 0.0]
    assert ParametricNoise(scope="call").deviation(x).item() == pytest.approx(2.75**0.5)
    assert torch.equal(layer(x)[1], x[1])
    one = torch.full((3, 1), 4.0)
    assert torch.equal(layer(one), one)  # one element has no spread, and no NaN either
    assert layer.deviation(torch.rand(2, 3, 4, 4)).shape == (2, 1, 1, 1)


def test_gradients_are_one_for_the_input_and_the_noise_for_alpha():
    """None through the standard deviation (He et al. 2019)."""
    layer, x = ParametricNoise(0.5), torch.rand(3, 4, requires_grad=True)
    out = layer(x)
    weights = torch.rand(3, 4)
    by_x, by_alpha = torch.autograd.grad((out * weights).sum(), (x, layer.alpha))
    assert torch.equal(by_x, weights)
    noise = (out - x).detach() / 0.5
    torch.testing.assert_close(by_alpha, (noise * weights).sum())
    with backward_as(layer, {"*": surrogates.zero()}):
        out = layer(x)
        by_x, by_alpha = torch.autograd.grad(out.sum(), (x, layer.alpha))
    assert by_x.eq(0).all()
    assert by_alpha != 0


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize("scope", SCOPES)
def test_the_mean_field_is_the_layer_without_noise_and_noise_stays_on_in_evaluation(on, scope):
    for layer, x in layers(on, scope):
        assert scope_of(layer) == scope
        clone = pickle.loads(pickle.dumps(copy.deepcopy(layer))).eval()
        assert not torch.equal(clone(x), clone(x))
        with forward_as(clone, {"*": "mean-field"}):
            torch.testing.assert_close(clone(x), layer.apply_weight(x, layer.weight))
        clone.noise.alpha.data.zero_()
        torch.testing.assert_close(clone(x), layer.apply_weight(x, layer.weight))


@pytest.mark.parametrize("on", ON)
def test_equal_rows_get_equal_noise_only_in_a_call(on):
    for scope, rows in (("example", 4), ("call", 1)):
        for layer, x in layers(on, scope):
            out = layer(x[:1].expand(4, *x.shape[1:]))
            different = torch.stack([(row - out[0]).abs().max() > 1e-4 for row in out[1:]])
            assert different.all() if rows == 4 else not different.any()


@pytest.mark.parametrize("index", range(4))
def test_noisy_weights_have_the_law_of_drawn_weights(index):
    """Against weights drawn one by one: mean and covariance of the flattened output of one image. Entries of the
    covariance within 6 of their standard errors (false alarms below 1e-5 in all), fixed seed."""
    layer, x = layers()[index]
    draws, x = 20000, x[0]
    std = layer.weight.std(correction=0).item()
    expected = torch.zeros(2)
    torch.manual_seed(1)
    with torch.no_grad():
        got = torch.cat([layer(x.expand(500, *x.shape)).flatten(1) for _ in range(draws // 500)]).double()
        # the exact covariance: alpha^2 std^2 J J^T with J the derivative of the output by the weights
        weight = layer.weight.detach()
    jacobian = torch.autograd.functional.jacobian(lambda w: layer.apply_weight(x[None], w).flatten(), weight)
    jacobian = jacobian.flatten(1).double()
    expected = (0.5 * std) ** 2 * jacobian @ jacobian.T
    mean = layer.apply_weight(x[None], layer.weight).flatten().double()
    spread = expected.diagonal().sqrt()
    assert ((got.mean(0) - mean).abs() < 6 * spread / draws**0.5).all()
    centred = got - mean.detach()
    error = ((spread[:, None] * spread[None]) ** 2 + expected**2).sqrt() / draws**0.5
    assert ((centred.T @ centred / draws - expected).abs() < 6 * error).all()
    assert kstest((centred[:, 0] / spread[0]).detach().numpy(), "norm").pvalue > 1e-6


def test_gradients_through_noisy_dense_weights_agree_on_average():
    """d E[f(Wx)] / dx for f a square in closed form, 2 (W^T W + O alpha^2 s^2) x; within 6 standard errors."""
    torch.manual_seed(0)
    layer = PNILinear(nn.Linear(4, 3, bias=False), alpha=0.5)
    x = torch.rand(4)
    rows = x.expand(100000, 4).clone().requires_grad_()
    (gradient,) = torch.autograd.grad(layer(rows).square().sum(), rows)
    spread = 0.5 * layer.weight.std(correction=0)
    expected = 2 * (layer.weight.T @ layer.weight @ x + 3 * spread**2 * x)
    error = gradient.std(0) / len(rows) ** 0.5
    assert ((gradient.mean(0) - expected).abs() < 6 * error).all()
    zero = torch.zeros(2, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(layer(zero).sum(), zero)
    assert torch.isfinite(gradient).all()


def test_released_form_is_one_noisy_weight_for_the_batch():
    """Second implementation: the formula with the same draw."""
    layer = PNIConv2d(nn.Conv2d(2, 3, 3, padding=1), scope="call")
    x = torch.rand(5, 2, 6, 6)
    torch.manual_seed(3)
    got = layer(x)
    torch.manual_seed(3)
    noise = torch.randn(1, *layer.weight.shape)[0] * layer.weight.detach().std(correction=0)
    torch.testing.assert_close(got, F.conv2d(x, layer.weight + 0.25 * noise, layer.bias, 1, 1))
    (by_alpha,) = torch.autograd.grad(got.sum(), layer.noise.alpha)
    torch.testing.assert_close(by_alpha, F.conv2d(x, noise, None, 1, 1).sum(), rtol=1e-4, atol=1e-4)


def test_alpha_is_trained_and_never_decayed():
    model = PNICNN((1, 8, 8), 10)
    alphas = [m.alpha for m in model.modules() if isinstance(m, ParametricNoise)]
    assert [a.item() for a in alphas] == [0.25] * 4
    groups = parameter_groups(model, 0.1)
    free = next(g for g in groups if g.get("weight_decay") == 0)
    assert {id(p) for p in free["params"]} == {id(a) for a in alphas}
    optimizer = optimizer_named("sgd", weight_decay=0.5)(groups, lr=0.1)
    F.cross_entropy(model(torch.rand(8, 1, 8, 8)), torch.arange(8)).backward()
    before, gradients = [a.item() for a in alphas], [a.grad.item() for a in alphas]
    optimizer.step()
    for a, b, g in zip(alphas, before, gradients, strict=True):
        assert g != 0
        assert a.item() == pytest.approx(b - 0.1 * g, rel=1e-4)


@pytest.mark.parametrize(
    ("where", "on", "count"), [("weights", "weights", 4), ("activations", "inputs", 3), ("inputs", "inputs", 1)]
)
def test_any_network_gets_noise_where_it_is_asked_for(where, on, count):
    torch.manual_seed(0)
    plain = CNN2((1, 8, 8), 10)
    keys, x = set(plain.state_dict()), torch.rand(3, 1, 8, 8)
    noisy = with_parametric_noise(copy.deepcopy(plain), where, 0.1)
    found = [m for m in noisy.modules() if isinstance(m, PNILinear | PNIConv2d)]
    assert [m.on for m in found] == [on] * count
    assert {k for k in noisy.state_dict() if not k.endswith("noise.alpha")} == keys
    assert isinstance(noisy.features[0], PNIConv2d) == (where != "activations")
    with forward_as(noisy, {"*": "mean-field"}):
        torch.testing.assert_close(noisy(x), plain(x))
    assert not torch.equal(noisy(x), noisy(x))
    assert scope_of(noisy) == "example"


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("where", ["weights", "activations", "inputs"])
def test_by_name_through_a_checkpoint_row_by_row(where, scope, tmp_path):
    model = build("pni-cnn", (3, 9, 7), 4, where=where, scope=scope, alpha=0.3).eval()
    assert scope_of(model) == scope
    again = checkpoint.load(checkpoint.save(model, tmp_path))
    x = torch.rand(5, 3, 9, 7)
    torch.manual_seed(0)
    first = model(x)
    torch.manual_seed(0)
    assert torch.equal(again(x), first)
    assert first.shape == (5, 4)


def test_what_makes_no_sense_is_refused():
    for wrong in ({"alpha": -0.1}, {"alpha": float("nan")}, {"alpha": True}, {"scope": "batch"}):
        with pytest.raises(UsageError):
            ParametricNoise(**wrong)
    with pytest.raises(UsageError, match="noise on"):
        PNILinear(nn.Linear(2, 2), "bias")
    with pytest.raises(UsageError, match="noise on"):
        with_parametric_noise(MLP((1, 4, 4), 2), "bias")
    with pytest.raises(ModelError, match="without enough"):
        with_parametric_noise(nn.Sequential(nn.Flatten()))
    for odd in ({"groups": 2}, {"dilation": 2}, {"stride": (1, 2)}, {"padding": "same"}, {"padding_mode": "reflect"}):
        with pytest.raises(ModelError, match="square"):
            PNIConv2d(nn.Conv2d(2, 2, 3, **odd))
