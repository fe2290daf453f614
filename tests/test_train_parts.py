"""Parts of training: terms, penalties, schedules, patience, optimizers by name, the live line, TensorBoard."""

import json
import math
import sys
import types
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from small_training import SETTINGS, Few, Stop, run, same, sign_step, small, squares, told
from stochade.errors import BudgetError, ModelError, UsageError
from stochade.train import (
    Adversarial,
    Constant,
    Cosine,
    Epoch,
    Halving,
    Penalised,
    Standard,
    Steps,
    optimizer_named,
    parse_schedule,
    train,
)
from stochade.train.objectives import measured, takes_epoch
from stochade.train.optimizers import parameter_groups
from stochade.train.settings import named


class Parts:
    """The standard loss told as two parts; "late" from the second epoch on."""

    def __call__(self, forward, x, y, *, model, seed, epoch):
        loss, logits = Standard()(forward, x, y, model=model, seed=seed)
        terms = {"ce": loss, "size": torch.tensor(float(len(y)))}
        if epoch:
            terms["late"] = loss * 0 + epoch
        return loss, logits, terms


def test_terms_are_means_over_images_and_are_kept(tmp_path):
    history = run(small("mlp"), epochs=2, objective=Parts(), out=tmp_path)
    first, second = history.epochs
    assert first.terms["ce"] == pytest.approx(first.train_loss, rel=1e-6)
    assert first.terms["size"] == pytest.approx((3 * 16 * 16 + 12 * 12) / 60)
    assert "late" not in first.terms
    assert second.terms["late"] == 1
    lines = [Epoch(**json.loads(line)) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == list(history.epochs)
    again = run(small("mlp"), epochs=2, objective=Parts(), out=tmp_path)
    assert told(again) == told(history)


def test_objectives_with_and_without_epoch_and_terms_work_alike():
    old = lambda forward, x, y, *, model, seed: Standard()(forward, x, y, model=model, seed=seed)  # noqa: E731
    assert not takes_epoch(old)
    assert takes_epoch(Standard())
    assert takes_epoch(lambda *args, **kwargs: None)
    models = [small("mlp") for _ in range(3)]
    for model, objective in zip(models, (old, Standard(), Parts()), strict=True):
        run(model, objective=objective)
    assert same(models[0].state_dict(), models[1].state_dict())
    assert same(models[0].state_dict(), models[2].state_dict())


@pytest.mark.parametrize("answer", [None, (1,), (1, 2, 3, 4)])
def test_answers_of_another_form_are_refused(answer):
    with pytest.raises(ModelError, match="loss, logits"):
        run(small("mlp"), objective=lambda *args, **kwargs: answer)
    with pytest.raises(ModelError, match="scalar"):
        x, y = squares()[:4]
        wrong = lambda *args, **kwargs: (x.sum(), x, {"ce": x})  # noqa: E731
        measured(wrong, None, x, y, model=nn.Flatten(), seed=0, epoch=0)


def test_penalties_against_their_definition():
    """Gradient by hand: l1 sign(w) + 2 l2 w on weights, nothing on biases; parts add up to the loss."""
    model = small("mlp")
    x, y = squares()[:8]
    y = torch.as_tensor(y)
    nn.init.constant_(model.dense.bias, 0.3)
    plain, _ = Standard()(model, x, y, model=model, seed=0)
    loss, _, terms = Penalised(l1=1e-2, l2=1e-1)(model, x, y, model=model, seed=0)
    weights = [model.dense.weight, model.classifier.weight]
    torch.testing.assert_close(terms["l1"], 1e-2 * torch.cat([w.flatten() for w in weights]).abs().sum())
    torch.testing.assert_close(terms["l2"], 1e-1 * torch.cat([w.flatten() for w in weights]).square().sum())
    torch.testing.assert_close(loss, plain + terms["l1"] + terms["l2"])
    assert torch.equal(terms["ce"], plain)
    parameters = list(model.parameters())
    before, after = (torch.autograd.grad(value, parameters) for value in (plain, loss))
    for parameter, a, b in zip(parameters, before, after, strict=True):
        expected = 1e-2 * parameter.sign() + 2e-1 * parameter if parameter.ndim == 2 else 0 * parameter
        torch.testing.assert_close(b - a, expected.detach(), atol=1e-6, rtol=1e-4)
    assert Penalised()(model, x, y, model=model, seed=0)[0] == plain
    for wrong in ({"l1": -1e-3}, {"l2": math.nan}, {"l1": math.inf}, {"l2": True}):
        with pytest.raises(BudgetError, match=next(iter(wrong))):
            Penalised(**wrong)


def test_the_penalty_goes_around_any_objective_and_shrinks_weights():
    model, free = small("mlp"), small("mlp")
    history = run(model, epochs=5, objective=Penalised(Adversarial(sign_step), l1=1e-2))
    run(free, epochs=5, objective=Adversarial(sign_step))
    assert model.dense.weight.abs().sum() < 0.8 * free.dense.weight.abs().sum()
    assert set(history.epochs[0].terms) == {"ce", "l1"}
    last = history.epochs[-1]
    assert last.terms["ce"] + last.terms["l1"] == pytest.approx(last.train_loss, rel=1e-5)


def test_adversarial_weights_the_terms_of_its_inner_objective():
    model = small("mlp")
    x, y = squares()[:8]
    y = torch.as_tensor(y)
    inner = Penalised(l2=0.1)
    loss, _, terms = Adversarial(sign_step, 0.25, inner=inner)(model, x, y, model=model, seed=0)
    moved = sign_step(model, x, y, seed=0)
    expected = 0.25 * F.cross_entropy(model(x), y) + 0.75 * F.cross_entropy(model(moved), y)
    torch.testing.assert_close(terms["ce"], expected)
    torch.testing.assert_close(loss, terms["ce"] + terms["l2"])
    assert list(terms) == ["ce", "l2"]


def test_schedules_by_hand():
    steps = Steps((80, 120))
    assert [steps(e) for e in (0, 79, 80, 119, 120, 159)] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    assert [Halving(75)(e) for e in (0, 74, 75, 76, 78)] == [1, 1, 0.5, 0.25, 0.0625]
    assert [Cosine(4)(e) for e in range(6)] == pytest.approx([1, (1 + 0.5**0.5) / 2, 0.5, (1 - 0.5**0.5) / 2, 0, 0])
    assert Cosine(2, floor=0.5)(1) == pytest.approx(0.75)
    assert Constant()(7) == 1
    parsed = {
        "constant": Constant(),
        "steps 80,120": Steps((80, 120)),
        "steps 3 factor=0.5": Steps((3,), 0.5),
        "halving 75": Halving(75),
        "cosine": Cosine(20),
        "cosine floor=0.1": Cosine(20, 0.1),
    }
    for text, schedule in parsed.items():
        assert parse_schedule(text, 20) == schedule
    assert len({named(schedule) for schedule in parsed.values()}) == len(parsed)
    for text in (
        "",
        "linear",
        "steps",
        "steps a",
        "steps 5 floor=1",
        "halving",
        "halving 1,2",
        "cosine 5",
        "constant 1",
    ):
        with pytest.raises(UsageError, match="schedule"):
            parse_schedule(text, 20)
    for text in ("steps 5,5", "steps 5,3", "steps 0", "steps 5 factor=2", "cosine floor=2", "halving -1"):
        with pytest.raises((UsageError, BudgetError)):
            parse_schedule(text, 20)


def test_the_schedule_sets_the_rate_of_every_epoch_also_after_resuming(tmp_path):
    """Momentum-free SGD with a rate of 0 after the first epoch: later epochs must not move the weights."""
    sgd = optimizer_named("sgd", momentum=0.0)
    one, three = small("mlp"), small("mlp")
    run(one, epochs=1, optimizer=sgd)
    history = run(three, epochs=3, optimizer=sgd, schedule=Steps((1,), 1e-30))
    torch.testing.assert_close(one.dense.weight, three.dense.weight, atol=1e-12, rtol=0)
    assert history.epochs[1].train_loss == pytest.approx(history.epochs[2].train_loss, rel=1e-6)  # nothing moves
    assert history.epochs[0].train_loss != pytest.approx(history.epochs[1].train_loss, rel=1e-6)
    assert [e.rate for e in history.epochs] == pytest.approx([1e-2, 1e-32, 1e-32])
    whole, broken, momentum = small(), small(), optimizer_named("sgd", weight_decay=1e-3)
    run(whole, epochs=4, schedule=Halving(1), optimizer=momentum)
    run(broken, epochs=2, schedule=Halving(1), optimizer=momentum, out=tmp_path)
    run(broken, epochs=4, schedule=Halving(1), optimizer=momentum, out=tmp_path)
    assert same(whole.state_dict(), broken.state_dict())
    with pytest.raises(Exception, match="schedule"):
        run(small(), epochs=4, schedule=Halving(2), optimizer=momentum, out=tmp_path)
    with pytest.raises(ModelError, match="schedule"):
        run(small(), schedule=lambda epoch: -1.0)


def test_patience_ends_a_run_that_gets_no_better(tmp_path):
    """Validation labels turned round, so the first epochs are the best ones."""

    def go(model, **changes):
        turned = squares(40, 1)
        turned.labels = 1 - turned.labels
        return train(model, squares(), turned, **{**SETTINGS, "epochs": 30, **changes})

    history = go(small("mlp"), patience=3, out=tmp_path)
    assert history.stopped_early
    assert len(history.epochs) == history.best + 4 < 30
    again = go(small("mlp"), patience=3, out=tmp_path)
    assert again.resumed_from == len(history.epochs) == len(again.epochs)
    assert told(again) == told(history)
    longer = go(small("mlp"), patience=5, out=tmp_path)
    assert len(longer.epochs) == history.best + 6
    assert longer.resumed_from == len(history.epochs)
    whole = go(small("mlp"), patience=29)
    assert told(whole)[: len(longer.epochs)] == told(longer)
    assert not run(small("mlp"), epochs=2, patience=2).stopped_early
    for wrong in (0, -1, 1.5, True):
        with pytest.raises(BudgetError, match="patience"):
            go(small("mlp"), patience=wrong)


def test_optimizers_by_name():
    assert optimizer_named("adam") is torch.optim.Adam
    sgd = optimizer_named("sgd", weight_decay=3e-4)
    assert isinstance(sgd, partial)
    assert sgd.keywords == {"momentum": 0.9, "weight_decay": 3e-4}
    names = {named(optimizer_named(n, weight_decay=w)) for n in ("adam", "sgd") for w in (0.0, 1e-4, 3e-4)}
    assert len(names) == 6
    assert not any("0x" in name for name in names)
    for wrong in ({"name": "adagrad"}, {"name": "adam", "momentum": 0.9}):
        with pytest.raises(UsageError):
            optimizer_named(**wrong)
    for wrong in ({"momentum": 1.0}, {"weight_decay": -1.0}, {"weight_decay": math.inf}):
        with pytest.raises(BudgetError):
            optimizer_named("sgd", **wrong)


class Special(nn.Module):
    parameter_options = {"alpha": {"weight_decay": 0.0}, "scale": {"rate": 10.0}}  # noqa: RUF012

    def __init__(self):
        super().__init__()
        self.alpha, self.scale = nn.Parameter(torch.ones(())), nn.Parameter(torch.ones(()))
        self.linear = nn.Linear(16, 2)

    def forward(self, x):
        # alpha gets no gradient but zero, so that only decay could move it
        return self.linear(x.flatten(1)) * self.scale + 0 * self.alpha


def test_parameters_get_the_options_that_their_modules_ask_for():
    model = Special()
    groups = parameter_groups(model, 0.1)
    told_groups = {len(g["params"]): g for g in groups if len(g["params"]) == 2}
    assert told_groups[2]["lr"] == 0.1
    assert "weight_decay" not in told_groups[2]
    by_parameter = {id(p): g for g in groups for p in g["params"]}
    assert by_parameter[id(model.alpha)]["weight_decay"] == 0
    assert by_parameter[id(model.scale)]["lr"] == pytest.approx(1.0)
    decayed = Special()
    decayed.parameter_options = {}
    for m in (model, decayed):
        run(m, epochs=1, optimizer=optimizer_named("sgd", weight_decay=0.1), lr=1e-2)
    assert model.alpha == 1
    assert decayed.alpha < 1
    assert (model.scale - 1).abs() > 3 * (decayed.scale - 1).abs()
    model.parameter_options = {"alpha": {"momentum": 0.0}}
    with pytest.raises(ModelError, match="momentum"):
        parameter_groups(model, 0.1)


def test_the_live_line_tells_batches_terms_and_validation(monkeypatch, capfd):
    monkeypatch.setattr("stochade.progress.PATIENCE", 0.0)
    monkeypatch.setattr("stochade.progress.PLAIN_EVERY", 0.0)
    monkeypatch.setattr("stochade.train.telling.EVERY", 0.0)
    run(small("mlp"), epochs=2, objective=Parts(), progress=True)
    told_lines = capfd.readouterr().err
    for part in (
        "epoch 1/2 batch 1/4, loss ",
        "(ce ",
        "epoch 1/2, validating",
        "epoch 2/2 batch 4/4",
        ", validation ",
    ):
        assert part in told_lines
    assert "training: 100 %" in told_lines


def test_a_batch_left_out_does_not_leave_the_line_short(monkeypatch, capfd):
    monkeypatch.setattr("stochade.progress.PATIENCE", 0.0)
    monkeypatch.setattr("stochade.progress.PLAIN_EVERY", 0.0)
    train(small("gated"), squares(33), squares(4, 1), epochs=1, **{**SETTINGS, "progress": True})
    assert "batch 2/2" in (line := capfd.readouterr().err)
    assert "training: 100 %" in line


class Writer:
    made: list["Writer"] = []  # noqa: RUF012

    def __init__(self, folder, purge_step):
        self.folder, self.purge_step, self.scalars = folder, purge_step, []
        Writer.made.append(self)

    def add_scalar(self, name, value, step):
        self.scalars.append((name, value, step))

    def flush(self):
        pass

    def close(self):
        self.scalars.append("closed")


def test_tensorboard_gets_every_epoch_once_more_after_resuming(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", types.SimpleNamespace(SummaryWriter=Writer))
    Writer.made.clear()
    run(small(), epochs=1, objective=Parts(), out=tmp_path, tensorboard=True)
    history = run(small(), epochs=3, objective=Parts(), out=tmp_path, tensorboard=True)
    last = Writer.made[-1]
    assert last.folder == str(tmp_path / "tensorboard")
    assert last.purge_step == 0
    values = {(name, step): value for name, value, step in last.scalars[:-1]}
    assert last.scalars[-1] == "closed"
    for e in history.epochs:
        assert values["accuracy/validation", e.epoch] == e.validation_accuracy
        assert values["terms/ce", e.epoch] == e.terms["ce"]
        assert values["slope", e.epoch] == e.slope


def test_the_real_tensorboard_reads_what_was_written(tmp_path):
    reader = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="no tensorboard: pip install tensorboard"
    )
    run(small(), epochs=1, objective=Parts(), out=tmp_path, tensorboard=True)
    history = run(small(), epochs=3, objective=Parts(), out=tmp_path, tensorboard=True)
    found = reader.EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    events = found.Scalars("accuracy/validation")
    told = {event.step: event.value for event in events}
    assert [event.step for event in events] == [0, 1, 2]  # those of the first run are purged, not doubled
    for e in history.epochs:
        assert told[e.epoch] == pytest.approx(e.validation_accuracy)
        assert {x.step: x.value for x in found.Scalars("terms/ce")}[e.epoch] == pytest.approx(e.terms["ce"])


def test_tensorboard_needs_a_folder_and_its_package(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="out="):
        run(small(), tensorboard=True)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)  # makes the import fail
    with pytest.raises(UsageError, match=r"stochade\[tensorboard\]"):
        run(small(), tensorboard=True, out=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_stop_inside_an_epoch_resumes_with_terms_and_schedule(tmp_path):
    class Dies(Parts):
        left = 6

        def __call__(self, *args, **kwargs):
            Dies.left -= 1
            if Dies.left < 0:
                raise Stop
            return super().__call__(*args, **kwargs)

    Dies.__qualname__ = "Parts"
    settings = {"schedule": Cosine(3), "patience": 3}
    with pytest.raises(Stop):
        run(small(), objective=Dies(), out=tmp_path, **settings)
    Dies.left = 99
    resumed, whole = small(), small()
    history = run(resumed, objective=Dies(), out=tmp_path, **settings)
    assert history.resumed_from == 1
    assert told(history) == told(run(whole, objective=Dies(), **settings))
    assert same(resumed.state_dict(), whole.state_dict())


def test_data_without_a_batch_of_its_own_size():
    one = Few(squares().pixels[:1], squares().labels[:1])
    history = train(small("mlp"), one, squares(4, 1), epochs=1, **SETTINGS)
    assert len(history.epochs) == 1
