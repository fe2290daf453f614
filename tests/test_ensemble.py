"""Ensembles of gradients, against parts whose gradients are known."""

import pickle
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from stochade.attacks import FGSM, PGD, Averaged, Backprop, Ensemble, Evolution, Linf, Pass, cross_entropy, margin
from stochade.errors import BudgetError
from stochade.evaluate import evaluate
from stochade.models.known_answer import KNOWN, BernoulliLinear, ThresholdedInput
from stochade.randomness import Stream, forked


@dataclass(frozen=True)
class Given:
    """A gradient that is what it was told, for every example."""

    row: tuple[float, ...]
    relaxed: str | None = None
    forwards: int = 1
    backwards: int = 1

    def __call__(self, model, x, y, objective, *, targets=None, stream=None) -> Pass:
        gradient = torch.tensor(self.row).expand(len(x), -1).view_as(x)
        return Pass(torch.full((len(x),), self.row[0]), gradient, torch.full((1, len(x), 2), self.row[0]))


X, Y = torch.rand(3, 1, 2, 2), torch.tensor([0, 1, 0])


def ask(*parts, **options) -> Pass:
    return Ensemble(parts, **options)(nn.Identity(), X, Y, margin, stream=Stream(0, torch.arange(3)))


def test_parts_are_brought_to_one_size_and_averaged():
    """Mean absolute values 2.5, 25 and 0: (1, 2, 3, 4) / 2.5 and (-40, 30, 20, -10) / 25, then the mean of three."""
    got = ask(Given((1, 2, 3, 4)), Given((-40, 30, 20, -10)), Given((0, 0, 0, 0))).gradient
    wanted = (torch.tensor([0.4, 0.8, 1.2, 1.6]) + torch.tensor([-1.6, 1.2, 0.8, -0.4])) / 3
    torch.testing.assert_close(got, wanted.expand(3, 4).view_as(X))


def test_weights_count_by_their_ratio_and_sizes_may_be_kept():
    parts = Given((1, 2, 3, 4)), Given((-40, 30, 20, -10))
    first, second = (torch.tensor(p.row).expand(3, 4).view_as(X) for p in parts)
    torch.testing.assert_close(ask(*parts, weights=(1, 3)).gradient, first / 2.5 / 4 + second / 25 * 3 / 4)
    torch.testing.assert_close(ask(*parts, weights=(2, 6)).gradient, ask(*parts, weights=(1, 3)).gradient)
    torch.testing.assert_close(ask(*parts, normalised=False).gradient, first / 2 + second / 2)


@pytest.mark.parametrize("size", [1e-41, 1e-30, 1e30])
def test_no_size_is_too_small_or_too_large(size):
    """Below the smallest normal float as well as beyond what can be summed in the mean."""
    scaled = ask(Given((size, -size, 0, size)), Given((0, 0, 1, 0))).gradient
    torch.testing.assert_close(scaled, ask(Given((1, -1, 0, 1)), Given((0, 0, 1, 0))).gradient, rtol=1e-3, atol=0)


def test_the_first_part_that_is_not_relaxed_speaks():
    relaxed, first, second = Given((7, 0, 0, 0), "mean-field"), Given((5, 0, 0, 0)), Given((3, 0, 0, 0))
    got = ask(relaxed, first, second)
    assert got.value.tolist() == [5] * 3
    assert got.logits.unique().tolist() == [5]
    assert Ensemble([relaxed, first]).relaxed is None
    assert Ensemble([relaxed]).relaxed == "mean-field"
    assert ask(relaxed).value.tolist() == [7] * 3
    assert Ensemble([relaxed, Backprop(8)]).draws == 8


def test_passes_add_up_per_example():
    ensemble = Ensemble([Backprop(2), Evolution(3), Averaged(2, 8)])
    assert (ensemble.forwards, ensemble.backwards) == (2 + 7 + 8, 2 + 8)
    model = ThresholdedInput(torch.ones(4))
    got = ensemble(model, X, Y, margin, stream=Stream(0, torch.arange(3)))
    assert got.spent.tolist() == [[2 + 7 + 2] * 3, [2 + 2] * 3]  # nothing random: the least number of draws


def test_backwards_differ_from_part_to_part_and_are_taken_back():
    """Own backward zero, straight-through sW, and the soft one, which is a positive multiple of it pixel by pixel."""
    model = ThresholdedInput(torch.tensor([1.0, -2.0, 3.0, -4.0]))
    parts = [Backprop(), Backprop(1, "ste"), Backprop(1, "soft")]
    got = Ensemble(parts)(model, X, Y, margin)
    one = [p(model, X, Y, margin).gradient for p in parts]
    assert not one[0].any()
    each = [g / g.abs().mean((1, 2, 3), keepdim=True) for g in one[1:]]
    torch.testing.assert_close(got.gradient, (each[0] + each[1]) / 3)
    assert not Backprop()(model, X, Y, margin).gradient.any()


def test_relaxed_parts_steer_and_do_not_judge():
    """A mean-field part beside the model's own backward: the logits are the model's own draws."""
    model = BernoulliLinear(torch.randn(4, generator=torch.Generator().manual_seed(0)))
    ensemble = Ensemble([Backprop(1, relaxed="mean-field"), Backprop(6)])
    with forked(3):
        got = ensemble(model, X, Y, margin)
    with forked(3):
        own = Backprop(6)(model, X, Y, margin)
    torch.testing.assert_close(got.logits, own.logits)
    attack = PGD(Linf(1.0), steps=4, gradient=Ensemble([Backprop(1, relaxed="mean-field")]))
    assert attack.run(model, X, Y).forwards.tolist() == [4] * 3  # nobody leaves


def test_random_parts_have_numbers_of_their_own_per_example():
    """Two evolution parts differ, and neither order nor company of the examples matters."""
    case = KNOWN["linear"](count=6)
    stream = Stream(0, torch.arange(6))
    ensemble = Ensemble([Evolution(2), Evolution(2)])
    both = ensemble(case.model, case.images, case.labels, cross_entropy, stream=stream).gradient
    one = Ensemble([Evolution(2)])(
        case.model, case.images, case.labels, cross_entropy, stream=Stream(0, torch.arange(6))
    ).gradient
    assert not torch.allclose(both, one)
    some = torch.tensor([4, 1])
    fewer = ensemble(case.model, case.images[some], case.labels[some], cross_entropy, stream=Stream(0, some))
    torch.testing.assert_close(fewer.gradient, both[some], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["zero-gradient", "thresholded-input"])
def test_one_useful_part_is_enough(name):
    """The own backward of both models is zero; with evolution or straight-through beside it the attack finds the
    truth, without it nothing."""
    case = KNOWN[name]()
    helped = Ensemble([Backprop(), Evolution(100, 0.1) if name == "zero-gradient" else Backprop(1, "ste")])
    attacks = {"own": PGD(case.threat, steps=20), "both": PGD(case.threat, steps=20, gradient=helped)}
    records = evaluate(case.model, case.images, case.labels, attacks, show_progress=False)
    truth = float(case.truth().mean())
    assert records.score("both", "single").value == pytest.approx(truth, abs=0.02)
    assert records.score("own", "single").value > truth + 0.1


def test_it_travels():
    ensemble = Ensemble([Backprop(), Evolution(2)], weights=[1, 2])
    assert pickle.loads(pickle.dumps(ensemble)) == ensemble
    assert hash(FGSM(0.1, gradient=ensemble)) == hash(FGSM(0.1, gradient=pickle.loads(pickle.dumps(ensemble))))


@pytest.mark.parametrize(
    ("parts", "options"),
    [([], {}), (Backprop(), {}), ("soft", {}), ([Backprop], {}), ([Backprop(), None], {}),
     ([Backprop()], {"weights": [1, 2]}), ([Backprop()], {"weights": [0]}), ([Backprop()], {"weights": [-1]}),
     ([Backprop()], {"weights": [float("nan")]}), ([Backprop()], {"weights": ["a"]}), ([Backprop()], {"weights": 1})],
)  # fmt: skip
def test_parts_that_make_no_sense_are_named(parts, options):
    with pytest.raises(BudgetError):
        Ensemble(parts, **options)
