"""The known answers themselves: enumeration against Monte Carlo, truths against brute force and attacks."""

import math
import pickle
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from scipy.stats import chi2

import oracles
from stochade.attacks import BIM, FGSM, L0, L1, L2, PGD, Backprop, Evolution, Linf, RandomSearch, margin
from stochade.attacks.fooled import LIMIT
from stochade.errors import LabelsError, ThreatError
from stochade.models.known_answer import (
    KNOWN,
    BernoulliLinear,
    Case,
    CoinFlip,
    DropoutLinear,
    ExplodingGradient,
    IntegrateAndFire,
    KnownAnswer,
    Linear,
    NoisyLinear,
    ThresholdedInput,
    ZeroGradient,
    reach,
)  # fmt: skip
from stochade.nn.discrete import scope_of
from stochade.randomness import Stream, forked

HONEST = [n for n in KNOWN if KNOWN[n](count=2).honest]
DISHONEST = [n for n in KNOWN if n not in HONEST]


def run_draws(case: Case, images: torch.Tensor, draws: int) -> np.ndarray:
    """[N, draws] whether each fresh draw is right."""
    with torch.no_grad():
        return np.stack([(case.model(images).argmax(1) == case.labels).numpy() for _ in range(draws)], 1)


@pytest.mark.parametrize("name", KNOWN)
def test_cases_are_small_seeded_and_well_formed(name):
    case, again, other = KNOWN[name](seed=1), KNOWN[name](seed=1), KNOWN[name](seed=2)
    assert case.images.shape[0] == case.labels.shape[0] == 60
    assert case.images.dim() == 4
    assert case.images[0].numel() <= 100
    assert 0 <= float(case.images.min()) <= float(case.images.max()) <= 1
    assert case.labels.dtype == torch.int64
    assert torch.equal(case.images, again.images)
    assert torch.equal(case.labels, again.labels)
    assert not torch.equal(case.images, other.images)
    states = zip(case.model.state_dict().values(), other.model.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in states)  # seeds are samples of one population
    assert KNOWN[name](count=7).images.shape[0] == 7
    assert (case.images == 0).any()
    assert (case.images == 1).any()
    assert not case.model.training
    assert case.description
    clean, truth = case.clean(), case.truth()
    assert clean.shape == truth.shape == (60,)
    assert bool((truth <= clean + 1e-12).all())
    assert 0 <= float(truth.min()) <= float(clean.max()) <= 1


def test_headline_truths():
    for values in (KNOWN["coin-flip"]().truth(), KNOWN["coin-flip"]().clean()):
        torch.testing.assert_close(values, torch.full((60,), 0.9, dtype=torch.float64), atol=1e-12, rtol=0)
    for name in ("zero-gradient", "exploding-gradient"):
        assert float(KNOWN[name]().truth().max()) == 0
        assert float(KNOWN[name]().clean().min()) == 1
    for name in KNOWN:
        if name not in ("coin-flip", "zero-gradient", "exploding-gradient"):
            assert 0.3 < float(KNOWN[name]().truth().mean()) < float(KNOWN[name]().clean().mean()) - 0.1


@pytest.mark.parametrize("name", [n for n in KNOWN if not n.endswith("stateful")])
def test_accuracy_at_is_the_frequency_of_right_draws(name):
    """At clean and at perturbed images. Sum of squared standardised deviations over examples, level 1e-5 a test;
    for noise per call the examples share draws, so 6 standard errors each instead (60 * 2e-9)."""
    case, draws = KNOWN[name](), 600
    noise = Stream(0, torch.arange(60)).normal(case.images.shape[1:])
    for images in (case.images, (case.images + 0.1 * noise).clamp(0, 1)):
        exact = case.model.accuracy_at(images, case.labels).numpy()
        with forked(1):
            seen = run_draws(case, images, draws).mean(1)
        sure = (exact == 0) | (exact == 1)
        assert (seen[sure] == exact[sure]).all()
        if sure.all():
            continue
        z = (seen - exact)[~sure] / np.sqrt(exact * (1 - exact) / draws)[~sure]
        expected_hits = np.minimum(exact, 1 - exact)[~sure] * draws
        z = z[expected_hits > 5]
        if scope_of(case.model) == "call":
            assert np.abs(z).max() < 6
        else:
            assert (z**2).sum() < chi2.isf(1e-5, len(z))


@pytest.mark.parametrize("name", KNOWN)
def test_no_allowed_input_is_below_the_truth(name):
    """Random points of the threat, corners and attacks: none may beat the truth."""
    case = KNOWN[name]()
    truth, s = case.truth(), Stream(0, torch.arange(60))
    tries = [case.threat.start(case.images, s) for _ in range(20)]
    corners = [case.images + case.threat.eps * s.signs(case.images.shape[1:]) for _ in range(20)]
    tries += [case.threat.project(c, case.images) for c in corners]
    for attack in (FGSM(case.threat), PGD(case.threat, 10, gradient=Backprop(3)), RandomSearch(case.threat, 20)):
        tries.append(attack(case.model, case.images, case.labels))
    for z in tries:
        assert bool((case.model.accuracy_at(z, case.labels) >= truth - 1e-6).all())


@pytest.mark.parametrize("name", HONEST)
def test_backpropagation_over_draws_reaches_the_truth_of_honest_models(name):
    case = KNOWN[name]()
    attack = PGD(case.threat, steps=20, gradient=Backprop(20), drop_fooled=False)
    z = attack(case.model, case.images, case.labels)
    torch.testing.assert_close(case.model.accuracy_at(z, case.labels), case.truth(), atol=1e-6, rtol=0)
    z = replace(attack, drop_fooled=True)(case.model, case.images, case.labels)
    torch.testing.assert_close(case.model.accuracy_at(z, case.labels), case.truth(), atol=LIMIT, rtol=0)


@pytest.mark.parametrize("name", ["zero-gradient", "exploding-gradient"])
def test_evolution_reaches_the_truth_where_backpropagation_is_blind(name):
    case = KNOWN[name]()
    blind = PGD(case.threat, steps=20)(case.model, case.images, case.labels)
    assert float(case.model.accuracy_at(blind, case.labels).mean()) > 0.85
    attack = BIM(case.threat, steps=20, gradient=Evolution(pairs=100, sigma=0.05), objective=margin)
    z = attack(case.model, case.images, case.labels)
    assert float(case.model.accuracy_at(z, case.labels).mean()) <= 0.05


def test_a_substitute_reaches_the_truth_of_thresholded_inputs():
    case = KNOWN["thresholded-input"]()
    blind = FGSM(case.threat)(case.model, case.images, case.labels)
    assert torch.equal(case.model.accuracy_at(blind, case.labels), case.clean())
    z = FGSM(case.threat, gradient=Backprop(substitutes="ste"))(case.model, case.images, case.labels)
    assert torch.equal(case.model.accuracy_at(z, case.labels), case.truth())


def test_gradients_are_what_the_names_say():
    zero, exploding = KNOWN["zero-gradient"](), KNOWN["exploding-gradient"]()
    g = Backprop()(zero.model, zero.images, zero.labels, margin).gradient
    assert not bool(g.any())
    g = Backprop()(exploding.model, exploding.images, exploding.labels, margin).gradient.flatten(1)
    w = exploding.model.weight.detach()
    assert float(g.abs().mean() / w.abs().mean()) > 1000
    towards = g.sign() * w.sign() * (1 - 2 * exploding.labels[:, None])
    assert abs(float(towards.mean())) < 5 / towards.numel() ** 0.5  # 5 standard errors


REACHES = [Linf(0.15), Linf(math.inf), L2(0.0), L2(0.3), L2(1.2), L2(9.0), L1(0.7), L1(3.0), L0(0), L0(2), L0(50)]


@pytest.mark.parametrize("threat", REACHES, ids=str)
def test_reach_is_the_oracles_worst_gain(threat):
    g = torch.Generator().manual_seed(0)
    x = (1.5 * torch.rand(20, 1, 2, 4, generator=g, dtype=torch.float64) - 0.25).clamp(0, 1)
    d = torch.randn(20, 8, generator=g, dtype=torch.float64)
    d[:, 2] = 0
    found = reach(d, x, threat)
    for i in range(20):
        wanted = oracles.worst_gain(-d[i].numpy(), x[i].flatten().numpy(), threat.name, threat.eps)
        assert float(found[i]) == pytest.approx(wanted, abs=1e-7)


@pytest.mark.parametrize("threat", [Linf(0.1), L2(0.3), L1(0.7), L0(1)], ids=str)
def test_truth_of_linear_and_noisy_models_by_oracle(threat):
    g = torch.Generator().manual_seed(1)
    x = (1.5 * torch.rand(40, 1, 2, 4, generator=g) - 0.25).clamp(0, 1)
    weight, bias = torch.randn(3, 8, generator=g), torch.randn(3, generator=g) / 5
    model, y = Linear(weight, bias), torch.randint(0, 3, (40,), generator=g)
    y = torch.where(torch.arange(40) < 30, model(x).argmax(1), y)
    w, b = weight.double().numpy(), bias.double().numpy()
    for i in range(40):
        flat, right = x[i].flatten().double().numpy(), True
        for j in {0, 1, 2} - {int(y[i])}:
            d = w[y[i]] - w[j]
            right &= d @ flat + b[y[i]] - b[j] - oracles.worst_gain(-d, flat, threat.name, threat.eps) > 0
        assert float(model.truth(x[i : i + 1], y[i : i + 1], threat)) == float(right)
    noisy, y = NoisyLinear(weight[0], 0.1, 0.7), y % 2
    for i in range(40):
        flat, s = x[i].flatten().double().numpy(), 2 * int(y[i]) - 1
        m = s * (w[0] @ flat + 0.1) - oracles.worst_gain(-s * w[0], flat, threat.name, threat.eps)
        wanted = 0.5 * (1 + math.erf(m / 0.7 / math.sqrt(2)))
        assert float(noisy.truth(x[i : i + 1], y[i : i + 1], threat)) == pytest.approx(wanted, abs=1e-6)


def _grid(x: torch.Tensor, eps: float, points: int) -> torch.Tensor:
    """All points of a grid over the box within eps of one image of few pixels."""
    axes = [np.linspace(max(0, v - eps), min(1, v + eps), points) for v in x.flatten().tolist()]
    return torch.tensor(list(product(*axes)), dtype=torch.float64).view(-1, *x.shape)


@pytest.mark.parametrize(
    "model",
    [
        KnownAnswer(torch.tensor([1.0, -2.0, 0.5, 0.7]), -0.1),
        NoisyLinear(torch.tensor([1.0, -2.0, 0.5, 0.7]), -0.1, 0.3),
        DropoutLinear(torch.tensor([1.0, -2.0, 0.5, 0.7]), -0.1, blocks=2, p=0.4).train(),
        BernoulliLinear(torch.tensor([1.0, -2.0, 0.5, 0.7]), -0.1),
        ThresholdedInput(torch.tensor([1.0, -2.0, 0.5, 0.7]), -0.1),
        IntegrateAndFire(torch.tensor([0.3, -0.4, 0.1, 0.2]), 0.0, steps=7),
        ZeroGradient(torch.tensor([1.0, -2.0, 0.5, 0.7]), -0.1, grain=0.3),
        CoinFlip(Linear(torch.tensor([[0.0, 0, 0, 0], [1.0, -2.0, 0.5, 0.7]])), 0.2),
    ],
    ids=lambda m: type(m).__name__,
)
def test_truth_is_the_minimum_over_a_grid(model):
    """4 pixels, 5 points each, corners of the ball among them: where the truth sits."""
    g = torch.Generator().manual_seed(2)
    x = torch.rand(12, 1, 2, 2, generator=g, dtype=torch.float32)
    x[:4, 0, 0] = torch.tensor([0.0, 1.0])
    y = torch.randint(0, 2, (12,), generator=g)
    truth = model.truth(x, y, Linf(0.2))
    for i in range(12):
        points = _grid(x[i], 0.2, 5).float()
        least = model.accuracy_at(points, y[i].expand(len(points))).min()
        assert float(truth[i]) == pytest.approx(float(least), abs=1e-6)


def test_coin_flip_rolls_by_one_class():
    base = Linear(torch.eye(3), torch.zeros(3))
    x = torch.eye(3).view(3, 1, 1, 3)
    model = CoinFlip(base, 1.0)
    assert model(x).argmax(1).tolist() == [1, 2, 0]
    y = torch.tensor([0, 0, 2])  # right; predicts 1, rolls to 2; right
    torch.testing.assert_close(CoinFlip(base, 0.1).accuracy_at(x, y), torch.tensor([0.9, 0.0, 0.9]).double())
    y = torch.tensor([1, 2, 0])
    torch.testing.assert_close(CoinFlip(base, 0.1).accuracy_at(x, y), torch.full((3,), 0.1).double())
    with pytest.raises(ThreatError):
        CoinFlip(base, 0.1).truth(x, torch.arange(3), Linf(1.0))


def test_spike_counts_are_floors():
    """From rest, floor(steps * current) spikes; currents chosen so that float32 sums are exact."""
    model = IntegrateAndFire(torch.tensor([1.0]), 0.0, steps=8)
    m = torch.tensor([-0.75, -0.25, 0.0, 0.125, 0.5, 0.96875])
    counts = model(m.view(-1, 1, 1, 1))
    wanted = torch.stack([torch.floor(8 * (1 - m) / 2), torch.floor(8 * (1 + m) / 2)], 1)
    assert torch.equal(counts, wanted)


def test_charge_left_between_calls_changes_the_next_answer():
    stateful = KNOWN["integrate-and-fire-stateful"]()
    model, x = stateful.model.requires_grad_(False), stateful.images
    fresh = model(x)
    second = model(x)
    assert not torch.equal(fresh, second)
    model.reset()
    assert torch.equal(model(x), fresh)
    model.reset()
    calls = torch.stack([model(x) for _ in range(64)]).mean(0)
    m = model.margin(x)
    rate = 16 * ((1 + torch.stack([-m, m], 1)) / 2).clamp(0, 1)
    assert float((calls - rate).abs().max()) < 1.01 / 64 + 1e-3  # the charge adds up to the true rate
    model(x[:7])  # another batch size starts from rest
    model.reset()
    reset = KNOWN["integrate-and-fire"]()
    assert torch.equal(reset.model(x), reset.model(x))
    assert torch.equal(reset.model(x), fresh)


@pytest.mark.parametrize("name", KNOWN)
def test_models_travel_and_declare_their_scope(name):
    case = KNOWN[name]()
    twin = pickle.loads(pickle.dumps(case.model))
    with forked(0):
        a = case.model(case.images)
    with forked(0):
        assert torch.equal(twin(case.images), a)
    scope = scope_of(case.model)
    assert scope == {
        "coin-flip": "example", "noisy-linear": "example", "dropout-linear": "example", "bernoulli-linear": "example",
        "noisy-linear-per-call": "call", "integrate-and-fire-stateful": "unknown",
    }.get(name, "none")  # fmt: skip


@pytest.mark.parametrize("name", [n for n in KNOWN if not n.endswith("stateful")])
def test_declared_scopes_are_true(name):
    """Shown one image 400 times in a call: noise per example gives several answers, noise per call just one, and
    deterministic models the same in every call."""
    case = KNOWN[name]()
    uncertain = int((case.clean() - 0.6).abs().argmin())
    x = case.images[uncertain : uncertain + 1].expand(400, -1, -1, -1)
    with forked(0), torch.no_grad():
        first, second = case.model(x), case.model(x)
    distinct = len(torch.unique((first[:, 1] - first[:, 0]).round(decimals=4)))
    scope = scope_of(case.model)
    assert (distinct > 1) == (scope == "example")
    assert torch.equal(first, second) == (scope == "none")


def test_dropout_can_be_switched_off():
    case = KNOWN["dropout-linear"]()
    case.model.drop.eval()
    assert scope_of(case.model) == "none"
    right = (case.model(case.images).argmax(1) == case.labels).double()
    assert torch.equal(case.clean(), right)


def test_questions_without_an_answer_are_refused():
    case = KNOWN["bernoulli-linear"]()
    with pytest.raises(ThreatError):
        case.model.truth(case.images, case.labels, L2(0.3))
    flat = KNOWN["linear"]()
    with pytest.raises(ThreatError):
        flat.model.truth(flat.images, flat.labels, L0(2, "pixel"))
    with pytest.raises(LabelsError):
        case.model.truth(case.images, case.labels + 1, Linf(0.1))
    model = ExplodingGradient(torch.ones(4), -2.0, height=0.5)
    x, y = torch.full((1, 1, 2, 2), 0.55), torch.ones(1, dtype=torch.long)
    assert math.isnan(float(model.truth(x, y, Linf(0.05))))
