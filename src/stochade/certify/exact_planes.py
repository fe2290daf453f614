"""Convolutions, paddings and pools over [C,H,W] as matrices and index lists over the flattened planes."""

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy import sparse
from torch import Tensor

from stochade.errors import ModelError

Shape = tuple[int, ...]


def check_planes(shape: Shape, channels: int | None = None) -> None:
    """ModelError for values of one example that are not [C,H,W], or have another number of channels."""
    if len(shape) != 3 or channels not in (None, shape[0]):
        raise ModelError(f"[{channels or 'C'},H,W] before a convolution, padding or pool", f"{list(shape)}")


def convolution(
    shape: Shape, weight: Tensor, padding: Any, stride: Any, dilation: Any, groups: int
) -> tuple[sparse.csr_array, Shape]:
    """The matrix of a convolution with weight [O,I,h,w] (float64) and zero padding, and the shape that it gives."""
    check_planes(shape, weight.shape[1] * groups)
    pads, strides, spread = _pair(padding), _pair(stride), _pair(dilation)
    channels, size = weight.shape[0] // groups, shape[0] // groups
    places = _places(shape)[None]
    kernels = weight.flatten(1).numpy()
    rows, columns, entries, area = [], [], [], 0
    for group in range(groups):
        part = places[:, group * size : (group + 1) * size]
        field = F.unfold(part, weight.shape[2:], spread, pads, strides)[0].long().numpy()  # type: ignore[arg-type]
        inside, area = field > 0, field.shape[1]
        for out in range(group * channels, (group + 1) * channels):
            rows.append(out * area + np.nonzero(inside)[1])
            columns.append(field[inside] - 1)
            entries.append(np.broadcast_to(kernels[out][:, None], field.shape)[inside])
    where = (np.concatenate(rows), np.concatenate(columns))
    matrix = sparse.csr_array((np.concatenate(entries), where), shape=(len(weight) * area, math.prod(shape)))
    height, width = (
        (shape[i + 1] + 2 * pads[i] - spread[i] * (weight.shape[i + 2] - 1) - 1) // strides[i] + 1 for i in (0, 1)
    )
    return matrix, (len(weight), height, width)


def zero_padding(shape: Shape, padding: tuple[int, int, int, int]) -> tuple[sparse.csr_array, Shape]:
    """The matrix of a zero padding (left, right, top, bottom), and the shape that it gives."""
    check_planes(shape)
    padded = F.pad(_places(shape), padding).long()
    flat = padded.flatten().numpy()
    here = np.nonzero(flat)[0]
    matrix = sparse.csr_array((np.ones(len(here)), (here, flat[here] - 1)), shape=(len(flat), math.prod(shape)))
    return matrix, tuple(padded.shape)


def windows(shape: Shape, layer: Any) -> tuple[tuple[np.ndarray, ...], Shape]:
    """The inputs of every output of an nn.MaxPool2d, and the shape that it gives."""
    check_planes(shape)
    places = _places(shape)[:, None]
    kernel, dilation, padding, stride = map(_pair, (layer.kernel_size, layer.dilation, layer.padding, layer.stride))
    field = F.unfold(places, kernel, dilation, padding, stride).long()
    out = F.max_pool2d(places, kernel, stride, padding, dilation)
    found = tuple(w[w > 0] - 1 for w in field.transpose(1, 2).reshape(-1, field.shape[1]).numpy())
    return found, (out.shape[0], *out.shape[2:])


def _places(shape: Shape) -> Tensor:
    """The numbers 1, 2, ... of the units; 0 is for what padding adds."""
    return torch.arange(1, math.prod(shape) + 1).double().view(shape)


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)
