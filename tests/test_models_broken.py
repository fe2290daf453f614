"""The known-broken models: built, trained and kept by name, and truly broken by what their layers declare."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from stochade import PGD, Backprop, Linf, checkpoint, data, margin
from stochade.errors import ModelError, UsageError
from stochade.models import LWTACNN, SAPCNN, QuantisedInput
from stochade.nn import LWTA, SAP, Quantise, StochasticBinary, discrete_layers, scope_of
from stochade.registry import build, rebuild
from stochade.targets import BUILT_IN, train_built_in

SCOPES = {
    "sap-cnn": "example",
    "lwta-cnn": "example",
    "quantised-cnn": "none",
    "kwta-cnn": "none",
    "gated": "example",
}
TARGETS = {
    "digits-sap": "sap-cnn",
    "digits-lwta": "lwta-cnn",
    "digits-quantised": "quantised-cnn",
    "digits-kwta": "kwta-cnn",
    "digits-gated": "gated",
}


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize("name", SCOPES)
@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 9, 7)])
def test_any_shape_and_class_count(name, shape):
    model = build(name, shape, 4).eval()
    with torch.no_grad():
        out = model(torch.rand(5, *shape))
    assert out.shape == (5, 4)
    assert torch.isfinite(out).all()


@pytest.mark.parametrize("name", SCOPES)
def test_declared_scope_is_what_a_tiled_batch_shows(name):
    model = build(name).eval()
    assert scope_of(model) == SCOPES[name]
    with torch.no_grad():
        rows = model(torch.rand(1, 1, 8, 8).expand(32, 1, 8, 8))
    if SCOPES[name] == "none":
        torch.testing.assert_close(rows, rows[:1].expand_as(rows))
    else:
        assert len(rows.unique(dim=0)) > 16


@pytest.mark.parametrize("name", ["sap-cnn", "lwta-cnn", "quantised-cnn"])
def test_checkpoints_pickles_and_descriptions_give_the_same_model(name, tmp_path):
    options = {"sap-cnn": {"share": 0.5}, "lwta-cnn": {"units": 4, "depth": 3}, "quantised-cnn": {"levels": 3}}[name]
    model = build(name, (1, 8, 8), 5, **options)
    model(torch.rand(20, 1, 8, 8))  # running statistics of their own
    model.eval()
    checkpoint.save(model, tmp_path)
    x = torch.rand(6, 1, 8, 8, requires_grad=True)
    results = []
    for other in (model, checkpoint.load(tmp_path).eval(), pickle.loads(pickle.dumps(model))):
        torch.manual_seed(3)
        out = other(x)
        results.append((out.detach(), torch.autograd.grad(out.sum(), x)[0]))
    for out, gradient in results[1:]:
        assert torch.equal(out, results[0][0])
        assert torch.equal(gradient, results[0][1])
    again = rebuild(model.description)
    assert [str(m) for m in again.modules()] == [str(m) for m in model.modules()]


def test_pruning_stands_after_each_relu():
    for name, activation, count in (("relu", nn.Sequential, 3), ("stochastic", StochasticBinary, 2)):
        model = SAPCNN(activation=name, share=0.7)
        assert isinstance(model.activation, activation)
        order = [type(m) for m in model.modules() if isinstance(m, nn.ReLU | SAP | StochasticBinary)]
        assert order[: 2 * count] == [nn.ReLU, SAP] * count
        assert [m.share for m in model.modules() if isinstance(m, SAP)] == [0.7] * count


def test_competition_stands_after_each_batch_norm():
    model = LWTACNN((1, 8, 8), depth=5, units=4, test_temperature=0.05)
    kinds = [type(m) for m in model.features[:-1]]
    assert kinds == [nn.Conv2d, nn.BatchNorm2d, LWTA] * 5
    assert {(m.units, m.test_temperature) for m in model.modules() if isinstance(m, LWTA)} == {(4, 0.05)}
    assert not any(isinstance(m, nn.ReLU) for m in model.modules())
    assert scope_of(LWTACNN(stochastic=False).eval()) == "none"


def test_quantised_input_equals_the_network_on_quantised_images():
    model = build("quantised-cnn", levels=3).eval()
    assert isinstance(model, QuantisedInput)
    x = torch.rand(4, 1, 8, 8)
    assert torch.equal(model(x), model.model(Quantise(3)(x)))
    leaf = x.requires_grad_()
    assert torch.autograd.grad(model(leaf).sum(), leaf)[0].eq(0).all()


def test_built_in_targets_name_their_models():
    for name, model in TARGETS.items():
        assert BUILT_IN[name].model == model
        assert discrete_layers(build(model))


def test_errors():
    with pytest.raises(ModelError, match="depth"):
        LWTACNN(depth=0)
    with pytest.raises(ModelError, match="input shape"):
        LWTACNN((8, 8))
    with pytest.raises(ModelError, match="multiple of 3"):
        build("lwta-cnn", units=3)(torch.rand(2, 1, 8, 8))
    with pytest.raises(UsageError, match="share"):
        build("sap-cnn", share=0.0)
    with pytest.raises(UsageError, match="levels"):
        build("quantised-cnn", levels=1)
    with pytest.raises(UsageError, match="activation"):
        SAPCNN(activation="swish")


def accuracy(model, x, y, draws=10):
    torch.manual_seed(5)
    with torch.no_grad():
        return torch.stack([model(x).argmax(1) == y for _ in range(draws)]).float().mean().item()


def attacked(model, x, y, eps, steps=20, **gradient):
    attack = PGD(Linf(eps), steps, gradient=Backprop(**gradient), objective=margin, drop_fooled=False)
    return accuracy(model, attack(model, x, y), y)


def trained(name, tmp_path, epochs):
    return train_built_in(replace(BUILT_IN[name], epochs=epochs), 0, tmp_path / name, False)


def test_quantised_input_falls_to_a_straight_through_gradient(tmp_path):
    """Its own gradient (zero) finds nothing; the same steps along the identity's find nearly everything."""
    model = trained("digits-quantised", tmp_path, 8)
    x, y = data.load("digits", "test")[np.arange(100)]
    assert accuracy(model, x, y) > 0.9
    assert attacked(model, x, y, 0.2, 10) > 0.85
    assert attacked(model, x, y, 0.2, 10, substitutes="ste") < 0.15


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_built_ins_classify_clean_digits(name, tmp_path):
    x, y = data.load("digits", "test")[np.arange(len(data.load("digits", "test")))]
    assert accuracy(trained(name, tmp_path, BUILT_IN[name].epochs), x, y) > 0.95


@pytest.mark.slow
def test_local_winners_look_robust_to_their_own_gradient_only(tmp_path):
    """The gap between the authors' attack and the noise-free softmax: at least 20 points at 0.15."""
    model = trained("digits-lwta", tmp_path, 30)
    x, y = data.load("digits", "test")[np.arange(200)]
    own = attacked(model, x, y, 0.15)
    assert own > 0.45
    for choice in ({"relaxed": "mean-field"}, {"relaxed": "soft"}, {"substitutes": "soft"}, {"substitutes": "warm"}):
        assert attacked(model, x, y, 0.15, **choice) < own - 0.2
