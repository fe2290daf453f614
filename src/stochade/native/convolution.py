"""Calls of `convolution.c`: convolutions with filters of each example's own, and their gradients (float32, CPU).

Examples are split over `torch.get_num_threads()` threads; at an equal number of threads equal inputs give equal bits.
"""

import ctypes
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from stochade.native.build import load
from stochade.native.tensors import readable
from stochade.native.threads import parts, spread

STRIDES = (1, 2)
_LONG, _POINTER = ctypes.c_long, ctypes.c_void_p
_LARGEST = 1 << 31  # of what tables of 32-bit offsets reach
_WORTH = 1 << 23  # products that are worth a thread of their own


def ready() -> bool:
    """Whether the kernels can be had; compiles them on first use."""
    return load("convolution") is not None


def suits(x: Tensor, weight: Tensor, stride: int, padding: int) -> bool:
    """Whether the kernels take images [N, I, H, W] and filters [..., O, I, k, k] of this kind."""
    return readable(x, weight) and len(x) > 0 and _fits(x.shape[1:], weight.shape[-4:], stride, padding)


@lru_cache
def _fits(image: Sequence[int], filters: Sequence[int], stride: int, padding: int) -> bool:
    outputs, inputs, rows, columns = filters
    height, width = image[1] + 2 * padding, image[2] + 2 * padding
    return (
        stride in STRIDES
        and padding >= 0
        and min(outputs, inputs, rows, columns, height - rows + 1, width - columns + 1) > 0
        and max(outputs, inputs) * (height + rows) * (width + columns) < _LARGEST
        and outputs * inputs * rows * columns < _LARGEST
    )


def forward(x: Tensor, weight: Tensor, mask: Tensor | None, stride: int, padding: int) -> Tensor:
    """Row n is the convolution of `x[n]` with `weight * mask[n]`, or with `weight[n]` where there is no mask.

    Args:
        x: [N, I, H, W].
        weight: [O, I, k, k]; without a mask [N, O, I, k, k].
        mask: [N, O, I, k, k].

    Returns: [N, O, H', W'].

    Raises:
        MemoryError: no room for the intermediate results of an example.
    """
    x, weight, mask = x.contiguous(), weight.contiguous(), None if mask is None else mask.contiguous()
    height, width = ((x.shape[i] + 2 * padding - weight.shape[i]) // stride + 1 for i in (-2, -1))
    out = x.new_empty(len(x), weight.shape[-4], height, width)
    shape, tensors = (
        _shape(x.shape[1:], weight.shape[-4:], stride, padding),
        [_address(t) for t in (x, weight, mask, out)],
    )
    call = _kernels().forward
    spread([lambda a=a, b=b: call(shape, *tensors, a, b) for a, b in _parts(x, weight, out)])
    return out


def backward(
    x: Tensor,
    weight: Tensor,
    mask: Tensor | None,
    upstream: Tensor,
    stride: int,
    padding: int,
    needed: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of `forward` to input, weights and masks, None where not `needed`.

    Args:
        upstream: [N, O, H', W'].

    Raises:
        MemoryError: as `forward`.
    """
    x, weight, mask = x.contiguous(), weight.contiguous(), None if mask is None else mask.contiguous()
    upstream = upstream.contiguous().resolve_neg()
    shape, ranges = _shape(x.shape[1:], weight.shape[-4:], stride, padding), _parts(x, weight, upstream)
    for_x, for_weight, for_mask = needed
    dx = torch.empty_like(x) if for_x else None
    if mask is None:  # the kernels give the gradient of each example's filters where masks would have theirs
        dm, sums = torch.empty_like(weight) if for_weight else None, None
    else:
        dm = torch.empty_like(mask) if for_mask else None
        sums = weight.new_zeros(len(ranges), *weight.shape) if for_weight else None  # of every thread
    tensors = [_address(t) for t in (x, weight, mask, upstream, dx, dm)]
    own = [_address(None if sums is None else sums[i]) for i in range(len(ranges))]
    call = _kernels().backward
    spread([lambda a=a, b=b, dw=dw: call(shape, *tensors, dw, a, b) for (a, b), dw in zip(ranges, own, strict=True)])
    if mask is None:
        return dx, dm, None
    return dx, sums if sums is None else sums[0] if len(ranges) == 1 else sums.sum(0), dm


def _kernels() -> ctypes.CDLL:
    library = load("convolution")
    if library is None:
        raise RuntimeError("no compiled kernels: ask ready() first")
    if library.backward.argtypes is None:
        library.forward.argtypes = [_POINTER] * 5 + [_LONG] * 2
        library.backward.argtypes = [_POINTER] * 8 + [_LONG] * 2
    return library


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


@lru_cache
def _shape(image: Sequence[int], filters: Sequence[int], stride: int, padding: int) -> ctypes.Array:
    outputs, _, rows, columns = filters
    return (_LONG * 8)(*image, outputs, rows, columns, stride, padding)


def _parts(x: Tensor, weight: Tensor, out: Tensor) -> list[tuple[int, int]]:
    """Ranges of examples, one for each thread."""
    work = out.numel() * weight.shape[-3] * weight.shape[-2] * weight.shape[-1]
    return parts(len(x), work // _WORTH)
