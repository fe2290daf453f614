"""Compiled convolutions against grouped ones in float64: values, gradients, which form is taken, same bits."""

import itertools
import random

import pytest
import torch

from stochade.native import build, threads
from stochade.native import convolution as native
from stochade.nn.masked_convolution import conv2d_masked, conv2d_per_example

needs_kernels = pytest.mark.skipif(not native.ready(), reason="no compiled kernels")


def tensors(n, inputs, outputs, size, kernel, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, inputs, *size, generator=generator)
    weight = torch.randn(outputs, inputs, *kernel, generator=generator)
    return x, weight, torch.randn(n, outputs, inputs, *kernel, generator=generator)


def reference(values, stride, padding, upstream=None):
    """Output and gradients by grouped convolution in float64."""
    x, weight, mask = (value.double().requires_grad_() for value in values)
    out = conv2d_per_example(x, weight * mask, stride, padding, "grouped")
    if upstream is None:
        upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    return upstream, [out.detach(), *torch.autograd.grad(out, (x, weight, mask), upstream.double())]


def close(got, wanted):
    """Within rounding of the largest number: sums of up to 1,600 products."""
    assert got.dtype == torch.float32
    assert got.shape == wanted.shape
    assert (got - wanted).abs().max() <= 4e-6 * wanted.abs().max().clamp(min=1e-6)


def cases():
    draw = random.Random(0)
    fixed = [(2, 32, 64, (14, 14), (5, 5), s, 2) for s in (1, 2)] + [
        (2, 1, 32, (28, 28), (5, 5), s, 2) for s in (1, 2)
    ]
    fixed += [(2, 3, 40, (9, 9), (3, 3), 2, 5), (1, 5, 97, (6, 7), (2, 3), 1, 1), (3, 20, 7, (7, 1), (4, 1), 2, 3)]
    for _ in range(60):
        inputs, outputs = (draw.choice([1, 3, 5, 17, 32, 64]) for _ in range(2))
        kernel = (draw.choice([1, 3, 5]), draw.choice([1, 2, 3, 5]))
        size = tuple(draw.randrange(max(kernel), 18) for _ in range(2))
        n = draw.choice([1, 3, 50] if inputs * outputs < 100 else [1, 3])
        fixed.append((n, inputs, outputs, size, kernel, draw.choice([1, 2]), draw.randrange(3)))
    return fixed


@needs_kernels
@pytest.mark.parametrize(("n", "inputs", "outputs", "size", "kernel", "stride", "padding"), cases())
def test_equals_the_grouped_form(n, inputs, outputs, size, kernel, stride, padding):
    values = tensors(n, inputs, outputs, size, kernel)
    upstream, expected = reference(values, stride, padding)
    x, weight, mask = values
    out = native.forward(x, weight, mask, stride, padding)
    gradients = native.backward(x, weight, mask, upstream, stride, padding, (True, True, True))
    for got, wanted in zip((out, *gradients), expected, strict=True):
        close(got, wanted)
    own = weight * mask
    assert torch.equal(native.forward(x, own, None, stride, padding), out)
    dx, dw, none = native.backward(x, own, None, upstream, stride, padding, (True, True, False))
    close(dx, expected[1])
    close(dw * weight, expected[3])
    assert none is None


@needs_kernels
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("inputs", [2, 20])
def test_only_what_is_needed_has_a_gradient(inputs, stride):
    values = tensors(3, inputs, 5, (7, 6), (3, 3))
    upstream, expected = reference(values, stride, 1)
    for needed in itertools.product([True, False], repeat=3):
        found = native.backward(*values, upstream, stride, 1, needed)
        for got, wanted, need in zip(found, expected[1:], needed, strict=True):
            assert (got is not None) == need
            if got is not None:
                close(got, wanted)


@needs_kernels
def test_through_autograd_whatever_the_layout():
    """Transposed inputs, expanded masks, and the expanded gradient of a sum."""
    x, weight, mask = tensors(3, 6, 5, (7, 6), (3, 3))
    views = [
        x.transpose(2, 3).contiguous().transpose(2, 3),
        weight.flip(0).transpose(0, 1).contiguous().transpose(0, 1),
        mask[:, :, :, :1, :1].expand(mask.shape),
    ]
    for view in views:
        assert not view.is_contiguous()
        view.requires_grad_()
    out = conv2d_masked(*views, 2, 1)
    assert "Native" in out.grad_fn.name()
    _, expected = reference([view.detach() for view in views], 2, 1, torch.ones(()).expand(out.shape))
    for got, wanted in zip((out, *torch.autograd.grad(out.sum(), views)), expected, strict=True):
        close(got, wanted)
    own = (weight * mask).transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
    out = conv2d_per_example(x, own, 1, 1)
    assert "Native" in out.grad_fn.name()
    wide = own.detach().double().requires_grad_()
    plain = conv2d_per_example(x.double(), wide, 1, 1, "grouped")
    close(out, plain)
    close(torch.autograd.grad(out.cos().sum(), own)[0], torch.autograd.grad(plain.cos().sum(), wide)[0])


@needs_kernels
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("inputs", [2, 20])
def test_the_gradient_can_be_differentiated(inputs, masked):
    x, weight, mask = tensors(2, inputs, 5, (7, 6), (3, 3))
    values = (x, weight, mask) if masked else (x, weight * mask)
    function = conv2d_masked if masked else conv2d_per_example

    def second(values, method):
        values = [value.clone().requires_grad_() for value in values]
        out = function(*values, 2, 1, method)
        first = torch.autograd.grad(out.cos().sum(), values, create_graph=True)
        return torch.autograd.grad(sum(gradient.sin().sum() for gradient in first), values)

    for got, wanted in zip(second(values, "native"), second([v.double() for v in values], "grouped"), strict=True):
        assert (got - wanted).abs().max() <= 1e-4 * wanted.abs().max()


@needs_kernels
@pytest.mark.parametrize("stride", [1, 2])
def test_same_input_same_bits_alone_or_in_a_batch(stride):
    x, weight, mask = tensors(4, 20, 17, (9, 7), (3, 3))
    upstream, _ = reference((x, weight, mask), stride, 1)
    whole = (
        native.forward(x, weight, mask, stride, 1),
        *native.backward(x, weight, mask, upstream, stride, 1, (True,) * 3),
    )
    again = (
        native.forward(x, weight, mask, stride, 1),
        *native.backward(x, weight, mask, upstream, stride, 1, (True,) * 3),
    )
    assert all(torch.equal(one, other) for one, other in zip(whole, again, strict=True))
    i = slice(2, 3)
    alone = native.forward(x[i], weight, mask[i], stride, 1)
    dx, _, dm = native.backward(x[i], weight, mask[i], upstream[i], stride, 1, (True,) * 3)
    for one, other in zip((alone, dx, dm), (whole[0], whole[1], whole[3]), strict=True):
        assert torch.equal(one, other[i])


@needs_kernels
@pytest.mark.parametrize("threads", [2, 3, 8])
def test_threads_share_the_examples(monkeypatch, threads):
    values = tensors(5, 20, 17, (9, 7), (3, 3))
    upstream, expected = reference(values, 2, 1)
    one = native.forward(*values, 2, 1), *native.backward(*values, upstream, 2, 1, (True,) * 3)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(native, "_WORTH", 1)
    assert len(native._parts(values[0], values[1], upstream)) == min(threads, 5)
    several = native.forward(*values, 2, 1), *native.backward(*values, upstream, 2, 1, (True,) * 3)
    for i in (0, 1, 3):
        assert torch.equal(one[i], several[i])
    close(several[2], expected[2])


@needs_kernels
def test_denormals_stay():
    """Kernels compiled for speed only must not make the process flush small numbers to zero."""
    tiny = torch.tensor([1e-40])
    x, weight, mask = tensors(2, 3, 4, (5, 5), (3, 3))
    native.forward(x, weight, mask, 1, 1)
    assert (tiny * 0.5).item() > 0
    out, expected = native.forward(x * 1e-40, weight, mask, 1, 1), reference((x * 1e-40, weight, mask), 1, 1)[1][0]
    torch.testing.assert_close(out.double() * 1e40, expected * 1e40, rtol=1e-4, atol=1e-4)


@needs_kernels
def test_the_form_is_chosen_by_what_there_is():
    def form(values, stride=1, padding=1, function=conv2d_masked, method="auto"):
        values[1].requires_grad_()
        return function(*values, stride, padding, method).grad_fn.name()

    assert "Native" in form(tensors(2, 6, 5, (7, 6), (3, 3)))
    assert "Native" in form(tensors(2, 1, 32, (7, 6), (3, 3)))
    assert "Native" not in form(tensors(2, 6, 5, (7, 6), (3, 3)), method="grouped")
    assert "Native" not in form(tensors(2, 6, 5, (7, 6), (3, 3)), stride=3)
    assert "Native" not in form([value.double() for value in tensors(2, 6, 5, (7, 6), (3, 3))])
    assert "Native" in form(tensors(2, 6, 5, (3, 3), (3, 3)), padding=0)
    assert "Native" not in form(tensors(2, 2, 5, (3, 3), (3, 3)), padding=0)  # a single position, few channels
    assert "Native" not in form(tensors(2, 6, 5, (7, 6), (1, 1)))
    assert "Native" in form(tensors(2, 6, 5, (7, 6), (1, 1)), method="native")
    with torch.autocast("cpu", torch.bfloat16):
        assert "Native" not in form(tensors(2, 6, 5, (7, 6), (3, 3)))


@needs_kernels
def test_function_transforms_see_ordinary_operations():
    x, weight, mask = tensors(2, 6, 5, (7, 6), (3, 3))
    own = weight * mask
    gradient = torch.func.grad(lambda w: conv2d_per_example(x, w, 1, 1).cos().sum())(own)
    own.requires_grad_()
    (wanted,) = torch.autograd.grad(conv2d_per_example(x, own, 1, 1).cos().sum(), own)
    torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("inputs", [2, 20])
def test_without_kernels_the_other_forms_serve(monkeypatch, inputs):
    monkeypatch.setattr(build, "_loaded", {"convolution": "no C compiler"})
    values = [value.requires_grad_() for value in tensors(3, inputs, 5, (7, 6), (3, 3))]
    for method in ("auto", "native"):
        out = conv2d_masked(*values, 2, 1, method)
        assert "Native" not in out.grad_fn.name()
        upstream, expected = reference([value.detach() for value in values], 2, 1)
        for got, wanted in zip((out, *torch.autograd.grad(out, values, upstream)), expected, strict=True):
            close(got, wanted)
    with pytest.raises(RuntimeError, match="ready"):
        native.forward(*values, 2, 1)


def test_empty_batches_and_shapes_that_kernels_do_not_take(monkeypatch):
    for method in ("auto", "native"):
        for inputs in (2, 5):
            assert conv2d_masked(*tensors(0, inputs, 3, (7, 6), (3, 3)), 2, 1, method).shape == (0, 3, 4, 3)
    x, weight, _ = tensors(2, 4, 5, (7, 6), (3, 3))
    assert native.suits(x, weight, 1, 1)
    assert not native.suits(x[:, :, :2], weight, 1, 0)  # smaller than the filters
    assert not native.suits(x, weight, 1, -1)
    native._fits.cache_clear()
    monkeypatch.setattr(native, "_LARGEST", 4 * 7 * 6)
    assert not native.suits(x, weight, 1, 1)
    native._fits.cache_clear()


def test_no_memory_is_an_error():
    with pytest.raises(MemoryError):
        threads.spread([lambda: 0, lambda: 1])
