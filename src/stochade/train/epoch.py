"""One epoch of training: the batches, then the validation images."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stochade.errors import ModelError
from stochade.nn.binary import SlopedUnit
from stochade.randomness import forked, seed_for
from stochade.train.augment import Augment
from stochade.train.checks import LabelledImages, checked_labels
from stochade.train.objectives import TrainingObjective, measured
from stochade.train.optimizers import scale_rates
from stochade.train.state import Epoch
from stochade.train.telling import LiveLine


def batches_of(images: int, batch: int) -> int:
    """How many steps an epoch has: a last batch of a single image is left out unless it is the only one."""
    whole, rest = divmod(images, batch)
    return whole + (rest > 1 or (rest == 1 and whole == 0))


@dataclass
class EpochRunner:
    """Runs epochs of one training; what is drawn in an epoch follows from (seed, epoch)."""

    fabric: Any
    model: nn.Module
    forward: Any
    optimizer: Any
    objective: TrainingObjective
    seed: int
    batch: int
    slope: Callable[[int], float] | None
    schedule: Callable[[int], float]
    base_rates: list[float]
    lr: float
    classes: int
    line: LiveLine
    augment: Augment | None = None

    def __call__(self, epoch: int, train_images: LabelledImages, validation_images: LabelledImages) -> Epoch:
        started = time.perf_counter()
        slope = self._anneal(epoch)
        factor = float(self.schedule(epoch))
        if not (math.isfinite(factor) and factor >= 0):
            raise ModelError("a schedule that gives factors >= 0", f"{factor} in epoch {epoch}")
        scale_rates(self.optimizer, self.base_rates, factor)
        with forked(seed_for(self.seed, "epoch", epoch)):
            loss, accuracy, terms = self._fit(epoch, train_images)
        self.line.validating(epoch)
        # The same draws in every epoch: a lucky draw of noise then favours all epochs alike.
        with forked(seed_for(self.seed, "validation")):
            validation_loss, validation_accuracy = self._validate(validation_images)
        seconds = time.perf_counter() - started
        return Epoch(
            epoch, loss, accuracy, validation_loss, validation_accuracy, slope, seconds, self.lr * factor, terms
        )

    def _anneal(self, epoch: int) -> float | None:
        units = [m for m in self.model.modules() if isinstance(m, SlopedUnit) and m.anneal]
        if self.slope is None or not units:
            return None
        for unit in units:
            unit.set_slope(self.slope(epoch))
        return units[0].slope

    def _to_device(self, pair: tuple[Tensor, Any]) -> tuple[Tensor, Tensor]:
        x, y = pair[0], checked_labels(pair[1], self.classes)  # checked here: on an accelerator they end the process
        return x.to(self.fabric.device), y.to(self.fabric.device)

    def _fit(self, epoch: int, images: LabelledImages) -> tuple[float, float, dict[str, float]]:
        order = np.random.default_rng(seed_for(self.seed, "order", epoch)).permutation(len(images))
        self.model.train()
        losses: list[Tensor] = []  # kept on the device: reading one would wait for it
        hits: list[Tensor] = []
        sizes: list[int] = []
        terms: dict[str, list[Tensor]] = {}
        weights: dict[str, list[int]] = {}
        for number in range(batches_of(len(images), self.batch)):
            index = order[number * self.batch : (number + 1) * self.batch]
            x, y = self._to_device(images[index])
            if self.augment is not None:
                x = self.augment(x, torch.as_tensor(index), seed=self.seed, epoch=epoch)
            seed = seed_for(self.seed, "attack", epoch, number)
            told = measured(self.objective, self.forward, x, y, model=self.model, seed=seed, epoch=epoch)
            self.optimizer.zero_grad()
            self.fabric.backward(told.loss)
            self.optimizer.step()
            losses.append(told.loss.detach())
            hits.append((told.logits.detach().argmax(1) == y).sum())
            sizes.append(len(y))
            for name, value in told.terms.items():
                terms.setdefault(name, []).append(value.detach().reshape(()))
                weights.setdefault(name, []).append(len(y))
            self.line.batch(epoch, number, losses, terms)
        loss = _mean(losses, sizes)
        if not math.isfinite(loss):
            raise ModelError("a finite training loss", f"{loss} in epoch {epoch}", "lower the learning rate")
        right = float(torch.stack(hits).sum())
        return loss, right / sum(sizes), {name: _mean(values, weights[name]) for name, values in terms.items()}

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


def _mean(values: list[Tensor], sizes: list[int]) -> float:
    """The mean over images of means over batches."""
    told = torch.stack(values).cpu().double()
    return float((told * torch.tensor(sizes, dtype=torch.float64)).sum()) / sum(sizes)
