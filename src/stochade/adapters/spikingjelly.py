"""Networks of SpikingJelly neurons (0.0.0.0.14 and 2.0). The library itself is never imported."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from stochade.adapters.spikes import Slot, find_slots
from stochade.adapters.stateful import Adapted, Layout, in_ancestry
from stochade.errors import ModelError

# In eval mode 0.0.0.0.14 runs IF and LIF neurons without a gradient, and 2.0 complementary ones. Their train mode
# computes the same spikes. Classes built on them whose train mode does more are left alone.
_NO_GRADIENT_IN_EVAL = ("IFNode", "LIFNode", "ParametricLIFNode", "ComplementaryLIFNode")
_MORE_IN_TRAIN = ("OTTTLIFNode", "SLTTLIFNode", "MPBNBaseNode", "MPBNLIFNode")


class SpikingJelly(Adapted):
    """A network of SpikingJelly neurons.

    Layout: "sequence" where all neurons are in step mode "m", "step" where they are in "s". State: every module's
    memories and `reset`, of this network only. Neurons are differentiable in eval mode.

    Arguments and errors as in `Adapted`. While a surrogate is swapped, neurons with a `backend` run on "torch".

    Example:
        >>> model = SpikingJelly(network.eval(), steps=4)
        >>> model = SpikingJelly(network.eval(), encoder=stochade.nn.BernoulliRate(8))
    """

    name = "SpikingJelly"

    @classmethod
    def neurons(cls, model: nn.Module) -> list[nn.Module]:
        """The modules that spike: they have a surrogate function and SpikingJelly's memories."""
        return [m for m in model.modules() if hasattr(m, "surrogate_function")]

    @classmethod
    def layout_of(cls, model: nn.Module, has_step: bool) -> Layout:
        modes = {str(m.step_mode) for m in cls.neurons(model) if hasattr(m, "step_mode")}
        if has_step or modes == {"s"}:
            return "step"
        if modes == {"m"}:
            return "sequence"
        got = f"modes {sorted(modes)}" if modes else "no neuron with a step mode"
        hint = "spikingjelly.activation_based.functional.set_step_mode(network, 'm'), or say layout='sequence'"
        raise ModelError("SpikingJelly neurons in one step mode, 's' or 'm'", got, hint)

    @classmethod
    def slots(cls, model: nn.Module) -> list[Slot]:
        return find_slots(model, "surrogate_function")

    @classmethod
    def reset(cls, model: nn.Module) -> None:
        for module in model.modules():
            memories, resting = getattr(module, "_memories", None), getattr(module, "_memories_rv", None)
            if isinstance(memories, dict) and isinstance(resting, dict):
                for name in memories:  # first: the library's reset writes into tensors that a backward may need
                    memories[name] = copy.deepcopy(resting[name])
            if callable(getattr(module, "reset", None)):
                module.reset()  # pyright: ignore[reportCallIssue]

    @classmethod
    @contextmanager
    def awake(cls, model: nn.Module, swapped: bool) -> Iterator[None]:
        kernels = [(m, vars(m)["_backend"]) for m in cls.neurons(model) if swapped and "_backend" in vars(m)]
        asleep = [
            m
            for m in cls.neurons(model)
            if not m.training and in_ancestry(m, *_NO_GRADIENT_IN_EVAL) and not in_ancestry(m, *_MORE_IN_TRAIN)
        ]
        try:
            for neuron in asleep:
                neuron.training = True  # this module alone: train() would reach its children
            for neuron, _ in kernels:
                vars(neuron)["_backend"] = "torch"  # others have their surrogates compiled in
            yield
        finally:
            for neuron, backend in kernels:
                vars(neuron)["_backend"] = backend
            for neuron in asleep:
                neuron.training = False
