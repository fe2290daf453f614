"""Classifiers whose exact accuracy under attack is known: the first tests of every attack, score and check.

Every model answers two questions with one probability per example:

* `accuracy_at(images, labels)`: P(correct) at exactly these images, over the model's own randomness;
* `truth(images, labels, threat)`: P(correct) under the strongest input that the threat allows.

`KNOWN` builds the cases. The linear models, on which the truths of all others rest, are in `known_margins`; here are
those that hide their gradient, or keep state.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from stochade.attacks.threats import Linf, Threat
from stochade.models.known_margins import (
    BernoulliLinear,
    Budget,
    CoinFlip,
    DropoutLinear,
    KnownAnswer,
    Linear,
    NoisyLinear,
    lowest_corner,
    pair,
    reach,
    signs_of,
    wins,
)
from stochade.nn import surrogates
from stochade.nn.discrete import Discrete, Scope, Surrogate

__all__ = [
    "KNOWN", "BernoulliLinear", "Case", "CoinFlip", "DropoutLinear", "ExplodingGradient", "IntegrateAndFire",
    "KnownAnswer", "Linear", "NoisyLinear", "Threshold", "ThresholdedInput", "ZeroGradient", "reach",
]  # fmt: skip


class Threshold(Discrete):
    """1 where x >= 0, else 0. By default its backward is zero; "ste" and "soft" are there for an attacker."""

    scope = "none"

    def __init__(self, surrogate: Surrogate | None = None):
        table = {"ste": surrogates.identity(), "identity": surrogates.identity(), "soft": surrogates.sigmoid(4.0)}
        super().__init__(surrogate or surrogates.zero(), table, {"warm": partial(_warm, slope=10.0)})

    def hard(self, x: Tensor) -> Tensor:
        return (x >= 0).to(x.dtype)


def _warm(x: Tensor, slope: float) -> Tensor:
    return torch.sigmoid(slope * x)


class IntegrateAndFire(KnownAnswer):
    """Two integrate-and-fire neurons with constant currents (1 -/+ m)/2 (clipped to [0, 1]) for `steps` steps,
    threshold 1, reset by subtraction; the logits are spike counts.

    From rest a neuron fires floor(steps * current) times, which rises with the current, so P(correct) is 0 or 1
    and rises with s m: exact for all four norms. Both answers hold from rest, that is with reset=True. With
    reset=False the membranes stay charged after a call (until `reset()`, or a batch of another size): the
    counts of a call then depend on whatever was shown before, and an image shown again and again gives changing
    answers.
    """

    def __init__(self, weight: Tensor, bias: float = 0.0, steps: int = 16, reset: bool = True):
        super().__init__(weight, bias)
        self.steps, self.resets = steps, reset
        self.spike = Threshold(surrogates.sigmoid(4.0))
        self.membrane: Tensor | None = None

    @property
    def scope(self) -> Scope:  # type: ignore[override]
        return "none" if self.resets else "unknown"

    def reset(self) -> None:
        """Put the membranes to rest."""
        self.membrane = None

    def forward(self, x: Tensor) -> Tensor:
        m = self.margin(x)
        current = ((1 + torch.stack([-m, m], 1)) / 2).clamp(0, 1)
        kept = self.membrane
        v = torch.zeros_like(current) if self.resets or kept is None or len(kept) != len(x) else kept
        count = torch.zeros_like(current)
        for _ in range(self.steps):
            v = v + current
            spikes = self.spike(v - 1)
            v, count = v - spikes, count + spikes
        if not self.resets:
            self.membrane = v.detach()
        return count

    def correct(self, signed: Tensor, labels: Tensor) -> Tensor:
        m = (signs_of(labels) * signed).to(self.weight.dtype)
        current = ((1 + torch.stack([-m, m], 1)) / 2).clamp(0, 1)
        v, count = torch.zeros_like(current), torch.zeros_like(current)
        for _ in range(self.steps):
            v = v + current
            spikes = (v >= 1).to(v.dtype)
            v, count = v - spikes, count + spikes
        return (count.argmax(1) == labels).double()


class ZeroGradient(KnownAnswer):
    """The margin rounded to multiples of `grain`: the gradient is exactly zero everywhere, and defends nothing.

    A staircase rises with m, so P(correct) is 0 or 1 and exact for all four norms. Differences of the loss over
    more than one grain (evolution strategies, random search) see the slope.
    """

    scope = "none"

    def __init__(self, weight: Tensor, bias: float = 0.0, grain: float = 0.01):
        super().__init__(weight, bias)
        self.grain = grain

    def forward(self, x: Tensor) -> Tensor:
        return pair(torch.round(self.margin(x) / self.grain) * self.grain)

    def correct(self, signed: Tensor, labels: Tensor) -> Tensor:
        return wins(torch.round(signed / self.grain), labels)


class ExplodingGradient(KnownAnswer):
    """The margin plus ripples `height` * mean sin(frequency x_i): a gradient some thousand times that of the
    margin whose signs are those of a cosine of the pixels, so they say nothing about w.

    The ripples move m by at most `height`: where s m - reach + height < 0 the truth is 0, where
    s m - reach - height > 0 it is 1; in between it has no closed form and is NaN.
    """

    def __init__(self, weight: Tensor, bias: float = 0.0, height: float = 0.02, frequency: float = 1e6):
        super().__init__(weight, bias)
        self.height, self.frequency = height, frequency

    def margin(self, images: Tensor) -> Tensor:
        return super().margin(images) + self.height * torch.sin(self.frequency * images.flatten(1)).mean(1)

    @torch.no_grad()
    def accuracy_at(self, images: Tensor, labels: Tensor) -> Tensor:
        return (self(images).argmax(1) == labels).double()

    def correct(self, signed: Tensor, labels: Tensor) -> Tensor:
        unknown = torch.full_like(signed, torch.nan)
        return torch.where(signed > self.height, 1.0, torch.where(signed < -self.height, 0.0, unknown))


class ThresholdedInput(KnownAnswer):
    """w.h + b on pixels thresholded at 0.5, with a zero backward.

    Under linf pixel i can flip iff 0.5 lies within eps of it (x_i - eps < 0.5 <= x_i, or x_i < 0.5 <= x_i + eps),
    independently of the others, so the attacker flips exactly those that lower s m. The robustness of the pixels
    far from 0.5 is real; the zero gradient hides the rest.
    """

    scope = "none"

    def __init__(self, weight: Tensor, bias: float = 0.0):
        super().__init__(weight, bias)
        self.threshold = Threshold()

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.threshold(x - 0.5))

    @torch.no_grad()
    def accuracy_at(self, images: Tensor, labels: Tensor) -> Tensor:
        return super().accuracy_at((images >= 0.5).double(), labels)

    @torch.no_grad()
    def truth(self, images: Tensor, labels: Tensor, threat: Budget) -> Tensor:
        return self.accuracy_at(lowest_corner(self.weight, images, labels, threat), labels)


@dataclass(frozen=True)
class Case:
    """A model with examples on which its accuracy under a threat is known.

    Attributes:
        images: [N,C,H,W] in [0,1]. labels: int64 [N].
        honest: whether its apparent robustness is real: an attack by plain backpropagation, averaged over draws,
            finds the truth. An audit must raise findings on the others.
        description: one line for tables.
    """

    model: nn.Module
    images: Tensor
    labels: Tensor
    threat: Threat
    honest: bool
    description: str

    def truth(self) -> Tensor:
        """[N] P(correct) under the strongest attack in the threat."""
        return self.model.truth(self.images, self.labels, self.threat)  # type: ignore[operator]

    def clean(self) -> Tensor:
        """[N] P(correct) on the images themselves."""
        return self.model.accuracy_at(self.images, self.labels)  # type: ignore[operator]


Shape = tuple[int, int, int]


def _weight(shape: Shape, length: float) -> tuple[Tensor, float]:
    """One fixed weight vector for each shape, sum |w_i| = length, and the bias that centres m at 0.5 images."""
    w = torch.randn(math.prod(shape), generator=torch.Generator().manual_seed(20261121))
    w = w.sign() * (0.3 + w.abs())
    w = w / w.abs().sum() * length
    return w, -0.5 * float(w.sum())


def _examples(
    model: nn.Module, shape: Shape, seed: int, count: int, accept: Callable[[Tensor, Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """A sample of images that `accept`s: two classes pulled apart along the weight, some pixels exactly 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    pull = model.weight.detach().sign()  # type: ignore[union-attr]
    images, labels, found = [], [], 0
    while found < count:
        y = torch.randint(0, 2, (4 * count,), generator=generator)
        x = 0.5 + 0.45 * torch.randn(4 * count, math.prod(shape), generator=generator)
        shift = 0.3 * torch.rand(4 * count, 1, generator=generator)
        x = (x + (2 * y[:, None] - 1) * pull * shift).clamp(0, 1).view(-1, *shape)
        good = accept(x, y)
        images.append(x[good])
        labels.append(y[good])
        found += int(good.sum())
    return torch.cat(images)[:count], torch.cat(labels)[:count]


def _everything(images: Tensor, labels: Tensor) -> Tensor:
    return torch.ones(len(images), dtype=torch.bool)


def _two_class(
    build: Callable[..., KnownAnswer], honest: bool, eps: float, shape: Shape, fooled: bool, text: str,
    seed: int = 0, count: int = 60,
) -> Case:  # fmt: skip
    """The model is the same for every seed and the examples are a fresh sample, so that seeds are samples of one
    population. fooled: only examples that are right, and wrong under attack."""
    weight, bias = _weight(shape, 4.0)
    model, threat = build(weight, bias).eval(), Linf(eps)
    if isinstance(model, DropoutLinear):
        model.drop.train()

    def loses(x: Tensor, y: Tensor) -> Tensor:
        return (model.accuracy_at(x, y) == 1) & (model.truth(x, y, threat) == 0)

    images, labels = _examples(model, shape, seed, count, loses if fooled else _everything)
    return Case(model, images, labels, threat, honest, text)


def _coin(seed: int = 0, count: int = 60, classes: int = 2, eps: float = 0.05) -> Case:
    shape, threat = (1, 5, 5), Linf(eps)
    w, bias = _weight(shape, 4.0)
    base = Linear(torch.stack([-w / 2, w / 2]), torch.tensor([-bias / 2, bias / 2]))
    model = CoinFlip(base, 0.1).eval()
    margin = KnownAnswer(w, bias)
    images, labels = _examples(margin, shape, seed, count, lambda x, y: base.truth(x, y, threat) == 1)
    return Case(model, images, labels, threat, True, "errs on 10 % of draws whatever the input")


def _linear(seed: int = 0, count: int = 60) -> Case:
    shape = (1, 5, 5)
    w, bias = _weight(shape, 4.0)
    model = Linear(torch.stack([-w / 2, w / 2]), torch.tensor([-bias / 2, bias / 2])).eval()
    images, labels = _examples(KnownAnswer(w, bias), shape, seed, count, _everything)
    return Case(model, images, labels, Linf(0.1), True, "deterministic and linear: a dual norm inside the box")


_case = partial(partial, _two_class)
KNOWN: dict[str, Callable[..., Case]] = {
    "coin-flip": _coin,
    "linear": _linear,
    "noisy-linear": _case(partial(NoisyLinear, sigma=0.4), True, 0.1, (1, 5, 5), False, "Gaussian noise per example"),
    "noisy-linear-per-call": _case(
        partial(NoisyLinear, sigma=0.4, scope="call"), True, 0.1, (1, 5, 5), False, "Gaussian noise per call"
    ),
    "dropout-linear": _case(DropoutLinear, True, 0.1, (1, 4, 4), False, "dropout left on, four features"),
    "bernoulli-linear": _case(BernoulliLinear, True, 0.1, (1, 3, 3), False, "Bernoulli-coded input"),
    "integrate-and-fire": _case(IntegrateAndFire, True, 0.1, (1, 5, 5), False, "spiking, reset in every forward"),
    "integrate-and-fire-stateful": _case(
        partial(IntegrateAndFire, reset=False), False, 0.1, (1, 5, 5), False, "spiking, charge left between calls"
    ),
    "zero-gradient": _case(ZeroGradient, False, 0.2, (1, 6, 6), True, "gradient exactly zero, not robust at all"),
    "exploding-gradient": _case(
        ExplodingGradient, False, 0.2, (1, 6, 6), True, "huge scrambled gradient, not robust at all"
    ),
    "thresholded-input": _case(
        ThresholdedInput, False, 0.1, (1, 5, 5), False, "pixels thresholded at 0.5, zero gradient"
    ),
}
