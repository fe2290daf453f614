"""Binary weights against enumeration and closed forms, the layers against loops, the network against the papers."""

import pickle
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from scipy.stats import binomtest
from torch import nn

from stochade.attacks import FGSM, Backprop, Linf
from stochade.data import load
from stochade.errors import ModelError, UsageError
from stochade.models import BNN
from stochade.models.bnn import same_padding
from stochade.nn import (
    BinaryConv2d,
    BinaryLinear,
    BinaryWeight,
    ScaledReLU,
    Sign,
    clipped_gradient,
    discrete_layers,
    forward_as,
    scope_of,
)
from stochade.nn.binarised import sign_backward
from stochade.registry import build
from stochade.train import train

R = torch.tensor([-1.7, -1.0, -0.6, 0.0, 0.3, 1.0, 2.0])
P = ((R + 1) / 2).clamp(0, 1)


def test_signs_of_weights():
    out = BinaryWeight().weights(4, R)
    assert out.tolist() == [[-1, -1, -1, 1, 1, 1, 1]]  # one row for all examples; 0 gives +1 (equation 2.17)
    assert BinaryWeight().scope == "none"


def test_drawn_weights_have_the_hard_sigmoid_as_their_probability():
    """Seven exact binomial tests at 1e-6; certain weights are certain (equations 2.18 and 2.19)."""
    torch.manual_seed(0)
    w = pickle.loads(pickle.dumps(BinaryWeight(drawn=True))).weights(20000, R)
    assert w.shape == (20000, 7)
    assert set(w.unique().tolist()) == {-1.0, 1.0}
    for positive, p in zip((w > 0).sum(0).tolist(), P.tolist(), strict=True):
        assert binomtest(positive, 20000, p).pvalue > 1e-6
    assert (w[:, :2] == -1).all()
    assert (w[:, 5:] == 1).all()


@pytest.mark.parametrize("training", [True, False])
def test_scope_is_what_the_tile_shows(training):
    torch.manual_seed(0)
    x = torch.rand(1, 3, 6, 6).expand(8, 3, 6, 6)
    for make, data in (
        (lambda binary: BinaryConv2d(3, 4, 3, binary=binary), x),
        (lambda binary: BinaryLinear(108, 9, binary), x.flatten(1)),
    ):
        own, shared, signs = (
            make(BinaryWeight(True)).train(training),
            make(BinaryWeight(True, "call")).train(training),
            make(None).train(training),
        )
        assert len(own(data).flatten(1).unique(dim=0)) == 8
        rows = shared(data).flatten(1)
        torch.testing.assert_close(rows, rows[:1].expand_as(rows))
        assert not torch.allclose(shared(data), shared(data))
        assert torch.equal(signs(data), signs(data))
        assert [scope_of(m) for m in (own, shared, signs)] == ["example", "call", "none"]


def test_layers_multiply_each_example_with_its_own_weights():
    torch.manual_seed(0)
    conv, dense = BinaryConv2d(2, 3, 3, 2, 1, BinaryWeight(True)), BinaryLinear(6, 4, BinaryWeight(True))
    x, v = torch.randn(5, 2, 7, 7), torch.randn(5, 6)
    torch.manual_seed(4)
    got = conv(x), dense(v)
    torch.manual_seed(4)
    w, u = conv.binary.weights(5, conv.weight), dense.binary.weights(5, dense.weight)
    torch.testing.assert_close(got[0], torch.cat([F.conv2d(x[i : i + 1], w[i], None, 2, 1) for i in range(5)]))
    torch.testing.assert_close(got[1], torch.stack([u[i] @ v[i] for i in range(5)]))
    wide = torch.randn(5, 4, 9, 9)  # more positions: the other form of the convolution
    conv = BinaryConv2d(4, 3, 3, binary=BinaryWeight(True))
    torch.manual_seed(4)
    out = conv(wide)
    torch.manual_seed(4)
    w = conv.binary.weights(5, conv.weight)
    torch.testing.assert_close(out, torch.cat([F.conv2d(wide[i : i + 1], w[i]) for i in range(5)]))
    plain = BinaryConv2d(2, 3, 3, 2, 1)
    torch.testing.assert_close(plain(x), F.conv2d(x, torch.where(plain.weight >= 0, 1.0, -1.0), None, 2, 1))


@pytest.mark.parametrize("drawn", [False, True])
def test_backwards_of_weights_in_closed_form(drawn):
    """Example n sends c_n back: the mask passes the sum where |r| <= 1, the clip passes the clipped sum anywhere."""
    c = torch.tensor([0.5, 0.4, -0.1, 3.0])
    for name, wanted in (("mask", c.sum() * (R.abs() <= 1)), ("clip", torch.ones_like(R))):
        r = R.clone().requires_grad_()
        w = BinaryWeight(drawn, backward=name).weights(4, r)
        loss = (c[:, None] * w).sum() if drawn else c.sum() * w.sum()
        torch.testing.assert_close(torch.autograd.grad(loss, r)[0], wanted)


def test_the_mask_is_the_gradient_of_the_mean_on_average():
    """All 8 states of three drawn weights: sum P(w) dL/dw = d/dr E[L] for L linear in each weight, to rounding."""
    r = torch.tensor([-0.5, 0.2, 0.8], dtype=torch.float64, requires_grad=True)
    states = torch.tensor(list(product((-1.0, 1.0), repeat=3)), dtype=torch.float64)

    def loss(w):
        return w[:, 0] * w[:, 1] + 2 * w[:, 2] - w[:, 0] * w[:, 1] * w[:, 2]

    chance = torch.where(states > 0, (1 + r) / 2, (1 - r) / 2).prod(1)
    exact = torch.autograd.grad((chance * loss(states)).sum(), r, retain_graph=True)[0]
    binary = BinaryWeight(drawn=True)
    binary.hard = lambda x: states.clone()
    got = torch.autograd.grad((chance.detach() * loss(binary.weights(8, r))).sum(), r)[0]
    torch.testing.assert_close(got, exact, rtol=1e-12, atol=1e-12)


def test_clipped_gradient_clips_the_value():
    x = torch.tensor([-5.0, 0.0, 0.5, 9.0], requires_grad=True)
    upstream = torch.tensor([-3.0, 0.2, 1.5, -0.4])
    surrogate = clipped_gradient(0.3)
    assert torch.equal(surrogate(x.detach().sign(), x), x.detach().sign())
    got = torch.autograd.grad(surrogate(x.detach().sign(), x), x, upstream)[0]
    assert got.tolist() == pytest.approx([-0.3, 0.2, 0.3, -0.3])
    assert torch.equal(sign_backward("clip").primitive(x), x)
    torch.testing.assert_close(
        torch.autograd.grad(sign_backward("clip").primitive(x), x, upstream)[0].max(), torch.tensor(1.0)
    )


def test_mean_field_is_the_mean_of_the_draws():
    """4,000 draws within 6 standard errors in 12 outputs: false alarm below 1e-7."""
    torch.manual_seed(0)
    layer = BinaryLinear(5, 3, BinaryWeight(True))
    x = torch.rand(4, 5).repeat(4000, 1)
    with torch.no_grad():
        draws = layer(x).view(4000, 4, 3)
        with forward_as(layer, {"*": "mean-field"}):
            expected = layer(x[:4])
    torch.testing.assert_close(expected, x[:4] @ layer.weight.clamp(-1, 1).T)
    assert ((draws.mean(0) - expected).abs() < 6 * draws.std(0) / 4000**0.5).all()
    assert BinaryWeight().relaxed == {}  # signs do not depend on the image: nothing to relax


@pytest.mark.parametrize(
    ("size", "kernel", "stride"), [(28, 8, 2), (32, 8, 2), (8, 4, 2), (9, 4, 2), (7, 3, 3), (5, 1, 2)]
)
def test_same_padding_gives_the_ceiling(size, kernel, stride):
    before, after = same_padding(size, kernel, stride)
    assert (size + before + after - kernel) // stride + 1 == -(-size // stride)
    assert after - before in (0, 1)  # TensorFlow puts the odd one after


def test_layers_of_the_paper_on_mnist():
    """64x8x8 stride 2 SAME, 128x6x6 stride 2, 128x5x5: 28 -> 14 -> 5 -> 1; no biases; scales of 0.05."""
    model = BNN()
    parameters = {name: list(p.shape) for name, p in model.named_parameters() if p.ndim > 1}
    assert list(parameters.values()) == [[64, 1, 8, 8], [128, 64, 6, 6], [128, 128, 5, 5], [10, 128]]
    shapes = []
    for module in model.features:
        if isinstance(module, nn.Conv2d | BinaryConv2d):
            module.register_forward_hook(lambda _, __, out: shapes.append(list(out.shape[1:])))
    model.eval()(torch.rand(2, 1, 28, 28))
    assert shapes == [[64, 14, 14], [128, 5, 5], [128, 1, 1]]
    order = [type(m).__name__ for m in model.features]
    assert order == [
        "ZeroPad2d",
        "Conv2d",
        "ReLU",
        *["BatchNorm2d", "Sign", "BinaryConv2d", "ScaledReLU"] * 2,
        "Flatten",
    ]
    assert [m.scale.item() for m in model.modules() if isinstance(m, ScaledReLU)] == pytest.approx([0.05, 0.05])
    assert all(m.bias is None for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear))
    assert [m.stride for m in model.modules() if isinstance(m, BinaryConv2d)] == [2, 1]
    torch.testing.assert_close(model.features[1].weight.flatten(1).norm(dim=1), torch.ones(64))
    torch.testing.assert_close(model.classifier.weight.norm(dim=1), torch.ones(10))
    own = [m.weight for m in model.modules() if isinstance(m, BinaryConv2d)]
    assert all(0.15 < w.std() < 0.2 and w.abs().max() <= 0.4 for w in own)


def test_binary_convolutions_see_and_hold_only_signs():
    torch.manual_seed(0)
    seen = []
    model = build("bnn-stochastic").train()  # fresh batch norm in evaluation mode lets ReLUs be positive only
    for module in model.modules():
        if isinstance(module, BinaryConv2d):
            module.register_forward_pre_hook(lambda _, given: seen.append(given[0].unique().tolist()))
    model(torch.rand(4, 1, 8, 8))
    assert seen == [[-1.0, 1.0], [-1.0, 1.0]]


def test_which_weights_are_drawn():
    def drawn(**options):
        layers = discrete_layers(BNN((1, 28, 28), hidden=20, **options)).values()
        return [layer.drawn for layer in layers if isinstance(layer, BinaryWeight)]

    assert drawn() == [False, False, False]
    assert drawn(drawn="last") == [False, True, False]
    assert drawn(drawn="all") == [True, True, True]
    assert [scope_of(build(name).eval()) for name in ("bnn", "bnn-stochastic")] == ["none", "example"]
    assert scope_of(build("bnn-stochastic", scope="call").eval()) == "call"


def test_weights_trained_one_way_can_be_tested_in_another():
    torch.manual_seed(0)
    one, other = build("bnn"), build("bnn-stochastic")
    other.load_state_dict(one.state_dict())
    assert list(one.state_dict()) == list(other.state_dict())


@pytest.mark.parametrize("name", ["bnn", "bnn-stochastic"])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 9, 7), (3, 32, 32)])
def test_any_shape(name, shape):
    model = build(name, shape, 4).eval()
    assert model(torch.rand(2, *shape)).shape == (2, 4)
    two = build(name, shape, 4, filters=(8, 16), kernels=(3, 3), strides=(2, 1), hidden=10).eval()
    assert two(torch.rand(2, *shape)).shape == (2, 4)
    assert sum(isinstance(m, BinaryLinear) for m in two.modules()) == 1


@pytest.mark.parametrize("backward", ["mask", "clip"])
def test_the_backward_reaches_activations_and_weights(backward):
    model = BNN((1, 8, 8), backward=backward, drawn="last")
    name = sign_backward(backward).name
    units = [m for m in model.modules() if isinstance(m, Sign | BinaryWeight)]
    assert len(units) == 4
    assert all(unit.surrogate.name == name for unit in units)
    model(torch.rand(4, 1, 8, 8)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_errors_say_what_was_expected():
    with pytest.raises(ModelError, match="fit images of 4 x 4"):
        BNN((1, 4, 4))
    with pytest.raises(ModelError, match="kernel and a stride"):
        BNN(filters=(8, 8))
    with pytest.raises(ModelError, match="kernel and a stride"):
        BNN(kernels=(3, 3, 3))
    with pytest.raises(ModelError, match="input shape"):
        BNN((28, 28))
    with pytest.raises(UsageError, match="drawn"):
        BNN(drawn="first")
    with pytest.raises(UsageError, match="scope"):
        BinaryWeight(True, "batch")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="mask"):
        BinaryWeight(backward="ste")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="bound"):
        clipped_gradient(0.0)


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    model = build("bnn", filters=(16, 32, 32))
    return model, train(model, load("digits", "train"), load("digits", "validation"), epochs=10, progress=False)


def accuracy(model, x, y):
    return (model(x).argmax(1) == y).float().mean().item()


def test_it_learns_the_digits(trained):
    """About 90 % after ten epochs; the bar leaves ten points."""
    assert trained[1].best_accuracy > 0.8


@pytest.mark.slow
def test_it_learns_with_drawn_weights_too():
    """About 85 % after twelve epochs; chance is 10 %."""
    torch.manual_seed(0)
    model = build("bnn-stochastic")
    history = train(model, load("digits", "train"), load("digits", "validation"), epochs=12, progress=False)
    assert history.best_accuracy > 0.7


def test_an_attacker_sees_through_it(trained):
    """FGSM at 0.1 with the net's own backward, the clipped and the soft one: each takes 15 points at least."""
    model = trained[0].eval()
    x, y = load("digits", "test")[:200]
    y = torch.as_tensor(y)
    clean = accuracy(model, x, y)
    for name in (None, "ste", "clipped", "soft"):
        attack = FGSM(Linf(0.1), gradient=Backprop(1, substitutes=name))
        assert accuracy(model, attack(model, x, y), y) < clean - 0.15, name
