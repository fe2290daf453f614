"""Views of spikes and latencies against loops over time steps."""

import numpy as np
import pytest
import torch

from stochade.data import Images
from stochade.nn import SpikingNeuron
from stochade.randomness import fingerprint, forked
from stochade.recipes import catalogue
from stochade.recipes.networks import Trained
from stochade.recipes.result import Reproduction, Row
from stochade.recipes.views.spiking import latencies, spike_rate_table
from stochade.registry import build


@pytest.fixture(scope="module")
def shown():
    """A network whose code is no matter of chance: black and white pixels."""
    with forked(0):
        model = build("snn", (1, 8, 8), 4, width=0.5, encoder="rate", steps=5).eval()
        pixels = (torch.rand(30, 1, 8, 8) > 0.6).float()
    images = Images(pixels.numpy(), np.arange(30) % 4)
    recipe = catalogue.load("mukhoty2025-latency")
    networks = {"net": Trained("net", 0, model, {})}
    r = Reproduction(recipe, "smoke", [Row("net")], None, "", {}, networks, {}, images, images, False)
    return r, model, pixels


def test_rates_are_those_of_every_layer_in_order(shown):
    r, model, pixels = shown
    told = []
    layers = [m for m in model.modules() if isinstance(m, SpikingNeuron)]
    handles = [m.register_forward_hook(lambda _m, _i, out: told.append(out)) for m in layers]
    with torch.no_grad(), forked():
        model(pixels)
    for handle in handles:
        handle.remove()
    expected = [float(pixels.mean()), *[float(out.abs().mean()) for out in told]]
    expected.append(float(np.mean(expected[1:])))
    (figure,) = spike_rate_table(r)
    assert [row[1] for row in figure.rows] == ["input", "L1", "L2", "mean of layers"]
    assert [float(row[2]) for row in figure.rows] == pytest.approx(expected, abs=6e-4)
    assert expected[1] > 0


def test_latencies_are_those_of_the_logits_so_far(shown):
    r, model, pixels = shown
    _, y = r.test[:30]
    before = fingerprint()
    (figure,) = latencies(r)
    assert fingerprint() == before
    with torch.no_grad(), forked():
        logits = model.network.over_time(model.encoder(pixels))
    right = [float((logits[:t].mean(0).argmax(1) == y).float().mean()) for t in range(1, 6)]
    assert [row[1] for row in figure.rows] == ["1", "2", "3", "4", "5"]
    assert [float(row[2]) for row in figure.rows] == pytest.approx([100 * v for v in right], abs=0.051)
