"""What training minimises: the standard loss, and the mixture with adversarial examples."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stochade.errors import ImagesError, UsageError
from stochade.randomness import reseed, untouched


class TrainingObjective(Protocol):
    """The loss of one batch.

    Args (of a call):
        forward: images -> logits, through Fabric (precision); use it for every pass that takes gradients.
        x, y: images [N,C,H,W] in [0,1] and labels [N].
        model: the bare network, for attacks.
        seed: of this batch.

    Returns: the loss (a scalar) and logits [N,K] for the running accuracy.
    """

    def __call__(
        self, forward: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, *, model: nn.Module, seed: int
    ) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True)
class Standard:
    """Mean cross-entropy on clean images."""

    def __call__(
        self, forward: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, *, model: nn.Module, seed: int
    ) -> tuple[Tensor, Tensor]:
        logits = forward(x)
        return F.cross_entropy(logits, y), logits


@dataclass(frozen=True)
class Adversarial:
    """weight * loss(clean) + (1 - weight) * loss(adversarial), each a mean over the batch.

    Adversarial images are crafted in evaluation mode, on draws of their own, and leave the model untouched.
    With weight 0 the whole batch is replaced (Madry et al. 2018); the thesis behind SGBN uses 0.5.

    Args:
        attack: `(model, x, y, seed=...) -> x_adv`, for instance any attack of `stochade.attacks`.
        weight: tau of equation 2.29 there (Goodfellow et al. 2015), in [0, 1].

    Raises:
        UsageError: a weight outside [0, 1].
        ImagesError: an attack that returns other shapes or values that are not finite.
    """

    attack: Callable[..., Any]
    weight: float = 0.5

    def __post_init__(self):
        if not 0 <= self.weight <= 1:
            raise UsageError("a weight of the clean loss in [0, 1]", repr(self.weight))

    def __call__(
        self, forward: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, *, model: nn.Module, seed: int
    ) -> tuple[Tensor, Tensor]:
        if self.weight == 1:
            return Standard()(forward, x, y, model=model, seed=seed)
        attacked = forward(self._craft(model, x, y, seed))
        loss = F.cross_entropy(attacked, y)
        if self.weight == 0:
            return loss, attacked
        clean = forward(x)
        return self.weight * F.cross_entropy(clean, y) + (1 - self.weight) * loss, clean

    def _craft(self, model: nn.Module, x: Tensor, y: Tensor, seed: int) -> Tensor:
        with untouched(model):
            # Draws of their own: with the generators as they stand, the attack would see the very noise that
            # the training pass draws next.
            reseed(seed)
            model.eval()
            adversarial = self.attack(model, x, y, seed=seed)
        if not isinstance(adversarial, Tensor) or adversarial.shape != x.shape:
            got = list(adversarial.shape) if isinstance(adversarial, Tensor) else type(adversarial).__name__
            raise ImagesError(f"adversarial images {list(x.shape)} from the attack", f"{got}")
        if not torch.isfinite(adversarial).all():
            raise ImagesError("finite adversarial images from the attack", "NaN or infinite values")
        return adversarial.detach()


def standard() -> Standard:
    """The standard objective."""
    return Standard()


def adversarial(attack: Callable[..., Any], weight: float = 0.5) -> Adversarial:
    """The mixture with adversarial examples, see `Adversarial`."""
    return Adversarial(attack, weight)
