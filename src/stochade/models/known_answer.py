"""Classifiers whose exact accuracy under attack is known: the first tests of every attack, score and check.

Every model answers two questions with one probability per example:

* `accuracy_at(images, labels)`: P(correct) at exactly these images, over the model's own randomness;
* `truth(images, labels, threat)`: P(correct) under the strongest input that the threat allows.

Nearly all rest on one number, the margin m(x) = w.x + b of two classes (label 1 when positive). A threat moves
s m, s = 2y - 1, down by at most `reach(s w, x, threat)`, which is exact for the four norms inside the box; where
P(correct) rises with s m, the truth is P(correct) at s m - reach. `KNOWN` builds the cases.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Literal

import torch
from torch import Tensor, nn

from stochade.attacks.threats import Linf, Threat
from stochade.errors import LabelsError, ThreatError
from stochade.nn import BernoulliRate, GaussianNoise, surrogates
from stochade.nn.discrete import Discrete, Scope, Surrogate, scope_of


def reach(direction: Tensor, images: Tensor, threat: Threat) -> Tensor:
    """[N] float64: how far the threat can lower <direction, x>, exactly, box included.

    A pixel can lower the sum by |d_i| times its change, up to the room r_i between it and the box.
    linf: change min(eps, r_i). l0: the eps largest |d_i| r_i. l1: a fractional knapsack, largest |d_i| first.
    l2: change min(t |d_i|, r_i) by the KKT conditions; t follows in closed form once the saturated pixels,
    those with the smallest r_i / |d_i|, are known.

    Args:
        direction: [D] or [N, D].

    Raises:
        ThreatError: a threat of another kind.
    """
    x = images.flatten(1).double()
    d = direction.double().expand_as(x)
    room, weight = torch.where(d > 0, x, torch.where(d < 0, 1 - x, torch.zeros_like(x))), d.abs()
    eps, name = float(threat.size), getattr(threat, "name", "")
    if name == "linf":
        return (weight * room.clamp(max=eps)).sum(1)
    if name == "l0" and getattr(threat, "per", "value") == "value":
        return (weight * room).topk(min(int(min(eps, x.shape[1])), x.shape[1]), dim=1).values.sum(1)
    if name == "l1":
        order = weight.argsort(1, descending=True)
        room = room.gather(1, order)
        before = room.cumsum(1) - room
        return (weight.gather(1, order) * torch.minimum(room, (eps - before).clamp_min(0))).sum(1)
    if name == "l2":
        ratio, order = torch.where(weight > 0, room / weight, torch.inf).sort(1)
        w, r, nothing = weight.gather(1, order), room.gather(1, order), torch.zeros_like(weight[:, :1])
        gained = torch.cat([nothing, (w * r).cumsum(1)], 1)  # by the k pixels that saturate first
        left = (eps**2 - torch.cat([nothing, r.square().cumsum(1)], 1)).clamp_min(0)
        free = torch.cat([w.square().flip(1).cumsum(1).flip(1), nothing], 1)
        t = (left / free.clamp_min(1e-300)).sqrt()[:, :-1]
        saturated = (t > ratio).int().cummin(1).values.sum(1)  # t * w would leave the box: the next one saturates
        exact = gained + (left * free).nan_to_num(nan=0.0).sqrt()
        return exact.gather(1, saturated[:, None])[:, 0]
    raise ThreatError("a threat with a closed form: linf, l2, l1 or l0 per value", repr(threat), "try Linf(eps)")


class KnownAnswer(nn.Module):
    """Base: two classes, logits [-m/2, m/2]; subclasses turn margins into logits and into P(correct)."""

    scope: Scope = "none"

    def __init__(self, weight: Tensor, bias: float = 0.0):
        super().__init__()
        self.weight = nn.Parameter(weight.detach().clone().float())
        self.bias = nn.Parameter(torch.tensor(float(bias)))

    def margin(self, images: Tensor) -> Tensor:
        """[N] w.x + b."""
        return images.flatten(1) @ self.weight + self.bias

    def forward(self, x: Tensor) -> Tensor:
        return _pair(self.margin(x))

    def correct(self, signed: Tensor, labels: Tensor) -> Tensor:
        """[N] P(correct) when s m = `signed`; must not fall as `signed` rises."""
        return _wins(signed, labels)

    @torch.no_grad()
    def accuracy_at(self, images: Tensor, labels: Tensor) -> Tensor:
        """[N] float64: the exact P(correct) at these images."""
        signed = _sign(labels) * (images.flatten(1).double() @ self.weight.double() + self.bias.double())
        return self.correct(signed, labels).double()

    @torch.no_grad()
    def truth(self, images: Tensor, labels: Tensor, threat: Threat) -> Tensor:
        """[N] float64: the exact P(correct) under the strongest input inside the threat."""
        sign = _sign(labels)
        signed = sign * (images.flatten(1).double() @ self.weight.double() + self.bias.double())
        lowest = signed - reach(sign[:, None] * self.weight.double(), images, threat)
        return self.correct(lowest, labels).double()


def _pair(margin: Tensor) -> Tensor:
    return torch.stack([-margin / 2, margin / 2], 1)


def _sign(labels: Tensor) -> Tensor:
    if int(labels.max()) > 1:
        raise LabelsError("labels 0 or 1", str(int(labels.max())), "this known answer has two classes")
    return labels.double() * 2 - 1


def _wins(signed: Tensor, labels: Tensor) -> Tensor:
    """Right beyond doubt; a tie goes to class 0, as argmax has it."""
    return torch.where(labels == 0, signed >= 0, signed > 0).double()


class Linear(KnownAnswer):
    """Deterministic linear classifier of K classes. Truth: right iff every z_y - z_j, lowered by its own reach,
    stays positive. Exact for any K, because an attacker needs only one class j to win and each is linear."""

    scope = "none"

    def __init__(self, weight: Tensor, bias: Tensor | None = None):
        nn.Module.__init__(self)
        self.weight = nn.Parameter(weight.detach().clone().float())
        self.bias = nn.Parameter(torch.zeros(len(weight)) if bias is None else bias.detach().clone().float())

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x.flatten(1), self.weight, self.bias)

    @torch.no_grad()
    def accuracy_at(self, images: Tensor, labels: Tensor) -> Tensor:
        return (self(images).argmax(1) == labels).double()

    @torch.no_grad()
    def truth(self, images: Tensor, labels: Tensor, threat: Threat) -> Tensor:
        weight, bias, x = self.weight.double(), self.bias.double(), images.flatten(1).double()
        right = torch.ones(len(images), dtype=torch.float64)
        for j in range(len(weight)):
            d = weight[labels] - weight[j]
            lowest = (d * x).sum(1) + bias[labels] - bias[j] - reach(d, images, threat)
            right *= torch.where(labels == j, 1.0, torch.where(labels < j, lowest >= 0, lowest > 0).double())
        return right


class CoinFlip(nn.Module):
    """Rolls the base's logits by one class with probability `error`, per example, whatever the input.

    P(correct) is 1 - error where the base is right, error where rolling makes a wrong prediction right (it
    predicts y - 1), else 0. No input changes the coin, so under a threat that cannot change the base's answer
    the truth is 1 - error. Where it can, the truth needs two classes: then it is min(error, 1 - error).
    """

    def __init__(self, base: nn.Module, error: float = 0.1):
        super().__init__()
        self.base, self.error = base, float(error)

    @property
    def scope(self) -> Scope:
        inner = scope_of(self.base)
        return "example" if inner in ("none", "example") else inner

    def forward(self, x: Tensor) -> Tensor:
        logits = self.base(x)
        flip = torch.rand(len(x), 1, device=x.device) < self.error
        return torch.where(flip, logits.roll(1, 1), logits)

    @torch.no_grad()
    def accuracy_at(self, images: Tensor, labels: Tensor) -> Tensor:
        logits = self.base(images)
        predicted, rolled = logits.argmax(1), logits.roll(1, 1).argmax(1)
        return (1 - self.error) * (predicted == labels).double() + self.error * (rolled == labels).double()

    @torch.no_grad()
    def truth(self, images: Tensor, labels: Tensor, threat: Threat) -> Tensor:
        right = self.base.truth(images, labels, threat)  # type: ignore[operator]
        if bool((right < 1).any()) and self.base(images[:1]).shape[1] != 2:
            raise ThreatError("a threat under which the base is always right", repr(threat), "lower its budget")
        low = min(self.error, 1 - self.error)
        return low + (1 - self.error - low) * right


class NoisyLinear(KnownAnswer):
    """m(x) plus Gaussian noise: P(correct) = Phi(s m / sigma), so the truth is Phi((s m - reach) / sigma).

    Args:
        scope: "example", fresh noise for every example; "call", one draw shared by the whole batch.
    """

    def __init__(
        self, weight: Tensor, bias: float = 0.0, sigma: float = 0.2, scope: Literal["example", "call"] = "example"
    ):
        super().__init__(weight, bias)
        self.noise = GaussianNoise(sigma, scope)

    @property
    def scope(self) -> Scope:  # type: ignore[override]
        return self.noise.scope

    def forward(self, x: Tensor) -> Tensor:
        return _pair(self.noise(self.margin(x)))

    def correct(self, signed: Tensor, labels: Tensor) -> Tensor:
        return torch.special.ndtr(signed / self.noise.sigma)


class DropoutLinear(KnownAnswer):
    """`blocks` partial sums w_k.x_k over disjoint blocks of pixels, each dropped with probability `p` and
    rescaled, plus the bias. The dropout is the defence and runs in eval mode too, unless `drop` itself is set
    to eval.

    P(correct) by enumeration of the 2^blocks masks. The sums use disjoint pixels and P(correct) rises with each
    s w_k.x_k, so under linf one input lowers all of them at once: the truth is P(correct) there.
    """

    def __init__(self, weight: Tensor, bias: float = 0.0, blocks: int = 4, p: float = 0.3):
        super().__init__(weight, bias)
        self.blocks, self.drop = blocks, nn.Dropout(p)

    @property
    def scope(self) -> Scope:  # type: ignore[override]
        return "example" if self.drop.training else "none"

    def parts(self, images: Tensor) -> Tensor:
        """[N, blocks] partial sums."""
        return (images.flatten(1) * self.weight).view(len(images), self.blocks, -1).sum(2)

    def forward(self, x: Tensor) -> Tensor:
        return _pair(self.drop(self.parts(x)).sum(1) + self.bias)

    def _enumerate(self, parts: Tensor, labels: Tensor) -> Tensor:
        p = self.drop.p if self.drop.training else 0.0
        total = torch.zeros(len(parts), dtype=torch.float64)
        for mask in product((0.0, 1.0), repeat=self.blocks):
            kept = int(sum(mask))
            chance = (1 - p) ** kept * p ** (self.blocks - kept)
            m = (parts * torch.tensor(mask, dtype=torch.float64)).sum(1) / (1 - p) + self.bias.double()
            total += chance * _wins(_sign(labels) * m, labels)
        return total

    @torch.no_grad()
    def accuracy_at(self, images: Tensor, labels: Tensor) -> Tensor:
        return self._enumerate(self.parts(images.double()).double(), labels)

    @torch.no_grad()
    def truth(self, images: Tensor, labels: Tensor, threat: Threat) -> Tensor:
        return self.accuracy_at(_lowest_corner(self.weight, images, labels, threat), labels)


def _lowest_corner(weight: Tensor, images: Tensor, labels: Tensor, threat: Threat) -> Tensor:
    """The linf input where every s w_i x_i is at its lowest at once."""
    if getattr(threat, "name", "") != "linf":
        raise ThreatError("linf, a product of intervals", repr(threat), "other norms have no closed form here")
    change = (_sign(labels)[:, None] * weight.double().sign() * threat.size).view_as(images.double())
    return (images.double() - change).clamp(0, 1)


class BernoulliLinear(KnownAnswer):
    """w.c + b on one Bernoulli code c_i ~ B(x_i) per pixel. Gradients pass straight through the encoder.

    P(correct) by enumeration of the 2^D codes (small D). Raising x_i raises c_i in distribution, so P(correct)
    rises with x_i where s w_i > 0 and falls elsewhere, whatever the other pixels: under linf the truth is
    P(correct) where every pixel is as bad as it can be.
    """

    scope = "example"

    def __init__(self, weight: Tensor, bias: float = 0.0):
        super().__init__(weight, bias)
        self.encoder = BernoulliRate(1)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.encoder(x)[:, 0])

    @torch.no_grad()
    def accuracy_at(self, images: Tensor, labels: Tensor) -> Tensor:
        x, sign = images.flatten(1).double(), _sign(labels)
        total = torch.zeros(len(x), dtype=torch.float64)
        for code in torch.tensor(list(product((0.0, 1.0), repeat=x.shape[1])), dtype=torch.float64).split(256):
            chance = torch.where(code[None] > 0, x[:, None], 1 - x[:, None]).prod(2)
            m = code @ self.weight.double() + self.bias.double()
            total += (chance * _wins(sign[:, None] * m[None], labels[:, None])).sum(1)
        return total

    @torch.no_grad()
    def truth(self, images: Tensor, labels: Tensor, threat: Threat) -> Tensor:
        return self.accuracy_at(_lowest_corner(self.weight, images, labels, threat), labels)


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
        m = (_sign(labels) * signed).to(self.weight.dtype)
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
        return _pair(torch.round(self.margin(x) / self.grain) * self.grain)

    def correct(self, signed: Tensor, labels: Tensor) -> Tensor:
        return _wins(torch.round(signed / self.grain), labels)


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
    def truth(self, images: Tensor, labels: Tensor, threat: Threat) -> Tensor:
        return self.accuracy_at(_lowest_corner(self.weight, images, labels, threat), labels)


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
