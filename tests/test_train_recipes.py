"""The papers' training: who attacks which batch, with whose labels, from which epoch on."""

import pytest
import torch
import torch.nn.functional as F
from scipy.stats import binomtest, chisquare
from torch import nn

from small_training import run, same, sign_step, small, squares, told
from stochade.attacks import CW, FGSM, Descent, GaussianNoise, Linf
from stochade.errors import BudgetError, CheckpointError, UsageError
from stochade.randomness import seed_for
from stochade.train import Adversarial, Mixture, Penalised, Standard, lab_report_mixture
from stochade.train.optimizers import optimizer_named
from stochade.train.schedules import Halving, Steps
from stochade.train.settings import named
from stochade.train.setups import SETUPS, pni


def named_attack(name):
    def attack(model, x, y, *, seed):
        seen.append(name)
        return x

    attack.__qualname__ = name
    return attack


seen: list[str] = []


def test_half_of_the_batches_stay_clean_and_the_attacks_share_the_rest():
    """Seeds of batches as the loop makes them. An exact binomial test and a chi-square test at 1e-6 each."""
    attacks = tuple(named_attack(name) for name in "abcd")
    chosen = [Mixture(attacks).chosen(seed_for(0, "attack", 0, batch)) for batch in range(8000)]
    assert binomtest(sum(c is None for c in chosen), 8000, 0.5).pvalue > 1e-6
    counts = [chosen.count(attack) for attack in attacks]
    assert sum(counts) + chosen.count(None) == 8000
    assert chisquare(counts).pvalue > 1e-6
    assert not any(Mixture(attacks, clean=1.0).chosen(seed) for seed in range(50))
    assert all(Mixture(attacks, clean=0.0).chosen(seed) for seed in range(50))


def test_one_attack_a_batch_and_its_images_are_trained_on():
    seen.clear()
    model = small("mlp")
    x, y = squares()[:8]
    y = torch.as_tensor(y)
    objective = Mixture((named_attack("none"), sign_step))
    moved = sign_step(model, x, y, seed=0)
    losses = {None: F.cross_entropy(model(x), y), sign_step: F.cross_entropy(model(moved), y)}
    losses[objective.attacks[0]] = losses[None]
    for seed in range(12):
        before, chosen = len(seen), objective.chosen(seed)
        loss, _ = objective(model, x, y, model=model, seed=seed)
        torch.testing.assert_close(loss, losses[chosen])
        assert len(seen) - before == (chosen is objective.attacks[0])
    assert len({objective.chosen(seed) for seed in range(12)}) == 3


def test_the_same_run_chooses_the_same_attacks_and_resumes(tmp_path):
    whole, broken = small(), small()
    objective = lab_report_mixture(Linf(0.1), steps=2)
    history = run(whole, epochs=3, objective=objective)
    run(broken, epochs=1, objective=lab_report_mixture(Linf(0.1), steps=2), out=tmp_path)
    assert told(run(broken, epochs=3, objective=objective, out=tmp_path)) == told(history)
    assert same(whole.state_dict(), broken.state_dict())
    with pytest.raises(CheckpointError, match="objective"):
        run(small(), epochs=3, objective=lab_report_mixture(Linf(0.1), steps=3), out=tmp_path)


def test_the_report_s_mixture_holds_its_four_attacks_and_all_but_noise_hurt():
    model = small("mlp")
    run(model, epochs=10)
    model.eval()
    found = lab_report_mixture(Linf(0.2))
    assert [type(a) for a in found.attacks] == [Descent, Descent, CW, GaussianNoise]
    assert found.attacks[1] == FGSM(Linf(0.2))
    assert found.clean == 0.5
    x, y = squares()[:]
    y = torch.as_tensor(y)

    def accuracy(images):
        return float((model(images).argmax(1) == y).float().mean())

    clean = accuracy(x)
    assert clean > 0.85
    for attack in found.attacks[:3]:
        assert accuracy(attack(model, x, y, seed=0)) < clean - 0.3
    assert accuracy(found.attacks[3](model, x, y, seed=0)) > clean - 0.2


def test_mixtures_that_make_no_sense_are_refused():
    for wrong in ({"attacks": ()}, {"attacks": ("pgd",)}, {"clean": 1.5}, {"clean": -0.1}):
        with pytest.raises(UsageError):
            Mixture(**{"attacks": (sign_step,), **wrong})
    for start in (-1, 1.5, True):
        with pytest.raises(BudgetError, match="epoch"):
            Mixture((sign_step,), start=start)
        with pytest.raises(BudgetError, match="epoch"):
            Adversarial(sign_step, start=start)
    with pytest.raises(UsageError, match="labels"):
        Adversarial(sign_step, labels="wrong")
    names = {named(Mixture((a, b))) for a in (sign_step, lab_report_mixture) for b in (sign_step, lab_report_mixture)}
    assert len(names) == 4


@pytest.mark.parametrize("kind", ["adversarial", "mixture"])
def test_the_attack_begins_with_its_epoch(kind):
    epochs = []

    def attack(model, x, y, *, seed):
        epochs.append(now[0])
        return x

    now = [0]

    class Spy:
        def __call__(self, *args, epoch, **kwargs):
            now[0] = epoch
            return inner(*args, epoch=epoch, **kwargs)

    inner = Adversarial(attack, start=2) if kind == "adversarial" else Mixture((attack,), clean=0.0, start=2)
    clean, late = small("mlp"), small("mlp")
    run(late, epochs=4, objective=Spy())
    assert sorted(set(epochs)) == [2, 3]
    assert len(epochs) == 8
    first = run(clean, epochs=2)
    assert told(run(small("mlp"), epochs=2, objective=inner)) == told(first)


class Liar(nn.Module):
    """Predicts class 1 in evaluation mode and class 0 in training mode."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        right = torch.tensor([0.0, 5.0] if not self.training else [5.0, 0.0])
        return right.expand(len(x), 2) + self.weight * x.flatten(1)[:, :2]


def test_labels_for_crafting_are_the_model_s_own_predictions():
    given = []

    def attack(model, x, y, *, seed):
        given.append(y.clone())
        return x

    model = Liar().train()
    x, y = torch.rand(4, 1, 2, 2), torch.tensor([0, 1, 0, 0])
    Adversarial(attack, labels="predicted")(model, x, y, model=model, seed=0)
    Adversarial(attack)(model, x, y, model=model, seed=0)
    assert [g.tolist() for g in given] == [[1, 1, 1, 1], [0, 1, 0, 0]]
    assert model.training


def test_setups_hold_the_papers_numbers():
    he = pni()
    assert (he.epochs, he.batch, he.lr, he.schedule) == (160, 128, 0.1, Steps((80, 120)))
    assert named(he.optimizer) == named(optimizer_named("sgd", momentum=0.9, weight_decay=3e-4))
    attack = he.objective.attack
    assert (attack.threat, attack.steps, attack.step_size, attack.random_start) == (Linf(0.031), 7, 0.01, True)
    assert (he.objective.weight, he.objective.labels, he.objective.start) == (0.5, "predicted", 5)
    panousis = SETUPS["lwta"]()
    assert (panousis.epochs, panousis.schedule, panousis.objective.weight) == (150, Halving(75), 0)
    assert (panousis.objective.attack.steps, panousis.objective.attack.step_size) == (10, 0.007)
    binarised = SETUPS["galloway"]()
    assert (binarised.epochs, binarised.objective.start, binarised.objective.attack.steps) == (15, 10, 40)
    assert all(isinstance(make().objective.inner, Standard) for make in SETUPS.values())
    penalised = Penalised(l2=0.1)
    assert all(make(penalised).objective.inner is penalised for make in SETUPS.values())


@pytest.mark.parametrize("name", sorted(SETUPS))
def test_every_setup_trains(name):
    model = small("mlp")
    before = model.dense.weight.clone()
    history = run(model, **{**SETUPS[name]().settings(), "epochs": 1, "batch": 30})
    assert history.epochs[0].train_loss < 2
    assert not torch.equal(model.dense.weight, before)
