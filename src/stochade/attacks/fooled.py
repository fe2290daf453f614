"""When may an example leave the attack: at once on a deterministic model, after a sequential test on a random one.

One unlucky draw proves nothing about a random model. An example leaves only when P(correct) < 0.05 is
established at the 95 % level, the level being spent over the steps t as a / (t (t + 1)), which sums to a.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from stochade.attacks.gradients import TILE, Model, check_logits
from stochade.nn.discrete import scope_of
from stochade.randomness import fingerprint

LIMIT = 0.05  # an example leaves when it is right less often than this
LEVEL = 0.05
OFTEN = 16


def draws_needed(step: int) -> int:
    """Wrong draws in a row that establish P(correct) < LIMIT at step `step` (1-based)."""
    return math.ceil(math.log(LEVEL / (step * (step + 1))) / math.log(1 - LIMIT))


def misses(logits: Tensor, y: Tensor, targets: Tensor | None) -> Tensor:
    """[draws, N] whether each draw is what the attacker wants: not y, or the target."""
    predicted = logits.argmax(-1)
    return predicted != y if targets is None else predicted == targets


@dataclass
class Watch:
    """Tells deterministic models from random ones while the attack runs.

    A known scope decides. An unknown model counts as deterministic while no forward moves the global
    generators and points that fool it give the same logits again; from the first that does not, it counts as
    random. The generators are read around the first forwards, those that repeat one, and every OFTEN-th: on a few
    images reading them takes as long as a small network.
    """

    model: Model
    deterministic: bool = False
    _before: tuple | None = None
    _calls: int = 0

    def __post_init__(self):
        self.scope = scope_of(self.model)
        self.deterministic = self.scope in ("none", "unknown")

    def __enter__(self) -> "Watch":
        due = self._calls < OFTEN or self._calls % OFTEN == 0
        self._calls += 1
        self._before = fingerprint() if due and self.scope == "unknown" and self.deterministic else None
        return self

    def __exit__(self, *_) -> None:
        if self._before is not None and fingerprint() != self._before:
            self.deterministic = False

    @torch.no_grad()
    def repeats(self, x: Tensor, logits: Tensor) -> bool:
        """Whether the model is deterministic as far as one more forward can tell: an unknown one may have a
        generator of its own, or state. `logits` [n, K] are those it gave at x."""
        if self.deterministic and self.scope == "unknown":
            self._calls = 0
            with self:
                again = check_logits(self.model(x), len(x))
            if not torch.allclose(again, logits, rtol=1e-3, atol=1e-5):
                self.deterministic = False
        return self.deterministic


@torch.no_grad()
def confirm(
    model: Model, x: Tensor, y: Tensor, targets: Tensor | None, free: int, needed: int, tiled: bool
) -> tuple[Tensor, Tensor]:
    """Forward-only draws until each example has `needed` misses in a row or one draw that is right.

    Args:
        free: misses already seen at x.

    Returns:
        [n] whether the example may leave, and [n] forwards spent.
    """
    alive = torch.arange(len(x), device=x.device)
    leaves = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    spent = torch.zeros(len(x), dtype=torch.long, device=x.device)
    count, batch = free, 1
    while len(alive) and count < needed:
        d = min(batch, needed - count, max(1, TILE // len(alive))) if tiled else 1
        points, labels = x[alive].repeat(d, *(1,) * (x.dim() - 1)), y[alive].repeat(d)
        goal = None if targets is None else targets[alive].repeat(d)
        missed = misses(check_logits(model(points), len(points)), labels, goal).view(d, -1).all(0)
        spent[alive] += d
        alive = alive[missed]
        count, batch = count + d, batch * 2
    leaves[alive] = True
    return leaves, spent
