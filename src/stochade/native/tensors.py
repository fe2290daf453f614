"""Which tensors kernels may read by their addresses."""

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

PLAIN = (Tensor, torch.nn.Parameter)  # subclasses may have no memory, or mean something else by it


def recorded() -> bool:
    """Whether somebody records what is done with tensors: tracing, compilation, function transforms, forward-mode
    derivatives, dispatch modes."""
    return (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch._C._are_functorch_transforms_active()
        or torch.autograd.forward_ad._current_level >= 0
        or _get_current_dispatch_mode() is not None
    )


def readable(*tensors: Tensor) -> bool:
    """Whether these are real float32 tensors on the CPU whose memory holds their values, and nobody is recording
    what is done with them."""
    return not recorded() and all(
        type(t) in PLAIN and t.device.type == "cpu" and t.dtype == torch.float32 and not t.is_neg() for t in tensors
    )
