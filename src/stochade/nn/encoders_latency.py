"""Latency coding: one spike per pixel, the earlier the brighter."""

from functools import partial

import torch
from torch import Tensor

from stochade.nn.discrete import Discrete, Surrogate
from stochade.nn.encoders import check_pixels, check_steps, repeat_over_time


def spike_time(x: Tensor, steps: int) -> Tensor:
    """(T - 1)(1 - clip(x, 0, 1)), before it is rounded."""
    return (steps - 1) * (1 - x.clamp(0, 1))


def interpolated(x: Tensor, steps: int) -> Tensor:
    """The spike shared between the two frames next to its time: max(0, 1 - |t - time|), continuous in x and equal to
    the code where the time is whole."""
    frames = torch.arange(steps, dtype=x.dtype, device=x.device).view(-1, *(1,) * (x.dim() - 1))
    return (1 - (frames - spike_time(x, steps).unsqueeze(1)).abs()).clamp_min(0)


def bumps(x: Tensor, steps: int, width: float) -> Tensor:
    """The spike as a normal bump of deviation `width` frames around its time, summing to one over the frames."""
    frames = torch.arange(steps, dtype=x.dtype, device=x.device).view(-1, *(1,) * (x.dim() - 1))
    return (-0.5 * ((frames - spike_time(x, steps).unsqueeze(1)) / width).square()).softmax(1)


class Latency(Discrete):
    """One spike per pixel, in frame round((T - 1)(1 - x)): [N,C,H,W] -> [N,T,C,H,W] in {0, 1}. Deterministic.

    The own derivative is zero almost everywhere. The own surrogate, "interpolated", is the derivative of sharing the
    spike between the two frames next to its time; "soft" that of a normal bump one frame wide; "ste" and "identity"
    repeat the gradient over time. Relaxed: "mean-field" (the shared spike) and "warm" (the bump).

    Args:
        steps: time steps T.

    Raises:
        BudgetError: fewer than one step. ImagesError (when called): images that are not float, or not finite.
    """

    scope = "none"
    alphabet = (0.0, 1.0)

    def __init__(self, steps: int = 8):
        steps = check_steps(steps)
        shared, soft = partial(interpolated, steps=steps), partial(bumps, steps=steps, width=1.0)
        own, ste = Surrogate(shared, "interpolated"), Surrogate(partial(repeat_over_time, steps=steps), "ste")
        super().__init__(
            own,
            {"interpolated": own, "soft": Surrogate(soft, "soft"), "ste": ste, "identity": ste},
            {"mean-field": shared, "warm": soft},
        )
        self.steps = steps

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(check_pixels(x))

    def hard(self, x: Tensor) -> Tensor:
        time = spike_time(x, self.steps).round().long().unsqueeze(1)
        codes = torch.zeros(len(x), self.steps, *x.shape[1:], dtype=x.dtype, device=x.device)
        return codes.scatter_(1, time, 1.0)

    def extra_repr(self) -> str:
        return f"steps={self.steps}"
