"""Adapters with stand-ins that have the traps of SpikingJelly, snnTorch and Norse; tests/peers has the real ones."""

import copy

import pytest
import torch
from torch import Tensor, nn

import foreign
from foreign import (
    KINDS,
    STEPS,
    Fire,
    Hidden,
    JellyNode,
    Leaky,
    gradient,
    jelly,
    made,
)
from stochade.adapters import ForeignSpike, SpikingJelly, adapt, check_gradients
from stochade.attacks import PGD, SEA, Backprop, Flips, Linf
from stochade.attacks.codes import encode
from stochade.errors import GradientError, ModelError, UsageError
from stochade.nn import BernoulliRate, backward_as, discrete_layers, forward_as, surrogates
from stochade.randomness import fingerprint, untouched

x, y = foreign.x, foreign.y


def state_of(model) -> list:
    return [
        (name, value)
        for m in model.modules()
        for name, value in [*vars(m).items(), *m._buffers.items(), *getattr(m, "_memories", {}).items()]
        if isinstance(value, Tensor) and (value.requires_grad or (name in ("v", "mem") and value.any()))
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_no_state_outlives_a_forward(kind, x, y):
    model = made(kind)
    first, second = model(x), model(x)
    assert torch.equal(first, second)
    first.sum().backward()  # the second forward has changed nothing that the first one's backward needs
    second.sum().backward()
    model(x.requires_grad_())
    assert state_of(model) == []
    assert all(not m.kept[0] for m in model.modules() if isinstance(m, Hidden))
    assert torch.equal(copy.deepcopy(model)(x), first)
    small = made(kind)(x[:2])
    assert torch.equal(model(x[:2]), small)
    assert torch.equal(model(x), first)


@pytest.mark.parametrize("kind", KINDS)
def test_a_stale_state_does_not_reach_the_next_forward(kind, x):
    """The caller has run the network by hand in between, with a graph."""
    model = made(kind)
    wanted = model(x)
    raw = model.network.model
    raw(x.expand(STEPS, *x.shape) if kind in ("jelly-m", "snn-sequence") else x)
    assert torch.equal(model(x), wanted)
    assert state_of(model) == []


@pytest.mark.parametrize("kind", KINDS)
def test_an_exception_leaves_the_network_as_it_was(kind, x, y):
    model = made(kind)
    wanted, neurons = gradient(model, x, y), [slot.neuron for slot in model.network._slots]
    before = [(n.training, dict(vars(n)), dict(n._modules)) for n in neurons]
    with pytest.raises(RuntimeError), backward_as(model, {"*": "atan"}):
        model(torch.rand(2, 1, 9, 9))
    for neuron, (training, attributes, children) in zip(neurons, before, strict=True):
        assert neuron.training == training
        assert children == neuron._modules
        assert attributes.keys() == vars(neuron).keys()
    assert torch.equal(gradient(model, x, y), wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_a_swapped_surrogate_is_the_gradient_of_a_network_built_with_it(kind, x, y):
    model = made(kind)
    other = surrogates.tanh(1.3)
    own, logits = gradient(model, x, y), model(x)
    with backward_as(model, {"*": other}):
        assert torch.equal(model(x), logits)
        swapped = gradient(model, x, y)
    torch.testing.assert_close(swapped, gradient(made(kind, other), x, y))
    assert not torch.allclose(swapped, own)
    assert torch.equal(gradient(model, x, y), own)
    with backward_as(model, {ForeignSpike: "ste"}):
        assert not torch.allclose(gradient(model, x, y), own)
    with forward_as(model, {"*": "warm"}):
        assert not torch.equal(model(x), logits)


def test_only_this_network_is_touched(x):
    Leaky.instances.clear()
    model, other = made("snn-hidden"), Hidden()
    other(x)
    before = other.lif.mem
    model(x)
    assert other.lif.mem is before
    assert before.any()
    assert [n.mem.numel() for n in Leaky.instances] == [0, before.numel()]


def test_the_gradient_in_eval_mode_is_that_of_awake_neurons_alone(x, y):
    raw = jelly()
    leaf = x.clone().requires_grad_()
    out = raw(leaf.expand(STEPS, *x.shape))
    assert torch.autograd.grad(out.sum(), leaf, allow_unused=True) == (None,)  # the trap
    model, statistics = adapt(raw, steps=STEPS), raw[0].layer[1].running_mean.clone()
    found = gradient(model, x, y)
    assert found.abs().max() > 0
    assert not any(m.training for m in model.modules())
    assert torch.equal(raw[0].layer[1].running_mean, statistics)
    raw[1].train()
    raw[1]._memories["v"] = 0.0
    torch.testing.assert_close(found, gradient(lambda z: raw(z.expand(STEPS, *z.shape)).mean(0), x, y))


def test_neurons_whose_train_mode_is_unknown_stay_asleep(x, y):
    model = adapt(jelly(node=JellyNode), steps=STEPS)
    with pytest.raises(GradientError, match="detached graph"):
        check_gradients(model, x, y)


def test_train_mode_is_the_callers(x):
    raw = jelly().train()
    model = adapt(raw, steps=STEPS)
    assert model.training
    before = raw[0].layer[1].running_mean.clone()
    model(x)
    assert not torch.equal(raw[0].layer[1].running_mean, before)  # batch norm learns as ever
    assert int(raw[0].layer[1].num_batches_tracked) == 1


def test_kernels_that_ignore_surrogates_run_in_torch_while_one_is_swapped(x, y):
    model = adapt(jelly(backend="kernel"), steps=STEPS)
    own = gradient(model, x, y)
    with backward_as(model, {"*": surrogates.tanh(1.3)}):
        torch.testing.assert_close(gradient(model, x, y), gradient(made("jelly-m", surrogates.tanh(1.3)), x, y))
    assert model.network.model[1]._backend == "kernel"
    assert torch.equal(gradient(model, x, y), own)


@pytest.mark.parametrize("kind", KINDS)
def test_attacks_run_and_leave_no_trace(kind, x, y):
    model = made(kind)
    logits, generators = model(x), fingerprint()
    attack = PGD(Linf(0.2), steps=3, gradient=Backprop(substitutes="atan"))
    adversarial = attack(model, x, y)
    assert (adversarial - x).abs().max() == pytest.approx(0.2, abs=1e-6)
    assert torch.equal(model(x), logits)
    assert fingerprint() == generators
    assert state_of(model) == []


def test_attacks_on_codes_take_an_adapted_network(x, y):
    model = SpikingJelly(jelly(), encoder=BernoulliRate(STEPS))
    attack = SEA(Flips(3, "binary"))
    with untouched(model):
        codes = encode(model, x, attack.threat, 0)
        attacked = attack(model.network, codes, y)
    assert codes.shape == (6, STEPS, 1, 6, 6)
    assert 0 < int((attacked != codes).sum()) <= 6 * STEPS * 3


def test_rules_over_time_are_refused(x, y):
    model = made("jelly-m")
    for rule in (surrogates.adaptive(), surrogates.Whole(torch.sin, "whole")):
        with pytest.raises(UsageError, match="all steps"), backward_as(model, {"*": rule}):
            gradient(model, x, y)


def test_neurons_that_cannot_be_swapped_are_named(x):
    raw = jelly()
    count = JellyNode()
    count.surrogate_function = nn.ReLU()  # graded, not steps
    model = adapt(nn.Sequential(*raw[:2], count, raw[2]).eval(), steps=STEPS)
    assert [type(m) for m in discrete_layers(model).values()] == [ForeignSpike]
    model(x)
    with pytest.raises(ModelError, match="JellyNode"), backward_as(model, {"*": "atan"}):
        model(x)


class DeafNode(JellyNode):
    """A kernel of its own, with no word about it."""

    def one(self, x):
        return Fire()(x - 1)


def test_kernels_that_ignore_a_swap_are_refused(x):
    model = adapt(jelly(node=DeafNode), steps=STEPS)
    model(x)
    with pytest.raises(ModelError, match="DeafNode, whose kernel"), backward_as(model, {"*": "atan"}):
        model(x)
