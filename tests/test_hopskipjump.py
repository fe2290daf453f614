"""HopSkipJump: distances by decisions alone, against closed forms."""

import math
import pickle

import pytest
import torch
from torch import nn

from stochade import L2, Linf, evaluate
from stochade.attacks import L1
from stochade.attacks.hopskipjump import HopSkipJump
from stochade.attacks.registry import parse_attack
from stochade.errors import BudgetError
from stochade.models.known_answer import KNOWN

INF = float("inf")


def exact(case, kind):
    """[N] the smallest budget at which the truth is 0, by bisection on the closed form."""
    widest = 1.0 if kind is Linf else 6.0
    low, high = torch.zeros(len(case.images)), torch.full((len(case.images),), widest)
    for _ in range(40):
        middle = (low + high) / 2
        falls = torch.stack(
            [
                case.model.truth(case.images[i : i + 1], case.labels[i : i + 1], kind(float(middle[i])))[0] < 0.5
                for i in range(len(middle))
            ]
        )
        low, high = torch.where(falls, low, middle), torch.where(falls, middle, high)
    return high


@pytest.mark.parametrize("kind", [L2, Linf], ids=lambda k: k.__name__)
def test_distances_on_linear_models_are_within_5_percent(kind):
    case = KNOWN["linear"](count=64)
    truth = exact(case, kind)
    attempt = HopSkipJump(kind(INF), steps=20).run(case.model, case.images, case.labels)
    right = case.model(case.images).argmax(1) == case.labels
    ratio = (attempt.distance / truth)[right]
    assert float(ratio.max()) < 1.05
    assert float(ratio.min()) > 0.999
    assert bool((attempt.distance[~right] == 0).all())
    assert bool((case.model(attempt.inputs).argmax(1) != case.labels).all())
    alone = torch.cat(
        [
            HopSkipJump(kind(INF), steps=20).run(case.model, case.images[i : i + 1], case.labels[i : i + 1]).distance
            for i in range(3)
        ]
    )
    torch.testing.assert_close(alone, attempt.distance[:3], rtol=1e-3, atol=1e-5)


def test_decisions_are_all_it_sees():
    """Logits that are one-hot decisions of the linear model give the same distances."""

    class Decisions(nn.Module):
        scope = "none"

        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, x):
            return nn.functional.one_hot(self.model(x.detach()).argmax(1), 2).float()

    case = KNOWN["linear"](count=6)
    attack = HopSkipJump(L2(INF), steps=5)
    plain = attack.run(case.model, case.images, case.labels)
    blind = attack.run(Decisions(case.model), case.images, case.labels)
    torch.testing.assert_close(blind.distance, plain.distance, rtol=1e-3, atol=1e-5)


def test_a_noisy_model_is_asked_by_vote():
    """P(correct) = Phi(s m / sigma): half at m = 0, the plane of the model without noise. With votes of 20 draws the
    last word of the book is a fresh vote, so the mean distance is within 15 % of the closed form, and no point that
    the model gets right in most draws is handed back."""
    case = KNOWN["noisy-linear"](count=30)
    truth = exact(case, L2)
    attempt = HopSkipJump(L2(INF), steps=15, votes=40).run(case.model, case.images, case.labels, seed=1)
    found = torch.isfinite(attempt.distance) & (truth > 0.02)
    assert float(found.float().mean()) > 0.5
    assert 0.85 < float(attempt.distance[found].mean() / truth[found].mean()) < 1.15
    right = case.model.accuracy_at(attempt.inputs, case.labels)[found]
    assert float(right.mean()) < 0.55


def test_no_luck_is_taken_for_success():
    """Errs on 10 % of draws whatever the input: nothing changes its score, and nothing counts as adversarial."""
    case = KNOWN["coin-flip"](count=40)
    records = evaluate(
        case.model, case.images, case.labels, {"a": HopSkipJump(case.threat, steps=3)}, draws=20, show_progress=False
    )
    score = records.score("a")
    assert score.low <= 0.9 <= score.high


def test_budgets_decide_only_what_is_handed_back():
    case = KNOWN["linear"](count=20)
    every = HopSkipJump(L2(INF), steps=8).run(case.model, case.images, case.labels)
    middle = float(every.distance.median())
    some = HopSkipJump(L2(middle), steps=8).run(case.model, case.images, case.labels)
    torch.testing.assert_close(some.distance, every.distance)
    outside = every.distance > middle
    assert torch.equal(some.inputs[outside], case.images[outside])
    assert torch.equal(some.inputs[~outside], every.inputs[~outside])
    each = torch.where(torch.arange(20) % 2 == 0, 10.0, 1e-6)
    mixed = HopSkipJump(L2(INF), steps=8).run(case.model, case.images, case.labels, budgets=each)
    unmoved = (mixed.inputs == case.images).flatten(1).all(1)
    assert bool(unmoved[each < 1].all())  # also those that were wrong as they are


def test_targets_need_a_start_of_their_class():
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(9, 3)).eval()
    with torch.no_grad():
        model[1].weight.copy_(torch.eye(3).repeat(1, 3) * 4 - 1)
        model[1].bias.zero_()
    x = torch.rand(12, 1, 3, 3, generator=generator)
    y = model(x).argmax(1)
    targets = (y + 1) % 3
    best = torch.stack([x[(y == t).nonzero()[0, 0]] for t in targets])
    attempt = HopSkipJump(L2(INF), steps=5).run(model, x, y, targets=targets, start=best)
    assert bool(torch.isfinite(attempt.distance).all())
    assert bool((model(attempt.inputs).argmax(1) == targets).all())
    assert bool((attempt.distance <= (best - x).flatten(1).norm(dim=1) + 1e-5).all())


def test_a_model_that_cannot_be_fooled_gives_up():
    class Constant(nn.Module):
        scope = "none"

        def forward(self, x):
            return torch.tensor([1.0, 0.0]).repeat(len(x), 1) + 0 * x.flatten(1).sum(1, keepdim=True)

    x = torch.rand(3, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    attempt = HopSkipJump(L2(INF), steps=2).run(Constant(), x, torch.zeros(3, dtype=torch.long))
    assert bool(torch.isinf(attempt.distance).all())
    assert torch.equal(attempt.inputs, x)


def test_queries_are_counted():
    class Counting(nn.Module):
        scope = "none"
        seen = 0

        def forward(self, x):
            Counting.seen += len(x)
            score = x.flatten(1).mean(1) - 0.5
            return torch.stack([-score, score], 1)

    x = torch.full((4, 1, 3, 3), 0.3)
    attack = HopSkipJump(Linf(INF), steps=4)
    attempt = attack.run(Counting(), x, torch.zeros(4, dtype=torch.long))
    assert Counting.seen - 2 == int(attempt.forwards.sum())  # two images of the first probe
    assert int(attempt.forwards.max()) <= attack.cost()[0]
    assert bool((attempt.trace.distance[0] >= attempt.trace.distance[-1]).all())


def test_numbers_that_make_no_sense_are_refused():
    for bad in ({"threat": L1(1.0)}, {"steps": 0}, {"evaluations": -1}, {"votes": 0}, {"most": 1.5}):
        with pytest.raises(BudgetError):
            HopSkipJump(**{"threat": L2(INF)} | bad)
    attack = parse_attack("hopskipjump steps=3 votes=5", L2(math.inf))
    assert pickle.loads(pickle.dumps(attack)) == attack == HopSkipJump(L2(INF), steps=3, votes=5)
