"""Parts of the page: images, provenance, numbers, the terminal summary, contrast."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

import report_page
from report_example import COMMAND, EPS, example
from report_page import Page
from stochade.audit.findings import Finding
from stochade.audit.result import Audit
from stochade.errors import RecordsError
from stochade.evaluate.records import Records
from stochade.report import build, summary
from stochade.report.html import asset, jsonable
from stochade.report.pictures import gallery, png
from stochade.report.rows import (
    budget_text,
    composition,
    number,
    passes,
    percent,
    threat_text,
)

audit, source, page = report_page.audit, report_page.source, report_page.page


def _pixels(uri: str | None) -> np.ndarray:
    assert uri is not None
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))


def test_images_are_the_kept_ones(audit):
    shown = gallery(audit.records, audit.threat)
    assert [p.row for p in shown.pictures] == list(range(8))
    labels, factor = audit.records.labels, shown.factor
    assert factor == 2  # 0.2 fits twice into half the range
    for p in shown.pictures:
        means = {
            n: (audit.records.attacks[n].selection[p.row] == labels[p.row]).mean()
            for n in audit.records.within(audit.threat)
            if n != "clean"
        }
        assert means[p.attack] == min(means.values())
        clean = audit.records.attacks["clean"].images[p.row]
        moved = audit.records.attacks[p.attack].images[p.row]
        assert (_pixels(p.clean) == np.round(clean[0] * 255)).all()
        wanted = np.clip(0.5 + factor * (moved - clean), 0, 1)[0] * 255
        assert np.abs(_pixels(p.difference).astype(float) - wanted).max() <= 0.51
        scored = audit.records.attacks[p.attack].predictions[p.row]
        assert p.after.right == (scored == labels[p.row]).mean()
        assert (scored == int(p.after.prediction)).sum() == np.bincount(scored).max()


def test_odd_shapes_still_make_images():
    assert _pixels(png(np.ones((3, 4, 5)))).shape == (4, 5, 3)
    assert _pixels(png(np.ones((7, 2, 4, 5)))).shape == (4, 5)
    assert _pixels(png(np.array([[[-1.0, 0.5, 2.0, np.nan]]]))).tolist() == [[0, 128, 255, 0]]


def test_bare_records_have_no_findings_and_no_claim(audit, tmp_path):
    path = build(audit.records, tmp_path)
    assert path == tmp_path / "report.html"
    text = Page(path.read_text()).text
    assert "no check for gradient masking ran" in text
    for word in ("Looks", "Claim", "Adaptive search"):
        assert word not in text
    assert "Successes over queries" in text
    alone = Records(audit.records.ids, audit.records.labels, {"clean": audit.records.attacks["clean"]}, {})
    assert build(alone, tmp_path / "alone").stat().st_size < 500_000  # no plot, so no plotly
    assert percent(audit.records.score("worst", threat={"norm": "linf", "eps": EPS}).value) in text


def test_provenance_is_shown_whole_and_the_command_can_be_copied(page):
    assert page.text.count(COMMAND) == 2, "on the card and with the provenance"
    assert "12000" not in page.text[page.text.index("Provenance", 400) :], "seconds are in the plots"
    for fact in (
        "1234567890123",
        "2.13.0",
        "1212970abc",
        "CIFAR-10 (JPEG)",
        "something new",
        "PGD(steps=5, draws=1)",
    ):
        assert fact in page.text


def test_a_runs_own_meta_is_lifted_to_the_top(tmp_path):
    audit = example()
    audit.records.meta = {
        "model": {"sha256": "ab12", "class": "Net"},
        "about": {"model": "gates-big", "data": {"name": "CIFAR-10 (JPEG)"}},
        "provenance": {"date": "2026-01-02", "command": "stochade audit gates-big", "git_revision": "1212970"},
        "parts": {"fgsm": {}},
    }
    audit.records.attacks["fgsm"].info["attack"] = {
        "type": "Descent", "threat": {"type": "Linf", "eps": 0.2}, "objective": "stochade.attacks.objectives.margin"
    }  # fmt: skip
    audit.command = ""  # an audit from before there was one
    text = Page(build(audit, tmp_path / "m.html").read_text()).text
    assert "Audit of gates-big" in text
    assert "2026-01-02" in text
    assert "stochade audit gates-big" in text
    assert "Descent(threat=Linf(eps=0.2), objective=margin)" in text
    assert "ab12" in text


@pytest.mark.parametrize("bad", [None, "folder", Records(np.zeros(0), np.zeros(0), {}, {})])
def test_what_is_not_records_is_refused_before_writing(bad, tmp_path):
    for write in (lambda: build(bad, tmp_path / "x.html"), lambda: summary(bad)):
        with pytest.raises(RecordsError):
            write()
    assert not list(tmp_path.iterdir())


def test_an_unknown_claim_is_refused_and_the_old_report_stays(audit, tmp_path):
    (tmp_path / "a.html").write_text("old")
    with pytest.raises(RecordsError, match="fgsm"):
        build(Audit(audit.records, [], audit.threat, "fgsn"), tmp_path / "a.html")
    assert (tmp_path / "a.html").read_text() == "old"


def test_same_records_same_bytes(audit, source, tmp_path):
    assert build(audit, tmp_path / "b.html").read_text() == source


def test_summary_names_the_numbers_and_the_report(audit):
    text = summary(audit, "out/report.html")
    for estimate in (audit.clean, audit.claimed, audit.found):
        assert str(estimate) in text
    assert text.splitlines()[-1] == "Report: out/report.html"
    assert "2 masking, 1 incomplete, 1 notice" in text
    assert len(text.splitlines()) <= 24
    card = audit.card
    for sentence in (f"the claim{card.title[9:]}.", *card.verdict, f"Repeat: {COMMAND}"):
        assert sentence in text
    assert "Claim" not in summary(Audit(audit.records, [], audit.threat, "fgsm"))
    colour = Audit(audit.records, [Finding("c", "masking", "\x1b[31mred\rgone")], audit.threat, "fgsm")
    assert "\x1b" not in summary(colour)
    assert "\r" not in summary(colour)


def test_numbers_are_written_plainly():
    assert [budget_text(e) for e in (0.2, 8 / 255, 0.3, 1 / 255, 12, 0.0314)] == [
        "0.2", "8/255", "0.3", "1/255", "12", "0.0314"
    ]  # fmt: skip
    assert threat_text({"norm": "l0", "eps": 12.0, "per": "pixel"}) == "l0 12 per pixel"
    assert [number(v) for v in (None, float("nan"), True, 3, 0.123456, 12345.6, float("inf"))] == [
        "–", "–", "yes", "3", "0.1235", "12346", "∞"
    ]  # fmt: skip
    assert [passes(v) for v in (None, 0.0, 2.5, 58.74, 800.0)] == ["–", "0", "2.5", "59", "800"]
    assert percent(None) == "–"
    assert jsonable({"a": [np.float32("nan"), np.int64(2), np.inf]}) == {"a": [None, 2, None]}


def _row(source: str, name: str) -> str:
    return next(re.finditer(rf'<th scope="row">{name}.*?</tr>', source, re.S))[0]


def test_unknown_is_a_dash_never_zero(tmp_path):
    audit = example()
    audit.records.attacks["square"].distance = np.full(60, np.nan, np.float32)
    audit.records.attacks["fgsm"].distance = np.full(60, np.inf, np.float32)
    source = build(audit, tmp_path / "u.html").read_text()
    assert re.findall(r"<td[^>]*>([^<]*)<?/?", _row(source, "square"))[4] == "–"
    assert "60 failed" in _row(source, "fgsm")


def test_composition_adds_up(audit):
    shares = composition(audit.records, audit.threat)
    assert sum(share for _, share in shares) == pytest.approx(1)
    assert shares == sorted(shares, key=lambda s: -s[1])


def _tones(block: str) -> dict[str, str]:
    return dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block))


def _contrast(first: str, second: str) -> float:
    """WCAG 2.2 contrast ratio of two colours."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))

    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_meets_aa_in_light_and_dark():
    light, dark = [_tones(b) for b in re.findall(r":root[^{]*\{(.*?)\}", asset("page.css"), re.S)[:2]]
    assert set(light) == set(dark)
    for tones in (light, dark):
        named = ("ink", "quiet", "clean", "published", "claimed", "found", "single", "vote", "all", "focus")
        for name in (*named, *(f"line-{i}" for i in range(1, 9))):
            assert _contrast(tones[name], tones["paper"]) >= 4.5, name
            assert _contrast(tones[name], tones["raised"]) >= 4.5, name
        for name in ("mask", "inc", "note"):
            assert _contrast(tones[f"{name}-ink"], tones[f"{name}-bg"]) >= 4.5, name
