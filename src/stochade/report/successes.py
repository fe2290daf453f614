"""Plots of what an attack's passes and seconds bought, and of the distances that minimum-norm attacks found."""

from dataclasses import dataclass

import numpy as np

from stochade.audit.plan import ON_CURVES
from stochade.audit.result import Audit
from stochade.evaluate.records import CLEAN, Records
from stochade.evaluate.seconds import seconds_per_pass
from stochade.report.figures import Figure, landmarks, plotly_text
from stochade.report.rows import number, percent

LINES = 10  # of one plot; its table has all attacks
POINTS = 200  # of one line
_TONES, _DASHES = 8, ("solid", "dash", "dot", "dashdot", "longdash")


@dataclass(frozen=True)
class Curve:
    """The share of examples broken once an attack had spent so many passes on each: a staircase.

    Attributes:
        passes: ascending, from 1. broken: share from there on. start: share without any attack.
        total: mean passes per example in all.
    """

    passes: np.ndarray
    broken: np.ndarray
    start: float
    total: float

    def at(self, passes: float) -> float:
        """The share broken after so many passes."""
        index = int(np.searchsorted(self.passes, passes, side="right")) - 1
        return float(self.broken[index]) if index >= 0 else self.start


def success_curve(records: Records, name: str) -> Curve:
    """How an attack's successes grew: an example counts with the miss rate of its scoring draws from the pass on at
    which its inputs were found, and with that of the clean image before."""
    record = records.attacks[name]
    missed = 1 - records.right(name).mean(1)
    before = 1 - records.right(CLEAN).mean(1) if CLEAN in records.attacks else np.zeros(len(records))
    found = np.maximum(record.found_at, 1)
    passes, where = np.unique(found, return_inverse=True)
    gains = np.bincount(where, weights=missed - before) / len(records)
    start = float(before.mean())
    total = float((record.forwards + record.backwards).mean())
    return Curve(passes.astype(float), start + np.cumsum(gains), start, total)


def attacks_of(records: Records, audit: Audit | None) -> list[str]:
    """The attacks to compare: for an audit those inside its threat that are not just points of its curves."""
    names = records.attacks if audit is None else records.within(audit.threat)
    inside = [n for n in names if n != CLEAN and (audit is None or not any(mark in n for mark in ON_CURVES))]
    return inside


def successes(records: Records, audit: Audit | None) -> list[Figure]:
    """Successes over passes, and over seconds where the run's provenance tells what a pass took."""
    curves = {name: success_curve(records, name) for name in attacks_of(records, audit)}
    curves = {name: curve for name, curve in curves.items() if curve.total > 0}
    if not curves:
        return []
    rates = seconds_per_pass(records.meta.get("provenance"))
    timed = {name: curve for name, curve in curves.items() if name in rates}
    tones = dict(zip(dict.fromkeys([*_strongest(curves), *curves]), range(len(curves)), strict=True))
    return [_over_passes(records, curves, tones), *([_over_seconds(records, timed, tones, rates)] if timed else [])]


def _strongest(curves: dict[str, Curve]) -> list[str]:
    """The attacks that are drawn, in the order given."""
    ordered = sorted(curves, key=lambda name: -curves[name].broken[-1])[:LINES]
    return [name for name in curves if name in ordered]


def _over_passes(records: Records, curves: dict[str, Curve], tones: dict[str, int]) -> Figure:
    shown = _strongest(curves)
    data = [_staircase(records, name, curves[name], 1.0, tones[name]) for name in shown]
    most = max(float(c.passes[-1]) for c in curves.values())
    decades = [10**k for k in range(7) if 10**k < most * 10][:6]
    rows = [
        [n, *(percent(c.at(d)) for d in decades), percent(float(c.broken[-1])), number(round(c.total, 1))]
        for n, c in curves.items()
    ]
    columns = ["attack", *(f"broken after {d}" for d in decades), "in the end", "passes in all (mean)"]
    note = (
        "The share of examples whose returned images had been found after so many forward and backward passes each, "
        f"counted with their miss rate on the scoring draws. {_left_out(curves, shown)}"
    )
    layout = axes("passes per example", "share of examples broken")
    return Figure("successes-queries", "Successes over queries", note.strip(), data, layout, columns, rows, wide=True)


def _over_seconds(
    records: Records, curves: dict[str, Curve], tones: dict[str, int], rates: dict[str, float]
) -> Figure:
    shown = _strongest(curves)
    data = [_staircase(records, name, curves[name], rates[name], tones[name], "s") for name in shown]
    rows = [
        [n, number(1000 * rates[n]), number(c.total * rates[n]), number(_half(c) * rates[n]), percent(c.broken[-1])]
        for n, c in curves.items()
    ]
    columns = ["attack", "milliseconds per pass", "seconds per example", "half of the gain after", "in the end"]
    note = (
        "The same over wall time: passes times the seconds that one pass of this attack took per example, as "
        f"measured in this run, its batches and its own bookkeeping included. {_left_out(curves, shown)}"
    )
    layout = axes("seconds per example", "share of examples broken", "power")
    return Figure("successes-seconds", "Successes over seconds", note.strip(), data, layout, columns, rows, wide=True)


def _half(curve: Curve) -> float:
    """Passes after which half of what the attack won was won; NaN where it won nothing."""
    gain = curve.broken[-1] - curve.start
    if gain <= 0:
        return np.nan
    return float(curve.passes[np.argmax(curve.broken >= curve.start + gain / 2)])


def _left_out(curves: dict, shown: list[str]) -> str:
    left = len(curves) - len(shown)
    return f"The {len(shown)} strongest are drawn, the table has all {len(curves)}." if left > 0 else ""


def _staircase(records: Records, name: str, curve: Curve, scale: float, index: int, unit: str = "passes") -> dict:
    record = records.attacks[name]
    x, y = curve.passes, curve.broken
    if len(x) > POINTS:
        keep = np.unique(np.linspace(0, len(x) - 1, POINTS).round().astype(int))
        x, y = x[keep], y[keep]
    if x[0] > 1:
        x, y = np.append(1.0, x), np.append(curve.start, y)
    last = float((record.forwards + record.backwards).max())
    if last > x[-1]:
        x, y = np.append(x, last), np.append(y, y[-1])
    text = [f"{name}: {percent(b)} broken after {number(p * scale)} {unit}" for p, b in zip(x, y, strict=True)]
    end = {"size": [0] * (len(x) - 1) + [8], "symbol": "circle"}  # many lines end in one jump
    line = {"shape": "hv", **style(index)}
    return drawn_line(name, x * scale, y, text, index) | {"mode": "lines+markers", "line": line, "marker": end}


def style(index: int) -> dict:
    """How lines are told apart without colour."""
    return {"dash": _DASHES[index % len(_DASHES)], "width": 2}


def drawn_line(name: str, x, y, text: list[str], index: int) -> dict:
    """A line of the palette, with a text to hover at each point."""
    return {
        "type": "scatter",
        "mode": "lines",
        "name": plotly_text(name),
        "x": [float(v) for v in x],
        "y": [float(v) for v in y],
        "line": style(index),
        "text": [plotly_text(t) for t in text],
        "hovertemplate": "%{text}<extra></extra>",
        "meta": {"colour": f"line-{index % _TONES + 1}"},
    }


def axes(x: str, y: str, exponents: str = "none", log: bool = True) -> dict:
    """A share over a quantity."""
    axis: dict = {"title": {"text": x}}
    if log:
        axis |= {"type": "log", "dtick": 1, "exponentformat": exponents}
    return {
        "xaxis": axis,
        "yaxis": {"title": {"text": y}, "range": [-0.03, 1.03], "tickformat": ".0%", "dtick": 0.25},
    }


def distances(records: Records, audit: Audit | None) -> list[Figure]:
    """For each norm in which a minimum-norm attack ran: accuracy over budget, read off the distances it found."""
    norms: dict[str, list[str]] = {}
    for name, record in records.attacks.items():
        if record.info.get("minimal") and record.threat is not None:
            norms.setdefault(record.threat["norm"], []).append(name)
    return [_distance_figure(records, audit, norm, names) for norm, names in norms.items()]


def _distance_figure(records: Records, audit: Audit | None, norm: str, names: list[str]) -> Figure:
    found = {n: np.asarray(records.attacks[n].distance, dtype=np.float64) for n in names}
    largest = max((float(d[np.isfinite(d)].max()) for d in found.values() if np.isfinite(d).any()), default=1.0)
    data, rows = [], []
    for i, (name, distance) in enumerate(found.items()):
        distance = np.where(np.isnan(distance), np.inf, distance)
        x = np.unique(np.append(0.0, distance[np.isfinite(distance)]))
        if len(x) > POINTS:
            x = x[np.unique(np.linspace(0, len(x) - 1, POINTS).round().astype(int))]
        x = np.append(x, 1.05 * largest)
        y = [(distance > value).mean() for value in x]
        text = [f"{name}: {percent(share)} need more than {number(v)}" for v, share in zip(x, y, strict=True)]
        data.append(drawn_line(name, x, y, text, i) | {"line": {"shape": "hv", **style(i)}})
        levels = [number(float(v)) for v in np.quantile(distance, (0.1, 0.5, 0.9), method="lower")]
        rows.append([name, f"{int(np.isfinite(distance).sum())} of {len(distance)}", *levels])
    if audit is not None and audit.threat["norm"] == norm:
        data += landmarks(audit)
    note = (
        "Read straight off the distances that minimum-norm attacks found: the accuracy left at a budget is the share "
        "of examples whose smallest change found is larger. On a random model a change counts from where the model "
        "errs in half of its draws or more."
    )
    layout = axes(f"budget ({norm})", "accuracy", log=False)
    columns = ["attack", "found for", "10 % need", "median", "90 % need"]
    title = f"Smallest changes found, {norm}"
    return Figure(f"distances-{norm}", title, note, data, layout, columns, rows)
