"""Spikes, operations, latencies and covariances against counts made one by one."""

import math

import pytest
import torch
from torch import nn

from stochade import registry
from stochade.errors import BudgetError, ImagesError, LabelsError, ModelError, UsageError
from stochade.metrics import (
    Operations,
    accuracy_by_latency,
    code_similarity,
    energy,
    linear_covariance,
    operations,
    sampled_covariance,
    spike_rates,
    tradeoff,
)
from stochade.metrics.spikes import _connections
from stochade.models.encoded import Encoded
from stochade.nn import IF, RSC, BernoulliRate, Direct
from stochade.nn.over_time import Merged, OverTime
from stochade.randomness import fingerprint, forked


def tiny() -> Encoded:
    """One neuron per pixel of weight 1, threshold 1: a pixel of 0.5 fires in every second step."""
    head = nn.Linear(4, 2, bias=False)
    nn.init.ones_(head.weight)
    return Encoded(Direct(4), OverTime(nn.Sequential(IF(), Merged(nn.Flatten(), head))))


def test_rates_are_counted_spikes():
    model = tiny().train()
    x = torch.tensor([[0.5, 1.0, 0.25, 0.0]]).view(1, 1, 2, 2)
    before = fingerprint()
    rates = spike_rates(model, x)
    assert fingerprint() == before
    assert model.training
    assert rates["network.body.0"] == pytest.approx((2 + 4 + 1 + 0) / 16)
    assert rates["input"] == pytest.approx(1.75 / 4)


def test_rates_of_parts_make_the_rate_of_all():
    model = registry.build("snn", (1, 8, 8), 10, encoder="direct").eval()
    x = torch.rand(7, 1, 8, 8)
    whole, parts = spike_rates(model, x, batch=7), spike_rates(model, x, batch=3)
    assert whole == pytest.approx(parts, rel=1e-6)
    assert list(whole) == ["input", "network.body.1", "network.body.4"]


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(2, 3, 3, padding=1),
        nn.Conv2d(2, 4, 3, stride=2, padding=1, groups=2),
        nn.Conv2d(2, 3, 2, dilation=2),
        nn.Linear(7, 3),
    ],
    ids=str,
)
def test_connections_are_those_of_a_loop(layer):
    """With all weights 1 and no bias the sum of the outputs counts every product once."""
    with forked(0):
        shape = (2, 7) if isinstance(layer, nn.Linear) else (2, 2, 5, 6)
        x = (torch.rand(shape) < 0.4).float()
    nn.init.ones_(layer.weight)
    nn.init.zeros_(layer.bias)
    assert _connections(layer, x) == pytest.approx(float(layer(x).detach().sum()))


def test_operations_are_per_image_and_know_spikes_from_pixels():
    model = registry.build("snn", (1, 8, 8), 10, encoder="direct", steps=3).eval()
    x = torch.rand(5, 1, 8, 8)
    x[:, :, :2] = 0
    first, second, head = operations(model, x, batch=2)
    inner = 3 * (6 * 6 * 9 + 4 * 6 * 6 + 4 * 4)  # 9 inputs inside, 6 at edges, 4 at corners
    assert first.dense == pytest.approx(inner * 16)
    assert 0 < first.active < first.dense
    assert not first.spikes, "pixels"
    assert not second.spikes, "averages of four spikes"
    assert head.dense == 3 * 2 * 2 * 32 * 10
    spiking = registry.build("snn", (1, 8, 8), 10, encoder="srate", steps=3).eval()
    assert operations(spiking, x)[0].spikes
    assert first.layer == "network.body.0.0"


def test_energy_is_its_sum():
    counted = [Operations("a", 1000.0, 100.0, True), Operations("b", 500.0, 400.0, False)]
    told = energy(counted)
    assert told["spiking"] == pytest.approx((100 * 0.9 + 400 * 4.6) * 1e-6)
    assert told["dense"] == pytest.approx(1500 * 4.6 * 1e-6)


def test_every_latency_is_that_of_a_model_with_as_few_steps():
    with forked(0):
        x, y = torch.rand(40, 1, 8, 8), torch.randint(0, 10, (40,))
        model = registry.build("snn", (1, 8, 8), 10, encoder="direct", steps=5).eval()
    told = accuracy_by_latency(model, x, y, batch=16)
    assert len(told) == 5
    for steps in range(1, 6):
        model.encoder.steps = steps
        with torch.no_grad():
            assert told[steps - 1] == pytest.approx(float((model(x).argmax(1) == y).float().mean()))


def test_similarity_of_a_code_with_itself_and_its_closed_form():
    """Two Bernoulli frames of x = p: cosine near p; 40,000 pixels, 6 standard errors."""
    x = torch.full((2, 1, 100, 200), 0.3)
    assert torch.allclose(code_similarity(Direct(2), Direct(2), x), torch.ones(2, dtype=torch.float64))
    told = code_similarity(BernoulliRate(2), BernoulliRate(2), x, draws=2)
    assert told.tolist() == pytest.approx([0.3, 0.3], abs=6 * 0.7 / math.sqrt(80_000))
    with pytest.raises(ImagesError, match="one shape"):
        code_similarity(Direct(2), Direct(3), x)


@pytest.mark.parametrize("kind", ["poisson", "rs"])
def test_covariances_are_those_of_many_draws(kind):
    """20,000 codes, every entry within 6 standard errors (a false alarm below 1e-7)."""
    draws, sigma = 20_000, 0.3
    with forked(0):
        x, weight = torch.rand(1, 3, 3), torch.randn(4, 9)
    x[0, 0] = torch.tensor([0.0, 1.0, 0.02])
    encoder = BernoulliRate(1) if kind == "poisson" else RSC(sigma, 1, "II")
    closed = linear_covariance(weight, x, kind, sigma)
    sampled = sampled_covariance(encoder, weight, x, draws)
    spread = torch.sqrt((closed.diagonal()[:, None] * closed.diagonal() + closed.square()) / draws)
    assert bool(((sampled - closed).abs() <= 6 * spread).all())


def test_an_attack_changes_the_covariance_of_both_codes():
    """Theorem 3.2 as it is written; and proposition 3.4 holds only without the clipping that the code has."""
    weight, x, delta = torch.eye(3), torch.tensor([0.0, 0.4, 0.97]), torch.tensor([0.03, -0.03, 0.03])
    attacked = linear_covariance(weight, x + delta, "poisson").diagonal()
    torch.testing.assert_close(attacked, (x * (1 - x) + delta * (1 - 2 * x) - delta**2).double())
    without = [linear_covariance(weight, v, "rs", 0.3, clamp=False) for v in (x, x + delta)]
    assert torch.equal(*without)
    clean, moved = (linear_covariance(weight, v, "rs", 0.3).diagonal() for v in (x, x + delta))
    assert float(moved[0] / clean[0]) > 1.1
    assert float(linear_covariance(weight, torch.zeros(3), "rs", 0.01)[0, 0]) == pytest.approx(
        (0.5 - 1 / (2 * math.pi)) * 1e-4
    )


def test_tradeoffs_are_those_of_the_paper():
    """wu2024, table 4: rows whose three numbers are legible."""
    for clean, fgsm, told in ((90.69, 20.75, 4.46), (83.18, 43.06, 5.05), (80.29, 59.25, 5.58)):
        assert tradeoff(clean / 100, fgsm / 100, 8) == pytest.approx(told, abs=0.006)


def test_what_makes_no_sense_is_named():
    x, model = torch.rand(2, 1, 2, 2), tiny()
    with pytest.raises(ModelError, match="encoder"):
        spike_rates(nn.Flatten(), x)
    with pytest.raises(ModelError, match="spiking neurons"):
        spike_rates(Encoded(Direct(2), nn.Flatten()), x)
    with pytest.raises(ModelError, match="over time"):
        accuracy_by_latency(Encoded(Direct(2), nn.Flatten()), x, torch.zeros(2, dtype=torch.long))
    with pytest.raises(LabelsError, match="labels"):
        accuracy_by_latency(model, x, torch.zeros(3, dtype=torch.long))
    with pytest.raises(ImagesError, match="float images"):
        spike_rates(model, torch.zeros(0, 1, 2, 2))
    with pytest.raises(ModelError, match="convolutions or dense"):
        operations(nn.Flatten(), x)
    with pytest.raises(ModelError, match="zeros"):
        operations(nn.Conv2d(1, 1, 1, padding_mode="circular"), x)
    for bad in (0, True, 1.5):
        with pytest.raises(BudgetError, match="draw"):
            accuracy_by_latency(model, x, torch.zeros(2, dtype=torch.long), draws=bad)
        with pytest.raises(BudgetError, match="batch"):
            spike_rates(model, x, batch=bad)
        with pytest.raises(BudgetError, match="draws"):
            code_similarity(Direct(2), Direct(2), x, draws=bad)
    with pytest.raises(BudgetError, match="2 draws"):
        sampled_covariance(BernoulliRate(1), torch.eye(4), x[0], 1)
    with pytest.raises(UsageError, match="kind"):
        linear_covariance(torch.eye(4), x[0], "gauss")
    with pytest.raises(BudgetError, match="deviation"):
        linear_covariance(torch.eye(4), x[0], "rs", -1)
    with pytest.raises(ImagesError, match="pixels"):
        linear_covariance(torch.eye(3), x[0], "rs", 1)
    with pytest.raises(UsageError, match="weight"):
        linear_covariance(torch.ones(4), x[0], "poisson")
    with pytest.raises(ImagesError, match="one image"):
        sampled_covariance(BernoulliRate(1), torch.eye(3), x[0], 5)
    assert sampled_covariance(BernoulliRate(1), torch.ones(1, 4), x[0], 5).shape == (1, 1)
    for bad in (x * 5, x * float("nan")):
        with pytest.raises(ImagesError, match=r"\[0,1\]"):
            spike_rates(model, bad)
    with pytest.raises(LabelsError, match="whole"):
        accuracy_by_latency(model, x, torch.zeros(2))
    with pytest.raises(BudgetError, match="picojoules"):
        energy([], mac=-1)
    with pytest.raises(BudgetError, match="percent"):
        tradeoff(90.0, 0.2, 8)
    with pytest.raises(BudgetError, match="budget"):
        tradeoff(0.9, 0.2, -8)
