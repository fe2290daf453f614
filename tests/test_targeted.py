"""Targeted attacks: which class each goal means, and that the wrapped attack is pulled there."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from stochade import PGD, Linf
from stochade.attacks.base import Attack, Attempt, Task
from stochade.attacks.ledger import Ledger
from stochade.attacks.registry import parse_attack
from stochade.attacks.targeted import Targeted
from stochade.attacks.threats import L2
from stochade.attacks.transfer import for_transfer
from stochade.errors import BudgetError, LabelsError


class Linear(nn.Module):
    """Five classes over 3x3 images; on a linear model a large budget reaches any class."""

    scope = "none"

    def __init__(self, noise: float = 0.0):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.weight = nn.Parameter(torch.randn(5, 9, generator=generator) * 4)
        self.noise = noise
        self.scope = "example" if noise else "none"

    def forward(self, x):
        logits = (x.flatten(1) - 0.5) @ self.weight.T
        return logits + self.noise * torch.randn_like(logits)


X = torch.rand(24, 1, 3, 3, generator=torch.Generator().manual_seed(0))
MODEL = Linear().eval()
Y = MODEL(X).argmax(1)


def run(goal, x=X, y=Y, model=MODEL, attack=None, **more) -> Attempt:
    return Targeted(attack or PGD(Linf(0.6), steps=20), goal, **more).run(model, x, y, seed=5)


@pytest.mark.parametrize(("goal", "rank"), [("runner-up", 1), ("least-likely", 4)])
def test_goals_are_the_ranked_wrong_classes_and_are_reached(goal, rank):
    attempt = run(goal)
    wanted = MODEL(X).argsort(1, descending=True)[:, rank]
    assert torch.equal(attempt.targets, wanted)
    assert (MODEL(attempt.inputs).argmax(1) == wanted).double().mean() > 0.9


def test_the_true_class_is_never_a_goal():
    """Where the model is wrong its first class is the runner-up, and its last may be the label itself."""
    logits = MODEL(X)
    worst = logits.argmin(1)
    assert torch.equal(run("runner-up", y=worst).targets, logits.argmax(1))
    assert torch.equal(run("least-likely", y=worst).targets, logits.argsort(1)[:, 1])


def test_random_goals_are_wrong_classes_that_belong_to_the_example_alone():
    targets = run("random").targets
    assert (targets != Y).all()
    assert torch.equal(run("random", X[5:9], Y[5:9]).targets, targets[5:9])
    many = X.repeat(200, 1, 1, 1) + torch.rand(4800, 1, 1, 1) * 1e-4
    labels = torch.zeros(4800, dtype=torch.long)
    counts = run("random", many.clamp(0, 1), labels, attack=PGD(Linf(0.0), steps=1)).targets.bincount(minlength=5)
    assert counts[0] == 0
    assert (counts[1:] - 1200).abs().max() < 180  # six standard deviations of a binomial of 4800 and 1/4


def test_an_example_of_the_goal_class_is_left_alone_at_no_cost():
    attempt, others = run(2), Y != 2
    assert 0 < others.sum() < len(Y)
    assert torch.equal(attempt.inputs[~others], X[~others])
    assert (attempt.forwards[~others] == 0).all()
    assert (attempt.targets == torch.where(others, 2, -1)).all()
    assert (MODEL(attempt.inputs).argmax(1)[others] == 2).double().mean() > 0.9
    alone = run(2, X[others], Y[others])
    assert torch.equal(attempt.inputs[others], alone.inputs)
    assert torch.equal(attempt.forwards[others], alone.forwards)
    assert torch.equal(attempt.trace.value[:, others].nan_to_num(), alone.trace.value.nan_to_num())
    assert attempt.trace.value[:, ~others].isnan().all()
    nothing = run(2, X[~others], Y[~others])
    assert torch.equal(nothing.inputs, X[~others])


@dataclass(frozen=True)
class Nearest(Attack):
    """A minimum-norm attack that finds everything at distance 1."""

    threat = L2(3.0)
    minimal = True

    def cost(self):
        return 0, 0

    def search(self, task: Task) -> Attempt:
        return Ledger(task).attempt(torch.ones(len(task.x)))


def test_a_minimum_norm_attack_stays_one_and_says_inf_where_there_is_no_goal():
    attack = Targeted(Nearest(), 2)
    assert attack.minimal
    distance = attack.run(MODEL, X, Y).distance
    assert torch.equal(distance, torch.where(Y == 2, torch.inf, 1.0))
    assert attack.run(MODEL, X[Y == 2], Y[Y == 2]).distance.isinf().all()


def test_classes_are_ranked_by_the_mean_of_many_draws():
    """Noise of six times the gap: one draw ranks most examples wrongly, 400 draws hardly any."""
    noisy = Linear(noise=3.0).eval()
    truth = MODEL(X).argsort(1, descending=True)[:, 1]
    still = PGD(Linf(0.0), steps=1)
    few = (run("runner-up", model=noisy, attack=still, draws=1).targets == truth).double().mean()
    many = (run("runner-up", model=noisy, attack=still, draws=400).targets == truth).double().mean()
    assert many > 0.85
    assert many > few + 0.1


def test_the_ranking_is_paid_for():
    plain = PGD(Linf(0.6), steps=20, drop_fooled=False)
    attempt, inner = run("runner-up", attack=plain), plain.run(MODEL, X, Y, targets=run("runner-up").targets, seed=5)
    assert torch.equal(attempt.forwards, inner.forwards + 1)
    assert torch.equal(attempt.found_at, inner.found_at + 1)
    assert torch.equal(attempt.inputs, inner.inputs)
    assert Targeted(plain, "random", 7).cost() == (plain.cost()[0] + 7, plain.cost()[1])


def test_targets_of_the_caller_go_first():
    targets = (Y + 1) % 5
    assert torch.equal(Targeted(PGD(Linf(0.6), 5), "runner-up").run(MODEL, X, Y, targets=targets).targets, targets)


def test_bad_goals_are_named():
    for goal in ("nearest", -1, True, 1.5):
        with pytest.raises(BudgetError, match="goal"):
            Targeted(PGD(0.1), goal)
    with pytest.raises(BudgetError, match="attack"):
        Targeted(PGD, "random")  # type: ignore[arg-type]
    with pytest.raises(LabelsError, match="5 classes"):
        run(5)


def test_any_attack_takes_a_goal_by_name_and_keeps_it_for_transfer():
    attack = parse_attack("pgd steps=3 target=least-likely eps=0.2", Linf(0.1))
    assert isinstance(attack, Targeted)
    assert (attack.goal, attack.threat, attack.attack.steps) == ("least-likely", Linf(0.2), 3)
    assert parse_attack("random-search target=4 samples=5", Linf(0.1)).goal == 4
    carried = for_transfer(attack)
    assert carried.goal == "least-likely"
    assert carried.attack.drop_fooled is False
