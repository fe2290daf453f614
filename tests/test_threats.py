"""Threats against linear programs, duals, brute force and Dykstra's projections; properties by hypothesis."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import oracles
from stochade.attacks import L0, L1, L2, Linf, parse_threat
from stochade.errors import BudgetError
from stochade.randomness import Stream

BUDGETS = [
    *[(Linf, e) for e in (0, 0.1, 0.4, 1, math.inf)],
    *[(L2, e) for e in (0, 0.05, 0.3, 0.9, 1.5, math.inf)],
    *[(L1, e) for e in (0, 0.1, 0.8, 2.0, 4.0, math.inf)],
    *[(L0, e) for e in (0, 1, 3, 6, math.inf)],
]
quick = settings(max_examples=60, deadline=None, derandomize=True, database=None)


def images(count: int, seed: int = 0) -> torch.Tensor:
    """Images of 6 pixels, a third of the pixels exactly 0 or 1."""
    u = torch.rand(count, 1, 2, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (1.5 * u - 0.25).clamp(0, 1)


def normal(like: torch.Tensor, seed: int) -> torch.Tensor:
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(seed), dtype=like.dtype)


def stream(count: int, seed: int = 0) -> Stream:
    return Stream(seed, torch.arange(count))


@pytest.mark.parametrize(("kind", "eps"), BUDGETS)
@pytest.mark.parametrize("spread", [0.2, 1.0, 5.0])
def test_projection_is_the_nearest_point(kind, eps, spread):
    x0 = images(12)
    v = x0 + spread * normal(x0, 1)
    found = kind(eps).project(v, x0)
    for i in range(len(x0)):
        wanted = oracles.nearest(v[i].flatten().numpy(), x0[i].flatten().numpy(), kind.name, eps)
        np.testing.assert_allclose(found[i].flatten().numpy(), wanted, atol=1e-6)


@pytest.mark.parametrize(("kind", "eps"), [(L2, 0.9), (L1, 2.0)])
def test_projection_cases_include_ball_and_box_both_active(kind, eps):
    x0 = images(12)
    z = kind(eps).project(x0 + normal(x0, 1), x0)
    v = x0 + normal(x0, 1)
    at_ball = kind(eps).distance(z, x0) > eps * (1 - 1e-6)
    at_box = (((z == 0) & (v < 0)) | ((z == 1) & (v > 1))).flatten(1).any(1)
    assert (at_ball & at_box).sum() >= 3


@pytest.mark.parametrize(("kind", "eps"), BUDGETS)
@pytest.mark.parametrize("from_inside", [False, True])
def test_whole_step_is_the_worst_case_of_a_linear_model(kind, eps, from_inside):
    x0 = images(12)
    threat, g = kind(eps), normal(x0, 2)
    g[0, 0, 0, 0] = 0.0
    x = threat.start(x0, stream(len(x0))) if from_inside else x0
    z = x + threat.steepest(g, x, x0)
    assert float(z.min()) >= 0
    assert float(z.max()) <= 1
    for i in range(len(x0)):
        gain = float((g[i] * (z[i] - x0[i])).sum())
        wanted = oracles.worst_gain(g[i].numpy(), x0[i].numpy(), kind.name, eps)
        assert gain == pytest.approx(wanted, abs=1e-7)
        assert oracles.length((z[i] - x0[i]).numpy(), kind.name) <= eps * (1 + 1e-9) + 1e-12


@pytest.mark.parametrize("kind", [Linf, L2, L1, L0])
def test_gradients_of_any_size_move_as_far(kind):
    """Squares of 1e-25 and 1e25 leave float32; the direction must survive."""
    x0 = images(4).float() * 0.2 + 0.4
    g = normal(x0, 3)
    threat = kind(1.0)
    for size in (None, 0.25 if kind is not L0 else 1.0):
        reference = threat.steepest(g, x0, x0, size)
        assert float(reference.abs().amax()) > 0
        for scale in (1e-25, 1e25):
            torch.testing.assert_close(threat.steepest(g * scale, x0, x0, size), reference, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", [Linf, L2, L1, L0])
def test_zero_gradient_moves_nothing(kind):
    x0 = images(3)
    for size in (None, 1.0):
        assert torch.equal(kind(1.0).steepest(torch.zeros_like(x0), x0, x0, size), torch.zeros_like(x0))
    if kind in (Linf, L2, L1):  # l0 starts anew in every step
        x = kind(1.0).start(x0, stream(3))
        torch.testing.assert_close(kind(1.0).move(torch.zeros_like(x0), x, x0, 0.5), x)


kinds = st.sampled_from([Linf, L2, L1, L0])
budgets = st.one_of(st.just(0.0), st.floats(1e-3, 4.0), st.just(math.inf))


def threat_of(kind, eps):
    if math.isfinite(eps):
        eps = float(round(eps)) if kind is L0 else min(eps, 1.0) if kind is Linf else eps
    return kind(eps)


@quick
@given(kinds, budgets, st.integers(0, 10**6), st.sampled_from([torch.float32, torch.float64]))
def test_projection_is_feasible_and_idempotent(kind, eps, seed, dtype):
    threat, x0 = threat_of(kind, eps), images(5, seed).to(dtype)
    z = threat.project(x0 + 2 * normal(x0, seed), x0)
    assert z.dtype == dtype
    assert float(z.min()) >= 0
    assert float(z.max()) <= 1
    assert bool((threat.distance(z, x0) <= threat.eps * (1 + 1e-5) + 1e-6).all())
    torch.testing.assert_close(threat.project(z, x0), z, atol=2e-6, rtol=0)


@quick
@given(kinds, budgets, st.integers(0, 10**6))
def test_no_feasible_point_beats_steepest(kind, eps, seed):
    threat, x0 = threat_of(kind, eps), images(5, seed)
    g = normal(x0, seed + 1)
    best = (g * threat.steepest(g, x0)).flatten(1).sum(1)
    rival = threat.project(x0 + normal(x0, seed + 2), x0)
    for other in (rival, threat.start(x0, stream(5, seed)), threat.project(x0 + 10 * g, x0)):
        assert bool((best >= (g * (other - x0)).flatten(1).sum(1) - 1e-7).all())


@quick
@given(kinds, budgets, st.integers(0, 10**6), st.floats(0.01, 2.0))
def test_a_step_is_feasible_and_ascends(kind, eps, seed, size):
    threat, x0 = threat_of(kind, eps), images(5, seed)
    g = normal(x0, seed + 1)
    x = threat.start(x0, stream(5, seed))
    z = threat.move(g, x, x0, size)  # x + steepest(...) would round, which L0 counts
    assert bool((threat.distance(z, x0) <= threat.eps * (1 + 1e-5) + 1e-6).all())
    assert float(z.min()) >= -1e-12
    assert float(z.max()) <= 1 + 1e-12
    if kind in (Linf, L2):  # a projected gradient step never loses on a linear objective
        assert bool(((g * (z - x)).flatten(1).sum(1) >= -1e-7).all())


@pytest.mark.parametrize(("kind", "eps"), BUDGETS)
def test_starts_are_feasible_and_differ_between_examples(kind, eps):
    x0 = images(1).expand(20, 1, 2, 3).clone() * 0.5 + 0.25
    z = kind(eps).start(x0, stream(20))
    assert bool((kind(eps).distance(z, x0) <= eps * (1 + 1e-6) + 1e-9).all())
    assert 0 <= float(z.min()) <= float(z.max()) <= 1
    if eps > 0:
        assert len(torch.unique(z.flatten(1), dim=0)) == 20


def test_linf_start_is_uniform_in_the_interval():
    """Kolmogorov-Smirnov at level 1e-4, fixed seed."""
    from scipy.stats import kstest

    x0 = torch.full((2000, 1, 1, 1), 0.5, dtype=torch.float64)
    z = Linf(0.2).start(x0, stream(2000)).flatten().numpy()
    assert kstest(z, "uniform", args=(0.3, 0.4)).pvalue > 1e-4


@pytest.mark.parametrize(("kind", "power"), [(L2, 6), (L1, 6)])
def test_ball_starts_fill_the_volume(kind, power):
    """Uniform in a ball of dimension 6: (r / eps)^6 is uniform. KS at level 1e-4, fixed seed; the box is far."""
    from scipy.stats import kstest

    x0 = torch.full((2000, 1, 2, 3), 0.5, dtype=torch.float64)
    z = kind(0.3).start(x0, stream(2000))
    assert kstest(((kind(0.3).distance(z, x0) / 0.3) ** power).numpy(), "uniform").pvalue > 1e-4


@pytest.mark.parametrize("kind", [Linf, L2, L1, L0])
def test_distance_is_the_norm(kind):
    x0, x = images(5), images(5, 1)
    wanted = [oracles.length((x[i] - x0[i]).numpy(), kind.name) for i in range(5)]
    np.testing.assert_allclose(kind(1).distance(x, x0).numpy(), wanted, rtol=1e-12)


def test_pixel_budget_counts_positions_over_all_channels():
    x0 = torch.full((1, 3, 2, 2), 0.5)
    g = torch.arange(12.0).view(1, 3, 2, 2)
    z = x0 + L0(1, "pixel").steepest(g, x0)
    assert (z != x0).sum() == 3
    assert bool((z[0, :, 1, 1] == 1).all())
    assert float(L0(1, "pixel").distance(z, x0)) == 1
    assert float(L0(1).distance(z, x0)) == 3


def test_containment():
    assert Linf(0.3).contains(Linf(0.1))
    assert not Linf(0.1).contains(Linf(0.3))
    assert not L2(1.0).contains(Linf(0.01))
    assert L0(3, "pixel").contains(L0(3))
    assert not L0(3).contains(L0(3, "pixel"))


@pytest.mark.parametrize("eps", [-0.1, math.nan, "0.3", None, True, -math.inf, torch.tensor(0.3)])
@pytest.mark.parametrize("kind", [Linf, L2, L1, L0])
def test_budgets_that_make_no_sense_are_refused(kind, eps):
    with pytest.raises(BudgetError):
        kind(eps)


@pytest.mark.parametrize("eps", [8, 1.0001, 255.0])
def test_grey_levels_are_not_taken_for_fractions(eps):
    with pytest.raises(BudgetError, match=rf"for {eps:g} grey levels of 255 write {eps:g}/255$"):
        Linf(eps)
    with pytest.raises(BudgetError):
        Linf(0.3).resized(eps)
    assert (Linf(1).eps, Linf(math.inf).eps, L2(8).eps) == (1.0, math.inf, 8.0)


def test_l0_needs_a_whole_number():
    with pytest.raises(BudgetError, match="whole"):
        L0(1.5)
    with pytest.raises(BudgetError, match="per"):
        L0(1, per="channel")


@pytest.mark.parametrize(
    ("text", "threat"),
    [
        ("linf=0.3", Linf(0.3)),
        ("linf 8/255", Linf(8 / 255)),
        ("L2:1.5", L2(1.5)),
        ("l0=10", L0(10)),
        ("l1 inf", L1(math.inf)),
    ],
)
def test_parse_threat(text, threat):
    assert parse_threat(text) == threat


@pytest.mark.parametrize("text", ["", "linf", "l3=1", "linf=a", "linf=1/0", "linf=-1", "linf=nan"])
def test_parse_threat_refuses(text):
    with pytest.raises(BudgetError):
        parse_threat(text)
