"""Sigma-zero against the exact l0 minimum of linear models, known answers and its own promises."""

import math
import pickle

import pytest
import torch

from counting import PROBE, Counted, images, linear
from stochade.attacks import L0, L2, Backprop, Linf
from stochade.attacks.sigma_zero import SigmaZero, _count_slope
from stochade.errors import BudgetError
from stochade.models.known_answer import KnownAnswer, Linear, NoisyLinear

INF = float("inf")


def mine(shape=(1, 8, 8), count=12, classes=3, seed=0):
    model, x = linear(shape, classes), images(count, shape, seed)
    return model, x, model(x).argmax(1)


def exact(model, x, y, targets=None):
    """[N] fewest values that make a linear model err: the largest gains first, towards every wrong class. Targeted
    with two classes only, where one hyperplane decides."""
    z, flat, best = model(x).double(), x.flatten(1).double(), torch.full((len(x),), math.inf)
    for j in range(len(model.weight)):
        d = (model.weight[j] - model.weight[y]).double()
        gain = torch.where(d > 0, d * (1 - flat), -d * flat).sort(1, descending=True).values.cumsum(1)
        gap = z.gather(1, y[:, None]) - z[:, j : j + 1]
        needed = (gain < gap).sum(1) + 1.0
        needed[(needed > flat.shape[1]) | (y == j)] = math.inf
        best = torch.minimum(best, needed)
    return best.detach()


def test_nearly_the_exact_minimum_of_linear_models_is_found_and_never_less():
    model, x, y = mine(count=32)
    best = exact(model, x, y)
    attempt = SigmaZero(L0(INF), steps=200).run(model, x, y)
    assert bool((attempt.distance >= best).all())
    assert float((attempt.distance == best).double().mean()) >= 0.9
    assert float(attempt.distance.max() - best.max()) <= 1
    assert bool((model(attempt.inputs).argmax(1) != y).all())
    torch.testing.assert_close(attempt.distance, L0(INF).distance(attempt.inputs, x))
    assert float(attempt.inputs.min()) >= 0
    assert float(attempt.inputs.max()) <= 1


def test_the_slope_is_the_derivative_of_the_smooth_count():
    x = (0.3 * torch.randn(3, 2, 4, 4, dtype=torch.float64)).requires_grad_()
    for threat, size in [(L0(3), x.square().flatten(1)), (L0(3, "pixel"), x.square().sum(1).flatten(1))]:
        (truth,) = torch.autograd.grad((size / (size + 0.02)).mean(1).sum(), x)
        torch.testing.assert_close(_count_slope(threat, x.detach(), 0.02), truth)


def test_nothing_depends_on_the_batch():
    model, x, y = mine()
    attack = SigmaZero(L0(INF), steps=40)
    whole, part = attack.run(model, x, y), attack.run(model, x[[7, 2]], y[[7, 2]])
    torch.testing.assert_close(part.inputs, whole.inputs[[7, 2]])
    assert torch.equal(part.distance, whole.distance[[7, 2]])
    assert torch.equal(part.forwards, whole.forwards[[7, 2]])
    assert pickle.loads(pickle.dumps(attack)) == attack


def test_targets_are_reached():
    model, x, y = mine(count=16)
    targets = (y + 1) % 3
    attempt = SigmaZero(L0(INF), steps=80).run(model, x, y, targets=targets)
    found = attempt.distance.isfinite()
    assert bool(found.all())
    assert torch.equal(model(attempt.inputs).argmax(1), targets)
    assert bool((attempt.distance >= exact(model, x, y)).all())


def test_pixels_count_once():
    """All channels of a pixel are free once one is changed: the exact minimum sums their gains."""
    model, x, y = mine((3, 6, 6), classes=2, count=16)
    d = (model.weight[1] - model.weight[0]) * (1 - 2 * y[:, None])
    flat = x.flatten(1)
    gain = (
        torch.where(d > 0, d * (1 - flat), -d * flat).view(16, 3, 36).sum(1).sort(1, descending=True).values.cumsum(1)
    )
    z = model(x)
    best = (gain < (z[:, 0] - z[:, 1]).abs()[:, None]).sum(1) + 1.0
    attempt = SigmaZero(L0(INF, "pixel"), steps=150).run(model, x, y)
    assert bool((attempt.distance >= best).all())
    assert float((attempt.distance - best).mean()) <= 0.35
    values = SigmaZero(L0(INF), steps=150).run(model, x, y)
    assert float(values.distance.mean()) > float(attempt.distance.mean())


def test_budgets_decide_what_is_handed_back():
    model, x, y = mine()
    free = SigmaZero(L0(INF), steps=60).run(model, x, y)
    budgets = torch.where(torch.arange(12) % 2 == 0, free.distance, free.distance - 1)
    attempt = SigmaZero(L0(4), steps=60).run(model, x, y, budgets=budgets)
    assert torch.equal(attempt.distance, free.distance)
    inside = torch.arange(12) % 2 == 0
    assert torch.equal(attempt.inputs[inside], free.inputs[inside])
    assert torch.equal(attempt.inputs[~inside], x[~inside])


def test_the_descent_begins_again_from_the_smallest_find():
    """30 steps, of which the last ten begin where fewest values had changed among the adversarial points before."""
    model, x, y = mine(count=1)
    seen = []

    def watch(module, given, out):
        if given[0].requires_grad:
            seen.append((given[0].detach().clone(), int(out.argmax(1))))

    model.register_forward_hook(watch)
    SigmaZero(L0(INF), steps=30)(model, x, y)
    finds = [z for z, predicted in seen[:20] if predicted != int(y)]
    assert len(seen) >= 30
    assert finds
    assert torch.equal(seen[20][0], min(finds, key=lambda z: int((z != x).sum())))
    assert not torch.equal(seen[19][0], seen[20][0])


def test_wrong_hopeless_and_saturated_images():
    weight = torch.tensor([[-1.0] * 16, [1.0] * 16])
    model = Linear(weight, torch.tensor([0.0, -9.0])).eval()  # class 1 from a sum of 4.5 on
    x = torch.stack([torch.zeros(1, 4, 4), torch.ones(1, 4, 4), torch.ones(1, 4, 4)])
    y = torch.tensor([0, 1, 0])
    attempt = SigmaZero(L0(INF), steps=150).run(model, x, y)
    assert attempt.distance.tolist() == [5, 12, 0]
    never = Linear(weight, torch.tensor([100.0, 0.0])).eval()
    attempt = SigmaZero(L0(INF), steps=20).run(never, x[:1], y[:1])
    assert torch.isinf(attempt.distance).all()
    assert torch.equal(attempt.inputs, x[:1])


def test_a_warm_start_is_never_made_worse():
    model, x, y = mine()
    good = SigmaZero(L0(INF), steps=100).run(model, x, y)
    again = SigmaZero(L0(INF), steps=1).run(model, x, y, start=good.inputs)
    assert torch.equal(again.distance, good.distance)
    cold = SigmaZero(L0(INF), steps=1).run(model, x, y)
    assert torch.isinf(cold.distance).all()


def test_costs_are_kept_and_whoever_changes_one_value_leaves():
    model, x, y = mine()
    counted = Counted(model)
    attack = SigmaZero(L0(INF), steps=50)
    attempt = attack.run(counted, x, y)
    assert counted.tally.images == int(attempt.forwards.sum()) + PROBE
    assert int(attempt.forwards.max()) <= attack.cost()[0]
    assert int(attempt.backwards.max()) <= attack.cost()[1]
    assert len(attempt.trace.distance) == 50
    one = attempt.distance == 1
    assert bool(one.any())
    assert bool((~one).any())
    assert bool((attempt.backwards[one] < 50).all())
    assert bool((attempt.backwards[~one] == 51).all())
    assert torch.isnan(attempt.trace.distance[-1][one]).all()


@pytest.mark.parametrize("scope", ["example", "call"])
def test_finds_on_a_random_model_win_votes(scope):
    """Noise of the margin as large as the margin itself; P(correct) <= 1/2 exactly where the mean margin is lost. A
    find with P(correct) = 0.7 wins its last vote of 40 with probability 0.005; fewer than 3 of 24 may be so."""
    g = torch.Generator().manual_seed(1)
    model = NoisyLinear(torch.randn(64, generator=g), 0.3, sigma=1.0, scope=scope).eval()
    x = images(24)
    y = (model.accuracy_at(x, torch.ones(24, dtype=torch.long)) > 0.5).long()
    attempt = SigmaZero(L0(INF), steps=60, votes=40, gradient=Backprop(4)).run(model, x, y)
    right = model.accuracy_at(attempt.inputs, y)
    found = attempt.distance.isfinite()
    assert int(found.sum()) >= 22
    assert int((right[found] > 0.7).sum()) < 3
    quiet = Linear(torch.stack([-model.weight / 2, model.weight / 2]), torch.tensor([-0.15, 0.15]))
    best = exact(quiet, x, y)
    assert float((attempt.distance - best)[found].mean()) <= 1.5


def test_a_generator_of_its_own_is_noticed():
    class Own(KnownAnswer):
        scope = "unknown"

        def __init__(self, weight):
            super().__init__(weight, 0.3)
            self.calls = 0

        def margin(self, images):
            self.calls += 1
            noise = torch.randn(len(images), generator=torch.Generator().manual_seed(self.calls))
            return super().margin(images) + noise

    model = Own(torch.randn(64, generator=torch.Generator().manual_seed(1)))
    x = images(8)
    y = (x.flatten(1) @ model.weight + 0.3 > 0).long()
    attempt = SigmaZero(L0(INF), steps=40, votes=20).run(model, x, y)
    assert int(attempt.forwards.max()) > 40 + 20  # it votes


@pytest.mark.parametrize(
    "bad",
    [
        {"steps": 0}, {"votes": 0}, {"rate": 0}, {"rate": INF}, {"rate": "1"}, {"sigma": 0.0}, {"tau": 1.5},
        {"tau": -0.1}, {"tau": math.nan}, {"adapt": -1}, {"threat": L2(1)}, {"threat": Linf(1)},
    ],
    ids=str,
)  # fmt: skip
def test_bad_options_are_named(bad):
    with pytest.raises(BudgetError):
        SigmaZero(**({"threat": L0(3)} | bad))
