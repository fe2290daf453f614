"""Budgets per example, warm starts, traces and counts: what every attack gets from the common ground."""

import pytest
import torch
from torch import nn

from stochade import PGD, Linf, evaluate
from stochade.attacks import FGSM, L0, L1, L2, WHOLE, Backprop, Descent, RandomSearch, margin
from stochade.attacks.base import Task
from stochade.attacks.ledger import LINES, Ledger
from stochade.errors import BudgetError, ImagesError
from stochade.models.known_answer import KNOWN
from stochade.randomness import Stream

THREATS = {"linf": Linf(0.2), "l2": L2(0.8), "l1": L1(2.0), "l0": L0(4)}


def problem(n=12, seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.rand(n, 1, 4, 4, generator=g)
    x.view(-1)[::5] = 0.0
    return x, torch.randn(n, 1, 4, 4, generator=g), torch.randint(0, 2, (n,), generator=g)


def budgets_for(threat, n):
    if threat.name == "l0":
        return torch.arange(n) % 6
    return torch.linspace(0, 1.5, n) * threat.eps


@pytest.mark.parametrize("name", THREATS)
def test_every_row_has_its_own_ball(name):
    """A threat with a budget for each row does to row i what a threat of that budget does to it alone."""
    threat = THREATS[name]
    x0, g, _ = problem()
    each = budgets_for(threat, len(x0))
    many = threat.for_each(each.to(x0.dtype))
    stream = Stream(3, torch.arange(len(x0)))
    far = x0 + g
    got = {
        "whole": many.move(g, x0),
        "step": many.move(g, many.project(far, x0), x0, many.scaled(threat.size / 4)),
        "project": many.project(far, x0),
        "start": many.start(x0, stream.fork("a")),
    }
    for i, eps in enumerate(each.tolist()):
        one = threat.resized(eps)
        row, single = slice(i, i + 1), Stream(3, torch.tensor([i]))
        step = threat.size / 4 * eps / float(each.max())
        alone = {
            "whole": one.move(g[row], x0[row]),
            "step": one.move(g[row], one.project(far[row], x0[row]), x0[row], step),
            "project": one.project(far[row], x0[row]),
            "start": one.start(x0[row], single.fork("a")),
        }
        for what, expected in alone.items():
            torch.testing.assert_close(got[what][row], expected, atol=2e-6, rtol=0, msg=f"{name} {what} {eps}")


@pytest.mark.parametrize("name", ["linf", "l2", "l1"])
def test_budgets_per_example_reach_each_closed_form(name):
    case = KNOWN["linear"](count=24)
    threat = {"linf": Linf(0.1), "l2": L2(0.3), "l1": L1(1.0)}[name]
    each = torch.linspace(0, 2 * threat.eps, len(case.images))
    attempt = PGD(threat, steps=40, objective=margin, drop_fooled=False).run(
        case.model, case.images, case.labels, budgets=each
    )
    assert bool((attempt.distance <= each * (1 + 1e-5) + 1e-6).all())
    fooled = case.model(attempt.inputs).argmax(1) != case.labels
    for i, eps in enumerate(each.tolist()):
        truth = case.model.truth(case.images[i : i + 1], case.labels[i : i + 1], threat.resized(eps))  # pyright: ignore
        assert bool(fooled[i]) == (float(truth) == 0), f"example {i} at {eps}"


def test_budgets_that_make_no_sense_are_refused():
    x, _, y = problem()
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    attack = PGD(Linf(0.1), steps=2)
    for bad in (torch.ones(3), torch.full((12,), -0.1), torch.full((12,), torch.nan), torch.full((12,), torch.inf)):
        with pytest.raises(BudgetError):
            attack(model, x, y, budgets=bad)
    with pytest.raises(BudgetError, match="whole"):
        PGD(L0(3), steps=2)(model, x, y, budgets=torch.full((12,), 1.5))


def test_a_warm_start_is_where_the_search_begins():
    case = KNOWN["linear"](count=20)
    x, y, threat = case.images, case.labels, Linf(0.1)
    worst = FGSM(threat)(case.model, x, y)
    attack = Descent(threat, steps=1, step_size=1e-9, objective=margin, drop_fooled=False)
    warm = attack(case.model, x, y, start=worst)
    torch.testing.assert_close(warm, worst, atol=1e-6, rtol=0)
    assert float((attack(case.model, x, y) - x).abs().max()) < 1e-6
    outside = attack(case.model, x, y, start=torch.ones_like(x))
    assert float(threat.distance(outside, x).max()) <= 0.1 + 1e-6
    with pytest.raises(ImagesError, match="start like the images"):
        attack(case.model, x, y, start=worst[:3])
    with pytest.raises(ImagesError, match="finite"):
        attack(case.model, x, y, start=worst * torch.nan)


def test_a_running_mean_of_gradients_averages_over_draws():
    """Whole-budget steps end in the corner of the last direction: of one draw, or of the mean of many."""

    class Noisy(nn.Module):
        scope = "example"

        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.tensor([0.3, -0.3, 0.3, -0.3]))

        def forward(self, x):
            w = self.w + 2 * torch.randn(len(x), 4)
            score = (x.flatten(1) * w).sum(1)
            return torch.stack([score, -score], 1)

    x, y = torch.full((40, 1, 2, 2), 0.5), torch.zeros(40, dtype=torch.long)
    agree = {}
    for average in (None, 0.99):
        attack = Descent(Linf(0.4), 300, WHOLE, objective=margin, average=average, drop_fooled=False, keep="last")
        # the direction of the last step, seen through a step of the whole budget from the same state
        moved = attack(Noisy(), x, y) - x
        agree[average] = float((moved.sign().flatten(1) == torch.tensor([-1.0, 1, -1, 1])).float().mean())
    assert agree[0.99] > agree[None] + 0.15  # 300 steps: the mean of draws has 17 times the signal of one
    for bad in (1.0, -0.1):
        with pytest.raises(BudgetError):
            Descent(Linf(0.1), average=bad)
    with pytest.raises(BudgetError, match="without momentum"):
        Descent(Linf(0.1), average=0.9, momentum=1.0)


def test_traces_hold_loss_distance_and_passes():
    case = KNOWN["linear"](count=20)
    attempt = PGD(Linf(0.1), steps=7, drop_fooled=False).run(case.model, case.images, case.labels)
    assert attempt.trace.value.shape == attempt.trace.distance.shape == attempt.trace.passes.shape == (7, 20)
    assert bool((attempt.trace.passes == 2 * torch.arange(1, 8)[:, None]).all())
    assert float(attempt.trace.distance.max()) <= 0.1 + 1e-6
    assert bool((attempt.trace.distance[-1] > 0).all())


def test_found_at_is_when_the_returned_inputs_were_found():
    case = KNOWN["linear"](count=60)
    attempt = PGD(Linf(0.1), steps=20).run(case.model, case.images, case.labels)
    fooled = case.model(attempt.inputs).argmax(1) != case.labels
    assert bool((attempt.found_at <= attempt.forwards + attempt.backwards).all())
    assert float(attempt.found_at[fooled].float().mean()) < float(attempt.found_at[~fooled].float().mean())
    records = evaluate(
        case.model, case.images, case.labels, {"a": RandomSearch(Linf(0.1), 5)}, show_progress=False, chunk=7
    )
    record = records.attacks["a"]
    assert record.trace_passes.shape == record.trace_distance.shape == record.trace.shape
    assert bool((record.found_at <= record.forwards).all())


def test_long_traces_are_thinned_evenly():
    x, _, y = problem(3)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    ledger = Ledger(Task(model, x, y, Linf(0.1), None, Stream(0, torch.arange(3))))
    for step in range(3 * LINES):
        ledger.note(ledger.open, torch.full((3,), float(step)))
    trace = ledger.trace()
    assert len(trace.value) == LINES
    assert trace.value[0, 0] == 0
    assert trace.value[-1, 0] == 3 * LINES - 1


def test_a_vote_decides_on_random_models():
    """P(correct) = 0.9 whatever the input: no vote of 25 draws calls it adversarial (chance 2e-7 each)."""
    case = KNOWN["coin-flip"](count=40)
    ids = torch.arange(40)
    ledger = Ledger(Task(case.model, case.images, case.labels, case.threat, None, Stream(0, ids)), draws=25)
    torch.manual_seed(0)
    assert not bool(ledger.judge(case.images, ledger.open).any())
    assert bool((ledger.forwards == 25).all())
    value, missed = ledger.look(case.images, ledger.open, margin)
    assert missed.shape == (25, 40)
    assert 0.05 < float(missed.float().mean()) < 0.15  # 1000 draws at 0.1: six standard deviations
    assert value.shape == (40,)


def test_passes_are_counted_exactly():
    class Counting(nn.Module):
        scope = "none"

        def __init__(self):
            super().__init__()
            self.linear, self.seen = nn.Linear(16, 2), 0

        def forward(self, x):
            Counting.images += len(x)
            return self.linear(x.flatten(1))

    x, _, _ = problem(10)
    model = Counting()
    y = model.linear(x.flatten(1)).argmax(1)
    Counting.images = 0
    attempt = PGD(Linf(0.3), steps=9, gradient=Backprop(2)).run(model, x, y)
    probes = 2
    assert Counting.images - probes == int(attempt.forwards.sum())
