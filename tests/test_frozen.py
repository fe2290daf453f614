"""The attacker who knows the seed, against a linear model whose frozen worst case has a closed form."""

import pickle

import pytest
import torch
from torch import nn

from stochade.attacks import (
    FGSM,
    PGD,
    Averaged,
    Backprop,
    Ensemble,
    Evolution,
    Frozen,
    Linf,
    Shift,
    Transforms,
    margin,
)
from stochade.errors import BudgetError
from stochade.evaluate import evaluate
from stochade.models.known_answer import ThresholdedInput, reach
from stochade.randomness import FrozenNoise, Stream, fingerprint, forked

PIXELS, COUNT, SEED, EPS = 64, 40, 11, 0.04


class NoisyWeights(nn.Module):
    """Margin (x - 1/2).(w + n), n normal per example and pixel: one linear model per example and realisation."""

    scope = "example"

    def __init__(self, sigma: float = 0.3):
        super().__init__()
        w = torch.randn(PIXELS, generator=torch.Generator().manual_seed(3))
        self.weight, self.sigma = w / w.norm(), sigma

    def forward(self, x):
        flat = x.flatten(1) - 0.5
        m = (flat * (self.weight + self.sigma * torch.randn_like(flat))).sum(1)
        return torch.stack([-m / 2, m / 2], 1)


def problem(model: NoisyWeights, margin_of: float = 0.6) -> tuple[torch.Tensor, torch.Tensor]:
    y = torch.arange(COUNT) % 2
    noise = 0.1 * torch.randn(COUNT, PIXELS, generator=torch.Generator().manual_seed(4))
    x = 0.5 + (2 * y - 1)[:, None] * margin_of * model.weight + noise - noise @ model.weight[:, None] * model.weight
    return x.clamp(0, 1).view(COUNT, 1, 8, 8), y


def slopes(model: NoisyWeights, count: int = COUNT, seed: int = SEED) -> torch.Tensor:
    """[count, PIXELS] the weights that follow the seed in a call with so many images."""
    with forked(seed):
        return model.weight + model.sigma * torch.randn(count, PIXELS)


@torch.no_grad()
def frozen_margin(model: NoisyWeights, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return -margin(FrozenNoise(model, SEED)(x), y)


@pytest.mark.parametrize("build", [FGSM, PGD])
def test_it_finds_the_worst_case_of_each_frozen_example(build):
    """Exactly: the frozen model is linear, one weight vector per example."""
    model = NoisyWeights()
    x, y = problem(model)
    found = build(Linf(EPS), gradient=Frozen(Backprop(), SEED))(model, x, y)
    sign = (2 * y - 1)[:, None]
    worst = frozen_margin(model, x, y) - reach(sign * slopes(model), x, Linf(EPS)).float()
    torch.testing.assert_close(frozen_margin(model, found, y), worst, rtol=0, atol=1e-5)


def test_scored_with_the_same_seed_it_is_the_truth_and_with_fresh_noise_it_is_not():
    """The frozen score is exact. Fresh noise: the expected accuracy of these inputs is P(m + sigma |x - 1/2| n > 0),
    and 40 x 200 draws come within 0.03 of it (5 standard errors and the examples are fixed)."""
    model = NoisyWeights()
    x, y = problem(model)
    attacks = {"frozen": FGSM(EPS, gradient=Frozen(Backprop(), SEED))}
    options = {"chunk": COUNT, "show_progress": False, "draws": 200, "keep_images": COUNT}
    frozen = evaluate(FrozenNoise(model, SEED), x, y, attacks, **options)
    worst = frozen_margin(model, x, y) - reach((2 * y - 1)[:, None] * slopes(model), x, Linf(EPS)).float()
    assert frozen.score("frozen", "single").value == int((worst > 0).sum()) / COUNT
    fresh = evaluate(model, x, y, attacks, **options)
    centred = attacks["frozen"](model, x, y).flatten(1) - 0.5
    signed = (2 * y - 1) * (centred @ model.weight) / (model.sigma * centred.norm(dim=1))
    expected = float(torch.special.ndtr(signed).mean())
    assert fresh.score("frozen", "single").value == pytest.approx(expected, abs=0.03)
    assert expected > frozen.score("frozen", "single").value + 0.3


def test_it_leaves_the_generators_alone():
    model = NoisyWeights()
    x, y = problem(model)
    before = fingerprint()
    frozen = Frozen(Backprop(), SEED)
    first, second = frozen(model, x, y, margin), frozen(model, x, y, margin)
    assert fingerprint() == before
    torch.testing.assert_close(first.gradient.flatten(1), -(2 * y - 1)[:, None] * slopes(model))
    assert torch.equal(first.logits, second.logits)
    with pytest.raises(ZeroDivisionError):
        frozen(model, x, y, lambda z, y: 1 / 0)
    assert fingerprint() == before


def test_every_forward_inside_sees_the_same_noise():
    """Evolution on one linear model is exact along its directions: (u.w) u averaged. With noise of its own in every
    forward it would be far off. Transformed images go through the same weights."""
    model = NoisyWeights(3.0)
    x, y = problem(model)
    inner = Evolution(400, 0.01)
    got = Frozen(inner, SEED)(model, x, y, margin, stream=Stream(0, torch.arange(COUNT))).gradient
    wanted = -(2 * y - 1)[:, None] * slopes(model)
    assert float(nn.functional.cosine_similarity(got.flatten(1), wanted, dim=1).mean()) > 0.9
    fresh = inner(model, x, y, margin, stream=Stream(0, torch.arange(COUNT))).gradient
    assert float(nn.functional.cosine_similarity(fresh.flatten(1), wanted, dim=1).mean()) < 0.2
    moved = Frozen(Transforms(Backprop(), Shift(0), draws=3), SEED)
    got = moved(model, x, y, margin, stream=Stream(0, torch.arange(COUNT))).gradient
    torch.testing.assert_close(got.flatten(1), wanted)


def test_around_averaged_draws_agree_at_once():
    """Zero variance: the least number of draws, and the same gradient."""
    model = NoisyWeights()
    x, y = problem(model)
    got = Frozen(Averaged(), SEED)(model, x, y, margin)
    assert got.spent.tolist() == [[4] * COUNT] * 2
    torch.testing.assert_close(got.gradient.flatten(1), -(2 * y - 1)[:, None] * slopes(model))


def test_nobody_leaves_on_account_of_frozen_logits():
    model = NoisyWeights(0.03)
    x, y = problem(model)
    attack = PGD(Linf(0.5), steps=100, gradient=Frozen(Backprop(), SEED))
    assert attack.run(model, x, y).forwards.tolist() == [100] * COUNT
    assert int(PGD(Linf(0.5), steps=100).run(model, x, y).backwards.max()) < 50  # they are easy prey


def test_it_does_not_go_where_batches_are_tiled():
    for build in (lambda g: Averaged(inner=g), lambda g: Transforms(g, Shift(1))):
        for inner in (Frozen(Backprop(), SEED), Ensemble([Backprop(), Frozen(Backprop(), SEED)])):
            with pytest.raises(BudgetError, match="put Frozen around"):
                build(inner)


@pytest.mark.parametrize("choice", ["ste", {"threshold": "ste"}, {"Threshold": "ste"}])
def test_layers_keep_their_names_and_their_modes(choice):
    model = ThresholdedInput(torch.ones(4))
    model.train()
    model.threshold.eval()
    x, y = torch.rand(3, 1, 2, 2), torch.zeros(3).long()
    inner = Backprop(1, choice)
    got, plain = Frozen(inner, 0)(model, x, y, margin), inner(model, x, y, margin)
    assert plain.gradient.any()
    torch.testing.assert_close(got.gradient, plain.gradient)
    assert model.training
    assert not model.threshold.training


def test_a_plain_function_is_frozen_too():
    model = NoisyWeights()
    x, y = problem(model)
    got = Frozen(Backprop(), SEED)(lambda x: model(x), x, y, margin)
    torch.testing.assert_close(got.gradient.flatten(1), -(2 * y - 1)[:, None] * slopes(model))


def test_it_travels_and_adds_no_passes():
    frozen = Frozen(Evolution(2), 3)
    assert pickle.loads(pickle.dumps(frozen)) == frozen
    assert (frozen.forwards, frozen.backwards) == (5, 0)
    assert Frozen(Backprop(1, relaxed="mean-field"), 0).relaxed == "mean-field"


@pytest.mark.parametrize(
    ("inner", "seed"),
    [(None, 0), (Backprop, 0), (Backprop(2), 0), (Backprop(), -1), (Backprop(), 0.5), (Backprop(), True),
     (Backprop(), 2**63), (Backprop(), None)],
)  # fmt: skip
def test_parts_that_make_no_sense_are_named(inner, seed):
    with pytest.raises(BudgetError):
        Frozen(inner, seed)
