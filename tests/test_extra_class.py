"""A class for adversarial examples: the loss, the attack that avoids it and what is counted."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stochade.errors import UsageError
from stochade.recipes.views.flagged import avoiding, shares, unflagged
from stochade.registry import build
from stochade.train.extra_class import ExtraClass


class Linear(nn.Module):
    scope = "none"

    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x):
        return x.flatten(1) @ self.weight.T


def test_the_loss_is_that_of_both_halves():
    torch.manual_seed(0)
    model, x, y = Linear(torch.randn(4, 6)), torch.rand(5, 1, 2, 3), torch.tensor([0, 1, 2, 0, 1])
    moved = (x + 0.1).clamp(0, 1)
    objective = ExtraClass(lambda model, x, y, seed: moved, 0.3, start=1)
    loss, logits, terms = objective(model, x, y, model=model, seed=0, epoch=1)
    expected = 0.3 * F.cross_entropy(model(x), y) + 0.7 * F.cross_entropy(model(moved), torch.full((5,), 3))
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(terms["flag"], F.cross_entropy(model(moved), torch.full((5,), 3)))
    early = objective(model, x, y, model=model, seed=0, epoch=0)
    torch.testing.assert_close(early[0], F.cross_entropy(logits, y))


def test_a_model_without_room_for_the_class_is_a_named_error():
    model = Linear(torch.randn(3, 6))
    with pytest.raises(UsageError, match="one class more"):
        ExtraClass(lambda *a, **k: None)(model, torch.rand(2, 1, 2, 3), torch.tensor([0, 2]), model=model, seed=0)
    with pytest.raises(UsageError, match="weight"):
        ExtraClass(lambda *a, **k: None, weight=1.0)


def test_the_registered_model_has_one_logit_more():
    assert build("extra-class", (1, 8, 8), 10)(torch.rand(1, 1, 8, 8)).shape == (1, 11)
    with pytest.raises(UsageError, match="registered"):
        build("extra-class", base="nothing")


def test_the_objective_is_positive_exactly_when_wrong_without_a_flag():
    torch.manual_seed(0)
    logits, y = torch.randn(2000, 5), torch.randint(0, 4, (2000,))
    said = logits.argmax(1)
    assert torch.equal(unflagged(logits, y, classes=4) > 0, (said != y) & (said < 4))


def test_shares_add_up():
    said, y = torch.tensor([0, 1, 4, 2]), torch.tensor([0, 0, 0, 2])
    assert shares(said, y, 4) == {"right": 0.5, "flagged": 0.25, "wrong": 0.25}


def test_the_attack_goes_around_the_flag():
    """Pixel 0 raises the flag most, pixel 1 a wrong class: plain PGD is flagged, this one is not."""
    weight = torch.tensor([[0.0, 0.0], [0.0, 4.0], [9.0, 0.0]])  # true class, wrong class, flag
    model = Linear(weight)
    x = torch.tensor([[0.1, 0.1]]).view(1, 1, 1, 2)
    made = avoiding(model, x, torch.tensor([0]), 0.1, 20, classes=2)
    torch.testing.assert_close(made.flatten(), torch.tensor([0.0, 0.2]), atol=1e-6, rtol=0)
    assert int(model(made).argmax(1)) == 1
