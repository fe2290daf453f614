"""Integrate-and-fire neurons: what they refuse, and what they say of themselves."""

import pytest
import torch

from stochade.errors import ModelError, UsageError
from stochade.nn import IF, LIF, surrogates


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"decay": -0.1}, "in \\[0, 1\\]"),
        ({"decay": 1.1}, "in \\[0, 1\\]"),
        ({"decay": float("nan")}, "in \\[0, 1\\]"),
        ({"decay": "0.5"}, "in \\[0, 1\\]"),
        ({"decay": 1.0, "decay_input": True}, "in \\[0, 1\\)"),
        ({"decay": 1.0, "trainable": True}, "strictly between"),
        ({"decay": 0.0, "trainable": True}, "strictly between"),
        ({"threshold": 0.0}, "above the resting potential"),
        ({"threshold": float("inf")}, "finite"),
        ({"threshold": True}, "finite"),
        ({"threshold": 1.0, "reset": "hard", "v_reset": 1.0}, "above the resting potential"),
        ({"v_reset": -0.5}, "soft reset"),
        ({"reset": "zero"}, '"soft"'),
        ({"surrogate": "atan"}, "surrogates.ATan"),
    ],
)
def test_what_makes_no_sense_is_refused(options, told):
    with pytest.raises(UsageError, match=told):
        LIF(**options)


@pytest.mark.parametrize("x", [torch.randn(5), torch.empty(0, 3, 2), torch.ones(3, 2, dtype=torch.int64)])
def test_inputs_without_time_are_refused(x):
    for call in (LIF(), LIF().potentials, IF(surrogate=surrogates.adaptive())):
        with pytest.raises(ModelError, match="T, N"):
            call(x)


def test_layers_tell_what_they_are():
    assert repr(LIF(0.75, 0.5, "hard", v_reset=-1.0, decay_input=True)) == (
        "LIF(decay=0.75, threshold=0.5, reset='hard', surrogate=atan(alpha=2), v_reset=-1, decay_input=True)"
    )
    assert repr(IF(detach_reset=True)) == "IF(threshold=1, reset='soft', surrogate=atan(alpha=2), detach_reset=True)"
    assert "0.5 (trainable)" in repr(LIF(trainable=True))
