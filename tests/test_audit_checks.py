"""Every check of the audit on evidence made by hand: one case that must raise it and one that must not."""

from collections.abc import Callable

import numpy as np
import pytest

from audit_evidence import (
    HELD,
    PLANTED,
    RANDOM,
    RELAXED,
    N,
    curve,
    evidence,
    far,
    fooled_at,
    frozen,
    gradient,
    only,
    record,
    right,
    rises,
    sized,
)
from stochade.audit import CHECKS
from stochade.audit.evidence import Evidence
from stochade.audit.findings import SEVERITIES

CASES: dict[str, tuple[Callable[[], Evidence], Callable[[], Evidence]]] = {
    "one-step-beats-iterated": (
        lambda: evidence({"fgsm": 0.3, "pgd": 0.7}),
        lambda: evidence({"fgsm": 0.7, "pgd": 0.3}),
    ),
    "gradient-free-beats-gradient": (
        # equal means, other examples: the gradient takes the last 40, Square the first 40
        lambda: evidence({"square": record(only(0, 40)), "pgd": record(only(160, 200))}),
        lambda: evidence({"square": record(only(160, 200)), "pgd": record(only(150, 200))}),
    ),
    "square-lowers-accuracy": (
        lambda: evidence({"square": record(only(0, 1)), "pgd": 1.0}),
        lambda: evidence({"square": record(only(0, 1)), "pgd": 1.0}, RANDOM),
    ),
    "random-search-succeeds": (
        lambda: evidence({"random search": 0.5, "pgd": 0.9}),
        lambda: evidence({"random search": 0.5, "pgd": 0.4}),
    ),
    "noise-beats-gradient": (
        lambda: evidence({"uniform noise": 0.5, "pgd": 0.9}),
        lambda: evidence({"uniform noise": 0.9, "pgd": 0.89}),
    ),
    "unbounded-survives": (
        lambda: evidence(
            {"pgd margin": 0.9, "pgd margin eps=1": sized(0.7, 1)},
            curves=curve("budget", (0.1, "pgd margin"), (1.0, "pgd margin eps=1")),
        ),
        lambda: evidence(
            {"pgd margin": 0.9, "pgd margin eps=1": sized(0.4, 1)},
            curves=curve("budget", (0.1, "pgd margin"), (1.0, "pgd margin eps=1")),
        ),
    ),
    "grey-image-survives": (
        lambda: evidence({"pgd eps=0.5": sized(0.7, 0.5)}, curves=curve("budget", (0.5, "pgd eps=0.5"))),
        lambda: evidence({"pgd eps=0.5": sized(0.5, 0.5)}, curves=curve("budget", (0.5, "pgd eps=0.5"))),
    ),
    "budget-does-not-help": (
        lambda: evidence({"a": 0.5, "b": sized(0.8, 0.2)}, curves=curve("budget", (0.1, "a"), (0.2, "b"))),
        lambda: evidence({"a": 0.8, "b": sized(0.5, 0.2)}, curves=curve("budget", (0.1, "a"), (0.2, "b"))),
    ),
    "iterated-collapses": (
        lambda: evidence({"fgsm": 0.9, "pgd": 0.2}),
        lambda: evidence({"fgsm": 0.9, "pgd": 0.89}),
    ),
    "substituted-backward-wins": (
        lambda: evidence({"pgd": 0.9, "pgd backward=soft": 0.2}),
        lambda: evidence({"pgd": 0.9, "pgd backward=soft": 0.9, "pgd backward=soft draws=5": 0.2}),
    ),
    "adaptive-search-wins": (
        lambda: evidence({"pgd": 0.9, "adaptive 1: apgd own margin draws=5 from image": 0.5}),
        lambda: evidence({"pgd": 0.5, "adaptive 1: apgd own margin draws=5 from image": 0.5}),
    ),
    "averaging-wins": (
        lambda: evidence({"pgd": 0.9, "pgd averaged": 0.5}),
        lambda: evidence({"pgd": 0.9, "pgd single draws": 0.5, "pgd averaged": 0.5}),
    ),
    "averaging-buys-nothing": (
        lambda: evidence({"pgd single draws": record(0.5), "pgd averaged": record(0.5)}),
        lambda: evidence({"pgd single draws": 0.8, "pgd averaged": 0.5}),
    ),
    "label-leaking": (
        lambda: evidence({"fgsm": 0.95}, clean=0.8),
        lambda: evidence({"fgsm": 0.8}, clean=0.8),
    ),
    "not-converged": (
        lambda: evidence({"a": 0.8, "b": 0.5}, curves=curve("steps", (40, "a"), (80, "b"))),
        lambda: evidence({"a": 0.5, "b": 0.5}, curves=curve("steps", (40, "a"), (80, "b"))),
    ),
    "more-does-not-help": (
        lambda: evidence({"a": 0.5, "b": 0.8}, curves=curve("draws", (5, "a"), (20, "b"))),
        lambda: evidence({"a": 0.8, "b": 0.5}, curves=curve("draws", (5, "a"), (20, "b"))),
    ),
    "restarts-help": (
        lambda: evidence({"pgd margin": 0.8, "pgd margin, ten starts": 0.5}),
        lambda: evidence({"pgd margin": 0.8, "pgd margin, ten starts": 0.8}),
    ),
    "transfer-failure": (
        lambda: evidence({"pgd forward=mean-field": record(0.8, trace=HELD, info=RELAXED)}),
        lambda: evidence({"pgd forward=mean-field": record(0.05, trace=HELD, info=RELAXED)}),
    ),
    "static-baseline": (
        lambda: evidence({"pgd forward=mean-field": record(0.2, trace=-HELD, info=RELAXED)}),
        lambda: evidence({"pgd forward=mean-field": record(0.2, trace=HELD, info=RELAXED)}),
    ),
    "frozen-noise-survives": (
        lambda: evidence({"pgd margin": 0.0}, RANDOM | frozen(0.8)),
        lambda: evidence({"pgd margin": 0.5}, RANDOM | frozen(0.2)),
    ),
    "noise-is-the-defence": (
        lambda: evidence({"pgd margin": 0.5}, RANDOM | frozen(0.0)),
        lambda: evidence({"pgd margin": 0.0}, RANDOM | frozen(0.0)),
    ),
    "adaptive-loss": (
        lambda: evidence({"pgd": record(0.5, trace=np.arange(N)[:, None] < 100)}),
        lambda: evidence({"pgd": record(0.5, trace=np.arange(N)[:, None] >= 100)}),
    ),
    "far-from-everything": (
        lambda: evidence({"fmn": far(0.6)}),
        lambda: evidence({"fmn": far(0.4)}),
    ),
    "effort-left-out": (
        lambda: evidence({"random search": record(1.0, forwards=100)}),
        lambda: evidence(
            {
                "random search": record(1.0, forwards=10_000),
                "pgd margin, ten starts": 1.0,
                "apgd-t": 1.0,
                "hopskipjump": 1.0,
            }
        ),
    ),
    "silent-success": (
        lambda: evidence({"pgd": record(0.9, trace=fooled_at(3, 7))}),
        lambda: evidence({"pgd": record(only(0, 3), trace=fooled_at(3, 7))}),
    ),
    "incomplete-optimisation": (
        lambda: evidence({"pgd": record(0.9, trace=rises(last=0.2))}),
        lambda: evidence({"pgd": record(0.9, trace=rises(last=0.02))}),
    ),
    "loss-goes-up-and-down": (
        lambda: evidence({"pgd": record(0.9, trace=np.tile(np.sin(np.arange(40.0)), (N, 1)))}),
        lambda: evidence({"pgd": record(0.9, trace=rises())}),
    ),
    "zero-gradient": (
        lambda: evidence(probes=gradient(zero_share=0.06)),
        lambda: evidence(probes=gradient(zero_share=0.04)),
    ),
    "gradient-size": (
        lambda: evidence(probes=gradient(norm_median=1e4)),
        lambda: evidence(probes=gradient(norm_median=100.0)),
    ),
    "noisy-gradient": (
        lambda: evidence(probes=RANDOM | gradient(cosine_between_draws=0.1, signal_to_noise=0.1)),
        lambda: evidence(probes=RANDOM | gradient(cosine_between_draws=0.9)),
    ),
    "unstable-predictions": (
        lambda: evidence(probes={"stability": {"relative_change": 0.5, "change_by_noise": 0.0, "directions": 100}}),
        lambda: evidence(probes={"stability": {"relative_change": 0.6, "change_by_noise": 0.45, "directions": 100}}),
    ),
    "blocked-gradient": (
        lambda: evidence(probes={"blocked_by": ["encoder"]}),
        lambda: evidence(probes={"blocked_by": []}),
    ),
    "dynamic-defence": (
        lambda: evidence(probes={"dynamic": True}),
        lambda: evidence(probes={"dynamic": False}),
    ),
    "randomness": (lambda: evidence(probes=RANDOM), lambda: evidence()),
    "retries-help": (
        lambda: evidence(
            {"pgd": record(right(0.5, 20))}, RANDOM, clean=record(np.random.default_rng(0).random((N, 20)) < 0.9)
        ),
        lambda: evidence({"pgd": 0.5}, RANDOM),
    ),
    "state": (lambda: evidence(probes={"differs_at_equal_seed": True}), lambda: evidence()),
    "probabilities": (lambda: evidence(probes={"probabilities": True}), lambda: evidence()),
    "active-dropout": (lambda: evidence(probes={"active_dropout": True}), lambda: evidence()),
    "batch-dependence": (lambda: evidence(probes={"depends_on_batch": True}), lambda: evidence()),
    "few-examples": (lambda: evidence(n=99), lambda: evidence(n=100)),
    "active-test-fails": (
        lambda: evidence(probes={"active_test": PLANTED | {"found": 40}}),
        lambda: evidence(probes={"active_test": PLANTED | {"found": 60}}),
    ),
    "active-test-says-nothing": (
        lambda: evidence(probes={"active_test": PLANTED | {"found": 64, "random": 60}}),
        lambda: evidence(probes={"active_test": PLANTED | {"found": 64}}),
    ),
    "below-threshold-baseline": (
        lambda: evidence({"pgd": 0.3}, {"baseline": {"clean": 1.0, "right": right(0.8)[:, 0].tolist()}}),
        lambda: evidence({"pgd": 0.3}, {"baseline": {"clean": 1.0, "right": right(0.3)[:, 0].tolist()}}),
    ),
}


def test_every_check_has_its_cases():
    assert set(CASES) == set(CHECKS)


@pytest.mark.parametrize("name", CASES)
def test_a_check_fires_and_does_not(name):
    fires, silent = CASES[name]
    finding = CHECKS[name](fires())
    assert finding is not None
    assert finding.severity in SEVERITIES
    assert finding.title
    assert finding.next_step
    assert finding.source
    assert all(isinstance(value, str | int | float | bool | None) for value in finding.evidence.values())
    assert CHECKS[name](silent()) is None


@pytest.mark.parametrize("name", CASES)
def test_a_check_says_nothing_where_nothing_was_measured(name):
    if name in ("effort-left-out",):
        return
    assert CHECKS[name](evidence()) is None


def test_a_few_zero_gradients_are_no_masking():
    """Four of 64 may be 5 % of all; sixteen may not."""
    few, many = (CHECKS["zero-gradient"](evidence(probes=gradient(zero_share=n / 64))) for n in (4, 16))
    assert few is not None
    assert many is not None
    assert (few.severity, many.severity) == ("incomplete", "masking")
