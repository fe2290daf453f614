"""Optimizers by name, as partials that settings can name, and the parameter groups that layers ask for.

A module may say how its own parameters are to be trained by a class attribute `parameter_options`: the name of the
parameter -> {"weight_decay": 0.0} (never decayed), {"rate": 10.0} (ten times the learning rate), or both.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from stochade.errors import BudgetError, ModelError, UsageError

NAMES = ("adam", "sgd")
_OPTIONS = ("rate", "weight_decay")


def optimizer_named(name: str, *, momentum: float | None = None, weight_decay: float = 0.0) -> Callable[..., Any]:
    """What `train(optimizer=...)` takes: "adam", or "sgd" with momentum 0.9 unless it is given.

    Raises:
        UsageError: another name, or a momentum for Adam. BudgetError: numbers that make no sense.
    """
    if name not in NAMES:
        raise UsageError(f"an optimizer among {', '.join(NAMES)}", repr(name))
    if not 0 <= weight_decay < float("inf"):
        raise BudgetError("a weight decay >= 0", repr(weight_decay))
    decay = {"weight_decay": float(weight_decay)} if weight_decay else {}
    if name == "adam":
        if momentum is not None:
            raise UsageError("momentum for sgd only", f"momentum={momentum!r} for adam")
        return partial(torch.optim.Adam, **decay) if decay else torch.optim.Adam
    momentum = 0.9 if momentum is None else momentum
    if not 0 <= momentum < 1:
        raise BudgetError("a momentum in [0, 1)", repr(momentum))
    return partial(torch.optim.SGD, momentum=float(momentum), **decay)


def parameter_groups(model: nn.Module, lr: float) -> list[Any]:
    """The trainable parameters for an optimizer: a plain list, or groups where modules have `parameter_options`.

    Raises:
        ModelError: options that nobody knows.
    """
    wanted: dict[int, tuple[tuple[str, float], ...]] = {}
    for module in model.modules():
        for name, options in (getattr(module, "parameter_options", None) or {}).items():
            parameter = getattr(module, name, None)
            if unknown := options.keys() - set(_OPTIONS):
                raise ModelError(
                    f"parameter options among {', '.join(_OPTIONS)}", f"{sorted(unknown)} of {type(module).__name__}"
                )
            if isinstance(parameter, nn.Parameter):
                wanted[id(parameter)] = tuple(sorted(options.items()))
    trainable = [p for p in model.parameters() if p.requires_grad]
    if not wanted:
        return trainable
    groups: dict[tuple, list[nn.Parameter]] = {}
    for parameter in trainable:
        groups.setdefault(wanted.get(id(parameter), ()), []).append(parameter)
    return [_group(parameters, dict(options), lr) for options, parameters in groups.items()]


def _group(parameters: list[nn.Parameter], options: dict[str, float], lr: float) -> dict[str, Any]:
    rate = options.pop("rate", 1.0)
    return {"params": parameters, "lr": lr * rate, **options}


def scale_rates(optimizer: torch.optim.Optimizer, base: list[float], factor: float) -> None:
    """Set every group's learning rate to `factor` times what it began with."""
    for group, rate in zip(optimizer.param_groups, base, strict=True):
        group["lr"] = rate * factor
