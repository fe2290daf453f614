"""Attacks on codes by command, end to end: aggregated encodings, a zero gradient told on stderr, cost of an audit."""

import pytest

from stochade.cli import main

MODEL = """
import torch
from torch import nn

from stochade.models import Encoded
from stochade.nn import SignedRate


class Network(nn.Module):
    scope = "none"

    def __init__(self, factor):
        super().__init__()
        self.w = nn.Parameter(torch.randn(64, 10, generator=torch.Generator().manual_seed(0)))
        self.factor = factor

    def forward(self, z):
        z = z.detach() + self.factor * (z - z.detach())
        return torch.tanh(z.flatten(2).mean(1) @ self.w)


def build():
    return Encoded(SignedRate(2, 0.3), Network(1.0)).eval()


def silent():
    return Encoded(SignedRate(2, 0.3), Network(0.0)).eval()
"""
FEW = ["--data", "digits", "--examples", "6", "--draws", "1", "--quiet"]


@pytest.fixture
def place(tmp_path, monkeypatch):
    (tmp_path / "coded_target.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)


def test_aggregated_models_are_attacked_by_name(place, capsys):
    attacks = ["sea", "sea draws=2 steps=3", "sea-oblivious steps=1 draws=2 restarts=2 target=runner-up"]
    main(["attack", "coded_target.py:build", "--attacks", *attacks, "--threat", "flips=2 in total",
          "--encodings", "3", *FEW])  # fmt: skip
    told = capsys.readouterr()
    assert "| sea draws=2 steps=3 | signed flips 2 in total |" in told.out
    assert "target=runner-up | fixed signed flips 2 in total |" in told.out
    assert told.err == ""


def test_a_gradient_of_zero_is_told_on_stderr(place, capsys):
    main(["attack", "coded_target.py:silent", "--attacks", "sea", "--format", "csv", *FEW])
    told = capsys.readouterr()
    assert told.out.startswith("run,attack,norm,eps,per,alphabet,")
    assert "zero-gradient (masking): the gradient is exactly zero on 100 % of the examples" in told.err


def test_the_cost_of_an_audit_of_codes_is_told(place, capsys):
    main(["audit", "coded_target.py:build", "--threat", "flips=2", "--effort", "quick", "--dry-run", *FEW])
    assert "6 examples x (" in capsys.readouterr().out
    for options, told in (
        (["--threat", "binary flips=2"], "codes in"),
        (["--threat", "flips=2", "--eight-bit"], "eight_bit"),
        (["--threat", "flips=2", "--claim-attack", "evolution"], "backpropagation"),
    ):
        with pytest.raises(SystemExit):
            main(["audit", "coded_target.py:build", *options, *FEW])
        assert told in capsys.readouterr().err
