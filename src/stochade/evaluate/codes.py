"""Scores of attacks on codes. One draw is one fresh encoding and one attack on it; flips that are fixed before the
encoding is drawn are chosen once, and one draw is one fresh encoding with them applied."""

import time
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from stochade.attacks.base import Attack, Attempt
from stochade.attacks.codes import attacks_codes, checked_codes, encode, encoder_and_network, flips_of
from stochade.attacks.gradients import check_logits
from stochade.attacks.oblivious import FixedFlips, ObliviousSEA
from stochade.errors import BudgetError
from stochade.randomness import reseed, seed_for


def check_code_attacks(model: object, attacks: Mapping[str, Attack]) -> None:
    """ModelError for attacks on codes of a model that has none of their alphabet, BudgetError for fixed flips in
    another attack than `ObliviousSEA`; before any compute."""
    for name, attack in attacks.items():
        if not attacks_codes(attack):
            continue
        encoder_and_network(model, flips_of(attack))
        if isinstance(attack.threat, FixedFlips) and not isinstance(attack, ObliviousSEA):
            raise BudgetError(f"ObliviousSEA for fixed flips under the name {name!r}", repr(attack))


def runs(attack: Attack | None, draws: int) -> int:
    """How often an attack runs on an example for `draws` scoring draws, and as many that select."""
    return 2 * draws if attacks_codes(attack) and not isinstance(flips_of(attack), FixedFlips) else 1


class CodeDraws:
    """One attack on the codes of one chunk of images, inside `untouched(model)`.

    Attributes:
        attempt: the search of the first scoring draw, for the records; its `distance` is the largest of all draws.
    """

    attempt: Attempt

    def __init__(self, model, x: Tensor, y: Tensor, ids: Tensor, attack: Attack, name: str, seed: int, index: int):
        self.model, self.x, self.y, self.ids, self.attack, self.name = model, x, y, ids, attack, name
        self.seed, self.index, self._seconds, self._runs = seed, index, 0.0, 0
        self.threat = flips_of(attack)
        _, self.network = encoder_and_network(model, self.threat)
        if isinstance(self.threat, FixedFlips):
            self._remember(self._searched(model, x, seed, seed_for(seed, "draws", name, index)))

    def _searched(self, model, inputs: Tensor, seed: int, model_seed: int) -> Attempt:
        start = time.perf_counter()
        attempt = self.attack.run(model, inputs, self.y, seed=seed, ids=self.ids, model_seed=model_seed)
        if inputs.is_cuda:
            torch.cuda.synchronize(inputs.device)
        self._seconds += time.perf_counter() - start
        return attempt

    def _remember(self, attempt: Attempt) -> None:
        if self._runs:
            attempt = replace(self.attempt, distance=torch.maximum(self.attempt.distance, attempt.distance))
        self.attempt, self._runs = attempt, self._runs + 1

    @property
    def seconds(self) -> float:
        """Of one search, the mean over all."""
        return self._seconds / max(1, self._runs)

    @torch.no_grad()
    def logits(self, draws: int, purpose: str) -> Tensor:
        """[draws, N, K] on attacked codes; equal purposes give equal draws."""
        return torch.stack([self._draw(seed_for(self.seed, purpose, self.name, self.index, d)) for d in range(draws)])

    def _draw(self, seed: int) -> Tensor:
        codes = encode(self.model, self.x, self.threat, seed_for(seed, "codes"))
        if isinstance(self.threat, FixedFlips):
            attacked = self.threat.apply(self.attempt.inputs, codes)
        else:
            with torch.enable_grad():
                attempt = self._searched(self.network, codes, seed, seed_for(seed, "draws"))
            self._remember(attempt)
            attacked = attempt.inputs
        checked_codes(attacked, codes, self.threat, self.name)
        reseed(seed_for(seed, "score"))  # the network's own noise, fresh for the attack
        return check_logits(self.network(attacked), len(self.x)).cpu()
