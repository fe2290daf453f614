"""`stochade verify` from the shell's side."""

import json

import pytest
import torch
from torch import nn

from stochade.attacks import Linf
from stochade.certify.exact import verify
from stochade.certify.lines import locked
from stochade.cli.main import main
from stochade.data import load
from stochade.nn import StochasticBinary

RUN = ["--data", "digits", "--examples", "8", "--seconds", "20", "--quiet"]
TARGET = "test_cli_verify"


def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()


def drawing():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10), StochasticBinary()).eval()


def test_verdicts_are_those_of_verify_and_a_stopped_run_goes_on(tmp_path, capsys):
    command = ["verify", f"{TARGET}:small", *RUN, "--threat", "linf=0.02", "--out", str(tmp_path / "run")]
    main(command)
    told = capsys.readouterr().out
    path = tmp_path / "run" / "verdicts.jsonl"
    lines = [json.loads(text) for text in path.read_text().splitlines()]
    x, y = load("digits", "test").take(8, seed=0)[:]
    expected = [found.status for found in verify(small(), x, y, Linf(0.02))]
    assert [line["status"] for line in lines] == expected
    assert {"robust", "broken"} >= set(expected)
    assert f"robust   {expected.count('robust'):6}" in told
    for line, image in zip(lines, x, strict=True):
        if line["status"] == "broken":
            example = torch.tensor(line["example"]).view_as(image)
            assert (example - image).abs().max() <= 0.02 + 1e-6
            assert small()(example[None]).argmax(1) != line["label"]
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    main(command)
    again = [json.loads(text) for text in path.read_text().splitlines()]
    assert [line["status"] for line in again] == expected
    assert len(again) == 8


def test_another_model_of_the_same_digest_is_refused(tmp_path, capsys):
    command = ["verify", f"{TARGET}:small", *RUN, "--threat", "linf=0.02", "--out", str(tmp_path / "run")]
    main(command)
    path = tmp_path / "run" / "verdicts.jsonl"
    before = path.read_bytes()
    first = json.loads(before.splitlines()[0])
    first["status"] = {"robust": "broken", "broken": "robust"}[first["status"]]  # as another model would have it
    rest = before.split(b"\n", 1)[1]
    path.write_bytes(json.dumps(first).encode() + b"\n" + rest)
    with pytest.raises(SystemExit):
        main(command)
    assert "another model than the one of this run" in capsys.readouterr().err
    unknown = json.dumps(first | {"status": "unknown"}).encode() + b"\n" + rest
    path.write_bytes(unknown)  # tells nothing: the next row is looked at, and agrees
    main(command)
    assert path.read_bytes() == unknown


@pytest.mark.parametrize("damage", ["{", '{"row": 3}', '{"row": 1, "status": "fine"}'])
def test_a_damaged_line_is_named(damage, tmp_path, capsys):
    command = ["verify", f"{TARGET}:small", *RUN, "--threat", "linf=0.02", "--out", str(tmp_path / "run")]
    main(command)
    path = tmp_path / "run" / "verdicts.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], damage, *lines[2:]]) + "\n")
    with pytest.raises(SystemExit):
        main(command)
    error = capsys.readouterr().err
    assert "verdicts.jsonl, line 2" in error
    assert error.count("\n") == 1
    with locked(tmp_path / "run"), pytest.raises(SystemExit):
        main(command)
    assert "another run is writing here" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["drawing", *RUN], "which draws"),
        (["small", *RUN, "--threat", "l2=1"], "other norms"),
        (["small", *RUN, "--seconds", "-1"], "--seconds"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(arguments, told, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["verify", f"{TARGET}:{arguments[0]}", *arguments[1:], "--out", str(tmp_path / "run")])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_another_run_is_refused(tmp_path, capsys):
    main(["verify", f"{TARGET}:small", *RUN, "--threat", "linf=0.02", "--out", str(tmp_path / "run")])
    with pytest.raises(SystemExit):
        main(["verify", f"{TARGET}:small", *RUN, "--threat", "linf=0.03", "--out", str(tmp_path / "run")])
    assert "another run" in capsys.readouterr().err
