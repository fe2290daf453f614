"""The spikes of a foreign neuron as a layer that tells about itself, put in its place for one forward at a time."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stochade.errors import ModelError, UsageError
from stochade.nn import surrogates
from stochade.nn.adaptive import PerForward
from stochade.nn.discrete import Discrete, Surrogate

_WARM = 4.0  # slope of the sigmoid in the relaxed forward, as in nn.LIF


def _warm(u: Tensor) -> Tensor:
    return torch.sigmoid(_WARM * u)


class ForeignSpike(Discrete):
    """The step from potentials, u = v - threshold, to spikes of a neuron of another library.

    Its forward is the library's own, also at u = 0 (SpikingJelly fires there, snnTorch and Norse do not). While
    nothing is swapped the library runs untouched and this layer takes no part.

    Substitutes: "identity" and "ste" (derivative 1), "soft" (sigmoid, slope 4), "atan", "triangle", "rectangle", as
    in `nn.LIF`; any elementwise `Surrogate` may be given itself. Relaxed "warm": a sigmoid of slope 4 for spikes.

    Args:
        own: the library's function of u, step and surrogate derivative in one.

    Raises:
        UsageError: in a forward, with a backward that needs all steps of a layer at once (bptr, rga, hart, pdsg,
            adaptive): the library asks for one step at a time.
    """

    scope = "none"

    def __init__(self, own: Callable[[Tensor], Tensor]):
        ste = surrogates.identity()
        table: dict[str, Surrogate] = {"ste": ste, "identity": ste, "soft": surrogates.sigmoid(4.0)}
        table |= {"atan": surrogates.atan(2.0), "triangle": surrogates.triangle(1.0)}
        table |= {"rectangle": surrogates.rectangle(1.0)}
        super().__init__(Surrogate(own, "the library's own"), table, {"warm": _warm})
        self.asked = False  # since the last `put_in`
        self._own = (own,)  # not a child: the modules inside stay where the library has them

    @property
    def own(self) -> Callable[[Tensor], Tensor]:
        """The library's function."""
        return self._own[0]

    @property
    def swapped(self) -> bool:
        """Whether an attacker has put a backward or a forward in."""
        return self._backward is not None or self._forward is not None

    @property
    def spiking(self) -> bool:
        """What SpikingJelly asks its surrogate functions: spikes, not their primitive."""
        return True

    def hard(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self.own(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.instead(x, None)

    def instead(self, x: Tensor, hard: Tensor | None) -> Tensor:
        """What the attacker has put in, at u = x; `hard` are the spikes, the library's where None."""
        self.asked = True
        if isinstance(self._backward, PerForward | surrogates.Whole):
            raise UsageError(
                "a backward of one step, such as 'atan' or surrogates.triangle()",
                f"{self._backward.name or type(self._backward).__name__}, which needs all steps of a layer",
                "rules over time need stochade.nn.LIF layers",
            )
        if self._forward is not None:
            return self._forward(x)
        return (self._backward or self.surrogate)(self.hard(x.detach()) if hard is None else hard, x)


@dataclass(frozen=True)
class Slot:
    """Where one neuron keeps its spike function: an attribute, and what stands there for a `ForeignSpike`."""

    neuron: nn.Module
    attribute: str
    spike: ForeignSpike
    made: Callable[[ForeignSpike, Any], Any]  # (spike, what is there now) -> what to put there


def itself(spike: ForeignSpike, before: Any) -> Any:
    """For libraries that call the attribute with u."""
    return spike


def is_step(own: Callable[[Tensor], Tensor]) -> bool:
    """Whether a spike function gives 0 far below the threshold and 1 far above it."""
    try:
        with torch.no_grad():
            return torch.equal(own(torch.tensor([-4.0, 4.0])), torch.tensor([0.0, 1.0]))
    except Exception:  # no function, or foreign code that wants another shape or device
        return False


def find_slots(model: nn.Module, attribute: str) -> list[Slot]:
    """A slot for every module whose `attribute` is a step function of u."""
    found = []
    for module in model.modules():
        own: Any = getattr(module, attribute, None)
        if own is not None and is_step(own):
            found.append(Slot(module, attribute, ForeignSpike(own), itself))
    return found


@contextmanager
def put_in(slots: Sequence[Slot]) -> Iterator[None]:
    """The swapped ones of these spikes in their neurons, for the length of the block.

    Raises:
        ModelError: at the end, where a neuron never asked for the spikes that were put in.
    """
    undo: list[tuple[dict, str, Any]] = []
    try:
        for slot in slots:
            if slot.spike.swapped:
                # not setattr: torch would move a function's name into the children and refuse to take it back
                modules = slot.neuron._modules
                place: dict = modules if slot.attribute in modules else vars(slot.neuron)
                undo.append((place, slot.attribute, place[slot.attribute]))
                place[slot.attribute] = slot.made(slot.spike, place[slot.attribute])
                slot.spike.asked = False
        yield
        deaf = sorted({type(slot.neuron).__name__ for slot in slots if slot.spike.swapped and not slot.spike.asked})
        if deaf:
            raise ModelError(
                "neurons that all take another backward", f"{', '.join(deaf)}, whose kernel never asks for it",
                "attack with the network's own backward, and take out neurons that the network does not use",
            )  # fmt: skip
    finally:
        for place, name, value in reversed(undo):
            place[name] = value
