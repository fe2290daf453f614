"""Certificates of flip noise against enumeration of all codes in exact arithmetic, two other derivations of the
bound, and the sparse encoding attack."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

from stochade.attacks import SEA, Flips
from stochade.certify import certify
from stochade.certify.flips import GRAIN, FlipNoise, in_all
from stochade.errors import BudgetError, ImagesError, ModelError
from stochade.models.encoded import Encoded
from stochade.nn.encoders import BernoulliRate


def letters(noise):
    return (-1, 0, 1) if noise.alphabet == "signed" else (0, 1)


def chance(noise, before, after):
    """K(before -> after), exactly."""
    change = Fraction(noise.p_plus if before == 0 else noise.p_minus)
    return 1 - change if before == after else change / (len(letters(noise)) - 1)


def distribution(noise, code):
    """Probabilities of all codes of this length, exactly."""
    places = [[chance(noise, letter, other) for other in letters(noise)] for letter in code]
    return [math.prod(one) for one in itertools.product(*places)]


def share(here, there):
    """The least probability under `here` of a randomised set with probability 1/2 under `there`, exactly."""
    outcomes = sorted(((h / t, h, t) for h, t in zip(here, there, strict=True) if t), key=lambda one: one[0])
    total, left = Fraction(0), Fraction(1, 2)
    for _, h, t in outcomes:
        part = min(Fraction(1), left / t)
        total, left = total + part * h, left - part * t
        if not left:
            break
    return total


def least(p, here, there):
    """The least probability under `there` of a randomised set with probability p under `here`, exactly."""
    outcomes = sorted(((t / h, h, t) for h, t in zip(here, there, strict=True) if h), key=lambda one: one[0])
    total, left = Fraction(0), p
    for _, h, t in outcomes:
        part = min(Fraction(1), left / h)
        total, left = total + part * t, left - part * h
        if not left:
            break
    return total


def random_noise(rng):
    signed = bool(rng.random() < 0.5)
    plus, minus = rng.choice([0.0, 0.02, 0.1, 0.3, 0.45, 0.8, 1.0], 2) * rng.uniform(0.9, 1.0, 2)
    if rng.random() < 0.3 or plus + minus == 0:
        plus = minus = 0.01 + 0.6 * rng.random()
    return FlipNoise(float(plus), float(minus), "signed" if signed else "binary")


def check(cases, seed):
    """Radii of random codes, noises and probabilities: no code within the radius can lose the vote, and one at the
    radius can."""
    rng, known, found = np.random.default_rng(seed), {}, []
    for _ in range(cases):
        noise = random_noise(rng)
        length = int(rng.integers(1, 4 if noise.signed else 6))
        code = tuple(rng.choice(letters(noise), length).tolist())
        here = distribution(noise, code)
        known = {
            other: (sum(a != b for a, b in zip(code, other, strict=True)), share(here, distribution(noise, other)))
            for other in itertools.product(letters(noise), repeat=length)
        }
        p = 1 - 10 ** rng.uniform(-5, math.log10(0.49))
        if rng.random() < 0.5:  # at the very edge of one of the codes
            edge = float(1 - list(known.values())[rng.integers(len(known))][1])
            p = float(np.nextafter(edge, rng.choice([0, 1]))) if rng.random() < 0.7 else edge
        radius = noise.radius(p, torch.tensor(code, dtype=torch.float32).view(1, -1))
        found.append(radius)
        lost = [distance for distance, m in known.values() if not Fraction(p) > 1 - m]
        assert radius <= min(lost, default=length + 1), (noise.describe(), code, p, radius)
        nearly = [distance for distance, m in known.values() if not Fraction(p) > 1 - m + Fraction(1, 10**10)]
        assert radius >= min(nearly, default=length + 1) * (p > 0.5), (noise.describe(), code, p, radius)
    assert sum(radius > 1 for radius in found) > cases / 5


def test_radii_are_those_of_enumeration():
    check(150, 0)


@pytest.mark.slow
def test_radii_are_those_of_enumeration_in_ten_thousand_cases():
    check(10_000, 1)


def test_the_two_forms_of_the_bound_agree():
    """p > 1 - m just where the least probability at the other code exceeds 1/2, here for codes of eight letters."""
    noise = FlipNoise(0.1, 0.35)
    here, there = (distribution(noise, code) for code in ((0, 0, 0, 0, 0, 1, 1, 1), (1, 1, 1, 0, 0, 0, 0, 1)))
    m = share(here, there)
    assert least(1 - m, here, there) == Fraction(1, 2)
    assert noise.needed(3, 2) == pytest.approx(float(1 - m), abs=1e-12)
    assert noise.needed(3, 2) > 1 - m  # rounded to the safe side


def test_every_split_by_enumeration():
    for plus, minus, alphabet in ((0.1, 0.3, "signed"), (0.4, 0.05, "signed"), (0.0, 0.7, "signed"), (0.3, 0.6, 0)):
        noise = FlipNoise(plus, minus, alphabet or "binary")
        turned = (-1, 1) if alphabet else (0, 0)
        for split in itertools.product(range(4), range(4), range(4 if alphabet else 1)):
            if 0 < sum(split) <= 3:
                pairs = [pair for pair, n in zip(((0, 1), (1, 0), turned), split, strict=True) for _ in range(n)]
                before, after = zip(*pairs, strict=True)
                m = share(distribution(noise, before), distribution(noise, after))
                assert 0 <= noise.needed(*split) - (1 - m) < 1e-12, (noise.describe(), split)


def bojchevski(noise, added, deleted, p):
    """rho of Bojchevski et al. (2020) for {0, 1}: regions by the number q of places that flip."""
    plus, minus = Fraction(noise.p_plus), Fraction(noise.p_minus)
    regions = []
    for q in range(added + deleted + 1):
        mass = sum(
            math.comb(added, i) * plus**i * (1 - plus) ** (added - i)
            * math.comb(deleted, q - i) * minus ** (q - i) * (1 - minus) ** (deleted - q + i)
            for i in range(max(0, q - deleted), min(added, q) + 1)
        )  # fmt: skip
        ratio = (plus / (1 - minus)) ** (q - deleted) * (minus / (1 - plus)) ** (q - added)
        regions.append((mass, mass / ratio))
    return least(p, *zip(*regions, strict=True))


def test_equals_the_regions_of_the_paper():
    rng = np.random.default_rng(4)
    for _ in range(25):
        plus, minus = rng.choice([0.01, 0.05, 0.2, 0.4, 0.6, 0.9], 2, replace=False)
        noise = FlipNoise(float(plus), float(minus))
        added, deleted = (int(v) for v in rng.integers(0, 12, 2))
        m = noise.table.shares(added + deleted)[added, deleted]
        for scale, certified in ((1 - Fraction(1, 10**9), True), (1 + Fraction(1, 10**9), False)):
            rho = bojchevski(noise, added, deleted, 1 - Fraction(m) * scale)
            assert (rho > Fraction(1, 2)) == certified


def lee(p, count, places):
    """m of uniform noise on `count` letters (Lee et al. 2019): regions by the numbers of places with the letter of
    one code and of the other."""
    keep, change = 1 - Fraction(p), Fraction(p) / (count - 1)
    here, there = [], []
    for i in range(places + 1):
        for j in range(places + 1 - i):
            other = places - i - j
            if other and count == 2:
                continue
            ways = math.comb(places, i) * math.comb(places - i, j) * (count - 2) ** other
            here.append(ways * keep**i * change ** (places - i))
            there.append(ways * keep**j * change ** (places - j))
    return share(here, there)


@pytest.mark.parametrize(("alphabet", "count"), [("binary", 2), ("signed", 3)])
def test_equal_probabilities_are_uniform_noise(alphabet, count):
    for p in (0.1, 0.33, 0.6):
        noise = FlipNoise(p, alphabet=alphabet)
        for places in (1, 2, 5, 14):
            exact = lee(noise.p_plus, count, places)
            m = noise.table.shares(places)[(places,)]
            assert exact * (1 - Fraction(1, 10**10)) < m < exact
            splits = [(places, 0), (0, places), (places - 1, 1)] + [(0, 0, places), (1, 0, places - 1)] * (count - 2)
            assert len({noise.needed(*split) for split in splits}) == 1


def test_least_probabilities_by_flip_rate():
    """1 - p that a certificate of r flips needs, for uniform noise on {0, 1}; 40 is SEA's k = 10 in four frames."""
    for rate, expected in {
        0.1: [0.056, 8e-5, 1e-7], 0.2: [0.125, 0.007, 8e-5, 2e-7],
        0.3: [0.214, 0.056, 0.009, 6e-4, 1e-7], 0.4: [0.333, 0.204, 0.132, 0.053, 0.006],
    }.items():  # fmt: skip
        for flips, gap in zip((1, 4, 8, 16, 40), expected, strict=False):
            found = 1 - FlipNoise(rate).needed(flips)
            assert abs(found - gap) <= (0.001 if gap > 0.001 else 0.5 * gap)
    assert in_all(Flips(10), 4) == 40 == in_all(Flips(40, per="total"), 4)


def test_the_code_at_hand_limits_the_splits():
    """Noise that adds nothing gives an added spike away, in codes that have a zero."""
    noise = FlipNoise(0.0, 0.4)
    assert noise.radius(0.999, torch.ones(1, 3)) == 4
    assert noise.radius(0.999, torch.tensor([[1.0, 1.0, 0.0]])) == 1
    assert noise.radius(1.0) == 1
    rng = np.random.default_rng(6)
    limited = 0
    for _ in range(100):
        noise = FlipNoise(*rng.choice([0.02, 0.1, 0.3, 0.5], 2, replace=False), ["binary", "signed"][rng.integers(2)])
        zeros, others = (int(v) for v in (rng.integers(1, 9), rng.integers(0, 8)))
        p = 1 - 10 ** rng.uniform(-5, -0.5)
        radius = 1
        while radius <= zeros + others:
            allowed = [
                (added, deleted, radius - added - deleted)
                for added in range(min(radius, zeros) + 1)
                for deleted in range(radius - added + 1)
                if radius - added <= others and (noise.alphabet == "signed" or deleted == radius - added)
            ]
            if not all(p > noise.needed(*split) for split in allowed):
                break
            radius += 1
        code = torch.cat([torch.zeros(zeros), torch.ones(others)]).view(1, -1)
        assert noise.radius(p, code) == radius
        limited += radius > noise.radius(p)
    assert limited > 5


def test_large_tables_stay_on_the_safe_side():
    """362 - 1 flips at rate 0.45, checked by exact binomial sums at both sides of the edge."""
    noise = FlipNoise(0.45)
    for p in (0.9, 0.999, 0.99993):
        flips = int(noise.radius(p)) - 1
        for r, certified in ((flips, True), (flips + 1, False)):
            a, b = Fraction(noise.p_plus), 1 - Fraction(noise.p_plus)
            here = [math.comb(r, q) * a**q * b ** (r - q) for q in range(r + 1)]
            assert (least(Fraction(p), here, here[::-1]) > Fraction(1, 2)) == certified


@pytest.mark.parametrize("alphabet", ["binary", "signed"])
def test_noise_has_the_probabilities_of_its_table(alphabet, monkeypatch):
    """Which of the equally likely whole numbers change a letter is counted, not sampled."""
    noise = FlipNoise(0.1234567, 0.7, alphabet)
    numbers = {}
    for before in letters(noise):
        p = int((noise.p_minus if before else noise.p_plus) * GRAIN)
        others = [other for other in ((before + 2) % 3 - 1, before % 3 - 1) if other in letters(noise)]
        half = p // len(others)
        assert half * len(others) == p
        numbers[before] = [(0, others[0]), (half - 1, others[0]), (half, others[-1] if len(others) > 1 else before)]
        numbers[before] += [(p - 1, others[-1]), (p, before), (GRAIN - 1, before)]
    for before, pairs in numbers.items():
        drawn = torch.tensor([number for number, _ in pairs], dtype=torch.int32).view(-1, 1, 1)
        monkeypatch.setattr(torch, "randint", lambda high, *a, drawn=drawn, **k: drawn if high == GRAIN else None)
        x = torch.full((1, 1, 1), float(before)).expand(len(pairs), 1, 1)
        assert noise.flipped(x).flatten().tolist() == [after for _, after in pairs]
        assert noise.flipped(x.contiguous()).flatten().tolist() == [after for _, after in pairs]


def test_noise_is_independent_from_letter_to_letter():
    noise = FlipNoise(0.2, 0.6, "signed")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        x = torch.tensor([[[0.0, 1.0, -1.0]]])
        drawn = noise.flipped(x.expand(60_000, 1, 3))[:, 0]
    for place in range(3):
        for other in (-1, 0, 1):
            expected = float(chance(noise, int(x[0, 0, place]), other))
            found = float((drawn[:, place] == other).double().mean())
            assert abs(found - expected) < 4.5 * math.sqrt(0.25 / 60_000)  # 9 looks: false alarm below 1e-4
    both = float(((drawn[:, 0] == 0) & (drawn[:, 1] == 1)).double().mean())
    assert abs(both - 0.8 * 0.4) < 4.5 * math.sqrt(0.25 / 60_000)


class Dense(nn.Module):
    """Two layers on codes of 3 frames with 4 entries; more spikes mean class 1."""

    scope = "none"

    def __init__(self, seed):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.first = nn.Parameter(0.4 + 0.3 * torch.randn(12, 16, generator=generator))
        self.second = nn.Parameter(torch.tensor([-1.0, 1.0]) + 0.5 * torch.randn(16, 2, generator=generator))

    def forward(self, codes):
        return torch.tanh((codes.flatten(1) - 0.5) @ self.first) @ self.second


class Noisy(nn.Module):
    """What an attacker of the vote differentiates: the mean logits of 32 draws of noise."""

    scope = "example"

    def __init__(self, network, noise):
        super().__init__()
        self.network, self.noise = network, noise

    def forward(self, codes):
        draws = self.noise.flipped(codes.repeat_interleave(32, 0))
        return self.network(draws).softmax(1).view(len(codes), 32, 2).mean(1).log()


def votes(network, noise, codes):
    """P(class 1) of the smoothed classifier at codes [N,3,4], by enumeration."""
    every = torch.tensor(list(itertools.product((0.0, 1.0), repeat=12)))
    wins = network(every.view(-1, 3, 4)).argmax(1).double()
    flip = torch.where(codes.flatten(1) == 0, noise.p_plus, noise.p_minus).double()
    odds = torch.ones(len(codes), 1, dtype=torch.float64)
    for place in range(12):
        one = torch.where(codes.flatten(1)[:, place] == 0, flip[:, place], 1 - flip[:, place])
        odds = (odds.unsqueeze(2) * torch.stack([1 - one, one], 1).unsqueeze(1)).flatten(1)
    return odds @ wins


def clear_codes(count):
    """Mostly spikes and mostly silent by turns."""
    rate = torch.tensor([0.1, 0.9]).repeat(count)[:count].view(-1, 1, 1)
    return (torch.rand(count, 3, 4, generator=torch.Generator().manual_seed(0)) < rate).float()


def test_no_certified_code_is_broken_by_sea():
    certified = broken = 0
    codes = clear_codes(16)
    for seed, noise in ((2, FlipNoise(0.15)), (5, FlipNoise(0.1, 0.2)), (7, FlipNoise(0.25))):
        network = Dense(seed)
        with torch.no_grad():
            p = votes(network, noise, codes)
        labels = (p > 0.5).long()
        radii = torch.tensor([noise.radius(float(max(v, 1 - v)), c) for v, c in zip(p, codes, strict=True)])
        for k in (1, 2, 4):
            for model in (network, Noisy(network, noise)):
                attack = SEA(Flips(k, per="total"), steps=5, restarts=2, drop_fooled=False)
                attacked = attack(model, codes, labels, seed=seed)
                with torch.no_grad():
                    lost = (votes(network, noise, attacked) > 0.5).long() != labels
                certified += int((radii > k).sum())
                broken += int(lost.sum())
                assert not bool((lost & (radii > k)).any())
    assert certified > 30
    assert broken > 30  # the attack is no straw man: it breaks codes that are not certified


def test_certificates_of_a_network_are_below_its_true_radius():
    noise, network = FlipNoise(0.15), Dense(2)
    codes = clear_codes(4)
    found = certify(network, codes, noise, selection=20, draws=3000, alpha=1e-3)
    with torch.no_grad():
        p = votes(network, noise, codes)
        for one, code, chance_of_one in zip(found, codes, p, strict=True):
            assert one.prediction in (-1, int(chance_of_one > 0.5))
            assert one.lower <= max(chance_of_one, 1 - chance_of_one)
            for flips in range(1, min(int(one.radius), 4)):
                places = torch.tensor(list(itertools.combinations(range(12), flips)))
                near = code.flatten().repeat(len(places), 1)
                near.scatter_(1, places, 1 - near.gather(1, places))
                assert (votes(network, noise, near.view(-1, 3, 4)) > 0.5).eq(chance_of_one > 0.5).all()
    assert sum(one.radius > 1 for one in found) >= 2


class Fires(nn.Module):
    scope = "none"

    def forward(self, codes):
        share = codes.flatten(1).mean(1)
        return torch.stack([0.5 - share, share - 0.5], 1)


def test_misuse_is_named():
    network = Fires()
    for bad in ((-0.1,), (1.2,), (0.0,), (0.1, True), (0.1, 0.2, "ternary")):
        with pytest.raises(BudgetError):
            FlipNoise(*bad)
    with pytest.raises(ModelError, match=r"model\.network"):
        certify(Encoded(BernoulliRate(2), network), torch.zeros(1, 1, 2, 2), FlipNoise(0.1), selection=5, draws=50)
    with pytest.raises(ImagesError, match="codes"):
        certify(network, torch.full((1, 2, 3), 0.5), FlipNoise(0.1), selection=5, draws=50)
    with pytest.raises(BudgetError, match="turned"):
        FlipNoise(0.1).needed(0, 0, 1)
    with pytest.raises(BudgetError, match="400"):
        FlipNoise(0.1, 0.2).needed(401)
    assert FlipNoise(0.25, alphabet=(-1, 0, 1)).describe() == {
        "smoothing": "FlipNoise", "norm": "l0", "p_plus": 0.25, "p_minus": 0.25, "alphabet": "signed",
    }  # fmt: skip
