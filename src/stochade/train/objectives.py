"""What training minimises: the standard loss, and the mixture with adversarial examples."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stochade.errors import BudgetError, ImagesError, ModelError, UsageError
from stochade.randomness import reseed, untouched

LABELS = ("true", "predicted")


class TrainingObjective(Protocol):
    """The loss of one batch: `objective(forward, x, y, *, model, seed, epoch)`; `epoch` may be left out of the
    signature.

    Args (of a call):
        forward: images -> logits, through Fabric (precision); use it for every pass that takes gradients.
        x, y: images [N,C,H,W] in [0,1] and labels [N].
        model: the bare network, for attacks and penalties.
        seed: of this batch.
        epoch: from 0.

    Returns: the loss (a scalar) and logits [N,K] for the running accuracy; as a third, if you like, the parts of
    the loss by name, {"ce": scalar, "kl": scalar}: their means are shown while training and kept for every epoch.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...


class Measured(NamedTuple):
    """What an objective says of one batch."""

    loss: Tensor
    logits: Tensor
    terms: Mapping[str, Tensor]


def takes_epoch(objective: Callable[..., Any]) -> bool:
    """Whether an objective asks for the number of the epoch."""
    try:
        parameters = inspect.signature(objective).parameters.values()
    except (TypeError, ValueError):
        return False
    return any(p.name == "epoch" or p.kind is p.VAR_KEYWORD for p in parameters)


def measured(
    objective: Callable[..., Any], forward, x: Tensor, y: Tensor, *, model: nn.Module, seed: int, epoch: int
) -> Measured:
    """An objective's answer with its terms (none where it gives none), for objectives with and without `epoch`.

    Raises:
        ModelError: an answer that is not (loss, logits) or (loss, logits, terms).
    """
    given: dict[str, Any] = {"model": model, "seed": seed} | ({"epoch": epoch} if takes_epoch(objective) else {})
    answer = objective(forward, x, y, **given)
    if not isinstance(answer, tuple) or len(answer) not in (2, 3):
        raise ModelError("an objective that returns (loss, logits) or (loss, logits, terms)", type(answer).__name__)
    terms = answer[2] if len(answer) == 3 else {}
    wrong = [name for name, value in terms.items() if not isinstance(value, Tensor) or value.numel() != 1]
    if wrong:
        raise ModelError("terms that are scalar tensors", f"others under {wrong}")
    return Measured(answer[0], answer[1], terms)


@dataclass(frozen=True)
class Standard:
    """Mean cross-entropy on clean images."""

    def __call__(
        self,
        forward: Callable[[Tensor], Tensor],
        x: Tensor,
        y: Tensor,
        *,
        model: nn.Module,
        seed: int,
        epoch: int = 0,
    ) -> tuple[Tensor, Tensor]:
        logits = forward(x)
        return F.cross_entropy(logits, y), logits


@dataclass(frozen=True)
class Adversarial:
    """weight * loss(clean) + (1 - weight) * loss(adversarial), each a mean over the batch.

    Adversarial images are crafted in evaluation mode, on draws of their own, and leave the model untouched.
    With weight 0 the whole batch is replaced (Madry et al. 2018); the thesis behind SGBN uses 0.5. Terms of the
    inner objective are weighted like its loss.

    Args:
        attack: `(model, x, y, seed=...) -> x_adv`, for instance any attack of `stochade.attacks`.
        weight: tau of equation 2.29 there (Goodfellow et al. 2015), in [0, 1].
        labels: what the attack pushes away from: the "true" labels, or the classes "predicted" for the clean images
            by one draw of the model (PNI's recipe; it leaks no label).
        start: epochs of clean training before (10 in Galloway et al. 2018, 5 in PNI's recipe).
        inner: the loss of both parts.

    Raises:
        UsageError: a weight outside [0, 1], or labels of another kind. BudgetError: a start before epoch 0.
        ImagesError: an attack that returns other shapes or values that are not finite.
    """

    attack: Callable[..., Any]
    weight: float = 0.5
    labels: str = "true"
    start: int = 0
    inner: TrainingObjective = field(default_factory=Standard)

    def __post_init__(self):
        if not 0 <= self.weight <= 1:
            raise UsageError("a weight of the clean loss in [0, 1]", repr(self.weight))
        if self.labels not in LABELS:
            raise UsageError(f"labels among {list(LABELS)}", repr(self.labels))
        check_start(self.start)

    def __call__(
        self,
        forward: Callable[[Tensor], Tensor],
        x: Tensor,
        y: Tensor,
        *,
        model: nn.Module,
        seed: int,
        epoch: int = 0,
    ) -> Any:
        given: dict[str, Any] = {"model": model, "seed": seed, "epoch": epoch}
        if self.weight == 1 or epoch < self.start:
            return _plain(measured(self.inner, forward, x, y, **given))
        adversarial = crafted(self.attack, model, x, y, seed, self.labels)
        attacked = measured(self.inner, forward, adversarial, y, **given)
        if self.weight == 0:
            return _plain(attacked)
        clean = measured(self.inner, forward, x, y, **given)
        terms = {
            name: self.weight * clean.terms[name] + (1 - self.weight) * attacked.terms[name]
            for name in clean.terms.keys() & attacked.terms.keys()
        }
        loss = self.weight * clean.loss + (1 - self.weight) * attacked.loss
        return _plain(Measured(loss, clean.logits, {name: terms[name] for name in clean.terms if name in terms}))


def _plain(answer: Measured) -> Any:
    return tuple(answer) if answer.terms else (answer.loss, answer.logits)


def check_start(start: object) -> None:
    """BudgetError for a first epoch of adversarial training that makes no sense."""
    if isinstance(start, bool) or not isinstance(start, int) or start < 0:
        raise BudgetError("a first epoch >= 0 of adversarial training", repr(start))


def crafted(
    attack: Callable[..., Any], model: nn.Module, x: Tensor, y: Tensor, seed: int, labels: str = "true"
) -> Tensor:
    """Adversarial images from a model in evaluation mode that is left as it was.

    Raises:
        ImagesError: an attack that returns other shapes or values that are not finite.
    """
    with untouched(model):
        # Draws of their own: with the generators as they stand, the attack would see the very noise that the training
        # pass draws next.
        reseed(seed)
        model.eval()
        if labels == "predicted":
            with torch.no_grad():
                y = model(x).argmax(1)
        adversarial = attack(model, x, y, seed=seed)
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
