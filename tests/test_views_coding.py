"""Views of wu2024: trade-offs, black boxes, signs of obfuscated gradients and codes, each computed a second way."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from doubles import Told
from stochade.attacks import FGSM, Linf
from stochade.data import Images
from stochade.evaluate.intervals import Estimate, mean
from stochade.metrics import tradeoff
from stochade.models.encoded import Encoded
from stochade.nn import RSC, BernoulliRate, Direct
from stochade.randomness import fingerprint, forked
from stochade.recipes import catalogue
from stochade.recipes.networks import Trained
from stochade.recipes.result import Reproduction, Row, named
from stochade.recipes.views.black_box import black_box, passed_on, targets_of
from stochade.recipes.views.coding import coded_images, covariances, layer, similar_codes
from stochade.recipes.views.obfuscation import obfuscation, parts_of, told
from stochade.recipes.views.tradeoff import tradeoffs

EPS = 8 / 255
OURS = [name for name in catalogue.names() if name.startswith("wu2024")]


def estimate(value):
    return Estimate(value, None, None, 10, 1)


def reproduction(recipe, scale="small", **fields):
    empty = Reproduction(recipe, scale, [], None, "", {}, {}, {}, None, None, False)
    return replace(empty, **fields)


@pytest.mark.parametrize("name", OURS)
def test_the_paper_s_own_estimates_follow_from_its_accuracies(name):
    """Equation 6 over every printed row: a digit misread in either would show. Two decimals are printed."""
    for p in catalogue.load(name).printed:
        for attack, column in (("FGSM", "F-QTE"), ("PGD", "P-QTE")):
            if column in p.values:
                area = tradeoff(p.values["clean"] / 100, p.values[attack] / 100, 8)
                assert area == pytest.approx(p.values[column], abs=0.0055), (p.row, column)


def test_the_same_number_of_the_paper_is_the_same_in_every_recipe():
    found = {}
    for recipe in map(catalogue.load, OURS):
        for p in recipe.published:
            key = (p.network, p.what, p.attack, p.budget, p.source)
            assert found.setdefault(key, p.value) == p.value, (recipe.name, key)
    assert len(found) >= 18


def test_recipes_share_networks_by_equal_settings():
    """Rows of one name are one network in every recipe, at every scale but for the scale's own sizes."""
    for scale in ("smoke", "small", "paper"):
        known = {}
        for recipe in map(catalogue.load, OURS):
            sizes = recipe.scale[scale].train, recipe.scale[scale].epochs, recipe.scale[scale].data
            for n in recipe.network:
                settings = (n.model_at(scale), n.at(scale), n.seed, n.teacher, sizes)
                assert known.setdefault(n.name, settings) == settings, (recipe.name, n.name)


def test_tradeoffs_are_areas_in_grey_levels():
    recipe = catalogue.load("wu2024-e-rsct")
    row = Row("RSC-0.1")
    row.scores = {("clean", 0.0): estimate(0.9), ("FGSM", EPS): estimate(0.3), ("PGD-7", EPS): estimate(0.1)}
    (figure,) = tradeoffs(reproduction(recipe, rows=[row]))
    assert figure.rows == [["RSC-0.1", "FGSM", "4.80", "5.26"], ["RSC-0.1", "PGD-7", "4.00", "4.70"]]
    (figure,) = tradeoffs(reproduction(recipe, "smoke", rows=[row]))
    assert [r[2] for r in figure.rows] == ["19.20", "16.00"]  # budgets four times as large
    assert [r[3] for r in figure.rows] == ["5.26", "4.70"]


class Linear(nn.Module):
    scope = "none"

    def __init__(self, seed):
        super().__init__()
        with forked(seed):
            self.weight = nn.Parameter(torch.randn(2, 16))

    def forward(self, x):
        return (x.flatten(1) - 0.5) @ self.weight.T


def pictures(n=40):
    with forked(0):
        x = torch.rand(n, 1, 4, 4)
    return x, Linear(1)(x).argmax(1)


def test_what_is_passed_on_is_fgsm_of_the_source_scored_on_the_target():
    x, y = pictures()
    source, target = Linear(2), Linear(1)
    before = fingerprint()
    found = passed_on(FGSM(Linf(0.1)), source, target, x, y, 5)
    assert fingerprint() == before
    free = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(source(free), y, reduction="sum"), free)
    expected = target((x + 0.1 * gradient.sign()).clamp(0, 1)).argmax(1) == y
    assert found.shape == (40, 1)  # nothing is random
    assert np.array_equal(found[:, 0], expected.numpy())
    noisy = Encoded(RSC(0.5, 2), nn.Sequential(nn.Flatten(2), Mean(target)))
    draws = passed_on(FGSM(Linf(0.1)), source, noisy, x, y, 30)
    assert draws.shape == (40, 30)
    assert draws.mean(1).std() > 0
    assert len(np.unique(draws, axis=1).T) > 1


class Mean(nn.Module):
    scope = "none"

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, codes):
        return self.network(codes.mean(1))


def boxes():
    recipe = catalogue.load("wu2024-black-box")
    x, y = pictures()
    networks = {n.name: Trained(n.name, n.seed, Linear(i), {}) for i, n in enumerate(recipe.network)}
    rng = np.random.default_rng(0)
    keys = ["clean", *[named(a, EPS) for a in recipe.attack]]
    records = {name: Told({key: rng.random((40, 5)) < 0.9 for key in keys}) for name in networks}
    images = Images(x.numpy(), y.numpy())
    return reproduction(recipe, networks=networks, records=records, test=images), x, y


def test_black_boxes_are_second_trainings_with_the_paper_s_number_for_each_attack():
    r, x, y = boxes()
    assert targets_of(r) == {name: f"{name}, again" for name in ("Direct", "Poisson", "RSC-0.1")}
    (figure,) = black_box(r)
    assert [row[:2] for row in figure.rows] == [
        [name, attack] for name in ("Direct", "Poisson", "RSC-0.1") for attack in ("FGSM", "PGD-7")
    ]
    assert [row[5] for row in figure.rows] == ["20.75", "3.52", "43.06", "36.15", "59.25", "49.55"]
    model = {name: net.model for name, net in r.networks.items()}
    expected = passed_on(FGSM(Linf(EPS)), model["Poisson, again"], model["Poisson"], x, y, 1).mean()
    row = figure.rows[2]
    assert row[4].value == pytest.approx(expected)
    assert row[3].value == pytest.approx(r.records["Poisson"].right(named(r.recipe.attack[0], EPS)).mean())
    clean = r.records["Poisson"].right("clean").mean()
    assert float(row[6]) == pytest.approx(8 * (clean + expected) / 2, abs=0.0051)
    assert row[7] == "yes"  # 0.9 white box; the other network's examples hurt more
    assert row[4].high < row[3].low


def test_signs_are_told_from_paired_differences():
    recipe = catalogue.load("wu2024-obfuscation")
    roles = parts_of(reproduction(recipe))
    assert [key[0].rsplit(" ", 1)[0] for key in (roles.single, roles.iterated, roles.averaged, roles.sampled)] == [
        "FGSM", "PGD-7", "EOT-PGD-7", "random points"
    ]  # fmt: skip
    assert [round(255 * key[2]) for key in roles.growing] == [2, 8, 32, 255]
    assert roles.unbounded == roles.growing[-1]
    n = 200
    half, tenth, none = (np.arange(n)[:, None] % k == 0 for k in (2, 10, n + 1))
    none[:] = False
    rights = {key[0]: half for key in roles.growing}
    rights |= {roles.single[0]: tenth, roles.iterated[0]: half, roles.averaged[0]: none, roles.sampled[0]: ~none}
    rights |= {roles.growing[1][0]: tenth, roles.unbounded[0]: tenth}
    networks = {"RSC-0.1": Trained("RSC-0.1", 0, Linear(0), {})}
    (figure,) = obfuscation(reproduction(recipe, networks=networks, records={"RSC-0.1": Told(rights)}))
    shown = {row[1]: (row[2].split()[0], row[3]) for row in figure.rows}
    assert shown == {
        "one step stronger than many": ("+40.0", "yes"),
        "random points stronger than gradients": ("-50.0", "no"),
        "unbounded attack leaves some right": ("+10.0", "yes"),
        "larger budget weaker than smaller": ("+40.0", "yes"),
        "averaged gradients stronger": ("+50.0", "yes"),
    }
    few, twentieth = none.copy(), np.arange(n)[:, None] % 20 == 0
    few[:4] = True  # 2.0 standard errors above none: beyond doubt for one pair of budgets, not for the worst of three
    rights |= {key[0]: none for key in roles.growing} | {roles.growing[1][0]: few, roles.unbounded[0]: twentieth}
    (figure,) = obfuscation(reproduction(recipe, networks=networks, records={"RSC-0.1": Told(rights)}))
    shown = {row[1]: (row[2].split()[0], row[3]) for row in figure.rows}
    assert shown["unbounded attack leaves some right"] == ("+5.0", "not decided")  # above 0, not above 5 %
    rights[roles.unbounded[0]] = none
    (figure,) = obfuscation(reproduction(recipe, networks=networks, records={"RSC-0.1": Told(rights)}))
    shown = {row[1]: (row[2].split()[0], row[3]) for row in figure.rows}
    assert shown["larger budget weaker than smaller"] == ("+2.0", "not decided")
    assert told(mean(none), 0.05) == "no"
    assert told(mean(none[:10]), 0.05) == "not decided"
    assert told(mean(half), 0.05) == "yes"
    assert told(Estimate(0.5, None, None, 1, 1)) == "not decided"


def test_the_black_box_of_the_checklist_is_the_second_training():
    recipe = catalogue.load("wu2024-obfuscation")
    x, y = pictures()
    names = ("RSC-0.1", "RSC-0.1, again")
    networks = {name: Trained(name, i, Linear(i), {}) for i, name in enumerate(names)}
    roles = parts_of(reproduction(recipe))
    keys = [roles.single, roles.iterated, roles.averaged, roles.sampled, *roles.growing]
    records = {name: Told({key[0]: np.ones((40, 5), bool) for key in keys}) for name in names}
    r = reproduction(recipe, networks=networks, records=records, test=Images(x.numpy(), y.numpy()))
    (figure,) = obfuscation(r)
    assert {row[0] for row in figure.rows} == {"RSC-0.1"}
    shown = {row[1]: row[2] for row in figure.rows}
    from stochade.attacks.registry import parse_attack

    attack = parse_attack(recipe.attack[1].attack, Linf(EPS))
    theirs = passed_on(attack, networks[names[1]].model, networks[names[0]].model, x, y, 5).mean()
    told_points = float(shown["black box stronger than white box"].split()[0])
    assert told_points == pytest.approx(100 * (1 - theirs), abs=0.051)
    assert 5 < told_points < 95


def coded(scale="smoke"):
    recipe = catalogue.load("wu2024-coding")
    with forked(0):
        x = torch.rand(12, 1, 4, 4)
        y = torch.randint(0, 2, (12,))
    encoders = {"Direct": Direct(3), "Poisson": BernoulliRate(3), "RSC-0.1": RSC(0.1**0.5, 3)}
    networks = {
        name: Trained(name, 0, Encoded(e, nn.Sequential(nn.Flatten(2), Mean(Linear(1)))).eval(), {})
        for name, e in encoders.items()
    }
    return reproduction(recipe, scale, networks=networks, test=Images(x.numpy(), y.numpy())), x, y


def test_cosines_are_those_of_codes_and_of_their_neighbours():
    """Black and white pixels, whose Poisson codes are no matter of chance; noise is compared with its mean."""
    r, x, _ = coded()
    x = (x > 0.5).float()
    r = replace(r, test=Images(x.numpy(), np.zeros(12, np.int64)))
    before = fingerprint()
    (figure,) = similar_codes(r)
    assert fingerprint() == before
    assert [row[0] for row in figure.rows] == ["Direct and Poisson", "Direct and RSC-0.1", "Poisson and RSC-0.1"]
    assert figure.rows[0][1] == "1.000"
    flat = x.flatten(1).double()
    apart = F.cosine_similarity(flat, flat.roll(-1, 0)).mean()
    assert float(figure.rows[0][2]) == pytest.approx(float(apart), abs=6e-4)
    for row in figure.rows[1:]:
        assert float(apart) - 0.1 < float(row[2]) < float(row[1]) < 0.97


def test_pictures_are_the_codes():
    r, _, _ = coded()
    strips = coded_images(r)
    assert len(strips) == 3
    assert [caption for _, caption in strips[0].images][:3] == ["as it is", "Direct, one step", "Direct, mean"]
    uris = [uri for uri, _ in strips[0].images]
    assert uris[0] == uris[1] == uris[2]  # a direct code is the image
    assert len({uris[0], *uris[3:]}) == 5 - (uris[5] == uris[6])
    assert uris[5] == uris[6]  # one noise for all steps


def test_covariances_change_as_theorem_3_2_says_and_not_at_all_before_clipping():
    r, x, y = coded()
    (figure,) = covariances(r)
    assert [row[:2] for row in figure.rows] == [
        ["Poisson", "closed form"], ["RSC-0.1", "clipped"], ["RSC-0.1", "before clipping"]
    ]  # fmt: skip
    weight = layer(16)
    assert tuple(weight.shape) == (10, 16)
    made = FGSM(Linf(4 * EPS))(r.networks["Poisson"].model, x, y)
    changes, traces = [], []
    for image, attacked in zip(x.flatten(1).double(), made.flatten(1).double(), strict=True):
        delta = attacked - image
        before = weight @ torch.diag(image * (1 - image)) @ weight.T
        after = weight @ torch.diag(image * (1 - image) + delta * (1 - 2 * image) - delta**2) @ weight.T
        changes.append(float((after - before).norm() / before.norm()))
        traces.append(float(after.trace() / before.trace()))
    poisson, clipped, whole = figure.rows
    assert float(poisson[2]) == pytest.approx(100 * np.mean(changes), abs=0.006)
    assert float(poisson[3]) == pytest.approx(np.mean(traces), abs=6e-4)
    assert whole[2:] == ["0.00", "1.000", "–"]
    assert float(clipped[2]) > 1
    # 500 codes leave an error of sqrt((1 + r) / 500) at most, r the effective rank below 10: 15 %
    assert all(0 < float(row[4]) < 25 for row in (poisson, clipped))
