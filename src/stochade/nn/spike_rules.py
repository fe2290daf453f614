"""Backwards through a whole layer of spiking neurons that attackers use in place of backpropagation through time.

    name   what comes back at the input of step t                                      source
    bptr   g[t] where the neuron fired in any step                                     Ding et al. 2022 (SNN-RAT)
    rga    g[t] times a slope that the mean input decides on                           Bu et al. 2023
    hart   the mean over steps of g times a triangle at the potential, no way through  Hao et al. 2024
           potentials
    pdsg   through time, a normal density at the potential for the derivative, as      Lun et al. 2025
           wide as the potentials so far are spread

g is the gradient at the spikes. `adaptive` (nn/adaptive.py) is ASSG. No rule is the strongest on all networks: take
the worst over several per example. Numbers are those of the authors' codes.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stochade.nn.adaptive import PerForward

Neurons = Any  # a SpikingNeuron: `hard`, `potentials`, `decay`, `threshold`, `v_reset`
RGA_SLOPE = 0.2


def bptr(neurons: Neurons, x: Tensor) -> Tensor:
    """Identity for neurons that fire at all, else nothing: [T, N, ...]."""
    with torch.no_grad():
        fired = neurons.hard(x.detach()).amax(0).to(x.dtype)
    return x * fired


def rga(neurons: Neurons, x: Tensor) -> Tensor:
    """The slope of the firing rate over the mean input, in units of the threshold above rest: 0.2 on [0, 1 - d], (1 -
    0.2 (1 - d)) / (1 + d) on (1 - d, 2], else 0, for the decay d. Inputs in the first range never fire a neuron that
    they reach evenly; the authors keep a slope there."""
    decay = neurons.decay
    with torch.no_grad():
        mean = x.detach().mean(0) / (neurons.threshold - neurons.v_reset)
        steep = (1 - RGA_SLOPE * (1 - decay)) / (1 + decay)
        slope = torch.where(mean <= 1 - decay, RGA_SLOPE, steep) * ((mean >= 0) & (mean <= 2))
    return x * slope.to(x.dtype)


def hart(neurons: Neurons, x: Tensor) -> Tensor:
    """Triangles of width 1 at every step's potential, over the mean input. The authors attack with the mean of this
    gradient and the one through time (`Ensemble`)."""
    slope = (1 - neurons.potentials(x.detach()).abs()).clamp_min(0).to(x.dtype)
    return slope * x.mean(0, keepdim=True)


@dataclass(frozen=True)
class PotentialDensity(PerForward):
    """PDSG: the density of a normal distribution of mean s / 2 and deviation s at the distance to the threshold, s
    being the deviation of the potentials up to this step.

    The authors take s over the batch too, for every channel; here it is that of each example over all neurons of its
    channel (of its layer, where neurons are not in channels), so that no example depends on others in the batch.
    """

    least: float = 1e-3

    def weights(self, x: Tensor) -> Tensor:
        wide = x.float()
        axes = tuple(range(3 if x.dim() > 3 else 2, x.dim()))
        count = torch.arange(1, len(x) + 1, device=x.device).view(-1, *[1] * (x.dim() - 1))
        first, second = (
            (power.mean(axes, keepdim=True) if axes else power).cumsum(0) / count for power in (wide, wide.square())
        )
        spread = (second - first.square()).clamp_min(0).sqrt().clamp_min(self.least)
        z = wide / spread - 0.5
        return (torch.exp(-0.5 * z.square()) / (spread * math.sqrt(2 * math.pi))).to(x.dtype)


def pdsg() -> PotentialDensity:
    """The surrogate of PDSG, see `PotentialDensity`."""
    return PotentialDensity(_linear, "pdsg")


def _linear(x: Tensor) -> Tensor:
    return x


RULES: dict[str, Callable[[Neurons, Tensor], Tensor]] = {"bptr": bptr, "rga": rga, "hart": hart}
