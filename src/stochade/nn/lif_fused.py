"""Integrate-and-fire neurons over a whole sequence: the plain loop, and the same as one operation.

    h[t] = decay v[t-1] + gain x[t]      s[t] = 1 where h[t] >= threshold, else 0      v[t] = reset(h[t], s[t])

with v[-1] = 0. The operation keeps its input for the backward and nothing else: potentials are worked out again, a
block of neurons at a time, in compiled kernels where they can be had: `native/lif.c`, and `native/lif_triton.py` on a
GPU (tested on Triton's interpreter, not measured on a GPU). Spikes are the loop's bit for bit.

A hard reset takes an infinite potential back too (it does not multiply by 0), and no gradient comes from there.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stochade.native import lif as native
from stochade.native.tensors import recorded
from stochade.nn.adaptive import PerForward
from stochade.nn.discrete import Surrogate
from stochade.nn.surrogates import ClosedForm, Mixture

_NARROW = (torch.float16, torch.bfloat16)  # potentials add up: kept in float32
_BLOCK = 1 << 17  # neurons of a block on the CPU: their potentials of a step should stay in a cache
Fire = Callable[[int, Tensor], Tensor]  # step, distances to the threshold -> spikes, with a derivative


@dataclass(frozen=True)
class Dynamics:
    """What a neuron does besides leaking: potentials are counted from the resting one, which is 0.

    Attributes:
        threshold: of firing, positive. hard: a neuron that fires goes back to 0, else it loses `threshold`.
        decayed_input: the gain of the input is 1 - decay, else 1. detached: no gradient through the reset.
    """

    threshold: float = 1.0
    hard: bool = False
    decayed_input: bool = False
    detached: bool = False

    def gain(self, decay: Any) -> Any:
        return 1 - decay if self.decayed_input else 1


def spikes(x: Tensor, decay: float | Tensor, dynamics: Dynamics, surrogate: Surrogate) -> Tensor:
    """Spikes of inputs [T, ...], with the surrogate's derivative at the distances to the threshold.

    Surrogates that say their derivative (`ClosedForm`, `Mixture`, `PerForward`) take one operation, others the loop.
    The derivative of the derivative is the loop's.
    """
    if isinstance(surrogate, PerForward):
        if not (torch.is_grad_enabled() and any(isinstance(t, Tensor) and t.requires_grad for t in (x, decay))):
            return _fused(x, decay, dynamics, None, None)
        with torch.no_grad():
            weights = surrogate.weights(distances(x.detach(), decay, dynamics))
        return _fused(x, decay, dynamics, None, weights)
    if isinstance(surrogate, ClosedForm | Mixture):
        return _fused(x, decay, dynamics, surrogate, None)
    return loop(x, decay, dynamics, _by(surrogate))


def distances(x: Tensor, decay: float | Tensor, dynamics: Dynamics) -> Tensor:
    """Potentials before the reset, less the threshold, [T, ...] like `x`."""
    seen: list[Tensor] = []
    loop(x, decay, dynamics, lambda t, u: seen.append(u) or (u >= 0).to(u.dtype))
    return torch.stack(seen) if seen else x.clone()


def loop(x: Tensor, decay: float | Tensor, dynamics: Dynamics, fire: Fire) -> Tensor:
    """Step by step, `fire(t, u)` making spikes of the distances to the threshold; for automatic differentiation."""
    wide = x.float() if x.dtype in _NARROW else x
    decay = decay.to(wide) if isinstance(decay, Tensor) else decay
    gain, v, out = dynamics.gain(decay), torch.zeros_like(wide[0]), []
    most = max(dynamics.threshold, _largest(v) ** 0.5)  # products of upstream gradients with it stay finite
    for t, now in enumerate(wide.unbind(0)):
        h = decay * v + gain * now
        s = fire(t, h - dynamics.threshold)
        back = s.detach() if dynamics.detached else s
        v = h.clamp(max=most) * (1 - back) if dynamics.hard else h - dynamics.threshold * back
        out.append(s)
    return torch.stack(out).to(x.dtype)


def _by(surrogate: Surrogate) -> Fire:
    return lambda t, u: surrogate((u.detach() >= 0).to(u.dtype), u)


def _weighted(weights: Tensor) -> Fire:
    return lambda t, u: (u.detach() >= 0).to(u.dtype) + weights[t] * (u - u.detach())


def _fused(
    x: Tensor, decay: float | Tensor, dynamics: Dynamics, surrogate: ClosedForm | Mixture | None, weights: Any
) -> Tensor:
    if recorded() or x.numel() == 0:  # function transforms and compilers see through the loop
        fire = _weighted(weights) if weights is not None else _by(surrogate) if surrogate else _hard
        return loop(x, decay, dynamics, fire)
    return _Sequence.apply(x, decay, dynamics, surrogate, weights)  # type: ignore[return-value]


def _hard(t: int, u: Tensor) -> Tensor:
    return (u >= 0).to(u.dtype)


class _Sequence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, decay: float | Tensor, dynamics: Dynamics, surrogate: Any, weights: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(x, decay if isinstance(decay, Tensor) else None, weights)
        ctx.decay = float(decay.detach() if isinstance(decay, Tensor) else decay)
        ctx.dynamics, ctx.surrogate = dynamics, surrogate
        if native.suits(x):
            return native.forward(x, _neurons(ctx.decay, dynamics, ClosedForm(_none)))
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
        for part, to in zip(_blocks(x), _blocks(out), strict=True):
            _fire(part, ctx.decay, dynamics, to, None)
        return out

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        x, decay, weights = ctx.saved_tensors
        for_x, for_decay = ctx.needs_input_grad[:2]
        if torch.is_grad_enabled():  # somebody wants to differentiate this derivative
            return _again(ctx, x, decay, weights, upstream)
        d, dynamics, surrogate = ctx.decay, ctx.dynamics, ctx.surrogate
        if isinstance(surrogate, ClosedForm) and native.suits(x, upstream):
            neurons = _neurons(d, dynamics, surrogate)
            gradient, inner = native.backward(x, upstream, neurons, for_decay, dynamics.decayed_input)
        else:
            gradient, inner = _backward(x, upstream, weights, d, dynamics, surrogate, for_decay)
        slope = None if not for_decay else torch.full_like(decay, inner or 0.0)
        return gradient if for_x else None, slope, None, None, None


def _again(ctx: Any, x: Tensor, decay: Tensor | None, weights: Tensor | None, upstream: Tensor) -> tuple[Any, ...]:
    """The gradients by the loop, with a graph."""
    fire = _by(ctx.surrogate) if weights is None else _weighted(weights)
    out = loop(x, ctx.decay if decay is None else decay, ctx.dynamics, fire)
    wanted = [t for t, needed in zip((x, decay), ctx.needs_input_grad[:2], strict=True) if needed and t is not None]
    found = iter(torch.autograd.grad(out, wanted, upstream, create_graph=True))
    return *(next(found) if needed else None for needed in ctx.needs_input_grad[:2]), None, None, None


def _none(x: Tensor) -> Tensor:
    return x


def _neurons(decay: float, dynamics: Dynamics, form: ClosedForm) -> native.Neurons:
    gain, attached = float(dynamics.gain(decay)), not dynamics.detached
    return native.Neurons(
        decay, gain, dynamics.threshold, dynamics.hard, attached, form.profile, form.height, form.scale, form.centre
    )


def _blocks(x: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """For every block of neurons what it has in each step."""
    flat = x.reshape(len(x), -1)
    for part in flat.split(_BLOCK if x.device.type == "cpu" else flat.shape[1], 1):
        yield part.unbind(0)


def _wide(x: Tensor) -> torch.dtype:
    return torch.float32 if x.dtype in _NARROW else x.dtype


def _fire(
    xs: Sequence[Tensor], decay: float, dynamics: Dynamics, out: Sequence[Tensor] | None, hs: Sequence[Tensor] | None
) -> None:
    """Spikes of a block into `out`, potentials before the reset into `hs`, each where it is wanted."""
    gain, last, wide = dynamics.gain(decay), len(xs) - 1, _wide(xs[0])
    h, v, own = torch.empty(3, len(xs[0]), dtype=wide, device=xs[0].device)
    for t, x in enumerate(xs):
        h = h if hs is None else hs[t]
        now = x if gain == 1 else x.to(wide) * gain
        h.copy_(now) if t == 0 else torch.mul(v, decay, out=h).add_(now)
        s = own if out is None or out[t].dtype != wide else out[t]
        if out is not None or t < last:
            torch.ge(h, dynamics.threshold, out=s)
        if out is not None and s is own:
            out[t].copy_(s)
        if t < last:
            _left(h, s, dynamics, v)


def _largest(h: Tensor) -> float:
    return torch.finfo(h.dtype).max


def _left(h: Tensor, s: Tensor, dynamics: Dynamics, out: Tensor | None = None) -> Tensor:
    """Potentials after the reset."""
    if dynamics.hard:
        v = torch.clamp(h, max=_largest(h), out=out)
        return v.addcmul_(v, s, value=-1)
    return torch.sub(h, s, alpha=dynamics.threshold, out=out)


def _backward(
    x: Tensor, upstream: Tensor, weights: Tensor | None, decay: float, dynamics: Dynamics, surrogate: Any, inner: bool
) -> tuple[Tensor, float]:
    """Gradients to the input and, where `inner`, to the decay.

    With p = dL/dh, p[t] = up[t] slope(h[t]) + decay p[t+1] dv[t]/dh[t]; dL/dx = gain p; dL/ddecay is the sum of
    p[t] v[t-1], or of p[t] (v[t-1] - h[t]) / (1 - decay) where the input is decayed too.
    """
    out, total, gain = torch.empty_like(x, memory_format=torch.contiguous_format), 0.0, dynamics.gain(decay)
    every = _blocks(x if weights is None else weights)
    for xs, ups, outs, ws in zip(_blocks(x), _blocks(upstream), _blocks(out), every, strict=True):
        hs = torch.empty(len(xs), len(xs[0]), dtype=_wide(x), device=x.device).unbind(0)
        _fire(xs, decay, dynamics, None, hs)
        after = None
        for t in range(len(xs) - 1, -1, -1):
            h, direct = hs[t], gain == 1 and outs[t].dtype == hs[t].dtype
            each = surrogate.derivative(h, dynamics.threshold) if weights is None else ws[t]
            if dynamics.hard:
                h.clamp_(max=_largest(h))
            p = torch.mul(ups[t], each, out=outs[t] if direct else None)
            if after is not None:
                keep = _kept(h, each, decay, dynamics)
                p.add_(after, alpha=decay) if keep is None else p.addcmul_(after, keep)
            if not direct:
                outs[t].copy_(p * gain)
            if inner and t:
                before = hs[t - 1]
                v = _left(before, before.ge(dynamics.threshold).to(before.dtype), dynamics)
                total += float(torch.sum(p * v, dtype=torch.float64))
            if inner and dynamics.decayed_input:
                total -= float(torch.sum(p * h, dtype=torch.float64))
            after = p
    return out, total / (1 - decay if dynamics.decayed_input else 1)


def _kept(h: Tensor, each: Tensor, decay: float, dynamics: Dynamics) -> Tensor | None:
    """decay times dv/dh, h being the potentials and `each` the surrogate's derivative; None where it is the decay."""
    if not dynamics.hard:
        return None if dynamics.detached else torch.rsub(each, decay, alpha=decay * dynamics.threshold)
    stays = torch.lt(h, dynamics.threshold, out=torch.empty_like(h))
    return (stays if dynamics.detached else stays.addcmul_(h, each, value=-1)).mul_(decay)
