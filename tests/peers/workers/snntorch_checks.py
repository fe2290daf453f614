"""snnTorch 1.0."""

import copy

import snntorch
import torch
from common import CLASSES, STEPS, caught, equal, images, input_gradient, main, no_state, refuses, swaps
from snntorch import spikegen, surrogate, utils
from torch import nn

from stochade.adapters import SNNTorch, adapt, check_gradients
from stochade.errors import GradientError
from stochade.nn import BernoulliRate, backward_as

SURROGATES = {"atan": surrogate.atan(2.0), "sigmoid": surrogate.sigmoid(4.0)}


def leaky(grad, **options):
    return snntorch.Leaky(beta=0.5, spike_grad=SURROGATES.get(grad) or surrogate.fast_sigmoid(2.0), **options)


def hidden(grad=None, weights=0, kind="Leaky"):
    """The network of the tutorials with hidden states: called once per step, gives spikes and potentials."""
    torch.manual_seed(weights)
    first = leaky(grad, init_hidden=True)
    if kind == "Synaptic":
        first = snntorch.Synaptic(alpha=0.6, beta=0.5, init_hidden=True, spike_grad=surrogate.fast_sigmoid(2.0))
    if kind == "RLeaky":
        first = snntorch.RLeaky(beta=0.5, init_hidden=True, all_to_all=False, spike_grad=surrogate.fast_sigmoid(2.0))
    made = nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), first, nn.Flatten(), nn.Dropout(0.5),
        nn.Linear(96, CLASSES), leaky(grad, init_hidden=True, output=True),
    )  # fmt: skip
    with torch.no_grad():
        made[0].weight.mul_(3)
        made[5].weight.mul_(6)
    return made.eval()


class Loop(nn.Module):
    """A network with a loop of its own, as most users write it, and a step."""

    def __init__(self, grad=None, weights=0, encode=False, clear=False):
        super().__init__()
        torch.manual_seed(weights)
        self.encode, self.clear = encode, clear
        self.first, self.lif1 = nn.Linear(36, 40), leaky(grad)
        self.second, self.lif2 = nn.Linear(40, CLASSES), leaky(grad)
        with torch.no_grad():
            self.first.weight.mul_(5)
            self.second.weight.mul_(3)

    def step(self, frame, state):
        a, b = state or (None, None)
        spikes, a = self.lif1(self.first(frame.flatten(1)), a)
        out, b = self.lif2(self.second(spikes), b)
        return out, (a, b)

    def forward(self, x):
        if self.clear:
            utils.reset(self)
        if self.encode:
            x = spikegen.rate(x, num_steps=STEPS)
        elif x.dim() == 4:
            x = x.expand(STEPS, *x.shape)
        spikes, potentials, state = [], [], (self.lif1.reset_mem(), self.lif2.reset_mem())
        for frame in x:
            out, state = self.step(frame, state)
            spikes.append(out)
            potentials.append(state[1])
        return torch.stack(spikes), torch.stack(potentials)


def check_state_hidden():
    for kind in ("Leaky", "Synaptic", "RLeaky"):
        no_state(lambda kind=kind: adapt(hidden(kind=kind), steps=STEPS))


def check_state_loop():
    no_state(lambda: adapt(Loop().eval()))
    no_state(lambda: adapt(Loop().eval(), output=1))
    no_state(lambda: adapt(Loop().eval(), steps=STEPS))
    no_state(lambda: adapt(Loop().eval(), steps=STEPS, step="step"))


def check_the_ways_agree():
    x = images()[0]
    ways = [adapt(Loop()), adapt(Loop(), steps=STEPS), adapt(Loop(), steps=STEPS, step="step")]
    for way in ways[1:]:
        equal(way(x), ways[0](x), way.network.layout)


def check_the_traps_themselves():
    raw, x = hidden(), images()[0]
    first, second = raw(x)[1], raw(x)[1]
    assert not torch.equal(first, second)
    first.sum().backward()
    message = caught(RuntimeError, second.sum().backward)
    assert "second time" in message or "inplace" in message
    raw = hidden()
    raw(x)
    caught(RuntimeError, copy.deepcopy, raw)
    copy.deepcopy(adapt(raw, steps=STEPS))


def check_a_reset_of_another_network():
    """utils.reset(A) zeroes B: the adapter never calls it, and a network that does harms no adapted one."""
    a, b, x = hidden(), hidden(weights=1), images()[0]
    b(x)
    before = b[2].mem.clone()
    assert before.any()
    adapt(a, steps=STEPS)(x)
    equal(b[2].mem, before, "the other network's potentials")
    utils.reset(a)
    assert not b[2].mem.any(), "the trap is gone"

    other = adapt(hidden(weights=1), steps=STEPS)
    logits = other(x)
    adapt(Loop(clear=True))(x)
    equal(other(x), logits, "an adapted network after another one's reset")


def check_the_class_list_holds_no_state():
    """The library's list of instances keeps every neuron alive; what it keeps holds no potentials of adapted ones."""
    snntorch.SpikingNeuron.init()
    model, x = adapt(hidden(), steps=STEPS), images()[0].requires_grad_()
    model(x)
    assert len(snntorch._neurons.neurons.SpikingNeuron.instances) == 2
    for neuron in snntorch._neurons.neurons.SpikingNeuron.instances:
        assert neuron.mem.numel() == 0
        assert not neuron.mem.requires_grad


def check_surrogates():
    swaps(lambda: adapt(hidden(), steps=STEPS), lambda name: adapt(hidden(name), steps=STEPS))
    swaps(lambda: adapt(Loop()), lambda name: adapt(Loop(name)))


def check_disabled_surrogate_can_be_given_one():
    raw = Loop()
    raw.lif1.spike_grad = raw.lif1._surrogate_bypass
    model, (x, y) = adapt(raw), images()
    refuses(GradientError, "no surrogate", check_gradients, model, x, y)
    with backward_as(model, {"*": "atan"}):
        assert input_gradient(model, x, y).abs().max() > 0
    assert not raw.lif1._modules
    assert "spike_grad" in vars(raw.lif1)


def check_zero_gradient_encoder():
    x, y = images()
    model = SNNTorch(Loop(encode=True).eval())
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(leaf).sum(), leaf, allow_unused=True)
    assert gradient is None or not gradient.any(), "the trap is gone"
    refuses(GradientError, "BernoulliRate", check_gradients, model, x, y)
    assert not check_gradients(SNNTorch(Loop().eval(), encoder=BernoulliRate(STEPS)), x, y).all()


main(dict(globals()))
