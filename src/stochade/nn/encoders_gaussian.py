"""Randomised smoothing coding (wu2024, section 3.2): Gaussian noise on the image in every time step."""

import math
from functools import partial

import torch
from torch import Tensor

from stochade.errors import UsageError
from stochade.nn.discrete import Discrete, Surrogate
from stochade.nn.encoders import check_steps, repeat_over_time


def clamped_mean(x: Tensor, sigma: float) -> Tensor:
    """E[clip(x + sigma n, 0, 1)] for n standard normal; its derivative is P(0 < x + sigma n < 1)."""
    if sigma == 0:
        return x.clamp(0, 1)
    low, high = -x / sigma, (1 - x) / sigma
    inside = _cdf(high) - _cdf(low)
    return x * inside + sigma * (_density(low) - _density(high)) + _cdf(-high)


def clamped_variance(x: Tensor, sigma: float) -> Tensor:
    """Var[clip(x + sigma n, 0, 1)] for n standard normal."""
    if sigma == 0:
        return torch.zeros_like(x)
    low, high = -x / sigma, (1 - x) / sigma
    inside = _cdf(high) - _cdf(low)
    tails = low * _density(low) - high * _density(high)
    square = (x.square() + sigma**2) * inside + 2 * x * sigma * (_density(low) - _density(high))
    return square + sigma**2 * tails + _cdf(-high) - clamped_mean(x, sigma).square()


def _cdf(t: Tensor) -> Tensor:
    return torch.special.ndtr(t)


def _density(t: Tensor) -> Tensor:
    return torch.exp(-0.5 * t.square()) / math.sqrt(2 * math.pi)


def _expected(x: Tensor, steps: int, sigma: float) -> Tensor:
    return repeat_over_time(clamped_mean(x, sigma), steps)


def _without_noise(x: Tensor, steps: int) -> Tensor:
    return repeat_over_time(x.clamp(0, 1), steps)


class RSC(Discrete):
    """clip(x + sigma n, 0, 1) in every step: [N,C,H,W] -> [N,T,C,H,W] in [0, 1] (wu2024, equations 7 to 10).

    Kind "I" draws n once for all steps of an example, kind "II" anew in every step. The own backward is that of the
    clipped noisy image (1 where it is inside, by draw). Substitutes: "ste", "identity" (1 everywhere) and
    "expectation" (the probability of being inside). Relaxed: "mean-field" (the expected code) and "quiet" (no noise).

    Args:
        sigma: standard deviation in units of images; "RSC-0.1" of the paper is the variance, sigma = sqrt(0.1).
        steps: time steps T.
        kind: "I" or "II".

    Raises:
        BudgetError: fewer than one step. UsageError: a negative or infinite sigma, another kind.
    """

    scope = "example"
    alphabet = None  # codes are real numbers: no flips

    def __init__(self, sigma: float, steps: int = 4, kind: str = "I"):
        steps = check_steps(steps)
        if isinstance(sigma, bool) or not (isinstance(sigma, int | float) and math.isfinite(sigma) and sigma >= 0):
            raise UsageError("a standard deviation >= 0", repr(sigma), "RSC-0.1 of the paper is sigma=0.1**0.5")
        if kind not in ("I", "II"):
            raise UsageError("kind 'I' or 'II'", repr(kind))
        mean = partial(_expected, steps=steps, sigma=float(sigma))
        ste = Surrogate(partial(repeat_over_time, steps=steps), "ste")
        expectation = Surrogate(mean, "expectation")
        super().__init__(
            expectation,
            {"ste": ste, "identity": ste, "expectation": expectation},
            {"mean-field": mean, "quiet": partial(_without_noise, steps=steps)},
        )
        self.sigma, self.steps, self.kind = float(sigma), steps, kind

    def hard(self, x: Tensor) -> Tensor:
        frames = 1 if self.kind == "I" else self.steps
        noise = torch.randn(len(x), frames, *x.shape[1:], dtype=x.dtype, device=x.device)
        return torch.add(x.unsqueeze(1), noise, alpha=self.sigma).clamp(0, 1).expand(-1, self.steps, *x.shape[1:])

    def forward(self, x: Tensor) -> Tensor:
        if self._forward is None and self._backward is None:
            return self.hard(x)  # not discrete: its own derivative is right
        return super().forward(x)

    def extra_repr(self) -> str:
        return f"sigma={self.sigma:g}, steps={self.steps}, kind={self.kind!r}"
