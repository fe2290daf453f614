"""Spiking networks: their shapes and sizes, time inside, nothing left between calls."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from stochade import registry
from stochade.errors import ModelError, UsageError
from stochade.models.encoded import Encoded
from stochade.models.spiking import PLANS, spiking_vgg
from stochade.models.spiking_residual import RESIDUAL, SEWBlock, spiking_resnet
from stochade.nn import IF, LIF, Direct, SpikingNeuron
from stochade.nn.discrete import scope_of
from stochade.nn.over_time import Merged, OverTime
from stochade.randomness import forked

NAMES = [
    "snn", "vggsnn", "vggsnn-released", "spiking-vgg5", "spiking-vgg11", "spiking-vgg16", "spiking-resnet19",
    "sew-resnet18", "sew-resnet34",
]  # fmt: skip


def built(name: str, **options) -> Encoded:
    shape = (1, 8, 8) if name == "snn" else (3, 32, 32)
    with forked(0):
        return registry.build(name, shape, 10, **options).eval()  # type: ignore[return-value]


@pytest.mark.parametrize("name", NAMES)
def test_every_network_gives_logits_of_every_step_and_their_mean(name):
    model = built(name, width=1 / 16, encoder="direct", steps=3)
    x = torch.rand(2, *((1, 8, 8) if name == "snn" else (3, 32, 32)))
    codes = model.encoder(x)
    over_time = model.network.over_time(codes)
    assert over_time.shape == (3, 2, 10)
    torch.testing.assert_close(model(x), over_time.mean(0))
    assert torch.equal(model(x), model(x)), "nothing is left from the call before"
    torch.testing.assert_close(model(x[:1]), model(x)[:1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_the_images_and_every_weight(name):
    model = built(name, width=1 / 16, encoder="direct", steps=2).train()
    x = torch.rand(4, *((1, 8, 8) if name == "snn" else (3, 32, 32)), requires_grad=True)
    model(x)[:, 0].sum().backward()
    assert x.grad is not None
    assert bool((x.grad != 0).any())
    assert all(p.grad is not None for p in model.parameters())


def test_sizes_are_those_of_the_papers():
    """Released VGGSNN: its code's 61 M; ten spiking layers (table 9). VGGSNN of the paper: the sum of its layers."""
    released = built("vggsnn-released")
    assert sum(p.numel() for p in released.parameters()) == pytest.approx(61e6, rel=0.02)
    assert sum(isinstance(m, SpikingNeuron) for m in released.modules()) == 10
    neuron = next(m for m in released.modules() if isinstance(m, SpikingNeuron))
    assert isinstance(neuron, IF)
    assert (neuron.reset, neuron.surrogate.name) == ("hard", "triangle(width=1)")
    paper = built("vggsnn")
    channels = [3, 64, 128, 256, 256, 512, 512, 512, 512]
    convolutions = sum(9 * a * b + 3 * b for a, b in pairwise(channels))
    assert sum(p.numel() for p in paper.parameters()) == convolutions + 512 * 4 * 10 + 10
    neuron = next(m for m in paper.modules() if isinstance(m, SpikingNeuron))
    assert isinstance(neuron, LIF)
    assert (neuron.decay, neuron.reset, neuron.threshold) == (0.5, "soft", 1.0)


def test_depths_are_those_of_the_names():
    """Convolutions of the main path and dense layers, without shortcuts."""
    for plan, depth in (("resnet19", 19), ("sew-resnet18", 18), ("sew-resnet34", 34)):
        model = spiking_resnet((3, 32, 32), 10, plan, width=1 / 16)
        weights = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        main = [m for m in weights if isinstance(m, nn.Linear) or m.kernel_size == (3, 3)]
        assert len(main) == depth
    for plan, depth in (("vgg5", 6), ("vgg11", 11), ("vgg16", 16)):  # VGG-5: three convolutions, three dense layers
        convolutions, hidden = PLANS[plan]
        assert sum(isinstance(i, int) for i in convolutions) + len(hidden) + 1 == depth


def test_small_maps_are_pooled_no_further():
    model = spiking_vgg((1, 8, 8), 10, "vggsnn", width=1 / 16)
    assert sum(isinstance(m, nn.AvgPool2d) for m in model.modules()) == 3
    assert model(torch.rand(2, 1, 8, 8)).shape == (2, 10)


def test_a_sew_block_can_be_the_identity_on_spikes():
    block = SEWBlock(4, 4, 1, LIF)
    nn.init.zeros_(block.second[1].weight)
    x = (torch.rand(3, 2, 4, 5, 5) < 0.5).float()
    assert torch.equal(block(x), x)


def test_batch_norm_sees_steps_and_examples_as_one_batch():
    layer = Merged(nn.BatchNorm2d(2))
    x = torch.randn(3, 4, 2, 5, 5) * 3 + 1
    seen = layer(x).transpose(0, 2).flatten(1)
    torch.testing.assert_close(seen.mean(1), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(seen.std(1, correction=0), torch.ones(2), atol=1e-3, rtol=0)


def test_scopes_follow_the_encoder():
    for encoder, scope in (("direct", "none"), ("latency", "none"), ("rate", "example"), ("srate", "example")):
        assert scope_of(built("snn", encoder=encoder)) == scope
    assert scope_of(built("snn", encoder="rsc-ii", encoder_options={"sigma": 0.1})) == "example"


def test_a_checkpoint_can_be_built_again():
    model = built("snn", encoder="srate", steps=2, encoder_options={"mean": 0.5}, neuron_options={"decay": 0.7})
    again = registry.rebuild(model.description)
    again.load_state_dict(model.state_dict())
    x = torch.rand(3, 1, 8, 8)
    with forked(1):
        first = model(x)
    with forked(1):
        assert torch.equal(again.eval()(x), first)


def test_what_cannot_be_built_is_named():
    with pytest.raises(UsageError, match="plan"):
        spiking_vgg((1, 8, 8), 10, "vgg7")
    for build in (spiking_vgg, spiking_resnet):
        with pytest.raises(ModelError, match="input shape"):
            build((8, 8), 10)
    with pytest.raises(UsageError, match="encoder"):
        spiking_vgg((1, 8, 8), 10, encoder="poisson")
    with pytest.raises(UsageError, match="options of the encoder"):
        spiking_vgg((1, 8, 8), 10, encoder_options={"sigma": 1})
    with pytest.raises(UsageError, match="encoder_options="):
        spiking_vgg((1, 8, 8), 10, encoder="rsc-i")
    with pytest.raises(UsageError, match="by name"):
        spiking_vgg((1, 8, 8), 10, encoder_options=["sigma"])  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="neurons"):
        spiking_vgg((1, 8, 8), 10, neuron="plif")
    with pytest.raises(UsageError, match="surrogate"):
        spiking_vgg((1, 8, 8), 10, neuron_options={"surrogate": "relu"})
    with pytest.raises(UsageError, match="options of 'lif'"):
        spiking_vgg((1, 8, 8), 10, neuron_options={"tau": 2})
    for width in (0, -1, float("nan"), True):
        with pytest.raises(UsageError, match="width"):
            spiking_vgg((1, 8, 8), 10, width=width)
        with pytest.raises(UsageError, match="width"):
            spiking_resnet((1, 8, 8), 10, width=width)
    with pytest.raises(UsageError, match="plan"):
        spiking_resnet((1, 8, 8), 10, "resnet20")
    with pytest.raises(ModelError, match="codes"):
        OverTime(nn.Identity())(torch.rand(2, 3))
    assert set(RESIDUAL) == {"resnet19", "sew-resnet18", "sew-resnet34"}
    assert Direct(2)(torch.rand(1, 1, 4, 4)).shape == (1, 2, 1, 4, 4)
