"""`stochade train`: what its words stand for, resuming, what it says, and mistakes told before any work."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from stochade import checkpoint
from stochade.attacks import PGD, SEA, Flips, Linf
from stochade.cli.main import _parse, main
from stochade.cli.train import asked_for, parse_options, passes_of
from stochade.errors import ModelError, StochadeError, UsageError
from stochade.nn import LWTA
from stochade.nn.reinforce import ReinforceBinary
from stochade.registry import build
from stochade.train import (
    TET,
    Adversarial,
    Cosine,
    Distilled,
    Mixture,
    Penalised,
    Standard,
    Steps,
    lab_report_mixture,
)
from stochade.train.codes import AdversarialCodes
from stochade.train.elbo import ELBO
from stochade.train.reinforced import Reinforced
from stochade.train.settings import named
from stochade.train.setups import pni


def settings(*words):
    return _parse(["train", "mlp", "--out", "x", *words])._settings(None)


def call(capsys, *words):
    main(list(words))
    return capsys.readouterr().out


def test_options_become_settings():
    assert settings() == {
        "epochs": 30, "batch": 50, "lr": 1e-3, "objective": Standard(), "optimizer": torch.optim.Adam,
        "schedule": settings()["schedule"],
    }  # fmt: skip
    found = settings(
        "--epochs", "9", "--batch", "64", "--lr", "0.1", "--optimizer", "sgd", "--weight-decay", "3e-4",
        "--schedule", "steps 80,120", "--l1", "1e-4", "--l2", "1e-3",
    )  # fmt: skip
    assert (found["epochs"], found["batch"], found["lr"], found["schedule"]) == (9, 64, 0.1, Steps((80, 120)))
    assert found["optimizer"].keywords == {"momentum": 0.9, "weight_decay": 3e-4}
    assert found["objective"] == Penalised(Standard(), 1e-4, 1e-3)
    attacked = settings(
        "--adversarial", "pgd steps=7 eps=0.3", "--tau", "0.25", "--labels", "predicted", "--start", "5"
    )["objective"]
    assert attacked == Adversarial(PGD(Linf(0.3), 7, drop_fooled=False), 0.25, "predicted", 5)
    on_codes = _parse(
        ["train", "snn", "--out", "x", "--adversarial", "sea k=5 steps=3", "--tau", "0", "--start", "2"]
    )
    expected = AdversarialCodes(SEA(Flips(5, "signed"), 3, drop_fooled=False), 0.0, start=2)
    assert on_codes._settings(build("snn"))["objective"] == expected
    assert settings("--mixture", "--threat", "linf=0.3")["objective"] == lab_report_mixture(Linf(0.3))
    assert settings("--schedule", "cosine", "--epochs", "7")["schedule"] == Cosine(7)


def test_a_setup_is_the_paper_s_until_a_part_is_changed():
    found, paper = settings("--setup", "pni", "--epochs", "3", "--l2", "0.1"), pni().settings()
    assert found["epochs"] == 3
    assert found["objective"] == Penalised(paper["objective"], 0.0, 0.1)
    assert named(found["optimizer"]) == named(paper["optimizer"])
    assert (found["lr"], found["batch"], found["schedule"]) == (0.1, 128, Steps((80, 120)))
    assert isinstance(settings("--setup", "lab-report")["objective"], Mixture)


def test_models_get_the_objective_that_their_layers_ask_for():
    command = _parse(["train", "mlp", "--out", "x", "--adversarial", "fgsm"])
    network = torch.nn.Sequential(torch.nn.Linear(4, 4), ReinforceBinary(4))
    assert isinstance(command._settings(network)["objective"].inner, Reinforced)
    assert isinstance(command._settings(torch.nn.Linear(4, 4))["objective"].inner, Standard)
    competing = torch.nn.Sequential(torch.nn.Linear(4, 4), LWTA(2))
    assert isinstance(command._settings(competing)["objective"].inner, ELBO)
    assert asked_for(torch.nn.Sequential(LWTA(2, stochastic=False))) == "standard"
    assert asked_for(build("lwta-bayesian")) == "elbo"
    assert isinstance(settings("--objective", "reinforced")["objective"], Reinforced)
    command.objective = "standard"
    assert isinstance(command._settings(network)["objective"].inner, Standard)


def test_options_of_the_model_are_read_as_their_defaults_are():
    assert parse_options("mlp", "hidden=7") == {"hidden": 7}
    assert parse_options("kwta-cnn", "ratio=1 per=channel") == {"ratio": 1.0, "per": "channel"}
    assert parse_options("mlp", "") == {}
    for model, text, word in (
        ("mpl", "", "mlp"), ("mlp", "hiden=3", "hidden"), ("mlp", "hidden", "option=value"),
        ("mlp", "hidden=a", "whole number"), ("mlp", "hidden=1.5", "whole number"), ("kwta-cnn", "ratio=a", "number"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=word):
            parse_options(model, text)


def test_training_says_what_it_did_and_goes_on_where_it_was(capsys, tmp_path):
    command = [
        "train", "mlp", "--out", str(tmp_path), "--options", "hidden=12", "--examples", "300", "--epochs", "2",
        "--rate", "0.01", "--l2", "1e-4", "--quiet",
    ]  # fmt: skip
    out = call(capsys, *command)
    assert "best epoch: " in out
    assert "test split was not read" in out
    assert "on 200 images" in out
    assert f"stochade audit {tmp_path} --data digits" in out
    model = checkpoint.load(tmp_path)
    assert model.description["options"]["hidden"] == 12
    facts = checkpoint.describe(tmp_path)["extra"]["training"]
    assert facts["data"][0].startswith("300 images")
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert set(lines[0]["terms"]) == {"ce", "l2"}
    weights = (tmp_path / "weights.safetensors").read_bytes()
    assert "went on after 2 epochs" in call(capsys, *command)
    assert (tmp_path / "weights.safetensors").read_bytes() == weights
    with pytest.raises(SystemExit):
        main([*command, "--seed", "1"])
    assert "seed: 0 there, 1 here" in capsys.readouterr().err


def test_a_killed_command_ends_with_the_same_bits(capsys, tmp_path):
    """SIGKILL in the middle of adversarial training with a schedule; the same command again, and one never killed."""
    words = [
        "train", "mlp-stochastic", "--examples", "200", "--epochs", "8", "--batch", "20", "--adversarial",
        "pgd steps=4 eps=0.1", "--start", "1", "--schedule", "cosine", "--optimizer", "sgd", "--rate", "0.05",
        "--quiet", "--out",
    ]  # fmt: skip
    arguments = [*words, str(tmp_path / "killed")]
    code = f"import sys; sys.path[:0] = {sys.path!r}; from stochade.cli.main import main; main({arguments!r})"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=os.path.dirname(__file__))
    metrics, deadline = tmp_path / "killed" / "metrics.jsonl", time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        if metrics.exists() and len(metrics.read_text().splitlines()) >= 2:
            break
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    out = call(capsys, *words, str(tmp_path / "killed"))
    assert "went on after " in out
    call(capsys, *words, str(tmp_path / "whole"))
    killed, whole = (checkpoint.load(tmp_path / name).state_dict() for name in ("killed", "whole"))
    assert all(torch.equal(killed[key], whole[key]) for key in whole)
    first, second = (
        [json.loads(line) | {"seconds": 0} for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("killed", "whole")
    )
    assert len(first) == 8
    assert first == second


def test_a_spiking_network_is_taught_by_a_checkpoint_and_goes_on(capsys, tmp_path):
    common = ["--examples", "40", "--epochs", "1", "--quiet", "--out"]
    for seed, name in enumerate(("teacher", "other")):
        call(capsys, "train", "mlp", "--seed", str(seed), *common, str(tmp_path / name))
    words = [
        "train", "snn", "--options", "encoder=rate width=0.25", "--objective", "e-rsct", "--augment", "crop=1",
        "--adversarial", "sea k=1", "--tau", "0",
    ]  # fmt: skip
    call(capsys, *words, "--teacher", str(tmp_path / "teacher"), *common, str(tmp_path / "taught"))
    told = json.loads((tmp_path / "taught" / "metrics.jsonl").read_text())
    assert set(told["terms"]) == {"ce", "mse", "kd"}
    objective = _parse([*words, "--teacher", str(tmp_path / "teacher"), "--out", "x"])._settings(build("snn"))
    assert isinstance(objective["objective"], Distilled)
    assert objective["objective"].inner.inner == TET()
    again = call(capsys, *words, "--teacher", str(tmp_path / "teacher"), *common, str(tmp_path / "taught"))
    assert "went on after 1 epochs" in again
    with pytest.raises(SystemExit):
        main([*words, "--teacher", str(tmp_path / "other"), *common, str(tmp_path / "taught")])
    assert "objective" in capsys.readouterr().err
    with pytest.raises(ModelError, match="teacher"):
        wide = build("snn", (3, 8, 8))
        _parse([*words, "--teacher", str(tmp_path / "teacher"), "--out", "x"])._settings(wide)


def test_the_cost_grows_with_the_attack(capsys, tmp_path):
    plain, attacked = passes_of(Standard()), passes_of(settings("--adversarial", "pgd steps=7")["objective"])
    assert (plain, attacked) == (1, 9)
    mixed = passes_of(Penalised(lab_report_mixture(Linf(0.1)), l2=1.0))
    assert 1 < mixed < 10
    assert "minutes" in call(
        capsys, "train", "mlp", "--out", str(tmp_path / "new"), "--mixture", "--dry-run", "--quiet"
    )
    assert not (tmp_path / "new").exists()


WRONG = {
    ("--mixture", "--tau", "0.2"): "--adversarial",
    ("--setup", "pni", "--start", "2"): "--adversarial",
    ("--setup", "pnj"): "did you mean 'pni'",
    ("--setup", "pni", "--mixture"): "one of --setup",
    ("--adversarial", "pgdd"): "attack",
    ("--adversarial", "sea k=5"): "encoder",
    ("--adversarial", "sea-oblivious"): "given codes",
    ("--adversarial", "pgd", "--tau", "2"): "weight",
    ("--adversarial", "pgd", "--labels", "no"): "labels",
    ("--adversarial", "pgd", "--start", "-1"): "epoch",
    ("--schedule", "linear"): "schedule",
    ("--optimizer", "lion"): "optimizer",
    ("--momentum", "0.9"): "momentum",
    ("--setup", "pni", "--weight-decay", "0"): "--optimizer",
    ("--l1", "-1"): "l1",
    ("--options", "hiden=3"): "hidden",
    ("--objective", "elbow"): "objective",
    ("--threat", "linf=-1"): "",
    ("--device", "tpu"): "device",
    ("--precision", "8"): "precision",
    ("--objective", "tet"): "over time",
    ("--objective", "e-rsct"): "--teacher",
    ("--teacher", "x"): "--objective e-rsct",
    ("--objective", "tet", "--teacher", "x"): "--objective e-rsct",
    ("--objective", "e-rsct", "--teacher", "nowhere"): "checkpoint",
    ("--augment", "corp"): "crop",
    ("--examples", "-1"): "--examples",
    ("--seed", "-1"): "--seed",
    ("--epochs", "0"): "epoch",
    ("--batch", "0"): "batch",
    ("--lr", "0"): "learning rate",
    ("--patience", "0"): "patience",
    ("--tensorboard",): "tensorboard",
}


@pytest.mark.parametrize(("words", "told"), WRONG.items(), ids=[" ".join(w) for w in WRONG])
def test_mistakes_are_one_line_and_leave_nothing(words, told, capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(SystemExit) as end:
        main(["train", "mlp", "--out", str(tmp_path / "out"), "--quiet", *words])
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1
    assert not list(Path(tmp_path).rglob("*.*"))


def test_wrong_words_are_told_before_data_is_read(monkeypatch):
    def no(*_, **__):
        raise AssertionError("data was read")

    monkeypatch.setattr("stochade.data.load", no)
    for words in (
        ["--augment", "x"],
        ["--objective", "e-rsct"],
        ["--setup", "pnj"],
        ["--adversarial", "pgdd"],
        ["--schedule", "x"],
        ["--options", "a=1"],
    ):
        with pytest.raises(StochadeError):
            _parse(["train", "mlp", "--out", "x", *words]).run()
