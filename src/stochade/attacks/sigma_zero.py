"""Sigma-zero (Cinà et al., ICLR 2025): the fewest changed values, by gradient descent on a smooth count."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from stochade.attacks.ball import like
from stochade.attacks.base import Attack, Attempt, Task
from stochade.attacks.gradients import Backprop, Gradient, check_whole
from stochade.attacks.minimal import Book, Clipped, check_norm
from stochade.attacks.objectives import margin
from stochade.attacks.sparse_balls import L0
from stochade.attacks.threats import Threat
from stochade.errors import BudgetError
from stochade.randomness import Stream

OUTWARD = 1.25  # factor by which a find that lost a fresh vote grows
TRIES = 10  # times that it may
LEGS, LEG = 3, 10  # parts of the descent, and the fewest steps of one
ROUNDS = 20  # of bisection on a number of units, enough for a million


@dataclass(frozen=True)
class SigmaZero(Attack):
    """Minimum l0: descends on hinge(margin) + (mean over values of d^2 / (d^2 + sigma)), d being the change, and
    takes back changes shorter than a threshold that rises while the point is adversarial and falls while it is not
    (algorithm 1 of the paper). The gradient is divided by its largest entry, the optimiser is Adam, and the rate
    falls to a tenth by a cosine.

    After two thirds of the steps (at the 20th of fewer than 30) the descent begins again from the smallest find, with
    Adam's moments at zero (not in the paper, and no pass more).

    With L0(k, per="pixel") the unit is a pixel: d^2 is summed over its channels, in the count and at the threshold.
    Finds are not moved back to the boundary, because length is free in l0; instead, fewer of the changed units are
    tried, moved all the way to the box (not in the paper; one gradient and some forwards). On a random model every
    find must win a fresh vote; one that does not is made longer, within the box, until it does, or is given up.

    Args:
        threat: L0. Its budget only decides what is handed back: with L0(inf) every find.
        steps: gradient evaluations.
        rate: the first step, in units of images (eta_0). sigma: where the smooth count is half of the way to one,
            as a square. tau: the first threshold. adapt: change of the threshold per step, in units of the rate.
        gradient: how the margin is differentiated. votes: forwards of a vote on random models.

    Raises:
        BudgetError: another norm, or options that make no sense.
    """

    threat: Threat
    steps: int = 1000
    rate: float = 1.0
    sigma: float = 1e-3
    tau: float = 0.3
    adapt: float = 0.01
    gradient: Gradient = field(default_factory=Backprop)
    votes: int = 20

    minimal = True

    def __post_init__(self):
        check_norm(self.threat, ("l0",), "SigmaZero")
        check_whole(self.steps, "steps")
        check_whole(self.votes, "votes")
        for name, most in (("rate", math.inf), ("sigma", math.inf), ("tau", 1.0), ("adapt", 1.0)):
            value, least = getattr(self, name), name in ("tau", "adapt")
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not (number and (0 <= value <= most if least else 0 < value < most)):
                bounds = f"0 <= {name} <= {most:g}" if least else f"a finite {name} > 0"
                raise BudgetError(bounds, repr(value), "the paper takes rate=1, sigma=0.001, tau=0.3, adapt=0.01")

    def cost(self) -> tuple[int, int]:
        """A random model spends up to one vote more at every step whose point is adversarial and new."""
        forwards = (self.steps + 1) * self.gradient.forwards + (2 + TRIES + 2 * ROUNDS) * self.votes
        return forwards, (self.steps + 1) * self.gradient.backwards

    def search(self, task: Task) -> Attempt:
        book = Book(task, self.votes, steps=self.steps)
        rows, x = book.begin()
        if len(rows):
            self._run(book, rows, x, task.stream.subset(rows))
        _last_word(book)
        self._thin(book, task.stream.fork("thin"))
        return book.attempt()

    def _run(self, book: Book, rows: Tensor, x: Tensor, stream: Stream) -> None:
        threat, x0, objective = book.threat, book.x0[rows], Clipped()
        assert isinstance(threat, L0)
        relaxed = getattr(self.gradient, "relaxed", None) is not None
        change, mean, square = x - x0, torch.zeros_like(x), torch.zeros_like(x)
        tau = torch.full_like(book.best[rows], self.tau)
        rate, every, begun = self.rate, max(-(-self.steps // LEGS), LEG), 0
        for step in range(self.steps):
            if step % every == 0 and step > every:
                found = torch.isfinite(book.best[rows])
                change = torch.where(like(found, x0), book.ledger.found[rows] - x0, change)
                mean, square, begun = torch.zeros_like(x0), torch.zeros_like(x0), step
            x = x0 + change
            result = book.ledger.gradient(self.gradient, x, rows, objective, stream)
            adversarial = book.offer(rows, x, threat.distance(x, x0), result, relaxed)
            g = _count_slope(threat, change, self.sigma).sub_(result.gradient)
            if book.ledger.watch.deterministic and bool((book.best[rows] <= 1).any()):  # fewer than one is no change
                stay = book.best[rows] > 1
                rows, x0, change, mean, square, tau, adversarial, g = (
                    t[stay] for t in (rows, x0, change, mean, square, tau, adversarial, g)
                )
                stream = stream.subset(stay)
                if not len(rows):
                    break
            g /= like(g.flatten(1).abs().amax(1).clamp_min_(1e-12), g)
            mean.lerp_(g, 0.1)
            square.mul_(0.999).addcmul_(g, g, value=0.001)
            length = square.sqrt().div_(math.sqrt(1 - 0.999 ** (step - begun + 1))).add_(1e-8)
            change.addcdiv_(mean, length, value=-rate / (1 - 0.9 ** (step - begun + 1)))
            change = (x0 + change).clamp_(0, 1).sub_(x0)
            rate = self.rate * (0.1 + 0.45 * (1 + math.cos(math.pi * step / self.steps)))
            tau = (tau + torch.where(adversarial, self.adapt, -self.adapt) * rate).clamp_(0, 1)
            short = threat._spread(threat._merge(change.square()) < tau.square()[:, None], change)
            change.masked_fill_(short, 0)

    def _thin(self, book: Book, stream: Stream) -> None:
        """Of every find, the fewest of the changed units that suffice when they go all the way to the box, best gain
        first: bisection on their number. On linear models that is exact for these units. It also parts values whose
        gradients are equal, which the descent moves all together."""
        rows = (torch.isfinite(book.best) & (book.best > 1)).nonzero()[:, 0]
        if not len(rows):
            return
        threat, x0, x = book.threat.rows(rows), book.x0[rows], book.ledger.found[rows]
        result = book.ledger.gradient(self.gradient, x, rows, margin, stream.subset(rows))
        end = torch.where(x > x0, 1.0, torch.where(x < x0, 0.0, x0))
        gain = threat._merge(result.gradient * (end - x0))
        gain.masked_fill_(threat._merge((x != x0).to(x)) == 0, -torch.inf)
        rank = gain.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        low, high = torch.zeros_like(book.best[rows]), book.best[rows]
        for _ in range(ROUNDS):
            index = (high - low > 1).nonzero()[:, 0]
            if not len(index):
                return
            count = ((low + high) / 2).floor_()
            chosen = threat._spread(rank < count[:, None], x)
            z, at = torch.where(chosen, end, x0)[index], rows[index]
            good = torch.ones_like(at, dtype=torch.bool)
            if not book.ledger.watch.deterministic:  # two votes in a row: the winner of many is lucky
                good = book.judge(z, at)
            if bool(good.any()):
                good[good.clone()] = book.look(at[good], z[good])
            low[index] = torch.where(good, low[index], count[index])
            high[index] = torch.where(good, count[index], high[index])


def _count_slope(threat: L0, change: Tensor, sigma: float) -> Tensor:
    """The gradient of the mean over units of d^2 / (d^2 + sigma)."""
    size = threat._merge(change.square())
    slope = 2 * sigma / (size.shape[1] * (size + sigma).square_())
    return threat._spread(slope, change) * change


def stands(book: Book, rows: Tensor, x: Tensor) -> Tensor:
    """[n] whether finds win a fresh vote, which on deterministic models they need not."""
    watch = book.ledger.watch
    if watch.scope == "unknown" and watch.deterministic and len(rows):  # a generator of its own would show here
        watch.repeats(x, book.ledger.logits(x, rows, 1)[0])
    if watch.deterministic or not len(rows):
        return torch.ones_like(rows, dtype=torch.bool)
    return book.judge(x, rows)


def _last_word(book: Book) -> None:
    """A fresh vote on every find; longer changes of the same values where it is lost, and inf in the end."""
    rows = (torch.isfinite(book.best) & (book.best > 0)).nonzero()[:, 0]
    if not len(rows):
        return
    rows = rows[~stands(book, rows, book.ledger.found[rows])]
    x = book.ledger.found[rows]
    book.best[rows] = torch.inf
    for _ in range(TRIES):
        if not len(rows):
            return
        x = torch.lerp(book.x0[rows], x, OUTWARD).clamp_(0, 1)
        lost = ~book.look(rows, x)
        rows, x = rows[lost], x[lost]
