"""Transfer: examples of one model, scored on others."""

import pickle

import pytest
import torch
from torch import nn

from stochade import BIM, FGSM, PGD, Linf, evaluate
from stochade.attacks import margin
from stochade.attacks.registry import parse_attack
from stochade.attacks.transfer import EnsembleModel, Transfer
from stochade.cli import main
from stochade.errors import ModelError, RecordsError, UsageError
from stochade.evaluate.transfer import CLEAN, transfer_matrix
from stochade.models.known_answer import Linear

W = torch.tensor([[1.0, -1, 1, -1], [-1, 1, -1, 1]])
OTHER = torch.tensor([[1.0, 1, -1, -1], [-1, -1, 1, 1]])


class Hides(nn.Module):
    """The first model with a gradient that is exactly zero."""

    scope = "none"

    def __init__(self):
        super().__init__()
        self.inner = Linear(W, torch.zeros(2))

    def forward(self, x):
        return self.inner(x.detach()) + 0 * x.flatten(1).sum(1, keepdim=True)


def models():
    return {"a": Linear(W, torch.zeros(2)).eval(), "b": Linear(OTHER, torch.zeros(2)).eval(), "hides": Hides().eval()}


def images(n=40):
    x = 0.5 + 0.2 * (torch.rand(n, 1, 2, 2, generator=torch.Generator().manual_seed(0)) - 0.5)
    return x, models()["a"](x).argmax(1)


def test_transfer_hands_back_what_the_attack_makes_on_its_source():
    x, y = images()
    source, target = models()["a"], models()["b"]
    attack = FGSM(Linf(0.1), objective=margin)
    assert torch.equal(Transfer(source, attack)(target, x, y), attack(source, x, y))


def test_the_gradient_of_the_target_is_never_asked():
    x, y = images()
    hidden = models()["hides"]
    records = evaluate(
        hidden, x, y, {"own": BIM(Linf(0.2), 10), "transfer": Transfer(models()["a"], BIM(Linf(0.2), 10))},
        show_progress=False, chunk=16,
    )  # fmt: skip
    assert records.score("own").value == records.score("clean").value == 1.0
    assert records.score("transfer").value == 0.0


def test_an_ensemble_is_the_mean_of_its_members():
    x, _ = images(5)
    a, b = models()["a"], models()["b"]
    torch.testing.assert_close(EnsembleModel([a, b])(x), (a(x) + b(x)) / 2)
    torch.testing.assert_close(
        EnsembleModel([a, b], "probabilities")(x).exp(), (a(x).softmax(1) + b(x).softmax(1)) / 2
    )
    both = Transfer([a, b], FGSM(Linf(0.1), objective=margin))
    y = a(x).argmax(1)
    assert torch.equal(both(a, x, y), FGSM(Linf(0.1), objective=margin)(EnsembleModel([a, b]), x, y))
    assert isinstance(pickle.loads(pickle.dumps(both)), Transfer)


def test_the_matrix_has_every_pair_and_finds_the_masking(tmp_path):
    x, y = images()
    table = models()
    matrix = transfer_matrix(
        table, x, y, BIM(Linf(0.2), 10), sources={"all": EnsembleModel(list(table.values())).eval()}, out=tmp_path,
        show_progress=False,
    )  # fmt: skip
    assert matrix.sources == (CLEAN, "a", "b", "hides", "all")
    assert matrix.score(CLEAN, "a").value == 1.0
    assert matrix.score("a", "a").value == 0.0
    assert matrix.score("a", "hides").value == 0.0
    assert matrix.score("hides", "hides").value == 1.0
    assert ("a", "hides") in matrix.stronger_from_outside()
    assert ("hides", "a") not in matrix.stronger_from_outside()
    by_hand = BIM(Linf(0.2), 10, drop_fooled=False)(table["b"], x, y)
    assert matrix.score("b", "a").value == float((table["a"](by_hand).argmax(1) == y).float().mean())
    again = transfer_matrix(
        table, x, y, BIM(Linf(0.2), 10), sources={"all": EnsembleModel(list(table.values())).eval()}, out=tmp_path,
        show_progress=False,
    )  # fmt: skip
    assert again.table("csv") == matrix.table("csv")
    assert len(matrix.table().splitlines()) == 2 + 5
    assert matrix.table("latex").count(r"\\") == 1 + 5
    assert (tmp_path / "transfer.json").is_file()
    with pytest.raises(RecordsError):
        matrix.score("a", "nobody")
    with pytest.raises(RecordsError):
        matrix.table("html")


def test_transfer_by_name_loads_its_sources(capsys):
    for source in ("known:linear", "known:linear,known:thresholded-input"):
        text = f"transfer source={source} attack=bim steps=5"
        main(["attack", "known:noisy-linear", "--attacks", text, "--draws", "3", "--quiet", "--format", "csv"])
        assert text in capsys.readouterr().out
    attack = parse_attack("transfer source=x attack=bim steps=5 eps=0.3", Linf(0.1), lambda name: models()["a"])
    assert isinstance(attack, Transfer)
    assert attack.attack == BIM(Linf(0.3), 5, drop_fooled=False)
    with pytest.raises(UsageError, match="source="):
        parse_attack("transfer attack=bim", Linf(0.1))
    with pytest.raises(UsageError, match="loaded"):
        parse_attack("transfer source=a", Linf(0.1))(models()["a"], *images())


def test_bad_sources_are_named():
    with pytest.raises(ModelError):
        EnsembleModel([])
    with pytest.raises(ModelError):
        EnsembleModel([nn.Identity()], "votes")
    x, y = images(4)
    with pytest.raises(ModelError):
        transfer_matrix({}, x, y, PGD(Linf(0.1)))
    with pytest.raises(ModelError, match="distinct"):
        transfer_matrix(models(), x, y, PGD(Linf(0.1)), sources={"a": models()["b"]})
    three = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    with pytest.raises(ModelError, match="same classes"):
        EnsembleModel([models()["a"], three])(x)


def test_the_command_line_prints_the_matrix(capsys):
    arguments = ["known:linear", "known:zero-gradient", "--attack", "pgd steps=5", "--threat", "linf=0.2", "--quiet"]
    with pytest.raises(SystemExit):
        main(["transfer", "known:linear", "--quiet"])
    main(["transfer", "known:linear", "known:noisy-linear", *arguments[2:], "--format", "csv", "--draws", "3"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "source,target,accuracy,low,high"
    assert len([line for line in lines if line.count(",") == 4]) == 1 + 3 * 2
