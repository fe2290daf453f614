"""Deterministic l1 certificates of quantised images: smoothing by splits that are counted, not drawn (Levine and
Feizi 2021, "Improved, Deterministic Smoothing for l1 Certified Robustness").

Pixels lie on the levels 0, 1/q, ..., 1. Place i has a fixed whole number v_i in 0..n-1, and the split with offset o
in 0..n-1 puts thresholds at the half levels ((v_i + o) mod n) + 1/2 + n Z (in units of levels): n levels apart, the
same offset o everywhere. A split shows of each pixel only the middle of the interval between thresholds, cut to
[0, 1], that it lies in. The smoothed classifier is the majority of the base classifier's votes on all n splits.

Let x' be another quantised image, a_i = q |x_i - x'_i| levels away in place i. A split shows different values in
place i only if one of its thresholds lies between the two; there are a_i half levels between them, which n different
offsets have in turn, so that happens for exactly min(a_i, n) of the n offsets. Hence at most D = sum_i a_i =
q |x - x'|_1 of the n splits show another image at all, and at most D votes change, whatever the v_i: no independence
between places is needed, so one shared offset does, and n evaluations are the exact expectation. A class c keeps the
majority against j (ties to the smaller index) if votes[c] - D >= votes[j] + D, strictly for j < c; so for

    D <= min over j of floor((votes[c] - votes[j] - [j < c]) / 2).

All of this is whole numbers. From a share p of the votes alone (or a lower bound of it by drawn splits) follows
D < n (p - 1/2), which is the paper's l1 radius 2 lambda (p - 1/2) with 2 lambda = n / q.

The images of the threat are quantised too; others are refused. An l1 distance of such images is a multiple of 1/q, so
radii are given as (D + 1/2)/q: every image strictly nearer is at most D levels away, and float sums of pixels cannot
carry one that is farther inside. An 8-bit image has q = 255; lambda = n / (2 q), so n = 255 is lambda = 1/2.

Cost: n network evaluations per input, no failure probability. Train the network on `Splitting.view` with random
offsets; one that has only seen clean images does not know split ones. The base classifier is the network as it
computes: a split is always evaluated at the same place of a batch of the same size.
"""

import math
import time
from collections.abc import Sequence
from fractions import Fraction

import torch
from torch import Tensor

from stochade.attacks.gradients import check_logits
from stochade.certify.confidence import check_count
from stochade.certify.procedure import Certificate
from stochade.certify.smoothing import Model, Smoothing, check_independent
from stochade.errors import BudgetError, ImagesError, ModelError
from stochade.randomness import seed_for, untouched


class Splitting(Smoothing):
    """Splits of quantised images. As a `Smoothing` for `certify` it draws offsets, for a bound from few of many
    splits; `certify_quantised` counts all of them.

    Args:
        thresholds: n, the number of splits and the distance of thresholds in levels; lambda = n / (2 levels).
        levels: q, steps between 0 and 1. seed: of the numbers v_i, which belong to the classifier.

    Raises:
        BudgetError: no thresholds or no levels.
    """

    norm = "l1"

    def __init__(self, thresholds: int, levels: int = 255, seed: int = 0):
        self.thresholds = check_count(thresholds, "thresholds")
        self.levels = check_count(levels, "levels between 0 and 1")
        self.seed = seed

    def places(self, shape: Sequence[int]) -> Tensor:
        """v [*shape], int64 on the CPU: a function of seed, thresholds and shape."""
        generator = torch.Generator().manual_seed(seed_for(self.seed, "split", self.thresholds, tuple(shape)))
        return torch.randint(self.thresholds, tuple(shape), generator=generator)

    def view(self, x: Tensor, offsets: Tensor) -> Tensor:
        """What the splits with these offsets [B] show of images [B,...]; ImagesError for other values than k/q."""
        n, top = self.thresholds, 2 * self.levels  # in half levels, where thresholds are odd and pixels even
        own = offsets.to(x.device).view(-1, *(1,) * (x.dim() - 1))
        first = 2 * ((self.places(x.shape[1:]).to(x.device) + own) % n) + 1
        below = first + 2 * n * torch.div(2 * self.counted(x) - first, 2 * n, rounding_mode="floor")
        return (below.clamp(min=0) + (below + 2 * n).clamp(max=top)).to(x.dtype) / (2 * top)

    def counted(self, x: Tensor) -> Tensor:
        """Images as whole numbers of levels, int64; ImagesError for other values than k/q in [0, 1]."""
        if not isinstance(x, Tensor) or not x.is_floating_point():
            got = str(x.dtype) if isinstance(x, Tensor) else type(x).__name__
            raise ImagesError("float images in [0, 1]", got)
        scaled = x.double() * self.levels
        whole = scaled.round()
        off = float((scaled - whole).abs().max()) if x.numel() else 0.0
        if not off <= 0.01 or not bool(((whole >= 0) & (whole <= self.levels)).all()):
            raise ImagesError(
                f"images whose pixels are k/{self.levels} in [0, 1]", f"{off:.3g} of a level off",
                "quantise them: (x * q).round() / q",
            )  # fmt: skip
        return whole.long()

    def draw(self, model: Model, x: Tensor) -> Tensor:
        return model(self.view(x, torch.randint(self.thresholds, (len(x),))))

    def rest(self, model: Model, x: Tensor, seed: int) -> Tensor:
        return super().rest(model, self.view(x, torch.zeros(len(x), dtype=torch.int64)), seed)

    def radius(self, p: float, x: Tensor | None = None) -> float:
        if not 0 <= p <= 1:
            raise BudgetError("a probability in [0, 1]", repr(p))
        exact = Fraction(p) - Fraction(1, 10**12)  # a share votes / n may have been rounded up
        safe = math.ceil(self.thresholds * (exact - Fraction(1, 2))) - 1
        return self.distance(max(0, safe)) if p > 0.5 else 0.0

    def distance(self, levels: int) -> float:
        """The radius of a certificate of so many levels."""
        return (levels + 0.5) / self.levels


def majority(votes: Sequence[int]) -> tuple[int, int]:
    """(class, D): the majority (ties to the smaller index) and how many votes may change without changing it."""
    top = max(range(len(votes)), key=lambda c: (votes[c], -c))
    gaps = [(votes[top] - votes[j] - (j < top)) // 2 for j in range(len(votes)) if j != top]
    return top, min(gaps)


@torch.no_grad()
def certify_quantised(model: Model, x: Tensor, splitting: Splitting, *, batch: int = 1000) -> list[Certificate]:
    """One certificate per input, from all splits of it: never wrong. `lower` is the class's share of the votes
    itself; every input gets its class. The model and the global generators come back as they were.

    Args:
        model: deterministic, images [N,...] -> logits [N,K], each row by itself. x: images with pixels k/q.
        batch: splits per forward.

    Raises:
        ImagesError: pixels between levels. ModelError: a random model, or one whose rows see each other.
    """
    check_count(batch, "splits per forward (batch)")
    splitting.counted(x)
    splitting.check_inputs(x)
    check_independent(model, x[:1], splitting, independent=True, batch=min(batch, splitting.thresholds))
    found = []
    with untouched(model):
        first, second = (splitting.rest(model, x[:1], seed) for seed in (1, 2))
        if not torch.equal(first, second):
            raise ModelError(
                "a deterministic model", "one with noise of its own",
                "certify(model, x, splitting) bounds a random one, with a failure probability",
            )  # fmt: skip
        for i in range(len(x)):
            start = time.perf_counter()
            votes = torch.zeros(first.shape[1], dtype=torch.int64, device=x.device)
            for offsets in torch.arange(splitting.thresholds).split(batch):
                rows = x[i : i + 1].expand(len(offsets), *x.shape[1:])
                chosen = check_logits(model(splitting.view(rows, offsets)), len(offsets)).argmax(1)
                votes += torch.bincount(chosen, minlength=len(votes))
            counts = tuple(votes.tolist())
            prediction, levels = majority(counts)
            share = counts[prediction] / splitting.thresholds
            found.append(
                Certificate(
                    prediction, splitting.distance(levels), share, counts, splitting.thresholds,
                    time.perf_counter() - start,
                )
            )  # fmt: skip
    return found
