"""Infinite potentials and a hard reset: taken back as if the neuron began anew, and no gradient comes from there."""

import itertools

import pytest
import torch

from stochade.native import lif as native
from stochade.native.build import load
from stochade.nn import LIF, forward_as, surrogates

FORMS = {
    "identity": surrogates.identity(), "atan": surrogates.atan(2.0), "sigmoid": surrogates.sigmoid(4.0),
    "triangle": surrogates.triangle(0.83), "rectangle": surrogates.rectangle(0.83),
    "gaussian": surrogates.gaussian(0.4), "exponential": surrogates.exponential(2.2),
    "steps": surrogates.steps((0.41, 1.31)),
}  # fmt: skip
needs_kernels = pytest.mark.skipif(load("lif") is None, reason="no C compiler")


@pytest.fixture(params=[pytest.param("kernels", marks=needs_kernels), "torch"])
def way(request, monkeypatch):
    """With compiled kernels and without."""
    if request.param == "torch":
        monkeypatch.setattr(native, "suits", lambda *tensors: False)
    return request.param


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
@pytest.mark.parametrize("name", FORMS)
def test_the_sequence_falls_into_two(name, dtype, way):
    torch.manual_seed(0)
    for decayed, detached, rest in itertools.product((False, True), (False, True), (0.0, -0.25)):
        options = {"decay_input": decayed, "detach_reset": detached, "v_reset": rest, "trainable": True}
        layer = LIF(0.5, 1.0, "hard", FORMS[name], **options)
        whole, upstream = torch.randn(7, 2, 33).to(dtype), torch.randn(7, 2, 33).to(dtype)
        whole[3] = torch.inf
        parts = [part.clone().requires_grad_() for part in (whole, whole[:3], whole[4:])]
        all_of_it, first, last = (layer(part) for part in parts)
        assert torch.equal(all_of_it, torch.cat([first, torch.ones_like(first[:1]), last]))
        found = [
            torch.autograd.grad(out, [part, layer.decay_logit], up)
            for out, part, up in zip(
                (all_of_it, first, last), parts, (upstream, upstream[:3], upstream[4:]), strict=True
            )
        ]
        gradient, before, after = (g for g, _ in found)
        torch.testing.assert_close(gradient, torch.cat([before, torch.zeros_like(before[:1]), after]))
        slope, one, two = (s for _, s in found)
        torch.testing.assert_close(slope, one + two, rtol=1e-4, atol=1e-4)


def test_the_plain_loop_does_the_same():
    torch.manual_seed(0)
    x, upstream = torch.randn(7, 2, 33), 9 * torch.randn(7, 2, 33)
    x[3] = torch.inf
    x.requires_grad_()
    layer = LIF(0.5, 1.0, "hard")
    (loop,) = torch.autograd.grad(layer(x), x, upstream, create_graph=True)  # its graph is the loop's
    (fused,) = torch.autograd.grad(layer(x), x, upstream)
    torch.testing.assert_close(loop.detach(), fused)
    with forward_as(layer, {"*": "warm"}):
        soft = layer(x)
    assert torch.isfinite(soft).all()
    assert torch.equal(soft[3], torch.ones(2, 33))


def test_minus_infinity_stays(way):
    x = torch.full((4, 1, 3), 5.0)
    x[1] = -torch.inf
    for reset in ("soft", "hard"):
        assert LIF(0.5, 1.0, reset)(x)[:, 0, 0].tolist() == [1, 0, 0, 0]
