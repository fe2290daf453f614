"""Flips fixed before the encoding is drawn: against enumeration of every plan, restarts, targets."""

from dataclasses import replace
from itertools import product

import pytest
import torch
from scipy.stats import binomtest, chisquare
from torch import nn

from coded import LABELS, PIXELS, WEIGHTS, Curved, accuracy, encodings, images
from doubles import Line
from stochade import Linf, evaluate
from stochade.attacks import FixedFlips, ObliviousSEA, margin
from stochade.attacks.base import Task
from stochade.attacks.gradients import Backprop
from stochade.attacks.objectives import cross_entropy
from stochade.attacks.registry import parse_attack
from stochade.describe import describe
from stochade.models import Encoded
from stochade.nn import BernoulliRate, Latency, SignedRate
from stochade.randomness import Stream, untouched


@pytest.mark.parametrize("encoder", [BernoulliRate(2), SignedRate(2, 0.45)], ids=["rate", "signed"])
def test_oblivious_plans_are_the_best_fixed_ones_and_scored_on_fresh_encodings(encoder):
    """On a linear network with the margin the mean gain of every plan is enumerated; the plan found is the best one
    (400 draws against gaps that are checked), and its score is its exact accuracy: binomial tests at 1e-6."""
    network, threat = Line(WEIGHTS, -0.35), FixedFlips(1, encoder.alphabet)
    model, copies, draws = Encoded(encoder, network), 40, 10
    attack = ObliviousSEA(threat, 1, 400, margin)
    plans = attack(model, PIXELS, LABELS)
    choices = [*encoder.alphabet, float("nan")]
    every = torch.tensor(list(product(choices, repeat=4))).view(-1, 2, 1, 1, 2)
    every = every[threat.distance(every, every) <= 1]
    x, y = PIXELS.repeat_interleave(copies, 0), LABELS.repeat_interleave(copies)
    records = evaluate(model, x, y, {"oblivious": attack}, draws, chunk=120, show_progress=False)
    for i in range(3):
        y = int(LABELS[i])
        words, chances = encodings(encoder, PIXELS[i])
        many = torch.full((len(words),), y)
        after = [margin(network(threat.apply(plan.expand_as(words), words)), many) for plan in every]
        gains = torch.stack([(chances * values).sum() for values in after])
        two = gains.topk(2).values
        assert float(two[0] - two[1]) > 0.02
        best = every[gains.argmax()]
        assert torch.equal(plans[i].nan_to_num(9), best.nan_to_num(9))
        truth = accuracy(encoder, PIXELS[i], y, network, lambda z, p=best: threat.apply(p.expand_as(z), z))
        right = int((records.attacks["oblivious"].predictions[copies * i : copies * (i + 1)] == y).sum())
        assert binomtest(right, copies * draws, min(max(truth, 0.0), 1.0)).pvalue > 1e-6
    assert (records.attacks["oblivious"].distance == 1).all()


def test_what_a_plan_gains_is_measured_from_the_encoding_it_replaces():
    """With an encoder that always says the same: g at the planned codes, and g times the codes without the plan."""
    model, x, y = Encoded(Latency(3), Curved(24)), images(4), torch.arange(4) % 3
    threat = FixedFlips(2)
    plan = torch.full((4, 3, 1, 1, 8), float("nan"))
    plan[:, 0, 0, 0, :2] = 1
    codes = model.encoder(x)
    leaf = threat.apply(plan, codes).requires_grad_()
    g = torch.autograd.grad(cross_entropy(model.network(leaf), y).sum(), leaf)[0]
    _, found, weight = ObliviousSEA(threat, 1, 5)._pass(Task(model, x, y, threat, None, Stream(0, y)), plan)
    torch.testing.assert_close(found, g)
    torch.testing.assert_close(weight, g * codes)
    assert not torch.equal(leaf, codes)


def test_oblivious_restarts_reach_more_and_begin_with_other_plans():
    """Mean objective on fresh encodings of a curved network: six runs beat one; the second begins with the whole
    budget written, places and letters even (chi-squared at 1e-4 each)."""
    encoder, x = SignedRate(3, 0.45), images(20, seed=4)
    model, threat = Encoded(encoder, Curved(24, seed=3)), FixedFlips(2, "signed")
    with torch.no_grad(), untouched(model):
        torch.manual_seed(0)
        y = torch.stack([model(x) for _ in range(30)]).mean(0).argmax(1)

        def reached(attack) -> float:
            plans = attack(model, x, y)
            assert bool(threat.allows(plans, plans).all())
            torch.manual_seed(1)
            return float(torch.stack([margin(model.network(threat.apply(plans, encoder(x))), y)
                                      for _ in range(60)]).mean())  # fmt: skip

        once, often = (reached(ObliviousSEA(threat, 3, 10, margin, restarts=r)) for r in (1, 6))
    assert often > once + 0.05
    attempt = ObliviousSEA(threat, 3, 4, restarts=2).run(model, x, y)
    assert ObliviousSEA(threat, 3, 4, restarts=2).cost() == (32, 32)
    assert (set(attempt.forwards.tolist()), attempt.trace.passes[-1].unique().tolist()) == ({32}, [64])
    assert attempt.trace.distance[:, 0].tolist() == [0, 2, 2, 2, 2, 2, 2, 2]
    some = threat.any_plan(torch.zeros(3000, 1, 6), Stream(0, torch.arange(3000)))
    written = ~some.isnan()
    assert (written.flatten(1).sum(1) == 2).all()
    assert chisquare(written.sum(0).flatten().numpy()).pvalue > 1e-4
    assert chisquare([int((some == letter).sum()) for letter in (-1, 0, 1)]).pvalue > 1e-4


def test_oblivious_plans_pull_to_the_runner_up():
    """On a linear network of three classes with the margin, the plan for a target is the enumerated best one; an
    example whose class is the goal is left alone."""
    weights = torch.randn(3, 4, generator=torch.Generator().manual_seed(2))

    class Linear(nn.Module):
        scope = "none"

        def forward(self, z):
            return z.flatten(1) @ weights.T

    encoder = BernoulliRate(2)
    model, threat = Encoded(encoder, Linear()), FixedFlips(1)
    mean = PIXELS.flatten(1).repeat(1, 2) @ weights.T  # the mean logits over encodings
    y = mean.argmax(1)
    runner_up = mean.scatter(1, y[:, None], -torch.inf).argmax(1)
    attempt = ObliviousSEA(threat, 1, 400, margin, goal="runner-up").run(model, PIXELS, y)
    assert torch.equal(attempt.targets, runner_up)
    every = torch.tensor(list(product([0.0, 1.0, float("nan")], repeat=4))).view(-1, 2, 1, 1, 2)
    every = every[threat.distance(every, every) <= 1]
    for i in range(3):
        words, chances = encodings(encoder, PIXELS[i])

        def gain(plan, i=i, words=words, chances=chances):
            logits = model.network(threat.apply(plan.expand_as(words), words))
            return float((chances * (logits[:, runner_up[i]] - logits[:, y[i]])).sum())

        assert gain(attempt.inputs[i]) == pytest.approx(max(gain(plan) for plan in every), abs=0.01)
    own = ObliviousSEA(threat, 2, 5, goal=int(y[0])).run(model, PIXELS, y)
    same = (y == y[0]).nonzero()[:, 0]
    assert own.inputs[same].isnan().all()
    assert (own.targets[same] == -1).all()
    named = parse_attack("sea-oblivious k=1 steps=2 draws=7 restarts=3 target=runner-up backward=soft", Linf(0.1))
    assert named == ObliviousSEA(threat, 2, 7, gradient=Backprop(1, "soft"), restarts=3, goal="runner-up")
    records = evaluate(model, PIXELS, y, {"o": replace(named, gradient=Backprop())}, 3, show_progress=False)
    assert records.attacks["o"].targets.tolist() == runner_up.tolist()


def test_what_came_later_is_silent_where_it_changes_nothing():
    """Runs of the time before restarts and goals are taken up: equal descriptions."""
    told = describe(ObliviousSEA(FixedFlips(2)))
    assert list(told) == ["type", "threat", "steps", "draws", "objective", "gradient"]
    assert describe(ObliviousSEA(FixedFlips(2), restarts=2, goal=1)) == told | {"restarts": 2, "goal": 1}
