"""What a reproduction says about the reasons for a claim that is too high."""

import json

import pytest

from stochade.errors import RecordsError
from stochade.evaluate.intervals import Estimate
from stochade.recipes.claims import markdown
from stochade.recipes.tables import _figure, _told, reasons_of
from stochade.report.document import Strip
from stochade.report.figures import Figure


def finding(check: str, severity: str, title: str) -> dict:
    return {"check": check, "severity": severity, "title": title, "evidence": {}, "next_step": "", "source": ""}


STOPPED = finding("stronger-with-own-gradient", "incomplete", "not converged by 8.7 points")
HIDDEN = finding("substituted-backward-wins", "masking", "the backward hides the way")


def test_what_hides_the_way_comes_before_attacks_that_stopped_early():
    assert reasons_of([finding("random", "notice", "random"), STOPPED, HIDDEN]) == [HIDDEN["title"], STOPPED["title"]]


def test_a_check_that_speaks_for_every_seed_is_told_once_and_in_the_words_of_the_first():
    again = finding("stronger-with-own-gradient", "incomplete", "not converged by 9.1 points")
    assert reasons_of([STOPPED, again]) == [STOPPED["title"]]


def test_a_check_that_is_grave_for_one_seed_only_comes_first_all_the_same():
    mild = finding("zero-gradient", "incomplete", "seed 0")
    assert reasons_of([mild, STOPPED, finding("zero-gradient", "masking", "seed 1")]) == ["seed 1", STOPPED["title"]]


def test_the_page_of_claims_takes_the_reasons_from_the_findings_of_the_audits(tmp_path):
    score = {
        "value": 0.5, "low": 0.4, "high": 0.6, "examples": 100, "draws": 10, "target": "population", "kind": "single"
    }  # fmt: skip
    row = {
        "network": "net", "published": None, "claimed": score, "adaptive": score, "scores": [],
        "audits": [{"findings": [STOPPED, HIDDEN]}],
    }  # fmt: skip
    document = {
        "title": "A table", "paper": "kubo2019", "place": "table 1", "claim": "It holds.", "scale": "small",
        "data": "MNIST", "audit": {"attack": "fgsm", "norm": "linf", "budget": 0.3}, "budgets_times": 1.0,
        "rows": [row], "meta": {"train": 1, "test": 2, "seeds": 1, "command": "stochade reproduce it"},
    }  # fmt: skip
    with pytest.raises(RecordsError, match="results of recipes"):
        markdown(tmp_path)
    (tmp_path / "it").mkdir()
    (tmp_path / "it" / "result.json").write_text(json.dumps(document))
    line = next(line for line in markdown(tmp_path).splitlines() if line.startswith("| net |"))
    assert f"{HIDDEN['title']}; {STOPPED['title']}" in line
    assert "../results/recipes/it/table.md" in markdown(tmp_path)
    assert "robustness" not in markdown(tmp_path)
    (tmp_path / "it" / "result.json").write_text(json.dumps(document | {"audit": None}))
    assert "A table (kubo2019, table 1): It holds. [What was found]" in markdown(tmp_path)


def test_figures_leave_their_numbers_and_pictures_their_captions():
    estimate = Estimate(0.5, 0.4, 0.6, 100, 10, "population", "single")
    figure = Figure("f", "A figure", "How to read it.", [], {}, ["net", "value"], [["a|b", estimate], ["c", "1.2"]])
    strip = Strip("Pictures", [("data:image/png;base64,AAAA", "a seven"), ("data:image/png;base64,BBBB", "a nine")])
    told = [_figure(figure), _figure(strip)]
    assert json.loads(json.dumps(told))[0]["rows"][0][1]["value"] == 0.5
    assert told[1]["captions"] == ["a seven", "a nine"]
    text = "\n".join([*_told(figure), *_told(strip)])
    assert "| a\\|b | 50.0 [40.0, 60.0] |" in text
    assert "a seven; a nine" in text
    assert "AAAA" not in json.dumps(told)
    assert "without numbers" in "\n".join(_told(Figure("g", "Empty", "", [], {}, [])))
