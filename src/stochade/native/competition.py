"""Calls of `competition.c`: logistic noise and competitions between two units (float32, CPU).

The noise follows one number drawn from torch's default generator. `noise` and `draw` give the same noise for the same
number, so a draw with a record for the backward and one without are the same draw. It does not depend on threads.
"""

import ctypes
import math

import torch
from torch import Tensor

from stochade.native.build import load
from stochade.native.tensors import readable
from stochade.native.threads import parts, spread

_LONG, _POINTER, _SEED = ctypes.c_long, ctypes.c_void_p, ctypes.c_uint64
_SMALLEST = 16  # positions from where the kernels fill their vectors
_BLOCK = 4096  # competitions of a block, about
_WORTH = 1 << 16  # competitions that are worth a thread of their own


def suits(x: Tensor) -> bool:
    """Whether the kernels take `x`, [N, C, ...], and can be had (compiles them on first use)."""
    return (
        x.ndim > 2
        and x.shape[1] > 1
        and len(x) > 0
        and math.prod(x.shape[2:]) >= _SMALLEST
        and readable(x)
        and load("competition") is not None
    )


def noise(x: Tensor) -> Tensor:
    """Standard logistic noise for competitions between neighbouring channels of `x`, [N, C / 2, ...]."""
    out = x.new_empty(x.shape[0], x.shape[1] // 2, *x.shape[2:])
    rows, size, per = _sizes(x)
    seed, call = _seed(), _kernels().noise
    _run(rows, per, size, lambda a, b: call(out.data_ptr(), rows, size, per, seed, a, b))
    return out


def draw(x: Tensor, temperature: float) -> Tensor:
    """Neighbouring channels of `x` times their shares of a fresh draw, as `x` shaped; no record for a backward."""
    x = x.detach().contiguous()
    out = torch.empty_like(x)
    rows, size, per = _sizes(x)
    seed, call = _seed(), _kernels().draw
    addresses = x.data_ptr(), out.data_ptr()
    _run(rows, per, size, lambda a, b: call(*addresses, rows, size, per, temperature, seed, a, b))
    return out


def _sizes(x: Tensor) -> tuple[int, int, int]:
    """(rows, positions of a row, rows of a block)."""
    size = math.prod(x.shape[2:])
    return len(x) * (x.shape[1] // 2), size, max(1, _BLOCK // size)


def _seed() -> int:
    return int(torch.empty((), dtype=torch.int64).random_()) & 0xFFFFFFFFFFFFFFFF


def _run(rows: int, per: int, size: int, call) -> None:
    blocks = -(-rows // per)
    spread([lambda a=a, b=b: call(a, b) for a, b in parts(blocks, rows * size // _WORTH)])


def _kernels() -> ctypes.CDLL:
    library = load("competition")
    if library is None:
        raise RuntimeError("no compiled kernels: ask suits(x) first")
    if library.draw.argtypes is None:  # set last, so that another thread finds all of it
        library.noise.restype = library.draw.restype = None
        library.noise.argtypes = [_POINTER, *[_LONG] * 3, _SEED, *[_LONG] * 2]
        library.draw.argtypes = [*[_POINTER] * 2, *[_LONG] * 3, ctypes.c_float, _SEED, *[_LONG] * 2]
    return library
