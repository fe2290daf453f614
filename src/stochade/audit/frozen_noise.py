"""What is left of a random model when its noise is known: frozen, then brought back step by step."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from stochade.attacks import Backprop, Descent, Ensemble, Frozen
from stochade.attacks.base import Attack
from stochade.randomness import FrozenNoise, seed_for, untouched

SINGLE = 4  # realisations that are attacked one by one
POOLS = (2, 8)  # realisations that the noise is drawn from


def frozen_noise(model: nn.Module, x: Tensor, y: Tensor, attack: Attack, name: str, seed: int = 0) -> dict[str, Any]:
    """Accuracy when the attacker knows from which realisations the noise comes: one, then some, on x as one batch.

    The noise is frozen by seeding the generators before every forward. An attack on n realisations averages its
    gradient over all of them and is scored on the same ones, so for n = 1 it faces an ordinary network.

    Args:
        attack: a descent by backpropagation; its gradient is used with one draw per realisation.
        name: what the records call it.

    Returns:
        {"attack": name, "right": {"1": rows, "2": rows, ...}}: for every example a row of 0 and 1, one entry per
        realisation. Empty where the attack is of another kind.
    """
    if not isinstance(attack, Descent) or not isinstance(attack.gradient, Backprop) or attack.gradient.relaxed:
        return {}
    inner = replace(attack.gradient, draws=1)
    seeds = [seed_for(seed, "realisation", i) for i in range(max(*POOLS, SINGLE))]

    def right(chosen: list[int]) -> Tensor:
        parts = [Frozen(inner, s) for s in chosen]
        gradient = parts[0] if len(parts) == 1 else Ensemble(parts, normalised=False)
        informed = replace(attack, gradient=gradient, restarts=1, keep="last", drop_fooled=False)
        points = informed(model, x, y, seed=seed)
        with untouched(model), torch.no_grad():
            return torch.stack([FrozenNoise(model, s)(points).argmax(1) == y for s in chosen], 1)

    table = {1: torch.cat([right([s]) for s in seeds[:SINGLE]], 1)} | {n: right(seeds[:n]) for n in POOLS}
    return {"attack": name, "right": {str(n): rows.long().tolist() for n, rows in table.items()}}
