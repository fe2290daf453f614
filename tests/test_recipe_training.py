"""Trainings of recipes: what networks are kept by, teachers, second trainings, and losses over time by name."""

import pytest
import torch
import torch.nn.functional as F

from stochade.attacks import FGSM, SEA, Flips, Linf
from stochade.data import load
from stochade.describe import digest
from stochade.errors import ModelError, UsageError
from stochade.randomness import forked
from stochade.recipes import catalogue
from stochade.recipes.networks import parts_of, trained
from stochade.recipes.schema import LATER, Training
from stochade.registry import build
from stochade.train import TET, Adversarial, AdversarialCodes, Distilled
from stochade.train.settings import fingerprint_of

TAUGHT = """
title = "A teacher"
paper = "wu2024"
place = "nowhere"
claim = "None."

[[network]]
name = "plain"
model = "mlp"
training = { epochs = 1 }

[[network]]
name = "taught"
model = "snn"
teacher = "plain"
options = { encoder = "rsc-i", width = 0.25, encoder_options = { sigma = 0.3 } }
training = { epochs = 1, objective = "e-rsct" }

[[network]]
name = "again"
model = "mlp"
seed = 1
training = { epochs = 1 }

[[attack]]
name = "FGSM"
attack = "fgsm"
budgets = [0.1]

[scale.smoke]
train = 60
test = 8
draws = 1
"""


def tiny(text=TAUGHT):
    return catalogue.parse(text, "taught", "taught.toml")


def test_networks_trained_before_a_field_came_are_found_again():
    """Digests as the code gave them before `augment`."""
    assert LATER == ("augment",)
    assert digest(Training().told()) == "94d25462001d49101160437310665179d4bde96031027915330e83583f086e04"
    codes = Training(epochs=6, batch=50, lr=2e-3, schedule="cosine", adversarial="sea k=5", tau=0.0)
    assert digest(codes.told()) == "def969aba4e207dc3ee99ba7ad3ffb7eeb80977875cf6856bb61b1bdab28074c"
    assert Training(augment="flip").told() == Training().told() | {"augment": "flip"}
    assert set(Training(augment="flip").told()) == set(Training.model_fields)


@pytest.fixture(scope="module")
def images():
    return [load("digits", split).take(count, seed=0) for split, count in (("train", 60), ("validation", 50))]


def rows(recipe, images, folder, *only, seed=0, **options):
    return {
        net.name: net for net in trained(recipe, "smoke", seed, *images, folder, only, show_progress=False, **options)
    }


def kept(folder):
    return {place.name for place in folder.iterdir()}


def test_networks_are_kept_by_their_settings(images, tmp_path):
    found = rows(tiny(), images, tmp_path, "plain")
    recipe, (train, validation) = tiny(), images
    settings = recipe.network[0].training.model_dump()
    assert settings.pop("augment") == ""
    about = [found["plain"].model.description, settings, fingerprint_of(train), len(validation), 0]
    assert kept(tmp_path) == {digest(about)[:16]}


def test_rows_are_taught_by_rows_above_and_kept_by_their_teacher(images, tmp_path):
    found = rows(tiny(), images, tmp_path, "taught")
    assert list(found) == ["plain", "taught"]
    folders = kept(tmp_path)
    assert len(folders) == 2
    told = [(tmp_path / name / "metrics.jsonl").read_text() for name in folders]
    assert sorted('"kd"' in text and '"mse"' in text for text in told) == [False, True]
    again = rows(tiny(), images, tmp_path, "taught")
    assert kept(tmp_path) == folders
    assert again["taught"].facts == found["taught"].facts
    other = TAUGHT.replace('model = "mlp"\ntraining = { epochs = 1 }', 'model = "mlp"\ntraining = { lr = 0.01 }', 1)
    rows(tiny(other), images, tmp_path, "taught")
    assert len(kept(tmp_path)) == 4


def test_a_teacher_of_the_caller_s_own_teaches_and_is_left_alone(images, tmp_path):
    with forked(3):
        mine = build("mlp").train()
    before = {name: value.clone() for name, value in mine.state_dict().items()}
    found = rows(tiny(), images, tmp_path, "taught", given={"plain": mine})
    assert len(kept(tmp_path)) == 1
    assert found["plain"].model is mine
    assert mine.training
    assert all(torch.equal(before[name], value) for name, value in mine.state_dict().items())
    assert list(rows(tiny(), images, tmp_path, "taught", given={"taught": spiking()})) == ["taught"]


def test_a_second_training_is_that_of_the_next_seed(images, tmp_path):
    first = rows(tiny(), images, tmp_path, "plain", "again")
    a, b = (first[name].model.state_dict() for name in ("plain", "again"))
    assert not all(torch.equal(a[key], b[key]) for key in a)
    assert len(kept(tmp_path)) == 2
    second = rows(tiny(), images, tmp_path, "plain", seed=1)
    assert all(torch.equal(b[key], value) for key, value in second["plain"].model.state_dict().items())
    assert len(kept(tmp_path)) == 2


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('teacher = "plain"\n', "", "teacher"),
        ('teacher = "plain"', 'teacher = "again"', "above"),
        ('teacher = "plain"', 'teacher = "nobody"', "above"),
        ('epochs = 1, objective = "e-rsct"', "epochs = 1", "e-rsct"),
        ('objective = "e-rsct"', 'objective = "e-rsct", elbo = true', "not with elbo"),
        ('objective = "e-rsct"', 'objective = "tet", adversarial = "fgsm; pgd"', "several"),
        ('objective = "e-rsct"', 'objective = "erct"', "objective"),
        ('objective = "e-rsct"', 'objective = "e-rsct", augment = "crops"', "crops"),
        ("seed = 1", "seed = -1", "seed"),
    ],
)
def test_what_makes_no_sense_is_named(old, new, told):
    assert old in TAUGHT
    with pytest.raises(UsageError, match=told):
        tiny(TAUGHT.replace(old, new, 1))


def spiking(encoder="rate", **options):
    return build("snn", width=0.25, encoder=encoder, **options)


def test_names_stand_for_the_losses_alone_and_around_attacks():
    with forked(0):
        model, teacher = spiking(), build("mlp").eval()

    def made(**training):
        return parts_of(Training(**training), model, teacher if training["objective"] == "e-rsct" else None)[
            "objective"
        ]

    assert made(objective="tet") == TET()
    assert made(objective="tet", adversarial="fgsm eps=0.1", tau=0.25, start=1) == Adversarial(
        _whole(FGSM(Linf(0.1))), 0.25, start=1, inner=TET()
    )
    codes = AdversarialCodes(_whole(SEA(Flips(2, "binary"))), 0.0, TET())
    assert made(objective="tet", adversarial="sea k=2", tau=0.0) == codes
    assert made(objective="e-rsct") == Distilled(teacher, 0.1, inner=TET())
    assert made(objective="e-rsct", adversarial="sea k=2", tau=0.0) == Distilled(teacher, inner=codes)


def _whole(attack):
    from dataclasses import replace

    return replace(attack, drop_fooled=False)


def test_the_teacher_sees_clean_images_and_the_student_attacked_ones():
    with forked(0):
        model, teacher = spiking("direct").eval(), build("mlp").eval()
        x, y = torch.rand(6, 1, 8, 8), torch.arange(6)
    seen, attacked = [], []
    teacher.register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[0].clone()))
    training = Training(objective="e-rsct", adversarial="fgsm eps=0.1", tau=0.0)
    objective = parts_of(training, model, teacher)["objective"]
    with forked(1):
        loss, _, terms = objective(
            lambda images: (attacked.append(images), model(images))[1], x, y, model=model, seed=0
        )
    assert len(seen) == 1
    assert torch.equal(seen[0], x)
    assert len(attacked) == 1
    assert float((attacked[0] - x).abs().max()) == pytest.approx(0.1, abs=1e-6)
    p, q = F.log_softmax(model(attacked[0]), 1), F.log_softmax(teacher(x), 1)
    torch.testing.assert_close(terms["kd"], 0.1 * (p.exp() * (p - q)).sum(1).mean())
    own = TET()(model, attacked[0], y, model=model, seed=0)[0]
    torch.testing.assert_close(loss, own + terms["kd"])


def test_models_and_teachers_that_do_not_fit_are_refused_before_training():
    taught, tet = Training(objective="e-rsct"), Training(objective="tet")
    with forked(0):
        model, teacher = spiking(), build("mlp")
    with pytest.raises(UsageError, match="teacher"):
        parts_of(taught, model)
    with pytest.raises(UsageError, match="teacher"):
        parts_of(tet, model, teacher)
    with pytest.raises(ModelError, match="over time"):
        parts_of(tet, build("mlp"))
    with pytest.raises(ModelError, match="classes"):
        parts_of(taught, model, build("mlp", (1, 8, 8), 9))
    with pytest.raises(ModelError, match="images"):
        parts_of(taught, model, build("mlp", (3, 8, 8), 10))
