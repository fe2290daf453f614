"""Surrogates that say their derivative themselves: against automatic differentiation of their primitives; mixtures,
ensembles, and the adaptive sharpness against formulas written out here."""

import math
import pickle

import numpy as np
import pytest
import torch

from stochade.describe import describe
from stochade.errors import UsageError
from stochade.nn import IF, LIF, Discrete, backward_as, surrogates

FORMS = {
    "identity": surrogates.identity(),
    "clipped": surrogates.clipped(-0.7, 1.3),
    "sigmoid": surrogates.sigmoid(3.0),
    "atan": surrogates.atan(2.5),
    "tanh": surrogates.tanh(1.5),
    "triangle": surrogates.triangle(0.8),
    "rectangle": surrogates.rectangle(0.6),
    "gaussian": surrogates.gaussian(0.4),
    "exponential": surrogates.exponential(2.2),
    "high exponential": surrogates.exponential(2.2, 3.0),
    "zero": surrogates.zero(),
    "mixture": surrogates.mixture([surrogates.atan(1.0), surrogates.triangle(2.0)], [3.0, 1.0]),
    "steps": surrogates.steps(),
}
POINTS = torch.cat([torch.linspace(-50, 50, 4001), torch.linspace(-2, 2, 777) + 1e-5]).double()


def by_autograd(surrogate, x):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(surrogate((x > 0).to(x), x).sum(), x)[0]


@pytest.mark.parametrize("name", FORMS)
def test_what_it_says_is_the_derivative(name):
    surrogate, x = FORMS[name], POINTS.clone()
    expected = by_autograd(surrogate, POINTS)
    torch.testing.assert_close(surrogate.derivative(x), expected, rtol=1e-9, atol=1e-12)
    assert torch.equal(x, POINTS)  # not written over
    torch.testing.assert_close(surrogate.derivative(x + 0.3, 0.3), expected, rtol=1e-4, atol=1e-9)
    assert not surrogate.derivative(x.requires_grad_()).requires_grad
    for dtype in (torch.float32, torch.float16):
        far = torch.tensor([-6e4, -90.0, 0.0, 90.0, 6e4], dtype=dtype)
        assert torch.isfinite(surrogate.derivative(far)).all()


@pytest.mark.parametrize("name", FORMS)
def test_it_travels_and_is_told_apart(name):
    again = pickle.loads(pickle.dumps(FORMS[name]))
    assert torch.equal(again.derivative(POINTS), FORMS[name].derivative(POINTS))
    same = [other for other in FORMS if describe(FORMS[other]) == describe(FORMS[name])]
    assert same == [name]


def test_steps_are_piecewise_constant_with_area_one():
    widths, steps = (0.25, 0.5, 1.0, 2.0, 4.0), surrogates.steps()
    x = torch.tensor([0.0, 0.2, 0.3, 0.7, 1.5, 3.0])
    heights = [sum(1 / w for w in widths if abs(u) < w / 2) / 5 for u in x.tolist()]
    torch.testing.assert_close(steps.derivative(x), torch.tensor(heights))
    grid = torch.linspace(-3, 3, 600_000).double()
    assert float(steps.derivative(grid).mean()) * 6 == pytest.approx(1, abs=1e-4)


def test_the_ensemble_is_that_of_its_source():
    """Written as in the released code: PCW, EXP, EXP-D, RECT and STE of the distance u."""
    table, u = surrogates.ensemble(), torch.linspace(-3, 3, 1001).double() + 1e-5
    assert len(table) == 5 + 3 + 3 + 5 + 1
    for g in (0.25, 0.5, 1.0, 2.0, 3.0):
        torch.testing.assert_close(table[f"triangle-{g:g}"].derivative(u), (g - u.abs()).clamp(min=0) / g**2)
    for g in (0.5, 1.0, 2.0):
        torch.testing.assert_close(table[f"exponential-{g:g}"].derivative(u), torch.exp(-g * u.abs()))
        torch.testing.assert_close(table[f"low-exponential-{g:g}"].derivative(u), 0.3 * torch.exp(-g * u.abs()))
    for g in (0.25, 0.5, 1.0, 2.0, 4.0):
        torch.testing.assert_close(table[f"rectangle-{g:g}"].derivative(u), (u.abs() < g / 2).double() / g)
    assert (table["identity"].derivative(u) == 1).all()


def test_mixtures_refuse_what_they_cannot_mix():
    with pytest.raises(UsageError, match="closed form"):
        surrogates.mixture([])
    with pytest.raises(UsageError, match="closed form"):
        surrogates.mixture([surrogates.adaptive()])
    for weights in ([1.0], [1.0, 0.0], [1.0, float("nan")]):
        with pytest.raises(UsageError, match="positive weights"):
            surrogates.mixture([surrogates.atan(), surrogates.sigmoid()], weights)
    for make in (surrogates.steps, surrogates.exponential):
        with pytest.raises(UsageError, match="positive"):
            make([0.5, -1.0]) if make is surrogates.steps else make(2.0, 0.0)


class Moments:
    """ASSG's running moments of one layer, with a loop over numbers of NumPy."""

    def __init__(self, degree, relax, keep):
        self.omega, self.relax, self.keep, self.m, self.d = (
            2 * math.tan(math.pi * degree) / math.pi,
            relax,
            keep,
            1,
            0,
        )

    def weights(self, u):
        self.m = self.keep * self.m + (1 - self.keep) * np.abs(u)
        self.d = self.keep * self.d + (1 - self.keep) * np.abs(np.abs(u) - self.m)
        return self.at(u)

    def at(self, u):
        alpha = self.omega / (self.m + self.relax * self.d + 1e-4)
        return alpha / 2 / (1 + (np.pi / 2 * alpha * u) ** 2)


@pytest.mark.parametrize("reset", ["soft", "hard"])
def test_adaptive_sharpness_follows_its_formula(reset):
    torch.manual_seed(0)
    layer, own, oracle = IF(1.0, reset), surrogates.adaptive(0.43, 1.2, 0.8), Moments(0.43, 1.2, 0.8)
    upstream = torch.randn(4, 3, 5, dtype=torch.float64)
    for turn in range(4):
        x = torch.randn(4, 3, 5, dtype=torch.float64, requires_grad=True)
        u = layer.potentials(x.detach()).numpy()
        with backward_as(layer, {IF: own}):
            if turn == 2:
                with own.frozen():
                    out = layer(x)
                phi = oracle.at(u)
            else:
                out, phi = layer(x), oracle.weights(u)
        assert torch.equal(out, layer(x))
        p, expected, s = np.zeros((3, 5)), np.zeros((4, 3, 5)), (u >= 0) * 1.0
        for t in reversed(range(4)):
            keep = 1 - phi[t] if reset == "soft" else (1 - s[t]) - (u[t] + 1) * phi[t]
            p = upstream[t].numpy() * phi[t] + p * keep
            expected[t] = p
        (found,) = torch.autograd.grad(out, x, upstream)
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9, atol=1e-12)


def test_adaptive_moments_belong_to_one_layer_and_its_examples():
    layer, own = LIF(), surrogates.adaptive()
    x = torch.randn(3, 4, 5, requires_grad=True)
    with backward_as(layer, {LIF: own}):
        layer(x)
        with pytest.raises(UsageError, match="of its own"):
            layer(x[:, :2])
        mean = own.moments.mean
        with torch.no_grad():
            layer(x[:, :2])  # nobody asks for a gradient
        assert own.moments.mean is mean
        own.keep(torch.tensor([3, 1]))
        assert torch.equal(own.moments.mean, mean[:, [3, 1]])
        layer(x[:, [3, 1]])
        own.reset()
        layer(x[:, :1])
    again = pickle.loads(pickle.dumps(surrogates.adaptive(0.4)))
    assert describe(again) == describe(surrogates.adaptive(0.4)) != describe(surrogates.adaptive(0.41))


def test_adaptive_sharpness_on_other_layers_and_its_errors():
    class Threshold(Discrete):
        scope = "none"

        def hard(self, x):
            return (x >= 0).to(x)

    x = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    out = Threshold(surrogates.adaptive())(x)
    assert torch.equal(out, (x >= 0).double())
    expected = Moments(0.4, 1.5, 0.9).weights(x.detach().numpy())
    np.testing.assert_allclose(torch.autograd.grad(out.sum(), x)[0].numpy(), expected, rtol=1e-9)
    for wrong in ({"degree": 0.5}, {"degree": 0.0}, {"relax": -1.0}, {"keeping": 1.0}, {"degree": float("nan")}):
        with pytest.raises(UsageError, match="adaptive"):
            surrogates.adaptive(**wrong)


def test_the_derivative_of_an_adaptive_derivative():
    """Weights are constants: only the reset's dependence on potentials is left, as in the loop."""
    x = torch.randn(3, 2, 4, dtype=torch.float64, requires_grad=True)
    layer = LIF(reset="hard", surrogate=surrogates.adaptive())
    (g,) = torch.autograd.grad(layer(x), x, torch.ones(3, 2, 4, dtype=torch.float64), create_graph=True)
    own = surrogates.adaptive()
    with backward_as(layer, {LIF: own}):
        (plain,) = torch.autograd.grad(layer(x), x, torch.ones(3, 2, 4, dtype=torch.float64))
    torch.testing.assert_close(g.detach(), plain)
    assert torch.autograd.grad(g.sum(), x)[0].abs().sum() > 0
