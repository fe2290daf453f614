"""Budgets in flips and pictures of the attack against draws, loops and enumeration."""

import base64
import io
from itertools import combinations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from stochade.attacks import Linf
from stochade.attacks.registry import parse_attack
from stochade.data import Images
from stochade.models.encoded import Encoded
from stochade.nn import BernoulliRate, SignedRate
from stochade.randomness import fingerprint, forked
from stochade.recipes import catalogue
from stochade.recipes.networks import Trained
from stochade.recipes.result import Reproduction
from stochade.recipes.views.equivalent import equivalent_budgets, rates, worth
from stochade.recipes.views.sea_pictures import code_pictures, seen
from stochade.report.document import Strip

RECIPE = catalogue.load("mukhoty2025-equivalent")
PICTURES = catalogue.load("mukhoty2025-sea-pictures")


class Line(nn.Module):
    """Logits (0, w . mean code): its gradients have the signs of w and of the label alone."""

    scope = "none"

    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, codes):
        total = codes.flatten(2).mean(1) @ self.weight
        return torch.stack([torch.zeros_like(total), total], 1)


def made(n=24, d=6):
    g = torch.Generator().manual_seed(2)
    x = torch.rand(n, 1, 1, d, generator=g)
    weight = torch.randn(d, generator=g)
    rate = Encoded(BernoulliRate(4), Line(weight)).eval()
    signed = Encoded(SignedRate(4, 0.4), Line(weight)).eval()
    y = (x.flatten(1) @ weight > 0).long()
    return x, y, weight, {"CLEAN RATE": rate, "CLEAN SRATE": signed}


def result(recipe, x, y, models, scale="smoke"):
    nets = {name: Trained(name, 0, model, {}) for name, model in models.items()}
    images = Images(x.numpy(), y.numpy())
    return Reproduction(recipe, scale, [], None, "", {}, nets, {}, images, images, False, images)


def test_rates_are_the_expected_codes_and_leave_no_trace():
    x, _, _, models = made()
    before = fingerprint()
    assert torch.equal(rates(models["CLEAN RATE"].encoder, x), x.double())
    torch.testing.assert_close(rates(models["CLEAN SRATE"].encoder, x), (x - 0.4).double())
    assert fingerprint() == before
    with forked(0):
        assert set(models["CLEAN RATE"].encoder(x).unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("name", ["CLEAN RATE", "CLEAN SRATE"])
def test_worth_is_what_draws_of_both_codes_say(name):
    """200,000 frames of every image; the bound is six standard errors of their mean."""
    x, _, _, models = made(8)
    other = (x + 0.3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(3))).clamp(0, 1)
    found = worth(models[name].encoder, x, other)
    a, b = (rates(models[name].encoder, v).flatten(1) for v in (x, other))
    g = torch.Generator().manual_seed(4)
    u, v = torch.rand(2, 200_000, *a.shape, generator=g, dtype=torch.float64)

    def code(rate, uniform):
        return (uniform < rate.abs()) * rate.sign()

    apart = (code(a, u) != code(b, v)).sum(2).double()
    within = (code(a, u) != code(a, v)).sum(2).double()
    together = (code(a, u) != code(b, u)).sum(2).double()
    for told, drawn in ((found.independent, apart), (found.randomness, within), (found.coupled, together)):
        assert abs(float(drawn.mean()) - told[0]) < 6 * float(drawn.mean(1).std()) / 200_000**0.5
    each = apart.mean(0) - within.mean(0)
    assert found.paper[0] == pytest.approx(float(each.abs().mean()), abs=0.05)
    assert found.coupled[1] == pytest.approx(float(together.mean(0).std()) / 8**0.5, rel=0.02)
    assert found.paper[0] < found.coupled[0]


def test_budgets_are_those_of_the_attacked_training_images_beside_the_papers():
    x, y, weight, models = made()
    r = result(RECIPE, x, y, models)
    before = fingerprint()
    (figure,) = equivalent_budgets(r)
    assert fingerprint() == before
    assert len(figure.rows) == 2 * 2 * 7
    times = RECIPE.scale["smoke"].budgets
    for row in figure.rows:
        if row[1] != "fgsm":
            continue
        eps = times * int(row[2].split("/")[0]) / 255
        moved = (x + eps * torch.where(y == 1, -1.0, 1.0)[:, None, None, None] * weight.sign()).clamp(0, 1).double()
        a, b = (x.double(), moved) if row[0] == "CLEAN RATE" else (x.double() - 0.4, moved - 0.4)
        if row[0] == "CLEAN RATE":
            k = ((b - a) * (1 - 2 * a)).flatten(1).sum(1).abs().mean()
            flips = (b - a).abs().flatten(1).sum(1).mean()
        else:
            same = (a * b).clamp_min(0) + (1 - a.abs()) * (1 - b.abs())
            k = ((1 - same).flatten(1).sum(1) - (2 * a.abs() * (1 - a.abs())).flatten(1).sum(1)).abs().mean()
            far = torch.where(a.sign() * b.sign() < 0, torch.maximum(a.abs(), b.abs()), (a - b).abs())
            flips = far.flatten(1).sum(1).mean()
        assert float(row[3].split()[0]) == pytest.approx(float(k), abs=0.0051)
        assert float(row[7].split()[0]) == pytest.approx(float(flips), abs=0.0051)
    told = {(row[1], row[0], row[2]): row[4] for row in figure.rows}
    assert told["fgsm", "CLEAN RATE", "8/255"] == "9.8"
    assert told["pgd", "CLEAN SRATE", "64/255"] == "70.72"
    assert told["pgd", "CLEAN SRATE", "2/255"] == "–"
    made_by = parse_attack("fgsm", Linf(8 / 255))
    assert made_by.threat.eps == pytest.approx(RECIPE.attack[0].budgets[3])


@pytest.mark.parametrize("name", ["CLEAN RATE", "CLEAN SRATE"])
def test_pictures_show_the_best_flips_of_the_frame(name):
    x, y, _, models = made(4)
    model, letters = models[name], ((0, 1) if name == "CLEAN RATE" else (-1, 0, 1))
    before = fingerprint()
    one = seen(model, x[:1], y[:1], 2, seed=7)
    assert fingerprint() == before
    assert all(p.grad is None for p in model.parameters())
    code, gradient = one.code.flatten(), one.gradient.flatten()
    assert set(code.tolist()) <= set(letters)
    gains = torch.stack([gradient * (letter - code) for letter in letters]).amax(0)
    torch.testing.assert_close(one.gain.flatten(), gains)
    best = max(sum(gains[i] for i in places) for places in combinations(range(6), 2))
    assert float((one.change.flatten() * gradient).sum()) == pytest.approx(float(best))
    assert int((one.change != 0).sum()) <= 2
    logits = model.network(torch.stack([one.code] * 4)[None])  # signs of the gradient: towards the other class
    weight = model.network.weight.detach()
    assert logits.shape == (1, 2)
    towards = weight if y[0] == 0 else -weight
    assert torch.equal(gradient.sign(), towards.sign())
    assert F.cross_entropy(logits, y[:1]) > 0


def pixels(uri):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1])))) / 255


def test_pictures_are_of_the_letters_that_flip():
    x, y, _, models = made(4)
    shown = code_pictures(result(PICTURES, x, y, models))
    strips, example = shown[:-1], shown[-1]
    assert [s.title.split(" on ")[1] for s in strips] == list(models)
    for strip, low in zip(strips, (0, -1), strict=True):
        assert isinstance(strip, Strip)
        code, change, attacked = (pixels(strip.images[i][0]) for i in (1, 4, 5))
        width = code.shape[-1] // 6
        middle = [image[0, width // 2 :: width] for image in (code, change, attacked)]
        letters = [low + (1 - low) * middle[i] for i in (0, 2)]
        assert np.allclose(letters[0], letters[0].round(), atol=0.01)
        assert ((middle[1] - 0.5).round(1) != 0).sum() == (letters[0].round() != letters[1].round()).sum() == 1
        assert "1 flips" in strip.images[4][1]
    assert [row[1] for row in example.rows] == ["(1, 1)", "(-0.5, 1)", "(-1, 0)", "(0, 1)"]
