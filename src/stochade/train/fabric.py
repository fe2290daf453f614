"""Lightning Fabric, kept quiet: importing and using it changes no warning filter and prints nothing."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from stochade.errors import UsageError

PRECISIONS = ("32-true", "16-mixed", "bf16-mixed")


def make_fabric(device: str, precision: str | None) -> Any:
    """A `Fabric` for one device. Call inside `quiet`.

    Raises:
        UsageError: a device or precision that is not there.
    """
    precision = precision or "32-true"
    if precision not in PRECISIONS:
        raise UsageError(f"a precision among {list(PRECISIONS)} or None", repr(precision))
    kind, _, number = device.partition(":")
    if kind not in ("cpu", "cuda", "mps") or (number and not number.isdigit()):
        raise UsageError('a device "cpu", "cuda", "cuda:1" or "mps"', repr(device))
    if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
        raise UsageError("a CUDA device that is there", f"{device!r} of {torch.cuda.device_count()}", 'use "cpu"')
    if kind == "mps" and not torch.backends.mps.is_available():
        raise UsageError("an MPS device that is there", repr(device), 'use "cpu"')
    from lightning_fabric import Fabric  # a second to import, and only training needs it

    devices: Any = [int(number or 0)] if kind == "cuda" else 1
    return Fabric(accelerator=kind, devices=devices, precision=precision)  # type: ignore[arg-type]


@contextmanager
def quiet() -> Iterator[None]:
    """Lightning's log lines are held back for the length of the block; warning filters come back after it."""
    logger = logging.getLogger("lightning_fabric")
    level = logger.level
    with warnings.catch_warnings():
        try:
            logger.setLevel(logging.ERROR)
            yield
        finally:
            logger.setLevel(level)
