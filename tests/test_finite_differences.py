"""SPSA and NES: estimates against exact gradients, attacks against closed forms."""

import pickle

import pytest
import torch
from torch import nn

from stochade import L2, Backprop, Linf, evaluate, margin
from stochade.attacks.finite_differences import NES, SPSA, Spsa
from stochade.attacks.registry import parse_attack
from stochade.errors import BudgetError
from stochade.models.known_answer import KNOWN
from stochade.randomness import Stream


class Quadratic(nn.Module):
    """Logits quadratic in the pixels."""

    scope = "none"

    def forward(self, x):
        z = x.flatten(1)
        score = (z * torch.arange(1.0, z.shape[1] + 1)).sum(1) + z.square().sum(1) + z[:, 0] * z[:, 1]
        return torch.stack([-score, score], 1) / 4


def test_the_estimate_is_unbiased_and_exact_on_quadratics():
    """The mean of many estimates is within 5 standard errors of backpropagation in every pixel."""
    x, y = torch.rand(1, 1, 2, 3, generator=torch.Generator().manual_seed(0)).repeat(4000, 1, 1, 1), torch.zeros(4000)
    y = y.long()
    exact = Backprop()(Quadratic(), x[:1], y[:1], margin).gradient
    result = Spsa(pairs=2, sigma=0.1)(Quadratic(), x, y, margin, stream=Stream(0, torch.arange(4000)))
    error = result.gradient.mean(0) - exact[0]
    deviation = result.gradient.std(0) / 4000**0.5
    assert bool((error.abs() < 5 * deviation).all())
    assert float(deviation.max()) < 0.1


def test_every_pixel_moves_by_sigma_in_every_query():
    seen = []

    class Watching(nn.Module):
        scope = "none"

        def forward(self, x):
            seen.append(x.detach().clone())
            return torch.stack([x.flatten(1).sum(1), -x.flatten(1).sum(1)], 1)

    x = torch.full((3, 1, 2, 2), 0.5)
    Spsa(pairs=5, sigma=0.02)(Watching(), x, torch.zeros(3).long(), margin, stream=Stream(1, torch.arange(3)))
    moved = torch.cat(seen[1:]) - 0.5
    torch.testing.assert_close(moved.abs(), torch.full_like(moved, 0.02))
    assert len(moved) == 30


@pytest.mark.parametrize("attack", [SPSA, NES])
def test_linear_models_fall_as_far_as_the_closed_form_says(attack):
    case = KNOWN["linear"](count=60)
    inputs = attack(case.threat, steps=60, pairs=50)(case.model, case.images, case.labels) if attack is NES else SPSA(
        case.threat, steps=60, gradient=Spsa(50)
    )(case.model, case.images, case.labels)  # fmt: skip
    found = float((case.model(inputs).argmax(1) == case.labels).float().mean())
    truth = float(case.truth().mean())
    assert truth - 1e-6 <= found <= truth + 0.05
    assert float(case.threat.distance(inputs, case.images).max()) <= case.threat.eps * (1 + 1e-5)


def test_zero_gradients_do_not_stop_it():
    case = KNOWN["zero-gradient"](count=40)
    records = evaluate(
        case.model,
        case.images,
        case.labels,
        {"spsa": SPSA(case.threat, 60, gradient=Spsa(32, 0.05))},
        show_progress=False,
    )
    assert records.score("spsa").value <= 0.05


def test_examples_do_not_depend_on_their_batch():
    case = KNOWN["linear"](count=24)
    for attack in (SPSA(case.threat, 15), NES(L2(0.3), 10)):
        whole = attack(case.model, case.images, case.labels)
        part = attack(case.model, case.images[5:9], case.labels[5:9])
        torch.testing.assert_close(whole[5:9], part, rtol=1e-4, atol=1e-5)


def test_targets_budgets_starts_and_counts():
    case = KNOWN["linear"](count=16)
    x, y = case.images, case.labels
    attack = SPSA(case.threat, 10, gradient=Spsa(8))
    pulled = attack.run(case.model, x, y, targets=1 - y)
    assert bool((pulled.forwards <= attack.cost()[0]).all())
    assert bool((pulled.backwards == 0).all())
    each = torch.linspace(0, 0.2, 16)
    budgeted = attack.run(case.model, x, y, budgets=each)
    assert bool((budgeted.distance <= each + 1e-6).all())
    begun = SPSA(case.threat, 1, rate=1e-9).run(case.model, x, y, start=pulled.inputs)
    torch.testing.assert_close(begun.inputs, pulled.inputs, atol=1e-6, rtol=0)


def test_numbers_that_make_no_sense_are_refused():
    for bad in ({"steps": 0}, {"rate": -1.0}, {"threat": 0.3}, {"gradient": 3}):
        with pytest.raises(BudgetError):
            SPSA(**{"threat": Linf(0.1)} | bad)
    with pytest.raises(BudgetError):
        Spsa(pairs=0)
    assert parse_attack("spsa steps=5 pairs=3 sigma=0.1", Linf(0.1)) == SPSA(Linf(0.1), 5, gradient=Spsa(3, 0.1))
    assert parse_attack("nes steps=5 pairs=3", Linf(0.1)) == NES(Linf(0.1), 5, pairs=3)
    assert isinstance(pickle.loads(pickle.dumps(SPSA(Linf(0.1)))), SPSA)
