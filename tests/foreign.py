"""Stand-ins that have the traps of SpikingJelly, snnTorch and Norse; tests/peers has the real libraries."""

from typing import ClassVar, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from stochade.adapters import adapt
from stochade.nn import surrogates
from stochade.randomness import forked

STEPS, CLASSES = 4, 5
OWN = surrogates.gaussian(0.7)


class Fire(nn.Module):
    """A surrogate function as a module: fires at u >= 0."""

    def __init__(self, surrogate=OWN):
        super().__init__()
        self.surrogate = surrogate

    def forward(self, u):
        return self.surrogate((u >= 0).to(u), u)


class JellyNode(nn.Module):
    """Memories, a reset that writes in place, no gradient in eval mode, kernels that ignore surrogates."""

    def __init__(self, surrogate=OWN, mode="m", backend="torch"):
        super().__init__()
        self._memories, self._memories_rv = {"v": 0.0}, {"v": 0.0}
        self.surrogate_function, self.step_mode, self._backend = Fire(surrogate), mode, backend
        self.v_seq = None

    def reset(self):
        if isinstance(self._memories["v"], Tensor):
            self._memories["v"].data.zero_()
        self.v_seq = None

    def one(self, x):
        v = 0.5 * self._memories["v"] + x
        own = Fire() if self._backend == "kernel" else self.surrogate_function
        spike = own(v - 1.0)
        self._memories["v"] = v - spike
        self.v_seq = v
        return spike

    def forward(self, x):
        out = torch.stack([self.one(frame) for frame in x]) if self.step_mode == "m" else self.one(x)
        return out if self.training else out.detach()


class IFNode(JellyNode):
    """Named as SpikingJelly's; so adapters know that train mode computes the same."""


class Merged(nn.Module):
    """A layer over merged time and batch."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x.flatten(0, 1)).unflatten(0, x.shape[:2])


def jelly(surrogate=OWN, mode="m", backend="torch", node=IFNode) -> nn.Module:
    with forked(0):
        first = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten())
        second = nn.Sequential(nn.Dropout(0.5), nn.Linear(64, CLASSES))
    with torch.no_grad():
        first[0].weight.mul_(4)
    wrap = Merged if mode == "m" else nn.Identity
    parts = [first, second] if wrap is nn.Identity else [Merged(first), Merged(second)]
    return nn.Sequential(parts[0], node(surrogate, mode, backend), parts[1]).eval()


class Leaky(nn.Module):
    """A buffer that is not saved, a function as surrogate, a class list of all instances."""

    instances: ClassVar[list] = []

    def __init__(self, surrogate=OWN, init_hidden=True):
        super().__init__()
        Leaky.instances.append(self)
        self.register_buffer("mem", torch.zeros(0), False)
        self.spike_grad, self.init_hidden = Fire(surrogate).forward, init_hidden

    def reset_mem(self):
        self.mem = torch.zeros_like(self.mem)
        return self.mem

    def forward(self, x, mem=None):
        if mem is not None:
            self.mem = mem
        if self.mem.shape != x.shape:
            self.mem = torch.zeros_like(x)
        self.reset = self.spike_grad(self.mem - 1).detach()
        self.mem = 0.5 * self.mem + x - self.reset
        spike = self.spike_grad(self.mem - 1)
        return spike if self.init_hidden else (spike, self.mem)


class Hidden(nn.Module):
    """Called once per step; gives spikes and potentials."""

    def __init__(self, surrogate=OWN):
        super().__init__()
        with forked(1):
            self.first, self.second = nn.Linear(36, 20), nn.Linear(20, CLASSES)
        self.lif, self.kept = Leaky(surrogate), [[]]
        with torch.no_grad():
            self.first.weight.mul_(4)

    def forward(self, x):
        out = self.lif(self.first(x.flatten(1)))
        self.kept[0].append(out)  # a recorder, as users have them
        return self.second(out), self.lif.mem


class Loop(Hidden):
    """A loop over [T,N,...] by hand, with states passed along."""

    def __init__(self, surrogate=OWN):
        super().__init__(surrogate)
        self.lif.init_hidden = False

    def step(self, frame, state):
        spike, state = self.lif(self.first(frame.flatten(1)), state)
        return self.second(spike), state

    def forward(self, x):
        outs, state = [], None
        for frame in x if x.dim() == 5 else x.expand(STEPS, *x.shape):
            out, state = self.step(frame, torch.zeros(len(frame), 20) if state is None else state)
            outs.append(out)
        return torch.stack(outs)


class Parameters(NamedTuple):
    method: str
    alpha: float


def threshold(u, method, alpha):
    return {"super": OWN, "tanh": surrogates.tanh(alpha)}[method]((u > 0).to(u), u)


def lif_step(x, state, p, dt=0.5):
    v = dt * state + x
    z = threshold(v - 1, p.method, p.alpha)
    return z, v - z


class SNNCell(nn.Module):
    """State is an argument; the surrogate is named by a parameter."""

    def __init__(self, method="super", alpha=1.0):
        super().__init__()
        self.activation, self.p = lif_step, Parameters(method, alpha)

    def forward(self, x, state=None):
        return self.activation(x, torch.zeros_like(x) if state is None else state, self.p)


class Cells(nn.Module):
    def __init__(self, method="super", alpha=1.0):
        super().__init__()
        with forked(2):
            self.first, self.second = nn.Linear(36, 20), nn.Linear(20, CLASSES)
        self.cell = SNNCell(method, alpha)
        with torch.no_grad():
            self.first.weight.mul_(4)

    def forward(self, x, state=None):
        out, state = self.cell(self.first(x.flatten(1)), state)
        return self.second(out), state


def made(kind: str, surrogate=OWN):
    """An adapted stand-in whose neurons have this surrogate."""
    if kind == "norse":
        return adapt(Cells() if surrogate is OWN else Cells("tanh", 1.3), steps=STEPS)
    if kind == "jelly-s":
        return adapt(jelly(surrogate, "s"), steps=STEPS)
    if kind == "snn-step":
        return adapt(Loop(surrogate).eval(), steps=STEPS, step="step")
    raw = {"jelly-m": jelly, "snn-hidden": Hidden, "snn-sequence": Loop}[kind](surrogate)
    return adapt(raw.eval(), steps=STEPS)


KINDS = ["jelly-m", "jelly-s", "snn-hidden", "snn-sequence", "snn-step", "norse"]


def gradient(model, x, y) -> Tensor:
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(nn.functional.cross_entropy(model(leaf), y, reduction="sum"), leaf)[0]


@pytest.fixture
def x() -> Tensor:
    return torch.rand(6, 1, 6, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def y() -> Tensor:
    return torch.arange(6) % CLASSES
