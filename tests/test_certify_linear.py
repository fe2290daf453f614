"""Exact linear certificates against an independent oracle, the dual norm, and attacks on both sides of the radius."""

import numpy as np
import pytest
import torch
from torch import nn

from oracles import smallest
from stochade.attacks import L1, L2, PGD, Linf
from stochade.certify.linear import linear_parts, linear_radii, train_linear, worst_logits
from stochade.errors import BudgetError, LabelsError, ModelError


def network(seed, pixels, classes=3):
    generator = torch.Generator().manual_seed(seed)
    layer = nn.Linear(pixels, classes).double()
    with torch.no_grad():
        layer.weight.copy_(torch.randn(classes, pixels, generator=generator))
        layer.bias.copy_(torch.randn(classes, generator=generator) / 2)
        layer.weight[:, 0] = 1.0  # a pixel that tells no class from another
    return nn.Sequential(nn.Flatten(), layer).eval()


def examples(model, seed, count, pixels):
    generator = torch.Generator().manual_seed(1000 + seed)
    x = torch.rand(count, 1, 1, pixels, generator=generator, dtype=torch.float64)
    x = torch.where(torch.rand(x.shape, generator=generator) < 0.3, x.round(), x)
    return x, model(x).argmax(1)


def agree(seeds):
    for seed in seeds:
        pixels = 1 + seed % 7
        model = network(seed, pixels)
        x, y = examples(model, seed, 4, pixels)
        y[0] = (y[0] + 1) % 3  # an error: radius 0
        weight, bias = (part.numpy() for part in linear_parts(model))
        for norm in ("linf", "l2", "l1", "l0"):
            found = linear_radii(model, x, y, norm)
            assert found[0] == 0
            for i in range(1, 4):
                point, label = x[i].numpy().ravel(), int(y[i])
                gaps = {j: (weight[label] - weight[j]) @ point + bias[label] - bias[j] for j in {0, 1, 2} - {label}}
                expected = min(smallest(weight[label] - weight[j], point, norm, gap) for j, gap in gaps.items())
                assert float(found[i]) == pytest.approx(expected, rel=1e-6, abs=1e-9), (seed, norm, i)


def test_equal_the_oracle():
    agree(range(40))


@pytest.mark.slow
def test_equal_the_oracle_in_ten_thousand_cases():
    agree(range(40, 874))


def test_without_the_box_they_are_margins_over_dual_norms():
    model = network(3, 5)
    x, y = examples(model, 3, 6, 5)
    weight, _ = linear_parts(model)
    logits = model(x).double()
    for norm, dual in (("linf", 1), ("l2", 2), ("l1", np.inf)):
        expected = torch.stack(
            [
                min((logits[i, k] - logits[i, j]) / (weight[k] - weight[j]).norm(dual) for j in range(3) if j != k)
                for i, k in enumerate(y.tolist())
            ]
        )
        found = linear_radii(model, x, y, norm, box=False)
        assert torch.allclose(found, expected)
        assert (linear_radii(model, x, y, norm) >= found - 1e-12).all()  # the box only helps


@pytest.mark.parametrize("threat", [Linf, L2, L1])
def test_attacks_succeed_just_above_and_never_below(threat):
    model = network(8, 6, 2).float()
    x, y = examples(model.double(), 8, 30, 6)
    model, x = model.float(), x.float()
    radii = linear_radii(model, x, y, threat(1.0).name)
    for scale, kept in ((0.99, True), (1.01, False)):
        for i in torch.isfinite(radii).nonzero()[:8, 0].tolist():
            attacked = PGD(threat(float(radii[i]) * scale), steps=30)(model, x[i : i + 1], y[i : i + 1])
            assert bool(model(attacked).argmax(1) == y[i]) is kept, (scale, i)


def test_robust_training_minimises_the_largest_loss():
    """For two classes the raised logits give the largest loss in the ball: that at the point of steepest ascent."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(2, 4, generator=generator)
    x, y = torch.rand(5, 4, generator=generator) / 4 + 0.4, torch.tensor([0, 1, 0, 1, 1])
    for norm, eps in (("linf", 0.05), ("l2", 0.1), ("l1", 0.2)):
        loss = nn.functional.cross_entropy(worst_logits(weight, x @ weight.T, y, eps, norm), y, reduction="none")
        d = weight[1 - y] - weight[y]
        step = {"linf": d.sign() * eps, "l2": d / d.norm(dim=1, keepdim=True) * eps,
                "l1": nn.functional.one_hot(d.abs().argmax(1), 4) * d.sign() * eps}[norm]  # fmt: skip
        assert torch.allclose(
            loss, nn.functional.cross_entropy((x + step) @ weight.T, y, reduction="none"), atol=1e-6
        )


def test_robust_training_raises_the_certificate():
    generator = torch.Generator().manual_seed(1)
    y = torch.arange(3).repeat(40)
    x = (
        0.5 + 0.3 * (nn.functional.one_hot(y, 12).float() - 0.2) + 0.15 * torch.randn(120, 12, generator=generator)
    ).clamp(0, 1)
    x = x.view(120, 1, 3, 4)
    plain, robust = (train_linear(x, y, threat, steps=200, show_progress=False) for threat in (None, Linf(0.08)))
    certified = [(linear_radii(model, x, y, "linf") > 0.08).double().mean() for model in (plain, robust)]
    assert certified[1] > certified[0] + 0.05
    assert not robust.training
    assert robust[1].weight.requires_grad
    again = train_linear(x, y, Linf(0.08), steps=200, show_progress=False)
    assert torch.equal(again[1].weight, robust[1].weight)


def test_refusals():
    x, y = torch.rand(2, 1, 2, 2), torch.tensor([0, 1])
    with pytest.raises(ModelError, match="ReLU"):
        linear_radii(nn.Sequential(nn.Flatten(), nn.Linear(4, 2), nn.ReLU()), x, y, "l2")
    hooked = network(0, 4)
    hooked[1].register_forward_hook(lambda module, inputs, output: output + 1)
    twice = nn.Linear(2, 2)
    shifted = type("Shifted", (nn.Flatten,), {"forward": lambda self, x: x.flatten(1) - 0.4})()
    for model, told in (
        (hooked, "hooks"),
        (nn.Sequential(nn.Flatten(), twice, twice), "2 linear"),
        (nn.Sequential(shifted, nn.Linear(4, 2)), "Shifted"),
        (type("Own", (nn.Sequential,), {})(nn.Flatten(), nn.Linear(4, 2)), "Own"),
    ):
        with pytest.raises(ModelError, match=told):
            linear_radii(model, x, y, "l2")
    with pytest.raises(LabelsError, match="below 2"):
        linear_radii(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), x, y + 1, "l2")
    with pytest.raises(BudgetError, match="linf, l2, l1, l0"):
        linear_radii(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), x, y, "l3")
    with pytest.raises(BudgetError, match="box"):
        linear_radii(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), x, y, "l0", box=False)
