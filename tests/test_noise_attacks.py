"""Attacks without gradients, and the thesis's unprojected BIM against a loop of its own."""

import numpy as np
import pytest
import torch
from torch import nn

import oracles
from counting import PROBE, Counted
from stochade.attacks import (
    L0,
    L1,
    L2,
    GaussianNoise,
    Linf,
    RandomSearch,
    UniformNoise,
    kubo2019_bim,
    margin,
)  # fmt: skip
from stochade.errors import BudgetError
from stochade.models.known_answer import KNOWN, CoinFlip, KnownAnswer, Linear

THREATS = [Linf(0.2), Linf(0.0), Linf(float("inf")), L2(0.5), L1(1.0), L0(2)]


def data(count: int = 20, classes: int = 3):
    g = torch.Generator().manual_seed(0)
    x = (1.5 * torch.rand(count, 1, 3, 3, generator=g) - 0.25).clamp(0, 1)
    return x, torch.randint(0, classes, (count,), generator=g)


def linear(classes: int = 3) -> Linear:
    g = torch.Generator().manual_seed(3)
    return Linear(torch.randn(classes, 9, generator=g), torch.randn(classes, generator=g) / 5)


@pytest.mark.parametrize("make", [UniformNoise, GaussianNoise, RandomSearch])
@pytest.mark.parametrize("threat", THREATS, ids=str)
def test_points_are_inside_the_threat_and_follow_identity_and_seed(make, threat):
    attack, model, (x, y) = make(threat), linear(), data()
    attempt = attack.run(model, x, y, seed=1)
    z = attempt.inputs
    assert bool((threat.distance(z, x) <= threat.eps * (1 + 1e-5) + 1e-6).all())
    assert 0 <= float(z.min()) <= float(z.max()) <= 1
    torch.testing.assert_close(attempt.distance, threat.distance(z, x))
    assert torch.equal(attack(model, x, y, seed=1), z)
    assert torch.equal(attack(model, x[[7, 2]], y[[7, 2]], seed=1), z[[7, 2]])
    if threat.eps > 0:
        assert not torch.equal(attack(model, x, y, seed=2), z)
    assert int(attempt.forwards.max()) <= attack.cost()[0]
    assert int(attempt.backwards.max()) == 0


def test_gaussian_noise_has_the_deviation_it_says():
    """Sample deviation of 9000 numbers within 5 standard errors (6e-7), far from the box and the ball."""
    x, y = torch.full((1000, 1, 3, 3), 0.5), torch.zeros(1000, dtype=torch.long)
    z = GaussianNoise(Linf(0.5), sigma=0.05)(linear(), x, y, ids=torch.arange(1000))
    assert float((z - x).std()) == pytest.approx(0.05, abs=5 * 0.05 / (2 * 9000) ** 0.5)


def test_random_search_keeps_the_best_point_it_saw():
    model, (x, y) = linear(), data()
    y = model(x).argmax(1)
    few, many = (RandomSearch(Linf(0.05), samples=s).run(model, x, y) for s in (3, 60))
    kept = model(many.inputs).argmax(1) == y
    assert bool((many.value[kept] >= few.value[kept]).all())
    assert bool((many.value > few.value).any())
    torch.testing.assert_close(many.value, margin(model(many.inputs), y).detach())


def test_fooled_examples_leave_random_search_on_deterministic_models_only():
    model, (x, y) = linear(2), data(classes=2)
    right = model(x).argmax(1) == y
    found = RandomSearch(Linf(1e-4), samples=10).run(model, x, y)
    assert bool((found.forwards[~right] == 1).all())
    assert bool((found.forwards[right] == 10).all())
    random = RandomSearch(Linf(1e-4), samples=10).run(CoinFlip(model, 0.5), x, y)
    assert bool((random.forwards == 10).all())


@pytest.mark.parametrize("threat", [Linf(0.03), L2(0.1)], ids=str)
@pytest.mark.parametrize("draws", [1, 3])
def test_sharing_a_forward_tries_the_same_points(threat, draws):
    """A model of unknown scope is asked point by point, one without noise many points at a time."""
    model, (x, y) = linear(), data()
    y = model(x).argmax(1)
    attack = RandomSearch(threat, samples=150, draws=draws)
    apart, together = attack.run(lambda x: model(x), x, y), attack.run(model, x, y)
    assert torch.equal(apart.inputs, together.inputs)
    torch.testing.assert_close(apart.value, together.value)
    assert 0 < int((model(apart.inputs).argmax(1) == y).sum()) < 20
    alone = attack.run(model, x[3:4], y[3:4])
    assert torch.equal(alone.inputs, together.inputs[3:4])
    assert bool((together.forwards >= apart.forwards).all())


@pytest.mark.parametrize("error", [0.0, 0.5])
def test_forwards_of_random_search_are_counted_exactly(error):
    base, (x, y) = linear(2), data(classes=2)
    model = Counted(CoinFlip(base, error) if error else base)
    attempt = RandomSearch(Linf(0.01), samples=40, draws=2).run(model, x, y)
    assert int(attempt.forwards.sum()) == model.tally.images - PROBE


def test_ten_thousand_samples_of_one_image_share_forwards():
    base, (x, y) = linear(), data()
    model = Counted(base)
    y = model(x).argmax(1)
    model.tally.calls = 0
    attempt = RandomSearch(Linf(1e-4), samples=10_000).run(model, x[:2], y[:2])
    assert bool((attempt.forwards == 10_000).all())
    assert model.tally.calls <= 10_000 * 2 / 256 + 15


@pytest.mark.parametrize("name", ["zero-gradient", "exploding-gradient"])
def test_random_search_finds_what_gradients_do_not(name):
    from stochade.attacks import FGSM

    case = KNOWN[name](seed=0)
    blind = case.model.accuracy_at(FGSM(case.threat)(case.model, case.images, case.labels), case.labels).mean()
    attack = RandomSearch(case.threat, samples=100)
    searched = case.model.accuracy_at(attack(case.model, case.images, case.labels), case.labels).mean()
    assert float(case.truth().mean()) == 0
    assert float(searched) <= float(blind) - 0.2


@pytest.mark.parametrize("clip", ["end", "step"])
@pytest.mark.parametrize(("step", "steps"), [(0.1, 10), (0.03, 4), (0.4, 1)])
def test_kubo2019_bim_is_equation_2_27(clip, step, steps):
    model, (x, y) = linear().double(), data()
    x = x.double()
    z = kubo2019_bim(step=step, steps=steps, clip=clip)(model, x, y)
    w, b = model.weight.detach().numpy(), model.bias.detach().numpy()
    for i in range(len(x)):
        wanted = oracles.kubo_bim(w, b, x[i].flatten().numpy(), int(y[i]), step, steps, clip)
        np.testing.assert_allclose(z[i].flatten().numpy(), wanted, atol=1e-9)


def test_kubo2019_bim_says_how_far_it_goes():
    attack = kubo2019_bim(step=0.03, steps=5)
    assert attack.threat == Linf(0.15)
    attempt = attack.run(linear(), *data())
    assert float(attempt.distance.max()) == pytest.approx(0.15, abs=1e-6)
    assert bool((attempt.forwards == 5).all())
    assert bool((attempt.backwards == 5).all())
    assert attempt.trace.value.shape == (5, 20)
    assert kubo2019_bim(step=0.5, steps=5).threat == Linf(1.0)


class Turn(nn.Module):
    """Its loss rises up to 1.05, outside the box, and falls beyond."""

    def forward(self, x):
        m = -(x.flatten(1).sum(1) - 1.05).abs()
        return torch.stack([-m, m], 1)


def test_clipping_in_every_step_and_at_the_end_differ():
    """Clipped at the end the pixel goes 0.9, 1.1, 0.9, 1.1, 0.9; clipped in every step 0.9, 1, 1, 1, 1."""
    x, y = torch.full((1, 1, 1, 1), 0.9), torch.zeros(1, dtype=torch.long)
    assert float(kubo2019_bim(step=0.2, steps=4, clip="end")(Turn(), x, y)) == pytest.approx(0.9)
    assert float(kubo2019_bim(step=0.2, steps=4, clip="step")(Turn(), x, y)) == pytest.approx(1.0)


@pytest.mark.parametrize("make", [UniformNoise, GaussianNoise, RandomSearch])
def test_a_threat_is_needed(make):
    with pytest.raises(BudgetError, match="Linf"):
        make(0.3)


@pytest.mark.parametrize(
    "make",
    [
        lambda: RandomSearch(Linf(0.1), samples=0),
        lambda: RandomSearch(Linf(0.1), draws=0),
        lambda: GaussianNoise(Linf(0.1), sigma=-1),
        lambda: GaussianNoise(Linf(0.1), sigma=float("nan")),
        lambda: kubo2019_bim(step=0),
        lambda: kubo2019_bim(step=float("nan")),
        lambda: kubo2019_bim(steps=0),
        lambda: kubo2019_bim(clip="never"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(make):
    with pytest.raises(BudgetError):
        make()


def test_probabilities_are_allowed_where_no_gradient_is_taken():
    class Soft(KnownAnswer):
        def forward(self, x):
            return super().forward(x).softmax(1)

    x, y = data(classes=2)
    for attack in (UniformNoise(Linf(0.1)), RandomSearch(Linf(0.1), samples=2)):
        attack(Soft(torch.ones(9)), x, y)
