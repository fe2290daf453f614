"""Registered models: shapes against the thesis' tables, scopes seen and declared, pickling, descriptions."""

import json
import pickle

import pytest
import torch
from beartype import beartype
from jaxtyping import Float, jaxtyped
from torch import nn

from sizes import small
from stochade.errors import ModelError, UsageError
from stochade.models import CNN1, CNN2, MLP, Encoded, GatedNet, NoisyInput, rate_coded
from stochade.nn import discrete_layers, forward_as, scope_of
from stochade.registry import MODELS, build, rebuild

# the scope each name promises, written down by hand
SCOPES = {
    "mlp": "none", "mlp-stochastic": "example", "mlp-deterministic": "none",
    "1cnn": "none", "1cnn-stochastic": "example", "1cnn-deterministic": "none",
    "2cnn": "none", "2cnn-stochastic": "example", "2cnn-deterministic": "none",
    "mlp-reinforce": "example", "1cnn-reinforce": "example", "2cnn-reinforce": "example",
    "bnn": "none", "bnn-stochastic": "example", "2cnn-standout": "example", "2cnn-dropconnect": "example",
    "2cnn-random-mask": "example", "2cnn-dropout": "example", "sgbn": "example", "sgbn-1w": "example",
    "sgbn-factored": "example", "sgbn-deterministic": "example", "sgbn-cifar": "example", "pruned-cnn": "example",
    "sap-cnn": "example", "lwta-cnn": "example", "quantised-cnn": "none", "shift-cnn": "example",
    "rotation-cnn": "example", "random-resize-cnn": "example", "smoothed-cnn": "none", "jpeg-cnn": "none",
    "bit-depth-cnn": "none", "pni-cnn": "example", "resnet": "none", "resnet-small": "none", "lwta-mlp": "example",
    "lwta-bayesian": "example", "lwta-wide-resnet": "example",
    "gated": "example", "kwta-cnn": "none", "noisy-cnn": "example", "masked-cnn": "example", "rate-cnn": "example",
}  # fmt: skip


@jaxtyped(typechecker=beartype)
def logits(model: nn.Module, images: Float[torch.Tensor, "n c h w"]) -> Float[torch.Tensor, "n k"]:
    with torch.no_grad():
        return model(images)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize("name", SCOPES)
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 9, 7)])
def test_any_shape_and_class_count(name, shape):
    model = build(name, shape, 4).eval()
    x = torch.rand(5, *shape)
    out = logits(model, x)
    assert out.shape == (5, 4)
    assert torch.isfinite(out).all()


@pytest.mark.parametrize("name", SCOPES)
def test_declared_scope_is_what_a_tiled_batch_shows(name):
    """Rows of one repeated image differ under noise per example, and agree without noise."""
    model = build(name).eval()
    assert scope_of(model) == SCOPES[name]
    rows = logits(model, torch.rand(1, 1, 8, 8).expand(32, 1, 8, 8))
    if SCOPES[name] == "none":
        torch.testing.assert_close(rows, rows[:1].expand_as(rows))
    else:
        assert len(rows.unique(dim=0)) > 4  # one when the noise is shared; few sizes fit into 8x8 pixels


@pytest.mark.parametrize("name", MODELS)
def test_every_registered_model_survives_pickling(name):
    model = build(name, **small(name)).eval()
    again = pickle.loads(pickle.dumps(model))
    x = torch.rand(3, 1, 8, 8, requires_grad=True)
    results = []
    for m in (model, again):
        torch.manual_seed(1)
        out = m(x)
        results.append((out.detach(), torch.autograd.grad(out.sum(), x)[0]))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    assert again.description == model.description


def shapes(module: nn.Module) -> dict[str, list[int]]:
    return {name: list(p.shape) for name, p in module.named_parameters() if name.endswith("weight")}


def test_layer_shapes_of_the_thesis_on_mnist():
    """Tables 3.1 to 3.3: stride 2 with SAME padding takes 28 to 14 to 7."""
    assert shapes(MLP()) == {"dense.weight": [100, 784], "classifier.weight": [10, 100]}
    assert shapes(CNN1()) == {
        "features.0.weight": [32, 1, 5, 5],
        "dense.weight": [100, 32 * 14 * 14],
        "classifier.weight": [10, 100],
    }
    assert shapes(CNN2()) == {
        "features.0.weight": [32, 1, 5, 5],
        "features.2.weight": [64, 32, 5, 5],
        "dense.weight": [100, 64 * 7 * 7],
        "classifier.weight": [10, 100],
    }
    assert [m.stride for m in CNN2().modules() if isinstance(m, nn.Conv2d)] == [(2, 2), (2, 2)]


def test_gates_have_the_shape_of_their_weights():
    """Table 4.1 and 4.2 count 800 and 51,200 gates for 5x5 filters of 32 and 64 channels."""
    model = GatedNet((1, 28, 28), channels=(32, 64), kernel=5).eval()
    gated = [m for m in model.modules() if type(m).__name__ == "GatedConv2d"]
    assert [g.conv.weight.numel() for g in gated] == [800, 51200]
    x = torch.rand(2, 1, 28, 28)
    gates = gated[0].gate(gated[0].logits(x))
    assert gates.shape == (2, 32, 1, 5, 5)
    assert set(gates.unique().tolist()) <= {0.0, 1.0}


def test_gates_depend_on_the_image_and_multiply_the_weights():
    model = GatedNet().eval()
    layer = model.features[0]
    x = torch.rand(3, 1, 8, 8)
    with torch.no_grad(), forward_as(model, {"*": "mean-field"}):
        p = torch.sigmoid(layer.logits(x))
        assert not torch.allclose(p[0], p[1])
        rows = [
            torch.nn.functional.conv2d(x[i : i + 1], layer.conv.weight * p[i], layer.conv.bias, 1, 1)
            for i in range(3)
        ]
        torch.testing.assert_close(layer(x), torch.cat(rows))
    assert not layer.gate.anneal
    assert model.activation.anneal


def test_xavier_bounds_and_zero_biases():
    model = CNN2()
    for layer in (m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)):
        spread = nn.init._calculate_fan_in_and_fan_out(layer.weight)
        bound = (6 / sum(spread)) ** 0.5
        assert 0.9 * bound < layer.weight.abs().max() <= bound
        assert layer.bias is not None
        assert layer.bias.eq(0).all()


def test_rate_coded_averages_the_logits_of_its_frames():
    network = MLP((1, 4, 4), 3)
    model = rate_coded(network, 5)
    assert isinstance(model, Encoded)
    codes = (torch.rand(2, 5, 1, 4, 4) < 0.5).float()
    frames = torch.stack([network(codes[:, t]) for t in range(5)])
    torch.testing.assert_close(model.network(codes), frames.mean(0))
    black_white = (torch.rand(2, 1, 4, 4) < 0.5).float()  # certain rates: no noise is left
    torch.testing.assert_close(model(black_white), network(black_white))


def test_noisy_input_adds_noise_of_its_sigma():
    """Variance of 80,000 draws within 5 % (7 standard errors): false alarm below 1e-9."""
    model = NoisyInput(nn.Flatten(), 0.2)
    out = model(torch.full((1000, 1, 8, 10), 0.5))
    assert out.std().item() == pytest.approx(0.2, rel=0.025)
    assert out.mean().item() == pytest.approx(0.5, abs=0.005)


@pytest.mark.parametrize("name", MODELS)
def test_descriptions_are_json_and_rebuild_the_same_network(name):
    model = build(name, (1, 8, 8), 5, **small(name))
    text = json.dumps(model.description)
    again = rebuild(json.loads(text))
    assert again.description == model.description
    assert shapes(again) == shapes(model)
    assert [type(m) for m in again.modules()] == [type(m) for m in model.modules()]


def test_options_reach_the_model():
    assert build("kwta-cnn", ratio=0.3, per="channel").description["options"]["ratio"] == 0.3
    assert discrete_layers(build("kwta-cnn", ratio=0.3))["features.1"].ratio == 0.3
    assert build("noisy-cnn", sigma=0.5).noise.sigma == 0.5
    assert scope_of(build("noisy-cnn", scope="call").eval()) == "call"
    assert build("rate-cnn", steps=3).encoder.steps == 3
    assert build("mlp-stochastic", backward="hard").activation.backward == "hard"


def test_errors_name_the_nearest():
    with pytest.raises(UsageError, match="did you mean 'mlp-stochastic'"):
        build("mlp-stochastc")
    with pytest.raises(UsageError, match="did you mean 'ratio'"):
        build("kwta-cnn", ration=0.1)
    with pytest.raises(UsageError, match="option"):
        build("mlp", activation="stochastic")  # the name says relu
    with pytest.raises(UsageError, match="JSON"):
        build("kwta-cnn", ratio=float("nan"))
    with pytest.raises(UsageError, match="shape"):
        build("mlp", (8, 8))
    with pytest.raises(UsageError, match="classes"):
        build("mlp", classes=1)
    with pytest.raises(UsageError, match="description"):
        rebuild({"model": "mlp"})
    with pytest.raises(ModelError):
        GatedNet((1, 8, 8), kernel=4)
    with pytest.raises(UsageError, match="activation"):
        MLP(activation="swish")
