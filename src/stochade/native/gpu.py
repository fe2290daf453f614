"""Kernels in Triton, which torch's builds for CUDA bring: imported and tried once on a device, when they are needed.

Where triton is missing or does not work, `suits` is False, callers use ATen's operations, and `status` says why.
`STOCHADE_NATIVE=0`, when kernels are first asked for, does the same.
"""

import importlib.util
import os
import threading
from types import ModuleType

import torch
from torch import Tensor

from stochade.native.tensors import PLAIN, recorded

_TYPES = (torch.float32, torch.float16, torch.bfloat16)
_MOST = 1 << 30  # neurons, whose numbers have 32 bits

_lock = threading.Lock()
_tried: dict[torch.device, "ModuleType | str"] = {}  # or the reason why not


def holds(x: Tensor) -> bool:
    """Whether a tensor lies on a GPU that torch calls "cuda" (NVIDIA's, and AMD's)."""
    return x.is_cuda


def suits(*tensors: Tensor) -> bool:
    """Whether the kernels take these, [T, ...] on one GPU and of one type, and work there (tried on first use)."""
    first = tensors[0]
    fit = (
        type(t) in PLAIN and not t.is_neg() and t.device == first.device and t.dtype == first.dtype for t in tensors
    )
    if recorded() or first.dtype not in _TYPES or not all(fit) or not 0 < first.numel() < _MOST * len(first):
        return False
    found = _found(first.device)
    return not isinstance(found, str) and len(first) <= found.STEPS


def kernels(device: torch.device) -> ModuleType:
    """`lif_triton`, where `suits` says that it works."""
    found = _found(device)
    if isinstance(found, str):
        raise RuntimeError(f"no kernels on {device} ({found}): ask suits(x) first")
    return found


def status() -> str:
    """ "ready", or why there are no kernels on the GPUs of this machine. Tries them where they were not tried."""
    if not torch.cuda.is_available():
        return "no GPU"
    found = {f"cuda:{i}": _found(torch.device("cuda", i)) for i in range(torch.cuda.device_count())}
    reasons = [f"{device}: {reason}" for device, reason in found.items() if isinstance(reason, str)]
    return "; ".join(reasons) or "ready"


def _found(device: torch.device) -> "ModuleType | str":
    if device not in _tried:
        with _lock:
            if device not in _tried:
                _tried[device] = _attempt(device)
    return _tried[device]


def _attempt(device: torch.device) -> "ModuleType | str":
    if os.environ.get("STOCHADE_NATIVE") == "0":
        return "switched off by STOCHADE_NATIVE=0"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    try:  # needs a C compiler, an assembler and a driver: whatever is missing shows here
        from stochade.native import lif_triton
        from stochade.native.lif import Neurons

        neurons = Neurons(0.5, 1.0, 1.0, False, False, "box", 1.0, 0.0, 0.0)
        x, upstream = torch.tensor([[2.0], [0.0]], device=device), torch.ones(2, 1, device=device)
        spikes = lif_triton.forward(x, neurons).flatten().tolist()
        gradient = lif_triton.backward(x, upstream, neurons, False, False)[0].flatten().tolist()
    except Exception as error:  # of triton's, of the compiler's, of the driver's
        said = str(error).strip().splitlines()
        return f"{type(error).__name__}: {said[0] if said else ''}".removesuffix(": ")
    if (spikes, gradient) != ([1.0, 0.0], [1.5, 1.0]):
        return f"wrong results: spikes {spikes}, gradient {gradient}"
    return lif_triton
