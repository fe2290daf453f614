"""Training: learns, selects on validation, leaves the caller alone, and a kill changes no bit of the outcome."""

import json
import logging
import os
import pickle
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import asdict

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stochade import checkpoint
from stochade.errors import (
    BudgetError,
    CheckpointError,
    DataError,
    ImagesError,
    LabelsError,
    LogitsError,
    ModelError,
    UsageError,
)
from stochade.randomness import fingerprint
from stochade.registry import build
from stochade.train import Adversarial, Epoch, Standard, adversarial, standard, train
from stochade.train.settings import named


class Few:
    """The least that training asks of a data set."""

    def __init__(self, pixels, labels):
        self.pixels, self.labels = pixels, labels

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return torch.as_tensor(self.pixels[index]), self.labels[index]


def digits(start, stop):
    from sklearn.datasets import load_digits

    bunch = load_digits()
    order = np.random.default_rng(0).permutation(len(bunch.target))[start:stop]
    return Few((bunch.images[order, None] / 16).astype(np.float32), bunch.target[order])


def squares(n=60, seed=0):
    """Two classes that a line divides; small enough for many runs."""
    rng = np.random.default_rng(seed)
    pixels = rng.random((n, 1, 4, 4), dtype=np.float32)
    return Few(pixels, (pixels[:, 0, 0].sum(1) > pixels[:, 0, 3].sum(1)).astype(np.int64))


def small(name="mlp-stochastic", **options):
    torch.manual_seed(0)
    return build(name, (1, 4, 4), 2, **options)


def state_of(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def told(history):
    return [{k: v for k, v in asdict(e).items() if k != "seconds"} for e in history.epochs]


def sign_step(model, x, y, *, seed, size=0.1):
    x = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(model(x), y), x)
    return (x.detach() + size * gradient.sign()).clamp(0, 1)


SETTINGS = {"batch": 16, "lr": 1e-2, "progress": False}


def run(model, epochs=3, **changes):
    return train(model, squares(), squares(40, 1), epochs=epochs, **{**SETTINGS, **changes})


def test_mlp_learns_the_digits_in_seconds():
    """A linear classifier gets about 95 %; 90 % is far below what a working loop reaches."""
    torch.manual_seed(0)
    model = build("mlp")
    history = train(model, digits(0, 1200), digits(1200, 1400), epochs=10, lr=1e-2, progress=False)
    test = digits(1400, 1797)
    with torch.no_grad():
        predicted = model(test[:][0]).argmax(1).numpy()
    assert (predicted == test.labels).mean() > 0.9
    assert history.best_accuracy > 0.9
    assert sum(e.seconds for e in history.epochs) < 20


def test_one_epoch_is_plain_adam_on_the_recorded_order():
    """A second implementation: the same batches in the same order through torch alone."""
    from stochade.randomness import seed_for

    model, twin = small("mlp"), small("mlp")
    history = run(model, epochs=1, seed=5)
    data = squares()
    optimizer = torch.optim.Adam(twin.parameters(), lr=1e-2)
    total = 0.0
    for index in np.split(np.random.default_rng(seed_for(5, "order", 0)).permutation(60), [16, 32, 48]):
        x, y = data[index]
        loss = F.cross_entropy(twin(x), torch.as_tensor(y))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.item() * len(y)
    assert same(model.state_dict(), twin.state_dict())
    assert history.epochs[0].train_loss == pytest.approx(total / 60)
    x, y = squares(40, 1)[:]
    with torch.no_grad():
        logits = twin(x)
    assert history.epochs[0].validation_accuracy == (logits.argmax(1).numpy() == y).mean()
    assert history.epochs[0].validation_loss == pytest.approx(F.cross_entropy(logits, torch.as_tensor(y)).item())


def test_the_best_epoch_on_validation_is_kept():
    """Validation labels turned round: training makes it worse, so the first epoch must win."""
    model = small("mlp")
    turned = squares(40, 1)
    turned.labels = 1 - turned.labels
    history = train(model, squares(), turned, epochs=8, **SETTINGS)
    accuracies = [e.validation_accuracy for e in history.epochs]
    assert history.best == accuracies.index(max(accuracies))
    assert history.best < 7
    with torch.no_grad():
        again = (model(turned[:][0]).argmax(1).numpy() == turned.labels).mean()
    assert again == history.best_accuracy == max(accuracies)
    assert again > accuracies[-1]


def test_equal_seeds_give_equal_bits_and_others_do_not():
    models = [small() for _ in range(3)]
    histories = [run(m, seed=s) for m, s in zip(models, (1, 1, 2), strict=True)]
    assert same(models[0].state_dict(), models[1].state_dict())
    assert told(histories[0]) == told(histories[1])
    assert not same(models[0].state_dict(), models[2].state_dict())


def test_the_slope_is_annealed_by_epoch_and_the_best_slope_is_kept():
    model = small()
    history = run(model, epochs=4)
    assert [e.slope for e in history.epochs] == pytest.approx([1, 1.04, 1.08, 1.12])
    assert model.activation.slope == history.epochs[history.best].slope
    model = small()
    assert [e.slope for e in run(model, epochs=2, slope=None).epochs] == [None, None]
    assert model.activation.slope == 1.0
    hard = small(backward="hard")
    assert run(hard, epochs=2).epochs[1].slope is None
    assert hard.activation.slope == 1.0


@pytest.mark.parametrize("fail", [False, True])
def test_the_caller_finds_everything_as_it_was(fail, capfd):
    model = small("gated")
    model.train()
    model.features[0].eval()
    modes = [m.training for m in model.modules()]
    gradient = torch.ones_like(model.classifier.weight)
    model.classifier.weight.grad = gradient
    model.classifier.bias.requires_grad_(False)
    bias = model.classifier.bias.clone()
    filters, environment = list(warnings.filters), dict(os.environ)
    threads, generators = torch.get_num_threads(), fingerprint()
    handlers = list(logging.getLogger().handlers)

    def objective(forward, x, y, *, model, seed):
        if fail:
            raise RuntimeError
        return Standard()(forward, x, y, model=model, seed=seed)

    if fail:
        with pytest.raises(RuntimeError):
            run(model, objective=objective)
    else:
        run(model, objective=objective)
    assert [m.training for m in model.modules()] == modes
    assert model.classifier.weight.grad is gradient
    assert gradient.eq(1).all()
    assert model.dense.weight.grad is None
    assert torch.equal(model.classifier.bias, bias)
    assert not model.classifier.bias.requires_grad
    assert warnings.filters == filters
    assert dict(os.environ) == environment
    assert (torch.get_num_threads(), fingerprint()) == (threads, generators)
    assert logging.getLogger().handlers == handlers
    assert capfd.readouterr() == ("", "")
    pickle.loads(pickle.dumps(model))


class Stop(Exception):
    pass


class Dying:
    """The standard objective, dying at the n-th batch of its life."""

    def __init__(self, batches):
        self.left = batches

    def __call__(self, forward, x, y, *, model, seed):
        self.left -= 1
        if self.left < 0:
            raise Stop
        return Standard()(forward, x, y, model=model, seed=seed)


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
        "import time, test_train as t\n"
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


def test_the_mixture_is_equation_2_29():
    model = small("mlp")
    x, y = squares()[:8]
    y = torch.as_tensor(y)
    moved = sign_step(model, x, y, seed=0)
    clean, attacked = F.cross_entropy(model(x), y), F.cross_entropy(model(moved), y)
    for weight in (0.0, 0.3, 0.5, 1.0):
        loss, logits = adversarial(sign_step, weight)(model, x, y, model=model, seed=0)
        torch.testing.assert_close(loss, weight * clean + (1 - weight) * attacked)
        assert torch.equal(logits, model(moved if weight == 0 else x))
    assert standard() == Standard()


def test_crafting_sees_evaluation_mode_and_draws_of_its_own():
    """The attack's first draws must not be those of the training pass that follows."""
    seen = {}

    class Spy(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(2, 16))

        def forward(self, x):
            seen.setdefault(self.training, []).append(torch.rand(4))
            return F.linear(x.flatten(1), self.weight)

    def attack(model, x, y, *, seed):
        seen["seed"] = seed
        moved = x.clone().requires_grad_()
        model(moved).sum().backward()  # a sloppy attack
        return moved

    model = Spy().train()
    x, y = squares()[:4]
    _, logits = Adversarial(attack, 0.0)(model, x, torch.as_tensor(y), model=model, seed=7)
    assert model.training
    assert model.weight.grad is None
    assert torch.autograd.grad(logits.sum(), model.weight)[0].any()
    assert seen["seed"] == 7
    assert not torch.equal(seen[True][0], seen[False][0])


def test_adversarial_training_helps_against_its_own_attack():
    data, validation = digits(0, 600), digits(600, 800)
    accuracies = []
    for objective in (Standard(), Adversarial(sign_step, 0.5)):
        torch.manual_seed(0)
        model = build("mlp")
        train(model, data, validation, epochs=10, lr=1e-2, objective=objective, progress=False)
        x, y = validation[:]
        moved = sign_step(model, x, torch.as_tensor(y), seed=0)
        with torch.no_grad():
            accuracies.append((model(moved).argmax(1).numpy() == y).mean())
    assert accuracies[1] > accuracies[0] + 0.05


def test_attacks_that_return_nonsense_are_refused():
    for attack in (lambda m, x, y, seed: x[:1], lambda m, x, y, seed: None, lambda m, x, y, seed: x * float("nan")):
        with pytest.raises(ImagesError):
            run(small(), objective=Adversarial(attack))
    with pytest.raises(UsageError, match="weight"):
        Adversarial(sign_step, 1.5)


def test_names_in_settings_hold_no_addresses_and_tell_settings_apart():
    from functools import partial

    stronger = partial(sign_step, size=0.2)
    names = {named(Adversarial(a, w)) for a in (sign_step, stronger, partial(sign_step)) for w in (0.3, 0.5)}
    assert len(names) == 6
    assert not any("0x" in name for name in names)
    assert named(Dying(3)) == "Dying"


def test_bfloat16_precision_trains_and_keeps_float_weights():
    model = small("1cnn-stochastic")
    history = run(model, epochs=2, precision="bf16-mixed")
    assert model.dense.weight.dtype == torch.float32
    assert history.epochs[1].train_loss < 1


def test_a_last_batch_of_one_is_left_out_for_batch_norm():
    history = train(small("gated"), squares(33), squares(1, 1), epochs=1, **SETTINGS)
    assert len(history.epochs) == 1


def test_errors_come_before_any_step(tmp_path):
    model = small()
    before = state_of(model)
    for changes in ({"epochs": 0}, {"batch": 0}, {"lr": 0.0}, {"lr": float("nan")}):
        with pytest.raises(BudgetError):
            run(model, out=tmp_path, **changes)
    for changes in ({"device": "tpu"}, {"device": "cuda:99"}, {"precision": "8-bit"}):
        with pytest.raises(UsageError):
            run(model, out=tmp_path, **changes)
    with pytest.raises(DataError, match="validation"):
        train(model, squares(), Few(np.zeros((0, 1, 4, 4), np.float32), np.zeros(0)), epochs=1, **SETTINGS)
    with pytest.raises(ModelError, match="parameters"):
        run(nn.Flatten())
    with pytest.raises(LogitsError, match="logits"):
        run(nn.Conv2d(1, 2, 3), out=tmp_path)
    with pytest.raises(ModelError, match="images"):
        run(build("mlp"), out=tmp_path)
    late = squares()
    late.labels[-1] = 2  # not among the first images
    for labels in (squares().labels + 1, squares().labels - 1, squares().labels * 0.5, late.labels):
        with pytest.raises(LabelsError, match="from 0 to 1"):
            train(small(), Few(squares().pixels, labels), squares(), epochs=1, **SETTINGS)
    assert same(model.state_dict(), before)
    assert list(tmp_path.iterdir()) == []


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    with pytest.raises(ModelError, match="finite"):
        run(small("mlp"), objective=lambda f, x, y, model, seed: (f(x).sum() * float("nan"), f(x)), out=tmp_path)
    assert not (tmp_path / "state.safetensors").exists()


def test_progress_is_told_and_can_be_turned_off(monkeypatch, capfd):
    run(small(), epochs=1, progress=True)
    assert capfd.readouterr() == ("", ""), "silent for two seconds"
    monkeypatch.setattr("stochade.progress.PATIENCE", 0.0)
    run(small(), epochs=1, progress=False)
    assert capfd.readouterr() == ("", "")
    run(small(), epochs=1, progress=True)
    assert "training: 25 %" in capfd.readouterr().err
