"""The checks before any compute: images, labels, targets, budgets, warm starts, and the model itself."""

import torch
from torch import Tensor, nn

from stochade.attacks.ball import Ball, Threat
from stochade.attacks.gradients import Model, check_logits
from stochade.errors import BudgetError, ImagesError, LabelsError, LogitsError, ModelError, StochadeError


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


def check_inputs(x: Tensor, y: Tensor, targets: Tensor | None = None, threat: object = None) -> None:
    """Every check that needs no model, in the order in which a caller would want to hear of them. A threat with a
    `check` of its own says what its inputs are (codes instead of images)."""
    getattr(threat, "check", check_images)(x)
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


def check_budgets(budgets: object, threat: Threat, x: Tensor) -> Ball:
    """The threat with one budget per example; BudgetError where they are not finite numbers >= 0, one per image."""
    if not isinstance(threat, Ball):
        raise BudgetError("a norm ball for budgets per example", repr(threat), "use Linf, L2, L1 or L0")
    each = torch.as_tensor(budgets)
    if each.shape != (len(x),) or each.is_complex() or each.dtype == torch.bool:
        raise BudgetError(f"budgets [{len(x)}], one number per image", f"{each.dtype} {tuple(each.shape)}")
    each = each.detach().to(x.device, x.dtype)
    if not bool(((each >= 0) & torch.isfinite(each)).all()):
        raise BudgetError("finite budgets >= 0", f"{float(each.min()):.4g} to {float(each.max()):.4g}")
    if threat.name == "l0" and bool((each != each.round()).any()):
        raise BudgetError("whole numbers of values for L0", "fractions", "round the budgets")
    return threat.for_each(each)


def check_start(start: object, x: Tensor) -> Tensor:
    """A warm start like x, finite; ImagesError otherwise."""
    if not isinstance(start, Tensor) or start.shape != x.shape or start.dtype != x.dtype:
        got = f"{start.dtype} {tuple(start.shape)}" if isinstance(start, Tensor) else type(start).__name__
        raise ImagesError(f"a start like the images: {x.dtype} {tuple(x.shape)}", got)
    if not bool(torch.isfinite(start).all()):
        raise ImagesError("a start of finite pixels", "NaN or infinity")
    return start.detach().to(x.device)


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
