"""Numbers at the ends of a format: what underflows or overflows may turn signs, and exact verification knows it."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

from stochade.attacks.threats import Linf
from stochade.certify import verify
from stochade.certify.exact_fold import Cut, Norm, Relu, fold
from stochade.errors import ModelError
from stochade.nn import Sign

PIXELS = 30
ZERO = Fraction(0)


class Scaled(nn.Module):
    """The sum of all pixels by two factors, and its sign against the classes."""

    def __init__(self, weight, scale, dtype):
        super().__init__()
        self.flat, self.sum, self.sign = nn.Flatten(), nn.Linear(PIXELS, 1, bias=False), Sign()
        self.head, self.scale = nn.Linear(1, 2, bias=False), scale
        with torch.no_grad():
            self.to(dtype)
            self.sum.weight.fill_(weight)
            self.head.weight.copy_(torch.tensor([[1.0], [-1.0]]))
        self.eval()

    def forward(self, x):
        return self.head(self.sign(self.sum(self.flat(x)) * self.scale))


@pytest.mark.parametrize(("dtype", "last"), [(torch.float32, 149), (torch.float64, 1074)], ids=["float32", "float64"])
@pytest.mark.parametrize("place", ["sum", "scale"])
def test_a_sign_that_underflow_turns_is_not_proven(place, dtype, last):
    """Sums and scales are negative at every image, so the class is one in real arithmetic. Where the products round
    to 0 the network gives the other one: in the sum where all pixels are at most 1/2, behind the scale where their
    mean is at most 0.37. Bounds relative to the terms prove this network robust."""
    if place == "sum":
        model = Scaled(-(2.0**-last), 1.0, dtype)
    else:
        model = Scaled(-(2.0 ** -(last - 60)) / (2 * 0.37 * PIXELS), 2.0**-60, dtype)
    x = torch.full((1, 1, 5, 6), 0.6, dtype=dtype)
    near = torch.full_like(x, 0.36)
    assert (int(model(x).argmax()), int(model(near).argmax())) == (1, 0)
    (verdict,) = verify(model, x, torch.tensor([1]), Linf(0.25), 5.0)
    assert verdict.status != "robust"
    larger = Scaled(-1.0, 1.0, dtype)  # nothing underflows
    assert verify(larger, x, torch.tensor([1]), Linf(0.25), 5.0)[0].status == "robust"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_band_holds_the_signs_of_tiny_numbers(dtype):
    """Of a batch norm's own forward and of a scale's: 4,200 units with parameters down to the smallest numbers."""
    info = torch.finfo(dtype)
    unit, tiny, least = Fraction(info.eps) / 2, Fraction(info.tiny), np.log2(info.tiny) - 25
    r = np.random.default_rng(3)
    count = 700

    def drawn(reach, zeros):
        sizes = 2.0 ** r.uniform(least, reach, count) * r.choice([-1, 1], count)
        return torch.from_numpy(np.where(r.random(count) < zeros, 0.0, sizes)).to(dtype)

    missed = 0
    for zeros in (0.0, 0.5, 1.0, 1.0, 1.0):
        gamma, z, mean, beta = drawn(1, 0.02), drawn(1, 0.02), drawn(1, zeros), drawn(1, zeros)
        layer = nn.BatchNorm1d(count, dtype=dtype).eval()
        with torch.no_grad():
            for part, value in ((layer.weight, gamma), (layer.running_mean, mean), (layer.bias, beta)):
                part.copy_(value)
            outs = {float(layer.eps): layer(z[None])[0]}
            if zeros == 1:
                outs[0.0] = z * gamma
        for eps, out in outs.items():
            table = tuple(
                (Fraction(g), Fraction(m), Fraction(1) + Fraction(eps), Fraction(b))
                for g, m, b in zip(gamma.tolist(), mean.tolist(), beta.tolist(), strict=True)
            )
            chain = (Norm(table, np.arange(count)),)
            high = out.numpy() >= 0
            for smallest in (tiny, ZERO):
                cuts = fold(Cut(ZERO, ZERO), chain, count, unit, smallest)
                u = cuts.direction * z.double().numpy()
                wrong = np.where(high, u < cuts.low, u > cuts.high)
                if smallest:
                    assert not wrong.any()
                else:
                    missed += int(wrong.sum())
    assert missed > 50  # the band is needed


def test_integers_keep_their_thresholds_behind_scales():
    """0 is 0 behind every factor, and 1 times a factor that is not faint does not underflow."""
    unit, tiny = Fraction(1, 1 << 24), Fraction(1, 1 << 126)
    index = np.zeros(1, dtype=np.int64)
    for gamma in (Fraction(-2), Fraction(1, 3), Fraction(1, 1 << 80)):
        scale = Norm(((gamma, ZERO, Fraction(1), ZERO),), index)
        for chain in ((scale,), (scale, scale) if gamma > Fraction(1, 1 << 40) else (scale,)):
            for strict in (False, True):
                with_it, without = (fold(Cut(ZERO, ZERO, strict), chain, 1, unit, t) for t in (tiny, ZERO))
                assert (with_it.first[0], with_it.last[0]) == (without.first[0], without.last[0])
                assert with_it.low[0] < 0 < with_it.high[0]
                assert with_it.high[0] < 1e-6
    relu = fold(
        Cut(ZERO, ZERO, True), (Relu(), Norm(((Fraction(1, 3), ZERO, Fraction(1), ZERO),), index)), 1, unit, tiny
    )
    assert relu.high[0] > 0  # small positive numbers may become 0
    faint = fold(Cut(ZERO, ZERO), (Norm(((tiny, ZERO, Fraction(1), ZERO),), index),), 1, unit, tiny)
    assert faint.low[0] < -1e29
    assert faint.high[0] > 1e29


def test_flushing_to_zero_is_refused():
    """There a difference of two small numbers is 0 and its sign is lost."""
    x = torch.full((1, 1, 5, 6), 0.6)
    model, threat = Scaled(-1.0, 1.0, torch.float32), Linf(0.1)
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor has no such mode")
    try:
        with pytest.raises(ModelError, match="set_flush_denormal"):
            verify(model, x, torch.tensor([1]), threat, 1.0)
    finally:
        torch.set_flush_denormal(False)
    assert verify(model, x, torch.tensor([1]), threat, 1.0)[0].status == "robust"


@pytest.mark.parametrize("variance", [-1.0, -1e-5])
def test_variances_that_are_none_are_refused(variance):
    norm = nn.BatchNorm1d(1).eval()
    norm.running_var.fill_(np.float32(variance))
    norm.eps = float(np.float32(1e-5))
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 1), norm, Sign(), nn.Linear(1, 2)).eval()
    with pytest.raises(ModelError, match="variances above 0"):
        verify(model, torch.rand(1, 1, 2, 2), torch.tensor([0]), Linf(0.1), 1.0)


class Sums(nn.Sequential):
    """The sign of one sum, read by two classes."""

    def __init__(self, weights, norm=None):
        sums, logits = nn.Linear(len(weights), 1, bias=False), nn.Linear(1, 2)
        sums.weight.data, logits.weight.data = torch.tensor([weights]), torch.tensor([[1.0], [-1.0]])
        logits.bias.data = torch.zeros(2)
        super().__init__(nn.Flatten(), sums, *([] if norm is None else [norm]), Sign(), logits)
        self.eval()


def test_a_sum_that_overflows_in_a_corner_is_refused():
    """At 0.93 everywhere the sum is negative; at white, inside the ball, its positive half is beyond every float32:
    added up first, as some kernels do, it turns the class."""
    model, x = Sums([8.68e37] * 4 + [-8.68e37] * 12), torch.full((1, 1, 1, 16), 0.93)
    assert float(torch.tensor(8.68e37) * 4) == float("inf")
    with pytest.raises(ModelError, match="far inside the network's format"):
        verify(model, x, model(x).argmax(1), Linf(0.07))


def test_a_batch_norm_that_overflows_is_refused():
    norm = nn.BatchNorm1d(1)
    norm.weight.data.fill_(1e38)
    model, x = Sums([1.0] * 4, norm), torch.full((1, 1, 1, 4), 0.9)
    with pytest.raises(ModelError, match="far inside the network's format"):
        verify(model, x, model(x).argmax(1), Linf(0.05))
    norm.weight.data.fill_(1e20)
    assert verify(model, x, model(x).argmax(1), Linf(0.05))[0].status == "robust"
