"""The page of certificates: what is proven at every distance, and what attacks of that distance still leave."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from stochade.certify.bracket import upper_bounds
from stochade.certify.run import Certified
from stochade.evaluate import Estimate, Records
from stochade.evaluate.intervals import mean
from stochade.report.document import Document, Table
from stochade.report.figures import Figure
from stochade.report.rows import number

PER_GREY = {"linf", "l1"}  # norms in which one grey level of one pixel is 1/255


def page(found: Certified, records: Records | None, command: str, provenance: dict, unattacked: str = "") -> Document:
    """The document; `write(path)` makes the file. `records`: of the attacks on the vote, or None; `unattacked`: why
    the attacks that were asked for failed."""
    meta = found.meta
    alpha, norm, unit = meta["alpha"], meta["smoothing"]["norm"], meta["unit"]
    above = {} if records is None else upper_bounds(records, alpha, undecided=True)
    left = {} if records is None else upper_bounds(records, alpha)
    smoothing = ", ".join(f"{k} {v}" for k, v in meta["smoothing"].items() if k not in ("smoothing", "norm"))
    encodings = meta["about"].get("encodings", 1)
    several = f", {encodings} encodings one after the other" if encodings > 1 else ""
    in_grey = ["grey levels"] if norm in PER_GREY else []
    rows = [
        [number(r), *(grey(r) for _ in in_grey), str(found.accuracy(r)), str(left.get(r, "–")), _upper(above.get(r))]
        for r in distances(found, above)
    ]
    spent = found.draws()
    return Document(
        title="Certificates",
        eyebrow=f"{meta['about'].get('target', 'a model')} on {meta['about'].get('data', 'images')}",
        facts=[f"{len(found)} examples", f"{meta['smoothing']['smoothing']}: {smoothing}", f"norm {norm}, in {unit}",
               f"alpha {alpha:g} per example", f"{spent.mean():.0f} draws each",
               *(["decided sequentially"] if meta.get("radii") else [])],
        intro=[
            "Certified: the share of examples whose majority vote is proven to be right at that distance and nearer. "
            f"A certificate is wrong with probability at most {alpha:g}; intervals are 95 % over examples. "
            "Abstentions count as errors.",
            f"Not attacked: {unattacked}. Nothing here bounds the vote's accuracy from above." if unattacked else
            "Attacked: the vote's accuracy under attacks of that distance on the randomised classifier, an undecided "
            "vote counted as an error; its upper end counts undecided votes as right and takes the limit of the "
            "interval. The truth about the vote lies between the certified accuracy and that upper end.",
            *([f"One code of each image is certified and attacked{several}; distances count flips in all of it."]
              if meta["smoothing"]["smoothing"] == "FlipNoise" else []),
        ],
        tables=[
            Table(
                "Accuracy over distance",
                [f"distance, {norm}", *in_grey, "certified", "attacked", "upper end"],
                rows,
                f"Abstained without any distance: {found.abstained()}.",
            )
        ],
        figures=[_figure(found, left, above, norm, unit)],
        command=command,
        provenance=provenance,
    )  # fmt: skip


def _upper(estimate: Estimate | None) -> str:
    return "–" if estimate is None or estimate.high is None else f"{100 * estimate.high:.1f} %"


def distances(found: Certified, above: Mapping[float, Estimate]) -> list[float]:
    """0, those that were attacked or asked for, else quantiles of the certified radii."""
    if above or found.meta.get("radii"):
        return sorted({0.0, *above, *found.meta.get("radii", ())})
    radii = found.radii()
    positive = radii[np.isfinite(radii) & (radii > 0)]
    steps = [] if not positive.size else [float(f"{q:.2g}") for q in np.quantile(positive, [0.25, 0.5, 0.75, 0.95])]
    return sorted({0.0, *steps})


def grey(distance: float) -> str:
    """A distance in grey levels of 1/255, one decimal."""
    return f"{255 * distance:.1f}"


def _figure(found: Certified, left: Mapping, above: Mapping, norm: str, unit: str) -> Figure:
    radii = np.sort(found.radii())
    finite = radii[np.isfinite(radii)]
    ends = np.unique(np.concatenate([[0.0], finite]))
    shares = [float((radii > r).mean()) for r in ends]
    low = [mean((radii > r)[:, None]).low for r in ends]
    data = [
        {"type": "scatter", "mode": "lines", "name": "certified", "x": ends.tolist(), "y": shares,
         "line": {"shape": "hv", "width": 2}, "meta": {"colour": "single"}},
        {"type": "scatter", "mode": "lines", "name": "certified, lower limit", "x": ends.tolist(), "y": low,
         "line": {"shape": "hv", "width": 1, "dash": "dot"}, "meta": {"colour": "single"}},
    ]  # fmt: skip
    for name, bounds, colour, symbol in (
        ("attacked, undecided votes wrong", left, "found", "diamond"),
        ("attacked, undecided votes right", above, "all", "triangle-down"),
    ):
        if bounds:
            high = [None if e.high is None else e.high - (e.value or 0.0) for e in bounds.values()]
            down = [None if e.low is None else (e.value or 0.0) - e.low for e in bounds.values()]
            data.append(
                {"type": "scatter", "mode": "lines+markers", "name": name, "x": list(bounds),
                 "y": [e.value for e in bounds.values()], "marker": {"symbol": symbol, "size": 9},
                 "error_y": {"type": "data", "symmetric": False, "array": high, "arrayminus": down, "thickness": 1.5},
                 "line": {"dash": "dash", "width": 1.5}, "meta": {"colour": colour}}
            )  # fmt: skip
    layout = {
        "xaxis": {"title": {"text": f"distance ({norm}, {unit})"}, "rangemode": "tozero"},
        "yaxis": {"title": {"text": "accuracy"}, "range": [-0.03, 1.03], "tickformat": ".0%", "dtick": 0.25},
    }
    rows = [[number(r), found.accuracy(r), left.get(r, "–"), above.get(r, "–")] for r in distances(found, above)]
    return Figure(
        "bracket", "What is proven, and what attacks leave",
        "The truth lies between the step line and the upper points: proofs bound it from below, attacks from above.",
        data, layout, ["distance", "certified", "attacked", "attacked, undecided right"], rows, wide=True,
    )  # fmt: skip


def write(
    found: Certified, records: Records | None, out: str | Path, command: str, provenance: dict, unattacked: str = ""
) -> Path:
    """The page as one file."""
    return page(found, records, command, provenance, unattacked).write(out)
