"""Quantised input: the exact staircase, its zero derivative, and what the substitutes say."""

import math
import pickle
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stochade.errors import UsageError
from stochade.nn import Quantise, backward_as, forward_as, scope_of


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.floats(-0.5, 1.5, width=32), st.integers(2, 256))
def test_nearest_level_by_exact_arithmetic(value, levels):
    """Against fractions: the nearest of k / (levels - 1). Points within a rounding error of the middle between two
    levels may go either way, those exactly there (in floats) to the even level."""
    got = float(Quantise(levels)(torch.tensor([value])))
    x = min(max(Fraction(value), Fraction(0)), Fraction(1)) * (levels - 1)
    below = math.floor(x)
    level = round(got * (levels - 1))
    assert got == float(torch.tensor(level, dtype=torch.float32) / (levels - 1))
    if abs(x - below - Fraction(1, 2)) < Fraction(levels, 2**22):
        assert level in (below, below + 1)
    else:
        assert level == (below if x - below < Fraction(1, 2) else below + 1)


def test_known_staircases():
    x = torch.tensor([-1.0, 0.0, 0.2, 0.5, 0.50001, 0.8, 1.0, 2.0])
    assert Quantise(2)(x).tolist() == [0, 0, 0, 0, 1, 1, 1, 1]  # 0.5 is halfway: the even level
    assert Quantise(5)(x).tolist() == [0, 0, 0.25, 0.5, 0.5, 0.75, 1, 1]
    grey = torch.arange(256) / 255
    assert torch.equal(Quantise(256)(grey), grey)
    quantised = Quantise(4)(x)
    assert torch.equal(Quantise(4)(quantised), quantised)


def test_own_derivative_is_zero_and_the_parameters_below_still_train():
    x = torch.rand(3, 1, 4, 4, requires_grad=True)
    assert torch.autograd.grad(Quantise(3)(x).sum(), x)[0].eq(0).all()
    network = torch.nn.Sequential(Quantise(3), torch.nn.Conv2d(1, 2, 3))
    network(x).sum().backward()
    assert network[1].weight.grad.abs().sum() > 0


def test_straight_through_passes_everywhere():
    x = torch.tensor([-0.2, 0.1, 0.5, 0.9, 1.3], requires_grad=True)
    layer = Quantise(4)
    for name in ("ste", "identity"):
        with backward_as(layer, {"*": name}):
            out = layer(x)
            assert torch.equal(out, Quantise(4)(x.detach()))
            assert torch.autograd.grad(out.sum(), x)[0].eq(1).all()
    with forward_as(layer, {"*": "dense"}):
        assert torch.equal(layer(x), x)


@pytest.mark.parametrize("levels", [2, 4, 17])
@pytest.mark.parametrize("sharpness", [0.5, 4.0, 20.0])
def test_soft_staircase_against_its_formula(levels, sharpness):
    """Value and derivative by the formula of one step, with Python's own tanh; the backward is that derivative."""
    x = torch.linspace(0.003, 0.997, 60, dtype=torch.float64).requires_grad_()
    layer = Quantise(levels, sharpness)
    with forward_as(layer, {"*": "warm"}):
        value = layer(x).detach()
    with backward_as(layer, {"*": "soft"}):
        out = layer(x)
        (slope,) = torch.autograd.grad(out.sum(), x)
    assert torch.equal(out, Quantise(levels)(x.detach()))
    for i, v in enumerate(x.tolist()):
        k, f = divmod(v * (levels - 1), 1)
        top = math.tanh(sharpness * (f - 0.5))
        assert float(value[i]) == pytest.approx(
            (k + 0.5 + top / (2 * math.tanh(sharpness / 2))) / (levels - 1), abs=1e-9
        )
        expected = sharpness * (1 - top**2) / (2 * math.tanh(sharpness / 2))
        assert float(slope[i]) == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_soft_staircase_limits():
    x = torch.linspace(0, 1, 101, dtype=torch.float64)
    off_middle = ((x * 3 % 1) - 0.5).abs() > 0.02
    with forward_as(flat := Quantise(4, 1e-3), {"*": "warm"}):
        torch.testing.assert_close(flat(x), x, atol=1e-6, rtol=0)
    with forward_as(steep := Quantise(4, 1e4), {"*": "warm"}):
        torch.testing.assert_close(steep(x)[off_middle], Quantise(4)(x)[off_middle])
    levels = torch.arange(4, dtype=torch.float64) / 3
    with forward_as(layer := Quantise(4), {"*": "warm"}):
        torch.testing.assert_close(layer(levels), levels)
        assert (layer(x).diff() > 0).all()


def test_deterministic_and_picklable():
    layer = pickle.loads(pickle.dumps(Quantise(6)))
    x = torch.rand(4, 1, 3, 3)
    assert scope_of(layer.eval()) == "none"
    assert torch.equal(layer(x), Quantise(6)(x))
    assert torch.equal(layer(x)[1:2], layer(x[1:2]))
    assert layer(x.half()).dtype == torch.float16


def test_errors():
    for levels in (1, 0, -3, 2.5, True):
        with pytest.raises(UsageError, match="two levels"):
            Quantise(levels)  # type: ignore[arg-type]
    for sharpness in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="sharpness"):
            Quantise(4, sharpness)
