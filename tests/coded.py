"""Small networks of codes and every encoding of a small image, for tests of attacks on codes."""

from itertools import product

import torch
from torch import nn

from stochade.attacks import Flips
from stochade.attacks.codes import encode
from stochade.models import Encoded
from stochade.nn import BernoulliRate, SignedRate
from stochade.randomness import untouched

ENCODERS = {"rate": BernoulliRate(3), "signed": SignedRate(3, 0.45)}


class Curved(nn.Module):
    """A small network of codes with a gradient that changes from code to code."""

    scope = "none"

    def __init__(self, entries: int, classes: int = 3, seed: int = 0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.a = torch.randn(entries, 16, generator=generator) * 2 / entries**0.5
        self.b = torch.randn(16, classes, generator=generator)

    def forward(self, z):
        return torch.sin(2 * z.flatten(1) @ self.a) @ self.b


def images(count: int, pixels: int = 8, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 1, 1, pixels, generator=torch.Generator().manual_seed(seed))


def codes_of(name: str, count: int = 6, pixels: int = 8) -> torch.Tensor:
    encoder = ENCODERS[name]
    with untouched(encoder):
        return encode(Encoded(encoder, nn.Flatten()), images(count, pixels), Flips(1, encoder.alphabet), 7)


WEIGHTS = torch.tensor([[1.0, -0.7], [0.4, 0.9]]).view(2, 1, 1, 2)  # [T, C, H, W]
PIXELS = torch.tensor([[0.8, 0.3], [0.55, 0.6], [0.2, 0.9]]).view(3, 1, 1, 2)
LABELS = torch.tensor([1, 0, 1])


def encodings(encoder, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Every code [M, 2, 1, 1, 2] of one image of two pixels in two steps, and its probability."""
    words = torch.tensor(list(product(encoder.alphabet, repeat=4))).view(-1, 2, 1, 1, 2)
    rate = x if not isinstance(encoder, SignedRate) else x - encoder.mean
    up, down = rate.clamp_min(0), (-rate).clamp_min(0)
    each = torch.where(words > 0, up, torch.where(words < 0, down, 1 - rate.abs()))
    return words, each.flatten(1).prod(1)


def accuracy(encoder, x, y, network, damage) -> float:
    """Exact P(right) of one prediction, `damage(words)` being what the attacker makes of every code."""
    words, chances = encodings(encoder, x)
    return float((chances * (network(damage(words)).argmax(1) == y)).sum())
