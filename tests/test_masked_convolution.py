"""Masked convolutions against a loop over examples in float64: values, gradients, gradients of gradients, chunks."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from stochade.errors import ModelError, UsageError
from stochade.nn import masked_convolution
from stochade.nn.masked_convolution import conv2d_masked, conv2d_per_example


def looped(x, weight, mask, stride, padding):
    pairs = zip(x, mask, strict=True)
    return torch.cat([F.conv2d(image[None], weight * m, None, stride, padding) for image, m in pairs])


def tensors(inputs=5, outputs=3, size=(7, 6), kernel=(3, 3), n=5):
    generator = torch.Generator().manual_seed(0)
    shapes = (n, inputs, *size), (outputs, inputs, *kernel), (n, outputs, inputs, *kernel)
    return [torch.randn(s, generator=generator, dtype=torch.float64, requires_grad=True) for s in shapes]


@pytest.mark.parametrize("method", ["auto", "native", "grouped", "unfold"])
@pytest.mark.parametrize("inputs", [1, 3, 5])
@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding"),
    [((7, 7), (3, 3), 1, 1), ((8, 6), (5, 5), 2, 2), ((6, 9), (3, 3), 2, 0), ((6, 7), (2, 3), 1, 0)],
)
@pytest.mark.parametrize("rows", [1, 2, 100])
def test_equals_the_loop_whatever_the_chunk(monkeypatch, method, inputs, size, kernel, stride, padding, rows):
    """Five examples in chunks of 1, of 2 (the last one is short) and of all."""
    x, weight, mask = tensors(inputs, 4, size, kernel)
    monkeypatch.setattr(masked_convolution, "_CACHE", rows * weight.numel())
    out = conv2d_masked(x, weight, mask, stride, padding, method)
    expected = looped(x, weight, mask, stride, padding)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(conv2d_per_example(x, weight * mask, stride, padding, method), expected)
    for got, wanted in zip(
        torch.autograd.grad(out.cos().sum(), (x, weight, mask)),
        torch.autograd.grad(expected.cos().sum(), (x, weight, mask)),
        strict=True,
    ):
        torch.testing.assert_close(got, wanted, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("inputs", [2, 5])
def test_only_what_is_needed_has_a_gradient(inputs):
    for needed in itertools.product([True, False], repeat=3):
        if not any(needed):
            continue
        values = tensors(inputs)
        for tensor, need in zip(values, needed, strict=True):
            tensor.requires_grad_(need)
        wanted = [tensor for tensor in values if tensor.requires_grad]
        x, weight, mask = values
        got = torch.autograd.grad(conv2d_masked(x, weight, mask, 2, 1).cos().sum(), wanted)
        expected = torch.autograd.grad(looped(x, weight, mask, 2, 1).cos().sum(), wanted)
        for one, other in zip(got, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("inputs", [2, 5])
def test_the_gradient_can_be_differentiated(inputs):
    values = tensors(inputs)

    def second(function):
        (gradient,) = torch.autograd.grad(function(*values, 2, 1).cos().sum(), values[0], create_graph=True)
        return torch.autograd.grad(gradient.sin().sum(), values)

    for got, wanted in zip(second(conv2d_masked), second(looped), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)


def test_single_precision_autocast_and_empty_batches():
    x, weight, mask = (tensor.detach().float() for tensor in tensors())
    expected = looped(x, weight, mask, 2, 1)
    torch.testing.assert_close(conv2d_masked(x, weight, mask, 2, 1), expected, rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        half = conv2d_masked(x, weight, mask, 2, 1)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), expected, rtol=0.05, atol=0.2)
    for inputs in (2, 5):
        x, weight, mask = tensors(inputs, n=0)
        assert conv2d_masked(x, weight, mask, 2, 1).shape == (0, 3, 4, 3)


def test_errors():
    x, weight, mask = tensors()
    with pytest.raises(ModelError, match="masks"):
        conv2d_masked(x, weight, mask[:2])
    with pytest.raises(ModelError, match="filters"):
        conv2d_masked(x[:, :2], weight, mask)
    with pytest.raises(UsageError, match="method"):
        conv2d_masked(x, weight, mask, method="fft")  # type: ignore[arg-type]
