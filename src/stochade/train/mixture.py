"""Every batch either clean or under one attack out of several: the lab report's adversarial training."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor, nn

from stochade.errors import UsageError
from stochade.randomness import seed_for
from stochade.train.objectives import Standard, TrainingObjective, check_start, crafted, measured


@dataclass(frozen=True)
class Mixture:
    """The inner loss on the whole batch as it is with probability `clean`, else under one of `attacks`, all equally
    likely.

    Args:
        attacks: at least one, `(model, x, y, seed=...) -> x_adv`; crafted as in `Adversarial`.
        clean: 4/8 in the lab report (kaspar2024, section 3.1), whose four attacks have the other four eighths.
        start: epochs of clean training before.
        inner: the loss.

    Raises:
        UsageError: no attacks, or a probability outside [0, 1]. BudgetError: a start before epoch 0.
        ImagesError: an attack that returns other shapes or values that are not finite.
    """

    attacks: tuple[Callable[..., Any], ...]
    clean: float = 0.5
    start: int = 0
    inner: TrainingObjective = field(default_factory=Standard)

    def __post_init__(self):
        object.__setattr__(self, "attacks", tuple(self.attacks))
        if not self.attacks or not all(callable(attack) for attack in self.attacks):
            raise UsageError("at least one attack for a mixture", repr(self.attacks))
        if not 0 <= self.clean <= 1:
            raise UsageError("a probability of clean batches in [0, 1]", repr(self.clean))
        check_start(self.start)

    def chosen(self, seed: int) -> Callable[..., Any] | None:
        """The attack for the batch of that seed; None: the batch stays clean."""
        number = np.random.default_rng(seed_for(seed, "mixture")).random()
        if number < self.clean:
            return None
        return self.attacks[int((number - self.clean) / (1 - self.clean) * len(self.attacks))]

    def __call__(self, forward, x: Tensor, y: Tensor, *, model: nn.Module, seed: int, epoch: int = 0) -> Any:
        attack = None if epoch < self.start else self.chosen(seed)
        images = x if attack is None else crafted(attack, model, x, y, seed)
        told = measured(self.inner, forward, images, y, model=model, seed=seed, epoch=epoch)
        return tuple(told) if told.terms else (told.loss, told.logits)
