"""SGBN's main network with units dropped or pruned: which layers do it, and how they differ."""

import pytest
import torch

from stochade.errors import UsageError
from stochade.models.pruned import pruned_cnn
from stochade.models.sgbn import SGBN
from stochade.nn import SAP, Standout
from stochade.registry import build, rebuild


@pytest.mark.parametrize(("pruning", "kind"), [("standout", Standout), ("standout-expected", Standout), ("sap", SAP)])
def test_every_convolution_has_one_and_nothing_else_changed(pruning, kind):
    model = pruned_cnn((1, 16, 16), 10, pruning)
    assert sum(isinstance(m, kind) for m in model.modules()) == 2
    plain = SGBN((1, 16, 16), 10, gated=())
    assert {k: v.shape for k, v in model.state_dict().items()} == {k: v.shape for k, v in plain.state_dict().items()}


def test_only_the_expected_one_repeats_its_features():
    torch.manual_seed(0)
    x = torch.rand(4, 1, 16, 16)
    for pruning, repeats in (("standout", False), ("standout-expected", True), ("sap", False)):
        model = build("pruned-cnn", (1, 16, 16), 10, pruning=pruning, dense="relu").eval()
        assert torch.equal(model(x), model(x)) == repeats, pruning
        assert rebuild(model.__dict__["description"])(x).shape == (4, 10)


def test_the_expected_one_is_relu_times_sigmoid():
    torch.manual_seed(0)
    model, x = pruned_cnn((1, 16, 16), 10, "standout-expected").eval(), torch.rand(2, 1, 16, 16)
    z = model.features[0](x)
    torch.testing.assert_close(model.features[1](z), torch.relu(z) * torch.sigmoid(z))


def test_another_name_is_a_named_error():
    with pytest.raises(UsageError, match="standout"):
        pruned_cnn(pruning="dropout")  # type: ignore[arg-type]
