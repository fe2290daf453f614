"""The active test: does an attack find adversarial examples that are known to be there?

Source: Zimmermann, Brendel, Tramèr and Carlini 2022, "Increasing Confidence in Adversarial Robustness Evaluations":
512 examples, one planted point each, at least 95 % found. Their case studies take 999 points inside and logistic
regression without a penalty; here Fisher's direction and a boundary close to the planted point keep random points
out with fewer.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stochade.attacks.ball import Ball
from stochade.attacks.base import Attack
from stochade.attacks.gradients import check_whole
from stochade.attacks.inputs import check_inputs, check_model
from stochade.errors import BudgetError, ModelError
from stochade.nn.discrete import scope_of
from stochade.randomness import FrozenNoise, Stream, identities, reseed, seed_for, untouched

INNER = 0.95  # inner points keep this share of the budget, so that the planted one is not their neighbour
TRIES = 5  # planted points to try where one cannot be told from the inner ones
RIDGE = 0.1  # share of the mean variance that is added to the covariance of features
CLOSE = 0.75  # where the boundary lies between the nearest inner point (0) and the planted one (1)
CLEAR = 2.5  # in budgets: images at least this far apart can be told from each other under attack
GROUP = 32  # images that share a model in the attack


@dataclass(frozen=True)
class ActiveTest:
    """The outcome of `active_test`.

    Attributes:
        examples: images looked at.
        planted: [examples] bool, those for which a head could be built.
        found: [examples] bool, planted and the attack succeeded. random: the same for random points.
        frozen: whether the noise of a random model was frozen for the test.
    """

    examples: int
    planted: Tensor
    found: Tensor
    random: Tensor
    frozen: bool

    @property
    def success(self) -> float | None:
        """Share of the planted adversarial examples that the attack found; 0.95 is asked for."""
        return _share(self.found, self.planted)

    @property
    def random_success(self) -> float | None:
        """Share that random points found. Where it is high the test is too easy to tell attacks apart."""
        return _share(self.random, self.planted)


def _share(part: Tensor, whole: Tensor) -> float | None:
    return float(part.sum() / whole.sum()) if bool(whole.any()) else None


def active_test(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    attack: Attack,
    *,
    threat: Ball | None = None,
    examples: int = 512,
    inner: int = 199,
    points: int = 200,
    seed: int = 0,
) -> ActiveTest:
    """Gives each image a classifier of its own with an adversarial example planted inside the threat, and counts how
    many the attack finds. An attack that misses them is too weak for this model.

    The model's last linear layer is replaced, image by image, by a linear head on the same features: class 0 for the
    image and `inner` random points of the threat, half of them on its boundary, class 1 for one more such point. Its
    logits are scaled to the range that the model's own have. An image whose planted point cannot be told from the
    inner ones is left out.

    On a random model the features of one draw vary, and a single head would have to tell noise from a small change.
    There the noise is frozen, one image at a time: the head is fitted to one realisation, the attack faces the same
    one and is judged on it. The test then asks whether the gradient leads anywhere, not whether the noise is
    averaged well.

    Args:
        model: in eval mode, with an nn.Linear that gives the logits from features [N, F].
        x, y: images and labels; the first `examples` of them that the test uses.
        attack: it attacks with two classes, label 0.
        threat: where points are drawn, by default the attack's own.
        examples: at most so many images.
        inner: random points inside.
        points: random points of the control.
        seed: everything random follows from it.

    Raises:
        ModelError: no such layer. BudgetError: a threat that is no norm ball, or has no budget.
    """
    threat = attack.threat if threat is None else threat  # type: ignore[assignment]
    if not isinstance(threat, Ball) or not 0 < threat.eps < float("inf"):
        raise BudgetError("a norm ball with a finite budget above 0", repr(threat), "use Linf, L2, L1 or L0")
    for value, name in ((examples, "examples"), (inner, "inner"), (points, "points")):
        check_whole(value, name)
    check_inputs(x, y)
    check_model(model)
    x, y = x[:examples], y[:examples].long()
    with untouched(model), torch.no_grad():
        reseed(seed_for(seed, "active test"))
        layer = last_linear(model, x[:1])
        frozen = not _repeats(model, x[:2])
    planted, found, random = (torch.zeros(len(x), dtype=torch.bool) for _ in range(3))
    ids = identities(x, y).to(x.device)
    for rows in _groups(x, threat, frozen):
        index = torch.tensor(rows, device=x.device)
        body = FrozenNoise(model, seed_for(seed, "noise", int(ids[rows[0]]))) if frozen else model
        features, stream = Features(body, layer), Stream(seed_for(seed, "active test"), ids[index])
        with untouched(model), torch.no_grad():
            inside = stream.fork("inner")
            heads = [_head(features, x[row][None], threat, inside.subset(index == row), inner) for row in rows]
        kept = torch.tensor([head is not None for head in heads])
        if not bool(kept.any()):
            continue
        index, stream = index[kept.to(index.device)], stream.subset(kept.to(index.device))
        binary = Binarised(features, x[index], torch.stack([h for h in heads if h is not None]), threat)
        tried = attack(binary, x[index], torch.zeros_like(y[index]), seed=seed)
        allowed = threat.distance(tried, x[index]) <= threat.eps * (1 + 1e-5) + 1e-5
        with untouched(model), torch.no_grad():
            planted[index.cpu()] = True
            found[index.cpu()] = (allowed & (binary(tried).argmax(1) == 1)).cpu()
            random[index.cpu()] = _random_points(binary, x[index], threat, stream, points).cpu()
    return ActiveTest(len(x), planted, found, random, frozen)


def _repeats(model: nn.Module, x: Tensor) -> bool:
    """Whether two forwards agree."""
    return scope_of(model) == "none" or bool(torch.allclose(model(x), model(x), rtol=1e-4, atol=1e-6))


def last_linear(model: nn.Module, x: Tensor) -> nn.Linear:
    """The nn.Linear that gives the logits: the last one to run in a forward, with one output per class.

    Raises:
        ModelError: there is none, or its input is not [N, F].
    """
    ran: list[tuple[nn.Linear, Tensor]] = []
    layers = [m for m in model.modules() if isinstance(m, nn.Linear)] if isinstance(model, nn.Module) else []
    hooks = [m.register_forward_pre_hook(_noting(m, ran)) for m in layers]
    try:
        logits = model(x)
    finally:
        for hook in hooks:
            hook.remove()
    fitting = [(m, given) for m, given in ran if m.out_features == logits.shape[-1]]
    if not fitting:
        raise ModelError(
            "a model whose logits come from an nn.Linear", type(model).__name__,
            "the active test replaces that layer; without one it cannot be made",
        )  # fmt: skip
    layer, given = fitting[-1]
    if given.dim() != 2 or len(given) != len(x) or sum(m is layer for m, _ in ran) > 1:
        raise ModelError(
            "features [N, F] in front of the last linear layer, once per forward", f"{tuple(given.shape)}",
            "average over time in front of the layer, not behind it",
        )  # fmt: skip
    return layer


def _noting(layer: nn.Linear, ran: list[tuple[nn.Linear, Tensor]]) -> Callable[[nn.Module, tuple], None]:
    """A hook that notes that a layer ran, and on what."""

    def note(_: nn.Module, given: tuple) -> None:
        ran.append((layer, given[0]))

    return note


class Features(nn.Module):
    """What goes into a linear layer of a model. [N, ...] -> [N, F]. Its layers have the model's own names, so that
    swaps by name still find them."""

    layer: nn.Linear

    def __init__(self, body: nn.Module, layer: nn.Linear):
        super().__init__()
        self.body = body
        object.__setattr__(self, "layer", layer)  # part of the body already
        self.frozen = isinstance(body, FrozenNoise)
        self.scope = "unknown" if self.frozen else scope_of(body)
        self.training = body.training

    def named_modules(self, *args, **options):
        return (self.body.model if isinstance(self.body, FrozenNoise) else self.body).named_modules(*args, **options)

    def forward(self, x: Tensor) -> Tensor:
        seen: list[Tensor] = []
        hook = self.layer.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
        try:
            self.body(x)
        finally:
            hook.remove()
        return seen[-1]


class Binarised(nn.Module):
    """Two logits from features, by the head of that original which an image is nearest to.

    Args:
        heads: [G, F + 1], weight and bias of every original; the logits are -/+ head(features).
    """

    originals: Tensor
    heads: Tensor

    def __init__(self, features: Features, originals: Tensor, heads: Tensor, threat: Ball):
        super().__init__()
        self.features, self.threat, self.scope = features, threat, features.scope
        self.register_buffer("originals", originals)
        self.register_buffer("heads", heads)
        self.training = features.training

    def named_modules(self, *args, **options):
        return self.features.named_modules(*args, **options)

    def forward(self, x: Tensor) -> Tensor:
        heads = self.heads[self._whose(x.detach())]
        score = (self.features(x) * heads[:, :-1]).sum(1) + heads[:, -1]
        return torch.stack([-score, score], 1)

    def _whose(self, x: Tensor) -> Tensor:
        if len(self.originals) == 1:
            return torch.zeros(len(x), dtype=torch.long, device=x.device)
        return torch.stack([self.threat.distance(x, o.expand_as(x)) for o in self.originals]).argmin(0)


def _groups(x: Tensor, threat: Ball, alone: bool) -> Iterator[list[int]]:
    """Rows that may share a model: images so far apart that no attack inside the threat can mix them up."""
    group: list[int] = []
    for row in range(len(x)):
        if group:
            near = threat.distance(x[group], x[row].expand_as(x[group])).min() < CLEAR * threat.eps
            if alone or bool(near) or len(group) == GROUP:
                yield group
                group = []
        group.append(row)
    yield group


def _head(features: Features, x: Tensor, threat: Ball, stream: Stream, inner: int) -> Tensor | None:
    """[F + 1] a head that is negative on the inner points and positive on a planted one; None where there is none.
    Its direction is Fisher's between the planted point and the inner ones. Half of the inner points lie on the
    boundary of a slightly smaller threat: in a corner of the box all such points move alike, and what they share must
    not give the planted one away."""
    nearer = threat.resized(max(1.0, round(INNER * threat.eps)) if threat.name == "l0" else INNER * threat.eps)
    drawn = [_far_point(nearer, x, stream) if i % 2 else nearer.start(x, stream) for i in range(inner)]
    inside = _features(features, [x, *drawn])
    own = features.layer(inside[:1]).double()
    centre = inside.double().mean(0)
    spread = inside.double() - centre
    for _ in range(TRIES):
        apart = (_features(features, [_far_point(threat, x, stream)]).double() - centre)[0]
        weight = _fisher(spread, apart)
        nearest, planted = (spread @ weight).max(), apart @ weight
        if bool(planted > nearest + 1e-3 * planted.abs()):
            size = (own.max() - own.min()).clamp_min(1e-3) / (2 * planted)  # logits as far apart as the model's own
            bias = -(centre @ weight) - torch.lerp(nearest, planted, CLOSE)
            return (torch.cat([weight, bias[None]]) * size).to(x.dtype)
    return None


def _fisher(spread: Tensor, apart: Tensor) -> Tensor:
    """(S + RIDGE * mean variance)^-1 apart, for the covariance S of the rows of `spread` [n, F]; by a system of n
    equations where there are more features than rows."""
    n, features = spread.shape
    ridge = RIDGE * spread.square().sum() / features + 1e-12
    if features <= n:
        scatter = spread.T @ spread + ridge * torch.eye(features, dtype=spread.dtype, device=spread.device)
        return torch.linalg.solve(scatter, apart) * n
    gram = spread @ spread.T + ridge * torch.eye(n, dtype=spread.dtype, device=spread.device)
    return (apart - spread.T @ torch.linalg.solve(gram, spread @ apart)) * (n / ridge)


def _features(features: Features, points: list[Tensor]) -> Tensor:
    if features.frozen:
        return torch.cat([features(p) for p in points])
    return features(torch.cat(points))


def _far_point(threat: Ball, x: Tensor, stream: Stream) -> Tensor:
    """A random point on the boundary: the whole budget in a random direction, under linf a corner."""
    return threat.move(stream.normal(x.shape[1:], x.dtype), x)


def _random_points(binary: Binarised, x: Tensor, threat: Ball, stream: Stream, points: int) -> Tensor:
    """[G] whether one of so many random points is adversarial, half of them on the boundary."""
    found = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    for point in range(points):
        tried = threat.start(x, stream) if point % 2 else _far_point(threat, x, stream)
        found |= binary(tried).argmax(1) == 1
    return found
