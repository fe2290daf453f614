"""Training: learns, selects on validation, leaves the caller alone, and tells mistakes before any step."""

import logging
import os
import pickle
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from small_training import SETTINGS, Few, digits, run, same, small, squares, state_of, told
from stochade.errors import (
    BudgetError,
    DataError,
    LabelsError,
    LogitsError,
    ModelError,
    UsageError,
)
from stochade.randomness import fingerprint
from stochade.registry import build
from stochade.train import Standard, train


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
