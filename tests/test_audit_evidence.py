"""What checks of the audit read from evidence: what breaks alone, which drops count, which attack is strongest."""

from dataclasses import replace

import numpy as np
import pytest

from audit_evidence import (
    RANDOM,
    N,
    evidence,
    only,
    record,
    right,
    sized,
)
from stochade.audit.evidence import established
from stochade.evaluate.intervals import Estimate


def test_breaking_alone_is_counted_per_example_and_without_bias():
    """Attacks of equal strength on a random model, independent draws: whatever the selection draws chose, the scoring
    draws show no difference. 200 repetitions at level 0.002 leave at most 4 alarms with probability 0.9999."""
    generator = np.random.default_rng(0)
    chance = 0.4 + 0.2 * generator.random((N, 1))

    def drawn():
        return record(generator.random((N, 20)) < chance, selection=generator.random((N, 20)) < chance)

    alarms = 0
    for _ in range(200):
        e = evidence({"square": drawn(), "evolution": drawn(), "pgd": drawn(), "pgd margin": drawn()}, RANDOM)
        alarms += established(e.breaks_alone(["square", "evolution"], ["pgd", "pgd margin"]))
    assert alarms <= 4


def test_breaking_alone_leaves_out_what_both_take():
    """Square takes the first 50 for certain; the next 100 fall to both, to the gradient for certain."""
    square, own = right(1.0, draws=20).copy(), right(1.0, draws=20).copy()
    square[:50] = False
    own[50:150] = False
    square[50:150, 8:] = False
    e = evidence({"square": record(square), "pgd": record(own)}, RANDOM, clean=record(right(1.0, draws=20)))
    assert e.breaks_alone(["square"], ["pgd"]).value == pytest.approx(50 / N)


def test_a_drop_counts_when_it_is_certain_and_large():
    def drop(value, low):
        return Estimate(value, low, 1.0, N, 1, kind="difference")

    assert established(drop(0.1, 0.01))
    assert not established(drop(0.1, -0.01))
    assert not established(drop(0.015, 0.01))
    assert not established(Estimate(None, None, None, 0, 0))


def test_breaking_alone_measures_what_only_one_side_takes():
    e = evidence({"square": record(only(0, 50)), "pgd": record(only(30, 100))})
    assert e.breaks_alone(["square"], ["pgd"]).value == pytest.approx(30 / N)
    assert e.breaks_alone(["pgd"], ["square"]).value == pytest.approx(50 / N)


def test_curve_points_are_no_attacks_of_their_own():
    e = evidence({"pgd": 0.5, "pgd draws=40": 0.1, "pgd eps=0.05": sized(0.9, 0.05), "adaptive 1: x draws=5 y": 0.4})
    assert e.inside() == ["pgd", "adaptive 1: x draws=5 y"]


def test_findings_name_the_strongest_by_the_selection_draws():
    """The choice must not look at the scoring draws."""
    lucky = record(0.2, selection=right(0.9))
    e = evidence({"pgd": lucky, "pgd margin": 0.5})
    assert e.best(["pgd", "pgd margin"]) == "pgd margin"
    assert replace(e, claim="pgd").claim == "pgd"
