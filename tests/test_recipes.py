"""Recipes: what a file may say, that every smoke recipe runs, and that a result holds what was measured."""

import json

import numpy as np
import pytest

from stochade.attacks import SEA, Flips
from stochade.errors import DataError, ModelError, UsageError
from stochade.recipes import catalogue, claims, page, reproduce, tables
from stochade.recipes.networks import parts_of
from stochade.recipes.result import pooled
from stochade.recipes.schema import SCALES, Training
from stochade.registry import build
from stochade.train.codes import AdversarialCodes
from stochade.train.objectives import Adversarial
from stochade.train.penalties import Penalised

TINY = """
title = "Two networks"
paper = "kubo2019"
place = "nowhere"
claim = "One is better."
views = ["accuracy-over-budget", "train-test-gap"]

[[network]]
name = "plain"
model = "mlp"
training = { epochs = 3, lr = 1e-2 }

[[network]]
name = "binary"
model = "mlp-stochastic"
options = { hidden = 20 }
audited = false
training = { epochs = 3, lr = 1e-2 }

[[attack]]
name = "FGSM"
attack = "fgsm"
budgets = [0.1, 0.2]

[audit]
budget = 0.2
attack = "fgsm"

[[published]]
network = "plain"
attack = "FGSM"
budget = 0.2
value = 12.5
spread = 0.5

[scale.smoke]
test = 30
epochs = 3
"""


def tiny(text=TINY):
    return catalogue.parse(text, "tiny", "tiny.toml")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reproduce")
    return reproduce(tiny(), "smoke", out=folder, seeds=2, show_progress=False), folder


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """One folder for all smoke recipes, which share networks."""
    return tmp_path_factory.mktemp("smoke")


@pytest.mark.parametrize("name", catalogue.names())
def test_every_smoke_recipe_runs_and_fills_its_table(name, shared):
    found = reproduce(name, "smoke", out=shared, show_progress=False)
    shown = page.views_of(found)
    document = tables.document(found, shown)
    assert [row["network"] for row in document["rows"]] == [n.name for n in found.recipe.network]
    for row in found.rows:
        for attack in found.recipe.attack:
            for budget in attack.budgets:
                value = row.scores[attack.name, budget].value
                assert value is not None
                assert 0 <= value <= 1
    assert len(shown) >= len([v for v in found.recipe.views if v not in found.settings.hidden])
    text = tables.markdown(found, shown)
    for item, told in zip(shown, document["figures"], strict=True):
        assert item.title == told["title"]
        assert f"## {item.title}" in text
    assert page.page(found, shown).title == found.recipe.title
    json.dumps(document)


@pytest.mark.parametrize("name", catalogue.names())
def test_every_recipe_has_all_scales_and_the_paper_scale_is_the_papers(name):
    recipe = catalogue.load(name)
    assert set(recipe.scale) == set(SCALES)
    if name == "kaspar2024-time":  # measures seconds, so any weights will do
        return
    assert recipe.scale["paper"].epochs is None
    assert recipe.scale["paper"].train == recipe.scale["paper"].test == 0
    assert recipe.scale["smoke"].data == "digits"


def test_rows_hold_what_the_records_say(run):
    found, folder = run
    row = found.rows[0]
    records = found.records["plain"]
    assert records.score("FGSM 0.2").value is not None
    right = [np.mean(r) for r in (records.right("FGSM 0.2"),)]
    from stochade.evaluate.records import Records

    second = Records.load(folder / "tiny-smoke" / "plain-1" / "test").right("FGSM 0.2")
    assert row.scores["FGSM", 0.2].value == pytest.approx((right[0] + second.mean()) / 2)
    assert row.spread["FGSM", 0.2] == pytest.approx(np.std([right[0], second.mean()], ddof=1))
    assert row.scores["clean", 0.0].examples == 30
    assert row.scores["train", 0.0].value is not None
    assert row.found is not None
    assert row.found.value <= row.audits[0].claimed.value + row.audits[1].claimed.value
    assert found.rows[1].found is None


def test_seeds_train_different_networks_and_a_second_run_trains_none(run, monkeypatch):
    found, folder = run
    kept = sorted(p.name for p in (folder / "networks").iterdir())
    assert len(kept) == 4
    from stochade.train.epoch import EpochRunner

    monkeypatch.setattr(EpochRunner, "__call__", lambda *a: pytest.fail("trained again"))
    again = reproduce(tiny(), "smoke", out=folder, seeds=2, show_progress=False)
    assert again.rows[0].scores == found.rows[0].scores
    assert again.rows[0].found == found.rows[0].found


def test_rows_taken_up_say_at_which_commit_they_were_measured(run):
    """Not that of the command that puts records together later."""
    _, folder = run
    place = next((folder / f"{tiny().name}-smoke").glob("plain-0/test")) / "provenance.json"
    kept = json.loads(place.read_text())
    place.write_text(json.dumps(kept | {"git_revision": "1234567890+"}))
    try:
        again = reproduce(tiny(), "smoke", out=folder, seeds=2, show_progress=False)
    finally:
        place.write_text(json.dumps(kept))
    assert "1234567+" in again.meta["revisions"]["plain"]
    assert "1234567+" not in again.meta["revisions"]["binary"]
    assert "1234567+" in tables.provenance_of(again)["measured at"]["plain"]


def test_tables_and_pages_have_the_three_numbers(run, tmp_path):
    found, _ = run
    text = tables.markdown(found)
    assert "12.5 ± 0.5" in text
    assert tables.cell(found.rows[0].found) in text
    assert "fgsm, linf 0.2, paper" in text
    place = page.save(found, tmp_path / "page")
    html = place.read_text()
    assert "12.5 ± 0.5" in html
    assert 'http-equiv="Content-Security-Policy"' in html
    document = json.loads((tmp_path / "page" / "result.json").read_text())
    assert document["rows"][0]["adaptive"]["value"] == found.rows[0].found.value
    assert "tmp" not in json.dumps(document["meta"])  # no paths of this machine
    written = claims.markdown(tmp_path)
    assert "12.5 ± 0.5" in written
    assert "| binary |" not in written  # was not audited


def test_budgets_are_scaled_and_shown_as_the_papers(tmp_path):
    recipe = tiny(TINY + "budgets = 0.5\neffort = 'none'\n")
    found = reproduce(recipe, "smoke", out=tmp_path, only=["plain"], show_progress=False)
    assert found.meta["command"].endswith("--scale smoke --rows plain")
    assert "command" not in found.meta["provenance"]  # of this process, with its folders
    assert found.records["plain"].attacks["FGSM 0.2"].threat["eps"] == pytest.approx(0.1)
    assert "0.5 times those of the paper" in tables.markdown(found)
    assert found.rows[0].found is None


def test_a_row_may_start_from_another_ones_weights(tmp_path):
    text = TINY.replace('name = "binary"\nmodel = "mlp-stochastic"\noptions = { hidden = 20 }',
                        'name = "again"\nmodel = "mlp"\nbefore = "plain"')  # fmt: skip
    found = reproduce(tiny(text), "smoke", out=tmp_path, only=["again"], show_progress=False)
    assert [row.name for row in found.rows] == ["again"]
    mine = found.networks["again"].model.state_dict()
    theirs = found.networks["plain"].model.state_dict()
    assert all((mine[key] == theirs[key]).all() for key in theirs)


def test_intervals_over_seeds_take_examples_as_clusters():
    rng = np.random.default_rng(0)
    right = rng.random((50, 1)) < 0.7
    one, ten = pooled([right], [None]), pooled([right] * 10, [None] * 10)
    assert ten.value == one.value
    assert ten.high - ten.low == pytest.approx(one.high - one.low, rel=0.1)  # ten equal trainings say nothing new


def test_training_says_what_train_gets():
    parts = parts_of(Training(adversarial="pgd eps=0.3 steps=7", tau=0.25, start=2, l1=1e-3, optimizer="sgd"))
    assert isinstance(parts["objective"], Penalised)
    inner = parts["objective"].inner
    assert isinstance(inner, Adversarial)
    assert (inner.weight, inner.start, inner.attack.threat.eps, inner.attack.steps) == (0.25, 2, 0.3, 7)
    assert not inner.attack.drop_fooled
    assert parts_of(Training())["schedule"] is None


def test_training_on_codes_takes_the_letters_of_the_encoder():
    training = Training(adversarial="sea k=5 steps=3", tau=0.25, start=2)
    for options, alphabet in (({"encoder": "rate"}, "binary"), ({}, "signed")):
        objective = parts_of(training, build("snn", **options))["objective"]
        assert objective == AdversarialCodes(SEA(Flips(5, alphabet), 3, drop_fooled=False), 0.25, start=2)
    with pytest.raises(ModelError, match="encoder"):
        parts_of(training, build("mlp"))


CODES = """
title = "Codes"
paper = "mukhoty2025"
place = "nowhere"
claim = "None."

[[network]]
name = "rate"
model = "snn"
options = { encoder = "rate", width = 0.25 }
training = { epochs = 1 }

[[network]]
name = "signed"
model = "snn"
options = { width = 0.25, encoder_options = { mean = 0.3 } }
training = { epochs = 1, adversarial = "sea k=1", tau = 0.0 }

[[attack]]
name = "SEA"
attack = "sea"
norm = "flips"
budgets = [10, 20]

[[attack]]
name = "fixed flips"
attack = "sea-oblivious steps=1 draws=2"
norm = "flips"
budgets = [20]

[scale.smoke]
train = 50
test = 8
draws = 2
flips = 0.145
budgets = 3.0
"""


def test_flips_are_scaled_by_themselves_and_in_the_letters_of_each_row(tmp_path):
    found = reproduce(tiny(CODES), "smoke", out=tmp_path, show_progress=False)
    for name, alphabet in (("rate", (0, 1)), ("signed", (-1, 0, 1))):
        for attack, k in (("SEA 10", 1), ("SEA 20", 3), ("fixed flips 20", 3)):
            told = found.records[name].attacks[attack].info["attack"]["threat"]
            assert (told["eps"], tuple(told["alphabet"])) == (k, alphabet)
    for row in found.rows:
        assert 0 <= row.scores["SEA", 20].value <= 1
    assert "Flips per frame here: 1 for its 10, 3 for its 20" in tables.markdown(found)
    assert tables.document(found)["flips_times"] == 0.145


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('norm = "flips"\nbudgets = [10, 20]', "budgets = [10, 20]", "flips per frame"),
        ("budgets = [10, 20]", "budgets = [10.5]", "whole number"),
        ('attack = "sea"', 'attack = "sea k=10"', "leave k out"),
        (
            'attack = "sea"\nnorm = "flips"\nbudgets = [10, 20]',
            'attack = "sea k=9"\nnorm = "flips"\nbudgets = [9]',
            "leave k",
        ),
        ('attack = "sea"', 'attack = "sea-masked"', "leave k out"),
        ('attack = "sea"', 'attack = "sea eps=0.1"', "eps"),
        ('attack = "sea"', 'attack = "gaussian-noise"', "codes"),
        ("sea k=1", "sea k=0.5", "number for k"),
        ("sea k=1", "sea-oblivious k=1", "given codes"),
        ('adversarial = "sea k=1"', 'adversarial = "sea k=1", objective = "mixture"', "without an objective"),
        ("flips = 0.145", "flips = 0", "flips"),
        ("flips = 0.145", "flip = 0.1", "flip"),
    ],
)
def test_what_is_wrong_about_codes_is_named(old, new, told):
    assert old in CODES
    with pytest.raises(UsageError, match=told):
        tiny(CODES.replace(old, new, 1))


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('title = "Two networks"', 'titel = "Two networks"', "titel"),
        ('model = "mlp"', 'model = "mpl"', "mpl"),
        ("hidden = 20", "hiden = 20", "hiden"),
        ("budgets = [0.1, 0.2]", "budgets = []", "budgets"),
        ("budgets = [0.1, 0.2]", "budgets = [-0.1]", "budgets"),
        ('attack = "fgsm"\nbudgets', 'attack = "fgms"\nbudgets', "fgms"),
        ('network = "plain"', 'network = "plane"', "plane"),
        ("epochs = 3, lr = 1e-2", "epochs = 0, lr = 1e-2", "epochs"),
        ("epochs = 3, lr = 1e-2", 'epochs = 3, adversarial = "pdg"', "pdg"),
        ("epochs = 3, lr = 1e-2", 'epochs = 3, schedule = "sometimes"', "sometimes"),
        ("[scale.smoke]", "[scale.huge]", "huge"),
        ("test = 30", "test = -1", "test"),
        ('name = "binary"', 'name = "plain"', "share a name"),
        ("[[network]]", "[[network", "TOML"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(old, new, told):
    assert old in TINY
    with pytest.raises(UsageError, match=told):
        tiny(TINY.replace(old, new, 1))


def test_bad_calls_are_refused_before_any_compute(tmp_path, monkeypatch):
    from stochade.recipes import networks

    monkeypatch.setattr(networks, "train", lambda *a, **k: pytest.fail("trained"))
    with pytest.raises(UsageError, match="did you mean"):
        reproduce("kubo2019-fsgm", out=tmp_path)
    with pytest.raises(UsageError, match=r"a \.toml file"):
        reproduce("nothing-like-it-at-all", out=tmp_path)
    with pytest.raises(UsageError, match="scale"):
        reproduce(tiny(), "large", out=tmp_path)
    with pytest.raises(UsageError, match="rows"):
        reproduce(tiny(), "smoke", out=tmp_path, only=["other"])
    with pytest.raises(UsageError, match="seed"):
        reproduce(tiny(), "smoke", out=tmp_path, seeds=0)
    with pytest.raises(DataError):
        reproduce(tiny(), "smoke", out=tmp_path, data=str(tmp_path / "nowhere"))
    wrong = tiny().model_copy(update={"views": ["pictures-of-cats"]})
    with pytest.raises(UsageError, match="views"):
        reproduce(wrong, "smoke", out=tmp_path)
    assert not list(tmp_path.iterdir())


def test_rows_without_such_layers_are_attacked_through_their_own_gradient():
    from stochade.recipes.reproduce import _seen_by

    text = "pgd steps=5 backward=soft draws=2"
    assert _seen_by(text, build("2cnn-stochastic")) == text
    assert _seen_by(text, build("2cnn")) == "pgd steps=5 draws=2"
    assert _seen_by("pgd forward=dense", build("2cnn-stochastic")) == "pgd"
