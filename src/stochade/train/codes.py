"""Adversarial training on codes: the loss of attacked codes, not of attacked images (mukhoty2025, section 5)."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from stochade.attacks.ball import Ball
from stochade.attacks.base import Attack
from stochade.attacks.codes import attack_codes, attacks_codes, encoder_and_network, flips_for, flips_of
from stochade.attacks.oblivious import FixedFlips
from stochade.attacks.registry import CODE_ATTACKS, parse_attack
from stochade.errors import BudgetError, UsageError
from stochade.randomness import reseed, untouched
from stochade.train.objectives import (
    LABELS,
    Adversarial,
    Measured,
    Standard,
    TrainingObjective,
    check_start,
    measured,
)


@contextmanager
def handed_over(model: nn.Module, codes: Tensor) -> Iterator[None]:
    """Inside the block the model's encoder gives these codes whatever image it sees; it still draws its own."""
    encoder: Any = model.encoder

    def instead(_encoder: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return codes.to(output.dtype)

    handle = encoder.register_forward_hook(instead)
    try:
        yield
    finally:
        handle.remove()


@dataclass(frozen=True)
class AdversarialCodes:
    """weight * loss(clean) + (1 - weight) * loss(attacked codes), each a mean over the batch.

    Each batch is encoded afresh and its codes attacked in evaluation mode, on draws of their own; the model is left
    untouched. Parameters get their gradient through the network behind the encoder only, so an encoder that learns
    needs a weight above 0. Terms of the inner objective are weighted like its loss.

    Args:
        attack: on codes, such as SEA(Flips(5)); with steps > 1 pass drop_fooled=False, so that nobody leaves early.
        weight: of the clean loss, in [0, 1]; 0 as in mukhoty2025.
        inner: the loss of both parts.
        labels: what the attack pushes away from: the "true" labels, or the classes "predicted" for the clean images
            by one draw of the model (which leaks no label).
        start: epochs of clean training before.

    Raises:
        UsageError: a weight outside [0, 1], or labels of another kind. BudgetError: a start before epoch 0, an attack
            on images, or one whose flips are fixed before the encoding. ModelError (when called): a model without
            encoder and network, or an encoder with codes of other letters.
    """

    attack: Attack
    weight: float = 0.0
    inner: TrainingObjective = field(default_factory=Standard)
    labels: str = "true"
    start: int = 0

    def __post_init__(self):
        if isinstance(flips_of(self.attack), FixedFlips):
            raise BudgetError("an attack on given codes, for training", repr(self.attack), "take SEA(Flips(k))")
        if not 0 <= self.weight <= 1:
            raise UsageError("a weight of the clean loss in [0, 1]", repr(self.weight))
        if self.labels not in LABELS:
            raise UsageError(f"labels among {list(LABELS)}", repr(self.labels))
        check_start(self.start)

    def __call__(
        self, forward: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, *, model: nn.Module, seed: int,
        epoch: int = 0,
    ) -> Any:  # fmt: skip
        given: dict[str, Any] = {"model": model, "seed": seed, "epoch": epoch}
        if self.weight == 1 or epoch < self.start:
            return tuple(measured(self.inner, forward, x, y, **given))
        codes = self._attacked(model, x, y, seed)

        def on_codes(images: Tensor) -> Tensor:
            with handed_over(model, codes):
                return forward(images)

        attacked = measured(self.inner, on_codes, x, y, **given)
        if self.weight == 0:
            return tuple(attacked)
        clean = measured(self.inner, forward, x, y, **given)
        mixed = [self.weight * a + (1 - self.weight) * b for a, b in _pairs(clean, attacked)]
        return mixed[0], clean.logits, dict(zip(clean.terms, mixed[1:], strict=True))

    def _attacked(self, model: nn.Module, x: Tensor, y: Tensor, seed: int) -> Tensor:
        encoder_and_network(model, flips_of(self.attack))
        with untouched(model):
            reseed(seed)
            model.eval()
            if self.labels == "predicted":
                with torch.no_grad():
                    y = model(x).argmax(1)
            return attack_codes(self.attack, model, x, y, seed=seed).attacked.detach()


def _pairs(clean: Measured, attacked: Measured) -> list[tuple[Tensor, Tensor]]:
    return [(clean.loss, attacked.loss), *((clean.terms[name], attacked.terms[name]) for name in clean.terms)]


def names_codes(text: str) -> bool:
    """Whether an attack's text names one of those on codes."""
    return next(iter(text.split()), "") in CODE_ATTACKS


def parse_for(text: str, threat: Ball, model: object) -> Attack:
    """`parse_attack` for one model: attacks on codes take its encoder's letters, unless the text names others.

    Args:
        model: None where there is none yet.

    Raises:
        ModelError: an attack on codes of a model that has none of these letters. Else as `parse_attack`.
    """
    attack = parse_attack(text, flips_for(model) if names_codes(text) else threat)
    if model is not None and attacks_codes(attack):
        encoder_and_network(model, flips_of(attack))
    return attack


def adversarial_by(
    attack: Attack, weight: float, inner: TrainingObjective, labels: str = "true", start: int = 0
) -> Adversarial | AdversarialCodes:
    """The objective that trains on an attack, on images or on codes."""
    kind = AdversarialCodes if attacks_codes(attack) else Adversarial
    return kind(attack, weight, inner=inner, labels=labels, start=start)
