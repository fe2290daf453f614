"""JSMA's pair search against all pairs, and its finds against the exact l0 minimum of linear models."""

import math
import pickle

import pytest
import torch

from counting import PROBE, Counted, images, linear
from stochade.attacks import L0, L2, Backprop
from stochade.attacks import jsma as module
from stochade.attacks.jsma import JSMA, best_pair
from stochade.errors import BudgetError
from stochade.models.known_answer import KnownAnswer, Linear, NoisyLinear

INF = float("inf")


def mine(shape=(1, 8, 8), count=12, classes=3, seed=0):
    model, x = linear(shape, classes), images(count, shape, seed)
    return model, x, model(x).argmax(1)


def two_class(units=64, bias=0.0, seed=2):
    """Logits [-m/2, m/2]: the saliency of a pair is the square of its gain, so the two best values are the pair."""
    weight = torch.randn(units, generator=torch.Generator().manual_seed(seed))
    return KnownAnswer(weight, bias).eval()


def greedy(up, down, free):
    """All pairs of one example, by two loops."""
    best, found = 0.0, None
    for p in range(len(up)):
        for q in range(p):
            a, b = float(up[p] + up[q]), float(down[p] + down[q])
            if free[p] and free[q] and a > 0 and b > 0 and a * b > best:
                best, found = a * b, (q, p)
    return best, found


@pytest.mark.parametrize("cells", [1 << 22, 50], ids=["at once", "in blocks"])
@pytest.mark.parametrize("correlation", [-1.0, -0.95, 0.0, 0.9, 1.0])
def test_the_pair_is_the_best_of_all_pairs(correlation, cells, monkeypatch):
    monkeypatch.setattr(module, "CELLS", cells)
    g = torch.Generator().manual_seed(3)
    for units in (2, 3, 25, 60):
        up = torch.randn(6, units, generator=g)
        other = torch.randn(6, units, generator=g) * torch.tensor([1, 1, 1, 1e-3, 1e3, 1])[:, None]
        down = correlation * up + math.sqrt(1 - correlation**2) * other
        free = torch.rand(6, units, generator=g) < 0.8
        pair, score = best_pair(up, down, free)
        for i in range(6):
            best, found = greedy(up[i], down[i], free[i])
            assert float(score[i]) == pytest.approx(best, rel=1e-5)
            if found is not None:
                assert sorted(pair[i].tolist()) == list(found)


def test_no_pair_has_no_score():
    assert best_pair(torch.ones(2, 1), torch.ones(2, 1), torch.ones(2, 1, dtype=torch.bool))[1].tolist() == [0, 0]
    nobody = torch.zeros(2, 5, dtype=torch.bool)
    assert best_pair(torch.ones(2, 5), torch.ones(2, 5), nobody)[1].tolist() == [0, 0]
    assert best_pair(torch.ones(1, 5), -torch.ones(1, 5), ~nobody[:1])[1].tolist() == [0]


def test_one_step_is_the_formula_of_the_paper():
    """Saliency of every pair from the weights themselves, towards the likeliest wrong class; 4 classes."""
    model, x, y = mine((1, 5, 5), classes=4)
    model.bias.data += 50 * torch.nn.functional.one_hot(y[0], 4)  # nobody of that class is ever fooled
    x, y = x[y == y[0]], y[y == y[0]]
    attack = JSMA(L0(INF), steps=1, classes=1)
    spy = Spy(model)
    attempt = attack.run(spy, x, y)
    assert torch.isinf(attempt.distance).all()
    last = spy.seen.points
    for i in range(len(x)):
        t = int(model(x).detach()[i].scatter(0, y[i], -math.inf).argmax())
        a = model.weight[t].detach()
        b = model.weight.sum(0).detach() - a
        free = x[i].flatten() < 1
        _, pair = greedy(a, -b, free)
        assert pair is not None
        expected = x[i].flatten().clone()
        expected[list(pair)] = 1
        assert torch.equal(last[i].flatten(), expected)


class Seen:
    """Not a tensor: a guard that restores what a model keeps leaves this alone."""

    points = torch.empty(0)


class Spy(torch.nn.Module):
    scope = "none"

    def __init__(self, model):
        super().__init__()
        self.model, self.seen = model, Seen()

    def forward(self, x):
        self.seen.points = x.detach().clone()
        return self.model(x)


@pytest.mark.parametrize("theta", [1.0, -1.0])
def test_the_exact_minimum_of_two_classes_is_found_two_values_at_a_time(theta):
    """From images at the far bound every gain is |w|, so the two best values are the most salient pair: the minimum,
    rounded up to the even, or one more where a sole value is left."""
    model = two_class()
    x = torch.full((2, 1, 8, 8), 0.0 if theta > 0 else 1.0)
    margin = float(model.margin(x).detach()[0])
    for bias in (-2.1, -5.3, 1.7, 4.9, 9.2):
        model.bias.data.fill_(bias - margin)
        y = (model.margin(x) > 0).long()
        w = model.weight.detach() * (1 - 2 * float(y[0])) * theta
        gain = w.clamp_min(0).sort(descending=True).values.cumsum(0)
        least = int((gain < abs(bias)).sum()) + 1
        attempt = JSMA(L0(INF), steps=32, theta=theta).run(model, x, y)
        assert attempt.distance.tolist() == [least + least % 2] * 2
        assert bool((model(attempt.inputs).argmax(1) != y).all())


def test_nothing_depends_on_the_batch():
    model, x, y = mine()
    attack = JSMA(L0(INF), steps=10)
    whole, part = attack.run(model, x, y), attack.run(model, x[[7, 2]], y[[7, 2]])
    assert torch.equal(part.inputs, whole.inputs[[7, 2]])
    assert torch.equal(part.forwards, whole.forwards[[7, 2]])
    assert len({float(d) for d in whole.distance}) > 2
    assert pickle.loads(pickle.dumps(attack)) == attack


def test_targets_are_reached_and_more_classes_never_need_more_values():
    model, x, y = mine(count=16)
    targets = (y + 1) % 3
    attempt = JSMA(L0(INF), steps=32).run(model, x, y, targets=targets)
    found = attempt.distance.isfinite()
    assert int(found.sum()) >= 12
    assert torch.equal(model(attempt.inputs).argmax(1)[found], targets[found])
    one, two = (JSMA(L0(INF), steps=32, classes=k).run(model, x, y) for k in (1, 2))
    assert bool((two.distance <= one.distance).all())
    assert bool((two.distance < one.distance).any())
    assert bool((two.distance <= attempt.distance).all())


def test_saturated_values_are_left_alone_and_smaller_steps_add_up():
    model, x, y = mine()
    for theta, bound in ((1.0, 1.0), (-1.0, 0.0)):
        z = JSMA(L0(INF), steps=8, theta=theta)(model, x, y)
        changed = z != x
        assert bool((z[changed] == bound).all())
    small = JSMA(L0(INF), steps=60, theta=0.25).run(model, x, y)
    change = small.inputs - x
    assert float(change.min()) >= 0
    assert float(small.inputs.max()) <= 1
    assert bool(((change > 0.26).flatten(1).any(1)).any())
    full = torch.ones_like(x)
    attempt = JSMA(L0(INF)).run(model, full, model(full).argmax(1))
    assert torch.isinf(attempt.distance).all()
    assert torch.equal(attempt.inputs, full)


def test_pixels_move_with_all_their_channels():
    model, x, y = mine((3, 6, 6))
    attempt = JSMA(L0(INF, "pixel"), steps=10).run(model, x, y)
    found = attempt.distance.isfinite()
    assert bool(found.any())
    changed = ((attempt.inputs != x) & (x < 1)).any(1, keepdim=True)
    assert torch.equal(torch.where(changed, 1.0, x), attempt.inputs)
    assert torch.equal(changed.flatten(1).sum(1)[found].float(), attempt.distance[found])


def test_budgets_wrong_images_and_starts():
    model, x, y = mine()
    free = JSMA(L0(INF), steps=10).run(model, x, y)
    inside = (torch.arange(12) % 2 == 0) & free.distance.isfinite()
    budgets = torch.where(inside, free.distance, 1.0)
    attempt = JSMA(L0(4), steps=10).run(model, x, y, budgets=budgets)
    assert torch.equal(attempt.distance, free.distance)
    assert torch.equal(attempt.inputs[inside], free.inputs[inside])
    assert torch.equal(attempt.inputs[~inside], x[~inside])
    attempt = JSMA(L0(INF), steps=10).run(model, x, 2 - y)
    assert attempt.distance[y != 1].tolist() == [0] * int((y != 1).sum())
    again = JSMA(L0(INF), steps=1).run(model, x, y, start=free.inputs)
    assert bool((again.distance <= free.distance).all())


def test_costs_and_trace():
    model, x, y = mine()
    counted, attack = Counted(model), JSMA(L0(INF), steps=6)
    attempt = attack.run(counted, x, y)
    assert counted.tally.images == int(attempt.forwards.sum()) + PROBE
    assert int(attempt.forwards.max()) <= attack.cost()[0]
    assert int(attempt.backwards.max()) <= attack.cost()[1]
    lines = attempt.trace.distance.nan_to_num(-1)
    assert int(lines.max()) <= 12
    assert bool((lines[1][lines[1] >= 0] == 2).all())
    first = attempt.distance == 2
    assert bool(first.any())
    assert int(attempt.forwards[first].max()) < int(attempt.forwards.max())


@pytest.mark.parametrize("scope", ["example", "call"])
def test_finds_on_a_random_model_win_votes(scope):
    """A draw of the gradient and a fresh vote stop an example: at P(correct) = 0.75 with probability 0.25 * 0.014 per
    step. Of 12 finds at most one may be right more often than that."""
    quiet = two_class()
    model = NoisyLinear(quiet.weight, 0.3, sigma=1.0, scope=scope).eval()
    x = images(12)
    y = (model.accuracy_at(x, torch.ones(12, dtype=torch.long)) > 0.5).long()
    attempt = JSMA(L0(INF), steps=20, votes=20, gradient=Backprop(1)).run(model, x, y)
    found = attempt.distance.isfinite()
    assert int(found.sum()) >= 10
    assert int((model.accuracy_at(attempt.inputs, y)[found] > 0.75).sum()) <= 1


def test_a_flat_model_gives_up_at_once():
    model = Linear(torch.zeros(2, 16), torch.tensor([1.0, -2.0])).eval()
    x = images(3, (1, 4, 4))
    attempt = JSMA(L0(INF)).run(model, x, torch.zeros(3, dtype=torch.long))
    assert torch.isinf(attempt.distance).all()
    assert int(attempt.backwards.max()) == 2


@pytest.mark.parametrize(
    "bad",
    [{"steps": 0}, {"classes": 0}, {"votes": 0}, {"theta": 0}, {"theta": 1.5}, {"theta": True}, {"threat": L2(1)}],
    ids=str,
)
def test_bad_options_are_named(bad):
    with pytest.raises(BudgetError):
        JSMA(**({"threat": L0(3)} | bad))
