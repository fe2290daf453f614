"""Thresholds folded through batch norm, ReLU and scales are those of the chain itself, in rational arithmetic; the
bounds of sums over boxes and sparse changes are those of enumeration."""

import itertools
import random
from fractions import Fraction

import numpy as np
import pytest
import torch
from scipy import sparse
from torch import nn

from stochade.certify.exact_fold import Cut, Norm, Relu, fold, square_root
from stochade.certify.intervals import Base, State, bounds

ONE = np.zeros(1, dtype=np.int64)


def value_of(chain, z):
    """The chain at a rational number, where every square root is rational."""
    for op in chain:
        if isinstance(op, Relu):
            z = max(z, Fraction(0))
        else:
            gamma, mean, q, beta = op.table[0]
            root = square_root(q)
            assert root[0] == root[1]
            z = gamma * (z - mean) / root[0] + beta
    return z


def some_chain(draw):
    chain = []
    for _ in range(draw.randint(0, 4)):
        if draw.random() < 0.4:
            chain.append(Relu())
            continue
        gamma, mean, beta = (Fraction(draw.randint(-3, 3), draw.choice([1, 2])) for _ in range(3))
        chain.append(Norm(((gamma, mean, Fraction(draw.choice([1, 4, 9])), beta),), ONE))
    return tuple(chain)


@pytest.mark.parametrize("strict", [False, True])
def test_integer_thresholds_are_those_of_the_chain(strict):
    """Without rounding (unit 0) an integer is high exactly where the chain says so; 600 random chains."""
    draw = random.Random(f"fold {strict}")
    for _ in range(600):
        chain, threshold = some_chain(draw), Fraction(draw.randint(-4, 4), 2)
        cuts = fold(Cut(threshold, threshold, strict), chain, 1, Fraction(0))
        for z in range(-12, 13):
            value = value_of(chain, Fraction(z))
            high = value > threshold if strict else value >= threshold
            u = cuts.direction[0] * z
            assert (u >= cuts.first[0]) == high
            assert (u <= cuts.last[0]) == (not high)


def test_bands_hold_every_value_between_their_ends():
    """A step that may go either way between `low` and `high` stays so through the chain; 600 random chains."""
    draw = random.Random("band")
    for _ in range(600):
        chain, low = some_chain(draw), Fraction(draw.randint(-4, 4), 2)
        high = low + Fraction(draw.randint(1, 3), 2)
        cuts = fold(Cut(low, high), chain, 1, Fraction(0))
        for z in range(-12, 13):
            value, u = value_of(chain, Fraction(z)), cuts.direction[0] * z
            assert (u >= cuts.first[0]) == (value >= low)
            assert (u <= cuts.last[0]) == (value <= high)


def test_irrational_roots_are_enclosed():
    low, high = square_root(Fraction(2))
    assert low * low < 2 < high * high
    assert high - low < Fraction(1, 1 << 200)
    assert square_root(Fraction(9, 4)) == (Fraction(3, 2), Fraction(3, 2))
    assert square_root(Fraction(1, 9)) == (Fraction(1, 3), Fraction(1, 3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_float_batch_norm_turns_its_sign_only_inside_the_band(dtype):
    """At thresholds that hang on rounding, the module's own sign is one that the band allows: 40 layers of 64."""
    unit = Fraction(torch.finfo(dtype).eps) / 2
    generator = torch.Generator().manual_seed(5)
    hits = 0
    for _ in range(40):
        layer = nn.BatchNorm1d(64, dtype=dtype).eval()
        with torch.no_grad():
            layer.weight.normal_(generator=generator)
            layer.running_var.uniform_(0.1, 3, generator=generator)
            layer.running_mean.copy_(torch.randint(-20, 20, (64,), generator=generator))
            layer.bias.normal_(generator=generator)
            z = torch.randint(-20, 20, (64,), generator=generator).to(dtype)
            root = (layer.running_var + layer.eps).sqrt()
            layer.bias.copy_(
                -layer.weight * (z - layer.running_mean) / root
            )  # the threshold falls on z, up to rounding
            out = layer(z[None])[0]
        numbers = (layer.weight, layer.running_mean, layer.running_var, layer.bias)
        table = tuple(
            (Fraction(g), Fraction(m), Fraction(v) + Fraction(layer.eps), Fraction(b))
            for g, m, v, b in zip(*(t.tolist() for t in numbers), strict=True)
        )
        cuts = fold(Cut(Fraction(0), Fraction(0)), (Norm(table, np.arange(64)),), 64, unit)
        u = cuts.direction * z.double().numpy()
        high = out.numpy() >= 0
        assert (u[high] >= cuts.first[high]).all()
        assert (u[~high] <= cuts.last[~high]).all()
        exact = fold(Cut(Fraction(0), Fraction(0)), (Norm(table, np.arange(64)),), 64, Fraction(0))
        hits += int(((u >= exact.first) != high).sum())
        assert (cuts.high - cuts.low <= 1e4 * float(unit)).all()
    assert hits > 100  # the float layer does differ from real arithmetic here, so the band is needed


def test_exact_zeros_have_no_band():
    table = ((Fraction(-2), Fraction(0), Fraction(1) + Fraction(1e-5), Fraction(0)),)
    cuts = fold(Cut(Fraction(0), Fraction(0)), (Norm(table, ONE),), 1, Fraction(2) ** -24)
    assert (cuts.low[0], cuts.high[0], cuts.first[0], cuts.last[0], cuts.direction[0]) == (0, 0, 0, -1, -1)


def state_of(matrix, shift, base):
    return State(sparse.csr_array(matrix), shift, np.zeros(len(shift)), base, (len(shift),))


@pytest.mark.parametrize("seed", range(10))
def test_bounds_of_sparse_changes_equal_enumeration(seed):
    """At most k groups leave their place, each anywhere in its bounds: extremes are at corners; all are tried."""
    r = np.random.default_rng(seed)
    groups = np.array([0, 1, 2, 0, 1, 3])
    low, center, high = np.sort(r.random((3, 6)), axis=0)
    matrix, shift = r.normal(size=(4, 6)) * (r.random((4, 6)) < 0.7), r.normal(size=4)
    for budget in (0, 1, 2, 4):
        values = []
        for chosen in itertools.combinations(range(4), budget):
            free = np.isin(groups, chosen)
            corners = itertools.product(*[(l, h) if f else (c,) for l, c, h, f in zip(low, center, high, free)])  # noqa: B905, E741
            values += [matrix @ np.array(corner) + shift for corner in corners]
        got = bounds(state_of(matrix, shift, Base(np.arange(6), low, high, center, groups, budget)))
        np.testing.assert_allclose(got[0], np.min(values, 0), atol=1e-10)
        np.testing.assert_allclose(got[1], np.max(values, 0), atol=1e-10)
        assert (got[0] <= np.min(values, 0)).all()
        assert (got[1] >= np.max(values, 0)).all()
    corners = [matrix @ np.array(c) + shift for c in itertools.product(*zip(low, high, strict=True))]
    got = bounds(state_of(matrix, shift, Base(np.arange(6), low, high)))
    np.testing.assert_allclose(got, [np.min(corners, 0), np.max(corners, 0)], atol=1e-10)
