"""Exact verification: equal to enumeration and to closed forms on every small case, examples that are real, "unknown"
where time or rounding ends it, and errors by name for whatever cannot be read."""

import itertools
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from exact_cases import ALL, KINDS, behind_threshold, dense, truth_by_cases, truth_by_patterns, weights
from stochade.attacks.descent import PGD
from stochade.attacks.square import Square
from stochade.attacks.threats import L0, L2, Linf
from stochade.certify import exact_milp, largest_robust, verify
from stochade.errors import BudgetError, ImagesError, ModelError, ThreatError
from stochade.models.bnn import BNN
from stochade.models.known_answer import Linear, Threshold, ThresholdedInput
from stochade.models.plain import MLP
from stochade.nn import KWTA, Sign, StochasticBinary
from stochade.nn.binarised import BinaryLinear, BinaryWeight
from stochade.randomness import fingerprint


def checked(model, x, label, threat, verdict):
    """The verdict's example is allowed and wrong."""
    if verdict.status == "broken":
        example = verdict.example[None]
        assert int(model(example).argmax(1)) != label
        assert float(threat.distance(example, x)) <= threat.eps + 1e-6
        assert bool(((example >= 0) & (example <= 1)).all())
    else:
        assert verdict.example is None


def compare_patterns(nets, images, seed):
    """Counts of (status, truth) over nets x images x 4 threats."""
    counts = {}
    for net in range(nets):
        generator = torch.Generator().manual_seed(1000 * seed + net)
        model = dense(generator, plain=net % 2 == 0)
        x = torch.rand(images, 1, 1, 5, generator=generator, dtype=torch.float64)
        y = model(x).argmax(1)
        for threat in (Linf(0.1), Linf(0.3), L0(1), L0(2)):
            for i, verdict in enumerate(verify(model, x, y, threat)):
                robust, closest = truth_by_patterns(model, x[i], int(y[i]), threat)
                if closest < 1e-5:
                    continue
                checked(model, x[i : i + 1], int(y[i]), threat, verdict)
                counts[verdict.status, robust] = counts.get((verdict.status, robust), 0) + 1
    return counts


def compare_cases(nets, images, seed, kinds=KINDS):
    counts = {}
    for net, kind in itertools.product(range(nets), kinds):
        generator = torch.Generator().manual_seed(1000 * seed + 10 * net + KINDS.index(kind))
        model = behind_threshold(generator, kind, plain=net % 2 == 0)
        x = torch.rand(images, 1, 3, 3, generator=generator, dtype=torch.float64)
        y, answers = model(x).argmax(1), model(ALL).argmax(1)
        for threat in (Linf(0.1), Linf(0.3), L0(1), L0(2)):
            for i, verdict in enumerate(verify(model, x, y, threat)):
                robust = truth_by_cases(answers, x[i], int(y[i]), threat)
                checked(model, x[i : i + 1], int(y[i]), threat, verdict)
                counts[verdict.status, robust] = counts.get((verdict.status, robust), 0) + 1
    return counts


def agrees(counts, least):
    assert counts.get(("robust", False), 0) == counts.get(("broken", True), 0) == 0
    assert counts[("robust", True)] >= least
    assert counts[("broken", False)] >= least
    undecided = sum(n for (status, _), n in counts.items() if status == "unknown")
    assert undecided <= 0.01 * sum(counts.values())


def test_equals_linear_programs_over_all_patterns():
    agrees(compare_patterns(nets=5, images=2, seed=1), least=5)


@pytest.mark.parametrize("kind", KINDS)
def test_equals_enumeration_behind_a_threshold(kind):
    agrees(compare_cases(nets=6, images=2, seed=2, kinds=(kind,)), least=5)


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "nets"), [(3, 75), (5, 45)])
def test_ten_thousand_cases_by_enumeration(seed, nets):
    """6,000 and 3,600; the rest of the ten thousand are the next test's."""
    counts = compare_cases(nets=nets, images=5, seed=seed)
    assert sum(counts.values()) == 80 * nets
    agrees(counts, least=5 * nets)


@pytest.mark.slow
def test_ten_thousand_cases_by_linear_programs():
    counts = compare_patterns(nets=50, images=2, seed=4)
    assert sum(counts.values()) > 395  # of 400; the others hang on rounding
    agrees(counts, least=40)


@pytest.mark.parametrize("threat", [Linf(0.05), Linf(0.2), L0(1), L0(3)], ids=str)
def test_known_answers_have_their_truth(threat):
    """A step of single pixels, and no step at all: both have closed forms."""
    generator = torch.Generator().manual_seed(7)
    x = torch.rand(12, 1, 3, 4, generator=generator)
    models = [
        ThresholdedInput(torch.randn(12, generator=generator), 0.3),
        Linear(torch.randn(4, 12, generator=generator), torch.randn(4, generator=generator)),
    ]
    for model in models:
        y = model(x).argmax(1)
        cases = (x >= 0.5).float() if isinstance(threat, L0) and isinstance(model, ThresholdedInput) else x
        rule = super(ThresholdedInput, model) if cases is not x else model  # changed pixels flip: linear in the bits
        truth = rule.truth(cases, y, threat)
        found = [v.status for v in verify(model, x, y, threat)]
        assert found == ["robust" if t == 1 else "broken" for t in truth.tolist()]


def test_changes_are_counted_per_pixel_where_asked():
    """Three channels at one position: one changed pixel, three changed values."""
    weight = torch.zeros(2, 3, 1, 2)
    weight[0, :, 0, 0] = 1.0
    model = Linear(weight.flatten(1), torch.tensor([-2.5, 0.0]))
    x, y = torch.ones(1, 3, 1, 2), torch.tensor([0])
    statuses = [verify(model, x, y, t)[0].status for t in (L0(0), L0(1), L0(1, per="pixel"))]
    assert statuses == ["robust", "broken", "broken"]
    model = Linear(weight.flatten(1), torch.tensor([-0.5, 0.0]))
    statuses = [verify(model, x, y, t)[0].status for t in (L0(2), L0(3), L0(1, per="pixel"))]
    assert statuses == ["robust", "broken", "broken"]


@pytest.mark.parametrize("seed", range(3))
def test_never_robust_where_an_attack_succeeds(seed):
    generator = torch.Generator().manual_seed(seed)
    model = dense(generator, inputs=16, first=8, second=6, dtype=torch.float32)
    x = torch.rand(12, 1, 4, 4, generator=generator)
    y = model(x).argmax(1)
    for threat in (Linf(0.05), Linf(0.15)):
        statuses = [v.status for v in verify(model, x, y, threat)]
        broken = torch.zeros(len(x), dtype=torch.bool)
        for attack in (PGD(threat, steps=20), Square(threat, queries=200)):
            broken |= model(attack(model, x, y)).argmax(1) != y
        assert not any(s == "robust" and b for s, b in zip(statuses, broken.tolist(), strict=True))
        assert "unknown" not in statuses


def test_the_binarised_network_of_the_papers_and_the_plain_one_are_read():
    generator = torch.Generator().manual_seed(3)
    x = torch.rand(3, 1, 8, 8, generator=generator)
    for model in (BNN((1, 8, 8), filters=(3, 4, 4), hidden=5), MLP((1, 8, 8), hidden=6, activation="deterministic")):
        weights(model, generator)
        y = model(x).argmax(1)
        for threat in (Linf(0.02), L0(1)):
            for i, verdict in enumerate(verify(model, x, y, threat)):
                checked(model, x[i : i + 1], int(y[i]), threat, verdict)
                assert verdict.status != "unknown"
                assert verdict.fixed + verdict.open == verdict.units > 0


class Half(nn.Module):
    """1 where a pixel is at least 1/2, else 0."""

    def __init__(self):
        super().__init__()
        self.step = Threshold()

    def forward(self, x):
        return self.step(x - 0.5)


def on_the_edge(beta):
    """Class 1 iff the sign of a batch norm at the sum of three thresholded pixels is +1; at the sum 3 its value is
    beta in real arithmetic, but 0 in float32 where beta is tiny."""
    layer = nn.BatchNorm1d(1).eval()
    with torch.no_grad():
        layer.running_mean.fill_(3.0)
        layer.bias.fill_(beta)
        dense_layer, head = BinaryLinear(3, 1), nn.Linear(1, 2, bias=False)
        dense_layer.weight.fill_(1.0)
        head.weight.copy_(torch.tensor([[-1.0], [1.0]]))
    return nn.Sequential(nn.Flatten(), Half(), dense_layer, layer, Sign(), head).eval()


def test_rounding_that_turns_a_sign_is_neither_hidden_nor_guessed():
    """At the sum 3 real arithmetic says -1, float32 says +1. Three binary pixels reach it or not."""
    body = on_the_edge(-1e-9)
    zeros, ones = torch.zeros(1, 1, 1, 3), torch.ones(1, 1, 1, 3)
    assert body(ones).argmax(1).item() == 1  # in float32; in real arithmetic the class is 0
    low = verify(body, zeros, torch.tensor([0]), L0(3))[0]
    assert low.status == "broken"  # the network that runs is what counts for examples
    high = verify(body, ones, torch.tensor([1]), L0(0))[0]
    assert (high.status, high.reason) == ("unknown", "tolerance")  # right where it runs, wrong on paper
    assert verify(body, zeros, torch.tensor([0]), L0(2))[0].status == "robust"


def test_sums_that_float32_cannot_hold_are_not_proven():
    """1 + 2^25 - 2^25 is 1 on paper, and 0 or 1 in float32 by the order of the sum: its sign beside 1/2 is open."""
    first, head = nn.Linear(3, 1), nn.Linear(1, 2, bias=False)
    with torch.no_grad():
        first.weight.copy_(torch.tensor([[1.0, 2.0**25, -(2.0**25)]]))
        first.bias.fill_(-0.5)
        head.weight.copy_(torch.tensor([[-1.0], [1.0]]))
    model, x = nn.Sequential(nn.Flatten(), first, Sign(), head).eval(), torch.ones(1, 1, 1, 3)
    verdict = verify(model, x, model(x).argmax(1), L0(0))[0]
    assert (verdict.status, verdict.reason) == ("unknown", "tolerance")
    model, x = model.double(), x.double()
    assert verify(model, x, torch.tensor([1]), L0(0))[0].status == "robust"


def test_no_time_gives_unknown():
    model = dense(torch.Generator().manual_seed(0))
    x = torch.rand(2, 1, 1, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = model(x).argmax(1)
    for verdict in verify(model, x, y, Linf(0.0), seconds=0):
        assert (verdict.status, verdict.reason, verdict.example) == ("unknown", "time limit", None)
    found = [v for v in verify(model, x, y, L0(2), seconds=1e-9) if v.solved]
    assert found
    assert all((v.status, v.reason) == ("unknown", "time limit") for v in found)


@pytest.mark.parametrize("status", [1, 3, 4])
def test_a_solver_that_gives_up_proves_nothing(monkeypatch, status):
    """HiGHS out of time (1), unbounded (3) or in trouble (4); only 2, infeasible, is a proof."""
    monkeypatch.setattr(exact_milp, "milp", lambda *a, **k: SimpleNamespace(x=None, status=status))
    model = dense(torch.Generator().manual_seed(0))
    x = torch.rand(2, 1, 1, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = [v for v in verify(model, x, model(x).argmax(1), L0(2)) if v.solved]
    assert found
    assert all(v.status == "unknown" for v in found)


def test_attacks_that_go_first_give_checked_examples():
    """One attack finds corners, another leaves the threat: its images are projected, and checked."""
    model = Linear(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    x, y = torch.tensor([[[[0.6, 0.45]]], [[[0.9, 0.1]]]]), torch.tensor([0, 0])
    asked = []

    def away(model, x, y):
        asked.append(len(x))
        return 1 - x

    found = verify(model, x, y, Linf(0.1), attacks=[away, away])
    assert [v.status for v in found] == ["broken", "robust"]
    assert not found[0].solved
    assert found[0].example.flatten().tolist() == pytest.approx([0.5, 0.55])
    assert asked == [2, 1]
    assert [v.status for v in verify(model, x, y, Linf(0.1), 0, attacks=[away])] == ["unknown", "unknown"]


def test_a_wrong_image_is_its_own_example():
    model = dense(torch.Generator().manual_seed(0))
    x = torch.rand(1, 1, 1, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    verdict = verify(model, x, (model(x).argmax(1) + 1) % 3, Linf(0.1))[0]
    assert verdict.status == "broken"
    assert torch.equal(verdict.example, x[0])


def test_bisection_brackets_the_closed_form():
    generator = torch.Generator().manual_seed(2)
    model = Linear(torch.randn(3, 6, generator=generator), torch.randn(3, generator=generator))
    x = torch.rand(4, 1, 2, 3, generator=generator)
    y = model(x).argmax(1)
    for i, bracket in enumerate(largest_robust(model, x, y)):
        one, label = x[i : i + 1], y[i : i + 1]
        truths = [float(model.truth(one, label, Linf(level / 255))) for level in range(1, 129)]
        proven = sum(truths)
        assert bracket.robust == (proven / 255 if proven else None)
        assert bracket.broken == ((proven + 1) / 255 if proven < 128 else None)
    with pytest.raises(BudgetError, match="rising budgets"):
        largest_robust(model, x, y, [0.2, 0.1])


class Drawing(nn.Module):
    """A linear layer with noise in its forward."""

    def __init__(self, how):
        super().__init__()
        self.linear, self.how = nn.Linear(5, 3), how

    def forward(self, x):
        x = x.flatten(1)
        if self.how == "tensor":
            return self.linear(x + torch.rand(5))
        if self.how == "like":
            return self.linear(x + torch.rand_like(x))
        if self.how == "branch":
            return self.linear(x) if x.sum() > 0 else -self.linear(x)
        return self.linear(x) + float(torch.rand(()))


def hooked():
    layer = nn.Linear(5, 3)
    layer.register_forward_hook(lambda module, given, out: -out)
    return nn.Sequential(nn.Flatten(), layer)


REFUSED = [
    (lambda: nn.Sequential(nn.Flatten(), nn.Linear(5, 4), StochasticBinary(), nn.Linear(4, 3)), "StochasticBinary"),
    (lambda: nn.Sequential(nn.Flatten(), BinaryLinear(5, 3, BinaryWeight(drawn=True))), "BinaryWeight"),
    (lambda: nn.Sequential(nn.Flatten(), nn.Linear(5, 4), KWTA(0.5), nn.Linear(4, 3)), "KWTA"),
    (lambda: nn.Sequential(nn.Flatten(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)), "Tanh"),
    (lambda: nn.Sequential(nn.MaxPool2d(1), nn.Flatten(), nn.Linear(5, 3)), "MaxPool2d"),
    (lambda: nn.Sequential(nn.Flatten(), nn.BatchNorm1d(5), nn.Linear(5, 3)).train(), "train mode"),
    (lambda: Drawing("tensor"), "tensor made in its forward"),
    (lambda: Drawing("like"), "rand_like"),
    (lambda: Drawing("number"), "second forward"),
    (lambda: Drawing("branch"), "TraceError"),
    (hooked, "hook"),
    (lambda: lambda x: x.flatten(1), "nn.Module"),
]


@pytest.mark.parametrize(("make", "told"), REFUSED, ids=[told for _, told in REFUSED])
def test_what_cannot_be_read_is_refused_by_name(make, told):
    model = make()
    if isinstance(model, nn.Module) and told != "train mode":
        model.eval()
    before = sorted(vars(model)) if isinstance(model, nn.Module) else None
    with pytest.raises(ModelError, match=told):
        verify(model, torch.rand(2, 1, 1, 5), torch.zeros(2, dtype=torch.int64), Linf(0.1))
    assert before is None or sorted(vars(model)) == before


def test_impossible_settings_are_refused():
    model, x, y = Linear(torch.eye(4)), torch.rand(1, 1, 2, 2), torch.tensor([0])
    with pytest.raises(ThreatError, match="Linf"):
        verify(model, x, y, L2(0.1))
    for seconds in (-1, float("nan"), True):
        with pytest.raises(BudgetError, match="seconds"):
            verify(model, x, y, Linf(0.1), seconds)
    with pytest.raises(ImagesError, match="float32 or float64"):
        verify(model, x.bfloat16(), y, Linf(0.1))


def test_the_model_and_the_generators_stay_as_they_were():
    model = dense(torch.Generator().manual_seed(0)).requires_grad_()
    x = torch.rand(1, 1, 1, 5, dtype=torch.float64)
    y = model(x).argmax(1)
    before, state = fingerprint(), {k: v.clone() for k, v in model.state_dict().items()}
    names = [sorted(vars(m)) for m in model.modules()]
    first = verify(model, x, y, L0(2))[0]
    again = verify(model, x, y, L0(2))[0]
    assert fingerprint() == before
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert [sorted(vars(m)) for m in model.modules()] == names
    assert not model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert (first.status, first.open) == (again.status, again.open)
