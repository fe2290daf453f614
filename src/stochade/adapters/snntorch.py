"""Networks of snnTorch neurons. The library itself is never imported."""

from torch import nn

from stochade.adapters.spikes import Slot, find_slots
from stochade.adapters.stateful import Adapted, Layout


class SNNTorch(Adapted):
    """A network of snnTorch neurons.

    Layout: "step" where neurons hide their state (`init_hidden=True`) or a `step` method is given, else "sequence"
    (the network loops over [T,N,...] by itself). State: each neuron's own `reset_mem`, never `snntorch.utils.reset`,
    which zeroes every network of the process.

    Arguments and errors as in `Adapted`.

    Example:
        >>> model = SNNTorch(network.eval(), steps=25)
        >>> model = SNNTorch(network.eval(), steps=25, step="step")    # network.step(frame, state) -> (out, state)
    """

    name = "snnTorch"

    @classmethod
    def neurons(cls, model: nn.Module) -> list[nn.Module]:
        """The modules that spike: they have a `spike_grad`."""
        return [m for m in model.modules() if hasattr(m, "spike_grad")]

    @classmethod
    def layout_of(cls, model: nn.Module, has_step: bool) -> Layout:
        hidden = any(getattr(m, "init_hidden", False) for m in cls.neurons(model))
        return "step" if has_step or hidden else "sequence"

    @classmethod
    def slots(cls, model: nn.Module) -> list[Slot]:
        return find_slots(model, "spike_grad")

    @classmethod
    def reset(cls, model: nn.Module) -> None:
        for neuron in cls.neurons(model):
            if callable(getattr(neuron, "reset_mem", None)):
                neuron.reset_mem()  # pyright: ignore[reportCallIssue]
