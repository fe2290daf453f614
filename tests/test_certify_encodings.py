"""Shares of encodings that are certified: sound against the truth, from fresh codes and fresh draws."""

import math

import pytest
import torch
from torch import nn

from stochade.certify.confidence import lower_bound
from stochade.certify.flips import Encodings, FlipNoise, certify_encodings
from stochade.certify.procedure import Certificate
from stochade.errors import LabelsError, ModelError
from stochade.models.encoded import Encoded
from stochade.nn.encoders import BernoulliRate, SignedRate


class Fires(nn.Module):
    scope = "none"

    def forward(self, codes):
        share = codes.flatten(1).mean(1)
        return torch.stack([0.5 - share, share - 0.5], 1)


def test_share_of_encodings():
    """A pixel of rate 0.8, shown nine times: an encoding with six or more spikes is certified for one flip."""
    model = Encoded(BernoulliRate(9), Fires())
    x, y, noise = torch.full((1, 1, 1, 1), 0.8), torch.tensor([1]), FlipNoise(0.2)
    before = torch.get_rng_state()
    one = certify_encodings(model, x, y, noise, encodings=40, selection=10, draws=400, seed=3, ids=torch.tensor([7]))[
        0
    ]
    assert torch.equal(torch.get_rng_state(), before)
    again = certify_encodings(
        model, x, y, noise, encodings=40, selection=10, draws=400, seed=3, ids=torch.tensor([7])
    )
    assert [c.votes for c in again[0].certificates] == [c.votes for c in one.certificates]
    assert len({c.votes for c in one.certificates}) > 30  # fresh codes, fresh draws
    count = one.count(1)
    truth = sum(math.comb(9, s) * 0.8**s * 0.2 ** (9 - s) for s in range(6, 10))
    assert 10 < count < 40
    assert one.share(1) == pytest.approx(lower_bound(count, 40, 0.001) - 0.001)
    assert 0.2 < one.share(1) < truth
    assert one.share(0) >= one.share(1) >= one.share(2) >= one.share(9) == 0


def test_encodings_of_another_class_do_not_count():
    right, wrong = Certificate(1, 3.0, 0.9, (0, 9), 10), Certificate(0, 3.0, 0.9, (9, 0), 10)
    several = Encodings((right, right, wrong), 1, 0.01)
    assert (several.count(2), several.count(3)) == (2, 0)


def test_misuse_is_named():
    network = Fires()
    images, model = torch.full((2, 1, 2, 2), 0.5), Encoded(SignedRate(2), network)
    with pytest.raises(LabelsError):
        certify_encodings(model, images, torch.zeros(3), FlipNoise(0.1, alphabet="signed"), 2)
    with pytest.raises(ModelError, match="for this threat"):
        certify_encodings(model, images, torch.zeros(2, dtype=torch.int64), FlipNoise(0.1), 2)
