"""How views look at the networks of a recipe: guarded, with seeds of their own, in pieces that fit in memory."""

import torch
from torch import Tensor, nn

from stochade.attacks import Attack
from stochade.attacks.registry import parse_attack
from stochade.nn.discrete import scope_of
from stochade.randomness import reseed, seed_for, untouched
from stochade.recipes.result import Reproduction, budgets_of

PIECE = 256  # images per forward


def logits_of(model: nn.Module, x: Tensor, *purpose: object, draws: int = 1) -> Tensor:
    """[draws, N, K] logits of independent draws; the model and the generators stay as they were.

    Args:
        purpose: what the seed is derived from.
    """
    with untouched(model), torch.no_grad():
        reseed(seed_for(0, "view", *purpose))
        return torch.stack([torch.cat([model(part) for part in x.split(PIECE)]) for _ in range(draws)])


def draws_for(model: nn.Module, draws: int) -> int:
    """One draw where nothing is random."""
    return 1 if scope_of(model) == "none" else draws


def device_of(model: nn.Module) -> torch.device:
    """Where the network's weights are."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def attack_of(r: Reproduction, index: int = 0) -> Attack:
    """The recipe's attack of that number at its largest budget, as this scale has it."""
    chosen = r.recipe.attack[index]
    budget = max(here for _, here in budgets_of(chosen, r.settings))
    return parse_attack(chosen.attack, chosen.threat(budget))  # type: ignore[arg-type]
