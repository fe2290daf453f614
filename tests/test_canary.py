"""Zero gradients are told before attacks run, on images and on codes; threats on codes and aggregation by command."""

import pytest
import torch
from torch import nn

from coded import Curved, images
from stochade.attacks import PGD, SEA, FixedFlips, Flips, Linf, ObliviousSEA, RandomSearch
from stochade.audit.canary import told, zero_gradient_findings
from stochade.cli.common import aggregated, read_threat
from stochade.errors import BudgetError, ImagesError, UsageError
from stochade.models import Encoded
from stochade.models.encoded import Aggregated
from stochade.nn import SignedRate
from stochade.randomness import fingerprint


class Stair(nn.Module):
    """Rounds what it sees: a derivative of exactly zero."""

    scope = "none"

    def forward(self, x):
        return x.round()


def findings(model, *attacks):
    x, y = images(20), torch.arange(20) % 3
    return zero_gradient_findings(model, x, y, {str(i): a for i, a in enumerate(attacks)})


def test_a_step_in_front_is_told_of_with_the_layer():
    model = nn.Sequential(Stair(), nn.Flatten(), nn.Linear(8, 3)).eval()
    before = fingerprint()
    (found,) = findings(model, PGD(Linf(0.1)))
    assert fingerprint() == before
    assert (found.check, found.severity, found.evidence["zero_share"]) == ("zero-gradient", "masking", 1.0)
    assert found.evidence["it stops at"] == "0"
    assert "exactly zero on 100 % of the examples, so accuracy" in told(found)
    assert "It stops at 0." in told(found)
    assert findings(model, RandomSearch(Linf(0.1))) == []  # follows no gradient
    assert findings(nn.Sequential(nn.Flatten(), nn.Linear(8, 3)), PGD(Linf(0.1))) == []


def test_codes_and_images_are_looked_at_apart():
    """The encoder has a backward, so images have a gradient where the code has one; and the other way round."""
    silent = Encoded(SignedRate(3, 0.45), nn.Sequential(Stair(), Curved(24)))
    assert [f.severity for f in findings(silent, SEA(Flips(2, "signed")))] == ["masking"]
    assert [f.severity for f in findings(silent, ObliviousSEA(FixedFlips(2, "signed")))] == ["masking"]
    assert len(findings(silent, SEA(Flips(2, "signed")), PGD(Linf(0.1)))) == 2
    assert findings(Encoded(SignedRate(3, 0.45), Curved(24)), SEA(Flips(2, "signed")), PGD(Linf(0.1))) == []
    in_front = nn.Sequential(Stair(), SignedRate(3, 0.45))
    in_front.alphabet = (-1.0, 0.0, 1.0)
    assert findings(Encoded(in_front, Curved(24)), SEA(Flips(2, "signed"))) == []
    assert len(findings(Encoded(in_front, Curved(24)), PGD(Linf(0.1)))) == 1


def test_a_graph_that_is_cut_is_told_of():
    class Cut(nn.Module):
        def forward(self, x):
            return nn.functional.one_hot(x.flatten(1).sum(1).long() % 3, 3).float()

    (found,) = findings(Cut(), PGD(Linf(0.1)))
    assert found.title == "no gradient reaches the images"
    with pytest.raises(ImagesError):
        zero_gradient_findings(Cut(), images(4) * 300, torch.zeros(4).long(), {"a": PGD(Linf(0.1))})


def test_threats_by_command_have_the_letters_of_the_encoder():
    model = Encoded(SignedRate(3), Curved(24))
    assert read_threat("flips=5", model) == Flips(5, "signed")
    assert read_threat("flips=20 in total", model) == Flips(20, "signed", "total")
    assert read_threat("flips=5") == read_threat("binary flips=5", model) == Flips(5)
    assert read_threat("linf=8/255", model) == Linf(8 / 255)
    with pytest.raises(BudgetError, match="flips"):
        read_threat("flips=0.5", model)


def test_aggregation_by_command():
    model = Encoded(SignedRate(3), Curved(24))
    assert aggregated(model, 1) is model
    several = aggregated(model, 4)
    assert isinstance(several, Aggregated)
    assert several.encoder(images(2)).shape[:2] == (2, 12)
    with pytest.raises(UsageError, match="encodings"):
        aggregated(model, 0)
    with pytest.raises(UsageError, match="behind an encoder for --encodings, got Flatten"):
        aggregated(nn.Flatten(), 2)
    with pytest.raises(UsageError, match="mean of 4"):
        aggregated(several, 2)
