"""Surrogates against closed-form derivatives written out here, far out in the tails too."""

import math
import pickle

import numpy as np
import pytest
import torch

from stochade.errors import UsageError
from stochade.nn import Surrogate, surrogates

# name -> surrogate, closed-form derivative, the integral of the derivative over the line (None: infinite)
CASES = {
    "identity": (surrogates.identity(), lambda x: np.ones_like(x), None),
    "clipped": (surrogates.clipped(-0.7, 1.3), lambda x: ((x >= -0.7) & (x <= 1.3)) * 1.0, 2.0),
    "sigmoid": (
        surrogates.sigmoid(3.0),
        lambda x: 3 * np.exp(-3 * np.abs(x)) / (1 + np.exp(-3 * np.abs(x))) ** 2,
        1.0,
    ),
    "atan": (surrogates.atan(2.5), lambda x: 1.25 / (1 + (math.pi * 2.5 * x / 2) ** 2), 1.0),
    "tanh": (surrogates.tanh(1.5), lambda x: 1.5 / np.cosh(np.minimum(np.abs(1.5 * x), 300)) ** 2, 2.0),
    "triangle": (surrogates.triangle(0.8), lambda x: np.maximum(0, 1 - np.abs(x) / 0.8) / 0.8, 1.0),
    "rectangle": (surrogates.rectangle(0.6), lambda x: (np.abs(x) <= 0.3) / 0.6, 1.0),
    "gaussian": (
        surrogates.gaussian(0.4),
        lambda x: np.exp(-0.5 * (x / 0.4) ** 2) / (0.4 * math.sqrt(2 * math.pi)),
        1.0,
    ),
    "exponential": (surrogates.exponential(2.2), lambda x: 1.1 * np.exp(-2.2 * np.abs(x)), 1.0),
    "zero": (surrogates.zero(), lambda x: np.zeros_like(x), 0.0),
}
POINTS = torch.cat([torch.linspace(-50, 50, 4001), torch.linspace(-2, 2, 777), torch.zeros(1)]).double()


def gradient(surrogate: Surrogate, x: torch.Tensor) -> torch.Tensor:
    x = x.clone().requires_grad_()
    (result,) = torch.autograd.grad(surrogate((x > 0).to(x.dtype), x).sum(), x)
    return result


@pytest.mark.parametrize("name", CASES)
def test_derivative_is_the_closed_form(name):
    surrogate, closed, _ = CASES[name]
    np.testing.assert_allclose(gradient(surrogate, POINTS), closed(POINTS.numpy()), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", [n for n, case in CASES.items() if case[2] is not None])
def test_area_under_the_derivative(name):
    surrogate, _, area = CASES[name]
    x = torch.tensor([-1e9, 1e9], dtype=torch.float64)
    low, high = surrogate.primitive(x).tolist()
    assert high - low == pytest.approx(area, abs=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", CASES)
def test_forward_is_the_hard_value_bit_for_bit_and_nothing_is_nan(name, dtype):
    x = torch.cat([torch.linspace(-50, 50, 2001), torch.tensor([-1e4, 1e4, 0.0])]).to(dtype).requires_grad_()
    hard = (x.detach() > 0).to(dtype)
    out = CASES[name][0](hard, x)
    assert torch.equal(out, hard)
    (g,) = torch.autograd.grad(out.sum(), x)
    assert torch.isfinite(g).all()


def test_without_gradients_the_primitive_is_not_called():
    def fail(x):
        raise RuntimeError

    hard = torch.ones(3)
    assert Surrogate(fail)(hard, torch.zeros(3)) is hard
    with torch.no_grad():
        assert Surrogate(fail)(hard, torch.zeros(3, requires_grad=True)) is hard


@pytest.mark.parametrize("name", CASES)
def test_surrogates_pickle_and_have_names(name):
    surrogate = CASES[name][0]
    again = pickle.loads(pickle.dumps(surrogate))
    assert torch.equal(gradient(again, POINTS), gradient(surrogate, POINTS))
    assert again.name == surrogate.name
    assert surrogate.name.startswith(name)


def test_aliases_and_errors():
    assert surrogates.ste is surrogates.identity
    assert surrogates.ATan is surrogates.atan
    for make in (surrogates.sigmoid, surrogates.atan, surrogates.triangle, surrogates.gaussian):
        for value in (0.0, -1.0, float("nan"), float("inf")):
            with pytest.raises(UsageError, match="positive"):
                make(value)
    with pytest.raises(UsageError, match="low < high"):
        surrogates.clipped(1.0, 1.0)


def test_a_surrogate_of_another_shape_is_refused_not_broadcast():
    x = torch.rand(4, 4, requires_grad=True)
    with pytest.raises(UsageError, match="output shape"):
        surrogates.identity()(torch.zeros(4, 4, 4), x)
