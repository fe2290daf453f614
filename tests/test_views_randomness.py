"""Randomness of data sets' codes against draws of the codes, enumeration of pixels and loops."""

import numpy as np
import pytest
import torch

from stochade.data import Images
from stochade.errors import DataError
from stochade.nn import BernoulliRate, SignedRate
from stochade.randomness import forked
from stochade.recipes import catalogue
from stochade.recipes.result import Reproduction
from stochade.recipes.views.randomness import BORDER, centring, cropped, falls, measured, promised, randomness
from stochade.recipes.views.randomness import signed_rates as rates_before_and_after

RECIPE = catalogue.load("mukhoty2025-randomness")


def images(n=30, channels=2, side=5, seed=0):
    rng = np.random.default_rng(seed)
    return Images(rng.random((n, channels, side, side), dtype=np.float32) ** 2, np.arange(n) % 3, "made", note="made")


def result(train):
    return Reproduction(RECIPE, "smoke", [], None, "", {"train": len(train)}, train=train, test=train)


def test_randomness_is_how_often_two_codes_differ():
    """2000 pairs of codes of every image; the mean of 30 images has a standard error near 0.01, 6 are allowed."""
    made = images()
    found = measured(made)
    x, _ = made[:]
    with forked(1):
        for encoder, told in ((BernoulliRate(4000), found.k1), (SignedRate(4000, found.mean.float()), found.k2)):
            codes = encoder(x)
            differ = (codes[:, ::2] != codes[:, 1::2]).flatten(2).sum(2).double()
            error = float(differ.std(1).pow(2).mean().sqrt()) / (2000 * 30) ** 0.5
            assert abs(float(differ.mean()) - told) < 6 * error
    rows = x.double().numpy()
    mean = rows.mean((0, 2, 3))[:, None, None]
    k1 = [2 * float((row * (1 - row)).sum()) for row in rows]
    away = [np.abs(row - mean) for row in rows]
    k2 = [2 * float((a * (1 - a)).sum()) for a in away]
    assert (found.k1, found.k2) == pytest.approx((np.mean(k1), np.mean(k2)))
    assert found.k3 == pytest.approx(np.mean(np.array(k1) / k2))
    assert found.size == 50
    assert found.deviation == pytest.approx(np.mean(away))


@pytest.mark.parametrize("per", ["channel", "pixel"])
def test_randomness_falls_where_the_condition_says_and_on_average_by_the_deviation(per):
    made = images()
    found = measured(made, per)
    assert found.k1 - found.k2 == pytest.approx(2 * found.size * (found.bound - found.deviation))
    x = made[:][0].double()
    a = (x - found.mean).abs()
    less = a * (1 - a) < x * (1 - x)
    assert found.reduced == pytest.approx(float(less.double().mean()))
    assert found.guaranteed == pytest.approx(float(((x >= found.mean / 2) & (x <= 0.5)).double().mean()))
    assert 0 < found.guaranteed < found.reduced < 1


def test_the_condition_holds_for_every_pixel_and_mean_in_thousandths():
    """Whole numbers, so that equality at the ends is exact: x and m in steps of 1/1000, with odd and even m."""
    x = np.arange(1001)
    for m in (0, 1, 2, 250, 333, 500, 501, 777, 999, 1000):
        a = np.abs(x - m)
        less = a * (1000 - a) < x * (1000 - x)
        got = falls(torch.tensor(x / 1000), torch.tensor(m / 1000)).numpy()
        exact = (m < 2 * x) & (2 * x < 1000 + m) & (0 < m < 1000)
        assert np.array_equal(less, exact)
        ends = (2 * x == m) | (2 * x == 1000 + m)
        assert np.array_equal(got[~ends], less[~ends])
        inside = promised(torch.tensor(x / 1000), torch.tensor(m / 1000)).numpy() & ~ends
        assert less[inside].all() or m == 1000
        assert inside.any() == (0 < m < 1000)
    assert falls(torch.tensor(0.6), torch.tensor(0.4))  # beyond what the paper gives
    assert not promised(torch.tensor(0.6), torch.tensor(0.4))


def test_a_mean_of_ratios_may_exceed_one_where_randomness_rises():
    """As for CIFAR-100 in the paper: grey images gain a lot, black and white ones lose more."""
    grey, ink = np.full((10, 1, 4, 4), 0.5, np.float32), np.zeros((10, 1, 4, 4), np.float32)
    ink[:, :, ::2] = 1.0
    ink[:, :, 0] = 0.98
    found = measured(Images(np.concatenate([grey, grey, ink, ink, ink]), np.zeros(50, np.int64)))
    assert found.k2 > found.k1
    assert found.bound < found.deviation
    assert found.k3 > 1


def test_crops_are_windows_of_the_image_in_black():
    x = torch.rand(40, 2, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.01
    made = cropped(x, np.random.default_rng(3))
    mirrored = set()
    for image, crop in zip(x, made, strict=True):
        wide = np.pad(image.numpy(), ((0, 0), (BORDER, BORDER), (BORDER, BORDER)))
        windows = [wide[:, i : i + 6, j : j + 6] for i in range(9) for j in range(9)]
        plain = any(np.array_equal(w, crop) for w in windows)
        flipped = any(np.array_equal(w[:, :, ::-1], crop) for w in windows)
        assert plain or flipped
        mirrored.add(flipped and not plain)
    assert mirrored == {True, False}
    assert not torch.equal(made, x)
    one = measured(images(side=6), "pixel", crops=True)
    assert one.k1 == measured(images(side=6), "pixel", crops=True).k1


def test_tables_and_curves_say_what_was_measured():
    made = images()
    r = result(made)
    (table,) = randomness(r)
    assert [row[1] for row in table.rows] == ["channel", "pixel"]
    for row, per in zip(table.rows, ("channel", "pixel"), strict=True):
        found = measured(made, per)
        assert [float(row[i]) for i in (4, 5)] == pytest.approx([found.k1, found.k2], abs=0.005)
        assert float(row[6]) == pytest.approx(found.k3, abs=5e-4)
    (rates,) = rates_before_and_after(r)
    x = made[:][0].double().numpy()
    moved = x - x.mean((0, 2, 3))[:, None, None]
    for row, values in zip(rates.rows, (x, moved), strict=True):
        told = [float(v) for v in row[1:]]
        expected = [values.mean(), values.std(), (2 * np.abs(values) * (1 - np.abs(values))).mean()]
        assert told == pytest.approx(expected, abs=6e-5)
    for trace in rates.data[1:]:
        assert sum(trace["y"]) == pytest.approx(1)
    at = dict(zip(rates.data[0]["x"], rates.data[0]["y"], strict=True))
    assert (at[0.5], at[-0.5], at[1.0], at[0.0]) == pytest.approx((0.5, 0.5, 0, 0))
    (curves,) = centring(r)
    mean = x.mean((0, 2, 3))
    for m, trace in zip(mean, curves.data, strict=True):
        for at_x, lost in zip(trace["x"], trace["y"], strict=True):
            away = abs(at_x - m)
            assert lost == pytest.approx(2 * at_x * (1 - at_x) - 2 * away * (1 - away), abs=1e-9)


def test_other_sets_stand_beside_where_they_are_at_hand(monkeypatch):
    asked = []

    def load(name, split, progress):
        asked.append((name, split))
        if name == "mnist":
            raise DataError("MNIST", "nothing")
        return images(8, 1, 4, 1) if name == "digits" else images(40, 3, 32, 2)

    monkeypatch.setattr("stochade.data.load", load)
    r = result(images(20))
    r.scale = "small"
    settings = RECIPE.scale["small"].model_copy(update={"train": 20})
    r.recipe = RECIPE.model_copy(update={"scale": {"small": settings}})
    (table,) = randomness(r)
    assert asked == [("cifar10", "train"), ("mnist", "train"), ("digits", "train")]
    assert [row[2] for row in table.rows] == ["50"] * 2 + ["3072"] * 3 + ["16"] * 2
    assert "Not at hand: mnist." in table.note
    wide = images(40, 3, 32, 2).take(20, seed=0)
    assert float(table.rows[4][4]) == pytest.approx(measured(wide, "pixel", crops=True).k1, abs=0.005)


def test_the_papers_table_stands_below():
    told = {(p.row, column): value for p in RECIPE.printed for column, value in p.values.items()}
    assert told["ImageNet-100", "k1(x)"] == 54701.22
    assert told["SVHN", "k3"] == 1.44
