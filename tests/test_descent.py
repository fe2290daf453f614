"""The descent loop on models whose worst case is known: it gets there, and it does nothing else."""

import numpy as np
import pytest
import torch
from torch import nn

from linear_cases import binary, data, multi, worst
from stochade.attacks import (
    BIM,
    FGSM,
    ILL,
    L0,
    L1,
    L2,
    PGD,
    WHOLE,
    Descent,
    Linf,
    dlr,
    margin,
)  # fmt: skip
from stochade.attacks.descent import least_likely_targets
from stochade.models.known_answer import KnownAnswer, Linear
from stochade.nn.discrete import Scope

THREATS = [Linf(0.15), Linf(0.0), Linf(float("inf")), L2(0.4), L2(1.5), L1(0.8), L1(3.0), L0(2), L0(5)]
ITERATED: dict[str, dict] = {
    "bim": {"steps": 60},
    "pgd": {"steps": 60, "random_start": True},
    "restarts": {"steps": 60, "random_start": True, "restarts": 2},
    "momentum": {"steps": 60, "momentum": 1.0},
    "whole": {"steps": 3, "step_size": WHOLE},
}


def lost(model: KnownAnswer, x, z, y) -> np.ndarray:
    s = (2 * y - 1).double()
    return (s * ((x - z).flatten(1).double() @ model.weight.detach().double())).numpy()


@pytest.mark.parametrize("threat", THREATS, ids=str)
@pytest.mark.parametrize("count", [1, 3, 8])
def test_one_whole_step_is_the_closed_form_worst_case(threat, count):
    model, (x, y) = binary(), data(count)
    z = FGSM(threat)(model, x, y)
    np.testing.assert_allclose(lost(model, x, z, y), worst(model, x, y, threat), atol=3e-6)


@pytest.mark.parametrize("name", ITERATED)
@pytest.mark.parametrize("threat", THREATS, ids=str)
def test_iterated_attacks_converge_to_the_worst_case(threat, name):
    model, (x, y) = binary(), data(8)
    attack = Descent(threat, objective=margin, drop_fooled=False, **ITERATED[name])
    attempt = attack.run(model, x, y)
    target = worst(model, x, y, threat)
    reached = lost(model, x, attempt.inputs, y)
    slack = 1e-5
    assert bool((reached >= target * (1 - slack) - 1e-5).all())
    assert bool((reached <= target + 1e-5).all())
    assert bool((threat.distance(attempt.inputs, x) <= threat.eps * (1 + 1e-5) + 1e-6).all())
    torch.testing.assert_close(attempt.distance, threat.distance(attempt.inputs, x))


@pytest.mark.parametrize("objective", [margin, dlr])
def test_every_example_that_can_be_fooled_is_fooled(objective):
    model, (x, _) = binary(), data(60)
    y = model(x).argmax(1)
    for threat in (Linf(0.1), L2(0.3), L1(0.6), L0(1)):
        truth = model.truth(x, y, threat)
        z = Descent(threat, steps=30, objective=objective, random_start=True)(model, x, y)
        assert torch.equal(model.accuracy_at(z, y), truth)
        assert 0.05 < float(truth.mean()) < 0.95


@pytest.mark.parametrize("threat", [Linf(0.1), L2(0.3), L1(0.6), L0(1)], ids=str)
def test_multi_class_truth_is_reached_by_targeting_every_class(threat):
    model, (x, y) = multi(), data(40, classes=4)
    y = model(x).argmax(1)
    survived = torch.ones(40)
    for j in range(4):
        rows = y != j
        t = torch.full_like(y, j)[rows]
        attack = Descent(threat, steps=1, step_size=WHOLE, objective=lead, drop_fooled=False)
        z = attack(model, x[rows], y[rows], targets=t)
        survived[rows] *= (model(z).argmax(1) == y[rows]).float()
    assert torch.equal(survived.double(), model.truth(x, y, threat))


def lead(logits, y, targets):
    """z_t - z_y: linear, so that one whole step is exact."""
    return (logits.gather(1, targets[:, None]) - logits.gather(1, y[:, None]))[:, 0]


def test_targets_pull_towards_their_class():
    model, (x, y) = multi(), data(30, classes=4)
    y = model(x).argmax(1)
    t = (y + 1) % 4
    possible = np.array([_can_reach(model, a, int(b), 0.2) for a, b in zip(x, t, strict=True)])
    z = PGD(Linf(0.2), steps=100)(model, x, y, targets=t)
    assert 0.1 < possible.mean() < 0.9
    reached = (model(z).argmax(1) == t).numpy()
    assert not (reached & ~possible).any()
    assert reached.sum() >= 0.9 * possible.sum()  # cross-entropy is not the linear program's objective
    gained = model(z).log_softmax(1) - model(x).log_softmax(1)
    assert bool((gained.gather(1, t[:, None]) > 0).all())


def _can_reach(model: Linear, x: torch.Tensor, t: int, eps: float) -> bool:
    """Whether some z in the box within eps (linf) has class t: max over z of min_j z_t - z_j, a linear program."""
    from scipy.optimize import linprog

    w, flat = model.weight.detach().double().numpy(), x.flatten().double().numpy()
    rows = np.array([np.r_[w[j] - w[t], 1.0] for j in range(len(w)) if j != t])  # u <= (w_t - w_j) z
    low, high = np.clip(flat - eps, 0, 1), np.clip(flat + eps, 0, 1)
    bounds = [*zip(low, high, strict=True), (None, None)]
    return linprog(np.r_[np.zeros(len(flat)), -1.0], A_ub=rows, b_ub=np.zeros(len(rows)), bounds=bounds).fun < 0


def test_iterative_least_likely_is_pgd_towards_the_lowest_clean_logit():
    model, (x, y) = multi(), data(30, classes=4)
    logits = model(x).detach()
    masked = logits.numpy().copy()
    masked[np.arange(30), y.numpy()] = np.inf
    t = torch.from_numpy(masked.argmin(1))
    assert torch.equal(least_likely_targets(model, x, y), t)
    assert bool((logits.argmin(1) == y).any())  # so the true class had to be left out
    z = ILL(Linf(0.2), steps=8)(model, x, y)
    assert torch.equal(z, BIM(Linf(0.2), steps=8)(model, x, y, targets=t))
    assert not torch.equal(z, BIM(Linf(0.2), steps=8)(model, x, y))


class Hill(nn.Module):
    """A margin with a narrow peak at 0.5 that long steps jump over: the last point is not the best."""

    scope: Scope = "none"

    def forward(self, x):
        m = 1 - 5 * (-((x.flatten(1) - 0.5) * 8).square()).exp().sum(1) - 0.01 * x.flatten(1).sum(1)
        return torch.stack([m, -m], 1)


def test_best_keeps_the_highest_value_and_last_the_last_point():
    x, y = torch.full((3, 1, 1, 1), 0.3), torch.zeros(3, dtype=torch.long)
    make = {"steps": 2, "step_size": 0.3, "objective": margin, "drop_fooled": False}
    best, last = (Descent(Linf(0.6), keep=keep, **make).run(Hill(), x, y) for keep in ("best", "last"))
    value = margin(Hill()(best.inputs), y)
    seen = torch.cat([best.trace.value, margin(Hill()(last.inputs), y)[None]])
    torch.testing.assert_close(value, seen.amax(0))
    torch.testing.assert_close(best.value, value)
    assert bool((margin(Hill()(last.inputs), y) < value - 0.1).all())
    auto = Descent(Linf(0.6), **make).run(Hill(), x, y)
    assert torch.equal(auto.inputs, best.inputs)


def test_restarts_keep_the_best_of_their_runs():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(9, 8), nn.Tanh(), nn.Linear(8, 3)).eval()
    x, y = data(20, classes=3)
    parts = {"steps": 3, "objective": margin, "drop_fooled": False, "step_size": 0.02}
    one, four = (PGD(Linf(0.3), restarts=r, **parts).run(model, x, y, seed=5) for r in (1, 4))
    assert bool((four.value >= one.value).all())  # restart 0 is the same run
    assert bool((four.value > one.value + 1e-4).any())
    torch.testing.assert_close(margin(model(four.inputs), y).detach(), four.value)
    assert four.trace.value.shape == (12, 20)
