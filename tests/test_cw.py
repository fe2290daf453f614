"""Carlini and Wagner's attacks against closed forms, on saturated images and on noise."""

import pickle

import pytest
import torch
from torch import nn

from stochade import L2, Backprop, Linf, evaluate
from stochade.attacks import L0, L1
from stochade.attacks.cw import CW
from stochade.attacks.registry import parse_attack
from stochade.errors import BudgetError
from stochade.models.known_answer import KNOWN, Linear
from stochade.randomness import forked

INF = float("inf")
QUICK = {"steps": 200, "rate": 0.05}


def exact(case, kind):
    """[N] the smallest budget at which the truth is 0: bisection on the closed form, or counting for l0."""
    x, y = case.images, case.labels

    def falls(i: int, eps: float) -> bool:
        return float(case.model.truth(x[i : i + 1], y[i : i + 1], kind(eps))) < 0.5

    if kind is L0:
        return torch.tensor([float(next(k for k in range(26) if falls(i, k))) for i in range(len(x))])
    found = []
    for i in range(len(x)):
        low, high = 0.0, 1.0 if kind is Linf else 6.0
        for _ in range(30):
            middle = (low + high) / 2
            low, high = (low, middle) if falls(i, middle) else (middle, high)
        found.append(high)
    return torch.tensor(found)


@pytest.mark.parametrize("kind", [L2, Linf], ids=lambda k: k.__name__)
def test_distances_on_linear_models_are_within_5_percent(kind):
    case = KNOWN["linear"](count=24)
    truth = exact(case, kind)
    attempt = CW(kind(INF), **QUICK).run(case.model, case.images, case.labels)
    right = case.model(case.images).argmax(1) == case.labels
    ratio = (attempt.distance / truth)[right]
    assert float(ratio.min()) > 0.999
    assert float(ratio.max()) < 1.05, ratio
    assert bool((attempt.distance[~right] == 0).all())
    assert bool((case.model(attempt.inputs).argmax(1) != case.labels).all())
    alone = CW(kind(INF), **QUICK).run(case.model, case.images[:1], case.labels[:1]).distance
    torch.testing.assert_close(alone, attempt.distance[:1], rtol=2e-2, atol=1e-4)  # rounding, over 10,000 steps


def test_l0_counts_on_linear_models_are_exact_or_one_more():
    case = KNOWN["linear"](count=24)
    truth = exact(case, L0)
    attempt = CW(L0(INF), steps=100).run(case.model, case.images, case.labels)
    assert bool((attempt.distance >= truth).all())
    assert bool((attempt.distance <= truth + 1).all())
    assert float((attempt.distance == truth).float().mean()) > 0.7
    assert torch.equal((attempt.inputs != case.images).flatten(1).sum(1).float(), attempt.distance)


def saturated():
    with forked(1):
        x = (torch.rand(12, 1, 4, 4) < 0.5).float()
    half = torch.ones(16)
    model = Linear(torch.stack([half, -half]), torch.tensor([-16.0, 0.0])).eval()
    return model, x, model(x).argmax(1)


def test_saturated_pixels_move():
    """All pixels are 0 or 1. Torchattacks moves none of them, Foolbox freezes them."""
    model, x, y = saturated()
    attempt = CW(L2(INF), **QUICK).run(model, x, y)
    assert bool(torch.isfinite(attempt.distance).all())
    assert bool((model(attempt.inputs).argmax(1) != y).all())
    on = x.flatten(1).sum(1)
    need = torch.where(y == 0, on - 8, 8 - on).abs()  # sum of pixels to move: spread over those that can
    room = torch.where(y == 0, on, 16 - on)
    best = need / room.sqrt()
    assert bool((attempt.distance <= 1.05 * best + 0.01).all())
    assert float(((attempt.inputs - x).abs() > 1e-3).float().mean()) > 0.1


class Ramps(nn.Module):
    """Nearly flat below 0.3, steep above: like a network trained against linf attacks. Class 0 on dark images."""

    def __init__(self):
        super().__init__()
        with forked(0):
            self.weight = torch.rand(64, 4) + 3 * (torch.rand(64, 4) < 0.1)
        self.weight[:, 0] = 0

    def forward(self, x):
        x = x.flatten(1)
        return (0.02 * x + (x - 0.3).clamp_min(0)) @ self.weight - torch.tensor([0.0, 1.5, 1.5, 1.5])


def test_descents_begin_at_what_was_found():
    """From the originals every descent ends at 0.43."""
    with forked(1):
        x = torch.rand(32, 1, 8, 8) / 4
    attack = CW(L2(INF), steps=50, search_steps=6, rate=0.05, initial=1.0, abort_early=False)
    assert float(attack.run(Ramps().eval(), x, torch.zeros(32, dtype=torch.long)).distance.median()) < 0.41


def test_kappa_asks_for_more():
    case = KNOWN["linear"](count=12)
    small, large = (CW(L2(INF), kappa=k, **QUICK).run(case.model, case.images, case.labels) for k in (0.0, 0.3))
    right = case.model(case.images).argmax(1) == case.labels
    assert bool((large.distance >= small.distance - 1e-4)[right].all())
    logits = case.model(large.inputs).detach()
    margins = (logits.gather(1, 1 - case.labels[:, None]) - logits.gather(1, case.labels[:, None]))[:, 0]
    assert float(margins[torch.isfinite(large.distance)].min()) >= 0.3 - 1e-4


def test_budgets_targets_starts_and_counts():
    case = KNOWN["linear"](count=12)
    attack = CW(L2(INF), steps=60, search_steps=4, rate=0.05)
    every = attack.run(case.model, case.images, case.labels)
    each = torch.where(torch.arange(12) % 2 == 0, 10.0, 1e-6)
    mixed = attack.run(case.model, case.images, case.labels, budgets=each)
    torch.testing.assert_close(mixed.distance, every.distance)
    assert bool((mixed.inputs == case.images).flatten(1).all(1)[each < 1].all())
    pulled = attack.run(case.model, case.images, case.labels, targets=1 - case.labels)
    torch.testing.assert_close(pulled.distance, every.distance, rtol=1e-3, atol=1e-4)  # two classes: the same thing
    assert bool((every.backwards <= attack.cost()[1]).all())
    warm = CW(L2(INF), steps=1, search_steps=1).run(case.model, case.images, case.labels, start=every.inputs)
    assert bool((warm.distance <= every.distance * 1.01 + 1e-4).all())


def test_a_coin_flip_is_not_broken_by_luck():
    case = KNOWN["coin-flip"](count=30)
    attack = CW(L2(0.05), steps=10, search_steps=3)
    score = evaluate(case.model, case.images, case.labels, {"cw": attack}, show_progress=False).score("cw")
    assert score.low <= 0.9 <= score.high


def test_noise_is_decided_by_vote():
    """P(correct) = 1/2 on the plane of the model without noise: the mean distance is within 15 % of it."""
    case = KNOWN["noisy-linear"](count=24)
    truth = exact(case, L2)
    attempt = CW(L2(INF), steps=100, search_steps=8, rate=0.05, votes=40, gradient=Backprop(20)).run(
        case.model, case.images, case.labels, seed=2
    )
    found = torch.isfinite(attempt.distance) & (truth > 0.02)
    assert float(found.float().mean()) > 0.6
    assert 0.85 < float(attempt.distance[found].mean() / truth[found].mean()) < 1.15
    assert float(case.model.accuracy_at(attempt.inputs, case.labels)[found].mean()) < 0.56


def test_numbers_that_make_no_sense_are_refused():
    for bad in ({"threat": L1(1.0)}, {"steps": 0}, {"rate": 0}, {"kappa": -1}, {"initial": 0}, {"gradient": 2}):
        with pytest.raises(BudgetError):
            CW(**{"threat": L2(INF)} | bad)
    attack = parse_attack("cw steps=3 kappa=2 abort_early=no", L2(1.0))
    assert pickle.loads(pickle.dumps(attack)) == attack == CW(L2(1.0), 3, kappa=2.0, abort_early=False)
