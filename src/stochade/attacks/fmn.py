"""Fast minimum-norm attacks (Pintor et al. 2021) in l0, l1, l2 and linf: `FMN`."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from stochade.attacks.ball import Ball, like, rows_of
from stochade.attacks.base import Attack, Attempt, Task
from stochade.attacks.gradients import Backprop, Gradient, check_whole
from stochade.attacks.hyperplane import dual_norm
from stochade.attacks.linearised import first_guess, units
from stochade.attacks.minimal import ROUNDS, Book, check_norm
from stochade.attacks.objectives import margin
from stochade.attacks.sparse_balls import L0, largest_mask
from stochade.attacks.threats import Threat
from stochade.errors import BudgetError
from stochade.randomness import Stream

TRIES = 3  # searches for an example whose finds turn out to be luck


@dataclass(frozen=True)
class FMN(Attack):
    """Steps along the gradient of the margin inside a ball whose radius follows the boundary: it grows while the
    point is classified correctly and shrinks when it is adversarial, by a factor that is annealed like the step.

    Differs from the paper, for the better in every norm, in three things. The first steps, until an example has been
    adversarial for the first time, take the whole budget of the ball that the linearised model asks for; the paper's
    steps get stuck there. The first of them goes to the nearest class (`first_guess`). Under l0 the units to keep are
    those with the largest |gradient * change|, not the largest |change|.

    Args:
        threat: L0, L1, L2 or Linf. Its budget only decides what is handed back: with eps=inf every find.
        steps: gradient evaluations.
        alpha_init, alpha_final: l2 length of the first and last step (None: a hundredth of the first).
        gamma_init, gamma_final: relative change of the radius at the first and last step.
        classes: how many of the likeliest classes the first guess chooses among; 1: no such guess.
        gradient: how the margin is differentiated. votes: forwards of a vote on random models.

    Raises:
        BudgetError: not one of these norms, or options that make no sense.
    """

    threat: Threat
    steps: int = 100
    alpha_init: float = 1.0
    alpha_final: float | None = None
    gamma_init: float = 0.05
    gamma_final: float = 0.001
    classes: int = 10
    gradient: Gradient = field(default_factory=Backprop)
    votes: int = 20

    minimal = True

    def __post_init__(self):
        check_norm(self.threat, ("l0", "l1", "l2", "linf"), "FMN")
        for name in ("steps", "classes", "votes"):
            check_whole(getattr(self, name), name)
        last = self.alpha_init if self.alpha_final is None else self.alpha_final
        for name, value in (("alpha_init", self.alpha_init), ("alpha_final", last)):
            if not (isinstance(value, int | float) and 0 < value < float("inf")):
                raise BudgetError(f"{name} > 0", repr(value), "1.0 suits images in [0,1]")
        for name, value in (("gamma_init", self.gamma_init), ("gamma_final", self.gamma_final)):
            if not (isinstance(value, int | float) and 0 < value < 1):
                raise BudgetError(f"{name} in (0,1)", repr(value), "0.05 and 0.001 are usual")
        if not callable(self.gradient):
            raise BudgetError("a callable gradient", repr(self.gradient))

    def cost(self) -> tuple[int, int]:
        guess = self.classes - 1
        shared = 1 if isinstance(self.gradient, Backprop) else guess
        forwards = (self.steps + min(shared, guess)) * self.gradient.forwards + (2 + 2 * ROUNDS) * self.votes
        return forwards, (self.steps + guess) * self.gradient.backwards

    def search(self, task: Task) -> Attempt:
        book = Book(task, self.votes, steps=self.steps)
        rows, x = book.begin()
        for _ in range(TRIES):
            if not len(rows):
                break
            stream = task.stream.subset(rows)
            self._run(book, rows, first_guess(book, self.gradient, rows, x, self.classes, stream), stream)
            rows = book.tighten(rows)
            x = task.x[rows]
        return book.attempt()

    def _run(self, book: Book, rows: Tensor, x: Tensor, stream: Stream) -> None:
        x0, threat = book.x0[rows], book.threat
        relaxed = getattr(self.gradient, "relaxed", None) is not None
        last = self.alpha_init / 100 if self.alpha_final is None else self.alpha_final
        worst = threat.distance((x0 < 0.5).to(x0), x0)  # of anything in the box
        ever, radius = torch.isfinite(book.best[rows]), torch.minimum(book.best[rows], worst)
        for step in range(self.steps):
            cosine = (1 + math.cos(math.pi * step / self.steps)) / 2
            alpha = last + (self.alpha_init - last) * cosine
            gamma = self.gamma_final + (self.gamma_init - self.gamma_final) * cosine
            distance = threat.distance(x, x0)
            result = book.ledger.gradient(self.gradient, x, rows, margin, stream)
            adversarial = book.offer(rows, x, distance, result, relaxed)
            ever |= adversarial
            less, more = _neighbours(threat, radius, gamma)
            grown = torch.where(ever, more, _asked(threat, x, distance, result.gradient, result.value, gamma))
            radius = torch.where(adversarial, torch.minimum(less, book.best[rows]), grown).clamp(min=0)
            ball = threat.for_each(torch.minimum(radius, worst))
            length = rows_of(result.gradient).norm(dim=1).clamp_min(1e-12)
            moved = torch.addcmul(x, result.gradient, like(alpha / length, x))
            x = _inside(ball, moved, x0, result.gradient)
            if not bool(ever.all()):
                x = torch.where(like(ever, x), x, ball.move(result.gradient, x0))
        book.look(rows, x)


def _neighbours(threat: Ball, radius: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    """The radius made smaller and larger; under l0 by whole units, at least one."""
    less, more = radius * (1 - gamma), radius * (1 + gamma)
    if threat.name != "l0":
        return less, more
    return torch.minimum(radius - 1, less.floor()), torch.maximum(radius + 1, more.floor())


def _asked(threat: Ball, x: Tensor, distance: Tensor, slope: Tensor, value: Tensor, gamma: float) -> Tensor:
    """[n] the radius at which the model linearised at x would cross the boundary, and a little more, since what the
    box holds back is not seen."""
    if isinstance(threat, L0):
        return distance + units(threat, x, slope, -value)
    return (distance + value.abs() / dual_norm(threat.name, slope).clamp_min(1e-12)) * (1 + gamma)


def _inside(ball: Ball, x: Tensor, x0: Tensor, slope: Tensor) -> Tensor:
    """x inside the ball and the box."""
    if not isinstance(ball, L0):
        return ball.project(x, x0)
    x = x.clamp(0, 1)
    keep = largest_mask(ball._merge((slope * (x - x0)).abs()), ball._count())
    return torch.where(ball._spread(keep, x), x, x0)
