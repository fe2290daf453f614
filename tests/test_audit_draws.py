"""The number of draws per gradient, on a model whose accuracy under n draws has a closed form."""

import math
import pickle

import pytest
import torch
from torch import nn

from doubles import Base, examples
from stochade.attacks import (
    FGSM,
    PGD,
    Averaged,
    Backprop,
    Ensemble,
    Evolution,
    Frozen,
    Linf,
    RandomSearch,
    Rotate,
    Transforms,
    UniformNoise,
    margin,
)
from stochade.audit.draws import draws_until_stable, with_draws
from stochade.errors import BudgetError

PIXELS, EPS, SIGMA = 400, 0.05, 0.2


class NoisySlope(nn.Module):
    """Margin (x - 1/2).w with slope noise of standard deviation SIGMA per pixel in the backward only: the answer is
    deterministic, the gradient of one draw is mostly noise. |w_i| = 1/20 for all i."""

    scope = "example"

    def forward(self, x):
        w = torch.full((PIXELS,), 1 / 20)
        flat = x.flatten(1) - 0.5
        noise = SIGMA * torch.randn_like(flat)
        m = flat @ w + ((flat - flat.detach()) * noise).sum(1)
        return torch.stack([-m, m], 1)


def images(count: int = 200) -> tuple[torch.Tensor, torch.Tensor]:
    """Margins spread evenly over what the budget can and cannot take away."""
    y = torch.arange(count) % 2
    reach = EPS * PIXELS / 20
    level = (2 * y - 1) * torch.linspace(0.01, 1.2, count) * reach * 20 / PIXELS
    return (0.5 + level)[:, None].expand(-1, PIXELS).reshape(count, 1, 20, 20).contiguous(), y


def accuracy(draws: int) -> float:
    """One signed step takes away reach * (2 p - 1), where p = Phi(sqrt(n) |w_i| / SIGMA) is the chance of the right
    sign, up to a fluctuation of 1/20 of the reach: the share of margins, even on (0.01, 1.2), beyond that."""
    p = 0.5 * (1 + math.erf(draws**0.5 / 20 / SIGMA / 2**0.5))
    return (1.2 - (2 * p - 1)) / 1.19


def test_it_grows_until_more_draws_take_away_no_more():
    """Accuracy falls from 0.84 at 1 draw to 0.168 at 256 and after; at 64 it is 0.21: so 64 or 128."""
    x, y = images()
    attack = FGSM(EPS, objective=margin)
    found = draws_until_stable(attack, NoisySlope(), x, y, most=512, scoring_draws=2, show_progress=False)
    for row in found.rows:
        assert row.accuracy.value == pytest.approx(accuracy(row.draws), abs=0.04)
    assert found.stable
    assert found.draws in (64, 128)
    assert [row.draws for row in found.rows] == [2**k for k in range(len(found.rows))]
    assert found.rows[-1].draws == 4 * found.draws
    assert all(row.moved for row in found.rows if row.draws in (2, 4, 8, 16, 32))
    assert not any(row.moved for row in found.rows[-2:])
    assert found.attack == FGSM(EPS, objective=margin, gradient=Backprop(found.draws))
    assert str(found).startswith(f"stable from {found.draws} draws")


def test_without_enough_draws_it_says_so():
    x, y = images(150)
    attack = FGSM(EPS, objective=margin)
    found = draws_until_stable(attack, NoisySlope(), x, y, most=12, scoring_draws=2, show_progress=False)
    assert not found.stable
    assert found.draws == 12
    assert [row.draws for row in found.rows] == [1, 2, 4, 8, 12]
    assert str(found).startswith("still moving at 12 draws")
    assert pickle.loads(pickle.dumps(found)) == found


def test_a_deterministic_model_needs_one():
    x, y = examples()
    found = draws_until_stable(PGD(0.1, steps=2), Base(), x, y, scoring_draws=2, show_progress=False)
    assert (found.draws, found.stable, len(found.rows)) == (1, True, 3)
    assert found.rows[0].reference is None
    assert [row.reference for row in found.rows[1:]] == [1, 1]


@pytest.mark.parametrize(
    ("gradient", "wanted"),
    [
        (Backprop(3, "soft"), Backprop(8, "soft")),
        (Evolution(5, 0.1), Evolution(8, 0.1)),
        (Averaged(4, 64), Averaged(4, 8)),
        (Averaged(16, 64), Averaged(8, 8)),
        (Transforms(Backprop(), Rotate(3), 5), Transforms(Backprop(), Rotate(3), 8)),
        (Ensemble([Backprop(), Evolution(2)], [1, 2]), Ensemble([Backprop(8), Evolution(8)], [1, 2])),
    ],
)
def test_draws_reach_every_kind_of_gradient(gradient, wanted):
    assert with_draws(PGD(0.1, gradient=gradient), 8) == PGD(0.1, gradient=wanted)


def test_attacks_with_draws_of_their_own_take_them():
    assert with_draws(RandomSearch(Linf(0.1)), 8).draws == 8


@pytest.mark.parametrize(
    ("attack", "options"),
    [
        (PGD(0.1), {"start": 0}), (PGD(0.1), {"start": 8, "most": 4}), (PGD(0.1), {"scoring_draws": 1}),
        (UniformNoise(Linf(0.1)), {}), (PGD(0.1, gradient=Frozen(Backprop(), 0)), {}), (None, {}),
        (PGD(0.1, gradient=Averaged()), {"start": 1}),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_named(attack, options):
    with pytest.raises(BudgetError):
        draws_until_stable(attack, Base(), *examples(), **options)
