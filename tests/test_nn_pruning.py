"""Stochastic activation pruning: its exact distribution, its mean, and what each backward says."""

import itertools
import pickle

import pytest
import torch
from beartype import beartype
from jaxtyping import Float, jaxtyped
from scipy.stats import binomtest, chisquare, norm

from stochade.errors import ModelError, UsageError
from stochade.nn import SAP, backward_as, forward_as, scope_of
from stochade.nn.pruning import drawn, kept_probability


@jaxtyped(typechecker=beartype)
def prune(layer: SAP, h: Float[torch.Tensor, "n c h w"]) -> Float[torch.Tensor, "n c h w"]:
    return layer(h)


def relu_like(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).relu()


def chance_of_sets(p, draws):
    """P(the set of units that occur among the draws is s), for every s, by inclusion and exclusion."""
    units = range(len(p))
    subsets = [s for k in range(len(p) + 1) for s in itertools.combinations(units, k)]
    inside = {s: sum(p[j] for j in s) ** draws for s in subsets}  # all draws fall into s
    return {
        s: sum((-1) ** (len(s) - len(t)) * inside[t] for k in range(len(s) + 1) for t in itertools.combinations(s, k))
        for s in subsets
    }


@pytest.mark.parametrize("draws", [1, 3, 40, 200])
def test_survivors_are_exactly_multinomial(draws):
    """Chi-square over all sets of four units against inclusion and exclusion, false alarm 1e-6 each. Independent
    survivals with the same chances give p < 1e-30 at 3 draws; 40 and 200 take the Poisson road."""
    torch.manual_seed(0)
    weights, n = torch.tensor([0.5, 1.5, 3.0, 0.02]) * 7, 40000
    p = (weights / weights.sum()).double().tolist()
    found = drawn(weights.expand(n, 4), draws)
    seen = (found * torch.tensor([1, 2, 4, 8])).sum(1).bincount(minlength=16).tolist()
    expected = {sum(2**j for j in s): n * q for s, q in chance_of_sets(p, draws).items()}
    assert sum(seen[code] for code, e in expected.items() if e < 1e-9) == 0
    common = [code for code, e in expected.items() if e > 5]
    rest = [sum(seen) - sum(seen[c] for c in common), n - sum(expected[c] for c in common)]
    a, b = [seen[c] for c in common], [expected[c] for c in common]
    if rest[1] > 1:
        a, b = [*a, rest[0]], [*b, rest[1]]
    else:
        b = [e * sum(a) / sum(b) for e in b]
    assert chisquare(a, b).pvalue > 1e-6


def test_rows_with_too_many_arrivals_are_drawn_anew(monkeypatch):
    """With a spread of 0 half the rows see too many Poisson arrivals; never more units than draws come out, and
    units keep their chances (exact binomial tests at 1e-6)."""
    monkeypatch.setattr("stochade.nn.pruning._SPREAD", 0)
    torch.manual_seed(0)
    weights = torch.arange(1.0, 31.0)
    found = drawn(weights.expand(5000, 30), 9)
    assert found.sum(1).max() <= 9
    for j in (0, 14, 29):
        q = 1 - (1 - float(weights[j] / weights.sum())) ** 9
        assert binomtest(int(found[:, j].sum()), 5000, q).pvalue > 1e-6


@pytest.mark.parametrize("share", [0.25, 1.0, 8.0])
def test_mean_is_the_input_and_survivors_are_scaled_by_their_chance(share):
    """18 means within 5.5 standard errors: false alarm below 1e-6; scales are exact up to rounding."""
    torch.manual_seed(0)
    h = relu_like(1, 2, 3, 3).double() + 0.05
    p, r, n = h / h.sum(), round(share * 18), 30000
    chance = 1 - (1 - p) ** r
    out = prune(SAP(share), h.expand(n, 2, 3, 3))
    kept = out != 0
    assert kept.flatten(1).sum(1).max() <= r  # independent survivals would exceed r = 4 now and then
    torch.testing.assert_close(out[kept], (h / chance).expand_as(out)[kept])
    error = (out.mean(0) - h[0]) / (h[0] * ((1 - chance[0]) / chance[0] / n).sqrt())
    assert error.abs().max() < norm.isf(0.5e-6 / 18)
    for count, q in zip(kept.sum(0).flatten().tolist(), chance.flatten().tolist(), strict=True):
        assert binomtest(count, n, q).pvalue > 1e-6 / 18


def test_every_example_has_draws_of_its_own():
    """Equal rows among 300 units, a third of which are kept by chance, have probability below 1e-40."""
    torch.manual_seed(0)
    h = relu_like(1, 300).expand(50, 300)
    assert len((SAP()(h) != 0).unique(dim=0)) == 50
    assert scope_of(SAP().eval()) == "example"


def test_rows_do_not_see_each_other():
    """Chances depend on the row alone: a row beside a thousand times larger ones survives as it does by itself."""
    h = relu_like(6, 40, seed=3).double()
    factors = torch.tensor([1.0, 1000, 1e-6, 1, 50, 2]).view(-1, 1)
    torch.testing.assert_close(kept_probability(h * factors, 1.0), kept_probability(h, 1.0))
    torch.testing.assert_close(kept_probability(h, 1.0)[2:3], kept_probability(h[2:3], 1.0))
    torch.manual_seed(0)
    lonely = torch.zeros(4, 5)
    lonely[:, 2] = torch.tensor([1e-3, 1.0, 1e3, 0.0])
    assert not drawn(torch.zeros(2, 5), 40).any()
    assert torch.equal(SAP()(lonely), lonely)  # one active unit is certain to survive, none stays none


def test_own_backward_is_the_drawn_mask_with_constant_factors():
    torch.manual_seed(0)
    h = (relu_like(5, 3, 4, 4).double() + 0.01).requires_grad_()
    layer, weights = SAP(0.5), torch.rand(5, 3, 4, 4, dtype=torch.float64)
    out = layer(h)
    (g,) = torch.autograd.grad((out * weights).sum(), h)
    torch.testing.assert_close(g, weights * out.detach() / h.detach())
    assert 0 < (g == 0).float().mean() < 1


def test_autograd_backward_differentiates_the_formula_of_the_same_draw():
    torch.manual_seed(0)
    h = (relu_like(4, 30).double() + 0.01).requires_grad_()
    weights = torch.rand(4, 30, dtype=torch.float64)
    with backward_as(layer := SAP(0.5), {"*": "autograd"}):
        out = layer(h)
        (g,) = torch.autograd.grad((out * weights).sum(), h)
    p = h / h.sum(1, keepdim=True)
    formula = torch.where(out.detach() != 0, h / (1 - (1 - p) ** 15), 0.0)
    torch.testing.assert_close(formula, out)
    torch.testing.assert_close(g, torch.autograd.grad((formula * weights).sum(), h)[0])


@pytest.mark.parametrize("name", ["identity", "ste", "mask", "autograd"])
def test_substitutes_leave_the_draw_as_it_is_and_their_gradients_finite(name):
    h = relu_like(6, 2, 5, 5)
    h[0], h[1] = 0.0, 0.0
    h[1, 0, 0, 0] = 3.0  # an example without activity, and one with a single active unit
    layer = SAP()
    torch.manual_seed(1)
    plain = layer(h)
    h = h.clone().requires_grad_()
    torch.manual_seed(1)
    with backward_as(layer, {SAP: name}):
        out = layer(h)
    assert torch.equal(out, plain)
    (g,) = torch.autograd.grad(out.sum(), h)
    assert torch.isfinite(g).all()
    assert g.eq(1).all() if name in ("identity", "ste") else not g.eq(1).all()


def test_dense_forward_is_the_mean():
    h = relu_like(3, 7)
    with forward_as(layer := SAP(), {"*": "dense"}):
        assert torch.equal(layer(h), h)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_types_empty_batches_and_pickling(dtype):
    layer = pickle.loads(pickle.dumps(SAP(0.7)))
    h = relu_like(3, 2, 4, 4).to(dtype)
    torch.manual_seed(0)
    out = layer(h)
    assert out.dtype == dtype
    torch.manual_seed(0)
    assert torch.equal(out, SAP(0.7)(h))
    assert layer(h[:0]).shape == (0, 2, 4, 4)
    assert not layer.state_dict()
    assert layer.train()(h).eq(0).any()  # active in both modes
    assert layer.eval()(h).eq(0).any()


def test_errors():
    for share in (0.0, -1.0, float("nan"), float("inf"), "all", True):
        with pytest.raises(UsageError, match="share"):
            SAP(share)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="units to prune"):
        SAP()(torch.rand(5))
