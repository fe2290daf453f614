"""What training looks at before its first step, and in every batch of labels."""

import math
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from stochade.errors import BudgetError, DataError, ImagesError, LabelsError, LogitsError, ModelError
from stochade.randomness import untouched


class LabelledImages(Protocol):
    """What training needs of a data set (`stochade.data.Images` is one): a length, and images with labels for a
    slice or an index array."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any, /) -> tuple[Tensor, Any]: ...


def check(
    model: nn.Module,
    train_images: LabelledImages,
    validation_images: LabelledImages,
    epochs: int,
    batch: int,
    lr: float,
) -> None:
    if epochs < 1:
        raise BudgetError("at least one epoch", repr(epochs))
    if batch < 1:
        raise BudgetError("at least one image per batch", repr(batch))
    if not (math.isfinite(lr) and lr > 0):
        raise BudgetError("a positive learning rate", repr(lr))
    if not any(p.requires_grad for p in model.parameters()):
        raise ModelError("a model with parameters to train", f"{type(model).__name__} without any")
    for name, images in (("training", train_images), ("validation", validation_images)):
        if len(images) == 0:
            raise DataError(f"at least one {name} image", "none")


def check_augment(augment: Any, images: LabelledImages, seed: int) -> None:
    """ImagesError unless augmented images are as the ones before: looked at on the first two."""
    x, _ = images[0 : min(2, len(images))]
    told = augment(x, torch.arange(len(x)), seed=seed, epoch=0)
    if not isinstance(told, Tensor) or told.shape != x.shape or told.dtype != x.dtype:
        got = f"{told.dtype} {list(told.shape)}" if isinstance(told, Tensor) else type(told).__name__
        raise ImagesError(f"augmented images {x.dtype} {list(x.shape)}", got)


def probe(model: nn.Module, images: LabelledImages) -> int:
    """The number of classes, found by one forward on two images that leaves no trace."""
    x, y = images[0 : min(2, len(images))]
    device = next(model.parameters()).device
    with untouched(model), torch.no_grad():
        model.eval()
        try:
            logits = model(x.to(device))
        except (RuntimeError, IndexError, TypeError) as error:
            raise ModelError(f"a model of images {list(x.shape)}", f"{type(error).__name__}: {error}") from error
    if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[0] != len(x):
        got = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise LogitsError(f"logits [{len(x)}, classes]", f"{got}")
    checked_labels(y, logits.shape[1])
    return logits.shape[1]


def checked_labels(labels: Any, classes: int) -> Tensor:
    y = torch.as_tensor(labels)
    if y.is_floating_point() or y.ndim != 1 or not 0 <= int(y.min()) <= int(y.max()) < classes:
        raise LabelsError(
            f"whole labels from 0 to {classes - 1}, one for each image", f"{y.dtype} {list(y.shape)} up to {y.max()}"
        )
    return y.long()
