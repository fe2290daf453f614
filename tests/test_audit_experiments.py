"""What an audit measures on the model beside attacking it, against models whose answer is known."""

import pytest
import torch
from torch import nn

from doubles import Base, examples
from stochade import PGD, Backprop, Evolution, FrozenNoise, Linf, audit, margin
from stochade.audit import Effort
from stochade.audit.frozen_noise import frozen_noise
from stochade.audit.probes import blocked_by, differentiates_inside, probe_model
from stochade.models.known_answer import KNOWN, reach
from stochade.nn import GaussianNoise, StochasticBinary
from stochade.randomness import fingerprint, seed_for

SMALL = Effort(steps=10, draws=5, pairs=10, evolution_steps=5, samples=20)


def names(result):
    return {f.check for f in result.findings}


def test_frozen_noise_leaves_what_the_closed_form_says():
    """A linear margin with one known noise per example falls by exactly `reach`."""
    case = KNOWN["noisy-linear"](0)
    x, y = case.images, case.labels
    before = fingerprint()
    facts = frozen_noise(
        case.model, x, y, PGD(case.threat, 20, gradient=Backprop(3), objective=margin), "pgd", seed=5
    )
    assert fingerprint() == before
    assert facts["attack"] == "pgd"
    measured = torch.tensor(facts["right"]["1"])
    signs = 2 * y - 1
    for column in range(4):
        with torch.no_grad():
            logits = FrozenNoise(case.model, seed_for(5, "realisation", column))(x)
        bound = reach(signs[:, None] * case.model.weight.detach()[None], x, case.threat)
        gap = signs * (logits[:, 1] - logits[:, 0]).double() - bound
        clear = gap.abs() > 1e-3
        assert torch.equal(measured[clear, column] == 1, gap[clear] > 0)


def test_noise_comes_back_step_by_step():
    """The more realisations there are, the less the attacker gains from knowing them."""
    case = KNOWN["noisy-linear"](1)
    facts = frozen_noise(case.model, case.images, case.labels, PGD(case.threat, 10, objective=margin), "pgd")
    left = [float(torch.tensor(facts["right"][n]).float().mean()) for n in ("1", "2", "8")]
    truth = float(case.truth().mean())
    assert left[0] <= left[1] + 0.05
    assert abs(left[2] - truth) < abs(left[0] - truth) + 0.05
    assert left[2] == pytest.approx(truth, abs=0.1)


def test_only_attacks_by_backpropagation_can_know_the_noise():
    case = KNOWN["noisy-linear"](0)
    assert frozen_noise(case.model, case.images, case.labels, PGD(0.1, 2, gradient=Evolution(2)), "evolution") == {}
    relaxed = PGD(0.1, 2, gradient=Backprop(1, relaxed="mean-field"))
    assert frozen_noise(case.model, case.images, case.labels, relaxed, "relaxed") == {}


def test_rugged_losses_are_unstable_and_noise_is_not():
    x, y = examples(16)

    class Rugged(Base):
        def forward(self, x):
            wave = 30 * torch.sin(2e3 * x.flatten(1).mean(1))
            return super().forward(x) + torch.stack([-wave, wave], 1)

    def change(model):
        facts = probe_model(model, x, y)["stability"]
        return facts["relative_change"] - facts["change_by_noise"]

    assert change(Rugged().eval()) > 0.5
    assert change(Base().eval()) < 0.05
    assert abs(change(nn.Sequential(GaussianNoise(1.0), Base()).eval())) < 0.1
    assert "unstable-predictions" in names(audit(Rugged().eval(), x, y, Linf(0.1), effort=SMALL, show_progress=False))


class Purified(Base):
    """Descends its own score for one step before it answers."""

    def forward(self, x):
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(super().forward(leaf).square().sum(), leaf)
        return super().forward(x - 0.01 * gradient.sign())


def test_optimisation_inside_a_forward_is_seen():
    x, y = examples(20)
    assert differentiates_inside(Purified().eval(), x)
    assert not differentiates_inside(Base().eval(), x)
    result = audit(Purified().eval(), x, y, Linf(0.1), effort=SMALL, show_progress=False)
    assert "dynamic-defence" in names(result)


def test_blocked_gradients_are_located():
    class Round(nn.Module):
        def forward(self, x):
            return torch.round(8 * x) / 8

    class Cut(nn.Module):
        def forward(self, x):
            return x.detach()

    x, _ = examples(8)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(inplace=True), nn.Softmax(1), nn.Linear(8, 2))
    assert blocked_by(linear.eval(), x) == []
    assert blocked_by(nn.Sequential(nn.Identity(), Round(), linear), x) == ["1"]
    assert blocked_by(nn.Sequential(Cut(), linear), x) == ["0"]
    assert blocked_by(nn.Sequential(nn.Flatten(), nn.Linear(16, 4), StochasticBinary(), nn.Linear(4, 2)), x) == []


@pytest.fixture(scope="module")
def noisy():
    """A small random network with a last linear layer."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 80), nn.ReLU(), GaussianNoise(0.3), nn.Linear(80, 2)).eval()


def test_the_active_test_is_part_of_an_audit_that_asks_for_it(noisy):
    x, y = examples(20)
    result = audit(noisy, x, y, Linf(0.1), effort=SMALL, planted=3, show_progress=False)
    facts = result.probes["active_test"]
    assert facts["examples"] == 3
    assert facts["frozen"]
    assert facts["found"] >= 1
    without = audit(noisy, x, y, Linf(0.1), effort=SMALL, show_progress=False)
    assert "active_test" not in without.probes
    refused = audit(Base().eval(), x, y, Linf(0.1), effort=SMALL, planted=3, show_progress=False)
    assert "active-test-inconclusive" in names(refused)


def test_frozen_noise_is_part_of_every_audit_of_a_random_model(noisy):
    x, y = examples(20)
    result = audit(noisy, x, y, Linf(0.1), effort=SMALL, show_progress=False)
    facts = result.probes["frozen"]
    assert facts["examples"] == 20
    assert all(0 <= facts[f"accuracy, noise from {n} known"] <= 1 for n in (1, 2, 8))
    assert "right" not in facts  # rows of examples are for the checks, not for the page
    assert "frozen" not in audit(Base().eval(), x, y, Linf(0.1), effort=SMALL, show_progress=False).probes
