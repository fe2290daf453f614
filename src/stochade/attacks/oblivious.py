"""Flips that are fixed before the encoding is drawn: the attacker knows the image and the network, not the draw."""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from stochade.attacks.ball import like
from stochade.attacks.base import Attack, Attempt, Task, Trace
from stochade.attacks.codes import encoder_and_network
from stochade.attacks.flips import Flips, refuse_queries
from stochade.attacks.gradients import Backprop, check_logits, check_whole
from stochade.attacks.inputs import check_images
from stochade.attacks.objectives import Objective, cross_entropy
from stochade.attacks.sparse_balls import largest_mask
from stochade.attacks.targeted import Targeted
from stochade.errors import BudgetError
from stochade.randomness import Stream

LATER = {"later": True}  # fields that came after runs which are taken up without them


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
        return torch.where(largest_mask(gain, self._count(slope)).view_as(slope), letters, torch.nan)

    def allows(self, x: Tensor, x0: Tensor) -> Tensor:
        budget = self.eps if self._each is None else self._each.to(x)
        return (self._spelled(x) | x.isnan()).flatten(1).all(1) & (self.distance(x, x0) <= budget)

    def move(self, gradient, x, x0=None, size=None):
        raise BudgetError("ObliviousSEA for fixed flips", "an attack on given codes", "or take Flips(k)")

    def project(self, x, x0):
        return self.move(x, x0)

    def start(self, x0, generator):
        return self.move(x0, x0)

    def any_plan(self, codes: Tensor, generator: Stream) -> Tensor:
        """A random plan for codes like these: the budget's places, drawn without replacement, random letters."""
        order, shape = generator.uniform(codes.shape[1:]), codes.shape[1:]
        share = (generator.uniform(shape, torch.float64) * len(self.alphabet)).long()
        letters = torch.tensor(self.alphabet, dtype=codes.dtype, device=codes.device)[share]
        return self._written(torch.full_like(codes, torch.nan), letters, self._units(order))

    def __str__(self) -> str:
        return f"fixed {super().__str__()}"


@dataclass(frozen=True)
class ObliviousSEA(Attack):
    """The sparse encoding attack without sight of the encoding. It attacks a model with an encoder in front on images
    and returns plans (see `FixedFlips`); `evaluate` applies each plan to fresh encodings.

    What writing letter v into a place gains is, to first order, E[g (v - z)] over encodings z and gradients g there:
    its mean over `draws` encodings with the plan so far applied, and over the steps so far, decides on the places.
    One step is the exact optimum of that estimate. The plan with the highest mean objective over the
    fresh encodings of the next step wins, also between restarts.

    Args:
        threat: FixedFlips(k, alphabet, per).
        steps: plans that are made one after the other.
        draws: encodings per step.
        restarts: independent runs; every one after the first begins with a random plan.
        goal: None, or the class to pull to, as in `Targeted`: "runner-up", "least-likely", "random" or a class.
            Examples whose own class it is get the plan that writes nothing.

    Raises:
        BudgetError: another threat, numbers that make no sense. ModelError: a model without an
            encoder in front, or with one of another alphabet.
    """

    threat: FixedFlips  # type: ignore[assignment]
    steps: int = 4
    draws: int = 20
    objective: Objective = cross_entropy
    gradient: Backprop = field(default_factory=Backprop)
    restarts: int = field(default=1, metadata=LATER)
    goal: str | int | None = field(default=None, metadata=LATER)

    def __post_init__(self):
        if not isinstance(self.threat, FixedFlips):
            hint = "for example FixedFlips(10, 'signed')"
            raise BudgetError("FixedFlips(k) for the oblivious attack", repr(self.threat), hint)
        for name in ("steps", "draws", "restarts"):
            check_whole(getattr(self, name), name)
        refuse_queries(self.threat, self.gradient)
        if self.goal is not None:
            Targeted(self, self.goal)  # refuses goals that are none

    def cost(self) -> tuple[int, int]:
        runs = self.restarts * (self.steps + 1) * self.draws
        ranking = 0 if self.goal is None else Targeted(self, self.goal).draws
        return runs * self.gradient.forwards + ranking, runs * self.gradient.backwards

    def search(self, task: Task) -> Attempt:
        targets, ranked = task.targets, torch.zeros_like(task.y)
        if self.goal is not None and targets is None:
            targets, ranked = Targeted(self, self.goal)._chosen(task)
            own = targets == task.y
            task = replace(task, targets=torch.where(own, (targets + 1) % self._classes(task), targets))
        else:
            own = torch.zeros_like(task.y, dtype=torch.bool)
        empty = torch.full_like(self._encoding(task), torch.nan)
        best, value = empty, task.x.new_full((len(empty),), -torch.inf)
        found_at, lines = torch.zeros_like(task.y), []
        for restart in range(self.restarts):
            plan = empty
            if restart:  # the first run begins with a plan that writes nothing
                plan = task.threat.any_plan(empty, task.stream.fork("restart", restart))
            best, value, found_at = self._run(task, plan, (best, value, found_at), lines)
        best = torch.where(like(own, best), torch.nan, best)
        values, distances = (torch.stack(part) for part in zip(*lines, strict=True))
        each = self.draws * torch.arange(1, len(lines) + 1, device=task.x.device)[:, None]
        passes = ranked + each * (self.gradient.forwards + self.gradient.backwards)
        looks = len(lines) * self.draws
        return Attempt(
            best, value, task.threat.distance(best, best),
            ranked + looks * self.gradient.forwards, torch.full_like(ranked, looks * self.gradient.backwards),
            Trace(values, distances, passes), ranked + found_at,
            targets=None if targets is None else torch.where(own, torch.full_like(targets, -1), targets),
        )  # fmt: skip

    def _run(self, task: Task, plan: Tensor, found: tuple, lines: list) -> tuple[Tensor, Tensor, Tensor]:
        """One restart: the best plan so far, its mean objective and the passes spent when it was found."""
        best, value, found_at = found
        slope, weight = torch.zeros_like(plan), torch.zeros_like(plan)  # means of g and of g z over the steps
        spent = self.draws * (self.gradient.forwards + self.gradient.backwards)
        for step in range(self.steps + 1):
            here, g, gz = self._pass(task, plan)
            better = here > value
            value, best = torch.where(better, here, value), torch.where(like(better, plan), plan, best)
            found_at = torch.where(better, len(lines) * spent, found_at)
            lines.append((here, task.threat.distance(plan, plan)))
            slope, weight = torch.lerp(slope, g, 1 / (step + 1)), torch.lerp(weight, gz, 1 / (step + 1))
            plan = task.threat.plan(slope, weight)
        return best, value, found_at

    @torch.no_grad()
    def _classes(self, task: Task) -> int:
        return check_logits(task.model(task.x[:1]), 1).shape[1]

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
