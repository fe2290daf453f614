"""Checkpoints come back bit for bit, and every kind of damage has its own message."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from sizes import small
from stochade import checkpoint
from stochade.errors import CheckpointError
from stochade.files import write_atomically
from stochade.nn import StochasticBinary
from stochade.randomness import fingerprint
from stochade.registry import MODELS, build


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    model = build("mlp-stochastic", (1, 4, 4), 3, hidden=6)
    return checkpoint.save(model, tmp_path / "net", extra={"data": "made up", "training": {"epochs": 2}})


def edit(folder, **changes):
    file = folder / "model.json"
    told = json.loads(file.read_text())
    for path, value in changes.items():
        *way, last = path.split("__")
        place = told
        for key in way:
            place = place[key]
        if value is None:
            del place[last]
        else:
            place[last] = value
    file.write_text(json.dumps(told))


def rewrite(folder, change):
    """Replace the weights by changed ones, with a checksum that is right: only their fit is wrong."""
    file = folder / "weights.safetensors"
    told = json.loads((folder / "model.json").read_text())
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"stochade": json.dumps(told["model"])})
    edit(folder, weights__sha256=hashlib.sha256(file.read_bytes()).hexdigest())


@pytest.mark.parametrize("name", MODELS)
def test_round_trip_is_bit_exact(name, tmp_path):
    torch.manual_seed(0)
    model = build(name, **small(name))
    for module in model.modules():
        if isinstance(module, StochasticBinary):
            module.set_slope(1.7)
    model(torch.rand(8, 1, 8, 8))  # moves the statistics of batch norm
    checkpoint.save(model, tmp_path)
    loaded = checkpoint.load(tmp_path)
    assert not any(m.training for m in loaded.modules())
    assert all(m.training for m in model.modules())
    own, other = model.state_dict(), loaded.state_dict()
    assert list(own) == list(other)
    assert all(torch.equal(own[k], other[k]) and own[k].dtype == other[k].dtype for k in own)
    x = torch.rand(4, 1, 8, 8)
    model.eval()
    outputs = []
    for m in (model, loaded):
        torch.manual_seed(3)
        outputs.append(m(x))
    assert torch.equal(outputs[0], outputs[1])
    assert loaded.description == model.description


def test_double_precision_comes_back_as_it_was(tmp_path):
    model = build("2cnn-stochastic").double()
    loaded = checkpoint.load(checkpoint.save(model, tmp_path))
    assert next(loaded.parameters()).dtype == torch.float64
    assert torch.equal(loaded.dense.weight, model.dense.weight)


def test_the_description_is_readable(folder):
    told = json.loads((folder / "model.json").read_text())
    assert told == checkpoint.describe(folder)
    assert told["model"]["model"] == "mlp-stochastic"
    assert told["input"]["shape"] == [1, 4, 4]
    assert (told["classes"], told["parameters"]) == (3, 16 * 6 + 6 + 6 * 3 + 3)
    assert told["weights"]["sha256"] == hashlib.sha256((folder / "weights.safetensors").read_bytes()).hexdigest()
    assert told["extra"] == {"data": "made up", "training": {"epochs": 2}}


def test_either_file_names_the_checkpoint(folder):
    for path in (folder, str(folder), folder / "weights.safetensors", folder / "model.json"):
        assert checkpoint.load(path).description["model"] == "mlp-stochastic"


def test_loading_draws_nothing_and_saving_changes_nothing(folder):
    model = checkpoint.load(folder)
    before, state = fingerprint(), {k: v.clone() for k, v in model.state_dict().items()}
    checkpoint.save(model, folder)
    checkpoint.load(folder)
    assert fingerprint() == before
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert sorted(p.name for p in folder.iterdir()) == ["model.json", "weights.safetensors"]


def test_truncated_weights_tell_both_checksums(folder):
    file = folder / "weights.safetensors"
    expected = hashlib.sha256(file.read_bytes()).hexdigest()
    file.write_bytes(file.read_bytes()[:-10])
    actual = hashlib.sha256(file.read_bytes()).hexdigest()
    with pytest.raises(CheckpointError, match=f"{expected}.*{actual}"):
        checkpoint.load(folder)


def test_one_flipped_bit_tells_both_checksums(folder):
    file = folder / "weights.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"sha256 [0-9a-f]{64}.*sha256 [0-9a-f]{64}"):
        checkpoint.load(folder)


@pytest.mark.parametrize("name", ["weights.safetensors", "model.json"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=f"no file .*{name}"):
        checkpoint.load(folder)


@pytest.mark.parametrize("content", [b"{'model': 1}", b'{"format": "stochade', b"", b"\xff\xfe"])
def test_a_description_that_is_no_json(folder, content):
    (folder / "model.json").write_bytes(content)
    with pytest.raises(CheckpointError, match="JSON"):
        checkpoint.load(folder)


@pytest.mark.parametrize("content", [b"[]", b"null", b'{"format": "other"}'])
def test_json_that_is_no_description(folder, content):
    (folder / "model.json").write_bytes(content)
    with pytest.raises(CheckpointError, match="description of a stochade checkpoint"):
        checkpoint.load(folder)


def test_an_altered_description_is_noticed_even_if_the_weights_would_fit(folder):
    edit(folder, model__model="mlp-deterministic")
    with pytest.raises(CheckpointError, match="altered"):
        checkpoint.load(folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model", "resnet-9000"),
        ("options", {"hidden": 6, "backward": "soft", "dropout": 1}),
        ("options", {"hidden": "six"}),
        ("options", [1]),
        ("classes", "three"),
        ("input_shape", None),
        ("input_shape", [1, -4, 4]),
    ],
)
def test_an_unknown_model_or_option_is_named(folder, key, value):
    edit(folder, **{f"model__{key}": value})
    rewrite(folder, lambda tensors: None)  # the description inside agrees, so it is the model that is at fault
    with pytest.raises(CheckpointError, match="knows"):
        checkpoint.load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("dense.bias"), r"missing \['dense.bias'\]"),
        (lambda t: t.update(more=torch.zeros(1)), r"unknown \['more'\]"),
        (lambda t: t.update({"dense.bias": torch.zeros(7)}), r"dense.bias as torch.float32 \[6\].*\[7\]"),
        (lambda t: t.update({"dense.bias": torch.zeros(6).half()}), "float16"),
    ],
)
def test_weights_that_do_not_fit_are_named(folder, change, message):
    rewrite(folder, change)
    with pytest.raises(CheckpointError, match=message):
        checkpoint.load(folder)


@pytest.mark.parametrize("edits", [{"schema": 2}, {"weights__sha256": None}, {"weights": []}, {"model": "mlp"}])
def test_other_schemas_and_missing_parts(folder, edits):
    edit(folder, **edits)
    with pytest.raises(CheckpointError):
        checkpoint.load(folder)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(CheckpointError, match="no file"):
        checkpoint.load(tmp_path / "nowhere")


def test_models_without_a_description_and_facts_that_json_cannot_hold(tmp_path):
    with pytest.raises(CheckpointError, match="description"):
        checkpoint.save(nn.Linear(2, 2), tmp_path)
    with pytest.raises(CheckpointError, match="JSON"):
        checkpoint.save(build("mlp"), tmp_path, extra={"tensor": torch.zeros(1)})
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(tmp_path, monkeypatch):
    file = tmp_path / "a"
    write_atomically(file, b"old")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(file, b"new")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert file.read_bytes() == b"old"


def test_a_process_killed_while_writing_leaves_a_whole_file(tmp_path):
    """The writer alternates two contents until it is killed; a torn file would equal neither."""
    code = (
        "import sys, pathlib; sys.path[:0] = {path!r}\n"
        "from stochade.files import write_atomically as w\n"
        "f = pathlib.Path({file!r})\n"
        "while True:\n    w(f, b'a' * 3_000_000); w(f, b'b' * 3_000_000)\n"
    ).format(path=sys.path, file=str(tmp_path / "f"))
    process = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 60
    while not (tmp_path / "f").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    content = (tmp_path / "f").read_bytes()
    assert content in (b"a" * 3_000_000, b"b" * 3_000_000)
