"""The page and the files of a study."""

from pathlib import Path

import numpy as np

from stochade.describe import describe, provenance
from stochade.detect.roc import Curve, detected_at
from stochade.detect.study import Study
from stochade.evaluate.store import write_json
from stochade.report.document import Document, Table
from stochade.report.figures import Figure, plotly_text
from stochade.report.rows import number, threat_text

COLUMNS = ["attack", "wrong", "detected", "corrected", "wrong and undetected", "area under the curve"]
RATES = (0.01, 0.02, 0.05, 0.1, 0.2)
POINTS = 400  # of a curve in the page
STYLES = (("single", "solid"), ("vote", "dash"), ("all", "dot"), ("published", "dashdot"))


def rows_of(s: Study) -> list[list[str]]:
    """The table of attacks, a row each, under `COLUMNS`."""
    return [
        [name, str(r.wrong), str(r.detected), str(r.corrected), str(r.through),
         "unknown" if r.curve is None else f"{r.curve.area:.3f}"]
        for name, r in s.attacks.items()
    ]  # fmt: skip


def clean_rows(s: Study) -> list[list[str]]:
    """What the detector does to clean images."""
    mean, low, high = s.detector.calibration.nominal()
    return [
        ["accuracy", str(s.accuracy)],
        ["false positives, measured", str(s.false)],
        ["false positives, by calibration", f"{100 * mean:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"],
        ["accuracy after correction", str(s.kept)],
    ]


def document(s: Study, facts: dict) -> dict:
    """The result as plain values."""
    c = s.detector.calibration
    return {
        **facts,
        "threat": describe(s.threat),
        "detector": {"noises": [str(n) for n in c.noises], "draws": c.draws, "rate": c.rate, "threshold": c.threshold,
                     "held-out images": len(c.held), "seed": s.detector.seed},
        "clean": {"accuracy": s.accuracy.as_dict(), "false positives": s.false.as_dict(),
                  "by calibration": list(c.nominal()), "accuracy after correction": s.kept.as_dict()},
        "attacks": {
            name: {"wrong": r.wrong.as_dict(), "detected": r.detected.as_dict(), "corrected": r.corrected.as_dict(),
                   "wrong and undetected": r.through.as_dict(), "area": None if r.curve is None else r.curve.area}
            for name, r in s.attacks.items()
        },
    }  # fmt: skip


def save(s: Study, folder: str | Path, facts: dict, command: str = "") -> Path:
    """Write `result.json` and `page.html` into a folder; returns the page's path."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    source = provenance()
    write_json(folder / "result.json", document(s, facts) | {"provenance": source})
    return page(s, facts, source, command).write(folder / "page.html")


def page(s: Study, facts: dict, source: dict, command: str = "") -> Document:
    """The study as a page."""
    c = s.detector.calibration
    where = threat_text(s.threat)
    noises = ", ".join(str(n) for n in c.noises)
    return Document(
        title="The odds are odd: detection, and what is left of it",
        eyebrow="Roth, Kilcher, Hofmann 2019; Tramèr, Carlini, Brendel, Madry 2020",
        facts=[where, *(str(v) for v in facts.values()), f"{len(s.clean)} images", f"rate {c.rate:g}"],
        intro=[
            f"An image is flagged when noise ({noises}; {c.draws} draws each) moves its log-odds further than those "
            f"of clean images. The threshold rests on {len(c.held)} images held out for it.",
            "PGD does not know the detector. Logit matching gives an image the logits of a clean one of another "
            "class, with and without noise; the attack in the loop ascends the test's statistics themselves. All "
            "have the same budget. Noise of the test is drawn anew.",
            "Wrong, and wrong and undetected: shares of images that the model has right before the attack. Detected "
            "and corrected: shares of those that it has wrong after it. Intervals are exact binomial, 95 %.",
        ],
        tables=[Table("Attacks", COLUMNS, rows_of(s)), Table("Clean images", ["", "share"], clean_rows(s))],
        figures=_figures(s),
        command=command,
        provenance=source,
    )


def _figures(s: Study) -> list[Figure]:
    known = {name: r for name, r in s.attacks.items() if r.curve is not None}
    if not known:
        return []
    data = [_line(name, r.curve, style) for (name, r), style in zip(known.items(), STYLES, strict=False) if r.curve]
    data.append({"type": "scatter", "mode": "lines", "name": "chance", "x": [0, 1], "y": [0, 1], "hoverinfo": "skip",
                 "line": {"width": 1, "dash": "dot"}, "meta": {"colour": "published"}})  # fmt: skip
    share = {"range": [-0.02, 1.02], "tickformat": ".0%", "dtick": 0.25}
    layout = {
        "xaxis": share | {"title": {"text": "false positives among clean images"}},
        "yaxis": share | {"title": {"text": "detected among wrong predictions"}},
    }
    cells = [[f"{100 * rate:g} %", *(detected_at(s.clean, r.scores, rate) for r in known.values())] for rate in RATES]
    note = "Below the diagonal adversarial images look more like clean ones than clean ones do."
    columns = ["false positives", *known]
    return [Figure("roc", "Detection over false positives", note, data, layout, columns, cells, wide=True)]


def _line(name: str, c: Curve, style: tuple[str, str]) -> dict:
    keep = np.unique(np.linspace(0, len(c.false) - 1, min(len(c.false), POINTS)).round().astype(int))
    return {
        "type": "scatter",
        "mode": "lines",
        "name": plotly_text(f"{name} (area {number(c.area)})"),
        "x": c.false[keep].tolist(),
        "y": c.detected[keep].tolist(),
        "line": {"dash": style[1], "width": 2},
        "hovertemplate": "%{x:.1%} false, %{y:.1%} detected<extra></extra>",
        "meta": {"colour": style[0]},
    }
