"""Views of attacks on codes, each against numbers computed another way."""

import numpy as np
import pytest
import torch
from torch import nn

from doubles import Told
from stochade.attacks import SEA, Flips
from stochade.attacks.codes import encode
from stochade.attacks.registry import parse_attack
from stochade.data import Images
from stochade.models.encoded import Encoded
from stochade.nn import BernoulliRate, SignedRate
from stochade.randomness import fingerprint, forked, seed_for, untouched
from stochade.recipes import catalogue
from stochade.recipes.networks import Trained
from stochade.recipes.result import Reproduction, Row, named
from stochade.recipes.views.codes import code_transfer, label_leaking, transferred

LEAK = catalogue.load("mukhoty2025-leak")


class Half(nn.Module):
    """Class 1 where more than `least` letters of one half of a code are 1, summed over time."""

    scope = "none"

    def __init__(self, half: slice, least: float):
        super().__init__()
        self.half, self.least = half, least

    def forward(self, codes):
        total = codes.flatten(2)[:, :, self.half].sum((1, 2)) - self.least
        return torch.stack([torch.zeros_like(total), total], 1)


def problem(n=40):
    with forked(0):
        x = torch.rand(n, 1, 1, 16)
    upper = Encoded(BernoulliRate(3), Half(slice(0, 8), 11.5))
    lower = Encoded(BernoulliRate(3, 0.5), Half(slice(8, 16), 11.5))
    return upper.eval(), lower.eval(), x, (x[..., :8].mean((1, 2, 3)) > 0.5).long()


def test_codes_that_transfer_are_counted_as_a_loop_counts_them():
    upper, lower, x, y = problem()
    before = fingerprint()
    own = transferred(SEA(Flips(1)), upper, upper, x, y, 4)
    outside = transferred(SEA(Flips(1)), upper, lower, x, y, 4)
    assert fingerprint() == before
    for draw in range(4):
        with untouched(upper):
            codes = encode(upper, x, Flips(1), seed_for(0, "code transfer", draw))
        frames = codes.flatten(2)[:, :, :8].sum(2)
        moved = torch.where(y[:, None] == 1, (frames - 1).clamp_min(0), (frames + 1).clamp_max(8)).sum(1)
        assert np.array_equal(own[:, draw], ((moved > 11.5).long() == y).numpy())
        assert np.array_equal(outside[:, draw], ((frames.sum(1) > 11.5).long() == y).numpy())
    assert outside.mean() > own.mean() + 0.1


def test_transfer_is_between_networks_of_the_same_letters():
    upper, lower, x, y = problem(8)
    signed = Encoded(SignedRate(3, 0.5), Half(slice(0, 8), 0.0)).eval()
    models = {"upper": upper, "lower": lower, "signed": signed}
    networks = {name: Trained(name, 0, model, {}) for name, model in models.items()}
    images = Images(x.numpy(), y.numpy())
    recipe = LEAK.model_copy(
        update={"attack": [LEAK.attack[1], LEAK.attack[0], LEAK.attack[2]], "scale": {"smoke": LEAK.scale["small"]}}
    )
    r = Reproduction(recipe, "smoke", [Row(n) for n in models], None, "", {}, networks, {}, images, images, False)
    (figure,) = code_transfer(r)
    pairs = {(row[0], row[1]) for row in figure.rows}
    assert pairs == {(a, b) for a in ("upper", "lower") for b in ("upper", "lower")} | {("signed", "signed")}
    assert {row[3] for row in figure.rows} == {"10", "20"}
    assert {row[2] for row in figure.rows} == {"SEA, 1 step", "SEA, 20 steps"}
    attacks = {a.name: a.attack for a in recipe.attack}
    for target, source, attack, k, shown in figure.rows:
        made_for = parse_attack(attacks[attack], Flips(int(k), models[target].encoder.alphabet))
        right = transferred(made_for, models[target], models[source], x, y, 3)
        assert shown.value == pytest.approx(right.mean())


def test_an_attack_that_leaves_more_than_no_attack_is_named():
    recipe = LEAK.model_copy(update={"attack": LEAK.attack[:2]})
    half = np.arange(60)[:, None] % 2 == np.zeros((1, 3))
    whole, less = np.ones((60, 3), bool), half & (np.arange(60)[:, None] % 3 == 0)
    a, b = recipe.attack
    rights = {"clean": half, named(a, 10): whole, named(a, 20): half, named(b, 10): less, named(b, 20): ~whole}
    r = Reproduction(recipe, "small", [], None, "", {}, {}, {"net": Told(rights)})
    (figure,) = label_leaking(r)
    assert [row[2] for row in figure.rows] == ["10", "20", "10", "20"]
    assert [row[-1] for row in figure.rows] == ["yes", "no", "no", "no"]
    shown = [float(row[5].split()[0]) for row in figure.rows]
    assert shown == pytest.approx([50.0, 0.0, 100 * (less.mean() - 0.5), -50.0], abs=0.05)
    assert [row[3].value for row in figure.rows] == [0.5] * 4
    assert figure.rows[0][4].value == 1.0
    assert figure.data[0]["y"] == pytest.approx([0.5, 0.0, less.mean() - 0.5, -0.5])
