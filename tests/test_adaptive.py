"""The adaptive search finds by itself what works on designs that hide their gradient."""

import pickle

import pytest
import torch
from torch import nn

from stochade import PGD, Linf, evaluate, margin
from stochade.attacks import Backprop
from stochade.attacks.adaptive import Trial, _covering, search_attacks, worth_attacking
from stochade.attacks.adaptive_suite import Adaptive
from stochade.attacks.space import Candidate, View, layer_types, variations, views
from stochade.errors import BudgetError
from stochade.models.known_answer import KNOWN
from stochade.nn import KWTA, Discrete, surrogates
from stochade.randomness import forked

QUICK = 800


class Step(Discrete):
    """1 where x > 0; its own backward is zero, its substitutes see through it."""

    scope = "none"

    def __init__(self):
        super().__init__(
            surrogates.zero(),
            {"ste": surrogates.identity(), "soft": surrogates.sigmoid(4.0)},
            {"warm": torch.sigmoid},
        )

    def hard(self, x):
        return (x > 0).to(x.dtype)


class Steps(nn.Module):
    scope = "composite"

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(16, 40), Step(), nn.Linear(40, 20), KWTA(0.5), nn.Linear(20, 3)
        )

    def forward(self, x):
        return self.layers(x)


def steps():
    with forked(0):
        model = Steps().eval()
        x = torch.rand(24, 1, 4, 4)
    with torch.no_grad():
        return model, x, model(x).argmax(1)


def test_views_are_all_that_the_layers_declare_and_none_twice():
    model, _, _ = steps()
    names = [v.name for v in views(model, Linf(0.1), False)]
    assert len(names) == len(set(names))
    assert set(layer_types(model)) == {"Step", "KWTA"}
    for expected in ("own backward", "backward soft", "backward Step:ste", "forward warm", "square"):
        assert expected in names, names
    assert any(n.startswith("backward") and "KWTA" in n and "Step" in n for n in names)
    plain = [v.name for v in views(nn.Linear(3, 2), Linf(0.1), False)]
    assert plain[0] == "own backward"
    assert not [n for n in plain if n.startswith(("backward", "forward", "ensemble"))]
    assert next(v.name for v in views(model, Linf(0.1), False, differentiable=False)).startswith("evolution")


def test_variations_differ_in_one_part():
    base = Candidate(View("own backward", Backprop, True), draws=4)
    for other in variations(base, random=True)[1:]:
        parts = [p for p in ("objective", "draws", "rule", "start") if getattr(other, p) != getattr(base, p)]
        assert len(parts) == 1
    assert all(c.rule != "average" for c in variations(base, random=False))
    assert all(c.rule != "apgd" for c in variations(base, random=True, norm="l0"))


@pytest.mark.parametrize("name", ["zero-gradient", "exploding-gradient"])
def test_a_gradient_that_leads_nowhere_is_replaced(name):
    case = KNOWN[name](count=40)
    own = evaluate(case.model, case.images, case.labels, {"own": PGD(case.threat, 40)}, show_progress=False)
    assert own.score("own").value > 0.9
    found = evaluate(
        case.model, case.images, case.labels, {"a": Adaptive(case.threat, passes=QUICK, examples=16)},
        show_progress=False,
    )  # fmt: skip
    assert found.score("a").value <= 0.02  # the truth is 0


def test_layers_without_a_backward_are_seen_through():
    model, x, y = steps()
    threat = Linf(0.1)
    records = evaluate(
        model, x, y, {
            "own": PGD(threat, 40),
            "by hand": PGD(threat, 40, gradient=Backprop(1, "soft"), objective=margin, restarts=3),
            "adaptive": Adaptive(threat, passes=2000, examples=24),
        }, show_progress=False,
    )  # fmt: skip
    assert records.score("adaptive").value <= records.score("by hand").value + 1e-9
    assert records.score("adaptive").value < records.score("own").value


def test_the_search_stays_inside_its_budget_and_logs_everything():
    case = KNOWN["noisy-linear"](count=40)
    rows = worth_attacking(case.model, case.images, case.labels, 16)
    seen: list[Trial] = []
    found = search_attacks(
        case.model, case.images[rows], case.labels[rows], case.threat, passes=1500, report=seen.append
    )
    assert found.passes <= 1.3 * 1500 * len(rows)  # sequential tests of who may leave come on top
    assert [t.candidate.name for t in seen] == [t.candidate.name for t in found.trials]
    assert {t.round for t in found.trials} == {0, 1, 2, 3}
    assert found.winners
    kept = {t.candidate.name for t in found.trials if t.round == 3 and t.kept}
    assert kept == {c.name for c in found.winners}


def test_equal_seeds_find_equal_winners_and_the_model_is_untouched():
    case = KNOWN["noisy-linear"](count=20)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, two = (
        search_attacks(case.model, case.images, case.labels, case.threat, passes=600, seed=3) for _ in range(2)
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert [t.candidate.name for t in one.trials] == [t.candidate.name for t in two.trials]
    assert [t.accuracy for t in one.trials] == [t.accuracy for t in two.trials]
    assert all(p.grad is None for p in case.model.parameters())


def test_on_honest_random_models_the_search_finds_the_truth():
    """Noisy linear: nothing beats the averaged own gradient, and its score is the known truth, within 4 standard
    errors of 100 examples x 20 draws."""
    case = KNOWN["noisy-linear"](count=100)
    records = evaluate(
        case.model, case.images, case.labels, {"a": Adaptive(case.threat, passes=1500)}, show_progress=False
    )
    truth = float(case.truth().mean())
    assert abs(records.score("a").value - truth) < 4 * 0.5 / (100 * 20) ** 0.5 + 0.02


def test_a_second_winner_must_break_what_the_first_does_not():
    def trial(name, right):
        return Trial(Candidate(View(name)), PGD(Linf(0.1)), 3, 10, 1.0, torch.tensor(right)[:, None], 0.0)

    half = [False] * 6 + [True] * 4
    a, same, other = trial("a", half), trial("b", half), trial("c", half[::-1])
    assert [t.candidate.view.name for t in _covering([a, same, other], 3)] == ["a", "c"]
    assert [t.candidate.view.name for t in _covering([a, same], 3)] == ["a"]
    assert _covering([], 3) == []


def test_luck_on_draws_makes_no_second_winner():
    """Ten equal attacks on a coin flip: each example's worst of ten looks strong on the draws that chose it."""
    generator = torch.Generator().manual_seed(0)
    trials = [
        Trial(
            Candidate(View(str(i))), PGD(Linf(0.1)), 3, 60, 1.0,
            torch.rand(60, 20, generator=generator) < 0.9, 0.0,
        )
        for i in range(10)
    ]  # fmt: skip
    assert len(_covering(trials, 3)) == 1


def test_only_examples_that_the_model_gets_right_are_searched_on():
    case = KNOWN["linear"](count=60)
    rows = worth_attacking(case.model, case.images, case.labels, 10)
    assert len(rows) == 10
    assert bool((case.model(case.images[rows]).argmax(1) == case.labels[rows]).all())
    wrong = 1 - case.model(case.images).argmax(1)
    assert len(worth_attacking(case.model, case.images, wrong, 10)) == 10


def test_bad_budgets_are_named_before_any_compute():
    case = KNOWN["linear"](count=4)
    with pytest.raises(BudgetError, match="passes"):
        search_attacks(case.model, case.images, case.labels, case.threat, passes=10)
    for bad in ({"passes": 0}, {"examples": 0}, {"final": 0}, {"winners": -1}, {"threat": 3}):
        with pytest.raises(BudgetError):
            Adaptive(**{"threat": Linf(0.1)} | bad)
    assert pickle.loads(pickle.dumps(Adaptive(Linf(0.1)))) == Adaptive(Linf(0.1))
