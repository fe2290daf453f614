"""What training says while it runs: a live line, batch by batch, and TensorBoard for who wants it."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stochade.errors import UsageError
from stochade.progress import Tick
from stochade.train.state import Epoch

EVERY = 0.5  # seconds between looks at the loss: each one waits for the device
RECENT = 50  # batches whose mean is shown


class LiveLine:
    """Epoch, batch, recent loss and terms, and the last validation accuracy, for a progress display.

    Args:
        tick: of `stochade.progress.progress`, counting batches.
        epochs: in all. batches: in an epoch.
    """

    def __init__(self, tick: Tick, epochs: int, batches: int):
        self.tick, self.epochs, self.batches = tick, epochs, batches
        self.after, self.note, self.validated = 0.0, "", ""

    def batch(self, epoch: int, number: int, losses: Sequence[Tensor], terms: Mapping[str, Sequence[Tensor]]) -> None:
        """After batch `number` (from 0); `losses` and `terms` of the batches of this epoch so far."""
        now = time.monotonic()
        if now >= self.after or number + 1 == self.batches:
            self.after = now + EVERY
            parts = " ".join(f"{name} {_recent(values):.3g}" for name, values in terms.items())
            place = f"epoch {epoch + 1}/{self.epochs} batch {number + 1}/{self.batches}"
            self.note = f"{place}, loss {_recent(losses):.3g}{f' ({parts})' if parts else ''}{self.validated}"
        self.tick(1.0, self.note)

    def validating(self, epoch: int) -> None:
        """Before the validation images of an epoch."""
        self.note = f"epoch {epoch + 1}/{self.epochs}, validating{self.validated}"
        self.tick(0.0, self.note)

    def epoch(self, told: Epoch, best: float) -> None:
        """After an epoch; `best` is the highest validation accuracy so far."""
        accuracy = f", validation {100 * told.validation_accuracy:.1f} %"
        self.validated = f"{accuracy} (best {100 * best:.1f} %)" if best > told.validation_accuracy else accuracy
        terms = " ".join(f"{name} {value:.3g}" for name, value in told.terms.items())
        parts = f" ({terms})" if terms else ""
        self.note = f"epoch {told.epoch + 1}/{self.epochs}, loss {told.train_loss:.3g}{parts}{self.validated}"
        self.tick(0.0, self.note)


def _recent(values: Sequence[Tensor]) -> float:
    return float(torch.stack([v.detach().float().reshape(()) for v in values[-RECENT:]]).mean())


class Board:
    """TensorBoard's event files in `folder`; a resumed run writes the epochs before it again.

    Raises:
        UsageError: tensorboard is not installed.
    """

    def __init__(self, folder: Path, before: Sequence[Epoch]):
        self.writer: Any = board_writer()(str(folder), purge_step=0)
        for told in before:
            self.epoch(told)

    def epoch(self, told: Epoch) -> None:
        scalars = {
            "loss/train": told.train_loss,
            "loss/validation": told.validation_loss,
            "accuracy/train": told.train_accuracy,
            "accuracy/validation": told.validation_accuracy,
            **{f"terms/{name}": value for name, value in told.terms.items()},
            "rate": told.rate,
            "slope": told.slope,
        }
        for name, value in scalars.items():
            if value is not None:
                self.writer.add_scalar(name, value, told.epoch)
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


def board_writer() -> Any:
    """The class that writes TensorBoard's files.

    Raises:
        UsageError: tensorboard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UsageError(
            "tensorboard for --tensorboard", "it is not installed", "pip install stochade[tensorboard]"
        ) from None
    return SummaryWriter
