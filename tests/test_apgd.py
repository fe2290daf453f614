"""Auto-PGD against closed forms of linear models, and against the papers' schedules written out again in NumPy."""

import pickle

import numpy as np
import pytest
import torch
from torch import nn

import oracles
from counting import Counted, images, linear
from stochade.attacks import L0, L1, L2, Backprop, Linf, apgd, cross_entropy, dlr, margin, tiles
from stochade.attacks.apgd import APGD, APGDTargeted
from stochade.attacks.ascent import checkpoints
from stochade.errors import BudgetError
from stochade.models.known_answer import KNOWN, CoinFlip, KnownAnswer

THREATS = [Linf(0.15), Linf(0.0), Linf(float("inf")), L2(0.4), L2(1.5), L2(float("inf")), L1(0.8), L1(3.0)]


def binary(pixels=9):
    w = torch.randn(pixels, generator=torch.Generator().manual_seed(1))
    return KnownAnswer(w, -0.5 * float(w.sum()))


def balanced(count=24, classes=4, dtype=torch.float32):
    """A linear model that tells its classes apart about the grey image, images, and its own predictions."""
    model = linear((1, 3, 3), classes).to(dtype)
    with torch.no_grad():
        model.bias.copy_(-model.weight.sum(1) / 2)
    x = images(count, (1, 3, 3)).to(dtype)
    return model, x, model(x).argmax(1)


def labelled(count=8, seed=0):
    x = images(count, (1, 3, 3), seed)
    return x, torch.arange(count) % 2


def small(dtype=torch.float64):
    """A deterministic network whose gradient changes sign from place to place."""
    with torch.random.fork_rng():
        torch.manual_seed(4)
        net = nn.Sequential(nn.Flatten(), nn.Linear(9, 12), nn.Tanh(), nn.Linear(12, 4)).to(dtype).eval()
    with torch.no_grad():
        net[1].weight.mul_(4)
    net.scope = "none"
    return net


@pytest.mark.parametrize("threat", THREATS, ids=str)
@pytest.mark.parametrize("given", [False, True])
def test_linear_models_are_taken_to_their_worst_case(threat, given):
    model, (x, y) = binary(), labelled()
    start = threat.project(images(8, (1, 3, 3), 5), x) if given else None
    attempt = APGD(threat, steps=30, objective=margin, drop_fooled=False).run(model, x, y, start=start)
    w, signs = model.weight.detach().double(), 2 * y.double() - 1
    lost = (signs * ((x - attempt.inputs).flatten(1).double() @ w)).numpy()
    for i in range(len(x)):
        most = oracles.worst_gain(-float(signs[i]) * w.numpy(), x[i].flatten().numpy(), threat.name, threat.eps)
        assert lost[i] == pytest.approx(most, rel=1e-4, abs=1e-5)
    assert bool((threat.distance(attempt.inputs, x) <= threat.eps * (1 + 1e-5)).all())
    torch.testing.assert_close(attempt.distance, threat.distance(attempt.inputs, x))


@pytest.mark.parametrize("threat", [Linf(0.1), L2(0.3), L1(0.6)], ids=str)
@pytest.mark.parametrize("objective", [cross_entropy, dlr, margin])
def test_every_example_that_can_be_fooled_is_fooled(threat, objective):
    case = KNOWN["linear"]()
    truth = case.model.truth(case.images, case.labels, threat)
    z = APGD(threat, steps=40, objective=objective)(case.model, case.images, case.labels)
    assert torch.equal(case.model.accuracy_at(z, case.labels), truth)
    assert 0.05 < float(truth.mean()) < 0.95


def test_checkpoints_are_those_of_the_paper():
    """Croce and Hein 2020, section 3.1, for 100 and 1000 steps by hand."""
    assert sorted(checkpoints(100)) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert sorted(checkpoints(1000))[:4] == [220, 410, 570, 700]
    assert max(checkpoints(7)) <= 7


def reference(model, x, y, x0, threat, steps, rho=0.75):
    """Algorithm 1 of Croce and Hein 2020 for one example, written out: NumPy, and torch for the derivative alone."""

    def look(point):
        leaf = torch.tensor(point).view(1, 1, 3, 3).requires_grad_()
        value = margin(model(leaf), y)
        (gradient,) = torch.autograd.grad(value.sum(), leaf)
        return float(value.detach()), gradient.flatten().numpy()

    def project(point):
        return oracles.nearest(point, x0, threat.name, threat.eps)

    def along(point, size, gradient):
        way = np.sign(gradient) if threat.name == "linf" else gradient / np.linalg.norm(gradient)
        return project(point + size * way)

    marks = [0]
    p, q = 0.0, 0.22
    while q <= 1 + 1e-9:
        marks.append(int(np.ceil(q * steps - 1e-9)))
        p, q = q, q + max(q - p - 0.03, 0.06)
    size, value, gradient = 2 * threat.eps, *look(x)
    values, before, best = [value], x, (value, x, gradient)
    mark_value, halved, rises, mark = value, False, 0, 0
    for k in range(steps):
        z = along(x, size, gradient)
        new = z if k == 0 else project(x + 0.75 * (z - x) + 0.25 * (x - before))
        before, x = x, new
        fresh, gradient = look(x)
        rises += fresh > value
        value = fresh
        values.append(value)
        if value > best[0]:
            best = (value, x, gradient)
        if k + 1 in marks and k + 1 < steps:
            poor = rises < rho * (k + 1 - mark)
            stuck = not halved and best[0] <= mark_value
            halved = poor or stuck
            if halved:
                size /= 2
                value, x, gradient = best
            mark, mark_value, rises = k + 1, best[0], 0
    return values, best


@pytest.mark.parametrize("threat", [Linf(0.2), L2(0.5)], ids=str)
def test_steps_follow_the_published_schedule(threat):
    model, x0 = small(), images(5, (1, 3, 3)).double()
    y = model(x0).argmax(1)
    start = threat.project(images(5, (1, 3, 3), 7).double(), x0)
    attack = APGD(threat, steps=40, objective=margin, drop_fooled=False)
    attempt = attack.run(model, x0, y, start=start)
    for i in range(5):
        given = start[i].flatten().numpy(), y[i : i + 1], x0[i].flatten().numpy()
        values, best = reference(model, *given, threat, 40)
        np.testing.assert_allclose(attempt.trace.value[:, i].numpy(), values[:-1], atol=1e-6)
        assert float(attempt.value[i]) == pytest.approx(best[0], abs=1e-6)
        np.testing.assert_allclose(attempt.inputs[i].flatten().numpy(), best[1], atol=1e-6)


def test_the_schedule_is_seen_to_halve():
    """The comparison above would not notice a schedule that nothing triggers: here steps shrink and runs go back."""
    model, x0 = small(), images(5, (1, 3, 3)).double()
    y = model(x0).argmax(1)
    held = APGD(Linf(0.2), steps=40, objective=margin, drop_fooled=False, rho=0.0).run(model, x0, y)
    free = APGD(Linf(0.2), steps=40, objective=margin, drop_fooled=False).run(model, x0, y)
    assert not torch.allclose(held.trace.value, free.trace.value)


def test_wide_budgets_end_inside_the_threat():
    model, (x, y) = binary(), labelled(20)
    for threat in (L1(0.6), L2(0.3), Linf(0.4)):
        attempt = APGD(threat, steps=10, wide=True).run(model, x, y)
        assert bool((threat.distance(attempt.inputs, x) <= threat.eps * (1 + 1e-5)).all())
        assert int(attempt.backwards.max()) <= 10
        assert int(attempt.backwards.min()) >= 7  # 3 and 3 at wider budgets, where nobody may leave


@pytest.mark.parametrize("threat", [Linf(0.1), L2(0.3), L1(0.6)], ids=str)
@pytest.mark.parametrize("make", [APGD, APGDTargeted])
def test_results_follow_identity_and_seed_and_not_the_batch(make, threat):
    model, x, y = balanced(dtype=torch.float64)
    attack = make(threat, steps=12, restarts=2)
    attempt = attack.run(model, x, y, seed=1)
    part = attack.run(model, x[[7, 2, 9]], y[[7, 2, 9]], seed=1)
    torch.testing.assert_close(part.inputs, attempt.inputs[[7, 2, 9]], atol=1e-6, rtol=0)
    assert torch.equal(attack(model, x, y, seed=1), attempt.inputs)
    assert not torch.equal(attack(model, x, y, seed=2), attempt.inputs)
    assert pickle.loads(pickle.dumps(attack)) == attack


@pytest.mark.parametrize("make", [APGD, APGDTargeted])
def test_fooled_examples_leave_and_passes_are_those_of_the_model(make):
    base, x, y = balanced(30)
    model = Counted(base)
    attack = make(Linf(0.05), steps=15)
    attempt = attack.run(model, x, y)
    fooled = base(attempt.inputs).argmax(1) != y
    assert 3 < int(fooled.sum()) < 27
    assert bool((attempt.forwards[fooled] <= attempt.forwards[~fooled].min()).all())
    assert int(attempt.forwards[fooled].min()) < int(attempt.forwards[~fooled].min())
    assert model.tally.images == int(attempt.forwards.sum()) + 2  # and the probe
    assert int(attempt.forwards.max()) <= attack.cost()[0]
    assert int(attempt.backwards.max()) <= attack.cost()[1]


def test_several_classes_at_once_have_the_outcome_of_one_after_the_other(monkeypatch):
    model, x, y = balanced(20, 6, torch.float64)
    attempts = []
    for at_once in (1, 60, 1000):
        monkeypatch.setattr(tiles, "AT_ONCE", at_once)
        attempts.append(APGDTargeted(Linf(0.04), steps=8, restarts=2).run(model, x, y))
    for other in attempts[1:]:
        torch.testing.assert_close(other.inputs, attempts[0].inputs, atol=1e-6, rtol=0)
        torch.testing.assert_close(other.value, attempts[0].value)
    assert int(attempts[2].forwards.sum()) >= int(attempts[0].forwards.sum())
    assert bool((attempts[0].trace.passes.max(0).values <= attempts[0].forwards + attempts[0].backwards).all())


def test_classes_in_turn_reach_what_the_likeliest_one_does_not():
    """Four classes, of which the second likeliest has no reach: its weights are those of the true class, an offset
    apart."""
    weight = torch.tensor([[1.0, 1.0], [1.0, 1.0], [-1.0, 1.0], [1.0, 1.0]])
    model = linear((1, 1, 2), 4)
    with torch.no_grad():
        model.weight.copy_(weight)
        model.bias.copy_(torch.tensor([0.0, -0.1, 0.5, -5.0]))
    x, y = torch.full((3, 1, 1, 2), 0.5), torch.zeros(3, dtype=torch.long)
    truth = model.truth(x, y, Linf(0.45))
    assert not truth.any()
    one = APGDTargeted(Linf(0.45), steps=10, targets=1)
    assert bool((model(one(model, x, y)).argmax(1) == 0).all())
    assert bool((model(APGDTargeted(Linf(0.45), steps=10, targets=2)(model, x, y)).argmax(1) == 2).all())


@pytest.mark.parametrize("make", [APGD, APGDTargeted])
def test_targets_of_the_caller_are_what_is_reached(make):
    model, x, y = balanced(20)
    targets = (y + 2) % 4
    z = make(Linf(0.9), steps=30)(model, x, y, targets=targets)
    assert float((model(z).argmax(1) == targets).float().mean()) > 0.9


@pytest.mark.parametrize("threat", [Linf(0.3), L2(1.0), L1(2.0)], ids=str)
def test_budgets_per_example(threat):
    model, (x, y) = binary(), labelled()
    budgets = torch.linspace(0, threat.eps, 8)
    attempt = APGD(threat, steps=30, objective=margin, drop_fooled=False).run(model, x, y, budgets=budgets)
    alone = [
        APGD(type(threat)(float(b)), steps=30, objective=margin, drop_fooled=False)(model, x[i : i + 1], y[i : i + 1])
        for i, b in enumerate(budgets)
    ]
    assert bool((threat.distance(attempt.inputs, x) <= budgets * (1 + 1e-5) + 1e-7).all())
    torch.testing.assert_close(margin(model(attempt.inputs), y), margin(model(torch.cat(alone)), y))


@pytest.mark.parametrize("wide", [False, True])
def test_l1_begins_with_few_values_changed(wide):
    """Normal noise projected on l1 8 leaves the largest of 784 values, a tenth at most (three times the budget: less
    than half); a uniform point of the ball would change them all."""
    model, seen = linear((1, 28, 28), 3), []
    model.register_forward_hook(lambda module, given, out: seen.append(given[0].detach().clone()))
    x, size = 0.4 + 0.2 * images(4, (1, 28, 28)), 24.0 if wide else 8.0
    APGD(L1(8.0), steps=10, wide=wide, drop_fooled=False)(model, x, torch.zeros(4, dtype=torch.long))
    start = next(z for z in seen if len(z) == 4 and not torch.equal(z, x))
    torch.testing.assert_close(L1(size).distance(start, x), torch.full((4,), size), rtol=1e-5, atol=0)
    changed = start != x
    assert int(changed.flatten(1).sum(1).max()) <= (392 if wide else 78)
    assert not torch.equal(changed[0], changed[1])


def test_a_start_that_fools_ends_the_search():
    model, (x, y) = binary(), labelled()
    y = model(x).argmax(1)
    worst = APGD(Linf(0.4), objective=margin, drop_fooled=False)(model, x, y)
    fools = model(worst).argmax(1) != y
    attempt = APGD(Linf(0.4)).run(model, x, y, start=worst)
    assert bool(fools.any())
    assert bool((attempt.forwards[fools] == 1).all())
    assert torch.equal(attempt.inputs[fools], worst[fools])


def test_restarts_stop_where_the_example_is_fooled_and_keep_the_best_elsewhere():
    model, x0 = small(torch.float32), images(20, (1, 3, 3))
    y = model(x0).argmax(1)
    one, three = (APGD(Linf(0.05), steps=6, objective=margin, restarts=r).run(model, x0, y) for r in (1, 3))
    assert bool((three.value >= one.value - 1e-6).all())
    left = margin(model(three.inputs), y) < 0
    assert bool((three.backwards[left] == 18).all())


def test_a_coin_flip_gains_nothing_and_loses_nobody():
    """P(correct) is 0.9 whatever the input. Nobody may leave: a false alarm of the sequential test has level 0.05 for
    P(correct) = 0.05, and at 0.9 three misses in a row have a chance of 1e-3, of 14 needed at least."""
    case = KNOWN["coin-flip"]()
    for attack in (
        APGD(case.threat, steps=10, gradient=Backprop(4)),
        APGDTargeted(case.threat, steps=10, gradient=Backprop(4)),
    ):
        attempt = attack.run(case.model, case.images, case.labels)
        assert torch.equal(case.model.accuracy_at(attempt.inputs, case.labels), case.truth())
        assert bool((attempt.backwards == attempt.backwards[0]).all())


@pytest.mark.parametrize("name", ["noisy-linear", "noisy-linear-per-call", "dropout-linear", "bernoulli-linear"])
@pytest.mark.parametrize("objective", [cross_entropy, dlr])
def test_random_models_are_taken_to_their_truth(name, objective):
    """P(correct) at the inputs, exact; the mean over 60 examples is within 0.03 of the strongest attack's."""
    case = KNOWN[name]()
    attempt = APGD(case.threat, steps=30, objective=objective, gradient=Backprop(20)).run(
        case.model, case.images, case.labels
    )
    found = float(case.model.accuracy_at(attempt.inputs, case.labels).mean())
    assert float(case.truth().mean()) - 1e-6 <= found <= float(case.truth().mean()) + 0.03


class Loud(nn.Module):
    """Logits of noise alone, standard deviation 1 in their difference."""

    scope = "example"

    def forward(self, x):
        noise = torch.randn(len(x), device=x.device) + 0 * x.flatten(1).sum(1)
        return torch.stack([noise, torch.zeros_like(noise)], 1)


def test_the_value_is_that_of_fresh_draws_and_not_of_the_luckiest():
    """40 single draws of deviation 1 have a largest value of 2.2 on average. The value handed back is the larger of
    two means over ten draws, 0.18 on average; over 200 examples its mean is known to 0.02: both limits are five of
    these away."""
    x, y = images(200, (1, 3, 3)), torch.zeros(200, dtype=torch.long)
    attempt = APGD(Linf(0.1), steps=40, objective=margin, drop_fooled=False).run(Loud(), x, y)
    assert float(attempt.trace.value.max(0).values.mean()) > 1.8
    assert 0.08 < float(attempt.value.mean()) < 0.28


def test_fooled_beyond_doubt_leaves_a_random_model():
    case = KNOWN["linear"]()
    attempt = APGD(Linf(0.3), steps=60).run(CoinFlip(case.model, 0.02), case.images, case.labels)
    fooled = case.model.accuracy_at(attempt.inputs, case.labels) == 0
    assert int(attempt.backwards[fooled].min()) < 60
    assert bool((attempt.backwards[~fooled] == 60).all())


@pytest.mark.parametrize(
    "options",
    [{"steps": 0}, {"steps": 2.0}, {"restarts": 0}, {"rho": 1.5}, {"rho": float("nan")}, {"rho": True},
     {"objective": None}, {"gradient": 3}, {"threat": L0(3)}, {"threat": 0.3}],
)  # fmt: skip
def test_bad_options_are_refused(options):
    with pytest.raises(BudgetError):
        APGD(**{"threat": Linf(0.1)} | options)


@pytest.mark.parametrize("targets", [0, -1, 1.5, True])
def test_a_number_of_classes_that_makes_no_sense_is_refused(targets):
    with pytest.raises(BudgetError):
        APGDTargeted(Linf(0.1), targets=targets)


def test_two_classes_have_one_target():
    case = KNOWN["linear"]()
    attempt = APGDTargeted(Linf(0.1), steps=20).run(case.model, case.images, case.labels)
    assert torch.equal(case.model.accuracy_at(attempt.inputs, case.labels), case.truth())
    assert int(attempt.backwards.max()) == 20
    assert apgd.likely(torch.randn(3, 5), torch.zeros(3, dtype=torch.long), None, 9).shape == (3, 4)
