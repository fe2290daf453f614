"""The masking controls of the SGBN thesis: where their masks are, with which probabilities, and that they stay on."""

import pytest
import torch
from scipy.stats import binomtest
from torch import nn

from stochade.errors import ModelError, UsageError
from stochade.models import DropConnectCNN, DropoutCNN, StandoutCNN
from stochade.nn import AlwaysDropout, MaskedConv2d, RandomMask, Standout, StochasticBinary, forward_as, scope_of
from stochade.registry import build

NAMES = ["2cnn-standout", "2cnn-dropconnect", "2cnn-random-mask", "2cnn-dropout"]


def kinds(model):
    return [type(m).__name__ for m in model.features]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("training", [True, False])
def test_every_example_has_masks_of_its_own_in_training_and_at_test(name, training):
    """With a ReLU in the dense layer, only the masks make copies of one image differ."""
    torch.manual_seed(0)
    model = build(name, (1, 8, 8), 4, activation="relu", norm=False).train(training)
    rows = model(torch.rand(1, 1, 8, 8).expand(12, 1, 8, 8))
    assert rows.shape == (12, 4)
    assert len(rows.unique(dim=0)) == 12
    assert scope_of(model) == "example"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 9, 7)])
def test_the_base_is_the_thesis_cnn_bin(name, shape):
    model = build(name, shape).eval()
    assert isinstance(model.activation, StochasticBinary)
    weights = [list(p.shape) for key, p in model.named_parameters() if key.endswith("weight") and p.ndim == 4]
    assert weights == [[32, shape[0], 5, 5], [64, 32, 5, 5]]
    assert sum(isinstance(m, nn.BatchNorm2d) for m in model.modules()) == 2
    assert sum(isinstance(m, nn.BatchNorm2d) for m in build(name, shape, norm=False).modules()) == 0
    assert model(torch.rand(2, *shape)).shape == (2, 10)


@pytest.mark.parametrize(("name", "scale"), [("2cnn-dropconnect", True), ("2cnn-random-mask", False)])
def test_filters_are_kept_with_the_probabilities_of_the_thesis(name, scale):
    """Two exact binomial tests at 1e-6 for each name. Dropping 0.4 and 0.5 is keeping 0.6 and 0.5."""
    torch.manual_seed(0)
    model = build(name).eval()
    layers = [m for m in model.modules() if isinstance(m, MaskedConv2d)]
    for layer, keep in zip(layers, (0.6, 0.5), strict=True):
        gates = layer.mask.gates(20, layer.weight)
        assert binomtest(int((gates > 0).sum()), gates.numel(), keep).pvalue > 1e-6
        assert gates.max().item() == pytest.approx(1 / keep if scale else 1.0)
    assert scope_of(build(name, scope="call", activation="relu").eval()) == "call"
    assert [m.keep for m in DropConnectCNN(keep=(0.3, 1.0)).modules() if isinstance(m, RandomMask)] == [0.3, 1.0]


def test_standout_sits_after_the_convolutions_in_both_variants_of_the_thesis():
    model = build("2cnn-standout")
    assert kinds(model) == [*["Conv2d", "BatchNorm2d", "Standout"] * 2, "Flatten"]
    fixed = build("2cnn-standout", mode="expected", activation="deterministic").eval()
    assert scope_of(fixed) == "none"
    x = torch.rand(3, 1, 8, 8)
    assert torch.equal(fixed(x), fixed(x))
    options = {"alpha": 2.0, "beta": -1.0, "mode": "stochastic", "at_test": "expected", "mask_backward": "constant"}
    gates = [m.gate for m in StandoutCNN(**options).modules() if isinstance(m, Standout)]
    assert len(gates) == 2
    for gate in gates:
        assert (gate.alpha, gate.beta, gate.mode, gate.at_test, gate.backward) == tuple(options.values())


def test_mean_field_takes_the_masks_away():
    """The relaxed forward of every mask: with a ReLU in the dense layer nothing random is left."""
    torch.manual_seed(0)
    x = torch.rand(3, 1, 8, 8)
    for name in NAMES:
        model = build(name, activation="relu").eval()
        with torch.no_grad(), forward_as(model, {"*": "mean-field"}):
            assert torch.equal(model(x), model(x)), name


@pytest.mark.parametrize(("where", "convolutions", "dense"), [("dense", 0, 1), ("conv", 2, 0), ("both", 2, 1)])
def test_dropout_sits_where_it_was_asked_for(where, convolutions, dense):
    model = DropoutCNN(where=where, rate=0.3, rescale=False)
    layers = [m for m in model.features.modules() if isinstance(m, AlwaysDropout)]
    assert len(layers) == convolutions
    assert isinstance(model.last, AlwaysDropout) == bool(dense)
    assert {m.rate for m in model.modules() if isinstance(m, AlwaysDropout)} == {0.3}
    assert {m.rescale for m in model.modules() if isinstance(m, AlwaysDropout)} == {False}


def test_errors_say_what_was_expected():
    with pytest.raises(UsageError, match="two convolutions"):
        DropConnectCNN(keep=(0.5,))
    with pytest.raises(UsageError, match="conv"):
        DropoutCNN(where="input")
    with pytest.raises(ModelError, match="input shape"):
        StandoutCNN((28, 28))
