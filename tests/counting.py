"""A model that counts the images it is shown, whatever guards and restores it."""

import torch
from torch import nn

from stochade.models.known_answer import Linear
from stochade.nn.discrete import Scope


class Tally:
    """Not a number: a guard that restores the numbers a model keeps leaves this alone."""

    def __init__(self):
        self.images = self.calls = 0


class Counted(nn.Module):
    """`model`, with `tally.images` rows seen in `tally.calls` calls."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model, self.tally = model, Tally()
        self.scope = model.scope

    def forward(self, x):
        self.tally.images += len(x)
        self.tally.calls += 1
        return self.model(x)


PROBE = 2  # images that every attack shows the model before it begins


def linear(shape=(1, 8, 8), classes=3, seed=3):
    """A linear model without noise."""
    g = torch.Generator().manual_seed(seed)
    size = torch.Size(shape).numel()
    return Linear(torch.randn(classes, size, generator=g), torch.randn(classes, generator=g) / 5).eval()


def images(count, shape=(1, 8, 8), seed=0):
    """Random images, a third of the pixels exactly 0 or 1."""
    g = torch.Generator().manual_seed(seed)
    return (1.5 * torch.rand(count, *shape, generator=g) - 0.25).clamp(0, 1)


class Recording(nn.Module):
    """Counts rows and calls; a list of its own object, so that nothing restores it."""

    def __init__(self, model: nn.Module, scope: Scope | None = None):
        super().__init__()
        self.model, self.log = model, Log()
        self.declared = scope

    @property
    def scope(self) -> Scope:
        return self.declared or self.model.scope  # type: ignore[return-value]

    def forward(self, x):
        self.log.rows.append(len(x))
        return self.model(x)


class Log:
    def __init__(self):
        self.rows: list[int] = []
