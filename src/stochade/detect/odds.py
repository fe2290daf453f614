"""The "Odds are Odd" detector (Roth, Kilcher, Hofmann 2019): an image is suspicious when noise moves its log-odds
further towards another class than it moves those of clean images.

For the predicted class y and every other class z the noise-perturbed log-odds g_{y,z} (see `statistics`) are
standardised by their mean and standard deviation over clean images predicted as y, averaged over the noises of the
bank, and the largest over z is the score (the order of the authors' code). An image whose score exceeds the threshold
is flagged, and its label corrected to the class of the largest standardised statistic. The authors' code fits a
logistic regression on PGD examples for the correction; this one needs clean images only.

The threshold is split-conformal. With m scores of clean images that gave neither means nor deviations, it is the k-th
smallest, k = ceil((m + 1) (1 - rate)). A further clean image is exchangeable with these m, so the rank of its score
among all m + 1 is uniform and it exceeds the threshold with probability at most (m + 1 - k) / (m + 1) <= rate,
exactly so where scores never tie. That is over the draw of the calibration images as well; given them the rate of a
detector follows Beta(m + 1 - k, k). The authors' code takes the normal quantile 0.999, although a score is a maximum
over classes, and so states no rate.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from stochade.attacks.gradients import Model
from stochade.describe import describe, fingerprint_model
from stochade.detect import store
from stochade.detect.bank import PAPER, Noise, check_bank
from stochade.detect.statistics import Moves, check_images_for, moves
from stochade.errors import BudgetError, ModelError
from stochade.progress import progress
from stochade.randomness import Stream, identities, seed_for

LEAST = 5  # images of a class below which its pairs take the statistics of all classes together


class Verdict(NamedTuple):
    """Attributes:
    predicted: [N] classes at the images themselves. scores: [N] larger is more suspicious.
    flags: [N] whether the score exceeds the threshold. corrected: [N] classes after correction of flagged images.
    """

    predicted: Tensor
    scores: Tensor
    flags: Tensor
    corrected: Tensor


def rank_of(count: int, rate: float) -> int:
    """k = ceil((count + 1) (1 - rate)), the rank of the threshold among `count` held-out scores.

    Raises:
        BudgetError: a rate outside (0, 1), or so few scores that no threshold keeps it.
    """
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate < 1:
        raise BudgetError("a false-positive rate in (0, 1)", repr(rate), "0.01 is usual")
    rank = math.ceil((count + 1) * (1 - rate) - 1e-9)
    if rank > count:
        needed = math.ceil(1 / rate - 1e-9) - 1
        raise BudgetError(
            f"at least {needed} held-out calibration images for a false-positive rate of {rate:g}", str(count),
            "even the largest of their scores is exceeded more often: take more images or a higher rate",
        )  # fmt: skip
    return rank


@dataclass(frozen=True, eq=False)
class Calibration:
    """What a detector knows of clean images.

    Attributes:
        noises, draws: the bank, and draws of each.
        mean, std: [S,K,K] of g_{y,z} over the images predicted as y; y counts rows.
        counts: [K] images predicted as each class that they rest on. Pairs of a class with fewer than five take
            mean and deviation of all pairs together.
        held: [m] sorted scores of the images held out for the threshold.
        rate: false-positive rate asked for. threshold: scores above it are flagged.
        typical: [K,K] logits of one clean image predicted as each class, that nearest their mean; NaN without images.
    """

    noises: tuple[Noise, ...]
    draws: int
    mean: Tensor
    std: Tensor
    counts: Tensor
    held: Tensor
    rate: float
    threshold: float
    typical: Tensor

    @property
    def classes(self) -> int:
        return self.mean.shape[-1]

    def z_scores(self, moved: Tensor, predicted: Tensor) -> Tensor:
        """[N,K] standardised statistics, averaged over noises, for moved [N,S,K] and classes [N]; -inf at the class
        itself. Differentiable."""
        mean, std = (t.to(moved.device, moved.dtype)[:, predicted].transpose(0, 1) for t in (self.mean, self.std))
        own = moved.gather(2, predicted[:, None, None].expand(-1, moved.shape[1], 1))
        z = ((moved - own - mean) / std).mean(1)
        return z.scatter(1, predicted[:, None], -torch.inf)

    def judge(self, seen: Moves) -> Verdict:
        """The verdict on images from their logits and moves."""
        predicted = seen.logits.argmax(1)
        z = self.z_scores(seen.moved, predicted)
        scores, best = z.max(1)
        flags = scores > self.threshold
        return Verdict(predicted, scores, flags, torch.where(flags, best, predicted))

    def at(self, rate: float) -> "Calibration":
        """The same calibration with the threshold of another false-positive rate."""
        held = self.held
        return Calibration(
            self.noises, self.draws, self.mean, self.std, self.counts, held, rate,
            float(held[rank_of(len(held), rate) - 1]), self.typical,
        )  # fmt: skip

    def nominal(self, confidence: float = 0.95) -> tuple[float, float, float]:
        """(mean, low, high) of the false-positive rate that such a calibration has, Beta(m + 1 - k, k)."""
        from scipy.stats import beta

        k, m = rank_of(len(self.held), self.rate), len(self.held)
        low, high = beta.interval(confidence, m + 1 - k, k)
        return (m + 1 - k) / (m + 1), float(low), float(high)


def fit(seen: Moves, noises: Sequence[Noise], draws: int, chosen: Tensor, rate: float) -> Calibration:
    """A calibration from the moves of clean images.

    Args:
        chosen: [N] bool, images for means and deviations; the others are held out for the threshold.

    Raises:
        BudgetError: too few images of either kind. ModelError: one predicted class, or logits that noise never moves.
    """
    held_out = int((~chosen).sum())
    rank = rank_of(held_out, rate)
    part = Moves(seen.logits[chosen], seen.moved[chosen])
    if len(part.logits) < LEAST:
        raise BudgetError(f"at least {LEAST} calibration images for means and deviations", str(len(part.logits)))
    predicted, k = part.logits.argmax(1), part.logits.shape[1]
    if int(predicted.min()) == int(predicted.max()):
        raise ModelError(
            "calibration images that are predicted as two classes or more", f"class {int(predicted[0])} for all",
            "a detector for a model with one answer says nothing: check the model and its input",
        )  # fmt: skip
    own = part.moved.gather(2, predicted[:, None, None].expand(-1, part.moved.shape[1], 1))
    g = part.moved - own  # [n,S,K]
    others = torch.ones_like(part.logits, dtype=torch.bool).scatter(1, predicted[:, None], False)
    pooled = g.transpose(0, 1)[:, others]  # [S, n (K - 1)]
    spread, centre = pooled.std(1), pooled.mean(1)
    if not bool((spread > 0).all()):
        still = noises[int((spread > 0).logical_not().nonzero()[0])]
        raise ModelError("noise that moves the logits", f"{still}, which moves none of them", "take a larger size")
    mean, std = centre[:, None, None].repeat(1, k, k), spread[:, None, None].repeat(1, k, k)
    counts = torch.bincount(predicted, minlength=k)
    typical = torch.full((k, k), torch.nan, dtype=torch.float64)
    for y in range(k):
        rows = predicted == y
        if counts[y] >= LEAST:
            deviation = g[rows].std(0)
            fine = deviation > 0  # a pair that never moved keeps the deviation of all
            mean[:, y] = torch.where(fine, g[rows].mean(0), mean[:, y])
            std[:, y] = torch.where(fine, deviation, std[:, y])
        if counts[y]:
            logits = part.logits[rows]
            typical[y] = logits[(logits - logits.mean(0)).square().sum(1).argmin()]
    empty = torch.zeros(0, dtype=torch.float64)
    raw = Calibration(tuple(noises), draws, mean, std, counts, empty, rate, math.inf, typical)
    held = raw.judge(Moves(seen.logits[~chosen], seen.moved[~chosen])).scores.sort().values
    return Calibration(raw.noises, draws, mean, std, counts, held, rate, float(held[rank - 1]), typical)


class Detector:
    """A model with a calibrated test in front of it.

    Args:
        model: images [N,C,H,W] in [0,1] -> logits [N,K].
        calibration: of this model.
        seed: of the noise of the test; an image's noise follows (seed, identity).
    """

    def __init__(self, model: Model, calibration: Calibration, seed: int = 0):
        self.model, self.calibration, self.seed = model, calibration, seed

    @classmethod
    def calibrate(
        cls,
        model: Model,
        images: Tensor,
        *,
        rate: float = 0.01,
        noises: Sequence[Noise] = PAPER,
        draws: int = 32,
        held: float = 0.5,
        seed: int = 0,
        show_progress: bool = False,
    ) -> "Detector":
        """A detector from clean images that the model was not trained on. No labels are needed.

        Args:
            images: [N,C,H,W], exchangeable with the clean images to come.
            rate: of false positives. noises, draws: the bank, and draws of each noise.
            held: share of the images that give the threshold; the others give means and deviations.
            seed: of the split and the noise.

        Raises:
            BudgetError: a rate or share outside (0, 1), too few images for the rate, no noise or no draws.
            ModelError: a model that predicts one class only or whose logits noise never moves.
            ImagesError, LogitsError: images outside [0,1], outputs that are no logits of two classes or more.
        """
        noises = check_bank(noises)
        check_draws(draws)
        if isinstance(held, bool) or not isinstance(held, int | float) or not 0 < held < 1:
            raise BudgetError("a share of held-out calibration images in (0, 1)", repr(held), "0.5 is usual")
        count = len(images) - int(len(images) * held)
        rank_of(len(images) - count, rate)
        if count < LEAST:
            raise BudgetError(f"at least {LEAST} calibration images for means and deviations", str(count))
        check_images_for(model, images)
        names = identities(images, torch.zeros(len(images), dtype=torch.long))
        order = Stream(seed_for(seed, "split"), names).uniform((1,), torch.float64)[:, 0].argsort()
        chosen = torch.zeros(len(images), dtype=torch.bool)
        chosen[order[:count]] = True
        with progress("calibrating the detector", len(images), show_progress) as tick:
            seen = moves(model, images, noises, draws, seed_for(seed, "calibration"), tick=tick)
        seen = Moves(*(t.cpu() for t in seen))
        return cls(model, fit(seen, noises, draws, chosen, rate), seed)

    def examine(self, x: Tensor, ids: Tensor | None = None, show_progress: bool = False) -> Verdict:
        """Predictions, scores, flags and corrected classes of images [N,C,H,W], on the CPU.

        Args:
            ids: [N] identities that noise follows; by default a hash of the image.

        Raises:
            ImagesError, LogitsError, ModelError: images or models that cannot be looked at.
            BudgetError: a model of other classes than the calibration.
        """
        c, classes = self.calibration, check_images_for(self.model, x)
        if classes != c.classes:
            raise BudgetError(f"a model of {c.classes} classes, as calibrated", str(classes), "calibrate on it")
        with progress("looking for flagged images", len(x), show_progress) as tick:
            seen = moves(self.model, x, c.noises, c.draws, seed_for(self.seed, "test"), ids, tick)
        return c.judge(Moves(*(t.cpu() for t in seen)))

    def scores(self, x: Tensor) -> Tensor:
        """[N] scores; larger is more suspicious. See `examine`."""
        return self.examine(x).scores

    def flags(self, x: Tensor) -> Tensor:
        """[N] whether the test takes an image for adversarial. See `examine`."""
        return self.examine(x).flags

    def corrected(self, x: Tensor) -> Tensor:
        """[N] predicted classes, those of flagged images corrected. See `examine`."""
        return self.examine(x).corrected

    def save(self, folder: str | Path) -> Path:
        """Write the calibration as `calibration.safetensors` and `calibration.json`; returns the folder."""
        c = self.calibration
        tensors = {name: getattr(c, name) for name in store.TENSORS}
        told = {"noises": describe(list(c.noises)), "draws": c.draws, "rate": c.rate, "threshold": c.threshold,
                "seed": self.seed, "model": fingerprint_model(self.model)}  # fmt: skip
        return store.save(folder, tensors, told)

    @classmethod
    def load(cls, folder: str | Path, model: Model) -> "Detector":
        """The detector of a saved calibration.

        Raises:
            CheckpointError: files that are missing, damaged or of another model.
        """
        tensors, told = store.load(folder, fingerprint_model(model))
        noises = tuple(Noise(n["kind"], n["size"]) for n in told["noises"])
        values = {name: tensors[name] for name in store.TENSORS}
        kept = Calibration(
            noises=noises, draws=told["draws"], rate=told["rate"], threshold=told["threshold"], **values
        )
        return cls(model, kept, told["seed"])


def check_draws(draws: object) -> int:
    """BudgetError unless a whole number of at least 1."""
    if isinstance(draws, bool) or not isinstance(draws, int) or draws < 1:
        raise BudgetError("draws of each noise: a whole number of at least 1", repr(draws), "32 is usual")
    return draws
