"""Networks that keep state between calls, run as if they did not: `Adapted`, the base of the three adapters."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from stochade.adapters.spikes import Slot, put_in
from stochade.errors import ModelError, UsageError
from stochade.nn import Direct
from stochade.nn.discrete import Scope
from stochade.nn.encoders import check_steps

Layout = Literal["images", "sequence", "batch-first", "step"]
LAYOUTS = ("images", "sequence", "batch-first", "step")
READOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda out: out.mean(0),
    "sum": lambda out: out.sum(0),
    "last": lambda out: out[-1],
    "max": lambda out: out.amax(0),
}
_TORCH_OWN = frozenset(nn.Module().__dict__)


def _is_state(value: object) -> bool:
    """Whether a value may be state: a tensor, a number, None, or lists, tuples and dicts of these."""
    if isinstance(value, list | tuple | dict):
        return all(_is_state(item) for item in (value.values() if isinstance(value, dict) else value))
    return value is None or (isinstance(value, Tensor | int | float) and not isinstance(value, nn.Parameter))


def _attributes(module: nn.Module) -> dict[str, Any]:
    return {k: v for k, v in vars(module).items() if k not in _TORCH_OWN and _is_state(v)}


def _contents(value: Any) -> Any:
    """What a list or dict, however deep, holds now; None for what cannot be changed but by putting another there."""
    if isinstance(value, list | tuple):
        return [(item, _contents(item)) for item in value]
    return {k: (item, _contents(item)) for k, item in value.items()} if isinstance(value, dict) else None


def _refill(value: Any, contents: Any) -> None:
    if contents is None:
        return
    if isinstance(value, list):
        value[:] = [item for item, _ in contents]
    elif isinstance(value, dict):
        value.clear()
        value.update({k: item for k, (item, _) in contents.items()})
    for item, inner in contents.values() if isinstance(contents, dict) else contents:
        _refill(item, inner)


@contextmanager
def without_trace(model: nn.Module) -> Iterator[None]:
    """Whatever the block leaves in the model's modules goes: tensors, numbers and lists or dicts of them in plain
    attributes, and in buffers that are not saved or carry a graph. Buffers that are saved and parameters stay, so
    batch norm and optimisers work as ever. Also after an exception. Objects are put back, never written into: a
    backward pass that comes later needs what the forward made."""
    before = [
        (m, {k: (v, _contents(v)) for k, v in _attributes(m).items()}, dict(m._buffers)) for m in model.modules()
    ]
    try:
        yield
    finally:
        for module, attributes, buffers in before:
            _put_back(module, attributes, buffers)


def _put_back(module: nn.Module, attributes: dict[str, tuple[Any, Any]], buffers: dict) -> None:
    for name in _attributes(module).keys() - attributes.keys():
        del vars(module)[name]
    for name, (value, contents) in attributes.items():
        vars(module)[name] = value
        _refill(value, contents)
    for name, value in list(module._buffers.items()):
        if name not in module._non_persistent_buffers_set and not (value is not None and value.requires_grad):
            continue
        if name in buffers:
            module._buffers[name] = buffers[name]
        else:
            delattr(module, name)


class Unrolled(nn.Module):
    """A foreign network over time, without state: codes [N,T,...] (or images) -> logits [N,K]. Made by `Adapted`.

    Attributes:
        model: the caller's network, in the caller's mode.
        spikes: its neurons' spikes, which `backward_as` and `forward_as` reach.
    """

    scope = "composite"

    def __init__(
        self, model: nn.Module, library: type["Adapted"], layout: Layout, step: Callable | None,
        readout: str | Callable[[Tensor], Tensor], output: int,
    ):  # fmt: skip
        super().__init__()
        self.model, self.layout, self.readout, self.output = model, layout, readout, output
        self._library, self._step = library, step
        self._slots = library.slots(model)
        self._fixed = library.fixed_spikes(model)  # names of neurons whose surrogate cannot be swapped
        self.spikes = nn.ModuleList([slot.spike for slot in self._slots])
        library.reset(model)

    def forward(self, x: Tensor) -> Tensor:
        swapped = any(slot.spike.swapped for slot in self._slots)
        if self._fixed and swapped:
            raise ModelError(
                "neurons that all take another backward", f"{', '.join(self._fixed)}, whose own cannot be swapped",
                "attack with the network's own backward, or with gradient=Evolution()",
            )  # fmt: skip
        self._library.reset(self.model)
        with without_trace(self.model), self._library.awake(self.model, swapped), put_in(self._slots):
            return self._logits(self._run(x), len(x))

    def _run(self, x: Tensor) -> Any:
        if self.layout in ("images", "batch-first"):
            return self.model(x)
        frames = x.transpose(0, 1)
        if self.layout == "sequence":
            return self.model(frames)
        outs, state = [], None
        for frame in frames:
            if self._step is None:
                out = self.model(frame)
            else:
                answer = self._step(frame, state)
                if not (isinstance(answer, tuple | list) and len(answer) == 2):
                    got = f"{type(answer).__name__} of {len(answer) if isinstance(answer, tuple | list) else 1}"
                    raise ModelError("a step(frame, state) that returns (out, state)", got)
                out, state = answer
            outs.append(self._chosen(out))
        return torch.stack(outs)

    def _chosen(self, out: Any) -> Tensor:
        if isinstance(out, tuple | list):
            if not -len(out) <= self.output < len(out):
                raise ModelError(f"an output number {self.output}", f"{len(out)} outputs", "output=0 is the first")
            out = out[self.output]
        if not isinstance(out, Tensor):
            raise ModelError("a tensor of outputs", type(out).__name__, "output=NUMBER chooses from a tuple")
        return out

    def _logits(self, out: Any, count: int) -> Tensor:
        out = self._chosen(out)
        if out.dim() == 2 and len(out) == count:
            return out
        if out.dim() == 3 and self.layout == "batch-first":
            out = out.transpose(0, 1)
        if out.dim() != 3 or out.shape[1] != count:
            raise ModelError(
                f"outputs [{count}, K], or over time [T, {count}, K]", f"{list(out.shape)}",
                "time comes first unless layout='batch-first'",
            )  # fmt: skip
        return READOUTS[self.readout](out) if isinstance(self.readout, str) else self.readout(out)


class Adapted(nn.Module):
    """A foreign spiking network as a classifier: images [N,C,H,W] in [0,1] -> logits [N,K], nothing kept in between.

    Every forward starts from the network's resting state and leaves it there, also after an exception; only modules
    of this network are touched. Train and eval modes, batch norm and dropout are as the caller set them.

    Args:
        model: the network. It is used as it is, not copied.
        steps: time steps T. The image is shown in each of them, unless an encoder is given. Without steps and encoder
            the network must take images and run over time by itself.
        encoder: images [N,C,H,W] -> codes [N,T,...], such as `nn.BernoulliRate(8)`; attacks differentiate through it.
        layout: "sequence": the network takes all steps at once, [T,N,...]; "batch-first": [N,T,...]; "step": one
            step, [N,...], and is called T times; "images": it takes images. None: what the library's neurons say.
        step: for networks whose state is an argument: a method of the network (or its name), `step(frame, state) ->
            (out, state)`, called with state None first.
        readout: of outputs over time [T,N,K]: "mean", "sum", "last", "max" or a function of them.
        output: which one, where the network returns several (spikes and potentials).
        scope: where noise enters, if you know it: "none", "example" or "call". Unsaid, it is unknown, and attacks
            draw one forward at a time.

    Attributes:
        encoder, network: the two parts, as in `models.Encoded`; attacks on codes work.

    Raises:
        UsageError: arguments that do not fit together. ModelError: no nn.Module, or neurons in several step modes; in
            a forward, outputs of another shape.
    """

    name: ClassVar[str] = "a library"
    encoder: nn.Module | None

    def __init__(
        self, model: nn.Module, *, steps: int | None = None, encoder: nn.Module | None = None,
        layout: Layout | None = None, step: Callable | str | None = None,
        readout: str | Callable[[Tensor], Tensor] = "mean", output: int = 0, scope: Scope | None = None,
    ):  # fmt: skip
        super().__init__()
        if not isinstance(model, nn.Module):
            raise ModelError("a network (nn.Module)", type(model).__name__, "pass the module itself")
        encoder = _encoder(model, steps, encoder)
        method = _method(model, step)
        layout = layout or ("images" if encoder is None else self.layout_of(model, method is not None))
        _check(layout, encoder, method, readout, output, scope)
        if layout == "step" and method is None:
            method = self.step_of(model)
        self.scope = scope or "composite"
        self.encoder = encoder
        self.network = Unrolled(model, type(self), layout, method, readout, output)
        for module in (self, self.network, self.network.spikes, *self.network.spikes):
            module.training = model.training  # parts of this class have no mode of their own

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x if self.encoder is None else self.encoder(x))

    # What a library is. Class methods: they hold no state of their own.

    @classmethod
    def layout_of(cls, model: nn.Module, has_step: bool) -> Layout:
        """How the network takes its codes."""
        raise NotImplementedError

    @classmethod
    def step_of(cls, model: nn.Module) -> Callable | None:
        """The network's own step with a state, if it has one."""
        return None

    @classmethod
    def neurons(cls, model: nn.Module) -> list[nn.Module]:
        """The modules of this library that spike."""
        raise NotImplementedError

    @classmethod
    def slots(cls, model: nn.Module) -> list[Slot]:
        """Where the neurons keep their spike functions."""
        raise NotImplementedError

    @classmethod
    def fixed_spikes(cls, model: nn.Module) -> list[str]:
        """Neurons whose surrogate cannot be swapped, by name."""
        swappable = {id(slot.neuron) for slot in cls.slots(model)}
        return sorted({type(m).__name__ for m in cls.neurons(model) if id(m) not in swappable})

    @classmethod
    def reset(cls, model: nn.Module) -> None:
        """The resting state in every module of this network."""

    @classmethod
    @contextmanager
    def awake(cls, model: nn.Module, swapped: bool) -> Iterator[None]:
        """Neurons that have a gradient in the mode the caller chose, and ask for surrogates that are swapped."""
        yield


def _encoder(model: nn.Module, steps: int | None, encoder: nn.Module | None) -> nn.Module | None:
    if encoder is None:
        return None if steps is None else Direct(steps).train(model.training)
    if not isinstance(encoder, nn.Module):
        hint = "stochade.nn.BernoulliRate(steps), SignedRate, Latency, RSC or a module of yours"
        raise UsageError("an encoder (nn.Module): images -> codes [N,T,...]", type(encoder).__name__, hint)
    if steps is not None and check_steps(steps) != getattr(encoder, "steps", steps):
        raise UsageError(f"the encoder's steps, {encoder.steps}", f"steps={steps}", "leave steps out")
    return encoder


def _method(model: nn.Module, step: Callable | str | None) -> Callable | None:
    if isinstance(step, str):
        step = getattr(model, step, None) or step
    if step is None:
        return None
    if not callable(step) or not any(getattr(step, "__self__", None) is m for m in model.modules()):
        hint = "step='NAME' or step=model.NAME; a free function would go on using this network after a copy"
        raise UsageError("a method of the network as step", repr(step), hint)
    return step


def _check(layout, encoder, method, readout, output, scope) -> None:
    if layout not in LAYOUTS:
        raise UsageError(f"a layout, one of {', '.join(LAYOUTS)}", repr(layout))
    if (layout == "images") != (encoder is None):
        which = "no encoder and no steps" if encoder is not None else "steps=T or an encoder"
        raise UsageError(f"{which} with layout={layout!r}", "none" if encoder is None else type(encoder).__name__)
    if method is not None and layout != "step":
        raise UsageError("layout='step' with a step method", repr(layout))
    if not (callable(readout) or readout in READOUTS):
        raise UsageError(f"a readout, one of {', '.join(READOUTS)}, or a function", repr(readout))
    if isinstance(output, bool) or not isinstance(output, int):
        raise UsageError("a whole number as output", repr(output))
    if scope not in (None, "none", "example", "call", "unknown"):
        raise UsageError('a scope "none", "example", "call" or "unknown"', repr(scope))


def in_ancestry(module: nn.Module, *names: str) -> bool:
    """Whether a class of one of these names is among the module's own and its bases."""
    return any(cls.__name__ in names for cls in type(module).__mro__)
