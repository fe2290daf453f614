"""DeepFool where the linear model promises what the box cannot hold. Closed forms are in test_every_attack."""

import pytest
import torch
from torch import nn

from stochade import L2, Linf
from stochade.attacks.deepfool import DeepFool

INF = float("inf")


class Weak(nn.Module):
    """[n, 64] -> two logits: class 1 gains 0.02 for every value, and `cliff` for all that the first one has above
    0.3."""

    def __init__(self, cliff: float):
        super().__init__()
        self.cliff = cliff

    def forward(self, x):
        gain = 0.02 * (x.sum(1) - 60) + self.cliff * (x[:, 0] - 0.3).clamp_min(0) - 0.2
        return torch.stack([torch.zeros_like(gain), gain], 1)


def differentiated(attack, cliff):
    """What the attack finds on `bright`, and how far the points lay at which it took gradients."""
    model, (x, y), points = Weak(cliff).eval(), bright(), []
    model.register_forward_pre_hook(
        lambda _, seen: points.append(seen[0].detach()) if seen[0].requires_grad else None
    )
    attempt = attack.run(model, x, y)
    return attempt, [float(attack.threat.distance(point, x[:1].expand_as(point)).max()) for point in points]


def bright():
    """Only four values have room, and the linear model needs ten."""
    x = torch.ones(2, 64)
    x[:, :4] = 0
    return x, torch.zeros(2, dtype=torch.long)


@pytest.mark.parametrize(("kind", "best", "far"), [(L2, 0.3194, 0.75), (Linf, 0.3175, 0.4)], ids=["l2", "linf"])
def test_steps_do_not_cross_the_box_to_make_up_for_what_has_no_room(kind, best, far):
    """A step that gains all it needs from the four values would take them to 1."""
    attempt, distances = differentiated(DeepFool(kind(INF)), 10.0)
    assert max(distances) < far, distances
    torch.testing.assert_close(attempt.distance, torch.full((2,), best), rtol=0.002, atol=0.0)


def test_what_is_left_after_half_of_the_steps_may_cross_the_box():
    attempt, distances = differentiated(DeepFool(L2(INF), steps=4), 0.0)
    assert bool(torch.isinf(attempt.distance).all())
    assert distances[0] == 0
    assert 0 < distances[1] < distances[2] < 0.7
    assert distances[3] == 2


@pytest.mark.parametrize("kind", [L2, Linf], ids=lambda k: k.__name__)
def test_without_any_slope_nothing_moves(kind):
    first, last = nn.Linear(64, 4), nn.Linear(4, 3)
    with torch.no_grad():
        first.bias.fill_(-100.0)
        last.bias.copy_(torch.tensor([3.0, 0.0, 0.0]))
    model = nn.Sequential(first, nn.ReLU(), last).eval()
    x, y = bright()
    attempt = DeepFool(kind(INF), steps=5).run(model, x, y)
    assert bool(torch.isinf(attempt.distance).all())
    assert torch.equal(attempt.inputs, x)


@pytest.mark.parametrize("kind", [L2, Linf])
@pytest.mark.parametrize("height", [1e6, 1e9, 1e12])
def test_a_flat_model_of_huge_logits_is_survived(kind, height):
    class Flat(nn.Module):
        def forward(self, x):
            flat = 0 * x.flatten(1).sum(1)
            return torch.stack([height + flat, flat], 1)

    attempt = DeepFool(kind(0.3), steps=4).run(Flat().eval(), torch.rand(2, 4), torch.zeros(2, dtype=torch.long))
    assert bool(torch.isfinite(attempt.inputs).all())
