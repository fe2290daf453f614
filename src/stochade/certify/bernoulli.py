"""Certificates of rate codes and signed rate codes, whose own randomness smooths (RATE, SRATE).

Two bounds, both for any network behind the encoder; the larger radius counts.

**Coupling** (l1, the same for every image). One pixel of one frame is a letter other than 0 with
probability |x| (RATE: a spike; SRATE: a spike of the pixel's sign). The codes of x and x' in that place can be drawn
together so that they differ with probability |x - x'| at most: just that for equal signs, max(a, b) <= a + b for a
spike + with probability a against a spike - with probability b. All T d places are independent, so all of them agree
with probability at least prod_i (1 - |d_i|)^T >= (1 - |d|_1)^T: of all changes of equal length that of a single pixel
is the worst. A network behind the code keeps its class with at least p - (1 - (1 - |d|_1)^T), which exceeds 1/2
exactly for |d|_1 < 1 - (3/2 - p)^(1/T). That is a little more than (p - 1/2) / T. The radius p - 1/2, which forgets
the frames, is
wrong: let F = 1 if any of four frames fires; at x = 0 the vote is 0 with p = 1, at x = 0.2 it is 1 with 0.59.

**Affinity** (any norm, for this very image). Let B(x, x') = sum over letters of sqrt(P_x P_x'), the Bhattacharyya
coefficient of one place. It multiplies over independent places, and no function of the codes can make it smaller:
with q the probability at x', sqrt(p q) + sqrt((1-p)(1-q)) >= prod_i B(x_i, x'_i)^T. The left side is cos(a(p) - a(q))
with a(p) = arcsin sqrt(p), so q > 1/2 as long as

    T sum_i -log B(x_i, x'_i) < -log cos(a(p) - pi/4) =: room(p).

For RATE B = sqrt(x x') + sqrt((1-x)(1-x')), a concave function of x', so each term of the sum is convex in x'; the
radii below maximise the sum over a ball. For SRATE the same holds of |x| while the sign stays; across it
B = sqrt((1-a)(1-b)) is less. Rates clipped to [eta, 1-eta] move no farther than the pixels; without the clip a pixel
at 0 or 1 leaves no l2 or l0 radius. A floor under *signed* rates makes the rate jump where a pixel crosses its mean:
there the coupling bound is false, and this module refuses.
"""

import math

import torch
from torch import Tensor

from stochade.certify.gaussian import behind_codes, check_encodings, encoder_in_front, without_one_encoding
from stochade.certify.smoothing import Model, Smoothing
from stochade.errors import BudgetError, ModelError
from stochade.nn.encoders import BernoulliRate, Mean, SignedRate, as_mean, centred, check_floor, check_steps


def l1_radius(p: float, steps: int) -> float:
    """1 - (3/2 - p)^(1/T), 0 for p <= 1/2: the l1 distance of images below which the vote of a rate code keeps its
    class (coupling bound, above).

    Args:
        p: (a lower bound of) the probability of the class. steps: frames T.

    Raises:
        BudgetError: p outside [0, 1] or fewer than one frame.
    """
    _check(p, steps)
    return 0.0 if p <= 0.5 else -math.expm1(math.log1p(0.5 - p) / steps) / ROUNDED


def room(p: float, steps: int) -> float:
    """-log cos(arcsin sqrt(p) - pi/4) / T: how much sum_i -log B(x_i, x'_i) may be; 0 for p <= 1/2.

    cos^2 of it is 1/2 + sqrt(p (1-p)), so that nothing cancels near p = 1/2.
    """
    _check(p, steps)
    if p <= 0.5:
        return 0.0
    away = (2 * p - 1) ** 2 / (2 + 4 * math.sqrt(p * (1 - p)))  # 1/2 - sqrt(p (1-p))
    return -0.5 * math.log1p(-away) / steps


def _check(p: float, steps: int) -> None:
    if not 0 <= p <= 1:
        raise BudgetError("a probability in [0, 1]", repr(p))
    if steps < 1:
        raise BudgetError("at least one frame", repr(steps))


def separation(x: Tensor, other: Tensor, floor: float = 0.0) -> Tensor:
    """-log B of every pixel, float64, like x; infinite where no code is common. Pixels in [0,1], or in [-1,1] for
    signed rates; `floor` clips rates to [floor, 1-floor]. 1 - B is formed from differences of roots, so that small
    changes keep their digits."""
    a, b = (part.double().abs().clamp(floor, 1 - floor) for part in (x, other))
    spikes, silence = a.sqrt() + b.sqrt(), (1 - a).sqrt() + (1 - b).sqrt()
    gap = (a - b).square()
    apart = torch.where(gap > 0, gap / spikes.square() + gap / silence.square(), 0.0) / 2
    across = -0.5 * (torch.log1p(-a) + torch.log1p(-b))
    return torch.where(x.double() * other.double() < 0, across, -torch.log1p(-apart.clamp(max=1.0)))


class RateCode(Smoothing):
    """The rate code or signed rate code that a model has in front.

    Args:
        steps: frames T. signed: SRATE. floor: eta, for RATE only. mean: taken off first (signed rates).
        norm: of the radius: "l1" (the better of both bounds), "linf", "l2" or "l0" (by affinity; l2 and l0 need a
            floor).
        encodings: m of every image (`Aggregated`): m T independent frames, which a network may read as it likes.

    Raises:
        BudgetError: an unknown norm, one that has no radius for these rates, or fewer than one encoding. ModelError:
            signed rates with a floor.
    """

    def __init__(
        self, steps: int, signed: bool = False, floor: float = 0.0, mean: Mean | None = None, norm: str = "l1",
        encodings: int = 1,
    ):  # fmt: skip
        if norm not in ("l1", "l2", "linf", "l0"):
            raise BudgetError("l1, l2, linf or l0 for a rate code", repr(norm))
        if signed and floor:
            raise ModelError(
                "signed rates without a floor", f"floor={floor:g}",
                "the rate jumps where a pixel crosses its mean: no radius is proven there",
            )  # fmt: skip
        if norm in ("l2", "l0") and not floor:
            hint = "BernoulliRate(steps, floor=0.1); without one a single pixel at 0 or 1 gives it away"
            raise BudgetError(f"rates clipped to [eta, 1-eta] for an {norm} radius", "rates without a floor", hint)
        self.steps, self.signed, self.floor, self.norm = check_steps(steps), signed, check_floor(floor), norm
        self._mean, self.encodings = as_mean(mean), check_encodings(encodings)
        self._frames = self.steps * self.encodings
        self.unit = "values" if norm == "l0" else Smoothing.unit

    def describe(self) -> dict:
        told = {key: value for key, value in vars(self).items() if not key.startswith("_") and key != "unit"}
        return without_one_encoding({"smoothing": type(self).__name__, **told})

    def check(self, model: Model) -> None:
        kind = SignedRate if self.signed else BernoulliRate
        encoder = encoder_in_front(model, kind, self.encodings)
        if (encoder.steps, encoder.floor) != (self.steps, self.floor):
            raise ModelError(f"{kind.__name__}(steps={self.steps}, floor={self.floor:g}) in front", repr(encoder))
        means = [m if m is None else m.cpu().tolist() for m in (getattr(encoder, "mean", None), self._mean)]
        if means[0] != means[1]:
            raise ModelError("the mean of the model's encoder", "another", "choose.smoothing_of(model) reads it")

    def draw(self, model: Model, x: Tensor) -> Tensor:
        return model(x)

    def rest(self, model: Model, x: Tensor, seed: int) -> Tensor:
        return behind_codes(model, x, seed)

    def radius(self, p: float, x: Tensor | None = None) -> float:
        if p <= 0.5:
            return 0.0
        everywhere = l1_radius(p, self._frames) if self.norm == "l1" else 0.0
        if x is None:
            return everywhere
        rates = centred(x.unsqueeze(0), self._mean)[0] if self.signed else x
        low, high = (-1.0 if self.signed else 0.0), 1.0
        local = _largest(room(p, self._frames), rates.double().flatten(), self.norm, self.floor, low, high)
        return max(everywhere, local)


ROUNDED = 1 + 1e-9  # sums of a million float64 terms are far nearer


def _largest(limit: float, x: Tensor, norm: str, floor: float, low: float, high: float) -> float:
    """The largest radius at which the bound on the sum stays below the limit, by bisection from below: the bound
    grows with the radius, so the lower end is always proven."""
    if norm == "l0":
        worst = _worst_change(x, torch.full_like(x, math.inf), floor, low, high).sort(descending=True).values
        return float(
            (worst.cumsum(0) * ROUNDED < limit).sum() + 1
        )  # every distance below it: that many values are too many
    below, above = 0.0, float(x.numel()) if norm == "l1" else float(x.numel()) ** 0.5 if norm == "l2" else 1.0
    for _ in range(60):
        middle = (below + above) / 2
        if _bound(middle, x, norm, floor, low, high) * ROUNDED < limit:
            below = middle
        else:
            above = middle
    return below


def _bound(radius: float, x: Tensor, norm: str, floor: float, low: float, high: float) -> float:
    """An upper bound of sum_i -log B over the ball. linf: exact, every pixel at its worse end (each term grows away
    from x). l1: each term is at most the change times the largest slope from x that is within reach; on each stretch
    between x, the floor, its mirror and a sign change the term is convex, so that slope is one to an end of a
    stretch.
    l2: each term is at most `_curvature` times the change squared."""
    reach = torch.full_like(x, radius)
    if norm == "linf":
        return float(_worst_change(x, reach, floor, low, high).sum())
    if norm == "l1":
        slopes = torch.zeros((), dtype=torch.float64)
        up, down = (x + reach).clamp(max=high), (x - reach).clamp(min=low)
        ends = [up, down, up.clamp(max=1 - floor), down.clamp(min=floor)]
        if low < 0:
            ends = [up, down, torch.where(x.abs() <= radius, 0.0, x)]
        for end in ends:
            change = (end - x).abs()
            slope = torch.where(change > 0, separation(x, end, floor) / change, 0.0)
            slopes = torch.maximum(slopes, slope.max())
        return radius * float(slopes)
    return radius**2 * float(_curvature(x, reach, floor, low, high).max())


def _worst_change(x: Tensor, reach: Tensor, floor: float, low: float, high: float) -> Tensor:
    up, down = (x + reach).clamp(max=high), (x - reach).clamp(min=low)
    return torch.maximum(separation(x, up, floor), separation(x, down, floor))


def _curvature(x: Tensor, reach: Tensor, floor: float, low: float, high: float) -> Tensor:
    """A bound of -log B / change^2 within reach, per pixel. With rates r, r' (never farther apart than the pixels):
    1 - B = (r - r')^2 / 2 (1 / (sqrt r + sqrt r')^2 + 1 / (sqrt(1-r) + sqrt(1-r'))^2), both fractions are largest at
    one end of the reach, and -log(1 - h) <= h / (1 - h)."""
    r = x.clamp(floor, 1 - floor)
    least = (x - reach).clamp(min=low).clamp(floor, 1 - floor)
    most = (x + reach).clamp(max=high).clamp(floor, 1 - floor)
    factor = ((r.sqrt() + least.sqrt()) ** -2 + ((1 - r).sqrt() + (1 - most).sqrt()) ** -2) / 2
    farthest = torch.maximum(r - least, most - r)
    h = (factor * farthest**2).clamp(max=1.0)
    return torch.where(h < 1, factor / (1 - h), math.inf)
