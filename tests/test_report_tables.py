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
    lines = [line for line in table(audit).splitlines() if line.startswith("|")]
    assert _cells(lines[0]) == ["attack", "threat", *KINDS, "target reached"]
    names = [_cells(line)[0] for line in lines[2:]]
    assert names == ["published: fgsm eps=0.2", *audit.records.attacks, "worst"]
    assert _cells(lines[2])[1:] == ["linf 0.2", "85.1 %", "–", "–", "–"]
    for line in lines[3:]:
        name, _, *scores, reached = _cells(line)
        assert scores == [str(audit.records.score(name, k, threat=audit.threat)) for k in KINDS]
        assert reached == (str(audit.records.reached(name)) if name == "pgd to the runner-up" else "–")


def test_verdicts_and_members_stand_below_the_table(audit):
    below = [line for line in table(audit).splitlines() if line and not line.startswith("|")]
    assert below[0].startswith("standard, examples broken by each member: no attack: 15; apgd-ce: ")
    assert below[1:] == [f"{audit.card.title}.", *audit.card.verdict]
    assert table(audit.records).splitlines()[-1].startswith("standard, examples broken")
    comments = [line for line in table([audit, audit], "latex").splitlines() if line.startswith("%")]
    assert comments[2] == f"% bernoulli-gates: {audit.card.title}."
    rows = list(csv.DictReader(io.StringIO(table(audit, "csv"))))
    told = {row["attack"]: row["broken_by_member"] for row in rows}
    assert told["standard"].startswith("no attack=15; apgd-ce=")
    assert told["fgsm"] == ""
    plain = Records(audit.records.ids, audit.records.labels, {"clean": audit.records.attacks["clean"]}, {})
    assert "broken" not in table(plain, "csv")
    assert "reached" not in table(plain)


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
    assert len(rows) == 2 * (len(audit.records.within(audit.threat)) + 2)
    assert (rows[0]["attack"], float(rows[0]["single"]), rows[0]["single_low"]) == (
        "published: fgsm eps=0.2",
        0.851,
        "",
    )
    for row in rows[2:]:
        estimate = audit.records.score(row["attack"], "all", threat=audit.threat)
        assert (float(row["all"]), float(row["all_low"]), float(row["all_high"])) == (
            estimate.value, estimate.low, estimate.high
        )  # fmt: skip
        assert "vote" not in row
        assert (row["examples"], row["draws"]) == ("60", "12")
    assert (rows[2]["norm"], rows[-1]["norm"], float(rows[-1]["eps"])) == ("", "linf", EPS)
    reached = audit.records.reached("pgd to the runner-up")
    row = next(row for row in rows if row["attack"] == "pgd to the runner-up")
    assert (float(row["target_reached"]), float(row["target_reached_low"])) == (reached.value, reached.low)


def test_latex_is_booktabs_and_its_columns_add_up(audit):
    text = table([audit, example(random=False)], "latex", ("single", "vote"), audit.threat)
    for word in (r"\toprule", r"\midrule", r"\bottomrule", r"\cmidrule(lr){3-5} \cmidrule(lr){6-8}", r"{llrrrrrr}"):
        assert word in text
    assert "bernoulli-gates (2)" in text  # two runs of one name stay apart
    body = [line for line in text.splitlines() if line.endswith(r"\\") and "multicolumn" not in line]
    assert all(line.count(" & ") == 7 for line in body)
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
