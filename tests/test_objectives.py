"""Objectives against formulas written in NumPy, and auto-attack's DLR row by row."""

import numpy as np
import pytest
import torch

import oracles
from stochade.attacks import OBJECTIVES, cross_entropy, dlr, margin
from stochade.attacks.objectives import least_likely


def logits(classes: int, seed: int = 0, count: int = 40, scale: float = 3.0) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    z = scale * torch.randn(count, classes, generator=g, dtype=torch.float64)
    return z, torch.randint(0, classes, (count,), generator=g)


def other(y: torch.Tensor, classes: int) -> torch.Tensor:
    return (y + 1 + torch.arange(len(y)) % (classes - 1)) % classes


def gradient(objective, z, *labels):
    leaf = z.clone().requires_grad_()
    (g,) = torch.autograd.grad(objective(leaf, *labels).sum(), leaf)
    return g


@pytest.mark.parametrize("classes", [2, 3, 4, 10])
def test_cross_entropy_is_the_formula(classes):
    z, y = logits(classes)
    t = other(y, classes)
    np.testing.assert_allclose(
        cross_entropy(z, y), [oracles.cross_entropy(a.numpy(), int(b)) for a, b in zip(z, y, strict=True)]
    )
    np.testing.assert_allclose(
        cross_entropy(z, y, t), [-oracles.cross_entropy(a.numpy(), int(b)) for a, b in zip(z, t, strict=True)]
    )


@pytest.mark.parametrize("classes", [2, 3, 4, 10])
def test_margin_is_positive_exactly_when_wrong(classes):
    z, y = logits(classes)
    m = margin(z, y)
    assert torch.equal(m > 0, z.argmax(1) != y)
    wanted = [max(np.delete(a.numpy(), int(b))) - a[b] for a, b in zip(z, y, strict=True)]
    np.testing.assert_allclose(m, wanted)
    t = other(y, classes)
    assert torch.equal(margin(z, y, t) > 0, z.argmax(1) == t)


def test_margin_of_one_class_is_finite():
    assert torch.isfinite(margin(torch.randn(3, 1), torch.zeros(3, dtype=torch.long))).all()


@pytest.mark.parametrize("classes", [3, 4, 10])
def test_dlr_is_the_official_formula(classes):
    z, y = logits(classes)
    wanted = [oracles.official_dlr(a.numpy(), int(b)) for a, b in zip(z, y, strict=True)]
    np.testing.assert_allclose(dlr(z, y), wanted, rtol=1e-9)
    assert torch.equal(dlr(z, y) > 0, z.argmax(1) != y)


@pytest.mark.parametrize("classes", [4, 10])
def test_targeted_dlr_is_the_official_formula(classes):
    z, y = logits(classes)
    t = other(y, classes)
    rows = zip(z, y, t, strict=True)
    wanted = [oracles.official_targeted_dlr(a.numpy(), int(b), int(c)) for a, b, c in rows]
    np.testing.assert_allclose(dlr(z, y, t), wanted, rtol=1e-9)


def test_targeted_dlr_of_three_classes():
    z, y = logits(3)
    t = other(y, 3)
    s = z.sort(1).values
    rows = torch.arange(len(z))
    torch.testing.assert_close(dlr(z, y, t), (z[rows, t] - z[rows, y]) / (s[:, 2] - s[:, 0]))


def test_dlr_of_two_classes_is_the_margin():
    z, y = logits(2)
    torch.testing.assert_close(dlr(z, y), margin(z, y))
    torch.testing.assert_close(dlr(z, y, 1 - y), margin(z, y, 1 - y))


@pytest.mark.parametrize("classes", [3, 4, 10])
def test_dlr_has_a_gradient_where_the_label_ranks_third(classes):
    """There the official ratio is exactly 1: its gradient vanishes (auto-attack issue 108)."""
    z, _ = logits(classes)
    y = z.argsort(1)[:, -3]
    torch.testing.assert_close(dlr(z, y), torch.ones(len(z), dtype=z.dtype))
    g = gradient(dlr, z, y)
    rows = torch.arange(len(z))
    assert bool((g[rows, y] < 0).all())  # lowering the true logit raises the objective
    assert bool((g[rows, z.argmax(1)] > 0).all())


def test_dlr_has_the_official_gradient_elsewhere():
    z, _ = logits(6)
    for rank in (-1, -2, -4, -6):
        y = z.argsort(1)[:, rank]
        g = gradient(dlr, z, y)
        h = 1e-6
        for i in range(5):
            for k in range(6):
                up, down = z[i].clone(), z[i].clone()
                up[k] += h
                down[k] -= h
                a, b = oracles.official_dlr(up.numpy(), int(y[i])), oracles.official_dlr(down.numpy(), int(y[i]))
                assert float(g[i, k]) == pytest.approx((a - b) / (2 * h), abs=1e-5)


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
@pytest.mark.parametrize("classes", [2, 3, 4, 10])
def test_all_logits_equal_gives_finite_values_and_gradients(name, classes):
    z, y = torch.zeros(3, classes), torch.tensor([0, 1, classes - 1])
    assert torch.isfinite(OBJECTIVES[name](z, y)).all()
    assert torch.isfinite(gradient(OBJECTIVES[name], z, y)).all()


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
@pytest.mark.parametrize("targeted", [False, True])
def test_examples_do_not_mix(name, targeted):
    z, y = logits(5)
    t = other(y, 5) if targeted else None
    whole = OBJECTIVES[name](z, y, t)
    assert whole.shape == (len(z),)
    alone = torch.cat(
        [OBJECTIVES[name](z[i : i + 1], y[i : i + 1], None if t is None else t[i : i + 1]) for i in range(40)]
    )
    torch.testing.assert_close(whole, alone)


def test_least_likely():
    z, _ = logits(7)
    assert least_likely(z).tolist() == [int(np.argmin(row.numpy())) for row in z]
