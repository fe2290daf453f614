"""Linear classifiers, deterministic and random, whose exact accuracy under attack follows from one margin.

The margin is m(x) = w.x + b of two classes (label 1 when positive). A threat moves s m, s = 2y - 1, down by at most
`reach(s w, x, threat)`, which is exact for the four norms inside the box; where P(correct) rises with s m, the truth
is P(correct) at s m - reach. Import them from `known_answer`, which has the rest and the cases.
"""

from itertools import product
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from stochade.errors import LabelsError, ThreatError
from stochade.nn import BernoulliRate, GaussianNoise
from stochade.nn.discrete import Scope, scope_of


class Budget(Protocol):
    """What is asked of a threat here: its `size`, and a `name` out of linf, l2, l1 and l0."""

    @property
    def size(self) -> float: ...


def reach(direction: Tensor, images: Tensor, threat: Budget) -> Tensor:
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
        return pair(self.margin(x))

    def correct(self, signed: Tensor, labels: Tensor) -> Tensor:
        """[N] P(correct) when s m = `signed`; must not fall as `signed` rises."""
        return wins(signed, labels)

    @torch.no_grad()
    def accuracy_at(self, images: Tensor, labels: Tensor) -> Tensor:
        """[N] float64: the exact P(correct) at these images."""
        signed = signs_of(labels) * (images.flatten(1).double() @ self.weight.double() + self.bias.double())
        return self.correct(signed, labels).double()

    @torch.no_grad()
    def truth(self, images: Tensor, labels: Tensor, threat: Budget) -> Tensor:
        """[N] float64: the exact P(correct) under the strongest input inside the threat."""
        sign = signs_of(labels)
        signed = sign * (images.flatten(1).double() @ self.weight.double() + self.bias.double())
        lowest = signed - reach(sign[:, None] * self.weight.double(), images, threat)
        return self.correct(lowest, labels).double()


def pair(margin: Tensor) -> Tensor:
    """[N] margins -> logits [N,2]."""
    return torch.stack([-margin / 2, margin / 2], 1)


def signs_of(labels: Tensor) -> Tensor:
    """[N] -1 for class 0, 1 for class 1, float64."""
    if int(labels.max()) > 1:
        raise LabelsError("labels 0 or 1", str(int(labels.max())), "this known answer has two classes")
    return labels.double() * 2 - 1


def wins(signed: Tensor, labels: Tensor) -> Tensor:
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
    def truth(self, images: Tensor, labels: Tensor, threat: Budget) -> Tensor:
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
    def truth(self, images: Tensor, labels: Tensor, threat: Budget) -> Tensor:
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
        return pair(self.noise(self.margin(x)))

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
        return pair(self.drop(self.parts(x)).sum(1) + self.bias)

    def _enumerate(self, parts: Tensor, labels: Tensor) -> Tensor:
        p = self.drop.p if self.drop.training else 0.0
        total = torch.zeros(len(parts), dtype=torch.float64)
        for mask in product((0.0, 1.0), repeat=self.blocks):
            kept = int(sum(mask))
            chance = (1 - p) ** kept * p ** (self.blocks - kept)
            m = (parts * torch.tensor(mask, dtype=torch.float64)).sum(1) / (1 - p) + self.bias.double()
            total += chance * wins(signs_of(labels) * m, labels)
        return total

    @torch.no_grad()
    def accuracy_at(self, images: Tensor, labels: Tensor) -> Tensor:
        return self._enumerate(self.parts(images.double()).double(), labels)

    @torch.no_grad()
    def truth(self, images: Tensor, labels: Tensor, threat: Budget) -> Tensor:
        return self.accuracy_at(lowest_corner(self.weight, images, labels, threat), labels)


def lowest_corner(weight: Tensor, images: Tensor, labels: Tensor, threat: Budget) -> Tensor:
    """The linf input where every s w_i x_i is at its lowest at once."""
    if getattr(threat, "name", "") != "linf":
        raise ThreatError("linf, a product of intervals", repr(threat), "other norms have no closed form here")
    change = (signs_of(labels)[:, None] * weight.double().sign() * threat.size).view_as(images.double())
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
        x, sign = images.flatten(1).double(), signs_of(labels)
        total = torch.zeros(len(x), dtype=torch.float64)
        for code in torch.tensor(list(product((0.0, 1.0), repeat=x.shape[1])), dtype=torch.float64).split(256):
            chance = torch.where(code[None] > 0, x[:, None], 1 - x[:, None]).prod(2)
            m = code @ self.weight.double() + self.bias.double()
            total += (chance * wins(sign[:, None] * m[None], labels[:, None])).sum(1)
        return total

    @torch.no_grad()
    def truth(self, images: Tensor, labels: Tensor, threat: Budget) -> Tensor:
        return self.accuracy_at(lowest_corner(self.weight, images, labels, threat), labels)
