"""The active test: attacks that cannot fail find what was planted, attacks that see nothing do not."""

import pytest
import torch
from torch import nn

from stochade import FGSM, L0, L1, L2, PGD, Evolution, Linf, margin
from stochade.attacks import Custom, UniformNoise
from stochade.audit.active_test import _groups, active_test, last_linear
from stochade.errors import BudgetError, ModelError
from stochade.nn import GaussianNoise
from stochade.randomness import fingerprint

EPS = 0.1


def images(n=12, side=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, 1, side, side, generator=generator), torch.randint(0, 3, (n,), generator=generator)


def linear(hidden=80):
    """Features linear in the image: one step reaches the best point of every head."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, hidden), nn.Linear(hidden, 3)).eval()


class Steps(nn.Module):
    """Rounds to multiples of 0.02: the gradient is exactly zero."""

    def forward(self, x):
        return torch.round(x * 50) / 50


def test_one_step_finds_everything_on_linear_features():
    x, y = images()
    for threat in (Linf(EPS), L2(0.8), L1(6.0)):
        result = active_test(linear(), x, y, FGSM(threat))
        assert bool(result.planted.all())
        assert result.success == 1.0
        assert not result.frozen


def test_random_points_do_not():
    """64 independent directions: 200 points of the ball must not stumble over the planted one."""
    x, y = images(24)
    result = active_test(linear(), x, y, FGSM(EPS))
    assert result.random_success is not None
    assert result.random_success <= 0.25
    noise = active_test(linear(), x, y, UniformNoise(Linf(EPS)))
    assert noise.success is not None
    assert noise.success <= 0.1


def test_a_zero_gradient_fails_and_no_gradient_passes():
    x, y = images()
    model = nn.Sequential(Steps(), *linear()).eval()
    blind = active_test(model, x, y, PGD(EPS, 10, objective=margin, random_start=False))
    assert bool(blind.planted.all())
    assert blind.success == 0.0
    free = active_test(model, x, y, PGD(EPS, 10, gradient=Evolution(60, 0.05), objective=margin))
    assert free.success == 1.0


def test_noise_is_frozen_for_random_models():
    x, y = images(6)
    for noise in (GaussianNoise(0.2), GaussianNoise(0.2, scope="call")):
        model = nn.Sequential(noise, *linear()).eval()
        result = active_test(model, x, y, FGSM(EPS), inner=99, points=50)
        assert result.frozen
        assert result.success == 1.0
    blind = nn.Sequential(Steps(), GaussianNoise(0.2), *linear()).eval()
    result = active_test(blind, x, y, PGD(EPS, 10, objective=margin, random_start=False), inner=99, points=20)
    assert result.success == 0.0


def test_images_themselves_are_class_0_and_answers_count_inside_the_threat_only():
    x, y = images()
    seen = []

    def look(model, points, labels):
        with torch.no_grad():
            seen.append(model(points).argmax(1))
        return points

    result = active_test(linear(), x, y, Custom(look, Linf(EPS)))
    assert int(torch.cat(seen).sum()) == 0
    assert result.success == 0.0
    outside = active_test(linear(), x, y, FGSM(3 * EPS), threat=Linf(EPS))
    assert outside.success == 0.0


def test_logits_are_as_far_apart_as_the_models_own():
    x, y = images(4)
    sizes = []

    def look(model, points, labels):
        with torch.no_grad():
            sizes.append(model(points))
        return points

    model = linear()
    active_test(model, x, y, Custom(look, Linf(EPS)))
    own = model(x).detach()
    measured = torch.cat(sizes)
    ratio = (measured[:, 0] - measured[:, 1]) / (own.amax(1) - own.amin(1))
    assert bool(((ratio > 0.2) & (ratio < 2)).all())


def test_an_example_does_not_depend_on_the_others():
    x, y = images(10)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 80), nn.ReLU(), nn.Linear(80, 3)).eval()
    attack = PGD(EPS, 3, objective=margin)
    whole = active_test(model, x, y, attack, points=20)
    part = active_test(model, x[3:7], y[3:7], attack, points=20)
    assert torch.equal(whole.found[3:7], part.found)
    assert torch.equal(whole.random[3:7], part.random)


def test_images_that_an_attack_could_mix_up_are_kept_apart():
    x, _ = images(6)
    x[3] = (x[2] + 0.01).clamp(0, 1)
    assert list(_groups(x, Linf(EPS), False)) == [[0, 1, 2], [3, 4, 5]]
    assert list(_groups(x[:2], Linf(EPS), True)) == [[0], [1]]
    assert list(_groups(x[:2], Linf(0.9), False)) == [[0], [1]]


def test_an_unplantable_image_is_left_out():
    """One feature that does not move: nothing can be told from anything."""

    class Constant(nn.Module):
        def forward(self, x):
            return torch.ones(len(x), 4) + 0 * x.flatten(1).sum(1, keepdim=True)

    x, y = images(3)
    result = active_test(nn.Sequential(Constant(), nn.Linear(4, 3)).eval(), x, y, FGSM(EPS))
    assert int(result.planted.sum()) == 0
    assert result.success is None


def test_model_and_generators_come_back():
    x, y = images(4)
    model = nn.Sequential(GaussianNoise(0.2), *linear()).eval()
    before, weights = fingerprint(), {k: v.clone() for k, v in model.state_dict().items()}
    active_test(model, x, y, FGSM(EPS), inner=20, points=5)
    assert fingerprint() == before
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())
    assert not any(m._forward_pre_hooks for m in model.modules())
    assert all(p.requires_grad for p in model.parameters())


def test_l0_plants_whole_pixels():
    x, y = images(6)
    result = active_test(linear(), x, y, FGSM(L0(6)))
    assert result.success == 1.0


class NoLinear(nn.Module):
    def forward(self, x):
        return x.flatten(1)[:, :3]


class OverTime(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(64, 3)

    def forward(self, x):
        return self.head(x.flatten(1)[None].repeat(4, 1, 1)).mean(0)


@pytest.mark.parametrize("model", [NoLinear(), OverTime(), nn.Sequential(nn.Flatten(), nn.Linear(64, 5), NoLinear())])
def test_models_without_a_last_linear_layer_are_refused(model):
    x, y = images(3)
    with pytest.raises(ModelError):
        active_test(model.eval(), x, y, FGSM(EPS))


def test_the_last_layer_is_found_by_running():
    """Order of definition says nothing."""

    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.last = nn.Linear(3, 3)
            self.first = nn.Linear(64, 3)

        def forward(self, x):
            return self.last(self.first(x.flatten(1)))

    model = Backwards().eval()
    assert last_linear(model, images(1)[0]) is model.last


@pytest.mark.parametrize("options", [{"examples": 0}, {"inner": 0}, {"points": 0}, {"threat": Linf(0)}])
def test_bad_arguments(options):
    x, y = images(3)
    with pytest.raises(BudgetError):
        active_test(linear(), x, y, FGSM(EPS), **options)
