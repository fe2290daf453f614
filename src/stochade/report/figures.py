"""The plots of a report as plain plotly.js dictionaries, each with the data table that says the same."""

from dataclasses import dataclass, field

import numpy as np

from stochade.audit.result import Audit
from stochade.evaluate.intervals import Estimate
from stochade.evaluate.records import CLEAN, KINDS
from stochade.report.rows import is_random, number, threat_text

SYMBOLS = {"single": "circle", "vote": "square", "all": "triangle-up"}
DASHES = {"single": "solid", "vote": "dash", "all": "dot"}
MEANING = {"single": "single prediction", "vote": "majority vote", "all": "right in every draw"}
BINS = 30


@dataclass(frozen=True)
class Figure:
    """One plot.

    Attributes:
        id: of its element. title: heading above it. note: how to read it.
        data, layout: plotly.js traces and layout; colours are left to the page, which knows light from dark
            and looks up each trace's `meta.colour`.
        columns, rows: the same numbers as a table; a cell is text or an Estimate.
    """

    id: str
    title: str
    note: str
    data: list[dict]
    layout: dict
    columns: list[str]
    rows: list[list] = field(default_factory=list)


_CURVES = {
    "budget": (
        "Accuracy over budget",
        "Given enough budget any attack that works brings accuracy to zero. A curve that levels off above "
        "chance means that the attack is stuck, not that the model holds.",
        "budget",
    ),
    "steps": (
        "Convergence in steps",
        "The same attack with more and more steps. Where the curve still falls at its right end the attack had "
        "not finished, and the accuracy found is too high.",
        "steps of the attack",
    ),
    "draws": (
        "Convergence in draws",
        "The same attack with more draws of the model averaged into each gradient. Where the curve still falls "
        "at its right end the attack was still misled by noise.",
        "draws per gradient",
    ),
}


def curves(audit: Audit) -> list[Figure]:
    """One figure per curve of the audit that has points; points without an attack in the records are left out."""
    known = [name for name in _CURVES if audit.curves.get(name)]
    others = [name for name in audit.curves if name not in _CURVES and audit.curves[name]]
    figures = [_curve(audit, name) for name in [*known, *others]]
    return [figure for figure in figures if figure is not None]


def _curve(audit: Audit, name: str) -> Figure | None:
    records = audit.records
    points = [(float(p["x"]), p["attack"]) for p in audit.curves[name] if p["attack"] in records.attacks]
    if not points:
        return None
    if name == "budget" and CLEAN in records.attacks and all(x > 0 for x, _ in points):
        points.insert(0, (0.0, CLEAN))
    title, note, axis = _CURVES.get(name, (f"Accuracy over {name}", "", name))
    if name == "budget":
        axis = _plotly_text(f"budget ({audit.threat['norm']})")
    kinds = KINDS if is_random(records) and records.draws > 1 else ("single",)
    scores = {kind: [records.score(attack, kind) for _, attack in points] for kind in kinds}
    xs = [x for x, _ in points]
    data = [_line(xs, scores[kind], kind, [attack for _, attack in points]) for kind in kinds]
    if name == "budget":
        data += _landmarks(audit)
    rows = [[number(x), attack, *[scores[kind][i] for kind in kinds]] for i, (x, attack) in enumerate(points)]
    layout = {"xaxis": _axis(axis, xs), "yaxis": {"title": {"text": "accuracy"}, "range": [-0.03, 1.03]}}
    return Figure(f"curve-{_slug(name)}", title, note, data, layout, [axis, "attack", *kinds], rows)


def _slug(name: str) -> str:
    return "".join(c if c.isascii() and c.isalnum() else "-" for c in name)


def _axis(title: str, xs: list[float]) -> dict:
    axis: dict = {"title": {"text": title}}
    if min(xs) > 0 and max(xs) / min(xs) >= 10:
        ticks = sorted(set(xs))
        axis |= {"type": "log", "tickvals": ticks, "ticktext": [number(int(x) if x == int(x) else x) for x in ticks]}
    return axis


def _errors(estimates: list[Estimate]) -> dict:
    """Bars from low to high; where an interval is unknown there is no bar."""
    up = [e.high - e.value if e.value is not None and e.high is not None else None for e in estimates]
    down = [e.value - e.low if e.value is not None and e.low is not None else None for e in estimates]
    return {"type": "data", "symmetric": False, "array": up, "arrayminus": down, "thickness": 1.5, "width": 4}


def _line(xs: list[float], estimates: list[Estimate], kind: str, attacks: list[str]) -> dict:
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": MEANING[kind],
        "x": xs,
        "y": [e.value for e in estimates],
        "error_y": _errors(estimates),
        "marker": {"symbol": SYMBOLS[kind], "size": 9},
        "line": {"dash": DASHES[kind], "width": 2},
        "text": [_plotly_text(f"{attack}: {e}") for attack, e in zip(attacks, estimates, strict=True)],
        "hovertemplate": "%{text}<extra></extra>",
        "meta": {"colour": kind},
    }


def _landmarks(audit: Audit) -> list[dict]:
    """The two numbers of the headline, placed on the budget plot."""
    marks = [("lowest accuracy found", audit.found, audit.threat, "found", "diamond")]
    claimed = audit.records.attacks[audit.claim].threat if audit.claim in audit.records.attacks else None
    if claimed is not None and claimed["norm"] == audit.threat["norm"]:
        marks.insert(0, ("authors’ attack", audit.claimed, claimed, "claimed", "diamond-open"))
    return [
        {
            "type": "scatter",
            "mode": "markers",
            "name": name,
            "x": [float(threat["eps"])],
            "y": [estimate.value],
            "error_y": _errors([estimate]),
            "marker": {"symbol": symbol, "size": 13, "line": {"width": 2}},
            "text": [_plotly_text(f"{name}, {threat_text(threat)}: {estimate}")],
            "hovertemplate": "%{text}<extra></extra>",
            "meta": {"colour": colour},
        }
        for name, estimate, threat, colour, symbol in marks
    ]


def _plotly_text(text: str) -> str:
    """Plotly reads a few tags and entities in text; user-supplied names must stay as they are."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def probes(measured: dict) -> tuple[list[Figure], dict]:
    """A histogram for every probe that is a list of numbers, and the other probes as they are."""
    figures, rest = [], {}
    for name, value in measured.items():
        values = _numbers(value)
        if values is None:
            rest[name] = value
        else:
            figures.append(_histogram(str(name), values))
    return figures, rest


def _numbers(value) -> np.ndarray | None:
    """A flat list of at least five numbers (None and NaN left out), or None for anything else."""
    if not isinstance(value, list | tuple | np.ndarray) or len(value) < 5:
        return None
    if any(isinstance(v, bool | str | dict | list | tuple | np.ndarray) for v in value):
        return None
    array = np.array([np.nan if v is None else v for v in value], dtype=np.float64)
    finite = array[np.isfinite(array)]
    return finite if len(finite) >= 5 else None


def _histogram(name: str, values: np.ndarray) -> Figure:
    counts, edges = np.histogram(values, bins=min(BINS, max(5, int(np.sqrt(len(values)) * 2))))
    centres = (edges[:-1] + edges[1:]) / 2
    label = name.replace("_", " ")
    bars = {
        "type": "bar",
        "name": label,
        "x": centres.tolist(),
        "y": counts.tolist(),
        "width": (np.diff(edges) * 0.94).tolist(),
        "text": [f"{number(a)} to {number(b)}: {c}" for a, b, c in zip(edges, edges[1:], counts, strict=False)],
        "textposition": "none",
        "hovertemplate": "%{text}<extra></extra>",
        "meta": {"colour": "single"},
    }
    layout = {"xaxis": {"title": {"text": _plotly_text(label)}}, "yaxis": {"title": {"text": "count"}}}
    levels = (0, 5, 25, 50, 75, 95, 100)
    rows = [[f"{level} %", number(float(np.percentile(values, level)))] for level in levels]
    rows.append(["exactly zero", f"{int((values == 0).sum())} of {len(values)}"])
    note = f"{len(values)} values; median {number(float(np.median(values)))}."
    return Figure(f"probe-{_slug(name)}", label, note, [bars], layout, ["percentile", label], rows)


def plot_document(figures: list[Figure]) -> list[dict]:
    """What the page's script needs, as JSON-able data."""
    return [{"id": f.id, "data": f.data, "layout": f.layout, "percent": f.id.startswith("curve-")} for f in figures]
