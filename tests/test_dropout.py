"""Dropout that stays on: its distribution, its scope, its mean, and what attackers may put in its place."""

import pickle

import pytest
import torch
from scipy.stats import binomtest

from stochade.errors import UsageError
from stochade.nn import AlwaysDropout, backward_as, forward_as, scope_of


@pytest.mark.parametrize("rate", [0.1, 0.4, 0.5, 0.9])
@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_activations_are_dropped_at_the_rate_in_training_and_at_test(rate, rescale, training):
    """One exact binomial test at 1e-6 in each of 16 cases; equal rows of 1,000 bits have probability below 1e-80."""
    torch.manual_seed(0)
    module = pickle.loads(pickle.dumps(AlwaysDropout(rate, rescale=rescale))).train(training)
    out = module(torch.full((40, 1000), 3.0))
    kept = torch.tensor(3.0) / (1 - rate) if rescale else torch.tensor(3.0)
    torch.testing.assert_close(out, torch.where(out == 0, 0.0, kept))
    assert binomtest(int((out == 0).sum()), out.numel(), rate).pvalue > 1e-6
    assert len(out.unique(dim=0)) == 40


def test_scope_is_what_the_tile_shows():
    torch.manual_seed(0)
    x = torch.ones(8, 3, 6, 6)
    own, shared = AlwaysDropout(0.5), AlwaysDropout(0.5, scope="call")
    assert len(own(x).flatten(1).unique(dim=0)) == 8
    rows = shared(x).flatten(1)
    assert torch.equal(rows, rows[:1].expand_as(rows))
    assert not torch.equal(shared(x), shared(x))
    assert (scope_of(own.eval()), scope_of(shared.eval())) == ("example", "call")


@pytest.mark.parametrize(("rescale", "factor"), [(True, 1.0), (False, 0.7)])
def test_mean_field_is_the_mean_over_draws(rescale, factor):
    """20,000 draws within 6 standard errors in 4 units: false alarm below 1e-7."""
    torch.manual_seed(0)
    x = torch.tensor([0.5, -1.0, 2.0, 0.0])
    module = AlwaysDropout(0.3, rescale=rescale)
    with forward_as(module, {"*": "mean-field"}):
        torch.testing.assert_close(module(x[None]), factor * x[None])
    draws = module(x.expand(20000, 4))
    assert ((draws.mean(0) - factor * x).abs() <= 6 * draws.std(0) / 20000**0.5).all()


def test_its_own_backward_is_the_mask_it_drew_also_at_zero():
    torch.manual_seed(0)
    x = torch.zeros(50, 20, requires_grad=True)
    module = AlwaysDropout(0.4)
    torch.manual_seed(5)
    gradient = torch.autograd.grad(module(x).sum(), x)[0]
    torch.manual_seed(5)
    torch.testing.assert_close(gradient, module(torch.ones(50, 20)))
    assert len(gradient.unique()) == 2


def test_substitutes_pass_everywhere():
    torch.manual_seed(0)
    x = torch.randn(5, 20, requires_grad=True)
    module = AlwaysDropout(0.4, rescale=False)
    for name, factor in (("identity", 1.0), ("ste", 1.0), ("mean-field", 0.6)):
        with backward_as(module, {"*": name}):
            out = module(x)
            assert (out == 0).any()
            torch.testing.assert_close(torch.autograd.grad(out.sum(), x)[0], torch.full_like(x, factor))


def test_errors_say_what_was_expected():
    for rate in (-0.1, 1.0, float("nan"), True):
        with pytest.raises(UsageError, match="drop"):
            AlwaysDropout(rate)
    with pytest.raises(UsageError, match="scope"):
        AlwaysDropout(0.5, scope="batch")  # type: ignore[arg-type]
