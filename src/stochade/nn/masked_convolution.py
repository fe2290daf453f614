"""Convolutions whose filters differ from example to example, at the price of a few shared ones.

Three forms, chosen by shape (numbers: `results/cost/masked_convolution.md`): compiled kernels for float32 on a CPU
(`stochade.native.convolution`; they need a C compiler), else a grouped convolution, one group per example, or, where
few channels come in, patches and batched matrix products. For filters w * m_n, w shared and m_n
the mask of example n, one gradient serves both: with G_n that of example n's filters, dL/dm_n = w G_n and
dL/dw = sum over n of m_n G_n, so that neither masked filters nor G need be held for the whole batch.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from stochade.errors import ModelError, UsageError
from stochade.native import convolution as native
from stochade.native.tensors import readable

Method = Literal["auto", "native", "grouped", "unfold"]
_FEW_CHANNELS = 3  # measured: up to here patches and bmm are no slower than groups, above they are two times slower
_FEW_POSITIONS = 32  # measured at 1 and 25, filters of each example's own: patches are two to three times faster
_FEW_TERMS = 8  # measured: sums of no more, and single positions with few channels, are no slower without kernels
_CACHE = 1 << 19  # numbers in the masked filters of a chunk of examples: half of it took up to 20 % longer


def conv2d_per_example(
    x: Tensor, weight: Tensor, stride: int = 1, padding: int = 0, method: Method = "auto"
) -> Tensor:
    """Row n of the result is the convolution of `x[n]` with `weight[n]`.

    Args:
        x: [N, I, H, W].
        weight: [N, O, I, k, k].
        method: "native" (compiled kernels), "grouped", "unfold", or "auto": by shape and by what there is. Where
            there are no kernels for these tensors, "native" is another form. All give the same up to rounding.

    Returns: [N, O, H', W'], differentiable (twice too) in both arguments.

    Raises:
        ModelError: shapes that do not fit each other.
    """
    if x.ndim != 4 or weight.ndim != 5 or weight.shape[0] != x.shape[0] or weight.shape[2] != x.shape[1]:
        raise ModelError(
            "images [N, I, H, W] and filters [N, O, I, k, k]", f"{list(x.shape)} and {list(weight.shape)}"
        )
    form = _form(method, stride, padding, x, weight)
    if form == "native":
        return _Native.apply(x, weight, None, stride, padding)  # type: ignore[return-value]
    n, outputs, inputs = weight.shape[:3]
    kernel = (weight.shape[3], weight.shape[4])
    height, width = _sizes(x, kernel, stride, padding)
    if n == 0:
        return x.new_zeros(0, outputs, height, width)
    if form == "unfold":
        product = _by_patches if _plain(x, weight) else _Patches.apply
        return product(x, weight, stride, padding).view(n, outputs, height, width)  # type: ignore[union-attr]
    merged = F.conv2d(
        x.reshape(1, n * inputs, *x.shape[2:]),
        weight.reshape(n * outputs, inputs, *kernel),
        stride=stride,
        padding=padding,
        groups=n,
    )
    return merged.view(n, outputs, height, width)


def conv2d_masked(
    x: Tensor, weight: Tensor, mask: Tensor, stride: int = 1, padding: int = 0, method: Method = "auto"
) -> Tensor:
    """Row n of the result is the convolution of `x[n]` with `weight * mask[n]`.

    Args:
        x: [N, I, H, W].
        weight: [O, I, k, k].
        mask: [N, O, I, k, k].
        method: as in `conv2d_per_example`.

    Returns: [N, O, H', W'], differentiable (twice too) in all three. On a CPU it takes less time and memory than
        `conv2d_per_example(x, weight * mask)`, which it is elsewhere and under autocast.

    Raises:
        ModelError: shapes that do not fit each other.
    """
    if weight.ndim != 4 or mask.shape != (x.shape[0], *weight.shape) or x.ndim != 4 or x.shape[1] != weight.shape[1]:
        shapes = f"{list(x.shape)}, {list(weight.shape)} and {list(mask.shape)}"
        raise ModelError("images [N, I, H, W], filters [O, I, k, k] and masks [N, O, I, k, k]", shapes)
    form = _form(method, stride, padding, x, weight, mask)
    if form == "native":
        return _Native.apply(x, weight, mask, stride, padding)  # type: ignore[return-value]
    if form == "unfold" or _plain(x, weight, mask):
        return conv2d_per_example(x, weight * mask, stride, padding, form)
    return _Grouped.apply(x, weight, mask, stride, padding)  # type: ignore[return-value]


def _plain(*tensors: Tensor) -> bool:
    """Whether autograd is to see ordinary operations: off the CPU, under autocast, or where types differ."""
    autocast = torch.is_autocast_enabled("cpu")
    return autocast or any(t.device.type != "cpu" or t.dtype != tensors[0].dtype for t in tensors)


def _form(
    method: Method, stride: int, padding: int, x: Tensor, weight: Tensor, *mask: Tensor
) -> Literal["native", "grouped", "unfold"]:
    if method not in ("auto", "native", "grouped", "unfold"):
        raise UsageError('method "auto", "native", "grouped" or "unfold"', repr(method))
    if method == "grouped" or method == "unfold":
        return method
    height, width = _sizes(x, weight.shape[-2:], stride, padding)
    if not _plain(x, weight, *mask) and readable(*mask) and native.suits(x, weight, stride, padding):
        small = weight.shape[-3:].numel() <= _FEW_TERMS or (height * width == 1 and x.shape[1] <= _FEW_CHANNELS)
        if (method == "native" or not small) and native.ready():
            return "native"
    few = x.shape[1] <= _FEW_CHANNELS or (not mask and height * width <= _FEW_POSITIONS)
    return "unfold" if few else "grouped"


def _sizes(x: Tensor, kernel: Sequence[int], stride: int, padding: int) -> tuple[int, int]:
    height, width = ((x.shape[2 + i] + 2 * padding - kernel[i]) // stride + 1 for i in (0, 1))
    return height, width


def _by_patches(x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    patches = F.unfold(x, (weight.shape[3], weight.shape[4]), padding=padding, stride=stride)
    return torch.bmm(weight.flatten(2), patches)


class _Patches(torch.autograd.Function):
    """`_by_patches` with faster copies and products: windows are copied as rows, and the gradient of the filters is
    formed with the output channels innermost (measured: 5 and 1.8 times as fast)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
        windows = F.pad(x, (padding,) * 4).unfold(2, weight.shape[3], stride).unfold(3, weight.shape[4], stride)
        patches = windows.permute(0, 1, 4, 5, 2, 3).reshape(len(x), weight[0, 0].numel(), -1)
        ctx.save_for_backward(x, weight, patches)
        ctx.settings = stride, padding
        return torch.bmm(weight.flatten(2), patches)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight, patches = ctx.saved_tensors
        stride, padding = ctx.settings
        if torch.is_grad_enabled():
            function = partial(_by_patches, stride=stride, padding=padding)
            return *_again(ctx, (x, weight), function, upstream), None, None
        dx, dw = None, None
        if ctx.needs_input_grad[1]:
            dw = torch.bmm(patches, upstream.transpose(1, 2)).transpose(1, 2).reshape(weight.shape)
        if ctx.needs_input_grad[0]:
            back = torch.bmm(weight.flatten(2).transpose(1, 2), upstream)
            kernel = (weight.shape[3], weight.shape[4])
            dx = F.fold(back, x.shape[2:], kernel, padding=padding, stride=stride)
        return dx, dw, None, None


def _again(
    ctx: Any, inputs: tuple[Tensor, ...], function: Callable[..., Tensor], upstream: Tensor
) -> tuple[Tensor | None, ...]:
    """A backward that can be differentiated in its turn: through `function`, made of ordinary operations."""
    needed = ctx.needs_input_grad[: len(inputs)]
    wanted = [tensor for tensor, need in zip(inputs, needed, strict=True) if need]
    found = iter(torch.autograd.grad(function(*inputs), wanted, upstream, create_graph=True))
    return tuple(next(found) if need else None for need in needed)


class _Native(torch.autograd.Function):
    """Compiled kernels; without a mask `weight` is [N, O, I, k, k]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, mask: Tensor | None, stride: int, padding: int) -> Tensor:
        ctx.save_for_backward(x, weight, mask)
        ctx.settings = stride, padding
        return native.forward(x, weight, mask, stride, padding)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight, mask = ctx.saved_tensors
        stride, padding = ctx.settings
        if not torch.is_grad_enabled():
            needed = ctx.needs_input_grad[:3]
            return *native.backward(x, weight, mask, upstream, stride, padding, needed), None, None
        if mask is None:
            again = partial(conv2d_per_example, stride=stride, padding=padding, method="grouped")
            return *_again(ctx, (x, weight), again, upstream), None, None, None
        again = partial(_masked_plainly, stride=stride, padding=padding)
        return *_again(ctx, (x, weight, mask), again, upstream), None, None


class _Grouped(torch.autograd.Function):
    """`conv2d_masked` by groups, a few examples at a time so that their filters stay in the cache."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, mask: Tensor, stride: int, padding: int) -> Tensor:
        ctx.save_for_backward(x, weight, mask)
        ctx.settings = stride, padding
        height, width = _sizes(x, weight.shape[2:], stride, padding)
        out = x.new_empty(len(x), len(weight), height, width)
        for rows in _chunks(len(x), weight.numel()):
            out[rows] = conv2d_per_example(x[rows], weight * mask[rows], stride, padding, "grouped")
        return out

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight, mask = ctx.saved_tensors
        stride, padding = ctx.settings
        if torch.is_grad_enabled():
            again = partial(_masked_plainly, stride=stride, padding=padding)
            return *_again(ctx, (x, weight, mask), again, upstream), None, None
        for_x, for_weight, for_mask, *_ = ctx.needs_input_grad
        dx = torch.empty_like(x) if for_x else None
        dw = torch.zeros_like(weight) if for_weight else None
        dm = torch.empty_like(mask) if for_mask else None
        for rows in _chunks(len(x), weight.numel()):
            count = len(x[rows])
            images, filters, _ = torch.ops.aten.convolution_backward(
                upstream[rows].reshape(1, -1, *upstream.shape[2:]),
                x[rows].reshape(1, -1, *x.shape[2:]),
                (weight * mask[rows]).flatten(0, 1),
                None,
                (stride, stride),
                (padding, padding),
                (1, 1),
                False,
                (0, 0),
                count,
                (for_x, for_weight or for_mask, False),
            )
            if dx is not None:
                dx[rows] = images.view(count, *x.shape[1:])
            if dm is not None:
                torch.mul(filters.view(count, *weight.shape), weight, out=dm[rows])
            if dw is not None:
                dw += filters.view(count, *weight.shape).mul_(mask[rows]).sum(0)
        return dx, dw, dm, None, None


def _masked_plainly(x: Tensor, weight: Tensor, mask: Tensor, stride: int, padding: int) -> Tensor:
    return conv2d_per_example(x, weight * mask, stride, padding, "grouped")


def _chunks(count: int, each: int) -> list[slice]:
    rows = max(1, _CACHE // each)
    return [slice(start, min(start + rows, count)) for start in range(0, count, rows)]
