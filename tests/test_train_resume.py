"""Training that was stopped or killed: resuming changes no bit of the outcome; files of another run are refused."""

import json
import os
import signal
import subprocess
import sys
import time
import warnings

import pytest
import torch
from torch import nn

from small_training import SETTINGS, Dying, Stop, run, same, sign_step, small, squares, state_of, told
from stochade import checkpoint
from stochade.errors import (
    CheckpointError,
)
from stochade.train import Adversarial, Epoch, Standard, train


@pytest.mark.parametrize("batches", [2, 4, 9])
@pytest.mark.parametrize("name", ["mlp-stochastic", "gated"])
def test_a_stopped_run_ends_with_the_same_bits(name, batches, tmp_path):
    """Four batches make an epoch: stopped inside the first, right after it, and inside the third."""
    whole, broken = small(name), small(name)
    expected = run(whole, objective=Dying(99), out=tmp_path / "whole")
    with pytest.raises(Stop):
        run(broken, objective=Dying(batches), out=tmp_path / "broken")
    fresh = small(name)  # a new process would build it anew; its weights need not even be the same
    if batches >= 4:
        nn.init.zeros_(fresh.dense.weight)
    history = run(fresh, objective=Dying(99), out=tmp_path / "broken")
    assert history.resumed_from == batches // 4
    assert told(history) == told(expected)
    assert same(whole.state_dict(), fresh.state_dict())
    lines = (tmp_path / "broken" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [0, 1, 2]


def test_a_killed_process_ends_with_the_same_bits(tmp_path):
    """Really killed (SIGKILL) in the middle of an epoch, then resumed here."""
    code = (
        f"import sys; sys.path[:0] = {sys.path!r}\n"
        "import time, small_training as t\n"
        "class Slow:\n"
        "    def __call__(self, *args, **kwargs):\n"
        "        time.sleep(0.02)\n"
        "        return t.Standard()(*args, **kwargs)\n"
        "Slow.__qualname__ = Slow.__name__ = 'Slow'\n"
        f"t.run(t.small(), epochs=500, objective=Slow(), out={str(tmp_path / 'out')!r})\n"
    )

    class Slow(Standard):
        pass

    Slow.__qualname__ = "Slow"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=os.path.dirname(__file__))
    metrics, deadline = tmp_path / "out" / "metrics.jsonl", time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        if metrics.exists() and len(metrics.read_text().splitlines()) >= 3:
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL

    class Same:
        def __call__(self, *args, **kwargs):
            return Standard()(*args, **kwargs)

    Same.__qualname__ = "Slow"
    resumed, whole = small(), small()
    history = run(resumed, epochs=8, objective=Same(), out=tmp_path / "out")
    assert 3 <= history.resumed_from < 500
    expected = run(whole, epochs=len(history.epochs))
    assert told(history) == told(expected)
    assert same(resumed.state_dict(), whole.state_dict())


def test_a_finished_run_is_not_repeated_and_more_epochs_prolong_it(tmp_path):
    first, again, longer, whole = small(), small(), small(), small()
    run(first, epochs=2, out=tmp_path)
    with warnings.catch_warnings():
        history = run(again, epochs=2, out=tmp_path, objective=Standard())
    assert history.resumed_from == 2
    assert same(first.state_dict(), again.state_dict())
    assert told(run(longer, epochs=4, out=tmp_path)) == told(run(whole, epochs=4))
    assert same(longer.state_dict(), whole.state_dict())


def test_out_holds_metrics_and_the_checkpoint_of_the_best_epoch(tmp_path):
    model = small()
    history = run(model, out=tmp_path / "deep" / "out")
    out = tmp_path / "deep" / "out"
    lines = [Epoch(**json.loads(line)) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert tuple(lines) == tuple(history.epochs)
    assert same(checkpoint.load(out).state_dict(), model.state_dict())
    facts = checkpoint.describe(out)["extra"]["training"]
    assert (facts["epochs"], facts["best_epoch"], facts["seed"]) == (3, history.best, 0)
    names = {"metrics.jsonl", "model.json", "state.safetensors", "weights.safetensors"}
    assert {p.name for p in out.iterdir()} == names


def test_another_run_or_a_damaged_one_is_refused_and_nothing_is_overwritten(tmp_path):
    run(small(), epochs=1, out=tmp_path)
    file = tmp_path / "state.safetensors"
    content = file.read_bytes()
    for changes in ({"seed": 1}, {"lr": 1e-3}, {"batch": 8}, {"objective": Adversarial(sign_step)}):
        model = small()
        before = state_of(model)
        with pytest.raises(CheckpointError, match=next(iter(changes))):
            run(model, out=tmp_path, **changes)
        assert same(model.state_dict(), before)
    with pytest.raises(CheckpointError, match="data"):
        train(small(), squares(60, 9), squares(40, 1), epochs=1, out=tmp_path, **SETTINGS)
    assert file.read_bytes() == content
    for damaged in (content[:-5], content[:40], b"", content[:-3] + b"\x00\x01\x02"):
        file.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"state\.safetensors"):
            run(small(), out=tmp_path)


def test_a_foreign_model_trains_and_resumes_without_a_checkpoint(tmp_path):
    def made():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Dropout(0.2), nn.Linear(16, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))

    whole, broken = made(), made()
    run(whole, epochs=4)
    run(broken, epochs=2, out=tmp_path)
    broken = made()
    run(broken, epochs=4, out=tmp_path)
    assert same(whole.state_dict(), broken.state_dict())
    assert not (tmp_path / "model.json").exists()


def test_momentum_resumes_too(tmp_path):
    from functools import partial

    sgd = partial(torch.optim.SGD, momentum=0.9)
    whole, broken = small(), small()
    run(whole, epochs=4, optimizer=sgd)
    run(broken, epochs=2, optimizer=sgd, out=tmp_path)
    run(broken, epochs=4, optimizer=sgd, out=tmp_path)
    assert same(whole.state_dict(), broken.state_dict())
