"""SGBN against the thesis' sizes, its variants and its controls."""

import pickle

import pytest
import torch
from torch import nn

from stochade.errors import ModelError, UsageError
from stochade.models.sgbn import SGBN, GatedRegression, plain_cnn, sgbn_cifar
from stochade.nn import RandomMask, discrete_layers, forward_as, scope_of
from stochade.nn.gates import InputGatedConv2d
from stochade.registry import MODELS, build

TINY = {"channels": (4, 6), "width": 16, "hidden": 12}
NAMES = ["sgbn", "sgbn-1w", "sgbn-factored", "sgbn-deterministic", "sgbn-cifar", "cnn-added"]


def size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def test_parameters_on_mnist():
    """Counted by hand from tables 4.1 and 4.2, plus scale and shift of every batch norm."""
    with torch.device("meta"):
        model = SGBN()
        first, second = model.gated_layers()
        assert size(first.module) == 832 + 64 + (6272 + 1) * 512 + 1024 + 513 * 512 + 513 * 800
        assert size(second.module) == 51_264 + 128 + (3136 + 1) * 512 + 1024 + 513 * 512 + 513 * 51_200
        main = 832 + 64 + 51_264 + 128 + (3136 + 1) * 100 + 101 * 10
        assert size(model) == size(first.module) + size(second.module) + main
        assert round(size(model) / 1e6, 1) == 32.4
        assert [layer.module.squash for layer in (first, second)] == ["asinh", "tanh"]
        assert size(model) - size(SGBN(own=False)) == 832 + 51_264
        heads = [layer.module.head.out_features for layer in SGBN(head="factored").gated_layers()]
        assert heads == [32, 32 + 64]
        # table 4.12: 64 and 128 filters, dense 6952
        assert size(plain_cnn(hidden=6952)) == 1664 + 128 + 204_928 + 256 + (128 * 49 + 1) * 6952 + 6953 * 10


def test_parameters_on_cifar():
    """Head sizes 6 * 6 * 64 * 128 (printed 6,912 in table 4.3) and 5 * 5 * 128 * 128; maps 16, 6 and 2 wide."""
    with torch.device("meta"):
        model = sgbn_cifar()
        assert [layer.module.head.out_features for layer in model.gated_layers()] == [294_912, 409_600]
        assert model.classifier.in_features == 128 * 2 * 2
        assert isinstance(model.features[0], nn.Conv2d)
        assert model.features[0].weight.shape == (64, 3, 8, 8)
        assert [tuple(layer.conv.weight.shape) for layer in model.gated_layers()] == [
            (128, 64, 6, 6),
            (128, 128, 5, 5),
        ]
        assert round(size(model) / 1e6) == 366
        assert sgbn_cifar(hidden=100).classifier.in_features == 100
        assert scope_of(sgbn_cifar(gates="deterministic").eval()) == "none"  # no dense layer, so no binary units


@pytest.mark.parametrize("parameters", [None, 50_000, 123_456])
def test_the_plain_network_matches_a_number_of_parameters(parameters):
    """The nearest width: one unit more or less is further away."""
    shape = (1, 8, 8)
    model = plain_cnn(shape, channels=(4, 6), parameters=parameters)
    wanted = size(SGBN(shape)) if parameters is None else parameters
    hidden = model.classifier.in_features
    gaps = [abs(size(plain_cnn(shape, channels=(4, 6), hidden=hidden + step)) - wanted) for step in (-1, 0, 1)]
    assert gaps[1] == min(gaps)
    assert not [m for m in model.modules() if isinstance(m, InputGatedConv2d)]
    assert scope_of(model.eval()) == "none"
    assert scope_of(plain_cnn(shape, hidden=5, dense="stochastic").eval()) == "example"


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32)])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"head": "factored"},
        {"own": False},
        {"gates": "deterministic", "squash": "asinh", "dense": "relu"},
        {"gates": "rounded", "signed": True, "dense": "deterministic"},
        {"gates": "random", "rescale": True},
        {"gated": (1,), "gate_backward": "soft", "gate_activation": "relu"},
        {"gated": (0, 1, 2), "channels": (4, 5, 6), "hidden": 0},
    ],
    ids=lambda options: "-".join(options) or "default",
)
def test_every_variant_gives_logits_and_gradients_to_all_its_weights(shape, options):
    model = SGBN(shape, 5, **{**TINY, **options})
    x = torch.rand(6, *shape, requires_grad=True)
    out = model(x)
    assert out.shape == (6, 5)
    out.square().sum().backward()
    assert x.grad is not None
    assert x.grad.flatten(1).abs().sum(1).gt(0).all()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    still = options.get("gates") in ("deterministic", "rounded")  # their dense layers here draw nothing either
    assert scope_of(model.eval()) == ("none" if still else "example")


def test_which_layers_are_gated():
    for gated in ((), (0,), (1,), (0, 1), (0, 2), (0, 1, 2)):
        model = SGBN((1, 28, 28), channels=(3, 4, 5), width=8, gated=gated)
        kinds = [m for m in model.features if isinstance(m, nn.Conv2d | InputGatedConv2d)]
        assert [i for i, m in enumerate(kinds) if isinstance(m, InputGatedConv2d)] == list(gated)
        assert [layer.module.squash for layer in model.gated_layers()] == ["asinh", "tanh", "tanh"][: len(gated)]


def test_random_gates_keep_the_share_they_were_given():
    model = SGBN((1, 8, 8), gates="random", **TINY)
    assert [m.keep for m in model.modules() if isinstance(m, RandomMask)] == [0.6, 0.5]
    assert model.gated_layers() == []


def test_gates_depend_on_the_image_and_on_the_draw():
    model = SGBN((1, 8, 8), **TINY).eval()
    (layer, _) = model.gated_layers()
    x = torch.rand(3, 1, 8, 8)
    with torch.no_grad():
        assert not torch.equal(layer.mask(x), layer.mask(x))
        with forward_as(model, {"*": "mean-field"}):
            p = layer.mask(x)
            torch.testing.assert_close(p, torch.sigmoid(layer.logits(x)).view_as(p))
            assert not torch.allclose(p[0], p[1])
            torch.testing.assert_close(model(x)[:1], model(x[:1]))


def test_training_anneals_the_dense_layer_and_not_the_gates():
    model = SGBN((1, 8, 8), **TINY)
    annealed = {name: layer.anneal for name, layer in discrete_layers(model).items()}  # type: ignore[union-attr]
    assert annealed == {"features.0.gates.unit": False, "features.3.gates.unit": False, "activation": True}
    backwards = [layer.backward for layer in discrete_layers(model).values()]  # type: ignore[union-attr]
    assert backwards == ["hard", "hard", "soft"]


def test_shuffled_gates_give_an_image_alone_its_own_and_a_batch_those_of_others():
    options = {**TINY, "gates": "deterministic", "dense": "relu"}
    model = SGBN((1, 8, 8), shuffled=True, **options).eval()
    own = SGBN((1, 8, 8), **options).eval()
    own.load_state_dict(model.state_dict())
    x = torch.rand(16, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(model(x[:1]), own(x[:1]))
        moved = (model(x) - own(x)).abs().amax(1) > 1e-6
    assert moved.sum() > 8  # a permutation of 16 leaves 8 in place with probability below 1e-5
    assert scope_of(model) == "call"


def test_toy_network_counts_and_gates():
    """Table 4.9 and 4.10: weights 1x2, 2x1; perceptron 2x2 or, with the weights, 4x2; and biases."""
    assert size(GatedRegression(gates=None)) == 7
    assert size(GatedRegression(gates="stochastic")) == 7 + 6
    assert size(GatedRegression(gates="stochastic", weight_input=True)) == 7 + 10
    x = torch.linspace(-1, 1, 40)[:, None]
    model = GatedRegression()
    assert len({tuple(model(x).flatten().tolist()) for _ in range(5)}) == 5
    model = GatedRegression(gates="deterministic", weight_input=True)
    assert torch.equal(model(x), model(x))
    optimiser = torch.optim.Adam(model.parameters(), 0.02)
    losses = []
    for _ in range(300):
        loss = (model(x) - x.abs()).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]


@pytest.mark.parametrize("name", NAMES)
def test_registered_names(name):
    assert name in MODELS
    model = build(name, (1, 8, 8), 4).eval()
    again = pickle.loads(pickle.dumps(model))
    x = torch.rand(2, 1, 8, 8)
    outs = []
    for m in (model, again):
        torch.manual_seed(2)
        outs.append(m(x))
    assert torch.equal(*outs)
    assert outs[0].shape == (2, 4)


def test_names_mean_what_they_say():
    with torch.device("meta"):
        models = {name: build(name, (1, 28, 28)) for name in NAMES[:4]}
        first = {name: model.gated_layers()[0] for name, model in models.items() if isinstance(model, SGBN)}
    assert [layer.module.conv is None for layer in first.values()] == [False, True, False, False]
    assert [layer.head for layer in first.values()] == ["full", "full", "factored", "full"]
    assert [layer.gates.kind for layer in first.values()] == ["stochastic"] * 3 + ["deterministic"]


def test_errors():
    shape = (1, 28, 28)
    with pytest.raises(ModelError, match="shape"):
        SGBN((28, 28))
    with pytest.raises(ModelError, match="convolutions"):
        SGBN(shape, kernels=(5,))
    with pytest.raises(ModelError, match="gated"):
        SGBN(shape, gated=(2,))
    with pytest.raises(ModelError, match="gated"):
        SGBN(shape, gated=(0, 0))
    with pytest.raises(ModelError, match="keep"):
        SGBN(shape, gates="random", keep=(0.5,))
    with pytest.raises(ModelError, match="map"):
        SGBN((1, 4, 4), kernels=(5, 5), padding=("valid", "valid"))
    with pytest.raises(UsageError, match="padding"):
        SGBN(shape, padding=("same", "SAME"))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="kind"):
        SGBN((1, 8, 8), gates="none")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="both"):
        plain_cnn(hidden=4, parameters=1000)
    with pytest.raises(UsageError, match="parameters"):
        plain_cnn(parameters=10)
