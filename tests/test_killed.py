"""`kill -9` in the middle of a write, then the same command again: detectors, and audits of codes."""

import json
import os
import signal
import subprocess
import sys

import pytest
import torch

from stochade import files
from stochade.cli import main

MODEL = """
import torch
from torch import nn

from stochade.models.encoded import rate_coded


def base():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10)).eval()


def coded():
    return rate_coded(base(), 2).eval()
"""
KILLED = """
import os, signal, sys
from stochade import files
from stochade.cli import main

left = [int(sys.argv[1])]


def fsync(handle, real=os.fsync):
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    real(handle)


files.os.fsync = fsync
main(sys.argv[2:])
"""
FEW = ["--data", "digits", "--quiet", "--seed", "3"]
DETECT = ["detect", "killed_target.py:base", *FEW, "--threat", "linf=0.1", "--examples", "3", "--calibration", "40"]
DETECT += ["--rate", "0.1", "--noise", "bernoulli=0.1", "--noise-draws", "1", "--steps", "1"]
AUDIT = ["audit", "killed_target.py:coded", *FEW, "--threat", "flips=2", "--effort", "quick", "--examples", "2"]
AUDIT += ["--draws", "2"]
RECORDS = (".parquet", ".safetensors", "run.json", "result.json", "calibration.json")


@pytest.fixture
def place(tmp_path, monkeypatch):
    (tmp_path / "killed_target.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def content(folder):
    """Of all records, without when and by what command line a result was written."""
    found = {name: path.read_bytes() for name, path in kept(folder).items()}
    for name in [name for name in found if name.endswith("result.json")]:
        found[name] = {k: v for k, v in json.loads(found[name]).items() if k != "provenance"}
    return found


def kept(folder):
    return {
        str(path.relative_to(folder)): path
        for path in sorted(folder.rglob("*"))
        if path.name.endswith(RECORDS) and not path.name.endswith(".part")
    }


def writes(command, monkeypatch):
    """How many files a run writes."""
    real, count = os.fsync, []
    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", lambda handle: count.append(real(handle)))
        main(command)
    return len(count)


@pytest.mark.parametrize(("command", "place_of_kill"), [(DETECT, 0.6), (AUDIT, 0.6)], ids=["detect", "codes"])
def test_the_same_command_goes_on(command, place_of_kill, place, monkeypatch, capsys):
    total = writes([*command, "--out", "whole"], monkeypatch)
    number = max(2, round(place_of_kill * total))
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    child = [sys.executable, "-c", KILLED, str(number), *command, "--out", "stopped"]
    assert subprocess.run(child, env=environment, capture_output=True).returncode == -signal.SIGKILL
    assert any(path.name.endswith(".part") for path in (place / "stopped").rglob("*"))
    before = kept(place / "stopped")

    units = [name for name in before if name.endswith((".parquet", ".safetensors"))]
    assert units
    written = writes([*command, "--out", "stopped"], monkeypatch)
    assert written <= total - len(units)  # what is there is not done again
    assert content(place / "stopped") == content(place / "whole")
