"""Losses over time against their formulas, written out step by step."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stochade.errors import BudgetError, LogitsError, ModelError, UsageError
from stochade.models.encoded import Encoded
from stochade.models.spiking import spiking_vgg
from stochade.nn import Direct
from stochade.nn.over_time import OverTime
from stochade.randomness import fingerprint, forked
from stochade.train import train
from stochade.train.objectives import Standard
from stochade.train.temporal import TET, Distilled, logits_over_time


class Steps(nn.Module):
    """Logits of step t are (t + 1) times a linear map of the frame."""

    def __init__(self):
        super().__init__()
        with forked(0):
            self.linear = nn.Linear(4, 3)

    def forward(self, x):
        factor = torch.arange(1, len(x) + 1, dtype=x.dtype)[:, None, None]
        return self.linear(x.flatten(2)) * factor


def problem():
    with forked(1):
        x, y = torch.rand(5, 1, 2, 2), torch.tensor([0, 1, 2, 0, 1])
    return Encoded(Direct(3), OverTime(Steps())), x, y


def test_the_mean_over_time_is_what_comes_out():
    model, x, _ = problem()
    linear = model.network.body.linear
    torch.testing.assert_close(model(x), linear(x.flatten(1)) * 2)
    with logits_over_time(model) as told:
        model(x)
    assert told[0].shape == (3, 5, 3)
    assert not model.network.body._forward_hooks


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_tet_is_its_formula(weight):
    model, x, y = problem()
    loss, logits, terms = TET(weight, 0.7)(model, x, y, model=model, seed=0)
    once = model.network.body.linear(x.flatten(1))
    ce = sum(F.cross_entropy(once * k, y) for k in (1, 2, 3)) / 3
    mse = sum(F.mse_loss(once * k, torch.full_like(once, 0.7)) for k in (1, 2, 3)) / 3
    torch.testing.assert_close(loss, (1 - weight) * ce + weight * mse)
    torch.testing.assert_close(logits, model(x))
    torch.testing.assert_close(sum(terms.values()), loss)
    assert float(loss.detach()) != pytest.approx(float(F.cross_entropy(model(x), y).detach()))


@pytest.mark.parametrize("order", ["student", "teacher"])
def test_distillation_is_its_formula(order):
    model, x, y = problem()
    with forked(2):
        teacher = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(4, 3))
    before = fingerprint()
    objective = Distilled(teacher, 0.4, 2.0, order, inner=Standard())
    loss, logits, terms = objective(model, x, y, model=model, seed=0)
    assert fingerprint() == before
    assert teacher.training
    p, q = F.softmax(model(x) / 2, 1), F.softmax(teacher[2](x.flatten(1)) / 2, 1)  # dropout is off
    p, q = (p, q) if order == "student" else (q, p)
    kl = (p * (p / q).log()).sum(1).mean()
    torch.testing.assert_close(loss, F.cross_entropy(logits, y) + 0.4 * 4 * kl)
    torch.testing.assert_close(terms["kd"], 1.6 * kl)
    loss.backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert model.network.body.linear.weight.grad is not None


def test_bad_numbers_and_models_are_named():
    _, x, y = problem()
    for bad in (-0.1, 1.5, float("nan"), True, "1"):
        with pytest.raises(BudgetError, match="weight"):
            TET(bad)
    with pytest.raises(BudgetError, match="target"):
        TET(0.1, float("inf"))
    with pytest.raises(BudgetError, match="temperature"):
        Distilled(nn.Linear(4, 3), temperature=0)
    with pytest.raises(UsageError, match="order"):
        Distilled(nn.Linear(4, 3), order="both")
    with pytest.raises(UsageError, match="teacher"):
        Distilled(lambda x: x)
    with pytest.raises(ModelError, match="over time"):
        TET()(nn.Flatten(), x, y, model=nn.Flatten(), seed=0)
    model = problem()[0]
    from stochade.models.encoded import Aggregated

    several = Aggregated(model, 2)
    with pytest.raises(ModelError, match="one encoding"):
        TET()(several, x, y, model=several, seed=0)
    with pytest.raises(LogitsError, match="teacher"):
        Distilled(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)))(model, x, y, model=model, seed=0)


def test_a_spiking_network_trains_with_a_teacher():
    with forked(0):
        images = torch.rand(64, 1, 8, 8)
        labels = (images.flatten(1).mean(1) > images.mean()).long()
        model = spiking_vgg((1, 8, 8), 2, encoder="rsc-i", steps=3, encoder_options={"sigma": 0.1})
        teacher = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))

    class Set:
        def __len__(self):
            return 64

        def __getitem__(self, index):
            return images[index], labels[index]

    told = train(model, Set(), Set(), epochs=3, batch=16, objective=Distilled(teacher), progress=False)
    assert set(told.epochs[0].terms) == {"ce", "mse", "kd"}
    assert told.epochs[-1].train_loss < told.epochs[0].train_loss
