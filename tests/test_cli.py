"""The command line: every command once on real digits or a known-answer model, and every mistake in one line."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from stochade.cli import main
from stochade.cli.commands import COMMANDS


@pytest.fixture(autouse=True)
def _quiet_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("STOCHADE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def call(capsys, *arguments: str) -> str:
    main(list(arguments))
    return capsys.readouterr().out


def test_audit_writes_a_report(capsys, tmp_path):
    out = call(capsys, "audit", "known:coin-flip", "--out", str(tmp_path), "--effort", "quick", "--quiet")
    assert "Lowest accuracy found" in out
    assert (tmp_path / "report.html").stat().st_size > 100_000
    document = json.loads((tmp_path / "audit.json").read_text())
    assert document["headline"]["claimed"]["low"] < 0.9
    again = call(capsys, "audit", "known:coin-flip", "--out", str(tmp_path), "--effort", "quick", "--quiet")
    assert again.splitlines()[1] == out.splitlines()[1]


def test_report_is_rebuilt_from_records_alone(capsys, tmp_path):
    call(capsys, "audit", "known:linear", "--out", str(tmp_path), "--effort", "quick", "--quiet")
    page = (tmp_path / "report.html").read_bytes()
    (tmp_path / "report.html").unlink()
    call(capsys, "report", str(tmp_path))
    assert (tmp_path / "report.html").read_bytes() == page
    assert r"\toprule" in call(capsys, "report", str(tmp_path), "--format", "latex")
    assert call(capsys, "report", str(tmp_path), "--format", "csv").count("\n") > 5


def test_attack_sweeps_and_diff(capsys, tmp_path):
    common = ("--threat", "linf=0.05", "--quiet", "--out")
    table = call(
        capsys, "attack", "known:linear", "--attacks", "fgsm", "pgd steps=3", "--budgets", "0.02", *common,
        str(tmp_path / "a"),
    )  # fmt: skip
    assert "pgd steps=3 eps=0.02" in table
    call(capsys, "attack", "known:linear", "--attacks", "fgsm", *common, str(tmp_path / "b"))
    difference = call(capsys, "diff", str(tmp_path / "a"), str(tmp_path / "b"))
    assert "+0.0" in difference


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_file_of_the_users_own(capsys, tmp_path, workers):
    (tmp_path / f"mynet{workers}.py").write_text(
        "import torch\n"
        "class Net(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.linear = torch.nn.Linear(64, 10)\n"
        "    def forward(self, x):\n"
        "        return self.linear(x.flatten(1))\n"
        "def build():\n"
        "    return Net().eval()\n"
    )
    target = f"{tmp_path}/mynet{workers}.py:build"
    out = call(
        capsys, "attack", target, "--data", "digits", "--attacks", "pgd steps=2", "--examples", "20", "--draws", "2",
        "--workers", workers, "--quiet",
    )  # fmt: skip
    assert "pgd steps=2" in out


def test_train_then_attack_the_checkpoint(capsys, tmp_path):
    out = str(tmp_path / "model")
    call(capsys, "train", "mlp", "--epochs", "2", "--rate", "0.01", "--out", out, "--quiet")
    table = call(capsys, "attack", out, "--data", "digits", "--examples", "50", "--attacks", "fgsm", "--quiet")
    assert "fgsm" in table
    assert "minutes" in call(capsys, "train", "mlp", "--out", out, "--dry-run")


def test_dry_runs_say_what_it_costs(capsys):
    assert "forwards" in call(capsys, "audit", "known:linear", "--dry-run")
    assert "backwards" in call(capsys, "attack", "known:linear", "--dry-run")


def test_ls_names_everything(capsys):
    text = call(capsys, "ls")
    for name in (
        "digits-gated",
        "known:coin-flip",
        "gated",
        "kubo2019-bim",
        "linf",
        "dlr",
        "StochasticBinary",
        "mnist",
    ):
        assert name in text
    for kind in ("models:", "attacks:", "defences:", "certificates:", "recipes:"):
        assert kind in text
    assert "fgsm" not in call(capsys, "ls", "models")


def test_every_listed_attack_and_model_can_be_built():
    from stochade.attacks import L0, L2, Linf
    from stochade.attacks.registry import ATTACKS, parse_attack
    from stochade.registry import MODELS, build

    for name in ATTACKS:
        text = f"{name} source=digits-mlp" if name == "transfer" else name
        threat = L2(2.0) if name in ("cw", "lbfgs") else L0(2) if name in ("jsma", "sigma-zero") else Linf(0.1)
        assert parse_attack(text, threat).threat.size == pytest.approx(threat.size)
    for name in MODELS:
        assert build(name, (1, 8, 8), 10).description["model"] == name


def test_doctor(capsys):
    assert "torch" in call(capsys, "doctor")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples(capsys, command):
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert "examples:" in text
    assert f"stochade {command}" in text
    if command in ("audit", "attack"):
        for option in ("--seed", "--device", "--out", "--dry-run"):
            assert option in text


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


def test_data_without_splits_is_taken_whole(capsys, tmp_path):
    import numpy as np

    images = np.random.default_rng(0).integers(0, 256, (12, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "mine.npz", images=images, labels=np.arange(12) % 10)
    out = call(capsys, "attack", "digits-mlp", "--data", str(tmp_path / "mine.npz"), "--attacks", "fgsm", "--quiet")
    assert "fgsm" in out


def test_a_readme_without_holes():
    """No placeholder, and every relative link leads somewhere."""
    root = Path(__file__).parents[1]
    text = (root / "README.md").read_text()
    assert not re.search(r"\b[A-Z]+_(TABLE|CLAIMED|FOUND|WHY)\b", text)
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert target.startswith("http") or (root / target).exists(), target


@pytest.mark.parametrize("arguments", MISTAKES, ids=lambda a: " ".join(a) or "nothing")
def test_mistakes_are_one_line_and_status_2(capsys, monkeypatch, tmp_path, arguments):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        main(arguments)
    captured = capsys.readouterr()
    assert end.value.code == 2
    assert captured.err.startswith("stochade: ")
    assert captured.err.count("\n") == 1
    assert "Traceback" not in captured.err


def test_the_installed_command_runs():
    command = os.path.join(os.path.dirname(sys.executable), "stochade")
    if not os.path.exists(command):
        pytest.skip("the console script is not installed beside this interpreter")
    done = subprocess.run([command, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0.1.0"
