"""The L-BFGS attack (Szegedy et al. 2014): the smallest l2 change by box-constrained quasi-Newton descent."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from stochade.attacks.apgd import Towards
from stochade.attacks.ball import rows_of
from stochade.attacks.base import Attack, Attempt, Task
from stochade.attacks.gradients import Backprop, Gradient, check_whole
from stochade.attacks.minimal import ROUNDS, Book, check_norm
from stochade.attacks.objectives import Objective, cross_entropy
from stochade.attacks.threats import Threat
from stochade.errors import BudgetError
from stochade.randomness import Stream

ARMIJO = 1e-4  # share of the promised decrease that a step has to bring
HALVINGS = 12  # of a step that does not
CURVED = 1e-10  # least curvature of a pair that is remembered


@dataclass(frozen=True)
class LBFGS(Attack):
    """Minimises |x - x0|^2 + c * (cross entropy of the target class) over the box, and searches by bisection for the
    smallest c, per example, whose minimiser is adversarial. What is found is moved back along the line to its
    original.

    As its authors do, it always pulls to one class: to the caller's targets, or else to the likeliest wrong class on
    the original. Where another class is nearer, other attacks find less. Projected L-BFGS with a backtracking line
    search, all examples at once, each with a memory and steps of its own.

    Args:
        threat: L2. Its budget only decides what is handed back: with eps=inf every find.
        steps: quasi-Newton steps for each c.
        search_steps: values of c.
        initial: the first c.
        memory: pairs of changes that the curvature is estimated from; each holds two batches of images.
        gradient: `Backprop(draws, substitutes)`, ...
        objective: what the model's part of the sum is; it is maximised with the class as its target.
        votes: forwards of a vote on random models.

    Raises:
        BudgetError: another norm, or numbers that make no sense.
    """

    threat: Threat
    steps: int = 30
    search_steps: int = 9
    initial: float = 1.0
    memory: int = 4
    gradient: Gradient = field(default_factory=Backprop)
    objective: Objective = cross_entropy
    votes: int = 20

    minimal = True

    def __post_init__(self):
        check_norm(self.threat, ("l2",), "L-BFGS")
        for name in ("steps", "search_steps", "memory", "votes"):
            check_whole(getattr(self, name), name)
        if not (isinstance(self.initial, int | float) and 0 < self.initial < float("inf")):
            raise BudgetError("initial > 0", repr(self.initial), "1.0 is usual")
        if not callable(self.gradient) or not callable(self.objective):
            raise BudgetError("a callable gradient and objective", f"{self.gradient!r}, {self.objective!r}")

    def cost(self) -> tuple[int, int]:
        """With every line search at its longest; most take one look."""
        runs, draws = self.search_steps * self.steps, getattr(self.gradient, "draws", 1)
        votes = (2 + self.search_steps + 2 * ROUNDS) * self.votes
        return runs * (self.gradient.forwards + HALVINGS * draws) + votes, runs * self.gradient.backwards

    def search(self, task: Task) -> Attempt:
        book = Book(task, self.votes, steps=self.steps * self.search_steps)
        rows, start = book.begin()
        start = book.ledger.images(rows) if task.start is None else start  # no copy, where these are all
        if len(rows):
            wrong = book.clean.scatter(1, task.y[:, None], -torch.inf).argmax(1)
            goals = wrong if task.targets is None else task.targets
            c = torch.full_like(book.best, self.initial)
            low, high = torch.zeros_like(c), torch.full_like(c, torch.inf)
            for _ in range(self.search_steps):
                run = _Descent(self, book, rows, start, goals[rows], c[rows])
                won = book.look(rows, run.descend(task.stream.subset(rows)))
                high[rows[won]], low[rows[~won]] = c[rows[won]], c[rows[~won]]
                c = torch.where(high.isinf(), 10 * c, (low + high) / 2)
        book.tighten()
        return book.attempt()


class _Descent:
    """One minimisation per row, all at once: projected L-BFGS with a line search (Nocedal and Wright 2006, 7.2)."""

    def __init__(self, attack: LBFGS, book: Book, rows: Tensor, x: Tensor, goals: Tensor, c: Tensor):
        self.attack, self.book, self.rows, self.goals, self.c = attack, book, rows, goals, c
        self.shape, self.x, self.x0 = x.shape, rows_of(x), rows_of(book.ledger.images(rows))
        self.alive = torch.arange(len(x), device=x.device)  # rows whose last line search found something
        self.changes: list[tuple[Tensor, Tensor, Tensor]] = []  # s, y and 1 / <s, y>; 0 where a row takes no part

    def descend(self, stream: Stream) -> Tensor:
        """x after the steps; rows whose line search fails stay where they are."""
        value, gradient = self._differentiated(self.x, stream)
        for _ in range(self.attack.steps):
            x, fallen = self._searched(value, gradient, self._direction(gradient))
            if not bool(fallen.any()):
                break
            before, old = gradient, self.x
            self.x = x
            value, gradient = self._differentiated(x, stream)
            self._remember(x - old, gradient - before)
        return self.x.view(self.shape)

    def _free(self, gradient: Tensor) -> Tensor:
        """Which values the box lets move downhill."""
        return ~(((self.x <= 0) & (gradient > 0)) | ((self.x >= 1) & (gradient < 0)))

    def _direction(self, gradient: Tensor) -> Tensor:
        """Minus the inverse Hessian's estimate times the gradient, on the free values; the gradient alone where that
        would not go downhill."""
        free = self._free(gradient)
        q, weights = gradient * free, []
        for s, y, rho in reversed(self.changes):
            a = rho * (s * q).sum(1, keepdim=True)
            q = q - a * y
            weights.append(a)
        if self.changes:
            s, y, rho = self.changes[-1]
            scale = (s * y).sum(1, keepdim=True) / (y * y).sum(1, keepdim=True).clamp_min(1e-30)
            q = q * torch.where(rho > 0, scale, 0.5)
        else:
            q = q * 0.5  # the Hessian of the squared distance is 2
        for (s, y, rho), a in zip(self.changes, reversed(weights), strict=True):
            q = q + s * (a - rho * (y * q).sum(1, keepdim=True))
        direction = -q * free
        uphill = (direction * gradient).sum(1, keepdim=True) >= 0
        return torch.where(uphill, -0.5 * gradient * free, direction)

    def _searched(self, value: Tensor, gradient: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
        """(x, which rows fell): the longest of 1, 1/2, 1/4, ... of the direction that brings enough."""
        x, fallen, size = self.x.clone(), torch.zeros_like(value, dtype=torch.bool), 1.0
        left = self.alive
        for _ in range(HALVINGS):
            tried = (self.x[left] + size * direction[left]).clamp_(0, 1)
            promised = (gradient[left] * (tried - self.x[left])).sum(1)
            good = (self._value(tried, left) <= value[left] + ARMIJO * promised) & (promised < 0)
            x[left[good]], fallen[left[good]] = tried[good], True
            left, size = left[~good], size / 2
            if not len(left):
                break
        self.alive = fallen.nonzero()[:, 0]
        return x, fallen

    def _value(self, x: Tensor, index: Tensor) -> Tensor:
        ledger, attack = self.book.ledger, self.attack
        draws = None if ledger.watch.deterministic else getattr(attack.gradient, "draws", 1)
        images = x.view(-1, *self.shape[1:])
        logits = ledger.logits(images, self.rows[index], draws)
        y, _ = ledger.goals(self.rows[index])
        worth = torch.stack([attack.objective(z, y, self.goals[index]) for z in logits]).mean(0).to(x.dtype)
        return (x - self.x0[index]).square().sum(1) - self.c[index] * worth

    def _differentiated(self, x: Tensor, stream: Stream) -> tuple[Tensor, Tensor]:
        images = x.view(self.shape)
        aim = Towards(self.attack.objective, self.goals)
        result = self.book.ledger.gradient(self.attack.gradient, images, self.rows, aim, stream)
        relaxed = getattr(self.attack.gradient, "relaxed", None) is not None
        self.book.offer(self.rows, images, self.book.distance(images, self.rows), result, relaxed)
        change = x - self.x0
        value = change.square().sum(1) - self.c * result.value
        return value, 2 * change - self.c[:, None] * rows_of(result.gradient)

    def _remember(self, s: Tensor, y: Tensor) -> None:
        curvature = (s * y).sum(1, keepdim=True)
        good = curvature > CURVED * (y * y).sum(1, keepdim=True).clamp_min(1e-30)
        rho = torch.where(good, 1 / curvature.clamp_min(1e-30), torch.zeros_like(curvature))
        self.changes = [*self.changes, (s, y, rho)][-self.attack.memory :]
