"""REINFORCE units against enumeration of every state, their baselines in closed form, and who may look in."""

import copy
import pickle
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from scipy.stats import binomtest
from torch import nn

from stochade.data import load
from stochade.errors import ModelError, UsageError
from stochade.nn import backward_as, forward_as, scope_of
from stochade.nn.reinforce import ReinforceBinary, recorded, score_function_loss
from stochade.registry import build
from stochade.train import train
from stochade.train.reinforced import Reinforced

STATES = torch.tensor(list(product((0.0, 1.0), repeat=3)), dtype=torch.float64)
A = torch.tensor([0.7, -1.2, 0.3], dtype=torch.float64)
TABLE = torch.tensor([1.0, 0.2, 3.0, 0.7, 0.1, 2.2, 0.4, 1.6], dtype=torch.float64)  # the loss of every state


def chances(a):
    p = torch.sigmoid(a)
    return torch.where(STATES > 0, p, 1 - p).prod(1)


def fixed_states(unit, states):
    """The unit draws these states instead of random ones, as if by chance."""
    unit.hard = lambda x: states.to(x.dtype)


def estimates(unit, losses=TABLE):
    """The gradient estimate of every one of the 8 states, [8, 3]."""
    fixed_states(unit, STATES)
    a = A.expand(8, 3).clone().requires_grad_()
    with recorded(unit) as draws:
        unit(a)
    return torch.autograd.grad(score_function_loss(draws, losses).sum(), a)[0]


def with_baseline(b):
    unit = ReinforceBinary(3)
    unit.baseline_square.fill_(2.0)
    unit.baseline_weighted.copy_(2 * torch.as_tensor(b).expand(3))
    return unit


@pytest.mark.parametrize("b", [0.0, 1.5, [0.25, -3.0, 8.0]])
def test_the_estimate_is_unbiased_for_every_baseline(b):
    """sum over states of P(h) g(h) = d/da sum P(h) L(h), to rounding."""
    a = A.clone().requires_grad_()
    exact = torch.autograd.grad((chances(a) * TABLE).sum(), a)[0]
    got = (chances(A)[:, None] * estimates(with_baseline(b))).sum(0)
    torch.testing.assert_close(got, exact, rtol=1e-12, atol=1e-12)


def test_the_baseline_makes_the_variance_smallest():
    """Variance by enumeration at b = E[(h-p)^2 L] / E[(h-p)^2], around it, and without a baseline."""
    p = chances(A)[:, None]
    square = (STATES - torch.sigmoid(A)).square()
    best = (p * square * TABLE[:, None]).sum(0) / (p * square).sum(0)

    def variance(b):
        g = estimates(with_baseline(b.tolist()))
        return (p * g.square()).sum(0) - (p * g).sum(0).square()

    least = variance(best)
    for other in (torch.zeros(3), best + 0.1, best - 0.1):
        assert (variance(other) > least + 1e-4).all()
    assert (variance(torch.zeros(3)) > 1.5 * least).all()


def test_running_means_reach_the_best_baseline():
    """40 batches of 20,000 draws: each ratio has a standard error of about 0.003; within 0.02, fixed seed."""
    torch.manual_seed(0)
    unit = ReinforceBinary(3)
    index = torch.tensor([4.0, 2.0, 1.0])
    for _ in range(40):
        with recorded(unit) as draws:
            h = unit(A.float().expand(20000, 3))
        unit.observe(draws[0].score(), TABLE.float()[(h @ index).long()])
    p, square = chances(A)[:, None], (STATES - torch.sigmoid(A)).square()
    best = (p * square * TABLE[:, None]).sum(0) / (p * square).sum(0)
    torch.testing.assert_close(unit.baseline.double(), best, rtol=0, atol=0.02)


def test_running_means_forget_with_their_decay_and_start_unbiased():
    unit = ReinforceBinary(1, decay=0.9)
    assert unit.baseline.item() == 0.0
    unit.observe(torch.tensor([[0.5]]), torch.tensor([4.0]))
    assert unit.baseline.item() == pytest.approx(4.0)  # no pull towards the zeros at the start
    unit.observe(torch.tensor([[0.5]]), torch.tensor([2.0]))
    assert unit.baseline.item() == pytest.approx((0.9 * 4 + 2) / 1.9)
    again = ReinforceBinary(1)
    again.load_state_dict(unit.state_dict())
    assert again.baseline.item() == unit.baseline.item()


class Stack(nn.Module):
    """Two layers of two units each, then logits."""

    scope = "composite"

    def __init__(self):
        super().__init__()
        self.one, self.two, self.head = nn.Linear(3, 2), nn.Linear(2, 2), nn.Linear(2, 3)
        self.low, self.high = ReinforceBinary(2), ReinforceBinary(2)

    def forward(self, x):
        return self.head(self.high(self.two(self.low(self.one(x)))))


def test_two_layers_and_the_head_get_the_exact_gradient_on_average():
    """All 16 states of a network with two stochastic layers, through the training objective itself."""
    torch.manual_seed(0)
    model = Stack().double()
    for unit, b in ((model.low, 0.9), (model.high, 0.4)):
        unit.baseline_square.fill_(1.0)
        unit.baseline_weighted.fill_(b)
    x, y = torch.randn(1, 3, dtype=torch.float64), torch.tensor([1])
    states = torch.tensor(list(product((0.0, 1.0), repeat=4)), dtype=torch.float64)
    low, high = states[:, :2], states[:, 2:]

    def bernoulli_chance(a, h):
        return torch.where(h > 0, torch.sigmoid(a), 1 - torch.sigmoid(a)).prod(1)

    p = bernoulli_chance(model.one(x), low) * bernoulli_chance(model.two(low), high)
    losses = F.cross_entropy(model.head(high), y.expand(16), reduction="none")
    exact = torch.autograd.grad((p * losses).sum(), list(model.parameters()))
    got = [torch.zeros_like(parameter) for parameter in model.parameters()]
    for i in range(16):  # one state at a time, because the objective takes a mean
        trial = copy.deepcopy(model)
        fixed_states(trial.low, low[i : i + 1])
        fixed_states(trial.high, high[i : i + 1])
        loss, logits = Reinforced()(trial, x, y, model=trial, seed=0)
        assert loss.item() == pytest.approx(losses[i].item(), rel=1e-6)  # the value is the cross-entropy alone
        assert logits.shape == (1, 3)
        for total, gradient in zip(got, torch.autograd.grad(loss, list(trial.parameters())), strict=True):
            total += p[i].detach() * gradient
    for mine, wanted in zip(got, exact, strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-5, atol=1e-6)  # the loss is taken in float32


def test_nothing_goes_around_the_units():
    """Without the score function, layers below a unit get no gradient at all; with it, all do."""
    torch.manual_seed(0)
    model = Stack()
    x, y = torch.randn(8, 3), torch.randint(3, (8,))
    with recorded(model):
        F.cross_entropy(model(x), y).backward()
    below = [model.one.weight, model.one.bias, model.two.weight, model.two.bias]
    assert all(parameter.grad is None for parameter in below)
    assert model.head.weight.grad is not None
    Reinforced()(model, x, y, model=model, seed=0)[0].backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in below)


def test_the_objective_moves_the_baselines_after_the_batch():
    torch.manual_seed(0)
    model = Stack()
    Reinforced()(model, torch.randn(8, 3), torch.randint(3, (8,)), model=model, seed=0)
    assert (model.low.baseline > 0.3).all()
    assert (model.high.baseline > 0.3).all()


def test_an_attacker_gets_the_soft_backward_or_what_it_names_never_the_estimate():
    unit = ReinforceBinary(3).eval()
    a = A.expand(4, 3).clone().requires_grad_()
    p = torch.sigmoid(a.detach())
    torch.testing.assert_close(torch.autograd.grad(unit(a).sum(), a)[0], p * (1 - p))
    for name, wanted in (("soft", p * (1 - p)), ("ste", torch.ones_like(p)), ("identity", torch.ones_like(p))):
        with backward_as(unit, {"*": name}):
            torch.testing.assert_close(torch.autograd.grad(unit(a).sum(), a)[0], wanted)
    with forward_as(unit, {"*": "mean-field"}):
        torch.testing.assert_close(unit(a.detach()), p)
    assert unit._draws is None


def test_other_training_is_refused_by_name():
    """Backpropagation in training mode would train a straight-through network under the name of REINFORCE."""
    unit = ReinforceBinary(3).train()
    a = A.expand(4, 3).clone().requires_grad_()
    out = unit(a)
    assert set(out.unique().tolist()) <= {0.0, 1.0}
    with pytest.raises(UsageError, match="Reinforced"):
        out.sum().backward()
    with backward_as(unit, {"*": "ste"}):  # an explicit choice is one
        assert torch.equal(torch.autograd.grad(unit(a).sum(), a)[0], torch.ones_like(a))


def test_units_fire_with_their_probability_each_example_apart():
    """Three exact binomial tests at 1e-6; equal rows of 400 bits have probability below 1e-70."""
    torch.manual_seed(0)
    unit = pickle.loads(pickle.dumps(ReinforceBinary(3).eval()))
    h = unit(A.float().expand(20000, 3))
    for fired, p in zip(h.sum(0).int().tolist(), torch.sigmoid(A).tolist(), strict=True):
        assert binomtest(fired, 20000, p).pvalue > 1e-6
    wide = ReinforceBinary((4, 10, 10)).eval()
    assert len(wide(torch.zeros(30, 4, 10, 10)).flatten(1).unique(dim=0)) == 30
    assert scope_of(unit) == "example"


def test_maps_of_units_have_a_baseline_each():
    torch.manual_seed(0)
    unit = ReinforceBinary((2, 3, 3))
    a = torch.randn(5, 2, 3, 3, requires_grad=True)
    losses = torch.rand(5)
    with recorded(unit) as draws:
        h = unit(a)
    unit.baseline_square.fill_(1.0)
    unit.baseline_weighted.copy_(torch.rand(2, 3, 3))
    got = torch.autograd.grad(score_function_loss(draws, losses).sum(), a)[0]
    expected = (h - torch.sigmoid(a.detach())) * (losses.view(5, 1, 1, 1) - unit.baseline_weighted)
    torch.testing.assert_close(got, expected)


def test_it_learns_where_a_frozen_layer_cannot():
    """Digits, 8 hidden units: learning below the units beats the same random units under a trained head."""
    images, validation = load("digits", "train"), load("digits", "validation")
    scores = []
    for frozen in (False, True):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), ReinforceBinary(8), nn.Linear(8, 10))
        model.scope = "composite"
        if frozen:
            model[1].requires_grad_(False)
        history = train(model, images, validation, epochs=6, lr=1e-2, objective=Reinforced(), progress=False, seed=2)
        scores.append(history.best_accuracy)
    assert scores[0] > scores[1] + 0.1


def test_errors_say_what_was_expected():
    with pytest.raises(ModelError, match="units"):
        ReinforceBinary(0)
    with pytest.raises(UsageError, match="decay"):
        ReinforceBinary(3, decay=1.0)
    with pytest.raises(ModelError, match=r"activations \[N, 3\]"):
        ReinforceBinary(3)(torch.zeros(2, 4))
    unit = ReinforceBinary(3)
    with recorded(unit) as draws:
        unit(torch.zeros(2, 3, requires_grad=True))
        with pytest.raises(UsageError, match="one recording"), recorded(unit):
            pass
    with pytest.raises(ModelError, match="one loss per example"):
        score_function_loss(draws, torch.zeros(3))
    with pytest.raises(ModelError, match="REINFORCE units"), recorded(nn.Linear(2, 2)):
        pass


@pytest.mark.parametrize(("name", "convolutions"), [("mlp", 0), ("1cnn", 1), ("2cnn", 2)])
def test_registered_networks(name, convolutions):
    torch.manual_seed(0)
    model = build(f"{name}-reinforce", (1, 8, 8), 4, hidden=30, decay=0.5).eval()
    assert sum(isinstance(m, nn.Conv2d) for m in model.modules()) == convolutions
    assert model.activation.units == (30,)
    assert model.activation.decay == 0.5
    assert scope_of(model) == "example"
    assert model(torch.rand(5, 1, 8, 8)).shape == (5, 4)
