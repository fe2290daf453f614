"""Training: one loop for every network, selected on validation images only, that a kill does not undo."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stochade import checkpoint
from stochade.errors import ModelError
from stochade.nn import slope_annealing
from stochade.nn.binary import _SlopedUnit
from stochade.progress import progress as show_progress
from stochade.randomness import forked, seed_for
from stochade.train.checks import LabelledImages, check, checked_labels, probe
from stochade.train.fabric import make_fabric, quiet
from stochade.train.objectives import Standard, TrainingObjective
from stochade.train.settings import fingerprint_of, named
from stochade.train.state import Epoch, Progress, load_state, save_state


@dataclass(frozen=True)
class History:
    """What training did. The model holds the weights of epoch `best`.

    Attributes:
        epochs: every epoch, those before an interruption included.
        best: the epoch with the highest validation accuracy (then the lowest loss, then the earliest).
        resumed_from: how many epochs were taken over from an earlier run of the same settings.
    """

    epochs: Sequence[Epoch]
    best: int
    resumed_from: int = 0

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
) -> History:
    """Train in place: afterwards the model holds the weights of its best epoch on the validation images.

    What is drawn follows from `seed` alone (the initial weights are the caller's); modes, gradients, device and
    the global generators are as they were before. A run stopped at any moment goes on from its last whole epoch
    when called again with the same `out` and settings, and ends with the same bits as one that was never
    stopped; more `epochs` prolong it.

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
        optimizer: called as `optimizer(parameters, lr=lr)`.
        slope: epoch -> slope for binary units with `anneal`; None leaves slopes alone.

    Raises:
        BudgetError: numbers of epochs, images per batch or a learning rate that make no sense.
        DataError: no images. ModelError: no parameters to train, images that the model cannot take, or a loss
            that is not finite.
        LogitsError: outputs that are no logits [N,K]. LabelsError: labels that are not in [0, K).
        CheckpointError: `out` holds a run with other settings, or a damaged one.
    """
    objective = Standard() if objective is None else objective
    check(model, train_images, validation_images, epochs, batch, lr)
    classes = probe(model, train_images)
    folder = None if out is None else Path(out)
    modes = [(module, module.training) for module in model.modules()]
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    for parameter in model.parameters():
        parameter.grad = None
    home = next(model.parameters()).device
    settings = {
        "model": getattr(model, "description", type(model).__name__),
        "batch": batch,
        "lr": lr,
        "seed": seed,
        "objective": named(objective),
        "optimizer": named(optimizer),
        "slope": named(slope),
        "precision": precision or "32-true",
        "data": [fingerprint_of(train_images), fingerprint_of(validation_images)],
    }
    try:
        with quiet(), forked():
            fabric = make_fabric(device, precision)
            trainable = [p for p in model.parameters() if p.requires_grad]
            model.to(fabric.device)
            made = optimizer(trainable, lr=lr)
            state = (None if folder is None else load_state(folder, model, made, settings)) or Progress([], None, {})
            resumed = len(state.epochs)
            forward, stepper = fabric.setup(model, made)
            run = _Run(fabric, model, forward, stepper, objective, seed, batch, slope, classes)
            with show_progress("training", epochs, progress, min(resumed, epochs)) as tick:
                for epoch in range(resumed, epochs):
                    told = run.epoch(epoch, train_images, validation_images)
                    if not state.epochs or _rank(told) > _rank(state.epochs[state.best or 0]):
                        state.best, state.best_tensors = epoch, checkpoint.tensors_of(model)
                    state.epochs.append(told)
                    if folder is not None:
                        save_state(folder, model, made, state, settings)
                    tick(1, f"validation {100 * told.validation_accuracy:.1f} %")
            checkpoint.load_into(model, state.best_tensors)
            history = History(tuple(state.epochs), state.best or 0, resumed)
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


@dataclass
class _Run:
    fabric: Any
    model: nn.Module
    forward: Any
    optimizer: Any
    objective: TrainingObjective
    seed: int
    batch: int
    slope: Callable[[int], float] | None
    classes: int

    def epoch(self, epoch: int, train_images: LabelledImages, validation_images: LabelledImages) -> Epoch:
        started = time.perf_counter()
        slope = self._anneal(epoch)
        with forked(seed_for(self.seed, "epoch", epoch)):
            loss, accuracy = self._fit(epoch, train_images)
        # The same draws in every epoch: a lucky draw of noise then favours all epochs alike.
        with forked(seed_for(self.seed, "validation")):
            validation_loss, validation_accuracy = self._validate(validation_images)
        seconds = time.perf_counter() - started
        return Epoch(epoch, loss, accuracy, validation_loss, validation_accuracy, slope, seconds)

    def _anneal(self, epoch: int) -> float | None:
        units = [m for m in self.model.modules() if isinstance(m, _SlopedUnit) and m.anneal]
        if self.slope is None or not units:
            return None
        for unit in units:
            unit.set_slope(self.slope(epoch))
        return units[0].slope

    def _to_device(self, pair: tuple[Tensor, Any]) -> tuple[Tensor, Tensor]:
        x, y = pair[0], checked_labels(pair[1], self.classes)  # checked here: on an accelerator they end the process
        return x.to(self.fabric.device), y.to(self.fabric.device)

    def _fit(self, epoch: int, images: LabelledImages) -> tuple[float, float]:
        order = np.random.default_rng(seed_for(self.seed, "order", epoch)).permutation(len(images))
        self.model.train()
        losses: list[Tensor] = []  # kept on the device: reading one would wait for it
        hits: list[Tensor] = []
        seen = 0
        for number, start in enumerate(range(0, len(order), self.batch)):
            index = order[start : start + self.batch]
            if len(index) == 1 and start > 0:
                break
            x, y = self._to_device(images[index])
            seed = seed_for(self.seed, "attack", epoch, number)
            loss, logits = self.objective(self.forward, x, y, model=self.model, seed=seed)
            self.optimizer.zero_grad()
            self.fabric.backward(loss)
            self.optimizer.step()
            losses.append(loss.detach() * len(y))
            hits.append((logits.detach().argmax(1) == y).sum())
            seen += len(y)
        total, right = (float(torch.stack(values).cpu().double().sum()) for values in (losses, hits))
        if not math.isfinite(total):
            raise ModelError("a finite training loss", f"{total} in epoch {epoch}", "lower the learning rate")
        return total / seen, right / seen

    @torch.no_grad()
    def _validate(self, images: LabelledImages, chunk: int = 500) -> tuple[float, float]:
        self.model.eval()
        loss, right = 0.0, 0
        for start in range(0, len(images), chunk):
            x, y = self._to_device(images[start : start + chunk])
            logits = self.forward(x).float()
            loss += float(F.cross_entropy(logits, y, reduction="sum"))
            right += int((logits.argmax(1) == y).sum())
        return loss / len(images), right / len(images)


def _rank(epoch: Epoch) -> tuple[float, float]:
    loss = epoch.validation_loss
    return epoch.validation_accuracy, -loss if math.isfinite(loss) else -math.inf
