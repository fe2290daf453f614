"""Threats on codes in records and tables: alphabet and budget in words, containment, runs that do not say it."""

import csv
import io
import json

import pytest
import torch

from coded import Curved, images
from stochade import Linf, evaluate
from stochade.attacks import L0, SEA, FixedFlips, Flips, ObliviousSEA, Targeted
from stochade.errors import ThreatError
from stochade.evaluate import Records
from stochade.evaluate import run as running
from stochade.evaluate.records import _inside, threat_info, threat_words
from stochade.evaluate.store import read_unit
from stochade.models import Encoded
from stochade.nn import SignedRate
from stochade.report import table
from stochade.report.rows import threat_text

THREATS = [
    made(k, letters, per)
    for made in (Flips, FixedFlips)
    for k in (2, 3)
    for letters in ("binary", "signed")
    for per in ("frame", "total")
]


def test_threats_are_written_in_words():
    """As they call themselves, so that tables and labels agree."""
    for threat in THREATS:
        assert threat_text(threat_info(threat)) == threat_words(threat_info(threat)) == str(threat)
    assert len({str(t) for t in THREATS}) == len(THREATS)
    assert str(FixedFlips(3, "signed", "total")) == "fixed signed flips 3 in total"
    assert [threat_words(t) for t in (Linf(0.3), L0(2), None)] == ["linf 0.3", "l0 2", ""]


def test_containment_follows_the_threats_own():
    """Among flips, and among fixed flips, as `Flips.contains`; fixed flips lie inside flips, never the other way."""
    for outer in THREATS:
        for inner in THREATS:
            told = _inside(threat_info(inner), threat_info(outer))
            if type(inner) is type(outer):
                assert told == outer.contains(inner)
            elif type(inner) is FixedFlips:
                assert told == outer.contains(inner.bound)
            else:
                assert not told
    assert not _inside(threat_info(Flips(1)), threat_info(L0(3)))
    assert not _inside(threat_info(L0(1)), threat_info(Flips(3)))


def run(out, attacks):
    model, x = Encoded(SignedRate(2, 0.45), Curved(16)), images(5)
    return evaluate(model, x, torch.arange(5) % 3, attacks, 2, chunk=3, out=out, show_progress=False)


ATTACKS = {
    "sea": SEA(Flips(2, "signed")),
    "total": SEA(Flips(2, "signed", "total")),
    "pulled": Targeted(SEA(Flips(2, "signed"), 2), "runner-up"),
    "fixed": ObliviousSEA(FixedFlips(2, "signed"), 1, 2),
}


def test_records_say_the_alphabet_also_when_read_back(tmp_path):
    records = run(tmp_path / "run", ATTACKS)
    for some in (records, Records.load(tmp_path / "run")):
        told = {n: r.threat for n, r in some.attacks.items() if r.threat is not None}
        assert told == {n: threat_info(a.threat) for n, a in ATTACKS.items()}
        assert {t["alphabet"] for t in told.values()} == {"signed"}
        assert some.within(Flips(2, "signed")) == ["clean", *ATTACKS]
        assert some.within(Flips(2, "signed", "total")) == ["clean", "total"]
        with pytest.raises(ThreatError, match="fixed signed flips 2 per frame, signed flips 2 in total, signed"):
            some.score("worst")
    text = table(records)
    assert "| total | signed flips 2 in total |" in text
    assert "| fixed | fixed signed flips 2 per frame |" in text
    assert "signed flips 2 in total" in table(records, "latex")
    rows = list(csv.DictReader(io.StringIO(table(records, "csv"))))
    assert {(r["norm"], r["per"], r["alphabet"]) for r in rows if r["attack"] == "total"} == {
        ("flips", "total", "signed")
    }


def test_runs_from_before_the_alphabet_are_taken_up(tmp_path, monkeypatch):
    """Neither digest nor units know of it, as when it was not told: nothing is done again."""
    run(tmp_path, ATTACKS)
    document = json.loads((tmp_path / "run.json").read_text())
    assert all("alphabet" not in part["threat"] for part in document["parts"].values())
    for path in (tmp_path / "records").rglob("*.parquet"):
        assert "alphabet" not in (read_unit(path)[3].info["threat"] or {})
    monkeypatch.setattr(running, "run_unit", lambda *_: pytest.fail("a finished unit was done again"))
    run(tmp_path, ATTACKS)
