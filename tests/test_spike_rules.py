"""Attackers' backwards through spiking neurons, against their formulas written out neuron by neuron."""

import copy
import math
import pickle

import pytest
import torch

from stochade import registry
from stochade.attacks import Linf
from stochade.attacks.registry import parse_attack
from stochade.nn import IF, LIF, SpikingNeuron
from stochade.nn.discrete import backward_as
from stochade.randomness import forked

T, N, M = 5, 3, 20


def inputs(scale: float = 1.0) -> torch.Tensor:
    with forked(0):
        return (torch.randn(T, N, M) * scale + 0.3).requires_grad_()


def gradients(neuron: SpikingNeuron, rule: str, x: torch.Tensor, upstream: torch.Tensor) -> torch.Tensor:
    with backward_as(neuron, {"*": rule}):
        out = neuron(x)
    assert torch.equal(out, neuron(x)), "the forward stays"
    return torch.autograd.grad(out, x, upstream)[0]


def upstream() -> torch.Tensor:
    with forked(1):
        return torch.randn(T, N, M)


def test_bptr_passes_where_a_neuron_fired():
    neuron, x, g = LIF(0.5), inputs(), upstream()
    fired = neuron(x).detach().amax(0) > 0
    assert 0 < float(fired.float().mean()) < 1
    torch.testing.assert_close(gradients(neuron, "bptr", x, g), g * fired)


@pytest.mark.parametrize(("decay", "threshold"), [(0.5, 1.0), (0.9, 0.7)])
def test_rga_has_a_slope_of_the_mean_input(decay, threshold):
    neuron, x, g = LIF(decay, threshold), inputs(1.5), upstream()
    told, seen = gradients(neuron, "rga", x, g), set()
    for n in range(N):
        for m in range(M):
            mean = float(x[:, n, m].detach().mean()) / threshold
            if 0 <= mean <= 1 - decay:
                slope = 0.2
            elif 1 - decay < mean <= 2:
                slope = (1 - 0.2 * (1 - decay)) / (1 + decay)
            else:
                slope = 0.0
            seen.add(slope)
            torch.testing.assert_close(told[:, n, m], slope * g[:, n, m])
    assert len(seen) == 3


def test_hart_averages_triangles_over_time():
    neuron, x, g = IF(), inputs(), upstream()
    told = gradients(neuron, "hart", x, g)
    v, total = torch.zeros(N, M), torch.zeros(N, M)
    for t in range(T):
        v = v + x[t].detach()
        total += g[t] * (1 - (v - 1).abs()).clamp_min(0)
        v = v - (v >= 1).float()
    torch.testing.assert_close(told, (total / T).expand(T, N, M))


@pytest.mark.parametrize("shape", [(T, N, 2, 3, 3), (T, N, 8)])
def test_pdsg_is_as_wide_as_the_potentials_so_far(shape):
    neuron = LIF(0.5)
    with forked(2):
        x = torch.randn(shape) + 0.2
    u = neuron.potentials(x)
    told = neuron.substitutes["pdsg"].weights(u)
    for t in range(T):
        part = u[: t + 1, 1, 0] if len(shape) > 3 else u[: t + 1, 1]  # an example, and a channel where there are any
        spread = float(part.std(correction=0))
        at = float(u[t, 1, 0, 2, 1]) if len(shape) > 3 else float(u[t, 1, 3])
        density = math.exp(-0.5 * ((at - spread / 2) / spread) ** 2) / (spread * math.sqrt(2 * math.pi))
        got = told[t, 1, 0, 2, 1] if len(shape) > 3 else told[t, 1, 3]
        assert float(got) == pytest.approx(density, rel=1e-4)
    alone = neuron.substitutes["pdsg"].weights(u[:, 1:2])
    torch.testing.assert_close(alone, told[:, 1:2])


def test_pdsg_runs_through_time():
    """One neuron without a reset reached: the derivative of the last spike by the first input is decay^(T-1) times
    the density there."""
    neuron = LIF(0.5, threshold=100.0)
    x = torch.linspace(0.1, 0.5, T)[:, None, None].expand(T, 1, 2).clone().requires_grad_()
    last = torch.zeros(T, 1, 2)
    last[-1] = 1
    told = gradients(neuron, "pdsg", x, last)
    weight = neuron.substitutes["pdsg"].weights(neuron.potentials(x.detach()))[-1]
    torch.testing.assert_close(told[0], 0.5 ** (T - 1) * weight)


def test_networks_with_rules_travel():
    neuron = LIF(0.5)
    for other in (copy.deepcopy(neuron), pickle.loads(pickle.dumps(neuron))):
        x, g = inputs(), upstream()
        torch.testing.assert_close(gradients(other, "bptr", x, g), gradients(neuron, "bptr", x, g))
        assert other.substitutes["bptr"].primitive.args[0] is other


@pytest.mark.parametrize("rule", ["bptr", "rga", "hart", "pdsg", "identity", "soft"])
def test_attacks_take_them_by_name(rule):
    with forked(0):
        model, x = registry.build("snn", (1, 8, 8), 10, encoder="direct", steps=3), torch.rand(6, 1, 8, 8)
        for _ in range(30):
            model(torch.rand(20, 1, 8, 8))  # statistics of batch norm, without which nothing fires
    y = model.eval()(x).argmax(1)
    attack = parse_attack(f"pgd steps=10 backward={rule}", Linf(0.2))
    z = attack(model, x, y)
    with torch.no_grad():
        before, after = (torch.nn.functional.cross_entropy(model(v), y) for v in (x, z))
    assert float(after) > 1.05 * float(before)
