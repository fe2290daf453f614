"""Residual networks: the sizes that are known, a second implementation, every activation, gates, errors."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

from stochade import checkpoint
from stochade.data import Images
from stochade.errors import ModelError, UsageError
from stochade.models import LWTAMLP, BayesianLWTA, ResNet, WideResNet
from stochade.models.resnet import ACTIVATIONS
from stochade.nn import KWTA, LWTA, SAP, StochasticBinary, discrete_layers, scope_of
from stochade.nn.bayesian import BlockUtility, GaussianConv2d, GaussianLinear
from stochade.nn.gates import InputGatedConv2d
from stochade.registry import build, rebuild
from stochade.train import train

SCOPES = {
    "relu": "none", "tanh": "none", "kwta": "none", "deterministic": "none",
    "lwta": "example", "sap": "example", "stochastic": "example",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def size(model):
    return sum(p.numel() for p in model.parameters())


def test_sizes_of_the_known_networks():
    """Published sizes: 0.27 M, 0.46 M, 11.17 M and 46.16 M; WRN-34-1 counted by hand below."""
    assert size(ResNet()) == 272474
    assert size(ResNet(blocks=(5, 5, 5))) == 466906
    assert size(ResNet(blocks=(2, 2, 2, 2), width=64)) == 11173962
    assert size(WideResNet(widening=10)) == 46160474
    n, total = 5, 9 * 3 * 16
    for inputs, outputs in ((16, 16), (16, 32), (32, 64)):
        first = 9 * inputs * outputs + 9 * outputs * outputs + 2 * inputs + 2 * outputs
        first += inputs * outputs if inputs != outputs else 0
        total += first + (n - 1) * (18 * outputs**2 + 4 * outputs)
    assert size(WideResNet(activation="lwta")) == total + 2 * 64 + 64 * 10 + 10


def test_feature_maps_halve_twice():
    for model in (ResNet(blocks=(1, 1, 1)), WideResNet(depth=10)):
        seen = []
        for module in model.stages:
            module.register_forward_hook(lambda _m, _i, out, seen=seen: seen.append(list(out.shape[1:])))
        model.eval()(torch.rand(2, 3, 32, 32))
        assert seen == [[16, 32, 32], [32, 16, 16], [64, 8, 8]]


def bn(x, p, name):
    return F.batch_norm(
        x, p[f"{name}.running_mean"], p[f"{name}.running_var"], p[f"{name}.weight"], p[f"{name}.bias"], eps=1e-5
    )


def settled(model, x):
    """Running statistics of its own, then evaluation."""
    model.train()
    for _ in range(3):
        model(x)
    return model.eval()


def test_wide_resnet_by_a_second_implementation():
    """The released layout, function by function: shortcuts after the first activation where the width changes."""
    x = torch.rand(4, 3, 16, 16)
    model = settled(WideResNet(depth=16, widening=2), x)
    p = model.state_dict()
    out = F.conv2d(x, p["stem.weight"], padding=1)
    for index, (outputs, stride) in enumerate(((32, 1), (32, 1), (64, 2), (64, 1), (128, 2), (128, 1))):
        name = f"stages.{index}"
        active = F.relu(bn(out, p, f"{name}.bn1"))
        inner = F.conv2d(active, p[f"{name}.conv1.weight"], stride=stride, padding=1)
        inner = F.conv2d(F.relu(bn(inner, p, f"{name}.bn2")), p[f"{name}.conv2.weight"], padding=1)
        if out.shape[1] != outputs:
            out = F.conv2d(active, p[f"{name}.shortcut.weight"], stride=stride)
        out = out + inner
    out = F.relu(bn(out, p, "bn")).mean((2, 3))
    torch.testing.assert_close(model(x), F.linear(out, p["classifier.weight"], p["classifier.bias"]))


def test_resnet_by_a_second_implementation():
    x = torch.rand(4, 3, 12, 12)
    model = settled(ResNet(blocks=(1, 2), width=8), x)
    p = model.state_dict()
    out = F.relu(bn(F.conv2d(x, p["stem.0.weight"], padding=1), p, "stem.1"))
    for index, stride in enumerate((1, 2, 1)):
        name = f"stages.{index}"
        inner = F.relu(bn(F.conv2d(out, p[f"{name}.conv1.weight"], stride=stride, padding=1), p, f"{name}.bn1"))
        inner = bn(F.conv2d(inner, p[f"{name}.conv2.weight"], padding=1), p, f"{name}.bn2")
        if stride == 2:
            out = bn(F.conv2d(out, p[f"{name}.shortcut.0.weight"], stride=2), p, f"{name}.shortcut.1")
        out = F.relu(inner + out)
    logits = F.linear(out.mean((2, 3)), p["classifier.weight"], p["classifier.bias"])
    torch.testing.assert_close(model(x), logits)


@pytest.mark.parametrize("kind", [ResNet, WideResNet])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation_has_its_scope_and_gradients(kind, name):
    options = {"blocks": (1, 1)} if kind is ResNet else {"depth": 10}
    model = kind((3, 9, 7), 4, activation=name, **options)
    x = torch.rand(6, 3, 9, 7)
    F.cross_entropy(model(x), torch.arange(6) % 4).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    assert model.stages[0].conv1.weight.grad.ne(0).any()
    model.eval()
    assert scope_of(model) == SCOPES[name]
    rows = model(x[:1].expand(8, -1, -1, -1))
    assert rows.shape == (8, 4)
    if SCOPES[name] == "none":
        torch.testing.assert_close(rows, rows[:1].expand_as(rows))
    else:
        assert len(rows.unique(dim=0)) == 8


def test_options_reach_the_activations():
    def layers(kind, **options):
        return [m for m in ResNet(blocks=(1, 1), **options).modules() if isinstance(m, kind)]

    lwta = layers(LWTA, activation="lwta", activation_options={"units": 4, "test_temperature": 0.1})
    assert [(m.units, m.test_temperature) for m in lwta] == [(4, 0.1)] * 5
    assert {m.ratio for m in layers(KWTA, activation="kwta", activation_options={"ratio": 0.3})} == {0.3}
    assert {m.share for m in layers(SAP, activation="sap", activation_options={"share": 2.0})} == {2.0}
    hard = layers(StochasticBinary, activation="stochastic", activation_options={"backward": "hard"})
    assert {m.backward for m in hard} == {"hard"}
    wide = [m for m in WideResNet(depth=10, activation="lwta").modules() if isinstance(m, LWTA)]
    assert len(wide) == 7  # two in each of three blocks, one before pooling
    assert len({id(m) for m in wide}) == 7


@pytest.mark.parametrize("kind", [ResNet, WideResNet])
def test_gates_sit_on_the_first_convolution_of_every_block(kind):
    options = {"blocks": (1, 1, 1)} if kind is ResNet else {"depth": 10}
    model = kind((1, 9, 7), 4, gates="factored", gate_options={"width": 8, "values": {"backward": "soft"}}, **options)
    gated = [name for name, m in model.named_modules() if isinstance(m, InputGatedConv2d)]
    assert gated == ["stages.0.conv1", "stages.1.conv1", "stages.2.conv1"]
    assert {layer.backward for layer in discrete_layers(model).values()} == {"soft"}
    x = torch.rand(6, 1, 9, 7)
    model(x).sum().backward()
    assert model.stages[2].conv1.module.head.weight.grad.ne(0).any()
    assert scope_of(model.eval()) == "example"
    assert len(model(x[:1].expand(8, -1, -1, -1)).unique(dim=0)) == 8
    assert size(kind((1, 9, 7), 4, gates="full", gate_options={"width": 8}, **options)) > size(model)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet-small", {"activation": "kwta", "activation_options": {"ratio": 0.2}}),
        ("resnet", {"blocks": [1, 1], "gates": "factored", "gate_options": {"width": 8}}),
        ("lwta-wide-resnet", {"depth": 10, "activation_options": {"units": 4}}),
        ("lwta-mlp", {"hidden": [20], "units": 4}),
        ("lwta-bayesian", {"channels": [4], "hidden": [8, 6], "alpha": 2.0}),
    ],
)
def test_checkpoints_and_descriptions_give_the_same_model(name, options, tmp_path):
    model, x = build(name, (1, 8, 8), 5, **options), torch.rand(6, 1, 8, 8)
    settled(model, x)
    checkpoint.save(model, tmp_path)
    again, fresh = checkpoint.load(tmp_path), rebuild(model.description)
    torch.manual_seed(1)
    out = model(x)
    torch.manual_seed(1)
    assert torch.equal(again.eval()(x), out)
    assert [type(m) for m in fresh.modules()] == [type(m) for m in model.modules()]
    assert model.description["options"].keys() >= options.keys()


def test_bayesian_network_holds_what_it_is_asked_for():
    def kinds(**options):
        model = BayesianLWTA((1, 8, 8), channels=(4, 6), hidden=(8,), **options)
        return model, [sum(isinstance(m, k) for m in model.modules()) for k in KINDS]

    KINDS = (GaussianConv2d, GaussianLinear, BlockUtility, LWTA, nn.BatchNorm2d)
    assert kinds()[1] == [2, 2, 3, 3, 2]
    assert kinds(gaussian=False)[1] == [0, 0, 3, 3, 2]
    assert kinds(utilities=False)[1] == [2, 2, 0, 3, 2]
    assert [m.blocks for m in kinds()[0].modules() if isinstance(m, BlockUtility)] == [2, 3, 4]
    assert BayesianLWTA((1, 8, 8), channels=(8,), hidden=(12,), units=4).eval()(torch.rand(2, 1, 8, 8)).shape == (
        2,
        10,
    )
    assert scope_of(kinds(test="mean")[0].eval()) == "example"  # the winners are still drawn
    assert scope_of(kinds(sampling="call")[0].eval()) == "call"
    assert scope_of(LWTAMLP(stochastic=False).eval()) == "none"


@pytest.mark.parametrize(
    ("name", "options", "least"),
    [
        ("resnet-small", {"width": 8}, 0.9),
        ("resnet-small", {"width": 8, "activation": "lwta"}, 0.85),
        ("lwta-mlp", {}, 0.85),
        ("lwta-bayesian", {"channels": [16], "hidden": [32]}, 0.8),
    ],
)
def test_small_presets_learn_the_digits(name, options, least):
    """A linear classifier gets 95 %; these few epochs need only show that training works."""
    digits = load_digits()
    images = (digits.images[:, None] / 16).astype(np.float32)
    parts = [Images(images[a:b], digits.target[a:b]) for a, b in ((0, 1000), (1000, 1300))]
    model = build(name, (1, 8, 8), 10, **options)
    assert train(model, *parts, epochs=4, lr=1e-2, progress=False).best_accuracy > least


def test_errors():
    with pytest.raises(UsageError, match="activation"):
        ResNet(activation="swish")
    with pytest.raises(UsageError, match="options of the activation 'kwta'"):
        ResNet(activation="kwta", activation_options={"share": 0.1})
    with pytest.raises(UsageError, match="share of winners"):
        ResNet(activation="kwta", activation_options={"ratio": 0})
    with pytest.raises(UsageError, match="blocks of 3"):
        WideResNet(activation="lwta", activation_options={"units": 3})
    with pytest.raises(UsageError, match="gates among"):
        ResNet(gates="some")
    with pytest.raises(UsageError, match="options of gates"):
        ResNet(gates="factored", gate_options={"depth": 3})
    with pytest.raises(UsageError, match="block in every stage"):
        ResNet(blocks=(3, 0))
    for depth in (4, 12, 33):
        with pytest.raises(UsageError, match="depth of 10"):
            WideResNet(depth=depth)
    with pytest.raises(UsageError, match="widening"):
        WideResNet(widening=0)
    with pytest.raises(ModelError, match="input shape"):
        WideResNet((32, 32))
    with pytest.raises(UsageError, match="blocks of 4"):
        LWTAMLP(hidden=(10,), units=4)
    with pytest.raises(UsageError, match="blocks of 2"):
        BayesianLWTA(channels=(5,))
