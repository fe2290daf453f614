"""What every attack by name keeps, whatever it does inside: exact worst cases and smallest changes on linear models,
budgets per example, targets, warm starts, independence of the batch, counted passes, no luck on coin flips."""

import math

import pytest
import torch
from torch import nn

from stochade import L0, L1, L2, Linf, evaluate
from stochade.attacks.registry import ATTACKS, parse_attack
from stochade.models.known_answer import KNOWN
from stochade.randomness import forked

INF = float("inf")
BALLS = {"linf": Linf(0.1), "l2": L2(0.35), "l1": L1(1.2), "l0": L0(3)}
KINDS = {"linf": Linf, "l2": L2, "l1": L1, "l0": L0}
# attacks inside a budget: text, norms, how far above the exact accuracy they may stay on a linear model (60 examples)
BOUNDED = [
    ("apgd-ce steps=40", ("linf", "l2"), 0.0),
    ("apgd-dlr steps=40", ("linf", "l2"), 0.0),
    ("apgd-t steps=40", ("linf", "l2"), 0.0),
    ("apgd-ce steps=100", ("l1",), 0.05),  # sparse steps of equal size: near the vertex of a fractional knapsack
    ("fab steps=40", ("linf", "l2", "l1"), 0.02),
    ("square queries=800", ("linf", "l2"), 0.15),
    ("pgd steps=40 objective=margin", ("linf", "l2", "l1", "l0"), 0.0),
]
# minimum-norm attacks: text, norms, largest mean ratio of the distance to the exact one
MINIMAL = [
    ("fab steps=60", ("linf", "l2", "l1"), 1.05),
    ("deepfool", ("linf", "l2"), 1.02),
    ("fmn steps=200", ("linf", "l2", "l1"), 1.03),
    ("fmn steps=100", ("l0",), 1.2),
]
CASES = [(text, norm, gap) for text, norms, gap in BOUNDED for norm in norms]
SMALLEST = [(text, norm, ratio) for text, norms, ratio in MINIMAL for norm in norms]
QUICK = {
    "apgd-ce": "steps=8", "apgd-dlr": "steps=8", "apgd-t": "steps=4 targets=2", "fab": "steps=5",
    "square": "queries=30", "cw": "steps=10 search_steps=2", "lbfgs": "steps=3 search_steps=2", "deepfool": "steps=5",
    "fmn": "steps=8",
    "jsma": "steps=2", "sigma-zero": "steps=8", "nes": "steps=3 pairs=3",
    "spsa": "steps=3 pairs=3",
    "hopskipjump": "steps=1 evaluations=10", "evolution": "steps=3 pairs=3", "random-search": "samples=6",
    "pgd": "steps=4", "adaptive": "passes=200 examples=8 final=20",
}  # fmt: skip
SUITES = {"standard", "fast", "random", "adaptive"}
LONG = {"standard", "fast"}
NAMES = [
    pytest.param(n, marks=pytest.mark.slow) if n in LONG else n
    for n in ATTACKS
    if n not in ("transfer", "kubo2019-bim")
]
SINGLE = [n for n in ATTACKS if n not in SUITES | {"transfer", "kubo2019-bim"}]


def threat_for(name: str):
    return (
        BALLS["l0"] if name in ("jsma", "sigma-zero") else BALLS["l2"] if name in ("lbfgs", "cw") else BALLS["linf"]
    )


def built(name: str, threat=None):
    return parse_attack(f"{name} {QUICK.get(name, '')}", threat or threat_for(name))


def smallest(case, norm: str) -> torch.Tensor:
    """[N] the least budget at which the truth is 0, by bisection on the closed form (by counting for l0)."""
    found = []
    for i in range(len(case.images)):
        x, y, kind = case.images[i : i + 1], case.labels[i : i + 1], KINDS[norm]

        def falls(eps, x=x, y=y, kind=kind) -> bool:
            return float(case.model.truth(x, y, kind(eps))) == 0

        if norm == "l0":
            found.append(float(next(k for k in range(26) if falls(k))))
            continue
        low, high = 0.0, 1.0 if norm == "linf" else 15.0
        for _ in range(30):
            middle = (low + high) / 2
            low, high = (low, middle) if falls(middle) else (middle, high)
        found.append(high)
    return torch.tensor(found)


@pytest.mark.parametrize(("text", "norm", "gap"), CASES, ids=lambda v: str(v))
def test_linear_models_fall_to_their_closed_form(text, norm, gap):
    case, threat = KNOWN["linear"](count=60), BALLS[norm]
    inputs = parse_attack(text, threat)(case.model, case.images, case.labels)
    assert float(threat.distance(inputs, case.images).max()) <= threat.eps * (1 + 1e-5) + 1e-6
    assert 0 <= float(inputs.min()) <= float(inputs.max()) <= 1
    truth = case.model.truth(case.images, case.labels, threat).mean()
    found = (case.model(inputs).argmax(1) == case.labels).double().mean()
    assert float(truth) - 1e-9 <= float(found) <= float(truth) + gap + 1e-9


@pytest.mark.parametrize(("text", "norm", "ratio"), SMALLEST, ids=lambda v: str(v))
def test_smallest_changes_of_linear_models(text, norm, ratio):
    case = KNOWN["linear"](count=64)
    truth, kind = smallest(case, norm), KINDS[norm]
    attempt = parse_attack(text, kind(INF)).run(case.model, case.images, case.labels)
    right = case.model(case.images).argmax(1) == case.labels
    assert bool((attempt.distance[~right] == 0).all())
    assert bool((attempt.distance >= truth * 0.999 - 1e-5)[right].all())
    assert float(attempt.distance[right].mean() / truth[right].mean()) < ratio
    logits = case.model(attempt.inputs).detach()
    lead = logits.gather(1, 1 - case.labels[:, None]) - logits.gather(1, case.labels[:, None])
    assert float(lead.min()) > -1e-5  # on the boundary up to rounding, or beyond
    alone = parse_attack(text, kind(INF)).run(case.model, case.images[:1], case.labels[:1]).distance
    torch.testing.assert_close(alone, attempt.distance[:1], rtol=0.02, atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_equal_seeds_give_equal_inputs_and_the_model_is_left_alone(name):
    case = KNOWN["linear"](count=10)
    attack = built(name)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    one, two = (attack(case.model, case.images, case.labels, seed=4) for _ in range(2))
    assert torch.equal(one, two)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(p.grad is None and p.requires_grad for p in case.model.parameters())
    assert not case.model.training


@pytest.mark.parametrize("name", [n for n in NAMES if n != "adaptive"])  # which learns from its batch
def test_an_example_does_not_depend_on_its_batch(name):
    case = KNOWN["linear"](count=14)
    attack = built(name)
    whole = attack(case.model, case.images, case.labels)
    part = attack(case.model, case.images[4:7], case.labels[4:7])
    torch.testing.assert_close(whole[4:7], part, rtol=0.02, atol=2e-3)


@pytest.mark.parametrize("name", NAMES)
def test_every_example_may_have_a_budget_of_its_own(name):
    case = KNOWN["linear"](count=12)
    threat = threat_for(name)
    each = torch.linspace(0, 2, 12) * threat.eps
    each = each.round() if threat.name == "l0" else each
    attempt = built(name).run(case.model, case.images, case.labels, budgets=each)
    moved = threat.distance(attempt.inputs, case.images)
    assert bool((moved <= each * (1 + 1e-5) + 1e-6).all())
    assert bool((attempt.inputs[0] == case.images[0]).all())


@pytest.mark.parametrize("name", SINGLE)
def test_targets_warm_starts_and_counts(name):
    class Counting(nn.Module):
        scope = "none"
        seen = 0

        def __init__(self):
            super().__init__()
            with forked(0):
                self.linear = nn.Linear(16, 4)

        def forward(self, x):
            Counting.seen += len(x)
            return self.linear(x.flatten(1))

    with forked(1):
        x = torch.rand(6, 1, 4, 4)
    model = Counting().eval()
    y = model(x).argmax(1)
    targets = (y + 1) % 4
    attack = built(name)
    Counting.seen = 0
    attempt = attack.run(model, x, y, targets=targets, start=(x + 0.01).clamp(0, 1))
    assert attempt.inputs.shape == x.shape
    assert Counting.seen - 2 == int(attempt.forwards.sum()), "two images of the probe, and what is counted"
    assert bool((attempt.found_at <= attempt.forwards + attempt.backwards).all())
    trace = attempt.trace
    assert trace.value.shape == trace.distance.shape == trace.passes.shape


@pytest.mark.parametrize("name", [n for n in NAMES if n != "adaptive"])  # which learns from its batch
def test_a_coin_flip_keeps_its_score(name):
    """Errs on 10 % of draws whatever the input: 40 examples x 20 draws, 99.99 % of intervals hold 0.90 this wide."""
    case, threat = KNOWN["coin-flip"](count=40), threat_for(name)
    if threat.name == "l0":
        pytest.skip("a changed value may cross the margin that the coin flip's budget excludes")
    attack = built(name, case.threat if threat.name == "linf" else threat.resized(1e-3))
    score = evaluate(case.model, case.images, case.labels, {"a": attack}, draws=20, show_progress=False).score("a")
    assert abs(score.value - 0.9) < 4 * math.sqrt(0.09 / 800)
