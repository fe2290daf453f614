"""Adaptive dropout: its probabilities, its modes in training and at test, and what passes backwards."""

import pickle

import pytest
import torch
from scipy.stats import binomtest

from stochade.errors import UsageError
from stochade.nn import Standout, backward_as, forward_as, scope_of

Z = torch.tensor([-3.0, -0.4, 0.0, 0.3, 1.0, 2.5])
P = torch.sigmoid(1.7 * Z - 0.6)


def layer(**options):
    return Standout(1.7, -0.6, **options)


def gradient(module, z):
    z = z.clone().requires_grad_()
    return torch.autograd.grad(module(z).sum(), z)[0]


@pytest.mark.parametrize("training", [True, False])
def test_units_are_kept_with_their_probability(training):
    """Six exact binomial tests at 1e-6 in each mode; training and evaluation alike, as in the thesis."""
    torch.manual_seed(0)
    module = pickle.loads(pickle.dumps(layer())).train(training)
    m = module.gate(Z.expand(20000, 6))
    assert set(m.unique().tolist()) == {0.0, 1.0}
    for kept, p in zip(m.sum(0).int().tolist(), P.tolist(), strict=True):
        assert binomtest(kept, 20000, p).pvalue > 1e-6


def test_the_output_is_the_masked_relu_and_every_example_has_a_mask_of_its_own():
    torch.manual_seed(0)
    z = Z.expand(5000, 6)
    out = layer()(z)
    on = Z > 0
    assert (out[:, ~on] == 0).all()
    values = torch.relu(Z)
    assert ((out == 0) | (out == values)).all()
    share = (out[:, on] > 0).double().mean(0)
    assert ((share - P[on]).abs() < 6 * (P[on] * (1 - P[on]) / 5000).sqrt()).all()
    wide = layer()(torch.ones(40, 500))
    assert len(wide.unique(dim=0)) == 40
    assert len(wide.T.unique(dim=0)) == 500


def test_defaults_are_the_equation_of_the_thesis():
    gate = Standout().gate
    assert (gate.alpha, gate.beta, gate.mode, gate.at_test, gate.backward) == (1.0, 0.0, *["stochastic"] * 2, "soft")
    with forward_as(gate, {"*": "mean-field"}):
        torch.testing.assert_close(gate(Z), torch.sigmoid(Z))


@pytest.mark.parametrize("training", [True, False])
def test_expected_multiplies_by_the_probability_and_round_keeps_the_likely(training):
    expected = layer(mode="expected").train(training)
    torch.testing.assert_close(expected(Z), torch.relu(Z) * P)
    rounded = layer(mode="round").train(training)
    torch.testing.assert_close(rounded(Z), torch.relu(Z) * (P > 0.5))
    assert (scope_of(expected), scope_of(rounded), scope_of(layer())) == ("none", "none", "example")


def test_test_mode_may_differ_and_the_scope_follows():
    """Ba and Frey: drawn in training, multiplied by the probability at test."""
    module = layer(at_test="expected")
    torch.manual_seed(0)
    assert scope_of(module.train()) == "example"
    assert set((module(torch.ones(64)) == 0).tolist()) == {True, False}
    assert scope_of(module.eval()) == "none"
    torch.testing.assert_close(module(Z), torch.relu(Z) * P)


def test_backwards_in_closed_form():
    """With the drawn mask m: relu'(z) m + relu(z) g, g the backward of the mask."""
    slopes = {"soft": 1.7 * P * (1 - P), "hard": torch.full_like(P, 1.7), "constant": torch.zeros_like(P)}
    step = (Z > 0).float()
    for name, slope in slopes.items():
        module = layer(backward=name)
        torch.manual_seed(3)
        m = (torch.rand(6) < P).float()
        torch.manual_seed(3)
        torch.testing.assert_close(gradient(module, Z), step * m + torch.relu(Z) * slope)
    for name, other in (("soft", "soft"), ("ste", "hard"), ("identity", "hard"), ("mask", "constant")):
        module = layer(backward="hard" if other != "hard" else "constant")
        torch.manual_seed(3)
        with backward_as(module, {"*": name}):
            torch.testing.assert_close(gradient(module, Z), step * m + torch.relu(Z) * slopes[other])


def test_the_soft_gradient_is_that_of_the_mean_on_average():
    """20,000 draws within 6 standard errors: false alarm below 1e-7; the constant mask misses by 30 of them."""
    torch.manual_seed(0)
    z = Z[3:].clone().requires_grad_()
    wanted = torch.autograd.grad((torch.relu(z) * torch.sigmoid(1.7 * z - 0.6)).sum(), z)[0]
    found = {}
    for name in ("soft", "constant"):
        g = gradient(layer(backward=name), z.detach().expand(20000, 3))
        found[name] = ((g.mean(0) - wanted).abs() / (g.std(0) / 20000**0.5)).max()
    assert found["soft"] < 6
    assert found["constant"] > 30


def test_expected_is_differentiated_exactly_and_its_value_survives_a_substitute():
    z = Z.clone().requires_grad_()
    wanted = torch.autograd.grad((torch.relu(z) * torch.sigmoid(1.7 * z - 0.6)).sum(), z)[0]
    module = layer(mode="expected", backward="constant")
    torch.testing.assert_close(gradient(module, Z), wanted)
    with backward_as(module, {"*": "ste"}):
        torch.testing.assert_close(module(Z), torch.relu(Z) * P)


def test_mean_field_is_the_mean():
    module = layer()
    with forward_as(module, {"*": "mean-field"}):
        torch.testing.assert_close(module(Z), torch.relu(Z) * P)


def test_errors_say_what_was_expected():
    with pytest.raises(UsageError, match="alpha"):
        Standout(alpha=float("nan"))
    with pytest.raises(UsageError, match="stochastic"):
        Standout(mode="sample")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="stochastic"):
        Standout(at_test="off")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="backward"):
        Standout(backward="ste")  # type: ignore[arg-type]
