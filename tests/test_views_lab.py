"""The figures of the lab report and the excursion, each against numbers computed another way."""

import math
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy.stats import norm
from torch import nn

from lab_figures import SHAPE, Halves, reproduction, scored
from stochade.attacks import FGSM, Descent, Linf
from stochade.errors import UsageError
from stochade.evaluate import evaluate
from stochade.evaluate.store import slug
from stochade.recipes import catalogue, reproduce
from stochade.recipes.networks import parts_of
from stochade.recipes.schema import Network, Training
from stochade.recipes.tables import provenance_of
from stochade.recipes.views import attacked, boundaries, landscapes, looking, patterns, timing
from stochade.recipes.views import probabilities as probabilities_view
from stochade.recipes.views.steps import accuracy_by_attack, added_norms
from stochade.registry import build
from stochade.report.document import Strip
from stochade.train.elbo import ELBO
from stochade.train.mixture import Mixture

RECIPES = [name for name in catalogue.names() if name.split("-")[0] in ("kaspar2024", "pallaprolu2020", "survey")]


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_say_what_they_publish_and_audit_what_claims_robustness(name):
    recipe = catalogue.load(name)
    assert {p.what for p in recipe.published} <= {"attack", "clean", "sum"}
    if recipe.published:
        assert recipe.audit is not None
        assert all(n.audited for n in recipe.network)


def test_table_1_holds_the_eight_rows_of_the_report():
    recipe = catalogue.load("kaspar2024-table-1")
    rows = {
        n.name: [p.value for p in recipe.published if p.network == n.name] for n in recipe.network
    }  # in the order natural, PGD, FGSM, C&W
    assert list(rows.values()) == [
        [63.67, 1.37, 0.98, 34.08], [57.42, 1.07, 1.37, 26.46], [57.81, 1.07, 2.34, 29.59],
        [62.89, 0.39, 5.27, 26.86], [56.64, 0.39, 6.54, 23.67], [58.98, 0.59, 6.35, 34.08],
        [59.12, 14.26, 53.28, 56.9], [67.9, 36.23, 11.33, 68.75],
    ]  # fmt: skip
    assert recipe.network[-1].model_at("paper") == "lwta-wide-resnet"
    assert recipe.network[-1].model_at("small") == "lwta-cnn"
    assert build("lwta-wide-resnet", (3, 32, 32)).description["options"]["depth"] == 34  # type: ignore[index]


def test_the_reports_pgd_moves_no_pixel_by_more_than_three_hundredths():
    recipe = catalogue.load("kaspar2024-table-1")
    r = reproduction("kaspar2024-table-1", {"a": Halves()})
    assert r.test is not None
    x, y = r.test[:]
    stated = looking.attack_of(r, 0)
    assert isinstance(stated, Descent)
    attack = replace(stated, threat=Linf(0.3))  # as the report has it
    assert torch.allclose(attack(Halves().eval(), x, y), stated(Halves().eval(), x, y), atol=1e-6)
    assert recipe.attack[0].budgets == [0.03]
    assert float((attack(Halves().eval(), x, y) - x).abs().max()) <= 0.03 + 1e-6
    assert float((FGSM(Linf(0.3))(Halves().eval(), x, y) - x).abs().max()) > 0.29


def test_long_names_of_attacks_become_file_names_that_file_systems_take():
    names = {slug("x" * 400 + end) for end in "ab"}
    assert len(names) == 2
    assert max(map(len, names)) < 200


def test_decision_regions_are_those_of_a_linear_model():
    model, axis = Halves(), np.linspace(-0.4, 0.4, 9)
    image = torch.full((1, *SHAPE), 0.5)
    change = torch.full((1, *SHAPE), 0.1)
    plane = boundaries.plane_through(image, change, 0, axis)
    flat = (plane - image).flatten(1)
    first = torch.full((16,), 0.25)  # the unit vector of the change
    assert torch.allclose(flat @ first, torch.tensor(axis).float().repeat(9), atol=1e-5)
    length = (torch.tensor(axis).float() ** 2).repeat(9) + (torch.tensor(axis).float() ** 2).repeat_interleave(9)
    assert torch.allclose(flat.square().sum(1), length, atol=1e-5)  # orthonormal, and nothing was clipped
    # class 0 where sum < 4 (1 - sum/4 > 0), class 2 where sum > 12; along the attack the sum is 8 + 4 a
    wide = boundaries.plane_through(image, change, 0, np.linspace(-1.9, 1.9, 5))
    r = reproduction("kaspar2024-boundary", {"a": model})
    classes = model(wide).argmax(1).view(5, 5)
    assert classes[2].tolist() == [0, 1, 1, 1, 2]
    figures = boundaries.decision_regions(r)
    assert figures
    for figure in figures:
        z = np.array(figure.data[0]["z"])
        shares = [float(row[1]) for row in figure.rows]
        assert z.shape == (11, 11)
        assert abs(sum(shares) - 1) < 0.01
        label = int(figure.note.split("class ")[1].split(".")[0])
        assert z[5, 5] == label  # the image itself lies in the middle and is right


def test_the_toy_network_learns_its_points_and_lwta_draws():
    x, y = boundaries.toy_points()
    assert float(x.min()) >= 0
    assert float(x.max()) <= 1
    model = boundaries.toy_network("lwta-mlp", {"hidden": [32]}, x, y, 150)
    draws = looking.logits_of(model, x, "test", draws=2)
    assert float((draws.softmax(2).mean(0).argmax(1) == y).float().mean()) > 0.85
    assert not torch.equal(draws[0], draws[1])
    untrained = boundaries.toy_network("lwta-mlp", {"hidden": [32]}, x, y, 0)
    assert float((looking.logits_of(untrained, x, "test")[0].argmax(1) == y).float().mean()) < 0.85


def test_looking_leaves_generators_alone_and_repeats():
    model = build("lwta-cnn", (1, 8, 8), 10, depth=1, channels=8).eval()
    x = torch.rand(3, 1, 8, 8)
    first = looking.logits_of(model, x, "a")
    torch.rand(1)
    assert torch.equal(first, looking.logits_of(model, x, "a"))
    assert not torch.equal(first, looking.logits_of(model, x, "b"))
    before = torch.get_rng_state()
    looking.logits_of(model, x, "c")
    assert torch.equal(before, torch.get_rng_state())
    assert looking.draws_for(model, 7) == 7
    assert looking.draws_for(Halves(), 7) == 1


def test_amplified_noise_is_fifty_times_the_change_around_grey():
    image = torch.full(SHAPE, 0.5)
    picture = attacked.noise_picture(image, image + torch.tensor([[2 / 255, -2 / 255, 0, 0.1]]))
    assert torch.allclose(picture[0, 0], torch.tensor([0.5 + 100 / 255, 0.5 - 100 / 255, 0.5, 1.0]), atol=1e-4)


@pytest.mark.parametrize("view", [attacked.attack_pictures, attacked.amplified])
def test_pictures_name_the_classes_that_the_network_says(view):
    r = reproduction("kaspar2024-pictures", {"a": Halves()})
    strips = view(r)
    assert all(isinstance(s, Strip) for s in strips)
    told = [text for s in strips for _, text in s.images]
    assert r.test is not None
    x, y = r.test[:]
    right = Halves()(x).argmax(1) == y
    if view is attacked.attack_pictures:
        made = looking.attack_of(r, 1)(Halves().eval(), x[right], y[right])  # FGSM at 0.3
        fooled = int((Halves()(made).argmax(1) != y[right]).sum())
        assert fooled > 0
        said = [t for t in told if t.startswith("FGSM")]
        assert sum("wrong" in t for t in said) == min(fooled, 3 - min(1, len(made) - fooled))
    else:
        assert len(strips) == min(3, int(right.sum()))
        assert all(len(s.images) == 1 + 2 * len(r.recipe.attack) for s in strips)


def test_probabilities_of_all_classes_average_to_one_over_classes():
    r = reproduction("kaspar2024-probabilities", {"a": Halves()})
    top, every = probabilities_view.predicted_probabilities(r)
    assert r.test is not None
    x, y = r.test[:]
    p = Halves()(x).softmax(1).detach()
    right = p.argmax(1) == y
    assert every.rows[0][1] == "0.333"
    assert top.rows[0][1] == f"{float(p.amax(1).mean()):.3f}"
    assert top.rows[1][1] == f"{float(p.amax(1)[right].mean()):.3f}"
    assert f"{math.e / (math.e + 2):.3f}" in every.note
    assert all(abs(sum(trace["y"]) - 1) < 1e-9 for trace in [*top.data, *every.data])


class Sleeping(nn.Module):
    def __init__(self, seconds):
        super().__init__()
        self.seconds = seconds

    def forward(self, x):
        time.sleep(self.seconds)
        return x.flatten(1)[:, :3]


def test_times_per_image_are_those_of_a_network_that_sleeps(monkeypatch):
    monkeypatch.setattr(timing, "SECONDS", 0.0)
    r = reproduction("kaspar2024-time", {"quick": Sleeping(0.01), "slow": Sleeping(0.04)})
    (figure,) = timing.time_per_image(r)
    quick, slow = (row for row in figure.rows if row[1] == "1")
    assert 10 <= float(quick[2]) < 20
    assert 40 <= float(slow[2]) < 60
    assert 2 < float(slow[4]) < 5
    assert float(figure.rows[2][2]) < 1  # in a batch of 64 each image takes a sixty-fourth


def test_landscapes_hold_the_loss_of_a_linear_model():
    model = Halves().eval()
    x, y = torch.full((1, *SHAPE), 0.5), torch.tensor([1])
    first, other = landscapes.directions(model, x, y)
    axis = np.array([-0.1, 0.0, 0.2])
    z = landscapes.losses(model, x, y, first, other, axis, axis)
    for i, b in enumerate(axis):
        for j, a in enumerate(axis):
            loss = nn.functional.cross_entropy(model(x + a * first + b * other), y)
            assert z[i, j] == pytest.approx(loss.item(), abs=1e-5)
    step = 1e-3
    finer = landscapes.losses(model, x, y, first, other, np.array([0, step]), np.zeros(1))[0]
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(model(leaf), y), leaf)
    assert (finer[1] - finer[0]) / step == pytest.approx(float(gradient.abs().sum()), rel=0.02)


def test_roughness_counts_turns():
    assert landscapes.roughness(np.array([0.0, 1.0, 3.0])) == 1
    assert landscapes.roughness(np.array([0.0, 1.0, 0.0, 1.0])) == 3
    assert landscapes.roughness(np.zeros(4)) == 1


def test_the_expected_overlap_is_that_of_wide_layers_and_of_closed_forms():
    assert patterns.expected_overlap(0.0, 0.1) == pytest.approx(0.1, abs=1e-6)  # independent: P(A) P(B) / P(A)
    assert patterns.expected_overlap(1.0, 0.1) == 1
    half = patterns.expected_overlap(0.6, 0.5)  # quadrant of a normal: 1/4 + asin(rho) / (2 pi)
    assert half == pytest.approx(2 * (0.25 + math.asin(0.6) / (2 * math.pi)), abs=1e-5)
    generator = torch.Generator().manual_seed(0)
    images = torch.eye(100, dtype=torch.float64)[:2]
    images[1] = 0.8 * images[0] + 0.6 * images[1]
    measured = float(patterns.overlaps(images, 50_000, 5_000, generator))
    assert measured == pytest.approx(patterns.expected_overlap(0.8, 0.1), abs=0.03)  # 4 deviations: 0.025


def test_wide_layers_change_their_patterns_and_narrow_ones_do_not():
    generator = torch.Generator().manual_seed(0)
    pattern, replaced, relu = patterns.changed_share(5000, 0.1, 20, generator)
    assert pattern == relu == 1
    assert replaced == pytest.approx(1 - patterns.expected_overlap(1.1**-0.5, 0.1), abs=0.05)
    # ReLU, one unit: the sign changes with probability acos(cos) / pi
    _, _, relu = patterns.changed_share(1, 0.1, 4000, generator)
    assert relu == pytest.approx(math.acos(1.1**-0.5) / math.pi, abs=0.02)  # 4 deviations: 0.019
    assert patterns.changed_share(20, 1e-12, 50, generator)[0] == 0


def test_patterns_of_a_network_change_where_units_switch_off():
    layer = nn.Linear(16, 4, bias=False)
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight[0, 0], layer.weight[1, 1], layer.weight[2, 2], layer.weight[3, 3] = 1, 1, 1, -1
    model = nn.Sequential(nn.Flatten(), layer, nn.ReLU()).eval()
    x = torch.full((1, *SHAPE), 0.5)
    moved = x.clone()
    moved[0, 0, 0, 0] = -0.5  # one of three active units
    assert patterns.pattern_change(model, x, moved) == pytest.approx(1 / 3)
    assert patterns.pattern_change(model, x, x) == 0
    assert norm.isf(0.1) > 0
    figures = patterns.activation_patterns(reproduction("pallaprolu2020-kwta", {"a": model}))
    assert [f.id for f in figures] == ["theorem-1", "theorem-2", "patterns"]


def test_bars_stand_in_the_order_of_the_recipe_and_tell_budgets_apart():
    r = reproduction("kaspar2024-table-1", {"a": Halves()})
    keys = {(a.name, b): 0.1 * i for i, a in enumerate(r.recipe.attack) for b in a.budgets}
    scored(r, keys | {("clean", 0.0): 0.9})
    (figure,) = accuracy_by_attack(r)
    assert figure.data[0]["x"][0] == "clean"
    assert len(set(figure.data[0]["x"])) == 1 + len(r.recipe.attack)
    assert figure.data[0]["y"] == pytest.approx([0.9, *keys.values()])


def test_sums_of_norms_are_the_sum_of_both_and_name_the_papers():
    r = reproduction("kaspar2024-table-2", {"Stochastic LWTA": Halves()})
    scored(r, {("PGD linf", 0.03): 0.3, ("PGD l2", 0.3): 0.6, ("PGD-20", 8 / 255): 0.2, ("FGSM", 0.3): 0.1})
    (figure,) = added_norms(r)
    assert figure.rows[-2:] == [["sum here", "90.0"], ["sum, paper", "114.6"]]
    assert "at most 200" in figure.note


def test_scores_keep_budgets_that_need_many_digits():
    from stochade.recipes.reproduce import _score
    from stochade.recipes.result import named

    recipe = catalogue.load("pallaprolu2020-eot")
    r = reproduction("pallaprolu2020-eot", {"a": Halves()})
    names = [named(a, b) for a in recipe.attack for b in a.budgets]
    attacks = {name: FGSM(Linf(8 / 255)) for name in names}
    records = evaluate(Halves().eval(), r.test, None, attacks, draws=1, show_progress=False)
    _score(recipe, r.rows[0], [{"test": records}])
    assert all((a.name, a.budgets[0]) in r.rows[0].scores for a in recipe.attack)


def test_a_model_of_the_callers_own_takes_the_place_of_a_row(tmp_path):
    model = build("mlp", (1, 8, 8), 10).eval()
    with torch.no_grad():
        model.classifier.weight.zero_()  # type: ignore[union-attr]
        model.classifier.bias.copy_(5.0 * (torch.arange(10) == 3))  # type: ignore[union-attr]
    recipe = catalogue.load("pallaprolu2020-amplified")
    r = reproduce(recipe, "smoke", out=tmp_path, models={"ResNet": model}, show_progress=False)
    assert r.networks["ResNet"].model is model
    assert not (tmp_path / "networks").exists()
    assert r.test is not None
    assert r.rows[0].scores["clean", 0.0].value == float((r.test[:][1] == 3).float().mean())
    assert provenance_of(r)["training"] == {"ResNet": "given"}
    with pytest.raises(UsageError, match="resnet"):
        reproduce(recipe, "smoke", out=tmp_path, models={"resnet": model}, show_progress=False)


def test_mixtures_of_a_recipe_hold_its_attacks_and_the_bound_of_lwta():
    training = Training(objective="mixture", adversarial="pgd steps=5; fgsm eps=0.2", tau=0.25, elbo=True)
    objective = parts_of(training)["objective"]
    assert isinstance(objective, Mixture)
    assert [getattr(a, "steps", 0) for a in objective.attacks] == [5, 1]
    assert not any(getattr(a, "drop_fooled", True) for a in objective.attacks)
    assert (objective.clean, type(objective.inner)) == (0.25, ELBO)
    with pytest.raises(ValidationError, match="needs attacks"):
        Training(objective="mixture")
    with pytest.raises(ValidationError, match="name of an attack"):
        Training(objective="mixture", adversarial="pgd; pgdd")


def test_a_smaller_stand_in_starts_with_options_of_its_own():
    network = Network.model_validate(
        {"name": "a", "model": "kwta-cnn", "options": {"ratio": 0.2}}
        | {"small": {"model": "lwta-cnn", "options": {"depth": 2}}}
    )
    assert (network.model_at("paper"), network.at("paper")[0]) == ("kwta-cnn", {"ratio": 0.2})
    assert (network.model_at("small"), network.at("small")[0]) == ("lwta-cnn", {"depth": 2})
    with pytest.raises(ValidationError, match="no option 'ratio'"):
        Network.model_validate(
            {"name": "a", "model": "kwta-cnn", "small": {"model": "lwta-cnn", "options": {"ratio": 1}}}
        )
