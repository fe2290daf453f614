"""`stochade certify` from the shell's side: a run, its page, going on, and one line for every mistake."""

import importlib
import json

import pytest
import torch
from torch import nn

from stochade.certify.run import VOTE
from stochade.cli.main import main
from stochade.models.encoded import rate_coded
from stochade.models.noisy import NoisyInput

RUN = [
    "--data",
    "digits",
    "--examples",
    "6",
    "--draws",
    "60",
    "--selection",
    "10",
    "--alpha",
    "0.01",
    "--batch",
    "30",
]
FAST = [*RUN, "--attack-draws", "20", "--steps", "2", "--quiet"]
TARGET = "test_cli_certify"


def _base():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()


def plain():
    return _base()


def rate():
    return rate_coded(_base(), 3).eval()


def noisy():
    return NoisyInput(_base(), 0.2).eval()


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.base = _base()

    def forward(self, x):
        return self.base(x) + 0.01 * torch.randn(len(x), 1)


def own():
    return Own().eval()


class Cut(Own):
    def forward(self, x):
        return self.base(x.detach()).detach()


def cut():
    return Cut().eval()


@pytest.mark.parametrize(
    ("target", "more", "norm"),
    [
        ("rate", [], "l1"),
        ("rate", ["--norm", "linf"], "linf"),
        ("noisy", [], "l2"),
        ("plain", ["--sigma", "0.3"], "l2"),
    ],
)
def test_a_run_leaves_certificates_records_and_a_page(target, more, norm, tmp_path, capsys):
    main(["certify", f"{TARGET}:{target}", *FAST, *more, "--out", str(tmp_path / "run")])
    told = capsys.readouterr().out
    assert f"distance, {norm}" in told
    assert "abstained" in told
    lines = [json.loads(text) for text in (tmp_path / "run" / "certificates.jsonl").read_text().splitlines()]
    assert len(lines) == 6
    assert all(sum(line["votes"]) == 60 or more[:1] == ["--sequential"] for line in lines)
    page = (tmp_path / "run" / "report.html").read_text()
    assert "What is proven, and what attacks leave" in page
    assert "stochade certify" in page
    assert (tmp_path / "run" / "attacks" / "run.json").is_file()
    before = (tmp_path / "run" / "certificates.jsonl").read_bytes()
    main(["certify", f"{TARGET}:{target}", *FAST, *more, "--out", str(tmp_path / "run")])
    assert (tmp_path / "run" / "certificates.jsonl").read_bytes() == before


def test_without_attacks_and_dry(tmp_path, capsys):
    main(["certify", f"{TARGET}:rate", *FAST, "--no-attack", "--out", str(tmp_path / "run")])
    assert not (tmp_path / "run" / "attacks").exists()
    assert "certified" in (tmp_path / "run" / "report.html").read_text()
    main(["certify", f"{TARGET}:rate", *FAST, "--dry-run", "--out", str(tmp_path / "dry")])
    assert "6 examples x 70 draws" in capsys.readouterr().out
    assert not (tmp_path / "dry").exists()


def test_without_a_gradient_the_certificates_are_kept(tmp_path, capsys):
    main(["certify", f"{TARGET}:cut", *FAST, "--sigma", "0.1", "--out", str(tmp_path / "run")])
    told = capsys.readouterr().out
    (line,) = [line for line in told.splitlines() if line.startswith("not attacked")]
    assert "--no-attack" in line
    assert "GradientError" in line
    assert "distance, l2" in told
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Not attacked: GradientError" in page
    assert "Attacked: the vote" not in page
    assert len((tmp_path / "run" / "certificates.jsonl").read_text().splitlines()) == 6


def test_flips_are_told_in_whole_numbers(tmp_path, capsys):
    more = ["--flips", "0.2", "--no-attack", "--out", str(tmp_path / "run")]
    main(["certify", f"{TARGET}:rate", *FAST, *more])
    rows = capsys.readouterr().out.split("attacked, undecided right\n")[1].split("abstained")[0].splitlines()
    assert [row.split()[0] for row in rows] == [str(i) for i in range(len(rows))]


def test_flips_of_one_encoding_each(tmp_path, capsys):
    more = ["--flips", "0.1", "0.3", "--radii", "0", "1", "--out", str(tmp_path / "run")]
    main(["certify", f"{TARGET}:rate", *FAST, *more])
    told = capsys.readouterr().out
    assert "distance, l0" in told
    assert "flips" in told
    lines = [json.loads(text) for text in (tmp_path / "run" / "certificates.jsonl").read_text().splitlines()]
    assert {line["radius"] for line in lines} <= {0.0, 1.0, 2.0, 3.0}
    rows = told.split("attacked, undecided right\n")[1].split("abstained")[0].splitlines()
    assert len(rows) == 2
    assert all(row.count("[") == 3 for row in rows)  # certified, attacked, attacked with undecided votes right
    assert "an attack leaves less than is certified" not in told
    page = (tmp_path / "run" / "report.html").read_text()
    assert "attacked, undecided votes right" in page
    assert "One code of each image is certified and attacked; distances" in page
    records = sorted((tmp_path / "run" / "attacks" / "records").rglob("*.parquet"))
    before = [path.read_bytes() for path in records]
    assert len(records) == 4
    records[-1].unlink()  # as a stopped run left it
    main(["certify", f"{TARGET}:rate", *FAST, *more])
    assert [path.read_bytes() for path in records] == before


@pytest.mark.parametrize("more", [["--sigma", "0.3"], ["--flips", "0.1", "--radii", "1"]])
@pytest.mark.parametrize("moment", ["bracket.attacked", "write"])
def test_a_second_run_is_refused_while_the_first_one_attacks(more, moment, tmp_path, capsys, monkeypatch):
    """And while it writes its page; afterwards the folder is free."""
    command = ["certify", f"{TARGET}:rate", *FAST, *more, "--out", str(tmp_path / "run")]
    place = f"stochade.certify.{moment}" if moment != "write" else "stochade.report.certificates.write"
    package, _, name = place.rpartition(".")
    first, told = getattr(importlib.import_module(package), name), []

    def second(*arguments, **options):
        monkeypatch.setattr(place, first)
        with pytest.raises(SystemExit) as stop:
            main(command)
        assert stop.value.code == 2
        told.append(capsys.readouterr().err)
        return first(*arguments, **options)

    monkeypatch.setattr(place, second)
    main(command)
    (error,) = told
    assert "another run is writing here" in error
    assert error.count("\n") == 1
    assert (tmp_path / "run" / "report.html").is_file()
    main(command)


def test_flips_that_are_not_attacked(tmp_path, capsys):
    """Flips of 0.001 hide none."""
    main(["certify", f"{TARGET}:rate", *FAST, "--flips", "0.001", "--out", str(tmp_path / "run")])
    told = capsys.readouterr().out
    assert "not attacked" in told
    assert "no distance above 0" in told
    assert not (tmp_path / "run" / "attacks").exists()
    assert "Nothing here bounds the vote" in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.parametrize("radii", [["--radii", "0"], ["--radii", "0", "1"], []])
def test_the_vote_itself_is_decided_draw_by_draw(radii, tmp_path, capsys):
    """Flips of 0.001 hide none, so the default grid is the distance 0 alone."""
    more = ["--flips", "0.001", "--sequential", "--no-attack", *radii, "--out", str(tmp_path / "run")]
    main(["certify", f"{TARGET}:rate", *FAST, *more])
    rows = capsys.readouterr().out.split("attacked, undecided right\n")[1].split("abstained")[0].splitlines()
    lines = [json.loads(text) for text in (tmp_path / "run" / "certificates.jsonl").read_text().splitlines()]
    assert all(line["draws"] < 70 for line in lines)  # 10 + 60 are the fixed number
    assert {line["radius"] for line in lines} <= {0.0, VOTE}
    decided = sum(line["prediction"] == line["label"] for line in lines)
    assert rows[0].split()[1] == f"{100 * decided / 6:.1f}"
    assert any(line["prediction"] >= 0 for line in lines)
    asked = json.loads((tmp_path / "run" / "certify.json").read_text())["radii"]
    assert asked == [float(r) for r in radii[1:] or [0]]
    assert "decided sequentially" in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["plain", *FAST], "--sigma"),
        (["plain", *FAST, "--sigma", "0"], "sigma"),
        (["rate", *FAST, "--selection", "60"], "n0 < n"),
        (["rate", *FAST, "--alpha", "1e-30"], "at least 100 draws"),
        (["rate", *FAST, "--alpha", "0"], "alpha"),
        (["rate", *FAST, "--norm", "l2"], "floor"),
        (["rate", *FAST, "--norm", "lp"], "l1, l2, linf or l0"),
        (["rate", *FAST, "--radii", "-1"], "at least 0"),
        (["rate", *FAST, "--radii", "inf"], "finite --radii"),
        (["rate", *FAST, "--batch", "0"], "--batch"),
        (["rate", *FAST, "--flips", "2"], "[0, 1]"),
        (["rate", *FAST, "--flips", "0.1", "--radii", "1.5"], "whole numbers of flips"),
        (["rate", *FAST, "--flips", "0.1", "--sigma", "0.1"], "without --sigma"),
        (["plain", *FAST, "--flips", "0.1"], "encoder"),
        (["own", *FAST, "--sigma", "0.1"], "independent"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(arguments, told, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["certify", f"{TARGET}:{arguments[0]}", *arguments[1:], "--out", str(tmp_path / "run")])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run" / "certificates.jsonl").exists()


def test_the_callers_word(tmp_path):
    main(
        [
            "certify",
            f"{TARGET}:own",
            *FAST,
            "--sigma",
            "0.1",
            "--independent",
            "--no-attack",
            "--out",
            str(tmp_path / "r"),
        ]
    )
    assert (tmp_path / "r" / "report.html").is_file()
