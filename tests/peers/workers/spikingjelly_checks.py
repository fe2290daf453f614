"""SpikingJelly, 2.0 or 0.0.0.0.14, whichever is on the path."""

import copy

import spikingjelly
import torch
from common import CLASSES, STEPS, caught, images, input_gradient, main, no_state, refuses, swaps
from spikingjelly.activation_based import encoding, functional, layer, neuron, surrogate
from torch import nn

from stochade.adapters import SpikingJelly, adapt, check_gradients
from stochade.errors import GradientError, ModelError
from stochade.nn import BernoulliRate, backward_as

OLD = "0.0.0.0.14" in str(spikingjelly.__path__)
SURROGATES = {"atan": surrogate.ATan(2.0), "sigmoid": surrogate.Sigmoid(4.0)}


def network(mode="m", kind="LIF", grad=None, weights=0):
    torch.manual_seed(weights)
    grad = surrogate.PiecewiseExp(1.5) if grad is None else SURROGATES[grad]

    def spikes():
        if kind == "IF":
            return neuron.IFNode(surrogate_function=grad)
        if kind == "CLIF":
            return neuron.ComplementaryLIFNode(surrogate_function=grad)
        return neuron.LIFNode(tau=2.0, decay_input=False, surrogate_function=grad)

    made = nn.Sequential(
        layer.Conv2d(1, 6, 3), layer.BatchNorm2d(6), spikes(), layer.Flatten(), layer.Dropout(0.5),
        layer.Linear(96, 24), spikes(), layer.Linear(24, CLASSES),
    )  # fmt: skip
    functional.set_step_mode(made, mode)
    with torch.no_grad():
        made[0].weight.mul_(3)
        made[5].weight.mul_(3)
    return made.eval()


KINDS = ("IF", "LIF") if OLD else ("IF", "LIF", "CLIF")


def check_state_sequence():
    for kind in KINDS:
        no_state(lambda kind=kind: adapt(network("m", kind), steps=STEPS))


def check_state_step():
    no_state(lambda: adapt(network("s"), steps=STEPS))


def check_the_trap_itself():
    """Without the adapter: different logits for the same input, and a second backward that fails."""
    raw, frames = network("m").train(), images()[0].expand(STEPS, 8, 1, 6, 6)
    torch.manual_seed(1)
    first = raw(frames)
    torch.manual_seed(1)
    second = raw(frames)
    assert not torch.equal(first, second)
    first.sum().backward()
    message = caught(RuntimeError, second.sum().backward)
    assert "second time" in message or "inplace" in message


def check_deepcopy_trap():
    raw = network("m").train()
    raw(images()[0].expand(STEPS, 8, 1, 6, 6))
    caught(RuntimeError, copy.deepcopy, raw)
    copy.deepcopy(adapt(raw, steps=STEPS))


def check_step_and_sequence_agree():
    x = images()[0]
    a, b = adapt(network("s"), steps=STEPS)(x), adapt(network("m"), steps=STEPS)(x)
    assert torch.allclose(a, b, atol=1e-6)


def check_only_this_network():
    a, b = network("m"), network("m")
    b(images()[0].expand(STEPS, 8, 1, 6, 6))
    before = b[2].v.clone()
    adapt(a, steps=STEPS)(images()[0])
    assert torch.equal(b[2].v, before)


def check_surrogates():
    for mode in ("m", "s"):
        for kind in KINDS:
            swaps(
                lambda mode=mode, kind=kind: adapt(network(mode, kind), steps=STEPS),
                lambda name, mode=mode, kind=kind: adapt(network(mode, kind, name), steps=STEPS),
            )


def check_eval_has_a_gradient():
    """The gradient in eval mode is that of neurons in train mode with batch norm and dropout in eval mode."""
    x, y = images()
    for kind in KINDS:
        raw = network("m", kind)
        model = adapt(raw, steps=STEPS)
        found = input_gradient(model, x, y)
        assert found.abs().max() > 0, kind
        assert not any(m.training for m in model.modules()), kind
        for m in raw.modules():
            if hasattr(m, "surrogate_function"):
                m.training = True
        functional.reset_net(raw)
        leaf = x.clone().requires_grad_()
        logits = raw(leaf.expand(STEPS, *x.shape)).mean(0)
        (wanted,) = torch.autograd.grad(nn.functional.cross_entropy(logits, y, reduction="sum"), leaf)
        assert torch.allclose(found, wanted, atol=1e-7), kind


def check_the_eval_trap_itself():
    kind = "LIF" if OLD else "CLIF"
    raw = network("m", kind)
    x = images()[0].requires_grad_()
    out = raw(x.expand(STEPS, 8, 1, 6, 6))
    gradient = torch.autograd.grad(out.sum(), x, allow_unused=True)[0] if out.requires_grad else None
    assert gradient is None or not gradient.any()


def check_detached_encoder():
    class Coded(nn.Module):
        def __init__(self):
            super().__init__()
            self.encode, self.body = encoding.PoissonEncoder(), network("s")

        def forward(self, x):
            return sum(self.body(self.encode(x)) for _ in range(STEPS)) / STEPS

    x, y = images()
    refuses(GradientError, "PoissonEncoder", check_gradients, SpikingJelly(Coded().eval()), x, y)
    fixed = SpikingJelly(network("s"), encoder=BernoulliRate(STEPS))
    assert not check_gradients(fixed, x, y).all()


def check_several_step_modes():
    raw = network("m")
    raw[2].step_mode = "s"
    refuses(ModelError, "one step mode", lambda: adapt(raw, steps=STEPS))


def check_recorded_potentials():
    made = []

    def recording():
        made.append(network("m"))
        made[-1][2].store_v_seq = True
        return adapt(made[-1], steps=STEPS)

    no_state(recording)
    assert all(raw[2].v_seq is None for raw in made)


def check_neurons_that_cannot_be_swapped():
    if OLD:
        return
    raw = nn.Sequential(layer.Flatten(), layer.Linear(36, CLASSES), neuron.ILIFNode())
    functional.set_step_mode(raw, "m")
    model = adapt(raw.eval(), steps=STEPS)
    x = images()[0]
    model(x)
    both = adapt(nn.Sequential(raw, neuron.LIFNode(step_mode="m")), steps=STEPS)

    def attack():
        with backward_as(both, {"*": "atan"}):
            both(x)

    refuses(ModelError, "ILIFNode", attack)


main(dict(globals()))
