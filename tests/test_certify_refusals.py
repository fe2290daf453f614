"""Models and inputs that no certificate may be given for: each of these got one that was too large, or a crash."""

import math

import pytest
import torch
from torch import nn

from stochade.certify import (
    FlipNoise,
    Gaussian,
    RateCode,
    SmoothingCode,
    Splitting,
    certify,
    certify_quantised,
    certify_sequential,
)
from stochade.certify.run import certify_examples
from stochade.errors import BudgetError, ImagesError, LabelsError, LogitsError, ModelError, UsageError
from stochade.models.encoded import Encoded
from stochade.nn.discrete import forward_as
from stochade.nn.encoders import BernoulliRate, SignedRate
from stochade.nn.encoders_gaussian import RSC

X = torch.full((1, 1, 1, 2), 0.5)
FEW = {"selection": 5, "draws": 200, "batch": 40}


def two(score):
    return torch.stack([-score, score], 1)


def first(z):
    return z.flatten(1)[:, 0] - 0.4


class Running(nn.Module):
    """State that runs along the batch: a network of [T,N,...] that is fed [N,...]."""

    def forward(self, z):
        v = first(z)
        return two(v.cumsum(0) / torch.arange(1, len(v) + 1))


class Leaky(nn.Module):
    def forward(self, z):
        u, out = 0.0, []
        for v in first(z):
            u = 0.9 * u + v
            out.append(u)
        return two(torch.stack(out))


class Neighbour(nn.Module):
    def __init__(self, step):
        super().__init__()
        self.step = step

    def forward(self, z):
        v = first(z)
        return two((v + v.roll(self.step)) / 2)


class AloneOrMean(nn.Module):
    """Row 0 by itself, all others by their mean."""

    def forward(self, z):
        v = first(z)
        return two(torch.cat([v[:1], v[1:].mean().expand(len(v) - 1)]))


class InLargeBatches(nn.Module):
    def forward(self, z):
        v = first(z)
        return two(v if len(v) <= 8 else v.mean().expand(len(v)))


@pytest.mark.parametrize(
    "model", [Running(), Leaky(), Neighbour(1), Neighbour(2), Neighbour(-3), AloneOrMean(), InLargeBatches()]
)
def test_rows_that_see_each_other(model):
    with pytest.raises(ModelError, match="sees the others"):
        certify(model, X, Gaussian(0.25), **FEW)
    with pytest.raises(ModelError, match="sees the others"):
        certify_sequential(model, X, Gaussian(0.25), [0.1], most=200, selection=5, batch=40)


def test_a_run_looks_at_batches_of_its_own_size():
    with pytest.raises(ModelError, match="sees the others"):
        certify_examples(InLargeBatches(), X, torch.ones(1, dtype=torch.int64), Gaussian(0.25), **FEW)
    few = FEW | {"batch": 8, "show_progress": False}
    certify_examples(InLargeBatches(), X, torch.ones(1, dtype=torch.int64), Gaussian(0.25), **few)


def test_rows_that_see_each_other_are_no_quantised_classifier():
    with pytest.raises(ModelError, match="sees the others"):
        certify_quantised(Running(), torch.full((1, 1, 1, 2), 4 / 8), Splitting(8, 8))


@pytest.mark.parametrize(("offset", "size"), [(0.0, 1e-7), (1e6, 1.0)])
def test_shared_noise_under_small_logits_and_large_offsets(offset, size):
    def model(z):
        return offset + size * two(torch.randn(1).expand(len(z)))

    with pytest.raises(ModelError, match="whole batch"):
        certify(model, X, Gaussian(0.25), **FEW, independent=True)


class Head(nn.Module):
    scope = "none"

    def forward(self, codes):
        return two(codes.flatten(1).mean(1) - 0.5)


class Before(Encoded):
    """The image is changed before its encoder sees it."""

    def forward(self, x):
        return self.network(self.encoder(((x - 0.45) * 10).clamp(0, 1)))


def _hooked(part):
    model = Encoded(BernoulliRate(2), Head())
    where = model if part == "model" else model.encoder
    where.register_forward_pre_hook(lambda module, inputs: ((inputs[0] > 0.45).float(),))
    return model


def _own_forward():
    model = Encoded(BernoulliRate(2), Head())
    model.forward = lambda x: model.network(model.encoder((x > 0.45).float()))
    return model


class Louder(BernoulliRate):
    scope = "example"

    def hard(self, x):
        return super().hard((x > 0.45).float())


class Alike(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.network = BernoulliRate(2), Head()

    def forward(self, x):
        return self.network(self.encoder(x)) * 0.1 + two(first(x))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Before(BernoulliRate(2), Head()),
        lambda: _hooked("model"),
        lambda: _hooked("encoder"),
        _own_forward,
        lambda: Encoded(Louder(2), Head()),
        Alike,
    ],
)
def test_images_that_reach_the_network_by_another_way_than_the_encoder(make):
    with pytest.raises(ModelError):
        certify(make(), X, RateCode(2), **FEW, independent=True)


def test_the_same_for_smoothing_codes():
    with pytest.raises(ModelError):
        certify(Before(RSC(0.2, 2, "I"), Head()), X, SmoothingCode(0.2, 2, "I"), **FEW)


def test_an_encoder_whose_noise_is_taken_away():
    model = Encoded(BernoulliRate(2), Head())
    with forward_as(model, {BernoulliRate: "mean-field"}), pytest.raises(ModelError, match="another forward"):
        certify(model, X, RateCode(2), **FEW)


def test_another_mean_than_the_encoders():
    model = Encoded(SignedRate(2, mean=0.3), Head())
    certify(model, X, RateCode(2, signed=True, mean=0.3), **FEW)
    with pytest.raises(ModelError, match="mean"):
        certify(model, X, RateCode(2, signed=True), **FEW)


@pytest.mark.parametrize(
    "x",
    [
        torch.full((1, 1, 1, 2), math.nan),
        torch.full((1, 1, 1, 2), math.inf),
        torch.ones(1, 1, 1, 2, dtype=torch.int64),
        torch.ones(1, 1, 1, 2, dtype=torch.uint8),
        torch.ones(0, 1, 1, 2),
        [[0.5, 0.5]],
        torch.tensor(0.5),
        255 * X,
    ],
)
def test_inputs_that_are_no_images(x):
    def model(z):
        return two((z.flatten(1)[:, 0] > 0.4).float())

    with pytest.raises(ImagesError):
        certify(model, x, Gaussian(0.25), **FEW)
    with pytest.raises(ImagesError):
        certify_sequential(model, x, Gaussian(0.25), [0.1], most=200, selection=5, batch=40)


def test_codes_of_other_letters():
    with pytest.raises(ImagesError):
        certify(Head(), torch.full((1, 2, 3), 0.5), FlipNoise(0.1), **FEW)


def test_what_else_is_no_number():
    def model(z):
        return two(first(z))

    with pytest.raises(LabelsError, match="ids"):
        certify(model, X, Gaussian(0.2), **FEW, ids=torch.zeros(5, dtype=torch.int64))
    for seed in (-1, 1.5):
        with pytest.raises(BudgetError, match="seed"):
            certify(model, X, Gaussian(0.2), **FEW, seed=seed)
    with pytest.raises(LogitsError):
        certify(lambda z: two(first(z)) > 0, X, Gaussian(0.2), **FEW)
    with pytest.raises(BudgetError, match="sigma"):
        Gaussian(1e300)
    for wrong in ({"steps": 0}, {"steps": math.nan}):
        with pytest.raises(BudgetError):
            RateCode(**wrong)
    for floor in (-0.1, 0.7):
        with pytest.raises(UsageError, match="least rate"):
            RateCode(2, floor=floor)
