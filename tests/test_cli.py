"""The command line: every command once on real digits or a known-answer model."""

import contextlib
import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stochade.attacks.registry import ATTACKS, parse_attack
from stochade.attacks.threats import THREATS, Linf
from stochade.cli import main
from stochade.cli.commands import COMMANDS
from stochade.cli.common import repeated
from stochade.cli.main import _parse
from stochade.errors import StochadeError
from stochade.listing import attack_details


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


def test_a_claim_is_put_on_a_card_whose_command_repeats_it(capsys, tmp_path):
    """A published 100 % under three steps of a gradient that is zero: it replicates, and falls to another attack."""
    arguments = ["--claim", "1.0", "--claim-attack", "bim steps=3 eps=0.15", "--effort", "quick", "--draws", "3"]
    out = call(capsys, "audit", "known:zero-gradient", *arguments, "--quiet", "--out", str(tmp_path / "a"))
    assert "Claim (bim steps=3 eps=0.15, linf 0.15): the claim replicates, and at most" in out
    first = json.loads((tmp_path / "a" / "audit.json").read_text())
    assert first["threat"] == {"norm": "linf", "eps": 0.15}
    command = first["card"]["command"]
    assert f"Repeat: {command}" in out
    told = "--effort quick --claim 1.0 --claim-attack 'bim steps=3 eps=0.15' --draws 3"
    assert command == f"stochade audit known:zero-gradient {told}"
    call(capsys, *shlex.split(command)[1:], "--quiet", "--out", str(tmp_path / "b"))
    second = json.loads((tmp_path / "b" / "audit.json").read_text())
    assert second["card"] == first["card"]
    assert second["request"] == first["request"]
    assert "Claim card" in (tmp_path / "a" / "report.html").read_text()
    text = call(capsys, "report", str(tmp_path / "a"), "--format", "markdown")
    assert r"| published: bim steps=3 eps=0.15 | linf 0.15 | 100.0 % | – | – |" in text
    assert "The claim replicates" in text


def test_commands_to_repeat_are_quoted_and_name_no_place_of_this_machine():
    def repeated_of(*arguments: str) -> str:
        return repeated(arguments[0], _parse(list(arguments)))

    assert repeated_of("audit", "digits-mlp") == "stochade audit digits-mlp"
    told = repeated_of(
        "audit", "/home/someone/my nets/net.py:build", "--data", "/data/mnist/", "--claim", "0.93", "--claim-attack",
        "fgsm eps=0.3", "--out", "runs/never", "--quiet", "--eight-bit", "--seed", "3", "--examples", "0",
    )  # fmt: skip
    claimed = "--claim 0.93 --claim-attack 'fgsm eps=0.3' --eight-bit"
    assert told == f"stochade audit net.py:build {claimed} --data mnist --examples 0 --seed 3"
    again = _parse(shlex.split(told)[1:])
    assert (again.claim_attack, again.images.examples, again.run_options.seed) == ("fgsm eps=0.3", 0, 3)
    assert repeated_of("attack", "x", "--attacks", "pgd steps=3", "fgsm") == (
        "stochade attack x --attacks 'pgd steps=3' fgsm"
    )


def test_attacks_with_a_threat_of_their_own_and_targets_are_in_the_table(capsys):
    out = call(
        capsys, "attack", "known:linear", "--attacks", "fgsm", "fgsm eps=0.4", "fgsm norm=l2 eps=0.5",
        "pgd steps=3 target=runner-up", "--threat", "linf=0.05", "--quiet",
    )  # fmt: skip
    rows = {
        line.split(" | ")[0].strip("| "): line.split(" | ")[1] for line in out.splitlines() if line.startswith("|")
    }
    assert rows["fgsm"] == rows["pgd steps=3 target=runner-up"] == "linf 0.05"
    assert (rows["fgsm eps=0.4"], rows["fgsm norm=l2 eps=0.5"]) == ("linf 0.4", "l2 0.5")
    assert out.splitlines()[0].endswith("target reached |")
    larger = call(
        capsys, "attack", "known:linear", "--attacks", "fgsm", "--threat", "linf=0.05", "--budgets", "0.2", "--quiet"
    )
    assert "fgsm eps=0.2" in larger, "a budget above the threat counts as well"


NAMES = (
    "fgsm bim ill pgd mifgsm apgd-ce apgd-dlr apgd-t cw lbfgs deepfool fmn jsma sigma-zero square nes spsa "
    "hopskipjump random transfer standard adaptive"
)


@pytest.mark.parametrize("name", NAMES.split())
def test_every_attack_that_was_promised_has_its_name(name):
    text = f"{name} source=x" if name == "transfer" else name
    norms = []
    for norm, threat in THREATS.items():
        with contextlib.suppress(StochadeError):
            assert parse_attack(text, threat(1)).threat == threat(1)
            norms.append(norm)
    assert norms
    assert parse_attack(f"{text} target=runner-up norm={norms[0]} eps=1", Linf(0.1)) is not None


def test_every_option_that_ls_shows_is_taken(capsys):
    text = call(capsys, "ls", "attacks")
    details = attack_details()
    assert set(details) == set(ATTACKS)
    for name, lines in details.items():
        assert all(f" {line}" in text for line in lines)
        norms, *options = " ".join(lines).partition(" options: ")[::2]
        threat = THREATS[norms.split()[1]](1)
        words = [word for word in " ".join(options).split() if "=" in word]
        parse_attack(" ".join([name, *words, *(["source=x"] if name == "transfer" else [])]), threat)
    assert "steps=40 step_size random_start=yes" in " ".join(details["pgd"])
    assert "steps=1 " not in " ".join(details["fgsm"]), "its name fixes it"
    assert "target=least-likely|runner-up|random|CLASS" in text
    assert "norms:" not in call(capsys, "ls")


def test_reading_for_long_shows_progress(capsys, tmp_path, monkeypatch):
    import stochade.progress as module
    from stochade.evaluate import Records

    call(capsys, "attack", "known:linear", "--attacks", "fgsm", "--quiet", "--out", str(tmp_path))
    monkeypatch.setattr(module, "PATIENCE", 0.0)
    monkeypatch.setattr(module, "BEAT", 0.01)
    load = Records.load
    monkeypatch.setattr(Records, "load", lambda folder: time.sleep(0.2) or load(folder))
    main(["diff", str(tmp_path), str(tmp_path)])
    main(["report", str(tmp_path), "--format", "csv"])
    captured = capsys.readouterr()
    assert captured.err.count("reading records: 0 s") == 2
    assert "reading records" not in captured.out


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
    from sizes import small
    from stochade.attacks import L0, L2, Linf
    from stochade.attacks.registry import ATTACKS, parse_attack
    from stochade.registry import MODELS, build

    for name in ATTACKS:
        text = f"{name} source=digits-mlp" if name == "transfer" else name
        threat = L2(2.0) if name in ("cw", "lbfgs") else L0(2) if name in ("jsma", "sigma-zero") else Linf(0.1)
        assert parse_attack(text, threat).threat.size == pytest.approx(threat.size)
    for name in MODELS:
        assert build(name, (1, 8, 8), 10, **small(name)).description["model"] == name


def test_measure_tells_and_keeps_what_the_functions_say(capsys, tmp_path):
    import torch

    from stochade import checkpoint, data
    from stochade.metrics import accuracy_by_latency, spike_rates
    from stochade.randomness import forked
    from stochade.registry import build

    with forked(0):
        model = build("snn", (1, 8, 8), 10, steps=3)
        for _ in range(20):
            model(torch.rand(30, 1, 8, 8))
    checkpoint.save(model.eval(), tmp_path / "snn")
    where = str(tmp_path / "told.json")
    arguments = ["--data", "digits", "--examples", "40", "--seed", "3", "--draws", "2", "--to", where, "--quiet"]
    text = call(capsys, "measure", str(tmp_path / "snn"), *arguments)
    told = json.loads((tmp_path / "told.json").read_text())
    x, y = data.load("digits", "test").take(40, seed=3)[:]
    assert told["spike rates"] == pytest.approx(spike_rates(model, x, seed=3))
    assert told["accuracy by latency"] == pytest.approx(accuracy_by_latency(model, x, y, draws=2, seed=3))
    assert f"{told['spike rates']['input']:.4f}" in text
    assert "accuracy after step" in text
    assert str(tmp_path) not in json.dumps(told["provenance"]["versions"])
    attacks = ["--attacks", "sea k=2", "sea-oblivious k=2 draws=2", "fgsm", "--examples", "10", "--draws", "1"]
    told = call(capsys, "attack", str(tmp_path / "snn"), "--data", "digits", *attacks, "--quiet")
    assert "flips 2 per frame" in told, "in the letters of the encoder"
    for bad, words in ((["digits-mlp"], "encoder"), ([str(tmp_path / "snn"), "--draws", "0"], "draws")):
        with pytest.raises(SystemExit):
            main(["measure", *bad, "--quiet"])
        assert words in capsys.readouterr().err


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


def test_the_installed_command_runs():
    command = os.path.join(os.path.dirname(sys.executable), "stochade")
    if not os.path.exists(command):
        pytest.skip("the console script is not installed beside this interpreter")
    done = subprocess.run([command, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0.1.0"
