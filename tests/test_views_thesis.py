"""The thesis' views against numbers computed independently on tiny networks."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from stochade.data import Images
from stochade.recipes.views.gradients import gradients, measured


class Linear(nn.Module):
    """W x + b on flat images: input gradients in closed form, W' (softmax - onehot)."""

    scope = "none"

    def __init__(self, weight: torch.Tensor):
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x):
        return x.flatten(1) @ self.weight.T


def images(n: int = 12, side: int = 4, classes: int = 3) -> Images:
    made = torch.Generator().manual_seed(1)
    pixels = torch.rand(n, 1, side, side, generator=made).numpy()
    return Images(pixels, np.arange(n) % classes, "toy", [str(k) for k in range(classes)])


def reproduction(models: dict[str, nn.Module], attacks: Any = (), test: Images | None = None) -> Any:
    """As much of a Reproduction as views look at."""
    nets = {name: SimpleNamespace(name=name, model=model.eval(), seed=0, facts={}) for name, model in models.items()}
    return SimpleNamespace(
        networks=nets, test=test or images(), validation=images(6), settings=SimpleNamespace(budgets=1.0),
        recipe=SimpleNamespace(attack=list(attacks)), scale="smoke",
    )  # fmt: skip


@pytest.fixture
def linear() -> Linear:
    return Linear(torch.randn(3, 16, generator=torch.Generator().manual_seed(0)))


class TestGradients:
    def test_values_are_the_closed_form(self, linear):
        x, y = images()[:]
        values, facts = measured(linear, x, y)
        p = torch.softmax(x.flatten(1) @ linear.weight.T, 1) - torch.eye(3)[y]
        expected = (p @ linear.weight).detach().flatten().numpy()
        np.testing.assert_allclose(values, expected, atol=1e-6)
        assert facts["mean"] == pytest.approx(expected.mean(), abs=1e-6)
        assert facts["deviation"] == pytest.approx(expected.std(), rel=1e-4)
        assert facts["zeros"] == 0
        assert facts["cosine"] == pytest.approx(1)

    def test_noise_shows_in_the_cosine_between_draws(self, linear):
        class Noisy(nn.Module):
            scope = "example"

            def forward(self, x):
                return (x.flatten(1) * torch.randn_like(x.flatten(1))) @ linear.weight.T

        x, y = images()[:]
        assert measured(Noisy(), x, y)[1]["cosine"] < 0.5

    def test_the_figure_counts_every_pixel_and_leaves_the_model_alone(self, linear):
        linear.train()
        r = reproduction({"a": linear, "b": Linear(3 * linear.weight.detach())})
        r.networks["a"].model.train()
        before = torch.get_rng_state()
        histogram, bars = gradients(r)
        assert torch.equal(before, torch.get_rng_state())
        assert linear.training
        assert linear.weight.grad is None
        for trace in histogram.data:
            assert sum(v or 0 for v in trace["y"]) == pytest.approx(1)
        assert bars.data[0]["x"] == ["a", "b"]
        assert bars.data[0]["y"][1] > bars.data[0]["y"][0]
