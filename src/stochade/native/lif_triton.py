"""The kernels of `lif.c` in Triton, for GPUs; imports triton, so only `native/gpu.py` imports this.

A program takes a block of neurons through all steps. The backward works potentials out again and keeps them in
registers, so that memory sees the input, the upstream gradient and the gradient only. Products and sums are not fused
(`enable_fp_fusion=False`), so that potentials have the bits of ATen's. Inputs of 16 bits are added up in float32.
"""

# pyright: reportMissingImports=false, reportIndexIssue=false
# (triton comes with torch's builds for CUDA only)

import torch
import triton
import triton.language as tl
from torch import Tensor

from stochade.native.lif import Neurons

STEPS = 32  # the backward's loops are unrolled: longer ones take long to compile, and registers end
_THREADS, _HELD, _EACH = 128, 40, 4  # of a program; potentials that a thread holds, its neurons, at most


@triton.jit
def _slope(u, height, scale, centre, PROFILE: tl.constexpr):
    z = (u - centre) * scale
    if PROFILE == "cauchy":
        return height / (z * z + 1.0)
    elif PROFILE == "logistic":
        e = tl.exp(-tl.abs(z))  # 4 s (1 - s) of s = sigmoid(z), without overflow
        return 4.0 * height * e / ((e + 1.0) * (e + 1.0))
    elif PROFILE == "hat":
        y = 1.0 - tl.abs(z)
        return height * tl.where(y > 0.0, y, 0.0)
    elif PROFILE == "box":
        return tl.where(tl.abs(z) <= 1.0, height, 0.0)
    elif PROFILE == "normal":
        return height * tl.exp(-0.5 * z * z)
    else:
        tl.static_assert(PROFILE == "laplace")
        return height * tl.exp(-tl.abs(z))


@triton.jit
def _left(h, threshold, HARD: tl.constexpr):
    if HARD:
        return tl.where(h >= threshold, 0.0, h)
    else:
        return h - tl.where(h >= threshold, threshold, 0.0)


@triton.jit
def forward_kernel(x, out, steps, neurons, decay, gain, threshold, HARD: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < neurons
    v = tl.zeros([BLOCK], tl.float32)
    for _ in range(steps):
        now = tl.load(x + i, mask=inside, other=0.0).to(tl.float32)
        h = v * decay + now * gain
        tl.store(out + i, tl.where(h >= threshold, 1.0, 0.0).to(out.dtype.element_ty), mask=inside)
        v = _left(h, threshold, HARD)
        x += neurons
        out += neurons


@triton.jit
def backward_kernel(
    x, up, dx, sums, neurons, decay, gain, threshold, height, scale, centre, inputs,
    STEPS: tl.constexpr, HARD: tl.constexpr, ATTACHED: tl.constexpr, PROFILE: tl.constexpr, INNER: tl.constexpr,
    BLOCK: tl.constexpr, LARGEST: tl.constexpr = 3.4028234663852886e38,
):  # fmt: skip
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < neurons
    hs = ()
    v = tl.zeros([BLOCK], tl.float32)
    for t in tl.static_range(STEPS):
        h = v * decay + tl.load(x + i, mask=inside, other=0.0).to(tl.float32) * gain
        hs = hs + (h,)  # noqa: RUF005
        v = _left(h, threshold, HARD)
        if t + 1 < STEPS:
            x += neurons
            up += neurons
            dx += neurons
    p = tl.zeros([BLOCK], tl.float32)
    part = tl.zeros([BLOCK], tl.float32)
    for back in tl.static_range(STEPS):
        h = hs[STEPS - 1 - back]
        each = _slope(h - threshold, height, scale, centre, PROFILE)
        if HARD:  # no gradient comes from an infinite potential that is reset to 0
            h = tl.where(h > LARGEST, LARGEST, h)
        now = tl.load(up + i, mask=inside, other=0.0).to(tl.float32) * each
        if back > 0:  # dv/dh
            stays = tl.where(h >= threshold, 0.0, 1.0) if HARD else 1.0
            if ATTACHED:
                stays = stays - (h if HARD else threshold) * each
            now += p * decay * stays
        p = now
        tl.store(dx + i, (p * gain).to(dx.dtype.element_ty), mask=inside)
        if INNER:
            if back + 1 < STEPS:
                part += p * (_left(hs[STEPS - 2 - back], threshold, HARD) - inputs * h)
            else:
                part -= p * inputs * h
        up -= neurons
        dx -= neurons
    if INNER:
        tl.store(sums + tl.program_id(0), tl.sum(part.to(tl.float64), 0))


def forward(x: Tensor, n: Neurons) -> Tensor:
    """Spikes, 0 and 1, of inputs [T, ...] of 16 or 32 bits."""
    x = x.contiguous()
    out, neurons, block = torch.empty_like(x), x[0].numel(), _THREADS * _EACH
    with torch.cuda.device_of(x):
        forward_kernel[(-(-neurons // block),)](
            x, out, len(x), neurons, n.decay, n.gain, n.threshold, HARD=n.hard, BLOCK=block, **_options()
        )  # fmt: skip
    return out


def backward(
    x: Tensor, upstream: Tensor, n: Neurons, for_decay: bool, decayed_input: bool
) -> tuple[Tensor, float | None]:
    """As `lif.backward`, of `STEPS` steps at most."""
    x, upstream = x.contiguous(), upstream.contiguous()
    out, neurons, block = torch.empty_like(x), x[0].numel(), held(len(x))
    programs = -(-neurons // block)
    sums = torch.empty(programs if for_decay else 1, dtype=torch.float64, device=x.device)
    with torch.cuda.device_of(x):
        backward_kernel[(programs,)](
            x, upstream, out, sums, neurons, n.decay, n.gain, n.threshold, n.height, n.scale, n.centre,
            float(decayed_input), STEPS=len(x), HARD=n.hard, ATTACHED=n.attached, PROFILE=n.profile, INNER=for_decay,
            BLOCK=block, **_options(),
        )  # fmt: skip
    if not for_decay:
        return out, None
    return out, float(sums.sum()) / (1 - n.decay if decayed_input else 1)


def held(steps: int) -> int:
    """Neurons of a program in the backward, a power of two: their potentials stay in registers."""
    return _THREADS * min(_EACH, 1 << (_HELD // steps).bit_length() - 1)


def _options() -> dict[str, int | bool]:
    return {"num_warps": _THREADS // 32, "enable_fp_fusion": False}
