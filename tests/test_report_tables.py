"""Tables for papers carry the records' own numbers, in three formats, several runs side by side."""

import csv
import io

import pytest

from report_example import EPS, attack, example, pictures
from stochade.errors import RecordsError
from stochade.evaluate.records import Records
from stochade.report import table

KINDS = ("single", "vote", "all")


@pytest.fixture(scope="module")
def audit():
    return example()


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split(" | ")]


def test_markdown_has_every_attack_with_its_intervals(audit):
    lines = table(audit).splitlines()
    assert _cells(lines[0]) == ["attack", "threat", *KINDS]
    names = [_cells(line)[0] for line in lines[2:]]
    assert names == [*audit.records.attacks, "worst"]
    for line in lines[2:]:
        name, _, *scores = _cells(line)
        assert scores == [str(audit.records.score(name, k, threat=audit.threat)) for k in KINDS]


def test_a_threat_keeps_what_lies_inside(audit):
    small = {"norm": "linf", "eps": 0.1}
    names = [_cells(line)[0] for line in table(audit.records, threat=small).splitlines()[2:]]
    assert names == ["clean", "pgd-budget-0.05", "pgd-budget-0.1", "worst"]


def test_bare_records_form_worst_per_shared_threat(audit):
    worst = [_cells(line) for line in table(audit.records).splitlines() if _cells(line)[0] == "worst"]
    assert [row[1] for row in worst] == [f"linf {EPS}"]  # the others have one attack each


def test_csv_has_value_low_and_high_apart(audit):
    rows = list(csv.DictReader(io.StringIO(table({"a": audit, "b": audit}, "csv", ("single", "all"), audit.threat))))
    assert [r["run"] for r in rows[:2]] == ["a", "b"]
    assert len(rows) == 2 * (len(audit.records.within(audit.threat)) + 1)
    for row in rows:
        estimate = audit.records.score(row["attack"], "all", threat=audit.threat)
        assert (float(row["all"]), float(row["all_low"]), float(row["all_high"])) == (
            estimate.value, estimate.low, estimate.high
        )  # fmt: skip
        assert "vote" not in row
        assert (row["examples"], row["draws"]) == ("60", "12")
    assert (rows[0]["norm"], rows[-1]["norm"], float(rows[-1]["eps"])) == ("", "linf", EPS)


def test_latex_is_booktabs_and_its_columns_add_up(audit):
    text = table([audit, example(random=False)], "latex", ("single", "vote"), audit.threat)
    for word in (r"\toprule", r"\midrule", r"\bottomrule", r"\cmidrule(lr){3-4} \cmidrule(lr){5-6}", r"{llrrrr}"):
        assert word in text
    assert "bernoulli-gates (2)" in text  # two runs of one name stay apart
    body = [line for line in text.splitlines() if line.endswith(r"\\") and "multicolumn" not in line]
    assert all(line.count(" & ") == 5 for line in body)
    found = audit.found
    assert f"{100 * found.value:.1f} {{\\scriptsize [{100 * found.low:.1f}, {100 * found.high:.1f}]}}" in body[-1]


NAME = r"a_b & 50% | #1 {x} \y ~^ $m$ <i>`z` [0"


def test_names_are_escaped(audit):
    import numpy as np

    labels = audit.records.labels
    odd = attack(np.random.default_rng(0), labels, pictures(), 0.5, {"norm": "my_norm", "eps": 1.0})
    records = Records(audit.records.ids, labels, {"clean": audit.records.attacks["clean"], NAME: odd}, {"name": NAME})
    latex = table([records, audit], "latex", "single")
    escaped = (
        r"a\_b \& 50\% \textbar{} \#1 \{x\} \textbackslash{}y \textasciitilde{}\textasciicircum{} "
        r"\$m\$ \textless{}i\textgreater{}`z` {[}0"
    )
    assert escaped in latex
    assert NAME not in latex
    markdown = table(records, "markdown", ("single",)).splitlines()
    assert len(_cells(markdown[-1])) == 3
    assert r"a\_b & 50% \| #1 {x} \\y" in markdown[-1]
    assert list(csv.reader(io.StringIO(table(records, "csv"))))[2][:2] == [NAME, NAME]


def test_a_missing_attack_is_a_dash(audit):
    few = Records(
        audit.records.ids,
        audit.records.labels,
        {n: audit.records.attacks[n] for n in ("clean", "fgsm")},
        {"name": "few"},
    )
    lines = table([audit, few], kinds=("single",)).splitlines()
    row = next(_cells(line) for line in lines if line.startswith("| square"))
    assert row[2] == str(audit.records.score("square"))
    assert row[3] == "–"


@pytest.mark.parametrize(("options", "word"), [
    ({"fmt": "html"}, "fmt"), ({"kinds": ("double",)}, "kinds"), ({"kinds": ()}, "kinds"),
])  # fmt: skip
def test_unknown_options_are_refused(audit, options, word):
    with pytest.raises(RecordsError, match=word):
        table(audit, **options)


@pytest.mark.parametrize("runs", [[], ["folder"], {"a": None}])
def test_what_is_no_run_is_refused(runs):
    with pytest.raises(RecordsError):
        table(runs)
