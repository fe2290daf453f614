"""k-winners-take-all against sorting, example by example."""

import math
import pickle
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stochade.errors import ModelError, UsageError
from stochade.nn import KWTA, backward_as, forward_as, winners


def brute_force(x: torch.Tensor, ratio: float, per: str) -> torch.Tensor:
    out = torch.zeros_like(x)
    for n in range(len(x)):
        groups = [x[n].flatten()] if per == "volume" else [channel.flatten() for channel in x[n]]
        kept = []
        for group in groups:
            k = max(1, math.floor(Fraction(str(ratio)) * len(group)))
            threshold = sorted(group.tolist(), reverse=True)[k - 1]
            kept.append(torch.tensor([v if v >= threshold else 0.0 for v in group.tolist()]))
        out[n] = torch.cat(kept).view(x[n].shape)
    return out


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(1, 5),
    st.sampled_from([0.01, 0.1, 0.29, 0.5, 1.0]),
    st.sampled_from(["volume", "channel"]),
    st.integers(0, 10**6),
)
def test_equals_brute_force_with_ties(n, channels, side, ratio, per, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(-6, 7, (n, channels, side, side), generator=generator).float()  # many ties
    assert torch.equal(KWTA(ratio, per)(x), brute_force(x, ratio, per))


def test_counts_follow_the_decimal_ratio():
    """0.29 * 100 is 28.999999999999996 in floating point; 29 units win."""
    x = torch.randperm(100, generator=torch.Generator().manual_seed(0)).float()[None] + 1
    assert (KWTA(0.29)(x) > 0).sum() == 29
    assert (KWTA(0.001)(x) > 0).sum() == 1


@pytest.mark.parametrize("named", [False, True])
def test_own_backward_is_the_mask(named):
    x = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    layer = KWTA(0.2)
    weights = torch.rand(x.shape, generator=torch.Generator().manual_seed(1))
    if named:  # the slow road through the surrogate must agree with the short one
        with backward_as(layer, {KWTA: layer.surrogate}):
            out = layer(x)
    else:
        out = layer(x)
    (g,) = torch.autograd.grad((out * weights).sum(), x)
    assert torch.equal(g, weights * (brute_force(x.detach(), 0.2, "volume") != 0))


def test_substitutes_and_relaxed_forwards():
    x = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0)).double().requires_grad_()
    layer = KWTA(0.2, temperature=0.5)
    hard = layer(x).detach()
    with backward_as(layer, {"*": "identity"}):
        out = layer(x)
        assert torch.equal(out, hard)
        assert torch.autograd.grad(out.sum(), x)[0].eq(1).all()
    threshold = x.detach().flatten(1).sort(1, descending=True).values[:, 14].view(4, 1, 1, 1)
    gate = torch.sigmoid((x.detach() - threshold) / 0.5)
    with backward_as(layer, {"*": "soft"}):
        out = layer(x)
        assert torch.equal(out, hard)
        torch.testing.assert_close(torch.autograd.grad(out.sum(), x)[0], gate + x.detach() * gate * (1 - gate) / 0.5)
    with forward_as(layer, {"*": "warm"}):
        torch.testing.assert_close(layer(x), x.detach() * gate)
    with forward_as(layer, {"*": "dense"}):
        assert torch.equal(layer(x), x)


def test_deterministic_per_example_and_picklable():
    x = torch.randn(6, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    layer = pickle.loads(pickle.dumps(KWTA(0.3, "channel")))
    assert layer.scope == "none"
    assert torch.equal(layer(x)[2:3], layer(x[2:3]))
    assert torch.equal(layer(x), winners(x, 0.3, "channel"))


def test_errors():
    for ratio in (0.0, 1.5, float("nan")):
        with pytest.raises(UsageError, match="share"):
            KWTA(ratio)
    with pytest.raises(UsageError, match="per"):
        KWTA(0.1, "layer")  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="dimensions"):
        KWTA(0.1, "channel")(torch.rand(2, 5))
