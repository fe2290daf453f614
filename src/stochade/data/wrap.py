"""Fitting a user's model to the images and labels of a data set."""

import math
from collections.abc import Callable, Iterable, Sequence
from numbers import Integral
from typing import Literal

import torch
from torch import Tensor, nn

from stochade.errors import DataError, ImagesError, LogitsError


class Normalized(nn.Module):
    """A model that takes images in [0,1], made from one that was trained on (x - mean) / std.

    Attacks, budgets and the box stay in [0,1]; the gradient passes through the normalisation.

    Args:
        model: normalised images [N,C,H,W] -> logits [N,K].
        mean: a float, or one for each channel.
        std: a float, or one for each channel; > 0.

    Raises:
        DataError: other lengths or values.
        ImagesError: (when called) images with another number of channels.
    """

    scope: Literal["composite", "unknown"] = "composite"
    mean: Tensor
    std: Tensor

    def __init__(
        self, model: Callable[[Tensor], Tensor], mean: "float | Sequence[float]", std: "float | Sequence[float]"
    ):
        super().__init__()
        means, stds = _numbers("mean", mean), _numbers("std", std)
        if len(means) != len(stds) and 1 not in (len(means), len(stds)):
            raise DataError(f"as many values of std as of mean ({len(means)})", f"{len(stds)}")
        if min(stds) <= 0:
            raise DataError("std > 0", f"{min(stds):g}", "std divides: a constant channel has std 1")
        self.model = model
        _declare(self, model)
        self.register_buffer("mean", torch.tensor(means)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(stds)[:, None, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        channels = max(len(self.mean), len(self.std))
        if channels > 1 and (x.ndim < 3 or x.shape[-3] != channels):
            raise ImagesError(
                f"images [N,{channels},H,W] (mean and std are given for {channels} channels)",
                f"shape {tuple(x.shape)}",
            )
        return self.model((x - self.mean.to(x.dtype)) / self.std.to(x.dtype))


class ClassMap(nn.Module):
    """A model whose outputs are the data set's labels, made from one with classes of its own.

    Label k gets the logit of output `classes[k]`, or, for a list of outputs, their log-sum-exp: then the
    softmax over the labels is the model's softmax, summed within each list and renormalised.

    Args:
        model: images -> logits [N,M].
        classes: for each label 0..K-1, one output of the model or a list of them; no output twice.

    Raises:
        DataError: no labels, an empty list, a negative or repeated output.
        LogitsError: (when called) a model with fewer outputs than `classes` names.
    """

    scope: Literal["composite", "unknown"] = "composite"
    outputs: Tensor
    absent: Tensor

    def __init__(self, model: Callable[[Tensor], Tensor], classes: "Sequence[int | Sequence[int]]"):
        super().__init__()
        groups = [_outputs(k, entry) for k, entry in enumerate(classes)]
        flat = [i for group in groups for i in group]
        if not groups or len(set(flat)) < len(flat):
            twice = sorted({i for i in flat if flat.count(i) > 1})
            got = f"outputs {twice} more than once" if twice else "no labels"
            raise DataError("at least one label, each output of the model at most once", got)
        self.model, self.top = model, max(flat)
        _declare(self, model)
        width = max(map(len, groups))
        self.register_buffer("outputs", torch.tensor([g + [0] * (width - len(g)) for g in groups]), persistent=False)
        absent = torch.tensor([[i >= len(g) for i in range(width)] for g in groups])
        self.register_buffer("absent", absent, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        logits = self.model(x)
        if logits.ndim != 2 or logits.shape[1] <= self.top:
            raise LogitsError(
                f"logits [N,M] with M > {self.top} (the largest output named in classes)", f"{tuple(logits.shape)}"
            )
        chosen = logits[:, self.outputs]
        if chosen.shape[2] == 1:
            return chosen[:, :, 0]
        return chosen.masked_fill(self.absent, -math.inf).logsumexp(dim=2)


def _declare(wrapper: "Normalized | ClassMap", model: object) -> None:
    if not isinstance(model, nn.Module):  # a plain function may draw noise that no layer declares
        wrapper.scope = "unknown"


def _numbers(what: str, values: "float | Sequence[float]") -> list[float]:
    try:
        numbers = torch.as_tensor(values, dtype=torch.float32).flatten().tolist()
    except (TypeError, ValueError, RuntimeError) as problem:
        raise DataError(f"{what}: a number, or one for each channel", f"{values!r}") from problem
    if not numbers or not all(math.isfinite(v) for v in numbers):
        raise DataError(f"{what}: finite numbers, at least one", f"{values!r}")
    return numbers


def _outputs(label: int, entry: "int | Sequence[int]") -> list[int]:
    group = list(entry) if isinstance(entry, Iterable) else [entry]
    if not group or any(isinstance(i, bool) or not isinstance(i, Integral) or int(i) < 0 for i in group):
        raise DataError(
            f"classes[{label}]: an output of the model (0, 1, ...) or a list of them, not empty", f"{entry!r}"
        )
    return [int(i) for i in group]
