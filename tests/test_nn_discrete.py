"""Swapping backwards and forwards, and restoring them; scopes of models."""

import copy

import pytest
import torch
from torch import nn

from stochade.errors import UsageError
from stochade.nn import (
    KWTA,
    DeterministicBinary,
    GaussianNoise,
    Sign,
    StochasticBinary,
    backward_as,
    discrete_layers,
    forward_as,
    scope_of,
    surrogates,
)
from stochade.nn.discrete import Discrete


def network() -> nn.Sequential:
    return nn.Sequential(
        GaussianNoise(0.1), nn.Linear(4, 4), StochasticBinary(), nn.Sequential(Sign(), DeterministicBinary())
    )


def swaps(model):
    return [(layer._backward, layer._forward) for layer in discrete_layers(model).values()]


def test_layers_are_found_by_qualified_name_in_order():
    assert list(discrete_layers(network())) == ["0", "2", "3.0", "3.1"]
    assert list(discrete_layers(StochasticBinary())) == [""]
    assert discrete_layers(nn.Linear(1, 1)) == {}


@pytest.mark.parametrize("swap", [backward_as, forward_as])
@pytest.mark.parametrize("fail", [RuntimeError, KeyboardInterrupt, None])
def test_everything_comes_back_also_after_an_exception_and_when_nested(swap, fail):
    model = network()
    outer = {"*": surrogates.zero() if swap is backward_as else torch.tanh}
    inner = {"3.0": surrogates.identity() if swap is backward_as else torch.sin, StochasticBinary: outer["*"]}
    clean = swaps(model)
    with swap(model, outer):
        before = swaps(model)
        assert before != clean
        try:
            with swap(model, inner):
                assert swaps(model) != before
                if fail is not None:
                    raise fail
        except (RuntimeError, KeyboardInterrupt):
            pass
        assert swaps(model) == before
    assert swaps(model) == clean


@pytest.mark.parametrize("selector", ["2", "StochasticBinary", StochasticBinary, "instance", "*"])
def test_every_kind_of_selector_reaches_the_layer_and_only_it(selector):
    model = network()
    chosen = model[2] if selector == "instance" else selector
    with forward_as(model, {chosen: "mean-field"}):
        changed = [name for name, layer in discrete_layers(model).items() if layer._forward is not None]
    # "*" is lenient: Sign has no mean field and keeps its own forward
    assert changed == (["0", "2", "3.1"] if selector == "*" else ["2"])


def test_the_same_layer_named_twice_is_restored_to_its_first_state():
    model = network()
    with backward_as(model, {"2": "soft", StochasticBinary: "identity"}):
        assert model[2]._backward.name == "identity"
    assert model[2]._backward is None


def test_unknown_names_are_refused_before_anything_changes():
    model = network()
    with (
        pytest.raises(UsageError, match=r"declares: \['mean-field'\]"),
        forward_as(model, {"*": "mean-field", "2": "lukewarm"}),
    ):
        pass
    with pytest.raises(UsageError, match="StochasticBinary"), backward_as(model, {KWTA: "soft"}):
        pass
    assert swaps(model) == swaps(network())


def test_the_hard_forward_is_kept_under_any_backward():
    """Frozen by the seed: swapping a backward draws no numbers and moves no value."""
    model, x = network(), torch.rand(5, 4, requires_grad=True)
    outputs = []
    for choice in ({}, {"*": "soft"}, {"*": "ste"}, {"*": surrogates.zero()}):
        torch.manual_seed(0)
        with backward_as(model, choice):
            outputs.append(model(x).detach())
    assert all(torch.equal(out, outputs[0]) for out in outputs)


class Plain(nn.Module):
    def forward(self, x):
        return x


class Declared(Plain):
    scope = "composite"

    def __init__(self, *parts):
        super().__init__()
        self.parts = nn.ModuleList(parts)


def test_scope_is_the_widest_of_the_parts():
    cases = {
        "none": nn.Sequential(nn.Linear(2, 2), KWTA(0.5)),
        "example": Declared(KWTA(0.5), StochasticBinary()),
        "call": Declared(StochasticBinary(), GaussianNoise(0.1, scope="call")),
        "unknown": nn.Sequential(GaussianNoise(0.1, scope="call"), Plain()),
    }
    assert {scope: scope_of(model.eval()) for scope, model in cases.items()} == {s: s for s in cases}
    assert scope_of(lambda x: x) == "unknown"


def test_scope_of_torch_layers_follows_their_mode():
    dropout = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    assert (scope_of(dropout.train()), scope_of(dropout.eval())) == ("example", "none")
    norm = nn.Sequential(StochasticBinary(), nn.BatchNorm1d(2))
    assert (scope_of(norm.train()), scope_of(norm.eval())) == ("call", "example")


def test_a_layer_without_a_hard_forward_says_so():
    with pytest.raises(TypeError, match="must define hard"):
        Discrete(surrogates.identity())(torch.zeros(1))


def test_copies_are_swapped_apart():
    model = network()
    other = copy.deepcopy(model)
    with backward_as(other, {"*": "ste"}):
        assert swaps(model) == [(None, None)] * 4


def test_a_name_that_no_layer_declares_is_refused_also_for_all_layers():
    """Silently attacking through the own backward would print a robustness that nobody measured."""
    model = nn.Sequential(nn.Linear(4, 4), StochasticBinary(), KWTA(0.5))
    with pytest.raises(UsageError, match="did you mean 'soft'"), backward_as(model, {"*": "sotf"}):
        pass
    with pytest.raises(UsageError, match="declared: none"), backward_as(nn.Linear(4, 4), {"*": "soft"}):
        pass
    with forward_as(model, {"*": "mean-field"}):  # one of them declares it
        pass
