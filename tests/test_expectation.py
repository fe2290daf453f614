"""Draws chosen by signal-to-noise, against models whose gradient noise is known."""

import pickle

import pytest
import torch
from torch import nn

from stochade.attacks import (
    PGD,
    Averaged,
    Backprop,
    Ensemble,
    Evolution,
    Linf,
    Rotate,
    Transforms,
    cross_entropy,
    margin,
)
from stochade.attacks.apgd import APGDTargeted
from stochade.describe import describe
from stochade.errors import BudgetError
from stochade.models.known_answer import BernoulliLinear, KnownAnswer, ThresholdedInput
from stochade.nn.discrete import Scope
from stochade.randomness import Stream, forked

SIDE = 16
PIXELS = SIDE * SIDE


class Log:
    """Of its own, so that nothing restores it."""

    def __init__(self):
        self.rows: list[int] = []


class NoisySlope(nn.Module):
    """Two classes with margin x.(w + s(x) n), n standard normal per example (or call) and pixel, where s(x) is the
    first pixel and has no derivative. The gradient of the margin objective is -(2y - 1) (w + s n): mean and
    covariance are known. |w| = 1."""

    def __init__(self, scope: Scope = "example"):
        super().__init__()
        w = torch.randn(PIXELS, generator=torch.Generator().manual_seed(3))
        self.weight, self.scope, self.log = w / w.norm(), scope, Log()

    def forward(self, x):
        self.log.rows.append(len(x))
        flat = x.flatten(1)
        noise = torch.randn_like(flat) if self.scope == "example" else torch.randn_like(flat[:1])
        m = (flat * (self.weight + flat[:, :1].detach() * noise)).sum(1)
        return torch.stack([-m / 2, m / 2], 1)


def images_for(draws: list[float], copies: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Images whose gradient noise needs so many draws for a squared signal-to-noise ratio of 1."""
    x = torch.full((len(draws), copies, PIXELS), 0.5)
    x[..., 0] = (torch.tensor(draws) / PIXELS).sqrt()[:, None]
    x = x.view(-1, 1, SIDE, SIDE)
    return x, torch.arange(len(x)) % 2


def truth(model: NoisySlope, y: torch.Tensor) -> torch.Tensor:
    return (1 - 2 * y)[:, None] * model.weight


def test_each_example_makes_the_draws_that_its_noise_asks_for():
    """Needs of 0, 3, 12 and 250 draws at ratio 1, 40 images each. In 256 dimensions the measured ratio scatters by
    some 20 %: 3 stops at 4 (rarely 8) and 12 at 16 (rarely 8 or 32)."""
    model, (x, y) = NoisySlope(), images_for([0, 3, 12, 250], 40)
    with forked(0):
        got = Averaged(least=2, most=64)(model, x, y, margin)
    draws = got.spent[0].view(4, 40)
    assert torch.equal(got.spent[0], got.spent[1])
    assert bool((draws[0] == 2).all())
    assert float((draws[1] == 4).float().mean()) > 0.7
    assert bool(((draws[1] == 2) | (draws[1] == 4) | (draws[1] == 8)).all())
    assert float((draws[2] == 16).float().mean()) > 0.7
    assert bool((draws[3] == 64).all())
    assert sum(model.log.rows) == int(got.spent[0].sum())


@pytest.mark.parametrize("snr", [1.0, 9.0])
def test_stopped_means_reach_the_ratio(snr):
    """Squared cosine with the true gradient: at least snr / (1 + snr) on average, and not far beyond what one more
    doubling gives. 300 images, standard error below 0.01."""
    model, (x, y) = NoisySlope(), images_for([1, 2, 5], 100)
    with forked(1):
        got = Averaged(least=4, most=512, snr=snr)(model, x, y, margin)
    cosine = nn.functional.cosine_similarity(got.gradient.flatten(1), truth(model, y), dim=1)
    assert snr / (1 + snr) - 0.02 < float((cosine[100:] ** 2).mean()) < 2 * snr / (1 + 2 * snr) + 0.02


def test_the_mean_gradient_is_that_of_the_model():
    """Over 600 images the mean of stopped gradients is the true one within 5 standard errors (pixel by pixel)."""
    model, (x, y) = NoisySlope(), images_for([4], 600)
    with forked(2):
        got = Averaged()(model, x, y, margin)
    error = got.gradient.flatten(1) * (1 - 2 * y)[:, None] - model.weight
    assert float((error.mean(0) / (error.std(0) / 600**0.5)).abs().max()) < 5
    logits = torch.stack([-(x.flatten(1) @ model.weight), x.flatten(1) @ model.weight], 1) / 2
    assert float((got.value - margin(logits, y)).mean().abs()) < 5 * float(got.value.std()) / 600**0.5


def test_a_deterministic_model_takes_the_least_and_gives_the_plain_gradient():
    model = KnownAnswer(torch.randn(9, generator=torch.Generator().manual_seed(0)))
    x, y = torch.rand(5, 1, 3, 3), torch.tensor([0, 1, 1, 0, 1])
    got, plain = Averaged()(model, x, y, cross_entropy), Backprop()(model, x, y, cross_entropy)
    torch.testing.assert_close((got.value, got.gradient), (plain.value, plain.gradient))
    assert got.logits.shape == (4, 5, 2)
    assert got.spent.tolist() == [[4] * 5] * 2
    flat = Averaged()(ThresholdedInput(torch.ones(9)), x, y, margin)  # no slope at all, and no noise to wait for
    assert flat.spent.tolist() == [[4] * 5] * 2


def test_logits_are_those_of_the_first_draws_for_every_example():
    """Not of the later draws, and not padded: the easy and the hard image show equally many."""
    model, (x, y) = NoisySlope(), images_for([0, 250])
    with forked(4):
        got = Averaged(least=4, most=32)(model, x, y, margin)
    with forked(4):
        first = Backprop(4)(model, x, y, margin)
    assert got.spent[0].tolist() == [4, 32]
    torch.testing.assert_close(got.logits, first.logits)


class Curved(nn.Module):
    """Deterministic, and not linear, so that evolution has noise of its own."""

    def __init__(self, scope: Scope = "none"):
        super().__init__()
        self.weight, self.scope, self.log = torch.randn(9, generator=torch.Generator().manual_seed(7)), scope, Log()

    def forward(self, x):
        self.log.rows.append(len(x))
        m = (x.flatten(1) @ self.weight).tanh() + x.flatten(1).square().sum(1)
        return torch.stack([-m, m, 0 * m], 1)


@pytest.mark.parametrize(
    ("inner", "snr"),
    [
        (Evolution(1, 0.1), 1.0),
        (Transforms(Backprop(), Rotate(90), draws=1), 50.0),
        (Ensemble([Backprop(), Evolution(1)]), 4.0),
    ],
)
def test_neither_batch_mates_nor_tiles_matter(inner, snr):
    """All numbers come from the stream here: alone, in company, in another order and in other tiles an example gets
    the same gradient after the same number of draws, and another one at the next call."""
    x = torch.rand(7, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    y, ids = torch.arange(7) % 3, torch.arange(7) + 10
    model, gradient = Curved(), Averaged(least=2, most=16, snr=snr, inner=inner)
    together = gradient(model, x, y, cross_entropy, stream=Stream(0, ids))
    assert len(together.spent[0].unique()) > 1
    order, goals = torch.tensor([3, 0, 5]), (y + ids) % 3
    pulled = gradient(model, x, y, cross_entropy, targets=goals, stream=Stream(0, ids)).gradient
    alone = gradient(model, x[order], y[order], cross_entropy, targets=goals[order], stream=Stream(0, ids[order]))
    torch.testing.assert_close(alone.gradient, pulled[order], rtol=1e-3, atol=1e-5)
    some = gradient(model, x[order], y[order], cross_entropy, stream=Stream(0, ids[order]))
    torch.testing.assert_close(some.gradient, together.gradient[order], rtol=1e-3, atol=1e-5)
    assert torch.equal(some.spent, together.spent[:, order])
    for other in (Averaged(2, 16, snr, inner, tile=1), Averaged(2, 16, snr, inner, tile=20)):
        tiled = other(Curved(), x, y, cross_entropy, stream=Stream(0, ids))
        torch.testing.assert_close(tiled.gradient, together.gradient, rtol=1e-3, atol=1e-5)
        assert torch.equal(tiled.spent, together.spent)
    stream = Stream(0, ids)
    first, second = (gradient(model, x, y, cross_entropy, stream=stream) for _ in range(2))
    torch.testing.assert_close(first.gradient, together.gradient)
    assert not torch.allclose(second.gradient, first.gradient)


@pytest.mark.parametrize(("scope", "calls"), [("example", [6, 6, 6, 6]), ("call", [3] * 8), ("unknown", [3] * 8)])
def test_draws_are_tiled_to_the_bound_only_where_noise_is_per_example(scope, calls):
    model = NoisySlope(scope)
    x, y = images_for([250, 250, 250])
    Averaged(least=2, most=8, tile=6)(model, x, y, margin)
    assert model.log.rows == calls


class Rarely(nn.Module):
    """A slope in one draw of twenty, none in the others."""

    scope = "example"

    def forward(self, x):
        m = 20 * x.flatten(1).sum(1) * (torch.rand(len(x)) < 0.05)
        return torch.stack([-m, m], 1)


def test_no_signal_is_not_a_clear_signal():
    """Four draws without any slope agree perfectly. Chance of none in 256 draws: 2e-6; fixed seed."""
    with forked(0):
        got = Averaged(most=256)(Rarely(), torch.rand(8, 1, 3, 3), torch.zeros(8).long(), margin)
    assert bool((got.gradient.flatten(1).abs().amax(1) > 0).all())
    assert int(got.spent.max()) > 4


def test_gradients_beyond_float_are_accumulated():
    model, (x, y) = NoisySlope(), images_for([12], 3)
    with forked(0):
        got = Averaged()(model, x, y, lambda z, y: 1e30 * margin(z, y))
    with forked(0):
        plain = Averaged()(model, x, y, margin)
    torch.testing.assert_close(got.gradient / 1e30, plain.gradient)
    assert torch.equal(got.spent, plain.spent)


def test_attacks_count_what_was_spent():
    model, (x, y) = NoisySlope(), images_for([0, 3, 250])
    attack = PGD(Linf(0.01), steps=3, gradient=Averaged(most=32), random_start=False, drop_fooled=False, keep="last")
    found = attack.run(model, x, y)
    assert int(found.forwards.sum()) == sum(model.log.rows) - 2  # the probe sees two images
    assert torch.equal(found.forwards, found.backwards)
    assert found.forwards[0] == 12
    assert found.forwards[2] == 96
    assert attack.cost() == (96, 96)


def test_targets_of_an_attack_s_own_stay_with_their_examples():
    """Targeted APGD pulls each image to classes of its own, while others of its batch have stopped drawing. The model
    is deterministic and evolution draws from streams: alone and in company an image becomes the same."""
    x, some = torch.rand(6, 1, 3, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([4, 1])
    model, y = Curved(), torch.arange(6) % 3
    gradient = Averaged(2, 16, 0.5, Evolution(1, 0.1))
    attack = APGDTargeted(Linf(0.1), steps=4, gradient=gradient, objective=cross_entropy, drop_fooled=False)
    together, apart = attack(model, x, y), attack(model, x[some], y[some])
    torch.testing.assert_close(apart, together[some], rtol=0, atol=1e-3)


def test_relaxed_forwards_compose():
    """The mean field has no noise: the least number of draws, and its logits let nobody leave."""
    model = BernoulliLinear(torch.randn(9, generator=torch.Generator().manual_seed(0)))
    x, y = torch.rand(4, 1, 3, 3), torch.tensor([0, 1, 1, 0])
    inner = Backprop(relaxed="mean-field")
    got, plain = Averaged(inner=inner)(model, x, y, margin), inner(model, x, y, margin)
    torch.testing.assert_close(got.gradient, plain.gradient)
    assert got.spent.tolist() == [[4] * 4] * 2
    assert Averaged(inner=inner).relaxed == "mean-field"
    assert Averaged().relaxed is None
    attack = PGD(Linf(1.0), steps=5, gradient=Averaged(inner=inner))
    assert attack.run(model, x, y).forwards.tolist() == [20] * 4


def test_it_travels_and_describes_itself():
    gradient = Averaged(2, 8, 3.0, Evolution(2))
    assert pickle.loads(pickle.dumps(gradient)) == gradient
    assert (gradient.forwards, gradient.backwards) == (8 * 5, 0)
    assert describe(gradient)["inner"]["type"] == "Evolution"


@pytest.mark.parametrize(
    "parts",
    [{"least": 1}, {"least": True}, {"least": 8, "most": 4}, {"most": 2.5}, {"snr": 0}, {"snr": float("nan")},
     {"snr": "1"}, {"inner": None}, {"inner": Backprop}, {"inner": lambda: 0}, {"tile": 0}],
)  # fmt: skip
def test_parts_that_make_no_sense_are_named(parts):
    with pytest.raises(BudgetError):
        Averaged(**parts)
