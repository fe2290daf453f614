"""What minimum-norm attacks hand back on networks whose boundaries bend: finds, at the distances that they tell."""

import pytest
import torch
from torch import nn

from stochade.attacks.registry import parse_attack
from stochade.attacks.threats import L0, L1, L2, Linf

INF = float("inf")
ATTACKS = [
    ("fmn steps=20", L0(64)), ("fmn steps=20", L1(INF)), ("fmn steps=20", L2(INF)), ("fmn steps=20", Linf(INF)),
    ("cw steps=40 initial=1", L2(INF)), ("cw steps=40 initial=1", Linf(INF)), ("deepfool", L2(INF)),
    ("deepfool", Linf(INF)), ("fab steps=10", L2(INF)), ("fab steps=10", L1(INF)), ("fab steps=10", Linf(INF)),
    ("lbfgs steps=20", L2(INF)), ("sigma-zero steps=20", L0(64)), ("jsma", L0(64)), ("hopskipjump steps=3", L2(INF)),
]  # fmt: skip


def bent(seed: int = 0) -> nn.Module:
    """A random network in which the linearised boundary is far from the real one."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 40), nn.Tanh(), nn.Linear(40, 40), nn.Tanh(), nn.Linear(40, 5))
    with torch.no_grad():
        for layer in net:
            if isinstance(layer, nn.Linear):
                layer.weight.mul_(4)
    return net.eval()


@pytest.mark.parametrize(("text", "threat"), ATTACKS, ids=lambda v: str(v))
def test_every_find_is_adversarial_at_the_distance_it_tells(text, threat):
    model = bent()
    x = torch.rand(40, 1, 8, 8)
    y = model(x).argmax(1)
    attempt = parse_attack(text, threat).run(model, x, y)
    found = torch.isfinite(attempt.distance)
    wrong = model(attempt.inputs).argmax(1) != y
    assert bool(wrong[found].all())
    assert torch.equal(attempt.inputs[~found], x[~found])
    distance = threat.distance(attempt.inputs, x)
    torch.testing.assert_close(distance[found], attempt.distance[found], atol=1e-4, rtol=1e-4)
    assert int(found.sum()) >= 25
