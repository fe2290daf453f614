"""Integrate-and-fire neurons over a whole sequence, and the gradient through them: calls of `lif.c` (float32, CPU),
and of `lif_triton.py` where the tensors lie on a GPU.

On the CPU neurons are split over `torch.get_num_threads()` threads; results do not depend on how many there are.
"""

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor

from stochade.native import gpu
from stochade.native.build import load
from stochade.native.tensors import readable
from stochade.native.threads import parts, spread

PROFILES = ("cauchy", "logistic", "hat", "box", "normal", "laplace")  # in the order of lif.c
_LONG, _FLOAT, _POINTER = ctypes.c_long, ctypes.c_float, ctypes.c_void_p
_SCRATCH = 1 << 16  # potentials that a block may have: they should stay in the second cache
_WIDEST, _NARROWEST = 4096, 64  # neurons of a block, a multiple of every machine's lanes
_PAST = 1 << 25  # bytes of a tensor from where its results would only push others out of the caches
_WORTH = 1 << 16  # potentials that are worth a thread of their own


class _Rule(ctypes.Structure):
    _fields_ = (
        *((name, _LONG) for name in ("steps", "neurons", "block")),
        *((name, _FLOAT) for name in ("decay", "gain", "threshold", "attached", "height", "scale", "centre")),
        *((name, ctypes.c_int) for name in ("hard", "profile", "past")),
    )


@dataclass(frozen=True)
class Neurons:
    """h = decay v + gain x; s = [h >= threshold]; v = h - threshold s, or 0 where `hard` neurons fired. `attached`:
    the reset has a gradient. The derivative of s at u = h - threshold is height * profile(scale * (u - centre))."""

    decay: float
    gain: float
    threshold: float
    hard: bool
    attached: bool
    profile: str
    height: float
    scale: float
    centre: float


def suits(*tensors: Tensor) -> bool:
    """Whether the kernels take these, [T, ...], and can be had (compiles them on first use)."""
    if gpu.holds(tensors[0]):
        return gpu.suits(*tensors)
    return readable(*tensors) and all(t.numel() > 0 for t in tensors) and load("lif") is not None


def forward(x: Tensor, neurons: Neurons) -> Tensor:
    """Spikes, 0 and 1, of inputs [T, ...].

    Raises:
        MemoryError: no room for the potentials of a block.
    """
    if gpu.holds(x):
        return gpu.kernels(x.device).forward(x, neurons)
    x = x.contiguous()
    out = torch.empty_like(x)
    rule, call, addresses = _rule(x, neurons), _kernels().forward, (x.data_ptr(), out.data_ptr())
    spread([lambda a=a, b=b: call(ctypes.byref(rule), *addresses, a, b) for a, b in _parts(rule)])
    return out


def backward(
    x: Tensor, upstream: Tensor, neurons: Neurons, for_decay: bool, decayed_input: bool
) -> tuple[Tensor, float | None]:
    """Gradients of `forward` to the input and, where asked for, to the decay; `decayed_input`: the gain is 1 - decay.

    Raises:
        MemoryError: as `forward`.
    """
    if gpu.holds(x):
        return gpu.kernels(x.device).backward(x, upstream, neurons, for_decay, decayed_input)
    x, upstream = x.contiguous(), upstream.contiguous()
    out = torch.empty_like(x)
    rule, call = _rule(x, neurons), _kernels().backward
    blocks = -(-rule.neurons // rule.block)
    sums = torch.empty(blocks if for_decay else 0, dtype=torch.float64)
    addresses = x.data_ptr(), upstream.data_ptr(), out.data_ptr(), sums.data_ptr() if for_decay else None
    inputs = float(decayed_input)
    spread([lambda a=a, b=b: call(ctypes.byref(rule), *addresses, inputs, a, b) for a, b in _parts(rule)])
    if not for_decay:
        return out, None
    return out, float(sums.sum()) / (1 - neurons.decay if decayed_input else 1)


def _rule(x: Tensor, n: Neurons) -> _Rule:
    steps, neurons = len(x), x[0].numel()
    block = max(_NARROWEST, min(_WIDEST, _SCRATCH // steps) // _NARROWEST * _NARROWEST)
    surrogate = n.height, n.scale, n.centre, int(n.hard), PROFILES.index(n.profile)
    past = int(4 * x.numel() >= _PAST and not neurons % 64)
    return _Rule(steps, neurons, block, n.decay, n.gain, n.threshold, float(n.attached), *surrogate, past)


def _parts(rule: _Rule) -> list[tuple[int, int]]:
    return parts(-(-rule.neurons // rule.block), rule.steps * rule.neurons // _WORTH)


def _kernels() -> ctypes.CDLL:
    library = load("lif")
    if library is None:
        raise RuntimeError("no compiled kernels: ask suits(x) first")
    if library.backward.argtypes is None:  # set last, so that another thread finds all of it
        library.forward.argtypes = [_POINTER] * 3 + [_LONG] * 2
        library.backward.argtypes = [_POINTER] * 5 + [_FLOAT] + [_LONG] * 2
    return library
