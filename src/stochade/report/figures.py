"""The plots of a report as plain plotly.js dictionaries, each with the data table that says the same."""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from stochade.audit.result import Audit
from stochade.evaluate.intervals import Estimate
from stochade.evaluate.records import CLEAN, KINDS
from stochade.report.rows import is_random, norm_text, number, threat_text

_STYLES = (  # colour on the page, marker, line: told apart without colour too
    ("single", "circle", "solid"),
    ("vote", "square", "dash"),
    ("all", "triangle-up", "dot"),
    ("published", "x", "dashdot"),
)
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
        wide: whether it takes the full width of the page.
    """

    id: str
    title: str
    note: str
    data: list[dict]
    layout: dict
    columns: list[str]
    rows: list[list] = field(default_factory=list)
    wide: bool = False


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
    points = [p for p in audit.curves[name] if p["attack"] in records.attacks]
    if not points:
        return None
    series: dict[str, list[tuple[float, str]]] = {}
    for point in points:
        series.setdefault(str(point.get("series") or ""), []).append((float(point["x"]), point["attack"]))
    if name == "budget" and CLEAN in records.attacks and all(x > 0 for line in series.values() for x, _ in line):
        series = {label: [(0.0, CLEAN), *line] for label, line in series.items()}
    title, note, axis = _CURVES.get(name, (f"Accuracy over {name}", "", name))
    axis = f"budget ({norm_text(audit.threat)})" if name == "budget" else axis
    several = len(series) > 1
    kinds = KINDS if is_random(records) and not several else ("single",)
    data, rows = [], []
    for label, line in series.items():
        scores = {kind: [records.score(attack, kind) for _, attack in line] for kind in kinds}
        for kind in kinds:
            style = _STYLES[len(data) % len(_STYLES)]
            data.append(_line(line, scores[kind], label if several else MEANING[kind], style))
        for i, (x, attack) in enumerate(line):
            rows.append([number(x), *([label] if several else []), attack, *[scores[kind][i] for kind in kinds]])
    if name == "budget":
        data += landmarks(audit)
    xs = [x for line in series.values() for x, _ in line]
    layout = {
        "xaxis": _axis(plotly_text(axis), xs),
        "yaxis": {"title": {"text": "accuracy"}, "range": [-0.03, 1.03], "tickformat": ".0%", "dtick": 0.25},
    }
    columns = [axis, *(["series"] if several else []), "attack", *kinds]
    return Figure(f"curve-{_slug(name)}", title, note, data, layout, columns, rows, wide=name == "budget")


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


def _line(points: list[tuple[float, str]], estimates: list[Estimate], name: str, style: tuple) -> dict:
    colour, symbol, dash = style
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": plotly_text(name),
        "x": [x for x, _ in points],
        "y": [e.value for e in estimates],
        "error_y": _errors(estimates),
        "marker": {"symbol": symbol, "size": 9},
        "line": {"dash": dash, "width": 2},
        "text": [plotly_text(f"{attack}: {e}") for (_, attack), e in zip(points, estimates, strict=True)],
        "hovertemplate": "%{text}<extra></extra>",
        "meta": {"colour": colour},
    }


def landmarks(audit: Audit) -> list[dict]:
    """The two numbers of the headline, placed on the budget plot."""
    marks = [("lowest accuracy found", audit.found, audit.threat, "found", "diamond")]
    own = audit.records.attacks.get(audit.claim_attack)
    claimed = None if own is None else own.threat
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
            "text": [plotly_text(f"{name}, {threat_text(threat)}: {estimate}")],
            "hovertemplate": "%{text}<extra></extra>",
            "meta": {"colour": colour},
        }
        for name, estimate, threat, colour, symbol in marks
    ]


def plotly_text(text: str) -> str:
    """Plotly reads a few tags and entities in text; user-supplied names must stay as they are."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def probes(measured: dict) -> tuple[list[Figure], dict]:
    """The gradient's health, a histogram for every probe that is a list of numbers, and the other probes."""
    figures, rest = [], dict(measured)
    health = _health(measured)
    if health is not None:
        figures.append(health)
        rest.pop("gradient", None)
    for name, value in measured.items():
        values = _numbers(value)
        if values is not None:
            figures.append(_histogram(str(name), values))
            rest.pop(name, None)
    return figures, _rounded(rest)


def _rounded(value: Any) -> Any:
    """Floats to four digits, inside dictionaries too; the exact ones stand in audit.json."""
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) and math.isfinite(value) else value


_SHARES = {
    "zero_share": "gradients exactly zero",
    "zero_pixels": "pixels with zero gradient",
    "cosine_between_draws": "cosine between two draws",
}


def _health(measured: dict) -> Figure | None:
    """Bars from the audit's measurements of the gradient; None where there was none to measure."""
    gradient = measured.get("gradient")
    if not isinstance(gradient, dict):
        return None
    found = {label: float(gradient[key]) for key, label in _SHARES.items() if _is_number(gradient.get(key))}
    if not found:
        return None
    bars = {
        "type": "bar",
        "orientation": "h",
        "x": list(found.values()),
        "y": list(found),
        "text": [number(value) for value in found.values()],
        "textposition": "outside",
        "cliponaxis": False,
        "hovertemplate": "%{y}: %{x:.3g}<extra></extra>",
        "meta": {"colour": "single"},
        "width": 0.5,
    }
    layout = {
        "xaxis": {"range": [min(-0.03, *found.values()), 1.08], "dtick": 0.25},
        "yaxis": {"autorange": "reversed", "ticksuffix": "  "},
        "height": 230,
    }
    rows = [[label, number(value)] for label, value in found.items()]
    rows += [[k.replace("_", " "), number(v)] for k, v in gradient.items() if _is_number(v) and k not in _SHARES]
    note = (
        "A gradient that is zero, or that points elsewhere at every draw (cosine near 0), cannot lead an attack; "
        "accuracy under such an attack says little."
    )
    return Figure("probe-gradient", "Health of the gradient", note, [bars], layout, ["measured", "value"], rows)


def _is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and bool(np.isfinite(value))


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
    layout = {"xaxis": {"title": {"text": plotly_text(label)}}, "yaxis": {"title": {"text": "count"}}}
    levels = (0, 5, 25, 50, 75, 95, 100)
    rows = [[f"{level} %", number(float(np.percentile(values, level)))] for level in levels]
    rows.append(["exactly zero", f"{int((values == 0).sum())} of {len(values)}"])
    note = f"{len(values)} values; median {number(float(np.median(values)))}."
    return Figure(f"probe-list-{_slug(name)}", label, note, [bars], layout, ["percentile", label], rows)


def plot_document(figures: list[Figure]) -> list[dict]:
    """What the page's script needs, as JSON-able data."""
    return [{"id": f.id, "data": f.data, "layout": f.layout} for f in figures]
