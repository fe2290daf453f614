"""The L-BFGS attack against closed forms."""

import pickle

import pytest
import torch
from torch import nn

from stochade import L2, Linf, evaluate
from stochade.attacks.lbfgs import LBFGS
from stochade.attacks.registry import parse_attack
from stochade.errors import BudgetError
from stochade.models.known_answer import KNOWN
from stochade.randomness import forked

INF = float("inf")


def exact(case):
    """[N] the smallest l2 budget at which the truth falls below 1/2, by bisection on the closed form."""
    low, high = torch.zeros(len(case.images)), torch.full((len(case.images),), 6.0)
    for _ in range(40):
        middle = (low + high) / 2
        x, y = case.images, case.labels
        falls = torch.stack(
            [case.model.truth(x[i : i + 1], y[i : i + 1], L2(float(middle[i])))[0] < 0.5 for i in range(len(x))]
        )
        low, high = torch.where(falls, low, middle), torch.where(falls, middle, high)
    return high


def test_linear_models_are_solved_within_half_a_percent_box_included():
    case = KNOWN["linear"](count=64)
    truth = exact(case)
    attempt = LBFGS(L2(INF)).run(case.model, case.images, case.labels)
    right = case.model(case.images).argmax(1) == case.labels
    ratio = (attempt.distance / truth)[right]
    assert float(ratio.min()) > 0.9999
    assert float(ratio.max()) < 1.005
    assert bool((case.model(attempt.inputs).argmax(1) != case.labels).all())
    assert bool((attempt.distance[~right] == 0).all())
    alone = LBFGS(L2(INF)).run(case.model, case.images[:1], case.labels[:1]).distance
    torch.testing.assert_close(alone, attempt.distance[:1], rtol=1e-3, atol=1e-5)


def network():
    with forked(3):
        model = nn.Sequential(nn.Flatten(), nn.Linear(16, 24), nn.Softplus(), nn.Linear(24, 3)).eval()
        x = torch.rand(20, 1, 4, 4)
    with torch.no_grad():
        model[1].weight.mul_(4)
        return model, x, model(x).argmax(1)


def test_targets_are_what_it_pulls_to():
    model, x, y = network()
    targets = (y + 1) % 3
    attempt = LBFGS(L2(INF)).run(model, x, y, targets=targets)
    found = torch.isfinite(attempt.distance)
    assert float(found.float().mean()) > 0.8
    assert bool((model(attempt.inputs).argmax(1) == targets)[found].all())
    assert torch.equal(attempt.inputs[~found], x[~found])
    any_class = LBFGS(L2(INF)).run(model, x, y)
    assert bool((any_class.distance <= attempt.distance * 1.05 + 1e-4).float().mean() > 0.8)


def test_saturated_pixels_move():
    with forked(1):
        x = (torch.rand(12, 1, 4, 4) < 0.5).float()
    case = KNOWN["linear"](count=4)
    model = type(case.model)(torch.stack([torch.ones(16), -torch.ones(16)]), torch.zeros(2)).eval()
    with torch.no_grad():
        model.bias[0] = -16.0  # label by whether more than half of the pixels are on
    y = model(x).argmax(1)
    attempt = LBFGS(L2(INF)).run(model, x, y)
    assert bool(torch.isfinite(attempt.distance).all())
    assert bool((model(attempt.inputs).argmax(1) != y).all())
    assert 0 <= float(attempt.inputs.min()) <= float(attempt.inputs.max()) <= 1


def test_budgets_starts_counts_and_noise():
    case = KNOWN["linear"](count=20)
    every = LBFGS(L2(INF)).run(case.model, case.images, case.labels)
    each = torch.where(torch.arange(20) % 2 == 0, 10.0, 1e-6)
    mixed = LBFGS(L2(INF)).run(case.model, case.images, case.labels, budgets=each)
    unmoved = (mixed.inputs == case.images).flatten(1).all(1)
    assert bool(unmoved[each < 1].all())
    torch.testing.assert_close(mixed.distance, every.distance)
    assert int(every.forwards.max()) <= LBFGS(L2(INF)).cost()[0]
    warm = LBFGS(L2(INF), steps=1, search_steps=1).run(case.model, case.images, case.labels, start=every.inputs)
    assert bool((warm.distance <= every.distance * 1.01 + 1e-5).all())
    coin = KNOWN["coin-flip"](count=30)
    attack = LBFGS(L2(0.05), steps=5, search_steps=3)
    score = evaluate(coin.model, coin.images, coin.labels, {"a": attack}, show_progress=False).score("a")
    assert score.low <= 0.9 <= score.high


def test_numbers_that_make_no_sense_are_refused():
    for bad in ({"threat": Linf(0.1)}, {"steps": 0}, {"initial": 0.0}, {"memory": -1}, {"gradient": 2}):
        with pytest.raises(BudgetError):
            LBFGS(**{"threat": L2(INF)} | bad)
    attack = parse_attack("lbfgs steps=3 initial=2", L2(1.0))
    assert pickle.loads(pickle.dumps(attack)) == attack == LBFGS(L2(1.0), steps=3, initial=2.0)
