"""What every attack has in common: its call, the checks before any compute, and what it hands back.

An attack returns inputs, never a success flag. Success is decided by `evaluate`, on fresh draws.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from stochade.attacks.gradients import Model, check_logits
from stochade.attacks.threats import Threat
from stochade.errors import ImagesError, LabelsError, LogitsError, ModelError, StochadeError
from stochade.nn.discrete import as_module
from stochade.randomness import Stream, identities, reseed, seed_for, untouched


@dataclass(frozen=True)
class Attempt:
    """The inputs an attack wants tried, with what it cost per example.

    Attributes:
        inputs: like x.
        value: [N] the attacker's own mean objective at the inputs it chose, NaN where it never looked.
        distance: [N] in the units of the threat.
        forwards, backwards: [N] passes that this example took part in.
        trace: [steps, N] the objective before each step; NaN after an example has left.
    """

    inputs: Tensor
    value: Tensor
    distance: Tensor
    forwards: Tensor
    backwards: Tensor
    trace: Tensor


class Attack:
    """Base of all attacks. Subclasses are frozen dataclasses with a `threat` and write `search`.

    `attack(model, x, y)` returns the inputs to try; `attack.run(...)` the same inputs with costs and trace. The
    model comes back as it was, and so do the global generators; equal seeds give equal inputs.
    """

    threat: Threat
    probabilities_allowed = False

    def __call__(self, model: Model, x: Tensor, y: Tensor, *, targets=None, seed: int = 0, ids=None) -> Tensor:
        """The inputs to try, like x. See `run`."""
        return self.run(model, x, y, targets=targets, seed=seed, ids=ids).inputs

    def run(
        self,
        model: Model,
        x: Tensor,
        y: Tensor,
        *,
        targets: Tensor | None = None,
        seed: int = 0,
        ids=None,
        model_seed: int | None = None,
    ) -> Attempt:
        """Search.

        Args:
            model: images [N,C,H,W] in [0,1] -> logits [N,K]; one call is one draw.
            x: float images [N,...] in [0,1].
            y: int64 true classes [N].
            targets: int64 classes [N] to pull towards; None for any wrong class.
            seed: the attack's seed, and through it the model's draws during the search.
            model_seed: seeds the model's draws apart from the attack's own (evaluation gives every chunk its own).
            ids: int64 [N] identities; by default a hash of image and label. Image i gets the same random start
                whatever else is in the batch.

        Raises:
            ImagesError, LabelsError, LogitsError, ModelError: bad input, before any backward.
            GradientError: no gradient reaches the images.
        """
        check_inputs(x, y, targets)
        check_model(model)
        names = identities(x, y) if ids is None else check_ids(ids, len(x))
        x, y, targets = x.detach(), y.long(), None if targets is None else targets.long()
        with untouched(model):  # its own block: what the probe leaves in a stateful model must not reach the search
            probe(model, x, y, targets, self.probabilities_allowed)
        with torch.inference_mode(False), untouched(model):  # inference mode would hide every gradient
            x, y = (t.clone() if t.is_inference() else t for t in (x, y))
            targets = targets.clone() if targets is not None and targets.is_inference() else targets
            reseed(seed_for(seed, "model draws") if model_seed is None else model_seed)
            stream = Stream(seed_for(seed, "attack"), names.to(x.device))
            return self.search(model, x, y, targets, stream)

    def search(self, model: Model, x: Tensor, y: Tensor, targets: Tensor | None, stream: Stream) -> Attempt:
        """The attack itself; inputs are checked, the model is guarded, the generators are seeded."""
        raise TypeError(f"{type(self).__name__} must define search")

    def cost(self) -> tuple[int, int]:
        """(forwards, backwards) per example at most, apart from the probe, the search for least-likely classes and
        the forwards that let an example leave early."""
        raise TypeError(f"{type(self).__name__} must define cost")


@runtime_checkable
class AttackLike(Protocol):
    """Anything with a threat that maps (model, x, y) to inputs."""

    threat: Threat

    def __call__(self, model: Model, x: Tensor, y: Tensor, *, targets=None, seed: int = 0) -> Tensor: ...


def check_images(x: Tensor) -> None:
    """Float images [N,...] in [0,1], finite, at least one; ImagesError otherwise."""
    if not isinstance(x, Tensor):
        raise ImagesError("a torch.Tensor of images", type(x).__name__, "convert with torch.as_tensor")
    if not x.is_floating_point():
        hint = "use images.float() / 255" if x.dtype == torch.uint8 else "cast to float and scale to [0,1]"
        raise ImagesError("float images in [0,1]", f"dtype {x.dtype}", hint)
    if x.dim() < 2:
        raise ImagesError("images [N,C,H,W] (or any [N,...])", f"shape {tuple(x.shape)}", "add the batch dimension")
    if x.numel() == 0:
        raise ImagesError("at least one image", f"shape {tuple(x.shape)}", "check the filter that made this batch")
    if not bool(torch.isfinite(x).all()):
        bad = (~torch.isfinite(x)).flatten(1).any(1).nonzero()[:, 0]
        raise ImagesError("finite pixels", f"NaN or infinity in image {int(bad[0])} and {len(bad) - 1} others")
    low, high = float(x.min()), float(x.max())
    if low < -1e-6 or high > 1 + 1e-6:  # a tolerance: resizing leaves -3e-8
        hint = (
            "divide by 255"
            if high > 2 and low >= 0
            else "put normalisation into the model: Normalized(model, mean, std)"
        )
        raise ImagesError("pixels in [0,1]", f"[{low:.4g}, {high:.4g}]", hint)


def check_labels(y: Tensor, count: int, what: str = "labels") -> None:
    """int64 classes [count] >= 0; LabelsError otherwise."""
    if not isinstance(y, Tensor):
        raise LabelsError(f"a torch.Tensor of {what}", type(y).__name__, "convert with torch.as_tensor")
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        raise LabelsError(f"integer {what}", f"dtype {y.dtype}", "use labels.long(); one-hot rows need argmax(1)")
    if y.dim() != 1 or len(y) != count:
        raise LabelsError(f"{what} [{count}], one per image", f"shape {tuple(y.shape)}", "check the batch")
    if bool((y < 0).any()):
        raise LabelsError(f"{what} >= 0", f"{int(y.min())}", "drop unlabelled images first")


def check_inputs(x: Tensor, y: Tensor, targets: Tensor | None = None) -> None:
    """Every check that needs no model, in the order in which a caller would want to hear of them."""
    check_images(x)
    check_labels(y, len(x))
    if targets is not None:
        check_labels(targets, len(x), "targets")
        if bool((targets == y).any()):
            first = int((targets == y).nonzero()[0, 0])
            raise LabelsError(
                "targets that differ from the labels", f"the true class at {first}", "pick another class"
            )


def check_ids(ids: object, count: int) -> Tensor:
    ids = torch.as_tensor(ids)
    if ids.is_floating_point() or ids.shape != (count,):
        raise LabelsError(f"ids: integers [{count}]", f"{ids.dtype} {tuple(ids.shape)}", "number the examples")
    return ids.long()


def check_model(model: object) -> None:
    """Callable, and not in a mode in which no number means anything."""
    if not callable(model):
        raise ModelError("a callable: images -> logits", type(model).__name__, "pass an nn.Module or a function")
    if isinstance(model, nn.Module):
        for name, module in model.named_modules():
            if not isinstance(module, nn.modules.batchnorm._BatchNorm):
                continue
            if module.training:
                raise ModelError(
                    "batch norm in eval mode",
                    f"{name or type(module).__name__} in train mode, where every image changes every other's logits",
                    "call model.eval() first",
                )
            if module.running_mean is None:
                raise ModelError(
                    "batch norm with running statistics",
                    f"{name or type(module).__name__} without, where every image changes every other's logits",
                    "train it with track_running_stats=True",
                )
        if model.training and any(isinstance(m, nn.modules.dropout._DropoutNd) for m in model.modules()):
            raise ModelError(
                "a model in eval mode",
                "train mode with dropout",
                "call model.eval(); if dropout is the defence, then put only its layers back: "
                "stochade.keep_dropout(model)",
            )


def keep_dropout(model: nn.Module) -> nn.Module:
    """The same model, in eval mode but for its dropout layers: randomness as a defence (MC dropout)."""
    model.eval()
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.train()
    return model


def looks_like_probabilities(logits: Tensor) -> bool:
    """Rows in [0,1] that sum to one (thresholds of auto-attack's checks: 1e-5)."""
    return (
        logits.shape[1] > 1
        and float(logits.min()) > -1e-5
        and float(logits.max()) < 1 + 1e-5
        and float((logits.sum(1) - 1).abs().max()) < 1e-5
    )


@torch.no_grad()
def probe(
    model: Model, x: Tensor, y: Tensor, targets: Tensor | None = None, probabilities_allowed: bool = False
) -> int:
    """One forward of a few images before anything else: does the model take them, and give logits for these
    labels? Returns the number of classes."""
    few = x[:2]
    try:
        logits = model(few)
    except StochadeError:
        raise
    except Exception as problem:
        detail = str(problem).strip().split("\n")[0] or type(problem).__name__
        raise ModelError(
            "a model that takes these images",
            f"{type(problem).__name__} at {tuple(few.shape)} {few.dtype}: {detail}",
            "check channels, size, dtype and device",
        ) from problem
    logits = check_logits(logits, len(few))
    classes = logits.shape[1]
    for labels, what in ((y, "labels"), (targets, "targets")):
        if labels is not None and int(labels.max()) >= classes:
            raise LabelsError(
                f"{what} below {classes}, the model's class count",
                str(int(labels.max())),
                "check the class map: stochade.ClassMap(model, classes)",
            )
    if not probabilities_allowed and looks_like_probabilities(logits):
        raise LogitsError(
            "logits",
            "rows that are probabilities (they sum to one)",
            "remove the softmax, or wrap the model: stochade.FromProbabilities(model)",
        )
    return classes


class FromProbabilities(nn.Module):
    """A model that outputs probabilities, turned into one that outputs logits: log p, floored at log 1e-30."""

    scope = "composite"

    def __init__(self, model: Model):
        super().__init__()
        self.model = as_module(model)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x).clamp_min(1e-30).log()
