"""Layers that tell about themselves: what an attacker may put in their place, and where their noise enters.

A `Discrete` layer has a hard forward without a useful derivative (a sign, a spike, a Bernoulli draw, a
winner-takes-all). Its `Surrogate` gives the backward. An attacker may swap the backward (`backward_as`) or
the forward (`forward_as`) for the length of a `with` block; training is not affected.
"""

import difflib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from stochade.errors import UsageError
from stochade.nn.wide_linear import WideLinear

Scope = Literal["none", "example", "call", "unknown"]


@dataclass(frozen=True)
class Surrogate:
    """A backward substitute (BPDA, Athalye et al. 2018): the derivative of `primitive` is the backward.

    `primitive` sees the layer's whole input, so it may be elementwise (a sigmoid) or a function of the whole
    vector (k-WTA). It must be a module-level function or a `functools.partial` of one, so that models travel
    to worker processes.
    """

    primitive: Callable[[Tensor], Tensor]
    name: str = ""

    def __call__(self, hard: Tensor, x: Tensor) -> Tensor:
        """The value of `hard` bit for bit, with the derivative of `primitive` at `x`."""
        if not (torch.is_grad_enabled() and x.requires_grad):
            return hard
        soft = self.primitive(x)
        if soft.shape != hard.shape:  # broadcasting would give a wrong gradient without a word
            raise UsageError(
                f"a surrogate whose primitive gives the layer's output shape {list(hard.shape)}",
                f"{list(soft.shape)} from {self.name or self.primitive!r}",
                "an encoder's surrogate must add the time axis itself",
            )
        return hard.detach() + (soft - soft.detach())


class Discrete(nn.Module):
    """Base of every layer whose forward is discrete or random. Subclasses write `hard`.

    Attributes:
        surrogate: the backward used in training, and by an attacker who does nothing special.
        substitutes: backwards an attacker may try, by name ("ste", "soft", "identity", ...).
        relaxed: forwards an attacker may try, by name ("mean-field", "warm", ...).
        scope: where fresh noise enters: "none" (deterministic), "example" (independent for every example
            of a batch) or "call" (one draw shared by the batch). A subclass that does not say is "unknown".
    """

    scope: Scope = "unknown"

    def __init__(
        self,
        surrogate: Surrogate,
        substitutes: Mapping[str, Surrogate] | None = None,
        relaxed: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
    ):
        super().__init__()
        self.surrogate = surrogate
        self.substitutes = dict(substitutes or {})
        self.relaxed = dict(relaxed or {})
        self._backward: Surrogate | None = None
        self._forward: Callable[[Tensor], Tensor] | None = None

    def hard(self, x: Tensor) -> Tensor:
        """The layer's real output. Its gradient is ignored."""
        raise TypeError(f"{type(self).__name__} must define hard(x)")

    def forward(self, x: Tensor) -> Tensor:
        if self._forward is not None:
            return self._forward(x)
        return (self._backward or self.surrogate)(self.hard(x.detach()), x)


Selector = type | nn.Module | str


def discrete_layers(model: nn.Module) -> dict[str, Discrete]:
    """The discrete layers of a model by their qualified names, in the order of `named_modules`."""
    if not isinstance(model, nn.Module):
        return {}
    return {name: module for name, module in model.named_modules() if isinstance(module, Discrete)}


def _selected(model: nn.Module, selector: Selector) -> list[Discrete]:
    layers = discrete_layers(model)
    if selector == "*":
        return list(layers.values())
    if isinstance(selector, str):
        found = [m for name, m in layers.items() if name == selector or type(m).__name__ == selector]
    elif isinstance(selector, type):
        found = [m for m in layers.values() if isinstance(m, selector)]
    else:
        found = [m for m in layers.values() if m is selector]
    if not found:
        known = ", ".join(sorted({type(m).__name__ for m in layers.values()} | set(layers))) or "none"
        raise UsageError(
            "a discrete layer of the model (class, module, qualified name, class name or '*')",
            f"{selector!r}",
            f"the model's discrete layers: {known}",
        )
    return found


def _resolve(layer: Discrete, choice, table: Mapping, kind: str, lenient: bool):
    if not isinstance(choice, str):
        return choice
    if choice in table:
        return table[choice]
    if lenient:  # "*" : a layer without that substitute keeps its own
        return None
    raise UsageError(
        f"a {kind} that {type(layer).__name__} declares", repr(choice), f"it declares: {sorted(table) or 'none'}"
    )


def _check_declared(model: nn.Module, name: str, table: str, kind: str) -> None:
    """UsageError for a name that no layer declares: the attack would be another one than it is called."""
    known = sorted({declared for layer in discrete_layers(model).values() for declared in getattr(layer, table)})
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        told = f"{hint}declared: {', '.join(known) or 'none'}"
        raise UsageError(f"a {kind} that some layer of the model declares", repr(name), told)


@contextmanager
def _swapped(model: nn.Module, choices: Mapping, slot: str, table: str, kind: str) -> Iterator[None]:
    """Put choices (or what their names stand for in each layer's `table`) into `slot`, and take them out again."""
    plan = [
        (layer, _resolve(layer, choice, getattr(layer, table), kind, selector == "*"))
        for selector, choice in choices.items()
        for layer in _selected(model, selector)
    ]
    for selector, choice in choices.items():
        if selector == "*" and isinstance(choice, str):
            _check_declared(model, choice, table, kind)
    before = [(layer, getattr(layer, slot)) for layer, _ in plan]
    try:
        for layer, chosen in plan:
            if chosen is not None:
                setattr(layer, slot, chosen)
        yield
    finally:
        for layer, previous in reversed(before):
            setattr(layer, slot, previous)


def backward_as(model: nn.Module, choices: Mapping[Selector, "Surrogate | str"]) -> AbstractContextManager[None]:
    """Swap backwards for the length of the block; the previous ones come back, also after an exception.

    Args:
        model: any module; its `Discrete` layers are reached through `named_modules`.
        choices: selector -> surrogate, or the name of one of the layer's own `substitutes`. A selector is a
            class, a module, a qualified name, a class name, or "*" (every discrete layer that declares the
            name; the others keep their own).

    Raises:
        UsageError: a selector that matches nothing, or a substitute that the layer (with "*": every layer) does not
            declare.

    Example:
        >>> with backward_as(model, {"*": "soft"}): ...
    """
    return _swapped(model, choices, "_backward", "substitutes", "substitute")


def forward_as(
    model: nn.Module, choices: Mapping[Selector, "Callable[[Tensor], Tensor] | str"]
) -> AbstractContextManager[None]:
    """Swap forwards (for instance the mean field of a Bernoulli unit) for the length of the block.

    Arguments and errors as in `backward_as`, with the layer's `relaxed` table.
    """
    return _swapped(model, choices, "_forward", "relaxed", "relaxed forward")


class Foreign(nn.Module):
    """A plain callable in a module's place: its scope is unknown."""

    scope = "unknown"

    def __init__(self, function: Callable[[Tensor], Tensor]):
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def as_module(model: Callable[[Tensor], Tensor]) -> nn.Module:
    """The model itself when it is a module, else a `Foreign` around it; for wrappers that hold a model."""
    return model if isinstance(model, nn.Module) else Foreign(model)


_ORDER: dict[Scope, int] = {"none": 0, "example": 1, "call": 2, "unknown": 3}
_RANDOM_WHEN_TRAINING = (nn.modules.dropout._DropoutNd, nn.RReLU)
_DROPOUT_RATE = (nn.RNNBase, nn.MultiheadAttention)


def scope_of(model: object) -> Scope:
    """Where a model's noise enters, as far as its own declarations say: the widest scope of its layers.

    Stochade's layers and models declare it; `torch.nn` modules are known by a table; every other class is
    "unknown" (its forward may do anything) unless it sets `scope` itself. An attack loops over draws of an
    unknown model and tiles the batch only when every scope is "none" or "example".
    """
    if not isinstance(model, nn.Module):
        return "unknown"
    if getattr(model, "training", False) and any(
        isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training for m in model.modules()
    ):
        return "call"
    scopes: list[Scope] = [_own_scope(module) for module in model.modules()]
    declared = _declared(model)
    if declared is not None and declared != "composite":
        return declared  # the author of the outermost module answers for all of it
    return max(scopes, key=lambda scope: _ORDER[scope])  # never empty: a module is among its own modules


def _declared(module: nn.Module) -> Any:
    """The scope a module declares, when the declaration is about the forward that it has: a subclass that writes a
    forward (or `hard`) of its own and says nothing inherits no promise."""
    value = getattr(module, "scope", None)
    if value not in (*_ORDER, "composite"):
        return None
    if "scope" in vars(module):
        return value
    for cls in type(module).__mro__:
        if "scope" in vars(cls):
            return value
        if "forward" in vars(cls) or "hard" in vars(cls):
            return "unknown"
    return None


def _own_scope(module: nn.Module) -> Scope:
    declared = _declared(module)
    if declared == "composite":  # random only through its children
        return "none"
    if declared is not None:
        return declared
    known = type(module).__module__.startswith("torch.nn.") or type(module) is WideLinear
    if not known or module._forward_hooks or module._forward_pre_hooks:
        return "unknown"  # foreign code, or foreign code hooked onto a known layer
    if isinstance(module, _RANDOM_WHEN_TRAINING):
        return "example" if module.training else "none"
    if isinstance(module, _DROPOUT_RATE) and module.training and getattr(module, "dropout", 0):
        return "example"
    return "none"
