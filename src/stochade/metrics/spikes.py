"""How much a spiking network fires, what that costs, and how accurate it is after every step.

Models are `Encoded`: an `encoder` (images [N,C,H,W] -> codes [N,T,...]) and a `network` of `SpikingNeuron` layers
with `over_time`. All functions draw from the global generators inside a fork, in evaluation mode, and leave the model
as it was.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stochade.errors import BudgetError, ImagesError, LabelsError, ModelError
from stochade.nn import SpikingNeuron
from stochade.randomness import reseed, untouched

MAC_PICOJOULES, AC_PICOJOULES = 4.6, 0.9  # 32-bit float multiply-accumulate and accumulate at 45 nm (Horowitz 2014)
INPUT = "input"


@dataclass(frozen=True)
class Operations:
    """What one convolution or dense layer does for one image, all time steps together.

    Attributes:
        layer: its name in the model.
        dense: multiply-accumulates that a network without spikes of the same shape would need in each step, times T.
        active: of these, those whose input is not zero: synaptic operations. Padding counts in neither.
        spikes: whether every input seen was a whole number (a spike, or a sum of spikes), so that an accumulate will
            do: the pixels of a direct code and averages of spikes are not.
    """

    layer: str
    dense: float
    active: float
    spikes: bool


@contextmanager
def _hooked(modules: dict[str, nn.Module], tell: Any) -> Iterator[None]:
    handles = [
        module.register_forward_hook(lambda _m, inputs, output, name=name, m=module: tell(name, m, inputs[0], output))
        for name, module in modules.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _parts(model: nn.Module) -> tuple[nn.Module, nn.Module]:
    encoder, network = getattr(model, "encoder", None), getattr(model, "network", None)
    if not isinstance(encoder, nn.Module) or not isinstance(network, nn.Module):
        raise ModelError(
            "a model with an encoder and a network", type(model).__name__, "build one: registry.build('snn')"
        )
    return encoder, network


def _images(images: Tensor) -> Tensor:
    if not isinstance(images, Tensor) or images.dim() < 2 or not len(images) or not images.is_floating_point():
        got = f"{images.dtype} {list(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        raise ImagesError("float images [N,C,H,W] in [0,1], at least one", got)
    if not bool(((images >= 0) & (images <= 1)).all()):
        low, high = float(images.min()), float(images.max())
        raise ImagesError("images in [0,1]", f"values in [{low:.4g}, {high:.4g}]", "divide by 255, and leave out NaN")
    return images


def _batches(images: Tensor, batch: int) -> Iterator[Tensor]:
    if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
        raise BudgetError("a batch of at least one image", repr(batch))
    yield from images.split(batch)


@torch.no_grad()
def spike_rates(model: nn.Module, images: Tensor, *, batch: int = 100, seed: int = 0) -> dict[str, float]:
    """Spikes per neuron and step of every layer of neurons by name, and of the code under "input": the mean of |code|
    (mukhoty2025, tables 5 and 9), which for spikes is how often one is there.

    Raises:
        ModelError: no encoder, or no neurons. ImagesError, BudgetError: images or a batch that make no sense.
    """
    encoder, _ = _parts(model)
    layers: dict[str, nn.Module] = {n: m for n, m in model.named_modules() if isinstance(m, SpikingNeuron)}
    if not layers:
        raise ModelError("a network with spiking neurons (nn.LIF, nn.IF)", type(model).__name__)
    images, total = _images(images), dict.fromkeys([INPUT, *layers], 0.0)

    def tell(name: str, module: nn.Module, _input: Tensor, output: Tensor) -> None:
        share = len(part) / len(images)
        total[INPUT if module is encoder else name] += share * float(output.abs().double().mean())

    with untouched(model), _hooked({INPUT: encoder, **layers}, tell):
        reseed(seed)
        model.eval()
        for part in _batches(images, batch):
            model(part)
    return total


def _connections(module: nn.Conv2d | nn.Linear, x: Tensor) -> float:
    """How many products of the layer have an input where x is 1 and no zero of padding. x: 0 and 1, of its input."""
    if isinstance(module, nn.Linear):
        return float(x.double().sum()) * module.out_features
    per_group = module.out_channels // module.groups
    ones = x.new_ones(module.groups, module.in_channels // module.groups, *module.kernel_size)
    reached = F.conv2d(
        x, ones, None, module.stride, module.padding, module.dilation, module.groups  # type: ignore[arg-type]
    )  # fmt: skip
    return float(reached.double().sum()) * per_group


@torch.no_grad()
def operations(model: nn.Module, images: Tensor, *, batch: int = 50, seed: int = 0) -> list[Operations]:
    """Operations of every convolution (Conv2d) and dense layer per image, in the model's order, counted exactly: an
    input at the border reaches fewer outputs.

    Raises:
        ModelError: a convolution that does not pad with zeros, or a model without such layers. ImagesError,
            BudgetError: images or a batch that make no sense.
    """
    layers: dict[str, nn.Module] = {
        name: m for name, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)
    }
    if not layers:
        raise ModelError("a network with convolutions or dense layers", type(model).__name__)
    for name, module in layers.items():
        if isinstance(module, nn.Conv2d) and module.padding_mode != "zeros":
            raise ModelError("convolutions that pad with zeros", f"{name}: {module.padding_mode}")
    images = _images(images)
    dense, active, spikes = (dict.fromkeys(layers, start) for start in (0.0, 0.0, True))

    def tell(name: str, module: Any, x: Tensor, _output: Tensor) -> None:
        dense[name] += _connections(module, torch.ones_like(x)) / len(images)
        active[name] += _connections(module, (x != 0).to(x.dtype)) / len(images)
        spikes[name] = spikes[name] and bool((x == x.round()).all())

    with untouched(model), _hooked(layers, tell):
        reseed(seed)
        model.eval()
        for part in _batches(images, batch):
            model(part)
    return [Operations(name, dense[name], active[name], bool(spikes[name])) for name in layers]


def energy(counted: Sequence[Operations], mac: float = MAC_PICOJOULES, ac: float = AC_PICOJOULES) -> dict[str, float]:
    """Microjoules per image: "spiking" (active operations, an accumulate each where inputs are spikes, else a
    multiply-accumulate) and "dense" (every operation a multiply-accumulate, all T steps).

    An estimate by arithmetic alone (45 nm, Horowitz 2014), without memory traffic, neurons or leakage: for comparing
    networks, not for planning power.

    Raises:
        BudgetError: a cost that is negative or no number.
    """
    for name, value in (("mac", mac), ("ac", ac)):
        if not isinstance(value, int | float) or not 0 <= value < float("inf"):
            raise BudgetError(f"picojoules >= 0 for {name}", repr(value))
    return {
        "spiking": sum(o.active * (ac if o.spikes else mac) for o in counted) * 1e-6,
        "dense": sum(o.dense for o in counted) * mac * 1e-6,
    }


@torch.no_grad()
def accuracy_by_latency(
    model: nn.Module, images: Tensor, labels: Tensor, *, draws: int = 1, batch: int = 100, seed: int = 0
) -> list[float]:
    """Accuracy of one model after 1, 2, ... T steps: its class is that of the mean of the logits so far. What a
    network did in its first steps does not depend on how many follow, so one run gives every latency.

    Args:
        labels: [N]. draws: encodings per image.

    Returns:
        T accuracies in [0, 1], for the T of the encoder.

    Raises:
        ModelError: no encoder, or a network without `over_time`. LabelsError: other labels than images. ImagesError,
            BudgetError: images, draws or a batch that make no sense.
    """
    encoder, network = _parts(model)
    over_time: Any = getattr(network, "over_time", None)
    if over_time is None:
        raise ModelError("a network over time (stochade.nn.over_time.OverTime)", type(network).__name__)
    images = _images(images)
    if not isinstance(labels, Tensor) or labels.shape != images.shape[:1] or labels.is_floating_point():
        got = f"{labels.dtype} {list(labels.shape)}" if isinstance(labels, Tensor) else repr(labels)
        raise LabelsError(f"whole labels [{len(images)}]", got)
    if isinstance(draws, bool) or not isinstance(draws, int) or draws < 1:
        raise BudgetError("at least one draw", repr(draws))
    right: Tensor | float = 0.0
    with untouched(model):
        reseed(seed)
        model.eval()
        for _ in range(draws):
            for part, y in zip(_batches(images, batch), labels.split(batch), strict=True):
                logits = over_time(encoder(part))  # means rank classes as sums do
                right = right + (logits.double().cumsum(0).argmax(-1) == y).sum(1)
    assert isinstance(right, Tensor)
    return (right.double() / (draws * len(images))).tolist()
