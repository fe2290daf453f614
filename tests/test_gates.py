"""Gates against loops over examples, their probabilities, estimators and controls."""

import copy
import itertools
import pickle

import pytest
import torch
import torch.nn.functional as F
from scipy.stats import binomtest
from torch import nn

from stochade.errors import ModelError, UsageError
from stochade.nn import backward_as, forward_as, scope_of
from stochade.nn.gates import GateNetwork, Gates, InputGatedConv2d, InputGatedLinear, Shuffle


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def conv(**options) -> InputGatedConv2d:
    """A small gated convolution of two channels on 6x6, in float64 and evaluation."""
    layer = InputGatedConv2d((options.pop("inputs", 2), 6, 6), 3, 3, options.pop("stride", 2), 1, width=7, **options)
    assert layer.conv.bias is not None
    nn.init.normal_(layer.conv.bias)
    return layer.double().eval()


def looped(layer: InputGatedConv2d, x, masks):
    rows = zip(x, masks, strict=True)
    inner = layer.conv
    return torch.cat(
        [F.conv2d(row[None], inner.weight * mask, inner.bias, inner.stride, inner.padding) for row, mask in rows]
    )


@pytest.mark.parametrize("kind", ["stochastic", "deterministic", "rounded"])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("head", ["full", "factored"])
@pytest.mark.parametrize("inputs", [1, 2])
def test_the_layer_is_a_loop_over_examples_with_their_own_masks(kind, signed, head, inputs):
    layer = conv(gates=Gates(kind, signed), head=head, inputs=inputs)
    x = torch.randn(5, inputs, 6, 6, dtype=torch.float64, requires_grad=True)
    parameters = [x, *layer.parameters()]

    def gradients(out):
        return torch.autograd.grad(out.cos().sum(), parameters, allow_unused=True)

    torch.manual_seed(1)
    out = layer(x)
    torch.manual_seed(1)
    masks = layer.mask(x)
    expected = looped(layer, x, masks)
    assert masks.shape == (5, 3, inputs, 3, 3)
    torch.testing.assert_close(out, expected)
    for got, wanted in zip(gradients(out), gradients(expected), strict=True):
        torch.testing.assert_close(got, wanted)
    if kind != "deterministic":
        assert set(masks.unique().tolist()) == ({-1.0, 1.0} if signed else {0.0, 1.0})


def test_a_factored_mask_is_the_outer_product_of_two_draws():
    """The four corners of a pair of channels multiply: m[o,i] m[q,j] = m[o,j] m[q,i], and all of them occur."""
    layer = conv(head="factored")
    masks = layer.mask(torch.randn(200, 2, 6, 6, dtype=torch.float64))
    assert torch.equal(masks, masks[..., :1, :1].expand_as(masks))
    flat = masks[..., 0, 0]
    for o, q in itertools.combinations(range(3), 2):
        assert torch.equal(flat[:, o, 0] * flat[:, q, 1], flat[:, o, 1] * flat[:, q, 0])
    assert len(flat.flatten(1).unique(dim=0)) == 1 + 7 * 3  # nothing, or some outputs times some inputs
    assert layer.module.head.out_features == 2 + 3
    assert conv(head="factored", inputs=1).module.head.out_features == 3  # a lone input channel has no gate
    assert conv().module.head.out_features == 3 * 2 * 9


def test_gates_fire_with_the_probability_of_their_logits():
    """Six exact binomial tests on 20,000 draws at 1e-6, false alarm below 1e-5."""
    logits = torch.tensor([-2.0, -0.5, 0.0, 0.7, 1.5, 3.0])
    draws = Gates()(logits.expand(20_000, -1))
    for fired, p in zip(draws.sum(0), torch.sigmoid(logits), strict=True):
        assert binomtest(int(fired), 20_000, p.item()).pvalue > 1e-6
    assert len(draws.unique(dim=0)) > 30  # gates are drawn one by one
    signed = Gates(signed=True)(logits.expand(20_000, -1))
    for total, p in zip(signed.sum(0), torch.sigmoid(logits), strict=True):
        assert binomtest(int(total + 20_000) // 2, 20_000, p.item()).pvalue > 1e-6


def test_mean_of_a_gated_convolution_is_its_mean_field():
    """Enumeration of one filter's 2^2 gate patterns gives the exact mean of a linear read-out: the layer's own."""
    layer = InputGatedConv2d((2, 3, 3), 1, 1, width=5).double().eval()
    x = torch.randn(1, 2, 3, 3, dtype=torch.float64)
    p = torch.sigmoid(layer.logits(x))[0]
    expected = torch.zeros(1, 1, 3, 3, dtype=torch.float64)
    for pattern in itertools.product([0.0, 1.0], repeat=2):
        mask = torch.tensor(pattern, dtype=torch.float64)
        chance = torch.where(mask > 0, p, 1 - p).prod()
        expected += chance * F.conv2d(x, layer.conv.weight * mask.view(1, 2, 1, 1), layer.conv.bias)
    with forward_as(layer, {"*": "mean-field"}):
        torch.testing.assert_close(layer(x), expected)
    with torch.no_grad():
        draws = layer(x.expand(20_000, -1, -1, -1))
    error = (draws.mean(0) - expected[0]).abs() / (draws.std(0) / 20_000**0.5)
    assert (error < 6).all()  # nine outputs, false alarm below 1e-7


@pytest.mark.parametrize("backward", ["hard", "soft"])
@pytest.mark.parametrize("signed", [False, True])
def test_straight_through_gradients(backward, signed):
    logits = torch.linspace(-3, 3, 7, dtype=torch.float64, requires_grad=True)
    gates = Gates(backward=backward, signed=signed)
    p = torch.sigmoid(logits.detach())
    expected = torch.ones(7, dtype=torch.float64) if backward == "hard" else p * (1 - p)
    (gradient,) = torch.autograd.grad(gates(logits).sum(), logits)
    torch.testing.assert_close(gradient, expected * (2 if signed else 1))
    with backward_as(gates, {"*": "soft"}):
        (gradient,) = torch.autograd.grad(gates(logits).sum(), logits)
    torch.testing.assert_close(gradient, p * (1 - p) * (2 if signed else 1))


def test_deterministic_gates_squash_and_never_draw():
    logits = torch.linspace(-3, 3, 7)
    for name, function in {
        "tanh": torch.tanh,
        "asinh": torch.asinh,
        "relu": torch.relu,
        "sigmoid": torch.sigmoid,
    }.items():
        gates = Gates("deterministic", squash=name)  # type: ignore[arg-type]
        before = torch.get_rng_state()
        assert torch.equal(gates(logits), function(logits))
        assert torch.equal(torch.get_rng_state(), before)
        assert scope_of(gates) == "none"
    assert Gates("rounded")(logits).tolist() == [0, 0, 0, 0, 1, 1, 1]
    layer = conv(gates=Gates("deterministic"))
    assert scope_of(layer) == "none"
    assert scope_of(conv()) == "example"


def test_shuffled_gates_are_the_same_gates_in_another_order():
    gates = Gates("deterministic", shuffled=True)
    logits = torch.randn(8, 4)
    assert torch.equal(gates(logits), torch.sigmoid(logits))  # training: in place
    gates.eval()
    orders = set()
    for _ in range(20):
        out = gates(logits)
        assert torch.equal(out[out[:, 0].argsort()], torch.sigmoid(logits)[logits[:, 0].argsort()])
        orders.add(tuple(out[:, 0].argsort().tolist()))
    assert len(orders) > 15  # 20 of 40,320 permutations: 6 equal ones have probability below 1e-15
    assert scope_of(gates) == "call"
    assert scope_of(conv(gates=Gates(shuffled=True))) == "call"
    with forward_as(gates, {"*": "own"}):
        assert torch.equal(gates(logits), torch.sigmoid(logits))


def test_no_gradient_passes_the_shuffle_unless_asked():
    x = torch.randn(4, 3, requires_grad=True)
    shuffle = Shuffle().eval()
    assert torch.autograd.grad(shuffle(x).sum(), x)[0].abs().sum() == 0
    with backward_as(shuffle, {"*": "identity"}):
        assert torch.autograd.grad(shuffle(x).sum(), x)[0].eq(1).all()


def test_shared_filters_are_the_convolution_s_own():
    shared, own = conv(own=False), conv(own=True)
    assert shared.module.conv is None
    main = shared.conv
    x = torch.randn(4, 2, 6, 6, dtype=torch.float64)
    twin = copy.deepcopy(own)
    twin.load_state_dict({**own.state_dict(), **shared.state_dict()})
    assert isinstance(twin.module.conv, nn.Conv2d)
    twin.module.conv.load_state_dict(main.state_dict())
    torch.testing.assert_close(shared.logits(x), twin.logits(x))  # the same filters as those it gates, ungated
    extra = sum(p.numel() for p in own.parameters()) - sum(p.numel() for p in shared.parameters())
    assert extra == 3 * 2 * 9 + 3
    weights = torch.autograd.grad(shared.logits(x).sum(), main.weight)[0]
    assert weights.abs().sum() > 0
    with pytest.raises(ModelError, match="filters"):
        shared.module(x)


def test_gate_network_is_what_the_table_says():
    """Table 4.1 on 28x28 with stride 2: 800 logits for 5x5 filters of 32 channels."""
    network = GateNetwork((1, 28, 28), 800, 32, 5, 2, 2)
    shapes = {name: list(p.shape) for name, p in network.named_parameters() if name.endswith("weight") and p.ndim > 1}
    assert shapes == {
        "conv.weight": [32, 1, 5, 5],
        "first.weight": [512, 32 * 14 * 14],
        "second.weight": [512, 512],
        "head.weight": [800, 512],
    }
    small = GateNetwork((1, 6, 6), 4, 2, 3, 1, 1, 5, "tanh").eval()
    x = torch.rand(3, 1, 6, 6)
    assert small.conv is not None
    for norm in (small.conv_norm, small.first_norm):
        assert norm.running_mean is not None
        norm.running_mean.uniform_(-1, 1)
    seen = F.batch_norm(small.conv(x).relu(), small.conv_norm.running_mean, torch.ones(2)).flatten(1)
    seen = F.batch_norm(small.first(seen).relu(), small.first_norm.running_mean, torch.ones(5))
    torch.testing.assert_close(small(x), small.head(small.second(seen).tanh()))


def test_dense_gates_see_inputs_and_weights():
    """Table 4.10: perceptrons of 2x2 without and 4x2 with the weights for inputs."""
    x = torch.randn(6, 2)
    for weight_input, inputs in ((False, 2), (True, 4)):
        layer = InputGatedLinear(2, 1, weight_input=weight_input)
        perceptron = layer.module[0]
        assert isinstance(perceptron, nn.Linear)
        assert perceptron.weight.shape == (2, inputs)
        torch.manual_seed(3)
        out = layer(x)
        torch.manual_seed(3)
        masks = layer.mask(x)
        rows = [F.linear(x[i], layer.dense.weight * masks[i], layer.dense.bias) for i in range(6)]
        torch.testing.assert_close(out, torch.stack(rows))
    before = layer.logits(x)
    with torch.no_grad():
        layer.dense.weight.add_(1)
    torch.testing.assert_close(layer.logits(x) - before, perceptron.weight[:, 2:].sum(1).expand(6, 2))
    deep = InputGatedLinear(3, 2, Gates("deterministic"), hidden=(5,), bias=False)
    assert [tuple(p.shape) for p in deep.module.parameters()] == [(5, 3), (5,), (6, 5)]


def test_layers_travel_and_come_back():
    for layer in (conv(gates=Gates(shuffled=True)), conv(head="factored", own=False), conv(gates=Gates("rounded"))):
        again = pickle.loads(pickle.dumps(layer))
        x = torch.randn(3, 2, 6, 6, dtype=torch.float64)
        torch.manual_seed(5)
        first = layer(x)
        torch.manual_seed(5)
        torch.testing.assert_close(again(x), first)


def test_errors():
    with pytest.raises(UsageError, match="kind"):
        Gates("random")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="squash"):
        Gates("deterministic", squash="cube")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="squash"):
        Gates("stochastic", squash="tanh")
    with pytest.raises(UsageError, match="squash"):
        Gates("deterministic", signed=True, squash="relu")
    with pytest.raises(UsageError, match="head"):
        conv(head="half")
    with pytest.raises(UsageError, match="activation"):
        GateNetwork((1, 6, 6), 4, 2, 3, squash="sigmoid")
