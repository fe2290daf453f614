"""Plots of successes over passes and seconds, of smallest changes, and the search log, against hand-made records."""

import numpy as np
import plotly.graph_objects as go
import pytest

from report_example import attack, example, pictures
from stochade.audit.result import Audit
from stochade.evaluate.records import Records
from stochade.report.rows import members_of, members_text
from stochade.report.search import search_figure, search_steps
from stochade.report.successes import attacks_of, distances, success_curve, successes

LINF = {"norm": "linf", "eps": 0.2}


def hand_made(**attacks) -> Records:
    """Four examples of label 0 and two draws: clean images are missed by no draw but one of the last example."""
    rng, labels = np.random.default_rng(0), np.zeros(4, np.int64)

    def record(missed, found=0, total=0, **more):
        predictions = np.array(missed, np.int16)
        passes = np.full(4, total, np.int32)
        made = attack(rng, labels, pictures()[:4], 0.5, more.pop("threat", LINF), kept=0, **more)
        made.predictions = made.selection = predictions
        made.found_at, made.forwards, made.backwards = np.broadcast_to(found, 4).astype(np.int32), passes, 0 * passes
        return made

    table = {"clean": record([[0, 0], [0, 0], [0, 0], [0, 1]])} | {n: record(**a) for n, a in attacks.items()}
    table["clean"].info["threat"] = None
    return Records(np.arange(4), labels, table, {})


WON = [[1, 1], [1, 0], [0, 0], [1, 1]]  # misses of 1, 1/2, 0 and 1 where clean images miss 0, 0, 0 and 1/2


def test_a_success_counts_from_the_pass_that_found_it_and_by_its_miss_rate():
    curve = success_curve(hand_made(a={"missed": WON, "found": [5, 20, 7, 20], "total": 30}), "a")
    assert curve.start == 0.125
    assert curve.passes.tolist() == [5, 7, 20]
    assert curve.broken.tolist() == pytest.approx([0.125 + 0.25, 0.375, 0.375 + 0.125 + 0.125])
    assert [curve.at(p) for p in (1, 4.9, 5, 19, 20, 1e9)] == pytest.approx(
        [0.125, 0.125, 0.375, 0.375, 0.625, 0.625]
    )
    assert curve.broken[-1] == pytest.approx(1 - hand_made(a={"missed": WON}).score("a").value)


def test_the_staircase_starts_at_one_pass_and_ends_with_the_attack():
    figure = successes(hand_made(a={"missed": WON, "found": [5, 20, 7, 20], "total": 30}), None)[0]
    line = figure.data[0]
    assert line["x"] == [1, 5, 7, 20, 30]
    assert line["y"] == pytest.approx([0.125, 0.375, 0.375, 0.625, 0.625])
    assert line["line"]["shape"] == "hv"
    assert line["marker"]["size"] == [0, 0, 0, 0, 8], "the end of a line is marked: it may be one jump"
    assert figure.layout["xaxis"]["type"] == "log"
    row = dict(zip(figure.columns, figure.rows[0], strict=True))
    assert (row["attack"], row["broken after 1"], row["broken after 10"]) == ("a", "12.5 %", "37.5 %")
    assert (row["broken after 100"], row["in the end"], row["passes in all (mean)"]) == ("62.5 %", "62.5 %", "30")


def test_inputs_found_before_any_pass_lie_at_one_pass_and_attacks_without_passes_are_left_out():
    records = hand_made(a={"missed": WON, "found": [0, 0, 3, 3], "total": 3}, noise={"missed": WON, "total": 0})
    (figure,) = successes(records, None)
    assert [(t["name"], t["x"]) for t in figure.data] == [("a", [1, 3])]
    assert successes(hand_made(noise={"missed": WON}), None) == []


def test_seconds_are_passes_times_what_this_attack_took():
    records = hand_made(
        a={"missed": WON, "found": [5, 20, 7, 20], "total": 30}, b={"missed": WON, "found": 1, "total": 9}
    )
    records.meta["provenance"] = {"seconds": {"a": [6.0, 120.0]}}
    passes, seconds = successes(records, None)
    assert [t["name"] for t in passes.data] == ["a", "b"]
    assert [t["name"] for t in seconds.data] == ["a"], "nobody timed b"
    assert seconds.data[0]["x"] == pytest.approx([0.05 * p for p in passes.data[0]["x"]])
    assert seconds.data[0]["y"] == passes.data[0]["y"]
    assert seconds.data[0]["meta"] == passes.data[0]["meta"], "an attack keeps its colour"
    row = dict(zip(seconds.columns, seconds.rows[0], strict=True))
    assert (row["milliseconds per pass"], row["seconds per example"]) == ("50", "1.5")
    assert row["half of the gain after"] == "0.25"  # 5 passes bring a quarter, and the gain is a half


def test_the_strongest_are_drawn_and_the_table_has_all():
    found = {
        f"a{i}": {"missed": [[1, 1]] * (i % 5) + [[0, 0]] * (4 - i % 5), "found": 2, "total": 4} for i in range(14)
    }
    figure = successes(hand_made(**found), None)[0]
    assert len(figure.data) == 10
    assert "The 10 strongest are drawn, the table has all 14" in figure.note
    assert {t["name"] for t in figure.data} == {n for i, n in enumerate(found) if i % 5} - {"a11"}
    assert [row[0] for row in figure.rows] == list(found)


def test_an_audit_compares_what_is_inside_its_threat_and_no_points_of_curves():
    a = {"missed": WON, "found": 1, "total": 4}
    records = hand_made(a=a, **{"a eps=0.1": a, "a steps=5": a}, far=a | {"threat": {"norm": "linf", "eps": 0.3}})
    assert attacks_of(records, Audit(records, [], LINF, "a")) == ["a"]
    assert attacks_of(records, None) == ["a", "a eps=0.1", "a steps=5", "far"]


def minimal(distance, **more):
    return {"missed": WON, "total": 9, "info": {"minimal": True}, "distance": np.array(distance), **more}


def test_smallest_changes_give_accuracy_over_budget():
    """Three of four found, one of them misclassified from the start; another norm has a plot of its own."""
    records = hand_made(
        fmn=minimal([0.3, 0.0, np.inf, 0.1]),
        none=minimal([np.inf, np.inf, np.nan, np.inf]),
        cw=minimal([1, 2, 3, 4], threat={"norm": "l2", "eps": 5.0}),
        pgd={"missed": WON, "total": 9},
    )
    linf, l2 = distances(records, Audit(records, [], LINF, "pgd"))
    line, nothing, *marks = linf.data
    assert line["x"] == pytest.approx([0, 0.1, 0.3, 0.315])
    assert line["y"] == [0.75, 0.5, 0.25, 0.25]
    assert nothing["y"] == [1.0, 1.0]
    assert [m["name"] for m in marks] == ["authors’ attack", "lowest accuracy found"]
    assert linf.rows == [["fmn", "3 of 4", "0", "0.1", "0.3"], ["none", "0 of 4", "∞", "∞", "∞"]]
    assert (l2.id, l2.data[0]["y"][-1], len(l2.data)) == ("distances-l2", 0.0, 1)
    assert l2.rows[0][2:] == ["1", "2", "3"]


def test_members_of_a_suite_are_counted():
    info = {"members": ["apgd-ce", "square"]}
    suite = {"missed": WON, "info": info, "winner": np.array([0, 1, 0, -1], np.int16)}
    records = hand_made(standard=suite, pgd={"missed": WON})
    found = members_of(records, "standard")
    assert [(m.name, m.chosen, m.broken) for m in found] == [("no attack", 1, 1), ("apgd-ce", 2, 1), ("square", 1, 1)]
    assert members_of(records, "pgd") == []
    from stochade.report.rows import attack_row

    text = members_text(attack_row(records, "standard"))
    assert text == ("standard, examples broken by each member: no attack: 1; apgd-ce: 1; square: 1; unbroken: 1")


def trial(rung, accuracy, passes=10.0, examples=8, **more):
    return {
        "attack": f"a{accuracy}",
        "rung": rung,
        "examples": examples,
        "passes": passes,
        "accuracy": accuracy,
    } | more


def test_the_search_log_says_what_each_trial_bought_in_its_round():
    log = [
        trial(0, 0.9),
        trial(0, 0.5, kept=True),
        trial(0, 0.7),
        trial(0, 0.6),
        trial(1, 0.8),
        trial(1, 0.3),
        trial(1, 0.3),
    ]
    log += [trial(1, 1.0, note="no gradient"), {"attack": "odd", "accuracy": None, "passes": "x"}]
    steps = search_steps(log)
    assert [s.bought for s in steps] == ["", "40.0 points", "", "", "", "50.0 points", "", "", ""]
    assert [s.kept for s in steps] == [False, True, *[False] * 7]
    assert (steps[-1].passes, steps[-1].accuracy.value, steps[-1].rung) == (None, None, 0)


def test_the_search_plot_is_the_lowest_so_far_over_all_passes():
    log = [
        trial(0, 0.9), trial(0, 1.0, passes=0, note="no gradient"), trial(0, 0.5, kept=True), trial(0, 0.7),
        trial(1, 0.8, examples=16), trial(1, 0.3, passes=20.0, examples=16),
    ]  # fmt: skip
    figure = search_figure(Audit(hand_made(), [], LINF, "clean", search=log))
    assert figure is not None
    first, second = figure.data
    assert (first["x"], first["y"]) == ([80, 160, 240], [0.9, 0.5, 0.5])
    assert (second["x"], second["y"]) == ([240 + 160, 240 + 160 + 320], [0.8, 0.3])
    assert first["marker"]["symbol"] == ["circle-open", "circle", "circle-open"]
    assert (first["name"], second["name"]) == ("round 1, 8 examples", "round 2, 16 examples")
    assert search_figure(Audit(hand_made(), [], LINF, "clean")) is None
    assert search_figure(Audit(hand_made(), [], LINF, "clean", search=[trial(0, 1.0, note="x")])) is None


def test_all_of_it_is_valid_plotly():
    audit = example()
    figures = [*successes(audit.records, audit), *distances(audit.records, audit), search_figure(audit)]
    assert [f.id for f in figures if f] == [
        "successes-queries", "successes-seconds", "distances-linf", "distances-l2", "search-progress"
    ]  # fmt: skip
    for figure in figures:
        assert figure is not None
        go.Figure({"data": figure.data, "layout": figure.layout})
        assert all(len(row) == len(figure.columns) for row in figure.rows)
