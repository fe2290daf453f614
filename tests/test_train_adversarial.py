"""Adversarial training: the loss, what the attack sees, what it must return, and the names of settings."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from small_training import Dying, digits, run, sign_step, small, squares
from stochade.errors import (
    ImagesError,
    UsageError,
)
from stochade.registry import build
from stochade.train import Adversarial, Standard, adversarial, standard, train
from stochade.train.settings import named


def test_the_mixture_is_equation_2_29():
    model = small("mlp")
    x, y = squares()[:8]
    y = torch.as_tensor(y)
    moved = sign_step(model, x, y, seed=0)
    clean, attacked = F.cross_entropy(model(x), y), F.cross_entropy(model(moved), y)
    for weight in (0.0, 0.3, 0.5, 1.0):
        loss, logits = adversarial(sign_step, weight)(model, x, y, model=model, seed=0)
        torch.testing.assert_close(loss, weight * clean + (1 - weight) * attacked)
        assert torch.equal(logits, model(moved if weight == 0 else x))
    assert standard() == Standard()


def test_crafting_sees_evaluation_mode_and_draws_of_its_own():
    """The attack's first draws must not be those of the training pass that follows."""
    seen = {}

    class Spy(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(2, 16))

        def forward(self, x):
            seen.setdefault(self.training, []).append(torch.rand(4))
            return F.linear(x.flatten(1), self.weight)

    def attack(model, x, y, *, seed):
        seen["seed"] = seed
        moved = x.clone().requires_grad_()
        model(moved).sum().backward()  # a sloppy attack
        return moved

    model = Spy().train()
    x, y = squares()[:4]
    _, logits = Adversarial(attack, 0.0)(model, x, torch.as_tensor(y), model=model, seed=7)
    assert model.training
    assert model.weight.grad is None
    assert torch.autograd.grad(logits.sum(), model.weight)[0].any()
    assert seen["seed"] == 7
    assert not torch.equal(seen[True][0], seen[False][0])


def test_adversarial_training_helps_against_its_own_attack():
    data, validation = digits(0, 600), digits(600, 800)
    accuracies = []
    for objective in (Standard(), Adversarial(sign_step, 0.5)):
        torch.manual_seed(0)
        model = build("mlp")
        train(model, data, validation, epochs=10, lr=1e-2, objective=objective, progress=False)
        x, y = validation[:]
        moved = sign_step(model, x, torch.as_tensor(y), seed=0)
        with torch.no_grad():
            accuracies.append((model(moved).argmax(1).numpy() == y).mean())
    assert accuracies[1] > accuracies[0] + 0.05


def test_attacks_that_return_nonsense_are_refused():
    for attack in (lambda m, x, y, seed: x[:1], lambda m, x, y, seed: None, lambda m, x, y, seed: x * float("nan")):
        with pytest.raises(ImagesError):
            run(small(), objective=Adversarial(attack))
    with pytest.raises(UsageError, match="weight"):
        Adversarial(sign_step, 1.5)


def test_names_in_settings_hold_no_addresses_and_tell_settings_apart():
    from functools import partial

    stronger = partial(sign_step, size=0.2)
    names = {named(Adversarial(a, w)) for a in (sign_step, stronger, partial(sign_step)) for w in (0.3, 0.5)}
    assert len(names) == 6
    assert not any("0x" in name for name in names)
    assert named(Dying(3)) == "Dying"
