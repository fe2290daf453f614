"""DeepFool (Moosavi-Dezfooli et al. 2016): steps to the nearest boundary of the linearised model."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from stochade.attacks.apgd import likely
from stochade.attacks.ball import Ball, like
from stochade.attacks.base import Attack, Attempt, Task
from stochade.attacks.gradients import Backprop, Gradient, check_whole
from stochade.attacks.hyperplane import dual_norm
from stochade.attacks.linearised import shortest, slopes
from stochade.attacks.minimal import FIRM, ROUNDS, Book, check_norm
from stochade.attacks.objectives import margin
from stochade.attacks.threats import Threat
from stochade.errors import BudgetError
from stochade.randomness import Stream

PART = (
    0.6  # of what the linear model says is missing: several short steps follow a curved boundary, one long does not
)
CORRECTIONS = 5  # of what was found


@dataclass(frozen=True)
class DeepFool(Attack):
    """The model is linearised, and the input goes towards the nearest of its boundaries, until one is really
    crossed. Then the boundary is linearised where it was crossed, and the point of it that is nearest to the original
    is tried, some times over. The first boundary of all is also tried at once, which is exact on linear models: there
    the box is part of the step. In the steps of the first half what would leave the box is cut off, because where
    the linear model is wrong (adversarial training) making up for the box leads across the whole of it; in the second
    half, for the examples that are left, the box is part of the step again.

    Targeted, the step goes to the boundary with the class that is ahead of the target. What is found is moved back
    along the line to its original (`Book.tighten`), so little is left of the overshoot. A warm start that is
    adversarial only counts as a find.

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
        check_whole(self.steps, "steps")
        check_whole(self.classes, "classes", 2)
        check_whole(self.votes, "votes")
        if not (isinstance(self.overshoot, int | float) and 0 <= self.overshoot < float("inf")):
            raise BudgetError("overshoot >= 0", repr(self.overshoot), "0.02 is usual")
        if not callable(self.gradient):
            raise BudgetError("a callable gradient", repr(self.gradient))

    def cost(self) -> tuple[int, int]:
        goals = self.classes - 1
        per_step = self.gradient.forwards * (1 if isinstance(self.gradient, Backprop) else goals)
        forwards = (
            self.steps * per_step
            + CORRECTIONS * self.gradient.forwards
            + self.votes * (1 + 3 * (1 + FIRM) + 2 * ROUNDS)
        )
        return forwards, (self.steps * goals + CORRECTIONS) * self.gradient.backwards

    def search(self, task: Task) -> Attempt:
        book = Book(task, self.votes, steps=self.steps)
        rows, x = book.begin()
        if len(rows):
            found = torch.isfinite(
                book.best[rows]
            )  # at the boundary there is nowhere to go: these begin at the image
            self._run(book, rows, torch.where(like(found, x), task.x[rows], x), task.stream.subset(rows))
            self._correct(book, rows[torch.isfinite(book.best[rows])], task.stream)
            book.tighten(rows)
        return book.attempt()

    def _run(self, book: Book, rows: Tensor, x: Tensor, stream: Stream) -> None:
        task, threat, x0 = book.task, book.threat, book.task.x[rows]
        relaxed = getattr(self.gradient, "relaxed", None) is not None
        goals = likely(book.clean, task.y, task.targets, self.classes - 1)
        ahead = book.clean.gather(1, task.y[:, None]) - book.clean.gather(1, goals)
        least = (self.overshoot * ahead.abs()).clamp_min(1e-6 * book.clean.abs().amax())
        change = x - x0
        for step in range(self.steps):
            result, leads, slope = slopes(book, self.gradient, x, rows, goals[rows], stream)
            distance = threat.distance(x, x0)
            won = book.offer(rows, x, distance, result, relaxed)
            stay = ~(won & (book.best[rows] <= distance))
            if not bool(stay.all()):
                rows, x, x0, change, leads, slope = (t[stay] for t in (rows, x, x0, change, leads, slope))
                stream = stream.subset(stay)
                if not len(rows):
                    return
            need = torch.maximum(-leads, least[rows])  # a mean that is ahead and loses the vote has to go on
            if step == 0:
                whole, _ = shortest(threat, x, slope, need)
                book.look(rows, torch.add(x, whole, alpha=1 + self.overshoot).clamp_(0, 1))
            early = 2 * step < self.steps
            change += _cut(threat, x, slope, PART * need) if early else shortest(threat, x, slope, PART * need)[0]
            x = torch.add(x0, change, alpha=1 + self.overshoot).clamp_(0, 1)
        book.look(rows, x)

    def _correct(self, book: Book, rows: Tensor, stream: Stream) -> None:
        """The nearest points, to the originals, of the boundaries linearised at the finds and then at those."""
        x0, x, threat = book.task.x[rows], book.ledger.found[rows], book.threat
        stream, relaxed = stream.subset(rows), getattr(self.gradient, "relaxed", None) is not None
        for _ in range(CORRECTIONS if len(rows) else 0):
            result = book.ledger.gradient(self.gradient, x, rows, margin, stream)
            book.offer(rows, x, threat.distance(x, x0), result, relaxed)
            slope = result.gradient
            need = -result.value - torch.linalg.vecdot(slope.flatten(1), (x0 - x).flatten(1))
            step, _ = shortest(threat, x0, slope[:, None], need.clamp_min(1e-30)[:, None])
            x = torch.add(x0, step, alpha=1 + self.overshoot).clamp_(0, 1)
        if len(rows):
            book.look(rows, x)


def _cut(threat: Ball, x: Tensor, slope: Tensor, need: Tensor) -> Tensor:
    """The shortest change that lets one goal gain what it needs, with what would leave the box cut off.

    Args:
        slope: [n, C, ...]. need: [n, C], positive.
    """
    dual = dual_norm(threat.name, slope.flatten(0, 1)).view_as(need).clamp_min(1e-30)
    away, pick = (need / dual).clamp_(max=1e30).min(1)  # no slope and a huge need: infinity times 0 is no number
    index = torch.arange(len(x), device=x.device)
    slope, dual = slope[index, pick], dual[index, pick]
    way = slope / like(dual, x) if threat.name == "l2" else slope.sign()
    return (x + way.mul_(like(away, x))).clamp_(0, 1) - x
