"""Mistakes on the command line: one line each, status 2, in the words of the command line."""

import pytest

from stochade.cli import main
from stochade.cli.main import spoken


@pytest.mark.parametrize(
    ("message", "wanted"),
    [
        ("got Linf(eps=0.1); every distance counts with L0(float('inf'))",
         "got linf=0.1; write norm=l0 eps=NUMBER after its name (eps=inf: every distance)"),
        ("Linf, L2 or L1 for auto-PGD, got L0(eps=5.0, per='value'); for L0 try SigmaZero",
         "linf, l2 or l1 for auto-PGD, got l0=5.0; for l0 try sigma-zero"),
        ("pass threat=Linf(0.3), say", "pass --threat linf=0.3, say"),
        ("or attack with gradient=Evolution()", "or use the attack evolution or square"),
        ("(no lambdas), or use workers=0", "(no lambdas), or use --workers 0"),
        ("expected a number, got 'FL2x'; nothing changes", "expected a number, got 'FL2x'; nothing changes"),
    ],
)  # fmt: skip
def test_errors_speak_the_language_of_the_command_line(message, wanted):
    assert spoken(message) == wanted


def test_hints_reach_the_terminal_in_that_language(capsys):
    with pytest.raises(SystemExit):
        main(["attack", "known:linear", "--attacks", "apgd-ce norm=l0 eps=5", "--quiet"])
    assert "got l0=5.0; for l0 try sigma-zero" in capsys.readouterr().err


MISTAKES = [
    [],
    ["audti"],
    ["audit"],
    ["audit", "digits-gatd"],
    ["audit", "digits-mlp", "--thret", "linf=1"],
    ["audit", "digits-mlp", "--threat", "linf=abc"],
    ["audit", "digits-mlp", "--threat", "l7=1"],
    ["audit", "digits-mlp", "--seed", "x"],
    ["audit", "digits-mlp", "--effort", "heroic"],
    ["audit", "digits-mlp", "--device", "tpu"],
    ["audit", "known:linear", "--claim", "93"],
    ["audit", "known:linear", "--claim", "x"],
    ["audit", "known:linear", "--claim-attack", "fgsn"],
    ["audit", "known:linear", "--claim-attack", ""],
    ["audit", "known:linear", "--claim-attack", "fgsm norm=l2 eps=1", "--threat", "linf=0.1"],
    ["audit", "known:linear", "--threat", "linf=8"],
    ["attack", "known:linear", "--attacks", "pgd eps=8"],
    ["attack", "known:linear", "--attacks", "pgd target=nearest"],
    ["attack", "known:linear", "--attacks", "pgd target=99"],
    ["attack", "known:linear", "--attacks", "pgd norm=l2"],
    ["attack", "known:linear", "--attacks", "pgd eps=0.1", "--budgets", "0.2"],
    ["attack", "known:linear", "--attacks", "transfer"],
    ["attack", "known:linear", "--attacks", "transfer source=nothing"],
    ["attack", "known:linear", "--draws", "0"],
    ["attack", "known:linear", "--workers", "-1"],
    ["audit", "known:linear", "--draws", "0"],
    ["audit", "known:nothing"],
    ["audit", "nofile.py:build"],
    ["audit", "json:nothing"],
    ["audit", "json:dumps"],
    ["audit", "nomodule:build"],
    ["audit", "/nonexistent/folder"],
    ["attack", "known:linear", "--attacks", "pgdd"],
    ["attack", "known:linear", "--attacks", "pgd stepz=3"],
    ["attack", "known:linear", "--attacks", "pgd steps=0"],
    ["attack", "known:linear", "--attacks", "pgd samples=3"],
    ["attack", "known:linear", "--attacks", "pgd objective=hinge"],
    ["attack", "known:linear", "--format", "word"],
    ["attack", "known:linear", "--data", "nodata"],
    ["attack", "known:linear", "--budgets", "-1"],
    ["train", "nonet", "--out", "x"],
    ["train", "mlp"],
    ["train", "mlp", "--out", "x", "--data", "nodata"],
    ["report", "/nonexistent"],
    ["diff", "/nonexistent", "/nonexistent"],
    ["ls", "nothing"],
    ["audit", "digits-mlp", "--seed", "-1"],
    ["audit", "known:linear", "--chunk", "0"],
    ["audit", "known:linear", "--workers", "-1"],
    ["audit", "known:linear", "--effort", "quick", "--quiet", "--out", "/proc/nothing/here"],
    ["attack", "known:linear", "--attacks", ""],
]


@pytest.mark.parametrize("arguments", MISTAKES, ids=lambda a: " ".join(a) or "nothing")
def test_mistakes_are_one_line_and_status_2(capsys, monkeypatch, tmp_path, arguments):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STOCHADE_CACHE", str(tmp_path / "cache"))
    with pytest.raises(SystemExit) as end:
        main(arguments)
    captured = capsys.readouterr()
    assert end.value.code == 2
    assert captured.err.startswith("stochade: ")
    assert captured.err.count("\n") == 1
    assert "Traceback" not in captured.err
