"""Certificates of the mean logits of several encodings: as many independent frames as all of them have."""

import pytest
import torch
from scipy.special import ndtr
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from stochade.certify import RateCode, SmoothingCode, certify
from stochade.certify.choose import smoothing_of
from stochade.errors import BudgetError, ModelError
from stochade.models import Encoded
from stochade.models.encoded import Aggregated
from stochade.nn import RSC, BernoulliRate, SignedRate
from test_certify_gaussian import HalfSpace, MeanFrame


class Fires(nn.Module):
    """Class 1 as soon as one frame of one encoding has a spike, also in the mean over encodings."""

    scope = "none"

    def forward(self, codes):
        fired = codes.flatten(1).amax(1)
        return torch.stack([torch.full_like(fired, 1.0), 100 * fired], 1)


@pytest.mark.parametrize("norm", ["l1", "linf"])
def test_encodings_are_frames(norm):
    x = torch.rand(1, 3, 3, generator=torch.Generator().manual_seed(0))
    for p in (0.6, 0.9, 0.999):
        assert RateCode(2, norm=norm, encodings=3).radius(p, x) == RateCode(6, norm=norm).radius(p, x)
        assert RateCode(2, True, norm=norm, encodings=3).radius(p, x) == RateCode(6, True, norm=norm).radius(p, x)
    assert SmoothingCode(0.5, 4, "I", 9).radius(0.9) == pytest.approx(SmoothingCode(0.5, 4, "I").radius(0.9) / 3)
    assert SmoothingCode(0.5, 4, "II", 9).radius(0.9) == pytest.approx(SmoothingCode(0.5, 4, "II").radius(0.9) / 3)


def test_no_radius_exceeds_the_true_one_of_a_network_that_hears_every_encoding():
    """At a black pixel the vote is 0 for certain, at 1 - 2^(-1/8) it is a coin: two encodings of four frames.
    A radius that forgets the encodings would reach 1 - 2^(-1/4)."""
    model, x = Aggregated(Encoded(BernoulliRate(4), Fires()), 2), torch.zeros(1, 1, 1, 1)
    _, smoothing = smoothing_of(model)
    assert smoothing.describe()["encodings"] == 2
    one = certify(model, x, smoothing, selection=20, draws=20000, alpha=1e-3)[0]
    truth = 1 - 0.5 ** (1 / 8)
    assert one.prediction == 0
    assert 0.99 * truth < one.radius < truth
    with torch.no_grad():
        torch.manual_seed(0)
        at = model(torch.full((20000, 1, 1, 1), truth)).argmax(1).float().mean()
    assert float(at) == pytest.approx(0.5, abs=0.02)


def test_the_mean_of_encodings_behind_smoothing_codes_has_the_distance_of_a_half_space():
    """A network that averages sees noise of sigma / sqrt(m): its true distance is the radius itself."""
    sigma, m, shift, w = 0.2, 4, 0.05, torch.tensor([1.0, 0.5])
    length = float(w.norm())
    base = Encoded(RSC(sigma, 1, "I"), MeanFrame(HalfSpace(w, float(w.sum()) / 2 - shift)))
    model, x = Aggregated(base, m), torch.full((1, 1, 1, 2), 0.5)
    smoothing = smoothing_of(model)[1]
    p = float(ndtr(shift / length / (sigma / m**0.5)))
    assert smoothing.radius(p) == pytest.approx(shift / length, rel=1e-6)
    with torch.no_grad():
        torch.manual_seed(1)
        logits = model(x.expand(20000, 1, 1, 2))
    assert float((logits.argmax(1) == 1).float().mean()) == pytest.approx(p, abs=0.015)  # five deviations


def test_runs_of_one_encoding_are_described_as_ever():
    assert RateCode(2).describe() == {
        "smoothing": "RateCode",
        "steps": 2,
        "signed": False,
        "floor": 0.0,
        "norm": "l1",
    }
    assert SmoothingCode(0.5, 4, "II").describe() == {
        "smoothing": "SmoothingCode", "norm": "l2", "sigma": 0.5, "steps": 4, "kind": "II",
    }  # fmt: skip


def test_another_number_of_encodings_is_refused():
    one = Encoded(BernoulliRate(2), nn.Flatten())
    x = torch.rand(1, 1, 2, 2)
    with pytest.raises(ModelError, match="encodings"):
        certify(Aggregated(one, 3), x, RateCode(2), selection=5, draws=50)
    with pytest.raises(ModelError, match="encodings"):
        certify(one, x, RateCode(2, encodings=3), selection=5, draws=50)
    with pytest.raises(ModelError, match="SignedRate"):
        certify(
            Aggregated(Encoded(SignedRate(2), nn.Flatten()), 3), x, RateCode(2, encodings=3), selection=5, draws=50
        )
    hooked = Aggregated(one, 3)
    hooked.encoder.register_forward_hook(lambda module, inputs, output: output)
    with pytest.raises(ModelError, match="SeveralEncodings as its class has it"):
        certify(hooked, x, RateCode(2, encodings=3), selection=5, draws=50)
    swapped = Aggregated(one, 3)
    one.encoder.hard = lambda images: (images > 0.5).float()[:, None].expand(-1, 2, -1, -1, -1)
    with pytest.raises(ModelError, match="BernoulliRate as its class has it"):
        certify(swapped, x, RateCode(2, encodings=3), selection=5, draws=50)
    del one.encoder.hard
    hook = register_module_forward_hook(lambda module, inputs, output: None)
    with pytest.raises(ModelError, match="as its class has it"):
        certify(swapped, x, RateCode(2, encodings=3), selection=5, draws=50)
    hook.remove()
    for wrong in (0, 1.5, True):
        with pytest.raises(BudgetError, match="encodings"):
            RateCode(2, encodings=wrong)
