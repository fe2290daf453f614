"""What the traces of the attacks say about the attacks themselves (Pintor et al. 2022): points that were found and
lost again, searches that stopped while still climbing, losses that go up and down."""

import math

import numpy as np

from stochade.audit import plan
from stochade.audit.evidence import CARLINI, CONFIDENCE, PINTOR, Evidence, percent
from stochade.audit.findings import Finding
from stochade.evaluate.intervals import binomial

LAST = 10  # steps at the end of a trace that must bring nothing new
STILL = 0.05  # of the range that a trace went through


def silent_success(e: Evidence) -> Finding | None:
    """An example counts as standing although the attack looked at an adversarial point on its way."""
    worst, count, at = "", 0, 0
    for name in e.inside():
        lost = silent(e, name)
        if lost is not None and lost.sum() > count:
            worst, count, at = name, int(lost.sum()), int(lost.argmax())
    if not count:
        return None
    return Finding(
        "silent-success", "incomplete",
        f"{worst!r} held adversarial points of {count} examples in its hands and returned others, which are not",
        {"examples": f"{count} of {len(e.records)}", "first": f"row {at}", "attack": worst,
         "on random models": "only where a run of steps that chance explains less often than "
         f"{1 - CONFIDENCE:.3f} all fooled the model, and the returned point never did"},
        "keep the best point of the search (keep='best'), or let fooled examples leave",
        f"{PINTOR}: silent success",
    )  # fmt: skip


def silent(e: Evidence, name: str) -> np.ndarray | None:
    """[N] bool: examples with an adversarial iterate whose returned point is not; None where the trace cannot tell.

    A margin above 0 and a cross entropy above log K mean misclassification. A trace holds means over the draws of a
    gradient, and one of them proves nothing on a random model: there only a run of steps counts that is longer than
    chance would give among all steps of all examples, and only where all scoring draws are right.
    """
    record = e.record(name)
    line = _line(e, name)
    if line is None or not record.trace.shape[1]:
        return None
    inside = ~(record.trace_distance > e.threat["eps"] * (1 + 1e-5))  # unknown counts as inside
    if record.info.get("minimal"):  # on its way far beyond the budget
        inside &= np.isfinite(record.trace_distance)
    fooled = (np.nan_to_num(record.trace, nan=-np.inf) > line) & inside
    if not e.probes["random"]:
        return fooled.any(1) & e.standing(name)
    needed = math.ceil(math.log2(fooled.size / (1 - CONFIDENCE)))
    run, longest = np.zeros(len(fooled), int), np.zeros(len(fooled), int)
    for column in fooled.T:
        run = np.where(column, run + 1, 0)
        longest = np.maximum(longest, run)
    right = e.records.right(name)
    always = right.all(1) & (binomial(right.shape[1], right.shape[1], 0.95)[0] > 0.5)
    return (longest >= needed) & always


def _line(e: Evidence, name: str) -> float | None:
    """The value of an attack's objective above which the model that it looked at is wrong, or None."""
    if of_another_model(e.record(name).info):
        return None
    objective = e.objective(name)
    if objective.endswith("margin"):
        return 0.0
    return math.log(e.probes["classes"]) if objective.endswith("cross_entropy") else None


def of_another_model(info: object) -> bool:
    """Whether the trace of an attack may be of another model than the one under attack: a relaxed forward, frozen
    noise, or a source model."""
    if isinstance(info, dict):
        other = info.get("type") in ("Transfer", "Frozen") or info.get("relaxed") is not None
        return other or any(of_another_model(part) for part in info.values())
    return isinstance(info, list) and any(of_another_model(part) for part in info)


def incomplete_optimisation(e: Evidence) -> Finding | None:
    """The best value so far must not rise any more at the end: by less than 0.05 of its whole rise in the last ten
    steps (the last half of shorter traces). On random models these steps must also show a trend beyond doubt."""
    name = _climber(e)
    curve = None if name is None else curve_of(e, name)
    rise = late_rise(curve)
    if curve is None or rise is None or rise <= STILL:
        return None
    if e.probes["random"] and trend(curve[-min(LAST, len(curve) // 2) :]) <= 0:
        return None
    return Finding(
        "incomplete-optimisation", "incomplete",
        f"the search of {name!r} was still climbing when it stopped: {percent(rise)} of its rise came at the end",
        {"share of the rise in the last steps": percent(rise), "threshold": percent(STILL), "steps": str(len(curve))},
        "more steps (effort 'thorough')",
        f"{PINTOR}: incomplete optimisation; on the mean over the examples that stay to the end",
    )  # fmt: skip


def loss_goes_up_and_down(e: Evidence) -> Finding | None:
    """The attacker's objective must mostly rise: where it loses more than half of what it wins, steps are too long
    or the gradient misleads. On random models its values scatter by themselves; there its last half must not fall,
    beyond doubt, by more than half of what was won."""
    name = _climber(e)
    curve = None if name is None else curve_of(e, name)
    if curve is None or len(curve) < LAST:
        return None
    if e.probes["random"]:
        won, lost = float(curve.max() - curve[0]), -trend(curve[len(curve) // 2 :])
    else:
        change = np.diff(curve)
        won, lost = float(change[change > 0].sum()), float(-change[change < 0].sum())
    if won <= 0 or lost <= 0.5 * won:
        return None
    return Finding(
        "loss-goes-up-and-down", "incomplete",
        f"the objective of {name!r} loses on its way {percent(lost / won)} of what it wins",
        {"won": won, "lost": lost, "threshold": "50 %"},
        "smaller steps, more draws per gradient, another backward",
        f"{CARLINI}: the loss must mostly fall; the threshold is this project's",
    )  # fmt: skip


def trend(values: np.ndarray) -> float:
    """The change of a straight line through some values from first to last, 0 where it may be chance (t test of the
    slope at CONFIDENCE; the draws of different steps are independent)."""
    from scipy.stats import linregress

    if len(values) < 4 or np.ptp(values) == 0:
        return 0.0
    line = linregress(np.arange(len(values)), values)
    return float(line.slope) * (len(values) - 1) if line.pvalue < 1 - CONFIDENCE else 0.0  # type: ignore[attr-defined]


def _climber(e: Evidence) -> str | None:
    """The strongest attack inside the threat that climbs by steps."""
    names = [
        n
        for n in e.inside()
        if n.startswith(("pgd", "bim", "apgd", plan.ADAPTIVE)) and e.record(n).trace.shape[1] > 1
    ]
    return e.best(names) if names else None


def curve_of(e: Evidence, name: str) -> np.ndarray | None:
    """[steps] mean objective over the examples that stay to the end, None where fewer than five do."""
    trace = e.record(name).trace
    stay = np.isfinite(trace).all(1) & e.standing(name)
    return trace[stay].astype(float).mean(0) if stay.sum() >= 5 else None


def late_rise(curve: np.ndarray | None) -> float | None:
    """The share of the whole rise of the best value so far that came at the end."""
    if curve is None or len(curve) < 4:
        return None
    best = np.maximum.accumulate(curve)
    whole = best[-1] - best[0]
    last = min(LAST, len(curve) // 2)
    return float((best[-1] - best[-1 - last]) / whole) if whole > 0 else 0.0
