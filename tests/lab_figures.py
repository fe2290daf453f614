"""What tests of the lab report's figures share: a linear network of three classes and results made by hand."""

import numpy as np
import torch
from torch import nn

from stochade.data import Images
from stochade.evaluate.intervals import mean
from stochade.recipes import catalogue
from stochade.recipes.networks import Trained
from stochade.recipes.result import Reproduction, Row

SHAPE = (1, 4, 4)


class Halves(nn.Module):
    """Three classes by the mean brightness, with the logits of a linear model: no randomness."""

    scope = "composite"

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(16, 3)
        with torch.no_grad():
            self.head.weight.copy_(torch.tensor([[-1.0], [0.0], [1.0]]).expand(3, 16) / 4)
            self.head.bias.copy_(torch.tensor([1.0, 0.0, -3.0]))

    def forward(self, x):
        return self.head(x.flatten(1))


def reproduction(recipe: str, models: dict[str, nn.Module], images: Images | None = None) -> Reproduction:
    if images is None:
        pixels = np.random.default_rng(0).random((24, *SHAPE), dtype=np.float32)
        images = Images(pixels, np.arange(24) % 3)
    networks = {name: Trained(name, 0, model.eval(), {}) for name, model in models.items()}
    rows = [Row(name) for name in models]
    return Reproduction(catalogue.load(recipe), "smoke", rows, None, "test", {}, networks, {}, images, images, False)


def scored(r: Reproduction, values: dict[tuple[str, float], float]) -> None:
    for row in r.rows:
        row.scores = {key: mean(np.full((10, 1), v)) for key, v in values.items()}
