"""Noise that two looks at a model miss: drawn once for a batch, or seldom. Certificates by it would be wrong."""

import pytest
import torch
from torch import nn

from stochade.certify import Gaussian
from stochade.certify.smoothing import check_independent
from stochade.errors import ModelError


class Coin(nn.Module):
    """Class 1 with probability `share`, for the whole batch or row by row."""

    def __init__(self, share, scope="", rows=False):
        super().__init__()
        self.share, self.rows = share, rows
        if scope:
            self.scope = scope

    def forward(self, x):
        heads = (torch.rand(len(x) if self.rows else 1) < self.share).float().expand(len(x))
        return torch.stack([1 - heads, heads], 1)


def refused(model) -> bool:
    with pytest.raises(ModelError) as told:
        check_independent(model.eval(), torch.rand(1, 1, 2, 2), Gaussian(0.25), batch=20)
    return "once per call" in str(told.value)


@pytest.mark.parametrize("share", [0.01, 0.3, 0.5])
def test_declared_noise_of_a_call_is_refused_however_seldom_it_shows(share):
    assert refused(Coin(share, "call"))


@pytest.mark.parametrize("rows", [False, True])
def test_a_foreign_model_is_looked_at_more_than_twice(rows):
    """Of 34 looks one in three deviates: all alike with a chance of 1e-5; the draws are fixed by their seeds."""
    refused(Coin(0.3, rows=rows))
    check_independent(Coin(0.0, rows=rows).eval(), torch.rand(1, 1, 2, 2), Gaussian(0.25), batch=20)
