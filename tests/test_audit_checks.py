"""Every check of the audit on evidence made by hand: one case that must raise it and one that must not."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from stochade.audit import CHECKS, plan
from stochade.audit.checks_traces import late_rise, of_another_model, trend
from stochade.audit.evidence import Evidence, established
from stochade.audit.findings import SEVERITIES
from stochade.evaluate.intervals import Estimate
from stochade.evaluate.records import AttackRecord, Records

N = 200
THREAT = {"norm": "linf", "eps": 0.1}
LABELS = np.arange(N) % 2
PROBES = {
    "random": False,
    "predictions_that_change": 0.0,
    "rows_of_one_call_differ": False,
    "declared_scope": "none",
    "uses_global_generators": False,
    "differs_at_equal_seed": False,
    "differs_at_equal_state": False,
    "depends_on_batch": False,
    "probabilities": False,
    "active_dropout": False,
    "classes": 2,
    "examples": 64,
    "pixels": 784,
    "layers": [],
    "gradient": {
        "available": True, "zero_share": 0.0, "norm_median": 1.0, "norm_max": 2.0, "cosine_between_draws": 1.0,
        "signal_to_noise": 1e6,
    },
}  # fmt: skip


def right(accuracy, draws=1, n=N):
    """[n, draws] bool: the first examples are right in every draw."""
    return np.repeat((np.arange(n) < round(accuracy * n))[:, None], draws, axis=1)


def record(
    correct, trace=None, objective="margin", info=None, threat=THREAT, forwards=10, selection=None, labels=LABELS
):
    """An attack's record from who was right, [N, draws] or an accuracy."""
    correct = right(correct, n=len(labels)) if isinstance(correct, float | int) else np.asarray(correct)
    n = len(correct)
    labels = labels[:n, None]
    predictions = np.where(correct, labels, 1 - labels).astype(np.int16)
    chosen = predictions if selection is None else np.where(selection, labels, 1 - labels).astype(np.int16)
    trace = np.zeros((n, 0), np.float32) if trace is None else np.asarray(trace, np.float32)
    told = {"type": "Descent", "objective": f"stochade.attacks.objectives.{objective}"} if info is None else info
    zeros = np.zeros(n, np.float32)
    return AttackRecord(
        predictions=predictions, selection=chosen, vote_logits=predictions[:, 0],
        vote_probabilities=predictions[:, 0], targets=np.full(n, -1, np.int16),
        distance=zeros, value=zeros, forwards=np.full(n, forwards, np.int32), backwards=zeros.astype(np.int32),
        found_at=zeros.astype(np.int32), winner=np.full(n, -1, np.int16), trace=trace,
        trace_distance=np.zeros_like(trace), trace_passes=np.zeros(trace.shape, np.int32),
        info={"attack": told, "threat": threat, "label": ""},
    )  # fmt: skip


def evidence(attacks=None, probes=None, curves=None, claim="fgsm", clean=1.0, n=N):
    """Evidence of one audit; `attacks` maps names to accuracies or records."""
    labels = LABELS[:n]
    made = {"clean": clean if isinstance(clean, AttackRecord) else record(clean, labels=labels)}
    made["clean"].info["threat"] = None
    for name, part in (attacks or {}).items():
        made[name] = part if isinstance(part, AttackRecord) else record(part, labels=labels)
    records = Records(np.arange(n), labels, made, {"model": {"scope": "none"}, "chunk": 100})
    return Evidence(records, PROBES | (probes or {}), THREAT, curves or {}, claim)


def gradient(**facts):
    return {"gradient": PROBES["gradient"] | facts}


def curve(kind, *points, series="best"):
    return {kind: [{"x": x, "attack": name, "series": series} for x, name in points]}


def sized(accuracy, eps):
    return record(accuracy, threat={"norm": "linf", "eps": eps})


def only(first, last):
    """[N, 1] bool: wrong on examples first..last alone."""
    return ((np.arange(N) < first) | (np.arange(N) >= last))[:, None]


def rises(steps=40, last=0.0):
    """A trace that rises from -1 by 1 in its first steps and by `last` in its last ten."""
    line = np.concatenate([np.linspace(-2, -1, steps - 10), np.linspace(-1, -1 + last, 10)])
    return np.tile(line, (N, 1))


def fooled_at(rows, step, steps=40):
    """A margin trace below 0 but for `rows` examples at one step."""
    trace = np.full((N, steps), -1.0)
    trace[:rows, step] = 1.0
    return trace


def far(distance):
    return replace(record(1.0), distance=np.full(N, distance, np.float32))


def frozen(share, realisations=4):
    rows = np.repeat((np.arange(64) < share * 64)[:, None], realisations, axis=1).astype(int).tolist()
    return {"frozen": {"attack": plan.OWN_MARGIN, "right": {"1": rows, "4": rows}}}


RELAXED = {"type": "Descent", "objective": "x.margin", "gradient": {"type": "Backprop", "relaxed": "mean-field"}}
HELD = np.full((N, 30), 1.0)
RANDOM = {"random": True, "predictions_that_change": 0.2, "rows_of_one_call_differ": True}
PLANTED = {"attack": "pgd", "examples": 64, "planted": 64, "random": 3, "frozen": False}

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


def test_a_few_zero_gradients_are_no_masking():
    """Four of 64 may be 5 % of all; sixteen may not."""
    few, many = (CHECKS["zero-gradient"](evidence(probes=gradient(zero_share=n / 64))) for n in (4, 16))
    assert few is not None
    assert many is not None
    assert (few.severity, many.severity) == ("incomplete", "masking")


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


def test_curve_points_are_no_attacks_of_their_own():
    e = evidence({"pgd": 0.5, "pgd draws=40": 0.1, "pgd eps=0.05": sized(0.9, 0.05), "adaptive 1: x draws=5 y": 0.4})
    assert e.inside() == ["pgd", "adaptive 1: x draws=5 y"]


def test_findings_name_the_strongest_by_the_selection_draws():
    """The choice must not look at the scoring draws."""
    lucky = record(0.2, selection=right(0.9))
    e = evidence({"pgd": lucky, "pgd margin": 0.5})
    assert e.best(["pgd", "pgd margin"]) == "pgd margin"
    assert replace(e, claim="pgd").claim == "pgd"
