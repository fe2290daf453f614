"""Descent on batches: examples that leave, equal results whatever else is in the batch, types, momentum, refusals."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from counting import Recording
from linear_cases import binary, data, multi, worst
from stochade.attacks import (
    BIM,
    FGSM,
    ILL,
    L2,
    MIFGSM,
    PGD,
    Attack,
    Backprop,
    Descent,
    Evolution,
    Linf,
    margin,
    sweep,
)  # fmt: skip
from stochade.attacks.fooled import LEVEL, LIMIT, draws_needed
from stochade.errors import BudgetError
from stochade.models.known_answer import CoinFlip, KnownAnswer, Linear, NoisyLinear
from stochade.randomness import FrozenNoise, forked


def test_fooled_examples_leave_a_deterministic_attack():
    model, (x, y) = Recording(binary()), data(40)
    threat = Linf(0.15)
    with_set, without = (PGD(threat, steps=10, drop_fooled=d, keep="last").run(model, x, y) for d in (True, False))
    truth = model.model.truth(x, y, threat)
    assert torch.equal(model.model.accuracy_at(with_set.inputs, y), truth)
    assert bool((with_set.forwards[truth == 0] < 10).any())
    assert bool((with_set.forwards[truth == 1] == 10).all())
    assert bool((without.forwards == 10).all())
    assert bool(torch.isnan(with_set.trace.value[-1, with_set.forwards < 10]).all())


def test_costs_are_what_the_model_saw():
    model, (x, y) = Recording(NoisyLinear(binary().weight, 0.0, 0.3)), data(20)
    for attack in (
        PGD(Linf(0.1), steps=6, gradient=Backprop(3)),
        PGD(L2(0.3), steps=4, restarts=3),
        PGD(Linf(0.1), steps=70, gradient=Backprop(2)),
        BIM(Linf(0.1), steps=3, gradient=Evolution(4)),
    ):
        model.log.rows.clear()
        attempt = attack.run(model, x, y)
        assert sum(model.log.rows) - 2 == int(attempt.forwards.sum())  # two images were probed
        assert int(attempt.backwards.max()) <= attack.cost()[1]
    for attack in (PGD(Linf(0.1), steps=6, gradient=Backprop(3)), PGD(L2(0.3), steps=4, restarts=3)):
        attempt = replace(attack, drop_fooled=False).run(model, x, y)
        assert int(attempt.forwards.max()) <= attack.cost()[0]
        assert int(attempt.backwards.max()) == attack.cost()[1]


def easy(error: float, count: int):
    """A coin whose base is always right, so that P(correct) = 1 - error everywhere."""
    w = torch.randn(9, generator=torch.Generator().manual_seed(1))
    model = CoinFlip(Linear(torch.stack([-w, w])), error)
    x = data(count)[0]
    return model, x, model.base(x).argmax(1)


@pytest.mark.parametrize("draws", [1, 5])
def test_an_example_that_is_right_half_the_time_never_leaves(draws):
    """It would need 59 misses in a row at a point: false alarm below 1e-15 for the whole test."""
    model, x, y = easy(0.5, 40)
    steps = 80
    attempt = PGD(Linf(1e-6), steps=steps, gradient=Backprop(draws)).run(model, x, y)
    assert bool((attempt.backwards == steps * draws).all())
    assert not bool(torch.isnan(attempt.trace.value).any())


@pytest.mark.parametrize("scope", ["example", "unknown"])
def test_at_the_limit_few_examples_leave(scope):
    """P(correct) = LIMIT + 0.001: at most LEVEL of 300 examples may leave, 15 expected at worst; more than 35 would
    be 5 standard deviations (3e-7)."""
    model, x, y = easy(1 - LIMIT - 0.001, 300)
    attempt = PGD(Linf(1e-6), steps=70, gradient=Backprop(2)).run(
        model if scope == "example" else (lambda t: model(t)), x, y
    )
    left = attempt.backwards < 140
    assert LEVEL == 0.05
    assert int(left.sum()) <= 35


def test_the_levels_spent_over_the_tests_add_up():
    spent = [(1 - LIMIT) ** draws_needed(t) for t in range(1, 2000)]
    assert sum(spent) <= LEVEL
    assert all(s <= LEVEL / (t * (t + 1)) for t, s in enumerate(spent, 1))


def test_an_example_that_is_never_right_leaves_and_saves_its_passes():
    model, x, y = easy(1.0, 10)
    attempt = PGD(Linf(1e-6), steps=200).run(model, x, y)
    assert bool((attempt.backwards == 1).all())
    assert bool((attempt.forwards == draws_needed(1)).all())
    off = PGD(Linf(1e-6), steps=70, drop_fooled=False).run(model, x, y)
    assert bool((off.backwards == 70).all())


class Private(nn.Module):
    """Noise from a generator of its own, which the global generators do not show."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model, self.box = model, [torch.Generator().manual_seed(0)]

    def forward(self, x):
        logits = self.model(x)
        flip = torch.rand(len(x), 1, generator=self.box[0]) < 0.5
        return torch.where(flip, logits.roll(1, 1), logits)


def test_a_private_generator_is_noticed_before_anyone_leaves():
    """A repeated forward of about 20 misses differs but for odds of 2^-20."""
    model, x, y = easy(0.5, 40)
    attempt = PGD(Linf(1e-6), steps=10).run(Private(model.base), x, y)
    assert bool((attempt.backwards == 10).all())


def test_frozen_noise_attacks_the_frozen_model():
    base = NoisyLinear(binary().weight, 0.0, 0.5)
    model, (x, y) = FrozenNoise(base, 3), data(30)
    attack = PGD(Linf(0.15), steps=10, drop_fooled=False, objective=margin)
    z = attack(model, x, y)
    assert torch.equal(z, attack(model, x, y))
    s = (2 * y - 1).double()
    with torch.no_grad(), forked(3):
        noise = (base(x) - KnownAnswer.forward(base, x))[:, 1].double() * 2
    w = base.weight.detach().double()
    truth = s * (x.flatten(1).double() @ w + noise) - torch.from_numpy(worst(base, x, y, Linf(0.15))) > 0
    assert torch.equal(model(z).argmax(1) == y, truth)


@pytest.mark.parametrize("restarts", [1, 2])
@pytest.mark.parametrize("drop", [True, False])
def test_an_image_gets_the_same_attack_whatever_else_is_in_the_batch(restarts, drop):
    model, (x, y) = binary(), data(12)
    attack = PGD(Linf(0.1), steps=2, step_size=0.01, restarts=restarts, drop_fooled=drop)
    whole = attack(model, x, y, seed=3)
    for rows in ([4], [11, 0, 4], [7, 8, 9, 10]):
        torch.testing.assert_close(attack(model, x[rows], y[rows], seed=3), whole[rows], atol=1e-6, rtol=0)


def test_starts_follow_the_seed_and_the_identity():
    model, (x, y) = binary(), data(6)
    attack = PGD(Linf(0.1), steps=1, step_size=1e-9, keep="last", drop_fooled=False)
    assert torch.equal(attack(model, x, y, seed=1), attack(model, x, y, seed=1))
    assert not torch.equal(attack(model, x, y, seed=1), attack(model, x, y, seed=2))
    same = attack(model, x[:1].expand(3, -1, -1, -1), y[:1].expand(3), ids=[7, 7, 8])
    torch.testing.assert_close(same[0], same[1])
    assert not torch.allclose(same[0], same[2])


def test_a_random_model_gives_equal_results_for_equal_seeds():
    model, (x, y) = NoisyLinear(binary().weight, 0.0, 2.0), data(10)
    attack = PGD(Linf(0.3), steps=3, gradient=Backprop(2), restarts=2)
    assert torch.equal(attack(model, x, y, seed=1), attack(model, x, y, seed=1))
    torch.manual_seed(99)
    assert torch.equal(attack(model, x, y, seed=1), attack(model, x, y, seed=1))


def test_a_relaxed_attacker_compares_values_of_one_model():
    """With hard codes the last look would differ from the mean-field values seen on the way."""
    from stochade.models.known_answer import BernoulliLinear

    model, (x, y) = BernoulliLinear(binary().weight, binary().bias.item()), data(20)
    plain = binary()
    parts = {"steps": 4, "objective": margin, "keep": "best", "drop_fooled": False}
    relaxed = Descent(Linf(0.2), gradient=Backprop(relaxed="mean-field"), **parts).run(model, x, y)
    exact = Descent(Linf(0.2), **parts).run(plain, x, y)
    torch.testing.assert_close(relaxed.inputs, exact.inputs)
    torch.testing.assert_close(relaxed.value, exact.value)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int16, torch.int64])
def test_integer_labels_of_every_width_work(dtype):
    model, (x, y) = multi(), data(6, classes=4)
    t = ((y + 1) % 4).to(dtype)
    assert torch.equal(PGD(0.1, 3)(model, x, y.to(dtype)), PGD(0.1, 3)(model, x, y))
    assert torch.equal(PGD(0.1, 3)(model, x, y.to(dtype), targets=t), PGD(0.1, 3)(model, x, y, targets=t.long()))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_attacks_work_where_gradients_are_switched_off(mode):
    model, (x, y) = binary(), data(6)
    wanted = PGD(0.1, 3)(model, x, y)
    with mode():
        assert torch.equal(PGD(0.1, 3)(model, x, y), wanted)
        assert torch.equal(PGD(0.1, 3)(model, x.clone(), y.clone()), wanted)


def test_double_precision_and_vectors_work():
    model, (x, y) = binary().double(), data(6)
    z = PGD(L2(0.3), steps=5)(model, x.double().flatten(1), y)
    assert z.dtype == torch.float64
    assert z.shape == (6, 9)


@pytest.mark.parametrize("momentum", [0.0, 0.9, 1.0])
def test_momentum_is_the_papers_recursion(momentum):
    """Dong et al. 2018, algorithm 1, written out: g <- mu g + grad / mean|grad| (their l1 norm up to a constant)."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Flatten(), nn.Linear(9, 8), nn.Tanh(), nn.Linear(8, 3)).double().eval()
    x, y = data(10, classes=3)
    x = x.double()
    z, velocity = x.clone(), torch.zeros_like(x)
    for _ in range(6):
        leaf = z.clone().requires_grad_()
        (g,) = torch.autograd.grad(nn.functional.cross_entropy(model(leaf), y, reduction="sum"), leaf)
        velocity = momentum * velocity + g / g.abs().mean((1, 2, 3), keepdim=True)
        z = torch.minimum(torch.maximum(z + 0.1 * velocity.sign(), x - 0.3), x + 0.3).clamp(0, 1)
    parts = {"step_size": 0.1, "keep": "last", "drop_fooled": False}
    attack = MIFGSM(0.3, 6, momentum, **parts)
    torch.testing.assert_close(attack(model, x, y), z)
    if momentum:
        assert not torch.allclose(
            attack(model, x, y), BIM(0.3, 6, step_size=0.1, keep="last", drop_fooled=False)(model, x, y)
        )


def test_named_attacks_are_the_same_loop():
    assert FGSM(0.3).threat == Linf(0.3)
    assert (FGSM(0.3).steps, FGSM(0.3).step(Linf(0.3))) == (1, None)
    assert PGD(0.3, 10).random_start
    assert not BIM(0.3).random_start
    assert MIFGSM(0.3, 10).step(Linf(0.3)) == pytest.approx(0.03)
    assert PGD(0.3, 10).step(Linf(0.3)) == pytest.approx(2.5 * 0.3 / 10)
    budgets = sweep(PGD(L2(1.0)), [0.5, 2.0])
    assert [a.threat for a in budgets.values()] == [L2(0.5), L2(2.0)]
    assert isinstance(ILL(0.3), Attack)


@pytest.mark.parametrize(
    "parts",
    [
        {"steps": 0}, {"steps": 1.5}, {"steps": -1}, {"restarts": 0}, {"step_size": 0}, {"step_size": -0.1},
        {"step_size": float("nan")}, {"step_size": "big"}, {"momentum": -1}, {"momentum": float("nan")},
        {"keep": "first"}, {"goal": "all"}, {"gradient": 3}, {"objective": "margin"},
    ],
)  # fmt: skip
def test_parts_that_make_no_sense_are_refused(parts):
    with pytest.raises(BudgetError):
        Descent(Linf(0.3), **parts)


def test_a_threat_is_needed():
    with pytest.raises(BudgetError, match="Linf"):
        Descent(0.3)  # type: ignore[arg-type]
