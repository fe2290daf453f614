"""Networks of Norse neurons. The library itself is never imported."""

import inspect
import types
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from stochade.adapters.spikes import ForeignSpike, Slot
from stochade.adapters.stateful import Adapted, Layout, in_ancestry
from stochade.errors import ModelError

_CELLS = ("SNNCell", "SNNRecurrentCell")  # one step
_OVER_TIME = ("SNN", "SNNRecurrent", "Lift")  # all steps


def _spiking(parameters: Any) -> bool:
    return any(hasattr(p, "method") for p in (parameters, *(parameters if isinstance(parameters, tuple) else ())))


class _Own:
    """Norse's step with the surrogate that a neuron's parameters name."""

    def __init__(self, neuron: nn.Module):
        self.neuron = (neuron,)

    def __call__(self, u: Tensor) -> Tensor:
        (neuron,) = self.neuron
        threshold = _function(neuron).__globals__["threshold"]
        return threshold(u, neuron.p.method, neuron.p.alpha)  # pyright: ignore[reportAttributeAccessIssue]


def _function(neuron: nn.Module) -> types.FunctionType:
    return neuron.activation  # pyright: ignore[reportReturnType]


def _reachable(neuron: nn.Module) -> bool:
    """Whether the activation is a Python function that asks `threshold` for spikes by the neuron's own method."""
    activation = _function(neuron)
    return (
        isinstance(activation, types.FunctionType)
        and "threshold" in activation.__code__.co_names
        and callable(activation.__globals__.get("threshold"))
        and hasattr(neuron.p, "method")
    )


def _with_threshold(spike: ForeignSpike, activation: Any) -> Callable:
    """The same function with another `threshold` among its globals: no other network sees it."""
    own = activation.__globals__["threshold"]

    def threshold(x: Tensor, method: Any, alpha: Any) -> Tensor:
        return spike.instead(x, own(x.detach(), method, alpha))

    made = types.FunctionType(
        activation.__code__, {**activation.__globals__, "threshold": threshold}, activation.__name__,
        activation.__defaults__, activation.__closure__,
    )  # fmt: skip
    made.__kwdefaults__ = activation.__kwdefaults__
    return made


class Norse(Adapted):
    """A network of Norse neurons, whose state is an argument.

    Layout: "step" where its neurons are cells, "sequence" where they run over time. A network whose forward takes a
    `state` (`norse.torch.SequentialState`) is its own step. The spikes of refractory neurons keep their surrogate: an
    attack that swaps surrogates on them is refused.

    Arguments and errors as in `Adapted`.

    Example:
        >>> model = Norse(network.eval(), steps=16)
    """

    name = "Norse"

    @classmethod
    def neurons(cls, model: nn.Module) -> list[nn.Module]:
        """The modules that spike: they have an activation function and parameters `p` with a threshold."""
        return [
            m
            for m in model.modules()
            if callable(getattr(m, "activation", None)) and hasattr(m, "p") and _spiking(m.p)
        ]

    @classmethod
    def layout_of(cls, model: nn.Module, has_step: bool) -> Layout:
        cells = any(in_ancestry(m, *_CELLS) for m in model.modules())
        over_time = any(in_ancestry(m, *_OVER_TIME) for m in model.modules())
        if has_step or (cells and not over_time):
            return "step"
        if over_time:
            return "sequence"
        hint = "say layout='step' or layout='sequence'"
        raise ModelError("Norse cells, or Norse neurons that run over time", "neither", hint)

    @classmethod
    def step_of(cls, model: nn.Module) -> Callable | None:
        return model.forward if "state" in inspect.signature(model.forward).parameters else None

    @classmethod
    def slots(cls, model: nn.Module) -> list[Slot]:
        reachable = [m for m in cls.neurons(model) if _reachable(m)]
        return [Slot(m, "activation", ForeignSpike(_Own(m)), _with_threshold) for m in reachable]
