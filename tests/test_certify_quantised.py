"""Deterministic l1 certificates against enumeration: every quantised image, every split, random base classifiers."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from stochade.certify import certify
from stochade.certify.quantised import Splitting, certify_quantised, majority
from stochade.errors import BudgetError, ImagesError, ModelError


class Table(nn.Module):
    """A random class for every split image of d pixels with q levels, with a slope so that some votes are clear."""

    scope = "none"

    def __init__(self, rng, d, levels, classes, slope):
        super().__init__()
        self.grid, cells = 4 * levels, 4 * levels + 1
        self.powers = nn.Parameter(torch.tensor([cells**i for i in range(d)]), requires_grad=False)
        total = np.indices((cells,) * d).sum(0).T.ravel() / (d * self.grid) - 0.5
        slopes = slope * np.linspace(-1, 1, classes)
        logits = rng.normal(size=(cells**d, classes)) + total[:, None] * slopes
        self.table = nn.Parameter(torch.as_tensor(logits, dtype=torch.float32))

    def forward(self, x):
        cells = (x.flatten(1).double() * self.grid).round().long()
        return self.table[(cells * self.powers).sum(1)]


def every_image(d, levels):
    return torch.tensor(list(itertools.product(range(levels + 1), repeat=d)), dtype=torch.float32) / levels


def check(cases, seed):
    rng, reached, tight = np.random.default_rng(seed), 0, 0
    for _ in range(cases):
        d, levels, classes = int(rng.integers(1, 4)), int(rng.integers(2, 5)), int(rng.integers(2, 4))
        splitting = Splitting(int(rng.integers(1, 2 * levels + 3)), levels, int(rng.integers(1000)))
        model = Table(rng, d, levels, classes, float(rng.choice([0, 3, 12])))
        images = every_image(d, levels)
        if len(images) > 30:
            images = images[torch.as_tensor(rng.choice(len(images), 30, replace=False))]
        found = certify_quantised(model, images.view(-1, 1, 1, d), splitting, batch=int(rng.integers(1, 9)))
        answers = torch.tensor([one.prediction for one in found])
        distance = (images.unsqueeze(0) - images.unsqueeze(1)).abs().sum(2)  # floats, as a caller would compute it
        radii = torch.tensor([one.radius for one in found]).unsqueeze(1)
        kept = answers.unsqueeze(0) == answers.unsqueeze(1)
        inside = distance < radii
        assert bool(kept[inside].all())
        reached += int((inside & (distance > 0)).sum())
        tight += int((~kept & (distance < radii + 1 / levels)).sum())
    assert reached > cases
    assert tight > cases / 5  # one level more and classes do change


def test_no_image_within_the_radius_has_another_class():
    check(40, 0)


@pytest.mark.slow
def test_no_image_within_the_radius_has_another_class_in_ten_thousand_images():
    check(500, 1)


@pytest.mark.parametrize(("levels", "n"), [(4, 1), (4, 3), (4, 4), (5, 7), (3, 12)])
def test_views_change_with_just_so_many_offsets_as_levels(levels, n):
    """min(a, n) of the n splits tell two values a levels apart, wherever they lie."""
    splitting, values = Splitting(n, levels, 3), every_image(1, levels)
    views = torch.stack([splitting.view(values, torch.full((levels + 1,), o)) for o in range(n)])[:, :, 0]
    for a, b in itertools.product(range(levels + 1), repeat=2):
        assert int((views[:, a] != views[:, b]).sum()) == min(abs(a - b), n)


def test_views_are_those_of_the_paper():
    """For 2 lambda = n/q >= 1: half the sum of 1[x > s] and min(s, 1); else the middle of the interval, found by
    walking over the thresholds."""
    x = torch.rand(3, 1, 2, 4, generator=torch.Generator().manual_seed(0)).mul(7).round() / 7
    for n in (2, 3, 5, 7, 9, 20):
        splitting = Splitting(n, 7, 1)
        places = splitting.places((1, 2, 4))
        for offset in range(n):
            s = ((places + offset) % n + 0.5) / 7
            view = splitting.view(x, torch.full((3,), offset))
            if n >= 7:
                assert torch.allclose(view, ((x > s).float() + s.clamp(max=1)) / 2)
                continue
            for value, start, shown in zip(
                x.flatten().tolist(), s.repeat(3, 1, 1, 1).flatten().tolist(), view.flatten().tolist(), strict=True
            ):
                walls = [start + k * n / 7 for k in range(-8, 9)]
                low = max(0.0, max(w for w in walls if w < value))
                high = min(1.0, min(w for w in walls if w > value))
                assert shown == pytest.approx((low + high) / 2, abs=1e-6)


def test_every_row_has_its_own_offset_and_every_pixel_its_own_place():
    splitting = Splitting(10, 9, 5)
    x = torch.full((10, 1, 3, 3), 4 / 9)
    views = splitting.view(x, torch.arange(10))
    assert len({tuple(row.flatten().tolist()) for row in views}) == 10
    assert len(set(views[0].flatten().tolist())) > 3
    assert torch.equal(splitting.view(x[:1], torch.tensor([7]))[0], views[7])
    assert not torch.equal(Splitting(10, 9, 6).places((3, 3)), splitting.places((3, 3)))
    assert torch.equal(splitting.view(x, torch.arange(10) + 10), views)


def test_majority_counts_the_votes_that_may_change():
    for votes in itertools.product(range(7), repeat=3):
        if not sum(votes):
            continue
        top, safe = majority(votes)
        assert top == int(np.argmax(votes))
        for other in range(3):
            if other == top:
                continue
            for moved in (safe, safe + 1):
                changed = list(votes)
                taken = min(moved, votes[top])  # then from a third class
                changed[top] -= taken
                changed[other] += taken
                if moved == safe:
                    assert int(np.argmax(changed)) == top
        turned = []
        for other in set(range(3)) - {top}:
            changed = list(votes)
            changed[top] -= safe + 1
            changed[other] += safe + 1
            turned.append(changed[top] < 0 or int(np.argmax(changed)) != top)
        assert any(turned)


def test_what_a_certificate_says():
    rng = np.random.default_rng(2)
    model, splitting = Table(rng, 2, 4, 3, 12.0), Splitting(6, 4, 1)
    images = every_image(2, 4).view(-1, 1, 1, 2)
    before = torch.get_rng_state()
    found = certify_quantised(model, images, splitting, batch=4)
    assert torch.equal(torch.get_rng_state(), before)
    assert [one.votes for one in found] == [one.votes for one in certify_quantised(model, images, splitting)]
    for one in found:
        assert sum(one.votes) == one.draws == 6
        assert one.lower == one.votes[one.prediction] / 6
        assert (one.prediction, round(one.radius * 4 - 0.5)) == majority(one.votes)
        assert one.radius >= splitting.radius(one.lower)  # the margin says no less than the share


def test_radii_from_a_share_of_votes():
    """D < n (p - 1/2): with n = 255 and p = 1, 127 levels; never one more at an edge."""
    for n, levels in ((255, 255), (6, 4), (510, 255), (7, 3)):
        splitting = Splitting(n, levels)
        assert splitting.radius(0.5) == splitting.radius(0.2) == 0
        for votes in range(n // 2 + 1, n + 1):
            radius = splitting.radius(votes / n)
            most = round(radius * levels - 0.5)
            assert radius == (most + 0.5) / levels
            assert 2 * (votes - most) > n >= 2 * (votes - most - 1) - 1e-9
    assert Splitting(255).radius(1.0) == 127.5 / 255
    assert Splitting(255).radius(0.5 + 1e-14) == 0.5 / 255


def test_drawn_splits_certify_no_more_than_all_of_them():
    rng = np.random.default_rng(3)
    model, splitting = Table(rng, 1, 30, 2, 40.0), Splitting(30, 30, 0)
    images = every_image(1, 30)[::5].view(-1, 1, 1, 1)
    drawn = certify(model, images, splitting, selection=20, draws=1000, alpha=1e-4)
    for one, exact in zip(drawn, certify_quantised(model, images, splitting), strict=True):
        assert one.prediction in (-1, exact.prediction)
        assert one.radius <= exact.radius
    assert max(one.radius for one in drawn) > 5 / 30


class Noise(nn.Module):
    scope = "example"

    def forward(self, x):
        return torch.randn(len(x), 2)


def test_misuse_is_named():
    for bad in ((0,), (4, 0), (2.5,)):
        with pytest.raises(BudgetError):
            Splitting(*bad)
    model, splitting = Table(np.random.default_rng(0), 1, 4, 2, 1.0), Splitting(4, 4)
    for wrong in (torch.full((1, 1, 1, 1), 0.3), torch.full((1, 1, 1, 1), 1.25), torch.ones(1, 1, 1, 1).long()):
        with pytest.raises(ImagesError):
            certify_quantised(model, wrong, splitting)
    with pytest.raises(ImagesError):
        certify_quantised(model, torch.full((1, 1, 1, 1), math.nan), splitting)
    with pytest.raises(ModelError, match="deterministic"):
        certify_quantised(Noise(), torch.zeros(1, 1, 1, 1), splitting)
    with pytest.raises(BudgetError, match="batch"):
        certify_quantised(model, torch.zeros(1, 1, 1, 1), splitting, batch=0)
    with pytest.raises(BudgetError, match="probability"):
        splitting.radius(1.5)
