"""Figures of robust linear models: certificates against attacks, and training against its closed form."""

import math

import pytest
import torch
from torch import nn

from lab_figures import SHAPE, Halves, reproduction
from stochade.attacks import FGSM, L1, L2, Linf
from stochade.data import Images
from stochade.recipes.views import linear


def binary(count: int = 60) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(0, 2, (count,), generator=generator).double() * 2 - 1
    x = 0.5 + 0.08 * y[:, None] * torch.linspace(0, 1, 16).double()
    x += 0.08 * torch.randn(count, 16, generator=generator, dtype=torch.float64)
    return x.clamp(0.05, 0.95).view(-1, *SHAPE), y


@pytest.mark.parametrize(("threat", "dual"), [(Linf(0.04), 1), (L2(0.15), 2), (L1(0.3), math.inf)])
def test_the_certificate_is_exact_where_the_box_does_not_matter(threat, dual):
    x, y = binary()
    model = linear.fitted(x, y, threat.size, dual, 0.0, 150)
    clean, certified, hit = linear.scores(model, x, y, threat, dual)
    assert certified == hit  # no image comes near the box
    assert certified < clean
    attacked_images = FGSM(threat)(model.as_model(), x, (y > 0).long())
    worst = y * model(attacked_images)
    assert torch.allclose(worst, model.margins(x, y, threat.size, dual), atol=1e-6)


def test_robust_training_with_the_right_sign_certifies_more_and_the_papers_sign_less():
    x, y = binary(400)
    threat, eps = Linf(0.04), 0.04
    certified = [linear.scores(linear.fitted(x, y, eps, 1, s, 1000), x, y, threat, 1)[1] for s in (1, 0, -1)]
    assert certified[0] > 0.2 + max(certified[1:])
    assert certified[2] < certified[1]
    right = linear.fitted(x, y, eps, 1, 1.0, 300)
    h = x.flatten(1) @ right.weight + right.bias
    robust = nn.functional.softplus(-y * h + eps * right.weight.abs().sum()).mean()
    worst = x.flatten(1) - eps * y[:, None] * right.weight.sign()
    assert float(robust) == pytest.approx(
        float(nn.functional.softplus(-y * (worst @ right.weight + right.bias)).mean()), rel=1e-9
    )


def test_linear_figures_say_what_scores_say():
    x, y = binary(40)
    images = Images(x.float().numpy(), (y > 0).long().numpy())
    r = reproduction("pallaprolu2020-linear", {"a": Halves()}, images)
    figures = linear.robust_linear(r)
    assert [f.title.split(", ")[1].split()[0] for f in figures] == ["linf", "l2", "l1"]
    for figure in figures:
        for row in figure.rows:
            assert float(row[2]) <= float(row[3]) <= float(row[1]) + 1e-9  # certified, attacked, clean
