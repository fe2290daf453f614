"""Evidence of an audit made by hand: records from who was right, traces, probes and curves."""

from dataclasses import replace

import numpy as np

from stochade.audit import plan
from stochade.audit.evidence import Evidence
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
