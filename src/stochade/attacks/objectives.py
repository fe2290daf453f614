"""Objectives: what the attacker maximises, one number per example.

Signature: `objective(logits [N,K], y [N], targets=None) -> [N]`. With `targets` the same objective pulls
towards that class instead of away from y.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

Objective = Callable[..., Tensor]


def _pick(logits: Tensor, classes: Tensor) -> Tensor:
    return logits.gather(1, classes[:, None])[:, 0]


def _best_other(logits: Tensor, classes: Tensor) -> Tensor:
    if logits.shape[1] == 1:
        return torch.zeros_like(logits[:, 0])
    return logits.scatter(1, classes[:, None], -torch.inf).amax(1)


def cross_entropy(logits: Tensor, y: Tensor, targets: Tensor | None = None) -> Tensor:
    """-log softmax of the true class; with targets, +log softmax of the target."""
    if targets is not None:
        return -functional.cross_entropy(logits, targets, reduction="none")
    return functional.cross_entropy(logits, y, reduction="none")


def margin(logits: Tensor, y: Tensor, targets: Tensor | None = None) -> Tensor:
    """max_{j != y} z_j - z_y (Carlini and Wagner 2017, untruncated): positive exactly when misclassified. With
    targets, z_t - max_{j != t} z_j."""
    if targets is not None:
        return _pick(logits, targets) - _best_other(logits, targets)
    return _best_other(logits, y) - _pick(logits, y)


def dlr(logits: Tensor, y: Tensor, targets: Tensor | None = None) -> Tensor:
    """Difference of logits ratio (Croce and Hein 2020, equations 6 and 7), for any number of classes.

    Untargeted: -(z_y - max_{j != y} z_j) / (z_(1) - z_(3)). Targeted: -(z_y - z_t) / (z_(1) - (z_(3) + z_(4))/2),
    with z_(3) alone where there are three classes. With two classes no ratio of differences carries a
    gradient, so the margin is returned. Where y itself ranks third the ratio is constant and its gradient zero;
    there the denominator counts as a constant, so that averaging over draws still has a direction (the value is
    unchanged).
    """
    classes = logits.shape[1]
    if classes < 3:
        return margin(logits, y, targets)
    top = logits.topk(min(4, classes), dim=1).values
    if targets is None:
        spread = top[:, 0] - top[:, 2]
        spread = torch.where(_pick(logits, y) == top[:, 2], spread.detach(), spread)
        return margin(logits, y) / spread.clamp_min(1e-12)
    low = top[:, 2] if classes == 3 else (top[:, 2] + top[:, 3]) / 2
    return (_pick(logits, targets) - _pick(logits, y)) / (top[:, 0] - low).clamp_min(1e-12)


def least_likely(logits: Tensor) -> Tensor:
    """[N] the class with the lowest logit: the targets of the iterative least-likely class method (kubo2019,
    equation 2.28)."""
    return logits.argmin(1)


OBJECTIVES: dict[str, Objective] = {"cross-entropy": cross_entropy, "margin": margin, "dlr": dlr}
