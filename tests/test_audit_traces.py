"""Checks of the audit that read traces: silent success, late rises and trends, with and without noise."""

import numpy as np
import pytest

from audit_evidence import RANDOM, RELAXED, N, evidence, fooled_at, record, right, rises
from stochade.audit import CHECKS
from stochade.audit.checks_traces import late_rise, of_another_model, trend


def test_silent_success_on_random_models_needs_more_than_chance():
    """One positive mean in a trace proves nothing; forty in a row do, where the returned point is always right."""
    once, always = fooled_at(3, 7), fooled_at(0, 0)
    always[:3, :] = 1.0
    twenty = right(1.0, draws=20)
    silent = CHECKS["silent-success"]
    assert silent(evidence({"pgd": record(twenty, trace=once)}, RANDOM)) is None
    found = silent(evidence({"pgd": record(twenty, trace=always)}, RANDOM))
    assert found is not None
    assert found.evidence["examples"] == f"3 of {N}"
    half = twenty.copy()
    half[:, ::2] = False
    assert silent(evidence({"pgd": record(half, trace=always)}, RANDOM)) is None
    noise = np.random.default_rng(0).normal(size=(N, 400))
    assert silent(evidence({"pgd": record(twenty, trace=noise)}, RANDOM)) is None


def test_adversarial_points_outside_the_budget_are_no_silent_success():
    """A minimum-norm attack comes from outside."""
    e = evidence({"fmn": record(1.0, trace=fooled_at(3, 7))})
    e.record("fmn").trace_distance[:] = 0.2
    assert CHECKS["silent-success"](e) is None
    e.record("fmn").trace_distance[:] = 0.1
    assert CHECKS["silent-success"](e) is not None


def test_a_relaxed_trace_is_no_silent_success():
    e = evidence({"pgd forward=mean-field": record(1.0, trace=fooled_at(3, 7), info=RELAXED)})
    assert CHECKS["silent-success"](e) is None
    assert of_another_model({"attack": {"type": "Transfer", "attack": {"type": "Descent"}}})
    assert not of_another_model({"attack": {"type": "Descent", "gradient": {"type": "Backprop", "relaxed": None}}})


def test_late_rise_is_the_indicators_own():
    """Pintor et al. 2022: the best value so far, rescaled to [0,1], over the last ten steps."""
    curve = np.concatenate([np.linspace(0, 9, 30), np.linspace(9, 10, 11)[1:]])
    assert late_rise(curve) == pytest.approx(0.1)
    assert late_rise(np.concatenate([curve, np.full(10, 3.0)])) == pytest.approx(0.0)
    assert late_rise(np.zeros(40)) == 0.0


def test_scatter_is_no_trend():
    """Noise alone at the 0.002 level: at most 8 alarms in 1000, with probability 0.9998."""
    generator = np.random.default_rng(0)
    assert sum(trend(generator.normal(size=10)) != 0 for _ in range(1000)) <= 8
    assert trend(np.arange(10.0) + 0.1 * generator.normal(size=10)) == pytest.approx(9, abs=0.5)
    assert trend(np.ones(10)) == 0.0


def test_noisy_traces_of_random_models_raise_nothing():
    generator = np.random.default_rng(0)
    for name in ("incomplete-optimisation", "loss-goes-up-and-down"):
        alarms = 0
        for _ in range(50):
            noise = np.repeat(generator.normal(size=(1, 40)), N, axis=0) + rises() / 2
            alarms += CHECKS[name](evidence({"pgd": record(0.9, trace=noise)}, RANDOM)) is not None
        assert alarms == 0
    falls = np.tile(-np.abs(np.arange(40.0) - 20), (N, 1)) + 0.1 * generator.normal(size=(1, 40))
    assert CHECKS["loss-goes-up-and-down"](evidence({"pgd": record(0.9, trace=falls)}, RANDOM)) is not None
    climbs = rises(last=1.0) + 0.02 * generator.normal(size=(1, 40))
    assert CHECKS["incomplete-optimisation"](evidence({"pgd": record(0.9, trace=climbs)}, RANDOM)) is not None
