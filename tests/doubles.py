"""A tiny model, examples and attacks at module level, so that they travel to worker processes."""

import numpy as np
import torch
from torch import nn

from stochade import FGSM, PGD, Backprop, Linf, Records, UniformNoise, evaluate
from stochade.models.known_answer import CoinFlip


class Base(nn.Module):
    """A linear two-class model on 4x4 images with margins far above 1e-6."""

    scope = "none"

    def forward(self, x):
        score = 20 * (x.flatten(1).mean(1) - 0.5)
        return torch.stack([-score, score], 1)


def examples(n=60, seed=0):
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 2, (n,), generator=generator)
    x = torch.rand(n, 1, 4, 4, generator=generator) * 0.2 + 0.2 + 0.4 * y[:, None, None, None]
    return x, y


ATTACKS = {"noise": UniformNoise(Linf(1e-3)), "fgsm": FGSM(1e-3), "pgd": PGD(1e-3, steps=3, gradient=Backprop(2))}


def run(out=None, seed=0, chunk=20, workers=0, model=None, attacks=None, n=60, **options):
    x, y = examples(n)
    model = CoinFlip(Base()).eval() if model is None else model
    options = {"show_progress": False, "draws": 6} | options
    return evaluate(
        model,
        x,
        y,
        ATTACKS if attacks is None else attacks,
        seed=seed,
        chunk=chunk,
        workers=workers,
        out=out,
        **options,
    )


class Line(nn.Module):
    """Two classes of codes, logits (0, <w, z> + b): one flip of a known place decides."""

    scope = "none"

    def __init__(self, w: torch.Tensor, b: float):
        super().__init__()
        self.w, self.b = w, b

    def forward(self, z):
        score = (z * self.w).flatten(1).sum(1) + self.b
        return torch.stack([torch.zeros_like(score), score], 1)


def same(a: Records, b: Records) -> bool:
    fields = ("predictions", "selection", "vote_logits", "distance", "value", "forwards", "backwards", "trace")
    return list(a.attacks) == list(b.attacks) and all(
        np.array_equal(getattr(a.attacks[n], f), getattr(b.attacks[n], f), equal_nan=f in ("value", "trace"))
        for n in a.attacks
        for f in fields
    )


class Told:
    """Records by hand: attack -> right [N, draws]."""

    def __init__(self, rights):
        self.rights = rights

    def right(self, attack):
        return self.rights[attack]

    def noise_block(self):
        return None
