"""Training: one loop for every network, selected on validation images only, that a kill does not undo."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from stochade import checkpoint
from stochade.errors import BudgetError, UsageError
from stochade.nn import slope_annealing
from stochade.progress import progress as show_progress
from stochade.randomness import forked
from stochade.train.augment import Augment
from stochade.train.checks import LabelledImages, check, check_augment, probe
from stochade.train.epoch import EpochRunner, batches_of
from stochade.train.fabric import make_fabric, quiet
from stochade.train.objectives import Standard, TrainingObjective
from stochade.train.optimizers import parameter_groups
from stochade.train.schedules import Constant
from stochade.train.settings import fingerprint_of, named
from stochade.train.state import Epoch, Progress, load_state, save_state
from stochade.train.telling import Board, LiveLine, board_writer


@dataclass(frozen=True)
class History:
    """What training did. The model holds the weights of epoch `best`.

    Attributes:
        epochs: every epoch, those before an interruption included.
        best: the epoch with the highest validation accuracy (then the lowest loss, then the earliest).
        resumed_from: how many epochs were taken over from an earlier run of the same settings.
        stopped_early: whether `patience` ended the run before its last epoch.
    """

    epochs: Sequence[Epoch]
    best: int
    resumed_from: int = 0
    stopped_early: bool = False

    @property
    def best_accuracy(self) -> float:
        """Validation accuracy of the chosen epoch; optimistic, because it was chosen for it."""
        return self.epochs[self.best].validation_accuracy


def train(
    model: nn.Module,
    train_images: LabelledImages,
    validation_images: LabelledImages,
    *,
    epochs: int,
    batch: int = 50,
    lr: float = 1e-3,
    objective: TrainingObjective | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    device: str = "cpu",
    precision: str | None = None,
    progress: bool = True,
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.Adam,
    slope: Callable[[int], float] | None = slope_annealing,
    schedule: Callable[[int], float] | None = None,
    patience: int | None = None,
    tensorboard: bool = False,
    augment: Augment | None = None,
) -> History:
    """Train in place: afterwards the model holds the weights of its best epoch on the validation images.

    What is drawn follows from `seed` alone (the initial weights are the caller's); modes, gradients, device and
    the global generators are as they were before. A run stopped at any moment goes on from its last whole epoch
    when called again with the same `out` and settings, and ends with the same bits as one that was never
    stopped; more `epochs`, or more `patience`, prolong it.

    Args:
        model: images [N,C,H,W] in [0,1] -> logits [N,K].
        train_images, validation_images: `len(images)`, `images[index array or slice] -> (images, labels)`.
        epochs: in all, at least 1.
        batch: images per step; a last batch of a single image is left out (batch norm cannot take it).
        lr: learning rate.
        objective: `Standard()` by default, or `Adversarial(attack, weight)`.
        out: a folder for `metrics.jsonl`, the state to resume from and, if the model was built by
            `stochade.registry.build`, the checkpoint of the best epoch. None: nothing is written.
        device: "cpu", "cuda", "cuda:1" or "mps".
        precision: None or "32-true", "16-mixed", "bf16-mixed" (Lightning Fabric's names). The loss scale of
            "16-mixed" starts anew when a run is resumed, so there the bits may differ.
        progress: on standard error.
        optimizer: called as `optimizer(parameters, lr=lr)`; `optimizer_named` makes the usual ones. Parameters come
            in groups where modules have `parameter_options` (see `stochade.train.optimizers`).
        slope: epoch -> slope for binary units with `anneal`; None leaves slopes alone.
        schedule: epoch -> factor of the learning rate, one of `stochade.train.schedules`; None keeps it constant.
        patience: stop after so many epochs without a better one on the validation images; None: never.
        tensorboard: write `out`/tensorboard as well (needs stochade[tensorboard]).
        augment: changes training images before each step, `Augment()` or `(x, index, *, seed, epoch) -> x`; None
            leaves them as they are.

    Raises:
        BudgetError: numbers of epochs, images per batch, a patience or a learning rate that make no sense.
        UsageError: a device or precision that is not there, or tensorboard without `out` or not installed.
        DataError: no images. ModelError: no parameters to train, images that the model cannot take, or a loss
            that is not finite.
        LogitsError: outputs that are no logits [N,K]. LabelsError: labels that are not in [0, K).
        CheckpointError: `out` holds a run with other settings, or a damaged one.
    """
    objective = Standard() if objective is None else objective
    schedule = Constant() if schedule is None else schedule
    check(model, train_images, validation_images, epochs, batch, lr)
    if patience is not None and (isinstance(patience, bool) or not isinstance(patience, int) or patience < 1):
        raise BudgetError("a patience of at least one epoch, or None", repr(patience))
    if tensorboard:
        if out is None:
            raise UsageError("out= for tensorboard", "None", "TensorBoard's files go into that folder")
        board_writer()
    classes = probe(model, train_images)
    if augment is not None:
        check_augment(augment, train_images, seed)
    folder = None if out is None else Path(out)
    modes = [(module, module.training) for module in model.modules()]
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    for parameter in model.parameters():
        parameter.grad = None
    home = next(model.parameters()).device
    settings = {
        "model": getattr(model, "description", None) or repr(model),
        "batch": batch,
        "lr": lr,
        "seed": seed,
        "objective": named(objective),
        "optimizer": named(optimizer),
        "slope": named(slope),
        "schedule": named(schedule),
        "precision": precision or "32-true",
        "data": [fingerprint_of(train_images), fingerprint_of(validation_images)],
    }
    if augment is not None:
        settings["augment"] = named(augment)
    try:
        with quiet(), forked():
            fabric = make_fabric(device, precision)
            model.to(fabric.device)
            made = optimizer(parameter_groups(model, lr), lr=lr)
            rates = [group["lr"] for group in made.param_groups]
            state = (None if folder is None else load_state(folder, model, made, settings)) or Progress([], None, {})
            resumed = len(state.epochs)
            forward, stepper = fabric.setup(model, made)
            board = Board(folder / "tensorboard", state.epochs) if tensorboard and folder is not None else None
            steps = batches_of(len(train_images), batch)
            with show_progress("training", epochs * steps, progress, min(resumed, epochs) * steps) as tick:
                line = LiveLine(tick, epochs, steps)
                run = EpochRunner(
                    fabric, model, forward, stepper, objective, seed, batch, slope, schedule, rates, lr, classes,
                    line, augment,
                )  # fmt: skip
                for epoch in range(resumed, epochs):
                    if _impatient(state, patience):
                        break
                    told = run(epoch, train_images, validation_images)
                    if not state.epochs or _rank(told) > _rank(state.epochs[state.best or 0]):
                        state.best, state.best_tensors = epoch, checkpoint.tensors_of(model)
                    state.epochs.append(told)
                    if folder is not None:
                        save_state(folder, model, made, state, settings)
                    if board is not None:
                        board.epoch(told)
                    line.epoch(told, state.epochs[state.best or 0].validation_accuracy)
            if board is not None:
                board.close()
            checkpoint.load_into(model, state.best_tensors)
            stopped = len(state.epochs) < epochs
            history = History(tuple(state.epochs), state.best or 0, resumed, stopped)
            if folder is not None and isinstance(getattr(model, "description", None), dict):
                facts = {k: v for k, v in settings.items() if k != "model"}
                facts |= {"epochs": len(history.epochs), "best_epoch": history.best}
                facts["validation_accuracy"] = history.best_accuracy
                note = getattr(train_images, "note", "")
                checkpoint.save(model, folder, extra={"training": facts, "data": note})
    finally:
        model.to(home)
        for module, training in modes:
            module.training = training
        for parameter, gradient in gradients:
            parameter.grad = gradient
    return history


def _impatient(state: Progress, patience: int | None) -> bool:
    return patience is not None and state.best is not None and len(state.epochs) - 1 - state.best >= patience


def _rank(epoch: Epoch) -> tuple[float, float]:
    loss = epoch.validation_loss
    return epoch.validation_accuracy, -loss if math.isfinite(loss) else -math.inf
