"""SA-PGD: projected gradient ascent with normalised momentum and adaptive steps, made for spiking networks (the
attack that ASSG came with, CVPR 2026; its numbers are those of the authors' code).

    m <- 0.5 m + g / mean|g|      v <- 0.8 v + g^2 / mean g^2      x <- clip(x + clip(eta m / sqrt(v), -eta, eta))

eta begins at the budget and halves at the checkpoints of auto-PGD, whatever was gained. Surrogate gradients of
spiking networks differ by orders of magnitude between images and steps, and their signs flip: normalised momentum
keeps what lasts, and a step is full only where signs agree.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from stochade.attacks.apgd import APGD
from stochade.attacks.ascent import Ascent, SignAscent
from stochade.attacks.ball import Ball, like, rows_of
from stochade.attacks.threats import Linf
from stochade.errors import BudgetError

MOMENTUM, SECOND = 0.5, 0.8  # what is kept of m and v


class StableAscent(SignAscent):
    """The steps of SA-PGD under linf."""

    reach = 1.0

    def prepare(self, steps: int, fresh: bool) -> None:
        super().prepare(steps, fresh)
        self.first, self.second = torch.zeros_like(self.x), torch.zeros_like(self.x)

    def judged(self, gradient: Tensor) -> Tensor:
        self.size = self.size / 2
        return gradient

    def move(self, gradient: Tensor) -> None:
        tiny = torch.finfo(gradient.dtype).tiny
        whole = rows_of(gradient)
        whole = whole / whole.abs().amax(1, keepdim=True).clamp_min(tiny)  # squares of tiny gradients underflow
        size = whole.abs()
        self.first.mul_(MOMENTUM).add_((whole / size.mean(1, keepdim=True).clamp_min(tiny)).view_as(gradient))
        share = whole.square() / size.square().mean(1, keepdim=True).clamp_min(tiny)
        self.second.mul_(SECOND).add_(share.view_as(gradient))
        step = (self.first / self.second.sqrt().clamp_min(tiny**0.5)).clamp_(-1, 1)
        self.x, self.old = torch.clamp(self.x + step * like(self.size, step), self.low, self.high), self.x
        self.moves += 1


@dataclass(frozen=True)
class SAPGD(APGD):
    """SA-PGD under linf. Who leaves, what is handed back and how random models are treated is as in `APGD`; the
    authors take 100 steps, on networks of Poisson codes 50 steps of 10 draws.

    Args:
        threat, steps, objective, gradient, restarts, drop_fooled: as for `APGD`. rho and wide have no meaning here.

    Raises:
        BudgetError: another threat than Linf, or numbers that make no sense.
    """

    def __post_init__(self):
        if not isinstance(self.threat, Linf):
            raise BudgetError("Linf for SA-PGD", repr(self.threat), "APGD takes l2 and l1 too")
        super().__post_init__()
        if self.wide:
            raise BudgetError("wide=False for SA-PGD", "wide=True")

    def _state(self, threat: Ball, x0: Tensor, x: Tensor, steps: int, fresh: bool) -> Ascent:
        return StableAscent(threat, x0, x, steps, self.rho, fresh)
