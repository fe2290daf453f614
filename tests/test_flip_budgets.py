"""Budgets in flips against enumeration of both codes, integration over the shared uniform, and the figures of the
papers' survey."""

from itertools import pairwise, product

import numpy as np
import pytest
import torch
from scipy.optimize import linprog

from stochade.attacks.flip_budgets import (
    coupled_flips,
    encoding_randomness,
    independent_flips,
    paper_budget,
    randomness_reduction,
)
from stochade.errors import ImagesError

LETTERS = (-1, 0, 1)


def law(rate: float) -> dict[int, float]:
    """The law of one signed Bernoulli letter (mukhoty2025, equation 11)."""
    return {1: max(rate, 0.0), -1: max(-rate, 0.0), 0: 1 - abs(rate)}


def frame_law(rates) -> dict[tuple, float]:
    """The law of a frame: every word and its probability."""
    return {
        w: float(np.prod([law(r)[z] for r, z in zip(rates, w, strict=True)]))
        for w in product(LETTERS, repeat=len(rates))
    }


def pair(signed: bool, seed: int, count: int = 6, d: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x, other = torch.rand(2, count, d, generator=generator, dtype=torch.float64)
    return (2 * x - 1, 2 * other - 1) if signed else (x, other)


@pytest.mark.parametrize("signed", [False, True])
def test_independent_flips_equal_the_sum_over_all_pairs_of_words(signed):
    x, other = pair(signed, 0)
    for i in range(len(x)):
        p, q = frame_law(x[i].tolist()), frame_law(other[i].tolist())
        wanted = sum(p[a] * q[b] * sum(u != v for u, v in zip(a, b, strict=True)) for a in p for b in q)
        assert float(independent_flips(x, other)[i]) == pytest.approx(wanted, abs=1e-12)
        again = sum(p[a] * p[b] * sum(u != v for u, v in zip(a, b, strict=True)) for a in p for b in p)
        assert float(encoding_randomness(x)[i]) == pytest.approx(again, abs=1e-12)
        assert float(paper_budget(x, other)[i]) == pytest.approx(abs(wanted - again), abs=1e-12)


def test_formulas_of_the_paper():
    """Equations 9, 20 and 21 as they are printed."""
    x, other = pair(False, 1)
    delta = other - x
    torch.testing.assert_close(encoding_randomness(x), 2 * (x * (1 - x)).sum(1))
    torch.testing.assert_close(independent_flips(x, other), (2 * x * (1 - x) + delta * (1 - 2 * x)).sum(1))
    torch.testing.assert_close(paper_budget(x, other), (delta * (1 - 2 * x)).sum(1).abs())
    s, t = pair(True, 2)
    plus, minus = lambda v: v.clamp_min(0), lambda v: (-v).clamp_min(0)
    printed = s.abs() + (1 - s.abs()) * t.abs() - plus(s) * plus(t) - minus(s) * minus(t)
    torch.testing.assert_close(independent_flips(s, t), printed.sum(1))
    mean = torch.full((3,), 0.4, dtype=torch.float64)
    torch.testing.assert_close(randomness_reduction(x, mean), encoding_randomness(x) / encoding_randomness(x - mean))


@pytest.mark.parametrize("signed", [False, True])
def test_coupled_flips_equal_the_integral_over_the_shared_uniform(signed):
    """Exact: between breakpoints of u both letters are constant."""
    x, other = pair(signed, 3)
    for i in range(len(x)):
        total = 0.0
        for a, b in zip(x[i].tolist(), other[i].tolist(), strict=True):
            cuts = sorted({0.0, abs(a), abs(b), 1.0})
            for low, high in pairwise(cuts):
                u = (low + high) / 2
                total += (high - low) * (np.sign(a) * (u < abs(a)) != np.sign(b) * (u < abs(b)))
        assert float(coupled_flips(x, other)[i]) == pytest.approx(total, abs=1e-12)


def test_no_coupling_flips_fewer():
    """Optimal transport between the two laws of a frame of two pixels, as a linear program."""
    x, other = pair(True, 4, 4, 2)
    words = list(product(LETTERS, repeat=2))
    cost = np.array([[sum(u != v for u, v in zip(a, b, strict=True)) for b in words] for a in words])
    n = len(words)
    rows = np.kron(np.eye(n), np.ones(n))
    columns = np.kron(np.ones(n), np.eye(n))
    for i in range(len(x)):
        p, q = (np.array([frame_law(r[i].tolist())[w] for w in words]) for r in (x, other))
        least = linprog(cost.ravel(), A_eq=np.vstack([rows, columns]), b_eq=np.r_[p, q], method="highs").fun
        assert float(coupled_flips(x, other)[i]) == pytest.approx(least, abs=1e-7)


def test_the_papers_budget_never_exceeds_the_coupling_distance_and_may_vanish():
    for signed in (False, True):
        x, other = pair(signed, 5, 500, 4)
        assert bool((paper_budget(x, other) <= coupled_flips(x, other) + 1e-12).all())
    x = torch.tensor([[0.2, 0.8]], dtype=torch.float64)
    other = x + 0.1  # one pixel becomes more random, the other less
    assert float(paper_budget(x, other)) == pytest.approx(0, abs=1e-12)
    assert float(coupled_flips(x, other)) == pytest.approx(0.2)


def test_random_signs_at_eight_grey_levels():
    """3072 uniform pixels, random signs at 8/255: about 94 coupled flips per frame, where the formula of the paper
    says about 2. Without clipping the first is 96.4 exactly; a pixel is cut with probability 8/255 by half of it."""
    generator = torch.Generator().manual_seed(6)
    x = torch.rand(200, 3072, generator=generator, dtype=torch.float64)
    sign = torch.randint(0, 2, x.shape, generator=generator, dtype=torch.float64) * 2 - 1
    other = (x + 8 / 255 * sign).clamp(0, 1)
    assert float(coupled_flips(x, other).mean()) == pytest.approx(3072 * 8 / 255 * (1 - 4 / 255), rel=1e-3)
    assert float(paper_budget(x, other).mean()) < 3


@pytest.mark.parametrize("bad", [torch.rand(2, 3) * 255, torch.ones(3), torch.ones(2, 3, dtype=torch.long), "x"])
def test_refusals(bad):
    with pytest.raises(ImagesError, match="rates"):
        encoding_randomness(bad)
    with pytest.raises(ImagesError, match="other"):
        coupled_flips(torch.rand(2, 3), torch.rand(2, 4))
