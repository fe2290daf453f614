"""Binary units: their distribution, their two backwards, their slope."""

import copy
import pickle

import pytest
import torch
from beartype import beartype
from jaxtyping import Float, jaxtyped
from scipy.stats import binomtest

from stochade.errors import UsageError
from stochade.nn import (
    DeterministicBinary,
    Sign,
    StochasticBinary,
    backward_as,
    forward_as,
    slope_annealing,
    surrogates,
)
from stochade.nn.sampling import bernoulli


@jaxtyped(typechecker=beartype)
def fire(unit: torch.nn.Module, a: Float[torch.Tensor, "n units"]) -> Float[torch.Tensor, "n units"]:
    return unit(a)


def gradient(unit, a):
    a = a.clone().requires_grad_()
    return torch.autograd.grad(unit(a).sum(), a)[0]


@pytest.mark.parametrize("slope", [1.0, 2.5])
def test_mean_is_the_probability(slope):
    """Seven exact binomial tests at 1e-6 each: false alarm below 1e-5, and the seed is fixed."""
    torch.manual_seed(0)
    a = torch.tensor([-4.0, -1.0, -0.3, 0.0, 0.3, 1.0, 4.0])
    h = fire(StochasticBinary(slope), a.expand(20000, 7))
    assert set(h.unique().tolist()) == {0.0, 1.0}
    for fired, p in zip(h.sum(0).int().tolist(), torch.sigmoid(slope * a.double()).tolist(), strict=True):
        assert binomtest(fired, 20000, p).pvalue > 1e-6


def test_every_example_and_unit_has_a_draw_of_its_own():
    """With 4000 fair bits, two equal rows or columns happen with probability below 1e-100."""
    torch.manual_seed(0)
    h = StochasticBinary()(torch.zeros(40, 1000))
    assert len(h.unique(dim=0)) == 40
    assert len(h.T.unique(dim=0)) == 1000
    assert StochasticBinary().scope == "example"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_small_probabilities_survive_half_precision(dtype):
    """p = 2^-10 over a million draws; drawn in bfloat16 it would fire with probability 2^-8."""
    torch.manual_seed(0)
    h = bernoulli(torch.full((1 << 20,), 2.0**-10, dtype=dtype))
    assert h.dtype == dtype
    assert binomtest(int(h.float().sum()), 1 << 20, 2.0**-10).pvalue > 1e-6


def test_certain_probabilities_are_certain():
    torch.manual_seed(0)
    assert bernoulli(torch.zeros(100000)).sum() == 0
    assert bernoulli(torch.ones(100000)).sum() == 100000


@pytest.mark.parametrize("slope", [1.0, 3.0])
def test_backwards_are_one_and_the_sloped_sigmoid(slope):
    a = torch.linspace(-50, 50, 301, dtype=torch.float64)
    p = torch.sigmoid(slope * a)
    hard, soft = StochasticBinary(slope, "hard"), StochasticBinary(slope, "soft")
    assert torch.equal(gradient(hard, a), torch.ones_like(a))
    torch.testing.assert_close(gradient(soft, a), slope * p * (1 - p))
    with backward_as(hard, {"*": "soft"}):
        torch.testing.assert_close(gradient(hard, a), slope * p * (1 - p))
    for name in ("ste", "identity"):
        with backward_as(soft, {"*": name}):
            assert torch.equal(gradient(soft, a), torch.ones_like(a))


def test_the_slope_reaches_forward_backward_and_mean_field():
    unit = StochasticBinary(1.0, "soft")
    unit.set_slope(4.0)
    a = torch.linspace(-2, 2, 9, dtype=torch.float64)
    p = torch.sigmoid(4 * a)
    torch.testing.assert_close(gradient(unit, a), 4 * p * (1 - p))
    with forward_as(unit, {"*": "mean-field"}):
        torch.testing.assert_close(unit(a), p)
        torch.testing.assert_close(gradient(unit, a), 4 * p * (1 - p))
    torch.manual_seed(0)
    fired = int(unit(torch.full((20000,), 0.25)).sum())
    assert binomtest(fired, 20000, float(torch.sigmoid(torch.tensor(1.0)))).pvalue > 1e-6


def test_a_surrogate_that_the_user_set_survives_a_new_slope():
    unit = StochasticBinary(1.0, "soft")
    unit.surrogate = surrogates.zero()
    unit.set_slope(2.0)
    assert gradient(unit, torch.ones(3)).eq(0).all()


@pytest.mark.parametrize("move", [copy.deepcopy, lambda u: pickle.loads(pickle.dumps(u))])
def test_the_slope_travels_and_the_copy_still_follows_its_own_slope(move):
    unit = StochasticBinary(1.0, "soft")
    unit.set_slope(2.0)
    again = move(unit)
    again.set_slope(3.0)
    assert (unit.slope, again.slope) == (2.0, 3.0)
    at_zero = torch.zeros(1)
    assert (gradient(unit, at_zero).item(), gradient(again, at_zero).item()) == (0.5, 0.75)


def test_the_slope_is_part_of_the_state_dict():
    unit, other = StochasticBinary(1.0, "soft"), StochasticBinary(1.0, "soft")
    unit.set_slope(1.23456789)
    other.load_state_dict(unit.state_dict())
    assert other.slope == 1.23456789
    assert gradient(other, torch.zeros(1)).item() == pytest.approx(1.23456789 / 4)


def test_annealing_schedule():
    assert [slope_annealing(e) for e in (0, 1, 25, 100, 1000)] == pytest.approx([1, 1.04, 2, 5, 5])
    assert StochasticBinary(backward="soft").anneal
    assert not StochasticBinary(backward="hard").anneal
    assert not DeterministicBinary().anneal


def test_deterministic_unit_rounds_the_sigmoid():
    a = torch.tensor([-3.0, -1e-3, 0.0, 1e-3, 3.0])
    unit = DeterministicBinary()
    assert unit(a).tolist() == [0, 0, 0, 1, 1]
    assert unit.scope == "none"
    p = torch.sigmoid(a)
    torch.testing.assert_close(gradient(unit, a), p * (1 - p))
    assert torch.equal(gradient(DeterministicBinary(backward="hard"), a), torch.ones_like(a))


def test_sign_has_no_zero_and_passes_gradients_inside_the_unit_box():
    a = torch.tensor([-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0])
    unit = Sign()
    assert unit(a).tolist() == [-1, -1, -1, 1, 1, 1, 1]
    assert gradient(unit, a).tolist() == [0, 1, 1, 1, 1, 1, 0]
    with backward_as(unit, {"*": "soft"}):
        torch.testing.assert_close(gradient(unit, a), 1 - torch.tanh(a) ** 2)


def test_bad_slopes_and_backwards_are_refused():
    for slope in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="positive slope"):
            StochasticBinary(slope)
    with pytest.raises(UsageError, match="backward"):
        StochasticBinary(backward="medium")  # type: ignore[arg-type]
