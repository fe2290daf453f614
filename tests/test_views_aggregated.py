"""Rows that average several encodings, trainings that are remembered, and tables of the paper."""

import json

import pytest
import torch
from torch import nn

from stochade.errors import UsageError
from stochade.models.encoded import Aggregated
from stochade.randomness import forked
from stochade.recipes import catalogue, reproduce, tables
from stochade.recipes.views.trainings import training_curves

TWICE = """
title = "One and three encodings"
paper = "mukhoty2025"
place = "table 8"
claim = "Three see more."

[[network]]
name = "one"
model = "snn"
options = { encoder = "rate", width = 0.25 }
training = { epochs = 2, batch = 10, lr = 1e-2 }

[[network]]
name = "three"
model = "snn"
options = { encoder = "rate", width = 0.25 }
training = { epochs = 2, batch = 10, lr = 1e-2 }
encodings = 3

[[attack]]
name = "SEA"
attack = "sea"
norm = "flips"
budgets = [2]

[[printed]]
table = "Table 7"
row = "clean"
values = { RATE = 71.22, SRATE = 54701.22 }
note = "Other images."

[[printed]]
table = "Table 7"
row = "gn"
values = { SRATE = 72.06 }

[scale.smoke]
train = 100
test = 8
draws = 2
"""


def parsed(text=TWICE):
    return catalogue.parse(text, "twice", "twice.toml")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("twice")
    return reproduce(parsed(), "smoke", out=folder, show_progress=False), folder


def test_encodings_are_averaged_after_a_training_that_rows_share(run):
    found, folder = run
    assert len(list((folder / "networks").iterdir())) == 1
    one, three = found.networks["one"].model, found.networks["three"].model
    assert not isinstance(one, Aggregated)
    assert isinstance(three, Aggregated)
    assert not three.training
    x, _ = found.test[:8]
    with torch.no_grad():
        with forked(5):
            mine = three(x)
        with forked(5):
            codes = three.encoder(x)
        assert codes.shape == (8, 12, 1, 8, 8)
        each = torch.stack([one.network(codes[:, 4 * i : 4 * i + 4]) for i in range(3)])
    torch.testing.assert_close(mine, each.mean(0))
    assert (each[0] != each[1]).any()
    assert found.rows[0].scores["clean", 0.0].value is not None
    assert found.rows[1].facts == found.rows[0].facts


def test_an_attack_on_a_row_of_three_encodings_has_k_flips_in_every_frame_of_all(run):
    found, _ = run
    threat = found.records["three"].attacks["SEA 2"].info["attack"]["threat"]
    assert (threat["eps"], threat["per"]) == (2, "frame")
    assert found.records["three"].attacks["SEA 2"].distance.max() == 2


def test_a_given_network_is_taken_as_it_is(run, tmp_path):
    model = run[0].networks["one"].model
    again = reproduce(parsed(), "smoke", out=tmp_path, only=["three"], models={"three": model}, show_progress=False)
    assert again.networks["three"].model is model
    assert again.networks["three"].history == ()
    assert training_curves(again)[0].rows == []


def test_encodings_need_an_encoder():
    text = TWICE.replace('model = "snn"\noptions = { encoder = "rate", width = 0.25 }', 'model = "mlp"')
    with pytest.raises(UsageError, match="encodings=3 needs a model with an encoder"):
        parsed(text)
    with pytest.raises(UsageError, match="encodings"):
        parsed(TWICE.replace("encodings = 3", "encodings = 0"))


def test_tables_of_the_paper_stand_as_printed(run):
    found, _ = run
    (told,) = tables.printed_tables(found)
    assert told == (
        "Table 7 of the paper",
        ["", "RATE", "SRATE"],
        [["clean", "71.22", "54701.22"], ["gn", tables.NONE, "72.06"]],
        "Other images.",
    )
    assert "| clean | 71.22 | 54701.22 |" in tables.markdown(found)
    document = json.loads(json.dumps(tables.document(found)))
    assert document["printed"][1]["values"] == {"SRATE": 72.06}
    with pytest.raises(UsageError, match="values"):
        parsed(TWICE.replace("values = { SRATE = 72.06 }", "values = {}"))


def test_curves_of_training_are_those_that_the_loop_wrote(run):
    """`metrics.jsonl` is what the training loop wrote into the network's folder."""
    found, folder = run
    (place,) = (folder / "networks").iterdir()
    wrote = [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
    assert len(wrote) == 2
    figures = training_curves(found)
    for figure, key in zip(figures, ("train_loss", "train_accuracy", "validation_accuracy"), strict=True):
        for trace in figure.data:
            assert trace["x"] == [1, 2]
            assert trace["y"] == [epoch[key] for epoch in wrote]
        assert [row[:2] for row in figure.rows] == [["1", "one"], ["2", "one"], ["1", "three"], ["2", "three"]]
        times = 1 if key == "train_loss" else 100
        assert [float(row[2]) for row in figure.rows[:2]] == pytest.approx(
            [times * epoch[key] for epoch in wrote], abs=0.006
        )
    assert isinstance(found.networks["three"].model, nn.Module)
