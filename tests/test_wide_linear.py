"""The wide linear layer gives what `torch.nn.Linear` gives, and its derivatives."""

import copy

import pytest
import torch
import torch.nn.functional as F

from stochade.nn import scope_of
from stochade.nn import wide_linear as module
from stochade.nn.wide_linear import WideLinear, wide_linear


@pytest.fixture
def calls(monkeypatch):
    """How often oneDNN was asked for a product, with every size treated as wide."""
    if not module.available():
        pytest.skip("this torch has no oneDNN")
    counted, product = [], module._product
    monkeypatch.setattr(module, "_WIDE", 1)
    monkeypatch.setattr(module, "_product", lambda *a: counted.append(a) or product(*a))
    return counted


def problem(rows: int, inputs: int, outputs: int, seed: int = 0) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(*s, generator=g).requires_grad_() for s in ((rows, inputs), (outputs, inputs), (outputs,))]


@pytest.mark.parametrize("sizes", [(1, 1, 1), (3, 7, 50), (50, 64, 33), (2, 130, 5)])
@pytest.mark.parametrize("biased", [True, False])
def test_values_and_gradients_are_those_of_an_ordinary_linear_layer(sizes, biased, calls):
    x, w, b = problem(*sizes)
    wanted = (x, w, b) if biased else (x, w)
    ours, theirs = wide_linear(x, w, b if biased else None), F.linear(x, w, b if biased else None)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    upstream = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1))
    found, expected = torch.autograd.grad(ours, wanted, upstream), torch.autograd.grad(theirs, wanted, upstream)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert len(calls) == 3  # forward, inputs, weights


def test_only_the_gradients_that_are_asked_for_are_formed(calls):
    x, w, b = problem(4, 6, 8)
    torch.autograd.grad(wide_linear(x, w.detach(), b.detach()).sum(), x)
    assert len(calls) == 2


def test_a_gradient_can_be_differentiated_again(calls):
    x, w, b = problem(3, 4, 5)
    answers = []
    for function in (wide_linear, F.linear):
        (slope,) = torch.autograd.grad(function(x, w, b).square().sum(), x, create_graph=True)
        answers.append(torch.autograd.grad(slope.square().sum(), (x, w)))
    for one, other in zip(*answers, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-3)


def test_what_onednn_is_not_asked_for_goes_the_ordinary_way(calls):
    x, w, b = problem(3, 4, 5)
    assert torch.equal(wide_linear(x.double(), w.double(), b.double()), F.linear(x.double(), w.double(), b.double()))
    assert wide_linear(x[:0], w, b).shape == (0, 5)
    assert wide_linear(x[None], w, b).shape == (1, 3, 5)
    with torch.autocast("cpu"):
        assert wide_linear(x, w, b).dtype == torch.bfloat16
    assert not calls


def test_small_products_go_the_ordinary_way(monkeypatch):
    monkeypatch.setattr(module, "_product", lambda *a: pytest.fail("oneDNN was asked"))
    x, w, b = problem(3, 4, 5)
    assert torch.equal(wide_linear(x, w, b), F.linear(x, w, b))


def test_the_layer_takes_the_weights_of_a_linear_one_and_copies():
    plain = torch.nn.Linear(512, 2100)
    layer = WideLinear(512, 2100)
    layer.load_state_dict(plain.state_dict())
    x = torch.randn(5, 512, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(copy.deepcopy(layer)(x), plain(x), rtol=1e-4, atol=1e-5)


def test_function_transforms_and_wrong_widths_meet_the_ordinary_layer(calls):
    x, w, b = (t.detach() for t in problem(3, 4, 5))
    slopes = torch.func.vmap(torch.func.grad(lambda row: wide_linear(row[None], w, b).square().sum()))(x)
    torch.testing.assert_close(slopes, 2 * (x @ w.t() + b) @ w)
    with pytest.raises(RuntimeError, match="shapes"):
        wide_linear(x[:, :3], w, b)
    assert not calls


def test_noise_hooked_onto_the_layer_is_not_overlooked():
    layer = WideLinear(3, 4)
    assert scope_of(layer) == "none"
    layer.register_forward_hook(lambda module, inputs, output: output + torch.randn_like(output))
    assert scope_of(layer) == "unknown"
