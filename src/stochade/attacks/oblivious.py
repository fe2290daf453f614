"""Flips that are fixed before the encoding is drawn: the attacker knows the image and the network, not the draw."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from stochade.attacks.ball import like
from stochade.attacks.base import Attack, Attempt, Task, Trace
from stochade.attacks.codes import encoder_and_network
from stochade.attacks.flips import Flips
from stochade.attacks.gradients import Backprop, _whole
from stochade.attacks.inputs import check_images
from stochade.attacks.objectives import Objective, cross_entropy
from stochade.attacks.sparse_balls import _top
from stochade.errors import BudgetError


@dataclass(frozen=True)
class FixedFlips(Flips):
    """At most k places of every frame (or of the code) that are written over, whatever the encoding says there.

    A plan [N, T, ...] holds a letter where it writes and NaN where it leaves the encoding alone. Where the encoding
    already has that letter nothing changes, so no code differs from its encoding in more than k places; distances
    count places. Arguments and errors as in `Flips`.
    """

    name = "fixed-flips"

    @property
    def bound(self) -> Flips:
        return Flips(self.eps, self.alphabet, self.per)

    def check(self, codes: object) -> None:
        """A plan is made for images."""
        check_images(codes)  # type: ignore[arg-type]

    def apply(self, plan: Tensor, codes: Tensor) -> Tensor:
        """The codes as the plan leaves them."""
        return torch.where(plan.isnan(), codes, plan)

    def counts(self, x: Tensor, x0: Tensor) -> Tensor:
        """[N, T] places of every frame that the plan x writes to; x0 does not matter."""
        return (~x.isnan()).flatten(2).sum(2).to(x.dtype)

    def plan(self, slope: Tensor, weight: Tensor) -> Tensor:
        """The plan that gains most to first order: writing v into a place gains v * slope - weight, with the means of
        the gradient g and of g z over encodings z."""
        letters = self._best(slope, slope)
        gain = self._units(letters * slope - weight)
        return torch.where(_top(gain, self._count(slope)).view_as(slope), letters, torch.nan)

    def allows(self, x: Tensor, x0: Tensor) -> Tensor:
        budget = self.eps if self._each is None else self._each.to(x)
        return (self._spelled(x) | x.isnan()).flatten(1).all(1) & (self.distance(x, x0) <= budget)

    def move(self, gradient, x, x0=None, size=None):
        raise BudgetError("ObliviousSEA for fixed flips", "an attack on given codes", "or take Flips(k)")

    def project(self, x, x0):
        return self.move(x, x0)

    def start(self, x0, generator):
        return self.move(x0, x0)

    def __str__(self) -> str:
        return f"fixed {super().__str__()}"


@dataclass(frozen=True)
class ObliviousSEA(Attack):
    """The sparse encoding attack without sight of the encoding. It attacks a model with an encoder in front on images
    and returns plans (see `FixedFlips`); `evaluate` applies each plan to fresh encodings.

    What writing letter v into a place gains is, to first order, E[g (v - z)] over encodings z and gradients g there:
    its mean over `draws` encodings with the plan so far applied, and over the steps so far, decides on the places.
    One step is the exact optimum of that estimate. The plan with the highest mean objective over the
    fresh encodings of the next step wins.

    Args:
        threat: FixedFlips(k, alphabet, per).
        steps: plans that are made one after the other.
        draws: encodings per step.

    Raises:
        BudgetError: another threat, numbers that make no sense. ModelError: a model without an
            encoder in front, or with one of another alphabet.
    """

    threat: FixedFlips  # type: ignore[assignment]
    steps: int = 4
    draws: int = 20
    objective: Objective = cross_entropy
    gradient: Backprop = field(default_factory=Backprop)

    def __post_init__(self):
        if not isinstance(self.threat, FixedFlips):
            hint = "for example FixedFlips(10, 'signed')"
            raise BudgetError("FixedFlips(k) for the oblivious attack", repr(self.threat), hint)
        _whole(self.steps, "steps")
        _whole(self.draws, "draws")

    def cost(self) -> tuple[int, int]:
        each = self.draws * self.gradient.forwards, self.draws * self.gradient.backwards
        return (self.steps + 1) * each[0], (self.steps + 1) * each[1]

    def search(self, task: Task) -> Attempt:
        threat, n = task.threat, len(task.x)
        best = plan = torch.full_like(self._encoding(task), torch.nan)  # the first plan writes nothing
        slope, weight = torch.zeros_like(plan), torch.zeros_like(plan)  # means of g and of g z over the steps
        value = task.x.new_full((n,), -torch.inf)
        lines, found_at = [], torch.zeros(n, dtype=torch.long, device=task.x.device)
        spent = self.draws * (self.gradient.forwards + self.gradient.backwards)
        for step in range(self.steps + 1):
            here, g, gz = self._pass(task, plan)
            better = here > value
            value, best = torch.where(better, here, value), torch.where(like(better, plan), plan, best)
            found_at[better] = step * spent
            lines.append((here, threat.distance(plan, plan)))
            slope, weight = torch.lerp(slope, g, 1 / (step + 1)), torch.lerp(weight, gz, 1 / (step + 1))
            plan = threat.plan(slope, weight)
        values, distances = (torch.stack(part) for part in zip(*lines, strict=True))
        passes = torch.arange(1, len(lines) + 1, device=task.x.device)[:, None].expand(-1, n) * spent
        forwards, backwards = (torch.full_like(found_at, count) for count in self.cost())
        trace = Trace(values, distances, passes)
        return Attempt(best, value, threat.distance(best, best), forwards, backwards, trace, found_at)

    @torch.no_grad()
    def _encoding(self, task: Task) -> Tensor:
        encoder, _ = encoder_and_network(task.model, task.threat)
        codes = encoder(task.x).contiguous()
        task.threat.bound.check(codes)
        return codes

    def _pass(self, task: Task, plan: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Means over encodings with the plan applied: objective [N], gradient g, and g z with z the encoding."""
        _, network = encoder_and_network(task.model, task.threat)
        value = torch.zeros(len(plan), dtype=plan.dtype, device=plan.device)
        g, gz = torch.zeros_like(plan), torch.zeros_like(plan)
        for _ in range(self.draws):
            codes = self._encoding(task)
            at = task.threat.apply(plan, codes)
            got = self.gradient(network, at, task.y, self.objective, targets=task.targets, stream=task.stream)
            value += got.value / self.draws
            g.add_(got.gradient, alpha=1 / self.draws)
            gz.addcmul_(got.gradient, codes, value=1 / self.draws)
        return value, g, gz
