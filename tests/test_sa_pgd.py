"""SA-PGD: its steps against the formulas written out, and what it finds."""

import pytest
import torch

from stochade.attacks import L2, Linf
from stochade.attacks.ascent import checkpoints
from stochade.attacks.gradients import Backprop
from stochade.attacks.sa_pgd import SAPGD, StableAscent
from stochade.errors import BudgetError
from stochade.models.known_answer import KNOWN
from stochade.randomness import forked


def test_steps_are_the_formulas():
    with forked(0):
        x0, gradients = torch.rand(3, 2, 4) * 0.5 + 0.25, torch.randn(12, 3, 2, 4)
    gradients[:, 1] *= 1e-25  # a scale that squares would lose
    state, eps, eta = StableAscent(Linf(0.2), x0, x0.clone(), 12, 0.75, False), 0.2, 0.2
    x, m, v = x0.double(), torch.zeros(3, 2, 4).double(), torch.zeros(3, 2, 4).double()
    for step, raw in enumerate(gradients):
        g = state.saw(torch.zeros(3), raw)
        assert torch.equal(g, raw), "no way back"
        if step in checkpoints(12):
            eta /= 2
        state.move(raw)
        g = raw.double()
        m = 0.5 * m + g / g.abs().mean((1, 2), keepdim=True)
        v = 0.8 * v + g**2 / (g**2).mean((1, 2), keepdim=True)
        change = (eta * m / v.sqrt()).clamp(-eta, eta)
        x = (x + change).clamp(x0.double() - eps, x0.double() + eps).clamp(0, 1)
        torch.testing.assert_close(state.x.double(), x, rtol=1e-4, atol=1e-5)


def test_zero_gradients_stay_where_they_are():
    x0 = torch.full((2, 3), 0.5)
    state = StableAscent(Linf(0.1), x0, x0.clone(), 5, 0.75, False)
    state.move(torch.zeros(2, 3))
    assert torch.equal(state.x, x0)


@pytest.mark.parametrize("name", ["linear", "noisy-linear"])
def test_it_finds_what_can_be_found_on_linear_models(name):
    """The truth is P(correct) at the worst input; noise leaves a tenth of the images' worth at most."""
    case = KNOWN[name](count=40)
    gradient = Backprop(1 if name == "linear" else 20)
    z = SAPGD(Linf(0.1), steps=40, gradient=gradient)(case.model, case.images, case.labels)
    truth = case.model.truth(case.images, case.labels, Linf(0.1)).mean()
    found = case.model.accuracy_at(z, case.labels).mean()
    assert float(truth) - 1e-6 <= float(found) <= float(truth) + (1e-6 if name == "linear" else 0.1)


def test_other_threats_are_refused():
    with pytest.raises(BudgetError, match="Linf"):
        SAPGD(L2(1.0))
    with pytest.raises(BudgetError, match="wide"):
        SAPGD(Linf(0.1), wide=True)
