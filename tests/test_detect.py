"""The Odds are Odd detector: statistics against loops and closed forms, the exact rate of its threshold, files."""

import json
import math

import numpy as np
import pytest
import torch
from scipy.stats import betabinom, norm
from torch import nn

from stochade.detect import PAPER, Detector, Noise, bank, parse_bank
from stochade.detect.odds import fit, rank_of
from stochade.detect.roc import curve, detected_at, share
from stochade.detect.statistics import Moves, moves
from stochade.errors import BudgetError, CheckpointError, ImagesError, LogitsError, ModelError, UsageError
from stochade.randomness import fingerprint, identities, seed_for


class Linear(nn.Module):
    """Logits W x + b."""

    scope = "none"

    def __init__(self, classes=3, pixels=12, seed=0, dtype=torch.float32):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        w = torch.randn(classes, pixels, generator=generator, dtype=torch.float64).to(dtype)
        self.w, self.b = nn.Parameter(w), nn.Parameter(-w.sum(1).detach() / 2)

    def forward(self, x):
        return x.flatten(1) @ self.w.T + self.b


class Bent(Linear):
    """Nonlinear, so that noise has a mean effect."""

    def forward(self, x):
        return super().forward(x).tanh() * 3 + super().forward(x) ** 2 / 4


class Random(Linear):
    """Noise of its own, for every row."""

    scope = "example"

    def forward(self, x):
        logits = super().forward(x)
        return logits + torch.randn_like(logits)


def images(n=40, pixels=12, seed=1, spread=1.0):
    generator = torch.Generator().manual_seed(seed)
    return 0.5 + spread * (torch.rand(n, 1, 3, pixels // 3, generator=generator) - 0.5)


NOISES = bank(0.1, 0.4)


def test_statistics_and_verdicts_equal_a_loop_in_float64():
    model, x, draws = Bent(), images(60), 5
    detector = Detector.calibrate(model, x, rate=0.1, noises=NOISES, draws=draws, seed=3)
    c, exact = detector.calibration, Bent().double()
    other = images(8, seed=9)
    names = identities(other, torch.zeros(8, dtype=torch.long)).tolist()
    verdict = detector.examine(other)
    for i, name in enumerate(names):
        key = seed_for(seed_for(3, "test"), "noise", name)
        generator = torch.Generator().manual_seed(seed_for(key, "bank"))
        own = exact(other[i : i + 1].double())[0].tolist()
        y = max(range(3), key=lambda k: own[k])
        z_scores = {z: 0.0 for z in range(3) if z != y}
        for s, noise in enumerate(NOISES):
            drawn = noise.draw(torch.empty(draws, 1, 3, 4), generator)
            for z in z_scores:
                g = 0.0
                for eta in drawn:
                    noisy = exact((other[i] + eta).clamp(0, 1).double()[None])[0].tolist()
                    g += ((noisy[z] - noisy[y]) - (own[z] - own[y])) / draws
                z_scores[z] += (g - float(c.mean[s, y, z])) / float(c.std[s, y, z]) / len(NOISES)
        best = max(z_scores, key=lambda z: z_scores[z])
        assert int(verdict.predicted[i]) == y
        assert float(verdict.scores[i]) == pytest.approx(z_scores[best], rel=1e-3, abs=1e-3)
        assert bool(verdict.flags[i]) == (float(verdict.scores[i]) > c.threshold)
        assert int(verdict.corrected[i]) == (best if verdict.flags[i] else y)


def test_means_and_deviations_equal_a_loop():
    generator = torch.Generator().manual_seed(0)
    seen = Moves(*(torch.randn(200, *s, generator=generator, dtype=torch.float64) for s in ((3,), (2, 3))))
    chosen = torch.arange(200) < 120
    c = fit(seen, bank(0.1)[:2], 4, chosen, 0.1)
    predicted = seen.logits.argmax(1)
    held = []
    for s in range(2):
        for y in range(3):
            for z in {0, 1, 2} - {y}:
                g = [float(seen.moved[i, s, z] - seen.moved[i, s, y]) for i in range(120) if predicted[i] == y]
                assert float(c.mean[s, y, z]) == pytest.approx(np.mean(g))
                assert float(c.std[s, y, z]) == pytest.approx(np.std(g, ddof=1))
    for i in range(120, 200):
        y, m = int(predicted[i]), seen.moved[i]
        z = ((m - m[:, y : y + 1] - c.mean[:, y]) / c.std[:, y]).mean(0)
        held.append(max(float(z[k]) for k in range(3) if k != y))
    assert c.held.tolist() == pytest.approx(sorted(held))
    assert c.threshold == pytest.approx(sorted(held)[math.ceil(81 * 0.9) - 1])
    again = c.judge(Moves(seen.logits[120:], seen.moved[120:]))
    assert int(again.flags.sum()) == 80 - 73  # what equals the threshold is not flagged
    assert c.at(0.3).threshold == pytest.approx(sorted(held)[math.ceil(81 * 0.7) - 1])
    first = [i for i in range(120) if predicted[i] == 1]
    centre = seen.logits[first].mean(0)
    nearest = min(first, key=lambda i: float((seen.logits[i] - centre).square().sum()))
    assert torch.equal(c.typical[1], seen.logits[nearest])


@pytest.mark.parametrize(("kind", "variance"), [("gaussian", 1.0), ("uniform", 1 / 3), ("bernoulli", 1.0)])
def test_linear_models_have_closed_forms(kind, variance):
    """For W x + b the mean of D draws moves f_{y,z} by N(0, v size^2 |w_z - w_y|^2 / D): means 0, deviations known,
    and with two classes scores are standard normal, so the threshold is a normal quantile. Bounds: five standard
    errors."""
    model, size, draws, n = Linear(2), 0.02, 4, 700
    detector = Detector.calibrate(model, images(n, spread=0.3), rate=0.1, noises=Noise(kind, size), draws=draws)
    c = detector.calibration
    expected = size * math.sqrt(variance / draws) * float((model.w[1] - model.w[0]).detach().norm())
    for y in (0, 1):
        count = int(c.counts[y])
        assert count > 80
        assert abs(float(c.mean[0, y, 1 - y])) < 5 * expected / math.sqrt(count)
        assert abs(float(c.std[0, y, 1 - y]) / expected - 1) < 5 / math.sqrt(2 * count)
    quantile, held = norm.ppf(0.9), len(c.held)
    assert abs(c.threshold - quantile) < 5 * math.sqrt(0.09 / held) / norm.pdf(quantile) + 5 * math.sqrt(2 / n)


@pytest.mark.parametrize(("count", "rate"), [(19, 0.05), (20, 0.05), (99, 0.01), (150, 0.01), (7, 0.3), (1, 0.5)])
def test_the_threshold_has_its_rate_exactly(count, rate):
    """A new score is equally likely at each of the count + 1 ranks; it is flagged above the k-th of the others."""
    k = rank_of(count, rate)
    flagged = [sorted(s for s in range(count + 1) if s != new)[k - 1] < new for new in range(count + 1)]
    assert np.mean(flagged) <= rate
    assert k == 1 or np.mean(flagged) + 1 / (count + 1) > rate  # the next lower threshold would exceed it


def test_exchangeable_images_are_flagged_at_the_stated_rate():
    """Of 20 further images of each of 400 calibrations the flagged ones follow a beta-binomial law; the mean is held
    to 4.5 standard errors (false alarm 7e-6)."""
    generator = torch.Generator().manual_seed(5)
    held, fresh, rate, flagged = 39, 20, 0.05, []
    for _ in range(400):
        total = 30 + held + fresh
        seen = Moves(*(torch.randn(total, *s, generator=generator, dtype=torch.float64) for s in ((3,), (1, 3))))
        c = fit(Moves(*(t[: 30 + held] for t in seen)), NOISES[:1], 1, torch.arange(30 + held) < 30, rate)
        flagged.append(int(c.judge(Moves(*(t[30 + held :] for t in seen))).flags.sum()))
    k = rank_of(held, rate)
    law = betabinom(fresh, held + 1 - k, k)
    assert law.mean() / fresh == pytest.approx(0.05)
    assert c.nominal()[0] == pytest.approx(0.05)
    assert abs(np.mean(flagged) - law.mean()) < 4.5 * law.std() / math.sqrt(len(flagged))
    assert abs(np.mean(np.array(flagged) == 0) - law.pmf(0)) < 4.5 * 0.5 / math.sqrt(len(flagged))


@pytest.mark.parametrize("made", [Bent, Random])
def test_what_an_image_gets_depends_on_seed_and_identity_alone(made):
    model, x, other = made(), images(60), images(7, seed=4)
    detector = Detector.calibrate(model, x, rate=0.1, noises=NOISES, draws=3, seed=1)
    before = fingerprint()
    together = detector.examine(other)
    assert fingerprint() == before
    for i in (0, 3, 6):
        assert torch.equal(detector.scores(other[i : i + 1]), together.scores[i : i + 1])
    assert torch.equal(detector.scores(other.flip(0)), together.scores.flip(0))
    assert torch.equal(detector.flags(other), together.flags)
    assert torch.equal(detector.corrected(other), together.corrected)
    again = Detector.calibrate(model, x, rate=0.1, noises=NOISES, draws=3, seed=1)
    assert torch.equal(again.calibration.held, detector.calibration.held)
    assert not torch.equal(Detector(model, detector.calibration, seed=2).scores(other), together.scores)
    elsewhere = Detector.calibrate(model, x, rate=0.1, noises=NOISES, draws=3, seed=2)
    assert not torch.equal(elsewhere.calibration.held, detector.calibration.held)
    one = moves(model, other[:1].repeat(2, 1, 1, 1), NOISES, 3, 0, ids=torch.tensor([1, 2]))
    assert not torch.equal(one.moved[0], one.moved[1])


def test_files_give_the_same_detector(tmp_path):
    model, x = Bent(), images(60)
    detector = Detector.calibrate(model, x, rate=0.1, noises=NOISES, draws=3, seed=1)
    again = Detector.load(detector.save(tmp_path / "d"), model)
    assert torch.equal(again.scores(x), detector.scores(x))
    assert (again.calibration.noises, again.calibration.rate, again.seed) == (NOISES, 0.1, 1)
    with pytest.raises(CheckpointError, match="model that was calibrated"):
        Detector.load(tmp_path / "d", Bent(seed=1))
    with pytest.raises(CheckpointError, match="no file"):
        Detector.load(tmp_path / "nowhere", model)
    weights = tmp_path / "d" / "calibration.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-8] + bytes(8))
    with pytest.raises(CheckpointError, match="checksum"):
        Detector.load(tmp_path / "d", model)
    weights.write_bytes(whole)
    told = tmp_path / "d" / "calibration.json"
    told.write_text(json.dumps(json.loads(told.read_text()) | {"schema": 99}))
    with pytest.raises(CheckpointError, match="something else"):
        Detector.load(tmp_path / "d", model)


def test_a_class_without_images_is_still_watched():
    """Its pairs take the statistics of all classes, or predicting it would be a way through."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(200, 3, generator=generator, dtype=torch.float64) + torch.tensor([9.0, 9.0, 0.0])
    moved = torch.randn(200, 1, 3, generator=generator, dtype=torch.float64)
    c = fit(Moves(logits, moved), NOISES[:1], 1, torch.arange(200) < 100, 0.05)
    assert c.counts.tolist()[2] == 0
    assert bool(c.typical[2].isnan().all())
    strange = Moves(torch.tensor([[0.0, 0.0, 9.0]]).double(), torch.tensor([[[50.0, 0.0, 0.0]]]).double())
    verdict = c.judge(strange)
    assert bool(verdict.flags)
    assert (int(verdict.predicted), int(verdict.corrected)) == (2, 0)


def test_impossible_settings_are_named_before_any_forward():
    def never(x):
        raise AssertionError("the model was called")

    x = images(60)
    for options, words in (
        ({"rate": 0.0}, r"rate in \(0, 1\)"), ({"rate": 1.0}, r"rate in \(0, 1\)"),
        ({"rate": 0.01}, "at least 99 held-out"),
        ({"held": 1.0}, "share"), ({"draws": 0}, "draws"), ({"noises": ()}, "at least one Noise"),
        ({"rate": 0.1, "held": 0.99}, "means and deviations"),
    ):  # fmt: skip
        with pytest.raises(BudgetError, match=words):
            Detector.calibrate(never, x, **{"rate": 0.1} | options)
    for size in (0.0, -1.0, math.nan, True):
        with pytest.raises(BudgetError, match="sigma"):
            Noise("gaussian", size)
    with pytest.raises(BudgetError, match="kind"):
        Noise("salt", 0.1)
    with pytest.raises(ImagesError):
        Detector.calibrate(never, 255 * x, rate=0.1)


def test_models_that_cannot_be_watched_are_named():
    x = images(60)
    with pytest.raises(LogitsError, match="at least two classes"):
        Detector.calibrate(Linear(1), x, rate=0.1)
    one = Linear(2)
    with torch.no_grad():
        one.b[0] = 100
    with pytest.raises(ModelError, match="two classes or more"):
        Detector.calibrate(one, x, rate=0.1, noises=NOISES, draws=2)
    step = lambda z: torch.stack([z.flatten(1)[:, 0].round(), z.flatten(1)[:, 1].round() - 0.5], 1)  # noqa: E731
    with pytest.raises(ModelError, match="moves none"):
        Detector.calibrate(step, x.round().clamp(0.1, 0.9), rate=0.1, noises=Noise("uniform", 0.01), draws=2)
    detector = Detector.calibrate(Linear(3), x, rate=0.1, noises=NOISES, draws=2)
    with pytest.raises(BudgetError, match="3 classes"):
        Detector(Linear(2), detector.calibration).scores(x)


def test_banks_by_name():
    assert parse_bank(["paper"]) == PAPER
    assert len(PAPER) == 9
    assert parse_bank(["gaussian=0.1", "0.2"]) == (Noise("gaussian", 0.1), *bank(0.2))
    with pytest.raises(UsageError, match="noise such as"):
        parse_bank(["gaussian=much"])
    with pytest.raises(BudgetError, match="kind"):
        parse_bank(["salt=0.1"])
    with pytest.raises(BudgetError, match="sigma"):
        parse_bank(["-0.1"])


def test_curves_equal_a_loop():
    generator = np.random.default_rng(0)
    clean, attacked = generator.integers(0, 12, 30) / 4, generator.integers(4, 16, 25) / 4  # with ties
    found = curve(clean, attacked)
    wins = [(a > c) + (a == c) / 2 for a in attacked for c in clean]
    assert found.area == pytest.approx(np.mean(wins))
    assert found.area == pytest.approx(np.trapezoid(found.detected, found.false))
    assert (found.false[0], found.false[-1], found.detected[-1]) == (0, 1, 1)
    for threshold in np.unique(attacked):
        point = ((clean >= threshold).mean(), (attacked >= threshold).mean())
        assert any(np.allclose(point, both) for both in zip(found.false, found.detected, strict=True))
    for rate in (0.05, 0.1, 0.5):
        lowest = min(t for t in [*clean, *attacked] if (clean > t).mean() <= rate + 1e-12)
        assert detected_at(clean, attacked, rate).value == pytest.approx((attacked > lowest).mean())
    assert share(np.array([True] * 5)).low == pytest.approx(0.025 ** (1 / 5))
    assert share(np.array([], dtype=bool)).value is None
