"""Normalized and ClassMap against their formulas, and what they declare about themselves."""

import pickle

import pytest
import torch
from torch import nn

from stochade.data import ClassMap, Normalized
from stochade.errors import DataError, ImagesError, LogitsError
from stochade.nn.discrete import scope_of


def net(outputs=7) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, outputs)).eval()


def images(n=5) -> torch.Tensor:
    return torch.rand(n, 3, 4, 4, generator=torch.Generator().manual_seed(1))


def test_normalized_is_the_formula_channel_by_channel():
    model, x = net(), images()
    mean, std = [0.1, 0.2, 0.3], [0.5, 0.25, 2.0]
    by_hand = torch.stack([(x[:, c] - mean[c]) / std[c] for c in range(3)], dim=1)
    torch.testing.assert_close(Normalized(model, mean, std)(x), model(by_hand), rtol=0, atol=1e-6)
    torch.testing.assert_close(Normalized(model, 0.5, std)(x), model((x - 0.5) / torch.tensor(std)[:, None, None]))
    assert torch.equal(Normalized(model, 0.0, 1.0)(x), model(x))


def test_normalized_keeps_double_precision_and_the_gradient():
    model, x = net().double(), images().double().requires_grad_()
    out = Normalized(model, 0.25, 0.5)(x)
    assert out.dtype == torch.float64
    (g,) = torch.autograd.grad(out[:, 2].sum(), x)
    torch.testing.assert_close(g.flatten(1), (model[1].weight[2] / 0.5).expand(5, -1))  # type: ignore[index]


def test_class_map_selects_exactly():
    model, x = net(), images()
    assert torch.equal(ClassMap(model, [4, 0, 6])(x), model(x)[:, [4, 0, 6]])
    assert torch.equal(ClassMap(model, [4, [0], 6])(x), model(x)[:, [4, 0, 6]])


def test_class_map_sums_probabilities():
    model, x = net(), images()
    groups = [[1, 2, 5], 0, [3, 6]]
    probabilities = model(x).softmax(1)
    sums = torch.stack([probabilities[:, [1, 2, 5]].sum(1), probabilities[:, 0], probabilities[:, [3, 6]].sum(1)], 1)
    expected = sums / sums.sum(1, keepdim=True)
    torch.testing.assert_close(ClassMap(model, groups)(x).softmax(1), expected, rtol=1e-5, atol=1e-7)


def test_class_map_gradient_is_finite_and_ignores_padding():
    logits = torch.randn(4, 7, generator=torch.Generator().manual_seed(2), requires_grad=True)
    out = ClassMap(nn.Identity(), [[1, 2, 5], 0, [3, 6]])(logits)
    (g,) = torch.autograd.grad(out[:, 1].sum(), logits)
    assert torch.equal(g, torch.eye(7)[[0] * 4])


def test_wrapped_models_pickle_and_hold_no_state_of_their_own():
    model = ClassMap(Normalized(net(), [0.5] * 3, [0.2] * 3), [3, [1, 2]])
    again = pickle.loads(pickle.dumps(model))
    assert torch.equal(again(images()), model(images()))
    assert set(model.state_dict()) == {f"model.model.{k}" for k in net().state_dict()}


def test_scope_is_that_of_the_model_inside():
    assert scope_of(Normalized(net(), 0.5, 0.5)) == "none"
    noisy = nn.Sequential(net(), nn.Dropout(0.5)).train()
    assert scope_of(ClassMap(noisy, [0, 1])) == "example"
    for wrapper in (Normalized(lambda x: x, 0.5, 0.5), ClassMap(lambda x: x, [0, 1])):
        assert scope_of(wrapper) == "unknown"  # a plain function may draw anything


@pytest.mark.parametrize(
    ("mean", "std"),
    [
        (0.5, 0.0),
        (0.5, -1.0),
        (float("nan"), 1.0),
        (0.5, float("inf")),
        ([], 1.0),
        ("half", 1.0),
        ([0.1, 0.2], [1.0, 1.0, 1.0]),
    ],
)
def test_bad_normalisations(mean, std):
    with pytest.raises(DataError):
        Normalized(net(), mean, std)


@pytest.mark.parametrize("classes", [[], [[]], [0, -1], [0, 0], [[1, 2], 2], [[1, 1]], [0.5], [True], ["a"]])
def test_bad_class_maps(classes):
    with pytest.raises(DataError):
        ClassMap(net(), classes)


def test_mismatches_when_called():
    with pytest.raises(ImagesError, match="2 channels"):
        Normalized(net(), [0.1, 0.2], 1.0)(images())
    with pytest.raises(LogitsError, match="M > 7"):
        ClassMap(net(), [0, 7])(images())
