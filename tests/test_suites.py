"""Suites: who runs on what, whose inputs come back, what is added up, and that luck breaks nobody."""

import pickle
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from counting import Counted, images, linear
from stochade.attacks import L0, L1, L2, PGD, Attack, Custom, Linf, Suite, UniformNoise, margin
from stochade.attacks.apgd import APGD, APGDTargeted
from stochade.attacks.base import Attempt, Task
from stochade.attacks.fab import FAB
from stochade.attacks.ledger import Ledger
from stochade.attacks.registry import parse_attack
from stochade.attacks.square import Square
from stochade.attacks.suites import fast, random, standard
from stochade.errors import BudgetError, ThreatError
from stochade.models.known_answer import KNOWN, CoinFlip

THREAT = Linf(0.06)


def problem(count=30, classes=4):
    model, x = linear((1, 3, 3), classes), images(count, (1, 3, 3))
    with torch.no_grad():
        model.bias.copy_(-model.weight.sum(1) / 2)
    return model, x, model(x).argmax(1)


@dataclass(frozen=True)
class Shifts(Attack):
    """Moves every pixel by `by`, at one forward; `seen` says how many examples it was given."""

    threat: Linf
    by: float
    seen: tuple = ()
    log = None

    def cost(self):
        return 1, 0

    def search(self, task: Task) -> Attempt:
        if self.log is not None:
            self.log.append(len(task.x))
        ledger = Ledger(task)
        x = (task.x + self.by).clamp(0, 1)
        value, _ = ledger.look(x, ledger.open, margin)
        ledger.note(ledger.open, value)
        ledger.replace(ledger.open, x, value)
        return ledger.attempt()


def logged(by: float) -> Shifts:
    attack = Shifts(THREAT, by)
    object.__setattr__(attack, "log", [])
    return attack


def test_members_run_on_what_is_open_and_the_winner_says_whose_inputs_come_back():
    model, x, y = problem()
    y[0] = (y[0] + 1) % 4  # wrong already
    up, down = logged(0.06), logged(-0.06)
    points = [x, (x + 0.06).clamp(0, 1), (x - 0.06).clamp(0, 1)]
    margins = torch.stack([margin(model(p), y) for p in points]).detach()
    attempt = Suite(THREAT, (up, down)).run(model, x, y)
    broken = margins > 0
    expected = torch.where(broken[0], 0, torch.where(broken[1], 1, torch.where(broken[2], 2, margins.argmax(0))))
    assert torch.equal(attempt.winner, expected - 1)
    assert torch.equal(attempt.inputs, torch.stack(points)[expected, torch.arange(30)])
    assert up.log == [int((~broken[0]).sum())]
    assert down.log == [int((~broken[0] & ~broken[1]).sum())]
    assert set(attempt.winner.tolist()) == {-1, 0, 1}
    torch.testing.assert_close(attempt.value, margins[expected, torch.arange(30)])


def test_costs_and_traces_add_up():
    base, x, y = problem()
    model = Counted(base)
    suite = Suite(THREAT, (APGD(THREAT, steps=5), APGDTargeted(THREAT, steps=5), Square(THREAT, queries=20)))
    attempt = suite.run(model, x, y)
    assert model.tally.images == int(attempt.forwards.sum()) + 2  # and the probe
    assert bool((attempt.forwards <= suite.cost()[0]).all())
    assert bool((attempt.backwards <= suite.cost()[1]).all())
    spent = attempt.forwards + attempt.backwards
    passes = attempt.trace.passes
    assert bool((passes.max(0).values <= spent).all())
    for i in range(30):
        seen = passes[:, i][passes[:, i] > 0]
        assert bool((seen.diff() >= 0).all())
    assert bool((attempt.found_at <= spent).all())
    alone = APGD(THREAT, steps=5).run(base, x, y)
    assert attempt.trace.value.shape[0] > alone.trace.value.shape[0]


@pytest.mark.parametrize("make", [standard, fast, random])
def test_suites_leave_what_the_truth_leaves(make):
    """Two classes, so that every member can reach the closed form."""
    case = KNOWN["linear"]()
    suite = make(case.threat)
    short = Suite(case.threat, tuple(_shortened(a) for a in suite.attacks))
    attempt = short.run(case.model, case.images, case.labels)
    assert torch.equal(case.model.accuracy_at(attempt.inputs, case.labels), case.truth())


def _shortened(attack: Attack) -> Attack:
    from dataclasses import replace

    return replace(attack, **({"queries": 50} if isinstance(attack, Square) else {"steps": 20}))  # type: ignore[type-var]


def test_results_do_not_depend_on_the_batch():
    model, x, y = problem()
    members = (APGD(THREAT, steps=5), FAB(THREAT, steps=5, drop_fooled=True), Square(THREAT, queries=30))
    attempt = Suite(THREAT, members).run(model, x, y, seed=1)
    index = [11, 4, 29]
    part = Suite(THREAT, members).run(model, x[index], y[index], seed=1)
    torch.testing.assert_close(part.inputs, attempt.inputs[index], atol=1e-5, rtol=0)
    assert torch.equal(part.winner, attempt.winner[index])


def test_only_inputs_inside_the_threat_count():
    model, x, y = problem()

    def far(model, x: Tensor, y: Tensor) -> Tensor:
        return 1 - x

    attempt = Suite(THREAT, (Custom(far, THREAT), FAB(THREAT, steps=10))).run(model, x, y)
    assert bool((THREAT.distance(attempt.inputs, x) <= THREAT.eps * (1 + 1e-5)).all())
    inside = FAB(THREAT, steps=10).run(model, x, y).distance <= THREAT.eps
    assert torch.equal(model(attempt.inputs).argmax(1) != y, inside)
    assert bool((attempt.winner[~inside] == -1).all())


def test_a_coin_flip_is_broken_by_nobody():
    """P(correct) is 0.9 whatever the input: every example stays to the end, and each member sees them all."""
    case = KNOWN["coin-flip"]()
    suite = Suite(case.threat, (PGD(case.threat, steps=5), APGD(case.threat, steps=5)), draws=20)
    attempt = suite.run(case.model, case.images, case.labels)
    assert torch.equal(case.model.accuracy_at(attempt.inputs, case.labels), case.truth())
    assert bool((attempt.backwards == 10).all())
    assert bool((attempt.forwards >= 60).all())


def test_a_random_model_gets_the_inputs_of_highest_mean_margin():
    """Noise of deviation 0.4 around margins that the two members move apart by 0.3 and more: over 50 draws a mean is
    known to 0.06, and their difference to 0.08."""
    case = KNOWN["noisy-linear"]()
    way = -(2 * case.labels - 1).view(-1, 1, 1, 1) * case.model.weight.sign().view(1, 1, 5, 5)
    toward = {tuple(x.flatten().tolist()): w for x, w in zip(case.images, way, strict=True)}

    def moved(share):
        def function(model, x: Tensor, y: Tensor) -> Tensor:
            ways = torch.stack([toward[tuple(one.flatten().tolist())] for one in x])
            return (x + share * case.threat.eps * ways).clamp(0, 1)

        return function

    members = (Custom(moved(1.0), case.threat), Custom(moved(0.2), case.threat))
    attempt = Suite(case.threat, members).run(case.model, case.images, case.labels)
    gain = case.model.accuracy_at(case.images, case.labels) - case.truth()
    sure = (gain > 0.2) & (case.truth() > 0.1)
    assert int(sure.sum()) >= 10
    assert bool((attempt.winner[sure] == 0).all())


def test_a_random_model_that_always_errs_is_settled():
    case = KNOWN["linear"]()
    model = CoinFlip(case.model, 0.001)
    last = logged(0.0)
    object.__setattr__(last, "threat", Linf(0.3))
    suite = Suite(Linf(0.3), (APGD(Linf(0.3), steps=10), last))
    attempt = suite.run(model, case.images, case.labels)
    fooled = case.model.accuracy_at(attempt.inputs, case.labels) == 0
    assert int(fooled.sum()) > 30
    assert last.log is not None
    assert (
        sum(last.log) <= int((~fooled).sum()) + 6
    )  # P(correct) is 0.01 there: a test of 73 draws passes every second


def test_standard_has_the_components_of_autoattack():
    suite = standard(Linf(0.1))
    kinds = [type(attack) for attack in suite.attacks]
    assert kinds == [APGD, APGDTargeted, FAB, Square]
    ce, targeted, fab, square = suite.attacks
    assert (ce.steps, ce.restarts, ce.wide) == (100, 1, False)  # type: ignore[attr-defined]
    assert (targeted.steps, targeted.targets) == (100, 9)  # type: ignore[attr-defined]
    assert (fab.steps, fab.targets) == (100, 9)  # type: ignore[attr-defined]
    assert square.queries == 5000  # type: ignore[attr-defined]
    ce, targeted, fab, _ = standard(L1(5.0)).attacks
    assert (ce.restarts, ce.wide, targeted.targets, targeted.wide, fab.targets) == (5, True, 5, True, 9)  # type: ignore[attr-defined]
    draws = [attack.gradient.draws for attack in random(L2(1.0)).attacks]  # type: ignore[attr-defined]
    assert draws == [20, 20]


def test_names_on_the_command_line():
    for name, make in (("standard", standard), ("fast", fast), ("random", random)):
        assert parse_attack(name, Linf(0.1)) == make(Linf(0.1))
    assert parse_attack("random draws=5", Linf(0.1)) == random(Linf(0.1), draws=5)
    assert isinstance(parse_attack("fab steps=7", L2(0.1)), FAB)


def test_targets_budgets_and_starts_reach_the_members():
    model, x, y = problem()
    threat, targets = Linf(0.5), (y + 1) % 4
    suite = Suite(threat, (APGD(threat, steps=20), Square(threat, queries=20)))
    attempt = suite.run(model, x, y, targets=targets)
    assert torch.equal(model(attempt.inputs).argmax(1), targets)
    budgets = torch.linspace(0, 0.5, 30)
    attempt = suite.run(model, x, y, budgets=budgets)
    assert bool((threat.distance(attempt.inputs, x) <= budgets * (1 + 1e-5) + 1e-6).all())
    start = APGD(threat, steps=40)(model, x, y)
    attempt = suite.run(model, x, y, start=start)
    assert int(attempt.backwards.max()) <= 20
    assert bool((attempt.backwards <= 1).float().mean() > 0.8)


def test_bad_suites_are_refused():
    for attacks in ((), [UniformNoise(THREAT)], (lambda model, x, y: x,), UniformNoise(THREAT)):
        with pytest.raises(BudgetError):
            Suite(THREAT, attacks)  # type: ignore[arg-type]
    with pytest.raises(BudgetError):
        Suite(0.3, (UniformNoise(THREAT),))  # type: ignore[arg-type]
    with pytest.raises(BudgetError):
        Suite(THREAT, (UniformNoise(THREAT),), draws=0)
    with pytest.raises(ThreatError):
        Suite(THREAT, (UniformNoise(Linf(0.1)),))
    with pytest.raises(BudgetError):
        standard(L0(3))
    suite = standard(THREAT)
    assert pickle.loads(pickle.dumps(suite)) == suite
