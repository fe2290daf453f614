"""Image transformations against exact cases, and the gradient through them against finite differences."""

import pickle

import pytest
import torch
from torch import nn

from stochade.attacks import (
    PGD,
    Backprop,
    Brightness,
    Ensemble,
    Evolution,
    Linf,
    Rotate,
    Scale,
    Shift,
    Transforms,
    UniformJitter,
    cross_entropy,
    margin,
)
from stochade.attacks.transforms import rotated, scaled, shifted
from stochade.errors import BudgetError, GradientError, ImagesError
from stochade.models.known_answer import KnownAnswer, ThresholdedInput
from stochade.randomness import Stream

ALL = [Shift(2), Rotate(30), Scale(0.7, 1.4), Brightness(0.2), UniformJitter(0.1)]


def pictures(count: int = 4, shape: tuple = (2, 7, 9), dtype=torch.float32) -> torch.Tensor:
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


def stream(count: int = 4, seed: int = 0) -> Stream:
    return Stream(seed, torch.arange(count))


@pytest.mark.parametrize(
    ("transform", "tolerance"),
    [(Shift(0), 0), (Rotate(0), 1e-6), (Scale(1, 1), 1e-6), (Brightness(0), 0), (UniformJitter(0), 0)],
)
def test_nothing_is_done_at_zero(transform, tolerance):
    x = pictures()
    torch.testing.assert_close(transform(x, stream()), x, rtol=0, atol=tolerance)
    x = pictures(dtype=torch.float64)
    torch.testing.assert_close(transform(x, stream()), x, rtol=0, atol=tolerance * 1e-8)


def test_shifts_are_exact_and_black_outside():
    x = pictures(3)
    got = shifted(x, torch.tensor([2, -1, 0]), torch.tensor([-3, 1, 8]))
    wanted = torch.zeros_like(x)
    wanted[0, :, 2:, :-3] = x[0, :, :-2, 3:]
    wanted[1, :, :-1, 1:] = x[1, :, 1:, :-1]
    wanted[2, :, :, 8:] = x[2, :, :, :1]
    assert torch.equal(got, wanted)
    assert not shifted(x, torch.full((3,), 7), torch.zeros(3).long()).any()


def test_all_shifts_are_equally_likely():
    """Chi-square over the 25 shifts of 5000 images, below its 1 - 1e-4 quantile 58.6."""
    x = torch.zeros(5000, 1, 5, 5)
    x[:, 0, 2, 2] = 1
    counts = Shift(2)(x, stream(5000)).sum((0, 1)).flatten()
    assert counts.sum() == 5000
    assert float(((counts - 200) ** 2 / 200).sum()) < 58.6


@pytest.mark.parametrize("shape", [(1, 6, 6), (3, 7, 7)])
def test_quarter_turns_are_exact(shape):
    x = pictures(3, shape)
    got = rotated(x, torch.tensor([1.0, 2.0, -1.0]) * torch.pi / 2)
    wanted = torch.stack([torch.rot90(image, k, (1, 2)) for image, k in zip(x, (1, 2, -1), strict=True)])
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5)


def test_turns_keep_lengths_on_images_that_are_not_square():
    """A point three columns right of the centre of a 9 x 21 image is three rows above it after a quarter turn."""
    x = torch.zeros(1, 1, 9, 21)
    x[0, 0, 4, 13] = 1
    wanted = torch.zeros_like(x)
    wanted[0, 0, 1, 10] = 1
    torch.testing.assert_close(rotated(x, torch.tensor([torch.pi / 2])), wanted, rtol=0, atol=1e-5)


def test_zooms_are_about_the_centre():
    """Twice as large: what was k pixels from the centre is 2k away; half as large: the other way, black outside."""
    x = pictures(2, (1, 9, 13))
    got = scaled(x, torch.tensor([2.0, 0.5]))
    torch.testing.assert_close(got[0, 0, ::2, ::2], x[0, 0, 2:7, 3:10], rtol=0, atol=1e-5)
    torch.testing.assert_close(got[1, 0, 3:6, 4:9], x[1, 0, 2:7:2, 2:11:2], rtol=0, atol=1e-5)
    assert not got[1, 0, :1].any()


def test_parameters_fill_their_range():
    """Extremes of 4000 draws lie within 0.5 % of the ends (chance of a miss: 4e-9 each)."""
    x = torch.full((4000, 1, 1, 1), 0.5)
    for transform, low, high in ((Brightness(0.3), 0.2, 0.8), (UniformJitter(0.3), 0.2, 0.8)):
        got = transform(x, stream(4000))
        assert float(got.min()) == pytest.approx(low, abs=0.003)
        assert float(got.max()) == pytest.approx(high, abs=0.003)
        assert float(got.mean()) == pytest.approx(0.5, abs=0.02)
    for transform in (Brightness(0.9), UniformJitter(0.9)):  # clipped to the box
        got = transform(x, stream(4000))
        assert (float(got.min()), float(got.max())) == (0, 1)
    image = torch.full((2, 1, 3, 3), 0.5)
    assert all(len(row.unique()) == 1 for row in Brightness(0.3)(image, stream(2)))  # one number per image
    assert all(len(row.unique()) == 9 for row in UniformJitter(0.3)(image, stream(2)))


def test_turns_and_zooms_fill_their_range():
    """A point four columns from the centre: its centre of mass moves by 4 sin(angle) rows, and 4 times the factor in
    columns (bilinear weights keep first moments; what is left of discretisation is below 3 %)."""
    x = torch.zeros(2000, 1, 13, 13)
    x[:, 0, 6, 10] = 1
    offsets = torch.arange(13.0) - 6
    rows = (Rotate(20)(x, stream(2000)) * offsets[:, None]).sum((1, 2, 3))
    rows = rows / Rotate(20)(x, stream(2000)).sum((1, 2, 3))
    wanted = 4 * float(torch.tensor(20.0).deg2rad().sin())
    assert float(rows.max()) == pytest.approx(wanted, rel=0.05)
    assert float(rows.min()) == pytest.approx(-wanted, rel=0.05)
    zoomed = Scale(0.7, 1.3)(x, stream(2000))
    columns = (zoomed * offsets).sum((1, 2, 3)) / zoomed.sum((1, 2, 3))
    assert float(columns.min()) == pytest.approx(2.8, rel=0.1)
    assert float(columns.max()) == pytest.approx(5.2, rel=0.1)


def test_transformations_follow_each_other():
    model, x, y = KnownAnswer(torch.ones(4)), torch.rand(2, 1, 2, 2), torch.zeros(2).long()
    got = Transforms(Backprop(), [lambda x, s: x / 2, lambda x, s: x + 0.1])(model, x, y, margin, stream=stream(2))
    torch.testing.assert_close(got.value, margin(model(x / 2 + 0.1), y).detach())
    torch.testing.assert_close(got.gradient, torch.full_like(x, 0.5))


@pytest.mark.parametrize("transform", ALL, ids=lambda t: type(t).__name__)
def test_an_image_is_transformed_the_same_in_any_company(transform):
    x, some = pictures(), torch.tensor([3, 1])
    together = transform(x, stream())
    assert torch.equal(transform(x[some], Stream(0, some)), together[some])
    assert not torch.equal(transform(x, stream(seed=1)), together)


class Smooth(nn.Module):
    scope = "none"

    def __init__(self, pixels: int):
        super().__init__()
        g = torch.Generator().manual_seed(1)
        self.first = torch.randn(pixels, 8, generator=g, dtype=torch.float64) / pixels**0.5
        self.second = torch.randn(8, 3, generator=g, dtype=torch.float64)

    def forward(self, x):
        return (x.flatten(1) @ self.first).tanh() @ self.second


@pytest.mark.parametrize("transforms", [*ALL, ALL], ids=lambda t: type(t).__name__)
def test_the_gradient_is_that_of_the_mean_over_transformed_images(transforms):
    """Central differences of the pass's own value along 20 random directions, the same transformations each time."""
    x, y = 0.3 + 0.4 * pictures(dtype=torch.float64), torch.tensor([0, 1, 2, 0])
    gradient, model = Transforms(Backprop(), transforms, draws=3), Smooth(2 * 7 * 9)

    def value(at: torch.Tensor) -> torch.Tensor:
        return gradient(model, at, y, cross_entropy, stream=stream()).value

    slope = gradient(model, x, y, cross_entropy, stream=stream()).gradient
    for k in range(20):
        u = torch.randn(x.shape, generator=torch.Generator().manual_seed(k), dtype=torch.float64)
        numeric = (value(x + 1e-6 * u) - value(x - 1e-6 * u)) / 2e-6
        torch.testing.assert_close((slope * u).flatten(1).sum(1), numeric, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("inner", [Backprop(), Evolution(3), Ensemble([Backprop(), Evolution(2)])])
def test_neither_batch_mates_nor_tiles_matter(inner):
    x, y, some = pictures(5), torch.tensor([0, 1, 1, 0, 1]), torch.tensor([4, 2])
    model = KnownAnswer(torch.randn(126, generator=torch.Generator().manual_seed(2)))
    gradient = Transforms(inner, [Rotate(40), Shift(1)], draws=7)
    got = gradient(model, x, y, cross_entropy, stream=stream(5))
    few = gradient(model, x[some], y[some], cross_entropy, stream=Stream(0, some))
    torch.testing.assert_close(few.gradient, got.gradient[some], rtol=1e-3, atol=1e-5)
    for tile in (1, 11):
        tiled = Transforms(inner, [Rotate(40), Shift(1)], draws=7, tile=tile)
        other = tiled(model, x, y, cross_entropy, stream=stream(5))
        torch.testing.assert_close(other[:3], got[:3], rtol=1e-3, atol=1e-5)
    assert got.logits.shape == (7, 5, 2)
    assert (
        got.spent[:, 0].tolist()
        == [gradient.forwards, gradient.backwards]
        == [7 * inner.forwards, 7 * inner.backwards]
    )
    again = stream(5)
    first, second = (gradient(model, x, y, cross_entropy, stream=again) for _ in range(2))
    assert not torch.equal(first.gradient, second.gradient)


def test_other_backwards_compose_and_nobody_leaves():
    model, x, y = ThresholdedInput(torch.ones(16)), pictures(4, (1, 4, 4)), torch.zeros(4).long()
    assert not Transforms(Backprop(), Shift(1))(model, x, y, margin, stream=stream()).gradient.any()
    assert Transforms(Backprop(1, "ste"), Shift(1))(model, x, y, margin, stream=stream()).gradient.any()
    relaxed = Transforms(Backprop(1, relaxed="warm"), Shift(1))
    assert relaxed.relaxed == "warm"
    assert relaxed(model, x, y, margin, stream=stream()).gradient.any()
    attack = PGD(Linf(1.0), steps=3, gradient=Transforms(Backprop(1, "ste"), Shift(1), draws=2))
    assert attack.run(model, x, y).backwards.tolist() == [6] * 4


def test_an_attack_over_turns_survives_turns():
    """A linear model on a 13 x 13 noise pattern w. Over turns t the mean margin of a change d is <E[t'(w)], d>, so
    the worst change is -eps sign E[t'(w)] and its effect, eps |E[t'(w)]|_1, is the bound. The attack over turns comes
    within 5 % of it on turns that it has not seen. The plain one keeps less than half of the effect that it has on
    images as they are, and has less than 0.9 of the other's."""
    g, eps, count = torch.Generator().manual_seed(5), 0.02, 40
    model = KnownAnswer(torch.randn(169, generator=g))
    x, y = 0.3 + 0.4 * torch.rand(count, 1, 13, 13, generator=g), torch.ones(count).long()
    turned = Transforms(Backprop(), Rotate(30), draws=2000)
    mean_slope = turned(model, x[:1], y[:1], margin, stream=Stream(99, torch.tensor([0]))).gradient
    bound = eps * float(mean_slope.abs().sum())

    def effect(images: torch.Tensor) -> float:
        def value(at):
            return Transforms(Backprop(), Rotate(30), 50)(model, at, y, margin, stream=stream(count, 7)).value.mean()

        return float(value(images) - value(x))

    parts = {"steps": 10, "drop_fooled": False, "random_start": False, "objective": margin, "keep": "last"}
    plain = PGD(eps, **parts)(model, x, y)
    robust = PGD(eps, gradient=Transforms(Backprop(), Rotate(30), draws=100), **parts)(model, x, y)
    assert 0.95 * bound < effect(robust) < 1.02 * bound
    assert effect(plain) < 0.5 * eps * float(model.weight.detach().abs().sum())
    assert effect(plain) < 0.9 * effect(robust)


def test_it_travels():
    gradient = Transforms(Evolution(2), ALL, 3)
    assert pickle.loads(pickle.dumps(gradient)) == gradient
    assert (gradient.forwards, gradient.backwards) == (15, 0)
    assert Transforms(Backprop(), Rotate(10)) == Transforms(Backprop(), [Rotate(10)])


@pytest.mark.parametrize(
    "build",
    [
        lambda: Shift(-1), lambda: Shift(1.5), lambda: Rotate(-1), lambda: Rotate(181), lambda: Rotate(float("nan")),
        lambda: Scale(0, 1), lambda: Scale(1.2, 0.8), lambda: Scale(0.5, float("inf")), lambda: Scale("a", 1),
        lambda: Brightness(1.5), lambda: Brightness(True), lambda: UniformJitter(-0.1), lambda: UniformJitter(None),
        lambda: Transforms(Backprop(), []), lambda: Transforms(Backprop()), lambda: Transforms(Backprop(), "turn"),
        lambda: Transforms(Backprop(), [Rotate(1), None]), lambda: Transforms(Rotate, Rotate(1)),
        lambda: Transforms(Backprop(), Rotate(1), draws=0), lambda: Transforms(Backprop(), Rotate(1), tile=0),
        lambda: Transforms(Backprop(), Rotate(1))(nn.Identity(), pictures(), torch.zeros(4).long(), margin),
    ],
)  # fmt: skip
def test_parts_that_make_no_sense_are_named(build):
    with pytest.raises(BudgetError):
        build()


def test_flat_inputs_and_lost_graphs_are_named():
    model, y = KnownAnswer(torch.ones(9)), torch.zeros(2).long()
    with pytest.raises(ImagesError):
        Transforms(Backprop(), Rotate(5))(model, torch.rand(2, 9), y, margin, stream=stream(2))
    with pytest.raises(GradientError):
        Transforms(Backprop(), lambda x, s: x.detach())(model, torch.rand(2, 1, 3, 3), y, margin, stream=stream(2))
    got = Transforms(Backprop(), Brightness(0.1))(model, torch.rand(2, 9), y, margin, stream=stream(2))
    assert got.gradient.shape == (2, 9)
