"""The report says what the records say, escapes what it is given and reaches for nothing outside its file."""

import json
import re
from itertools import pairwise

import pytest

import report_page
from report_example import COMMAND, EPS, example
from report_page import Page
from stochade.audit.findings import Finding
from stochade.audit.result import Audit
from stochade.evaluate.records import Records
from stochade.report import build
from stochade.report.figures import curves, probes
from stochade.report.html import asset
from stochade.report.rows import (
    interval_text,
    members_of,
    percent,
)

audit, source, page = report_page.audit, report_page.source, report_page.page


def test_headline_shows_the_records_scores(audit, page):
    for estimate in (audit.records.score("clean"), audit.records.score("fgsm"), audit.found):
        assert f"{percent(estimate.value)} {interval_text(estimate)}" in page.text
    assert audit.found == audit.records.score("worst", threat={"norm": "linf", "eps": EPS})
    looks, leaves = percent(audit.claimed.value), percent(audit.found.value)
    halves = (
        rf"Looks {looks} \[.*?\] accurate under the authors’ attack \(fgsm, linf 0\.2\); ",
        f"the best attack found leaves {leaves}",
    )
    assert re.search("".join(halves), page.text)
    assert "Published claim as printed, no interval given 85.1 %" in page.text


def test_the_claim_card_stands_first_with_its_verdict_and_command(audit, page, tmp_path):
    card = audit.card
    assert page.text.index("Claim card: fgsm eps=0.2, linf 0.2") < page.text.index("Claimed and found")
    shown = [f"{percent(e.value)} {interval_text(e)}" for e in (card.replicated, card.found)]
    numbers = f"Published 85.1 % as printed Replicated here {shown[0]} Lowest found {shown[1]}"
    assert numbers in page.text
    for sentence in (card.title, *card.verdict, COMMAND):
        assert sentence in page.text
    quiet = Audit(audit.records, [], audit.threat, "fgsm")
    assert "Claim card" not in Page(build(quiet, tmp_path / "q.html").read_text()).text
    unprinted = Audit(audit.records, [], audit.threat, "fgsm", claimed_as="fgsm")
    assert "Published – no figure was given" in Page(build(unprinted, tmp_path / "u.html").read_text()).text


def test_suites_targets_and_the_search_log_are_shown(audit, page, source):
    assert "What the members of suites brought" in page.text
    for member in members_of(audit.records, "standard"):
        assert f"{member.name} {member.broken} {member.chosen}" in page.text
    reached = audit.records.reached("pgd to the runner-up")
    assert f"pgd to the runner-up target reached {percent(reached.value)} {interval_text(reached)}" in page.text
    log = source[source.index('<table class="log">') : source.index('id="probes"')]
    assert log.count("<tr>") + log.count('<tr class="kept">') == len(audit.search) + 1
    assert log.count('<tr class="kept">') == sum(line["kept"] for line in audit.search)
    assert "no gradient reaches the images" in log
    assert "40.0 points" not in log
    assert "30.0 points" in log  # from 90 % to 60 % in the first round


def test_every_attack_has_a_row_in_the_order_given(audit, source):
    accuracy = source[source.index('class="accuracy"') : source.index('id="curves"')]
    rows = re.findall(r'<tr[^>]*>\s*<th scope="row">([^<]+)(.*?)</tr>', accuracy, re.S)
    inside = audit.records.within(audit.threat)
    outside = [n for n in audit.records.attacks if n not in inside]
    assert [name for name, _ in rows] == [*inside, "worst per example", *outside]
    for name, cells in rows:
        name = "worst" if name == "worst per example" else name
        shown = re.findall(r'class="value">([^<]*)<', cells)
        scores = [audit.records.score(name, k, threat=audit.threat).value for k in ("single", "vote", "all")]
        assert [s.replace("\u00a0", " ") for s in shown] == [percent(s) for s in scores]


def test_why_is_told_by_the_masking_findings_and_never_promised_away(audit, page, tmp_path):
    assert (
        "Why they differ: One draw per gradient overstates accuracy by 28 points; "
        "The authors’ attack takes a single step." in page.text
    )
    quiet = Audit(audit.records, [], audit.threat, audit.claim_attack)
    text = Page(build(quiet, tmp_path / "q.html").read_text()).text
    assert "No sign of gradient masking was found by the checks that ran. This is not a proof" in text
    assert "Why they differ" not in text
    weak = Audit(audit.records, [Finding("c", "incomplete", "too few steps")], audit.threat, audit.claim_attack)
    text = Page(build(weak, tmp_path / "w.html").read_text()).text
    assert "Why they differ: too few steps. No sign" in text
    assert "One finding says that the attacks were not strong" in text


def test_a_claim_that_nothing_undercuts_is_not_called_beaten(audit):
    from stochade.report.headline import headline

    weaker = Audit(audit.records, [], {"norm": "linf", "eps": 0.05}, "square")
    assert "no attack tried here found less" in headline(weaker.records, weaker).statement


@pytest.mark.parametrize("word", ["passed", "safe", "safely", "robust", "robustness", "secure", "verified"])
def test_no_word_promises_anything(page, word):
    assert not re.search(rf"\b{word}\b", page.text, re.I)


def test_nothing_reaches_outside(source, page):
    for _, attributes in page.elements:
        for name in ("src", "href", "action", "data", "poster", "srcset", "formaction", "style"):
            value = attributes.get(name) or ""
            assert not re.search(r"//|http|ftp|file:", value.replace("image/png;base64,", "")[:60]), (
                name,
                value[:90],
            )
    ours = asset("page.css") + asset("page.js") + asset("page.html")
    assert not re.search(r"https?:|\bfetch\(|XMLHttpRequest|@import|import\(|\burl\(|sendBeacon|WebSocket", ours)
    policy = next(a["content"] for t, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy
    assert "form-action 'none'" in policy
    assert "unsafe-inline' " not in policy.split("style-src")[0]
    assert "http" not in policy
    assert "showSendToCloud: false" in page.scripts[-1]  # plotly offers to upload charts unless told not to
    assert sum("plotly.js v" in s for s in page.scripts) == 1


EVIL = "<script>alert(1)</script>\"'></title></style>&amp;{{7*7}}%{x}"


def test_everything_given_is_escaped(tmp_path):
    audit = example()
    records = audit.records
    attacks = {(EVIL if n == "square" else n): r for n, r in records.attacks.items()}
    attacks[EVIL].info = {"attack": EVIL, "threat": {"norm": "linf", "eps": EPS}, "label": EVIL, "members": [EVIL]}
    meta = {EVIL: {EVIL: [EVIL, {"type": EVIL, EVIL: 1}]}, "command": EVIL, "data": EVIL, "classes": [EVIL] * 10}
    evil = Audit(
        Records(records.ids, records.labels, attacks, meta),
        [Finding(EVIL, "masking", EVIL, {EVIL: EVIL}, EVIL, EVIL)],
        audit.threat,
        EVIL,
        curves={"steps": [{"x": 1, "attack": EVIL, "series": EVIL}], EVIL: [{"x": 1, "attack": EVIL}]},
        probes={EVIL: list(range(9)), "p": EVIL, "gradient": {"zero_share": 0.5, EVIL: EVIL}},
        claimed_as=EVIL,
        command=EVIL,
        search=[{"attack": EVIL, "parts": EVIL, "rung": 0, "examples": 8, "passes": 1.0, "accuracy": 0.5},
                {"attack": EVIL, "note": EVIL}],
    )  # fmt: skip
    source = build(evil, tmp_path / "e.html", title=EVIL).read_text()
    clean = Page(build(audit, tmp_path / "c.html").read_text())
    page = Page(source)
    assert "alert(1)</script>" not in source
    assert len(page.scripts) == len(clean.scripts) == 3
    assert EVIL in "".join(page.words)  # it is shown, as text
    document = json.loads(page.scripts[0])
    hovers = [text for plot in document for trace in plot["data"] for text in trace["text"]]
    assert any("&lt;script&gt;" in hover for hover in hovers)
    assert not any("<" in hover for hover in hovers)
    assert all(re.fullmatch(r"[\w-]+", a["id"]) for _, a in page.elements if a.get("id"))


def test_ids_are_unique_and_labels_resolve(page):
    ids = [a["id"] for _, a in page.elements if a.get("id")]
    assert len(ids) == len(set(ids))
    for _, attributes in page.elements:
        assert set((attributes.get("aria-labelledby") or "").split()) <= set(ids)
        if (attributes.get("href") or "").startswith("#"):
            assert attributes["href"][1:] in ids
    images = [a for t, a in page.elements if t == "img"]
    assert images
    assert all(a["alt"] for a in images)
    levels = [int(t[1]) for t, _ in page.elements if re.fullmatch("h[1-6]", t)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in pairwise(levels))


def test_plots_hold_the_scores_and_are_valid_plotly(audit):
    import plotly.graph_objects as go

    figures = {f.id: f for f in curves(audit)}
    assert set(figures) == {"curve-budget", "curve-steps", "curve-draws"}
    steps = figures["curve-steps"]
    single = steps.data[0]
    for x, y, up, down in zip(
        single["x"], single["y"], single["error_y"]["array"], single["error_y"]["arrayminus"], strict=True
    ):
        estimate = audit.records.score(f"pgd-steps-{int(x)}")
        assert (y, pytest.approx(y + up), pytest.approx(y - down)) == (estimate.value, estimate.high, estimate.low)
    assert [row[0] for row in steps.rows] == ["1", "5", "20", "100"]
    assert steps.rows[0][2:] == [audit.records.score("pgd-steps-1", k) for k in ("single", "vote", "all")]
    budget = figures["curve-budget"]
    assert budget.data[0]["x"][0] == 0
    assert budget.data[0]["y"][0] == audit.clean.value
    named = {trace["name"]: trace["y"] for trace in budget.data}
    assert named["lowest accuracy found"] == [audit.found.value]
    assert named["authors’ attack"] == [audit.claimed.value]
    for figure in [*figures.values(), *probes(audit.probes)[0]]:
        go.Figure({"data": figure.data, "layout": figure.layout})  # raises on an unknown property


def test_two_series_become_two_lines(audit):
    points = [{"x": 1, "attack": "fgsm", "series": "a"}, {"x": 2, "attack": "square", "series": "b"}]
    figure = curves(Audit(audit.records, [], audit.threat, "fgsm", curves={"steps": points}))[0]
    assert [(t["name"], t["x"]) for t in figure.data] == [("a", [1.0]), ("b", [2.0])]
    assert figure.rows[1][:3] == ["2", "b", "square"]
    gone = curves(Audit(audit.records, [], audit.threat, "fgsm", curves={"steps": [{"x": 1, "attack": "none"}]}))
    assert gone == []


def test_a_deterministic_model_has_one_line_and_is_told_so(tmp_path):
    audit = example(random=False)
    assert [len(f.data) for f in curves(audit)] == [3, 1, 1]  # the budget has its two landmarks besides
    assert "No prediction differed between draws" in Page(build(audit, tmp_path / "d.html").read_text()).text


def test_gradient_health_shows_what_was_measured():
    measured = {"gradient": {"zero_share": 0.25, "cosine_between_draws": None, "norm_max": 3.0}, "random": True}
    figures, rest = probes(measured)
    assert figures[0].data[0]["x"] == [0.25]
    assert ["norm max", "3"] in figures[0].rows
    assert rest == {"random": True}
    missing = {"gradient": {"available": False, "reason": "argmax"}}
    assert probes(missing) == ([], missing)
