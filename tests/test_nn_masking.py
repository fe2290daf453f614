"""Per-example filters against a loop over examples in float64, and the masks' distribution and scope."""

import pickle

import pytest
import torch
import torch.nn.functional as F
from scipy.stats import binomtest

from stochade.errors import ModelError, UsageError
from stochade.nn import (
    MaskedConv2d,
    MaskedLinear,
    RandomMask,
    conv2d_per_example,
    forward_as,
    linear_per_example,
    scope_of,
)


def looped(x, weight, stride, padding):
    pairs = zip(x, weight, strict=True)
    return torch.cat([F.conv2d(image[None], filters, None, stride, padding) for image, filters in pairs])


@pytest.mark.parametrize("method", ["auto", "grouped", "unfold"])
@pytest.mark.parametrize(("inputs", "outputs"), [(1, 4), (3, 2), (5, 3)])
@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding"), [((7, 7), 3, 1, 1), ((8, 6), 5, 2, 2), ((6, 9), 3, 2, 0)]
)
def test_convolution_equals_the_loop_forward_and_backward(method, inputs, outputs, size, kernel, stride, padding):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, inputs, *size, generator=generator, dtype=torch.float64, requires_grad=True)
    w = torch.randn(4, outputs, inputs, kernel, kernel, generator=generator, dtype=torch.float64, requires_grad=True)
    expected = looped(x, w, stride, padding)
    out = conv2d_per_example(x, w, stride, padding, method)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    upstream = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    for got, wanted in zip(
        torch.autograd.grad(out, (x, w), upstream), torch.autograd.grad(expected, (x, w), upstream), strict=True
    ):
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)


def test_dense_equals_the_loop_forward_and_backward():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 7, generator=generator, dtype=torch.float64, requires_grad=True)
    w = torch.randn(5, 3, 7, generator=generator, dtype=torch.float64, requires_grad=True)
    expected = torch.stack([weights @ row for row, weights in zip(x, w, strict=True)])
    out = linear_per_example(x, w)
    torch.testing.assert_close(out, expected)
    for got, wanted in zip(
        torch.autograd.grad(out.cos().sum(), (x, w)), torch.autograd.grad(expected.cos().sum(), (x, w)), strict=True
    ):
        torch.testing.assert_close(got, wanted)


def test_layers_apply_gates_from_outside_and_gates_get_gradients():
    generator = torch.Generator().manual_seed(0)
    conv, dense = MaskedConv2d(2, 3, 3, 2, 1).double(), MaskedLinear(6, 4).double()
    torch.nn.init.normal_(conv.bias, generator=generator)
    torch.nn.init.normal_(dense.bias, generator=generator)
    x = torch.randn(4, 2, 6, 6, generator=generator, dtype=torch.float64)
    gates = torch.rand(4, 3, 2, 3, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    expected = torch.cat([F.conv2d(x[i : i + 1], conv.weight * gates[i], conv.bias, 2, 1) for i in range(4)])
    torch.testing.assert_close(conv(x, gates), expected)
    for got, wanted in zip(
        torch.autograd.grad(conv(x, gates).sum(), (gates, conv.weight)),
        torch.autograd.grad(expected.sum(), (gates, conv.weight)),
        strict=True,
    ):
        torch.testing.assert_close(got, wanted)
    torch.testing.assert_close(conv(x, gates[:1]), conv(x, gates[:1].expand(4, -1, -1, -1, -1)))
    v = torch.randn(4, 6, generator=generator, dtype=torch.float64)
    g = torch.rand(4, 4, 6, generator=generator, dtype=torch.float64)
    expected = torch.stack([F.linear(v[i], dense.weight * g[i], dense.bias) for i in range(4)])
    torch.testing.assert_close(dense(v, g), expected)
    torch.testing.assert_close(dense(v, g[:1]), dense(v, g[:1].expand(4, -1, -1)))


@pytest.mark.parametrize("rescale", [False, True])
def test_masks_keep_weights_with_their_probability_each_example_apart(rescale):
    """One exact binomial test at 1e-6; equal rows of 900 bits have probability below 1e-100."""
    torch.manual_seed(0)
    mask = pickle.loads(pickle.dumps(RandomMask(0.3, rescale=rescale)))
    gates = mask.gates(50, torch.zeros(30, 30))
    top = torch.tensor(1.0) / 0.3 if rescale else torch.tensor(1.0)
    assert set(gates.unique().tolist()) == {0.0, top.item()}
    assert binomtest(int((gates > 0).sum()), gates.numel(), 0.3).pvalue > 1e-6
    assert len(gates.flatten(1).unique(dim=0)) == 50
    with forward_as(mask, {"*": "mean-field"}):
        torch.testing.assert_close(mask.gates(2, torch.zeros(3)), torch.full((2, 3), 1.0 if rescale else 0.3))


def test_scope_is_what_the_tile_shows():
    torch.manual_seed(0)
    x = torch.rand(1, 2, 6, 6).expand(8, 2, 6, 6)
    own = MaskedConv2d(2, 3, 3, mask=RandomMask(0.5))
    shared = MaskedConv2d(2, 3, 3, mask=RandomMask(0.5, scope="call"))
    plain = MaskedConv2d(2, 3, 3)
    assert len(own(x).flatten(1).unique(dim=0)) == 8
    rows = shared(x).flatten(1)
    torch.testing.assert_close(rows, rows[:1].expand_as(rows))
    assert not torch.allclose(shared(x), shared(x))
    assert [scope_of(m) for m in (own, shared, plain)] == ["example", "call", "none"]


def test_the_mean_over_masks_is_the_mean_field_of_a_linear_layer():
    """Mean of 4000 draws within 6 standard errors in 12 outputs: false alarm below 1e-7, fixed seed."""
    torch.manual_seed(0)
    layer = MaskedLinear(5, 3, RandomMask(0.6))
    x = torch.rand(4, 5).repeat(4000, 1)
    with torch.no_grad():
        draws = layer(x).view(4000, 4, 3)
        with forward_as(layer, {"*": "mean-field"}):
            expected = layer(x[:4])
    error = (draws.mean(0) - expected).abs()
    assert (error < 6 * draws.std(0) / 4000**0.5).all()


def test_errors():
    with pytest.raises(ModelError, match="filters"):
        conv2d_per_example(torch.rand(2, 3, 5, 5), torch.rand(4, 1, 3, 3, 3))
    with pytest.raises(ModelError, match="weights"):
        linear_per_example(torch.rand(2, 3), torch.rand(2, 4, 5))
    with pytest.raises(ModelError, match="gates"):
        MaskedConv2d(2, 3, 3)(torch.rand(2, 2, 5, 5))
    with pytest.raises(ModelError, match="gates"):
        MaskedLinear(2, 3)(torch.rand(4, 2), torch.rand(2, 3, 2))
    for keep in (0.0, 1.1, float("nan")):
        with pytest.raises(UsageError, match="keep"):
            RandomMask(keep)
