"""Scores returned images by one code for all libraries: never by what a library says about itself."""

import numpy as np
import torch
from torch import Tensor, nn

NORMS = ("linf", "l2", "l1", "l0")


def distances(images: Tensor, originals: Tensor, norm: str) -> Tensor:
    """[N] float64; l0 counts values that differ by more than 1e-6 (float noise of a subtraction is no change)."""
    change = (images.double() - originals.double()).flatten(1).abs()
    if norm == "linf":
        return change.amax(1)
    if norm == "l2":
        return change.square().sum(1).sqrt()
    return change.sum(1) if norm == "l1" else (change > 1e-6).sum(1).double()


@torch.no_grad()
def wrong(model: nn.Module, images: Tensor, labels: Tensor) -> np.ndarray:
    """[N] bool: the model errs on the image; images with NaN or outside the box never count."""
    valid = torch.isfinite(images).flatten(1).all(1) & ((images > -1e-6) & (images < 1 + 1e-6)).flatten(1).all(1)
    predicted = torch.cat([model(part).argmax(1) for part in images.nan_to_num().clamp(0, 1).split(256)])
    return ((predicted != labels) & valid).numpy()


def broken(model: nn.Module, images: Tensor, originals: Tensor, labels: Tensor, norm: str, eps: float) -> np.ndarray:
    """[N] bool: wrong on the image, which lies inside the budget up to float32 rounding (as `evaluate` allows it)."""
    rounding = 0.0 if norm == "l0" else 2e-7 * max(1.0, images[0].numel() ** 0.5)
    inside = distances(images, originals, norm) <= eps * (1 + 1e-5) + rounding
    return wrong(model, images, labels) & inside.numpy()


def found_distances(model: nn.Module, images: Tensor, originals: Tensor, labels: Tensor, norm: str) -> np.ndarray:
    """[N] what a minimum-norm attack needed: 0 where the original is wrong already, infinity where its image is
    right."""
    needed = distances(images, originals, norm).numpy()
    needed = np.where(wrong(model, images, labels), needed, np.inf)
    return np.where(wrong(model, originals, labels), 0.0, needed)
