"""DeepFool (Moosavi-Dezfooli et al. 2016): steps to the nearest boundary of the linearised model."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from stochade.attacks.apgd import Towards, likely
from stochade.attacks.ball import like
from stochade.attacks.base import Attack, Attempt, Task
from stochade.attacks.gradients import Backprop, Gradient, Pass, _differentiate, _whole, check_logits
from stochade.attacks.hyperplane import onto_hyperplane
from stochade.attacks.minimal import ROUNDS, Book, check_norm
from stochade.attacks.objectives import margin
from stochade.attacks.threats import Threat
from stochade.errors import BudgetError
from stochade.randomness import Stream


def lead(logits: Tensor, y: Tensor, goals: Tensor) -> Tensor:
    """z_goal - z_y."""
    return logits.gather(1, goals[:, None])[:, 0] - logits.gather(1, y[:, None])[:, 0]


@dataclass(frozen=True)
class DeepFool(Attack):
    """The model is linearised, and the input goes to the nearest of its boundaries, until one is really crossed. On
    linear models the first step is the exact answer: the box is part of the step, not a clipping after it.

    Targeted, the step goes to the boundary with the class that is ahead of the target. What is found is moved back
    along the line to its original (see `Book.tighten`), so little is left of the overshoot.

    Args:
        threat: L2 or Linf. Its budget only decides what is handed back: with eps=inf every find.
        steps: linearisations at most.
        overshoot: how much further than the linear model says the change goes.
        classes: how many of the likeliest classes, the true one among them, are looked at.
        gradient: how differences of logits are differentiated; plain backpropagation shares its forward among them.
        votes: forwards of a vote on random models.

    Raises:
        BudgetError: another norm, or options that make no sense.
    """

    threat: Threat
    steps: int = 50
    overshoot: float = 0.02
    classes: int = 10
    gradient: Gradient = field(default_factory=Backprop)
    votes: int = 20

    minimal = True

    def __post_init__(self):
        check_norm(self.threat, ("linf", "l2"), "DeepFool")
        _whole(self.steps, "steps")
        _whole(self.classes, "classes", 2)
        _whole(self.votes, "votes")
        if not (isinstance(self.overshoot, int | float) and 0 <= self.overshoot < float("inf")):
            raise BudgetError("overshoot >= 0", repr(self.overshoot), "0.02 is usual")
        if not callable(self.gradient):
            raise BudgetError("a callable gradient", repr(self.gradient))

    def cost(self) -> tuple[int, int]:
        rows = self.classes - 1
        forwards = self.gradient.forwards * (1 if isinstance(self.gradient, Backprop) else rows)
        return self.steps * forwards + (2 + 2 * ROUNDS) * self.votes, self.steps * self.gradient.backwards * rows

    def search(self, task: Task) -> Attempt:
        book = Book(task, self.votes, steps=self.steps)
        rows, x = book.begin()
        found = torch.isfinite(book.best[rows])  # a start at the boundary has nowhere to go: those begin at the image
        if len(rows):
            x = torch.where(like(found, x), task.x[rows], x)
            self._run(book, rows, x, task.stream.subset(rows))
        book.tighten()
        return book.attempt()

    def _run(self, book: Book, rows: Tensor, x: Tensor, stream: Stream) -> None:
        x0, norm, threat = book.task.x[rows], book.threat.name, book.threat
        relaxed = getattr(self.gradient, "relaxed", None) is not None
        goals = likely(book.clean, book.task, self.classes - 1)
        y = book.task.y[:, None]
        least = self.overshoot * (book.clean.gather(1, y) - book.clean.gather(1, goals)).abs()
        change = x - x0
        for _ in range(self.steps):
            result, leads, slopes = self._slopes(book, x, rows, goals[rows], stream)
            distance = threat.distance(x, x0)
            won = book.offer(rows, x, distance, result, relaxed)
            stay = ~(won & (book.best[rows] <= distance))
            if not bool(stay.all()):
                rows, x, x0, change, leads, slopes = (t[stay] for t in (rows, x, x0, change, leads, slopes))
                stream = stream.subset(stay)
                if not len(rows):
                    return
            need = torch.maximum(-leads, least[rows])  # a mean ahead that loses the vote has to go on
            change += _shortest(norm, x, slopes, need)
            x = torch.add(x0, change, alpha=1 + self.overshoot).clamp_(0, 1)
        book.look(rows, x)

    def _slopes(self, book: Book, x: Tensor, rows: Tensor, goals: Tensor, stream: Stream):
        """The pass at x with, for every goal [n, C], how far it is ahead and the derivative of that [n, C, ...]."""
        if book.task.targets is not None:
            result = book.ledger.gradient(self.gradient, x, rows, margin, stream)
            return result, result.value[:, None], result.gradient[:, None]
        if isinstance(self.gradient, Backprop):
            return self._shared(book, self.gradient, x, rows, goals)
        passes = [book.ledger.gradient(self.gradient, x, rows, Towards(lead, g), stream) for g in goals.T]
        return passes[0], torch.stack([p.value for p in passes], 1), torch.stack([p.gradient for p in passes], 1)

    def _shared(self, book: Book, gradient: Backprop, x: Tensor, rows: Tensor, goals: Tensor):
        """The same by one forward per draw, with a backward for every goal."""
        ledger, seen = book.ledger, []
        y, _ = ledger.goals(rows)
        leads = torch.zeros(goals.shape, dtype=x.dtype, device=x.device)
        slopes = x.new_zeros(*goals.shape, *x.shape[1:])
        with gradient.swapped(ledger.model), torch.enable_grad(), ledger.watch:
            for _ in range(gradient.draws):
                leaf = x.detach().requires_grad_()
                logits = check_logits(ledger.model(leaf), len(x))
                seen.append(logits.detach())
                for j, goal in enumerate(goals.T):
                    ahead = lead(logits, y, goal)
                    leads[:, j] += ahead.detach() / gradient.draws
                    last = j == goals.shape[1] - 1
                    slopes[:, j] += _differentiate(ahead.sum(), leaf, not last) / gradient.draws
        ledger.forwards[rows] += gradient.draws
        ledger.backwards[rows] += gradient.draws * goals.shape[1]
        return Pass(leads.amax(1), slopes[:, 0], torch.stack(seen)), leads, slopes


def _shortest(norm: str, x: Tensor, slopes: Tensor, need: Tensor) -> Tensor:
    """The shortest change that lets one of the goals gain what it needs by the linear model; where the box lets none,
    the one that gets nearest.

    Args:
        slopes: [n, C, ...]. need: [n, C].
    """
    n, goals = need.shape
    at = x.repeat_interleave(goals, 0)
    steps = onto_hyperplane(norm, at, slopes.flatten(0, 1), need.flatten())
    gained = torch.linalg.vecdot(slopes.flatten(2), steps.view(n, goals, -1)) / need.clamp_min(1e-30)
    length = torch.linalg.vector_norm(steps.view(n, goals, -1), ord=2 if norm == "l2" else torch.inf, dim=2)
    length = torch.where(gained > 0.999, length, 1e9 * (2 - gained))
    best = length.argmin(1)
    return steps.view(n, goals, *x.shape[1:])[torch.arange(n, device=x.device), best]
