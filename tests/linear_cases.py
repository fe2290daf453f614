"""Images and linear models whose worst case under a threat is known."""

import numpy as np
import torch

import oracles
from stochade.models.known_answer import KnownAnswer, Linear


def data(count: int = 8, pixels: int = 9, classes: int = 2, seed: int = 0):
    """Images with a third of the pixels exactly 0 or 1."""
    g = torch.Generator().manual_seed(seed)
    side = int(pixels**0.5)
    x = (1.5 * torch.rand(count, 1, side, side, generator=g) - 0.25).clamp(0, 1)
    return x, torch.randint(0, classes, (count,), generator=g)


def binary(pixels: int = 9) -> KnownAnswer:
    w = torch.randn(pixels, generator=torch.Generator().manual_seed(1))
    return KnownAnswer(w, -0.5 * float(w.sum()))


def multi(classes: int = 4, pixels: int = 9) -> Linear:
    return Linear(torch.randn(classes, pixels, generator=torch.Generator().manual_seed(2)))


def worst(model: KnownAnswer, x, y, threat) -> np.ndarray:
    w = model.weight.detach().double().numpy()
    return np.array(
        [oracles.worst_gain(-(2 * int(b) - 1) * w, a.flatten().numpy(), threat.name, threat.eps)
         for a, b in zip(x, y, strict=True)]
    )  # fmt: skip
