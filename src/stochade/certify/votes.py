"""Votes of a randomised classifier: how many of n independent draws choose each class."""

import torch
from torch import Tensor

from stochade.attacks.gradients import check_logits
from stochade.certify.smoothing import Model, Smoothing
from stochade.randomness import reseed, seed_for

Votes = Tensor  # [K] int64


class Voter:
    """Draws of one input, block by block; only inside `untouched(model)`.

    Block b of a purpose is a function of (seed, purpose, identity, b, batch) and of nothing else, so a longer run
    begins with the draws of a shorter one.

    Args:
        x: one input [1,...]. identity: of the example. batch: draws per forward.
    """

    def __init__(self, model: Model, smoothing: Smoothing, x: Tensor, seed: int, identity: int, batch: int):
        smoothing.check_inputs(x)
        self.model, self.smoothing, self.x = model, smoothing, x
        self.seed, self.identity, self.batch = seed, identity, batch

    @torch.no_grad()
    def block(self, purpose: str, index: int, draws: int) -> Tensor:
        """Classes [draws] of the first `draws` rows of a block."""
        reseed(seed_for(self.seed, "certificate", purpose, self.identity, index))
        logits = self.smoothing.draw(self.model, self.x.expand(draws, *self.x.shape[1:]))
        return check_logits(logits, draws).argmax(1)

    def votes(self, purpose: str, draws: int, classes: int) -> Votes:
        """Votes [classes] of so many draws, on the CPU."""
        counts = torch.zeros(classes, dtype=torch.int64, device=self.x.device)
        for index, start in enumerate(range(0, draws, self.batch)):
            chosen = self.block(purpose, index, min(self.batch, draws - start))
            counts += torch.bincount(chosen, minlength=classes)
        return counts.cpu()
