"""Carlini and Wagner 2017: the smallest change that misclassifies, by Adam on distance and clipped margin, under l2,
linf and l0."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from stochade.attacks.ball import like, rows_of
from stochade.attacks.base import Attack, Attempt, Task
from stochade.attacks.gradients import Backprop, Gradient, check_whole
from stochade.attacks.minimal import ROUNDS, Book, Clipped, check_norm
from stochade.attacks.objectives import margin
from stochade.attacks.threats import Threat
from stochade.errors import BudgetError
from stochade.randomness import Stream

EDGE = 0.99  # tanh of the variable at a pixel of 0 or 1: its derivative there is 0.02, not the 2e-6 of the first code
FIRST, SECOND = 0.9, 0.999  # decay of Adam's moments
FINAL = 0.01  # share of the rate that is left at the end of a descent; Adam steps of the full rate miss small changes
CHECKS = 10  # looks, in one descent, at whether the sum still falls
LARGEST = 1e3  # c beyond which linf and l0 give up on an example
TAU = 0.97  # factor of the linf bound after each success
FINEST = 1 / 512  # linf bound below which nothing is looked for
OUTER = 100  # bounds (linf) or sets of pixels (l0) at most


@dataclass(frozen=True)
class CW(Attack):
    """Descends on distance + c * max(z_y - max z_other, -kappa), in variables w with x = (1 + tanh(w) / EDGE) / 2.

    l2: the squared distance, and a bisection for the smallest c that succeeds, for every example; it succeeds where
    the last tenth of its descent crosses the boundary, because the first steps of Adam cross it with any c. A descent
    begins at the best find so far, where there is one: where the gradient near the original says little (adversarial
    training), all descents from there end far away. Not on random models, whose finds may be luck. linf: the
    part of the change beyond a bound, which shrinks by 0.97 after each success, with c growing until it succeeds. l0:
    descents on fewer and fewer pixels; after each success those go for which gradient times change is smallest.

    Pixels that are exactly 0 or 1 move like others: an inverse tanh at 1 is infinite, and at 0.999999 so flat that
    saturated pixels hardly move; here the variable stops at EDGE. Every example has c, Adam moments and an end of its
    own. What is found is moved back along the line to its original (`Book.tighten`; not under l0, where length is
    free).

    Args:
        threat: L2, Linf or L0. Its budget only decides what is handed back: with eps=inf every find.
        steps: gradients in one descent at most.
        search_steps: values of c under l2.
        rate: of Adam at first, in units of w; it falls as a cosine to a hundredth.
        kappa: margin by which the model has to be wrong.
        initial: the first c.
        abort_early: a descent ends where the sum has not fallen by 0.01 % in a tenth of the steps.
        gradient: `Backprop(draws, substitutes)`, ...
        votes: forwards of a vote on random models.

    Raises:
        BudgetError: another norm, or numbers that make no sense.
    """

    threat: Threat
    steps: int = 1000
    search_steps: int = 9
    rate: float = 0.01
    kappa: float = 0.0
    initial: float = 1e-3
    abort_early: bool = True
    gradient: Gradient = field(default_factory=Backprop)
    votes: int = 20

    minimal = True

    def __post_init__(self):
        check_norm(self.threat, ("linf", "l0", "l2"), "Carlini-Wagner")
        for name in ("steps", "search_steps", "votes"):
            check_whole(getattr(self, name), name)
        for name, least in (("rate", 0), ("initial", 0), ("kappa", -1e-300)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not least < value < float("inf"):
                raise BudgetError(f"{name} {'>= 0' if name == 'kappa' else '> 0'}", repr(value), "see help(CW)")
        if not callable(self.gradient):
            raise BudgetError("a callable gradient", repr(self.gradient))

    def cost(self) -> tuple[int, int]:
        descents = self.search_steps if self.threat.name == "l2" else OUTER  # type: ignore[attr-defined]
        runs = descents * (self.steps + 1)
        return runs * self.gradient.forwards + (1 + 2 * ROUNDS) * self.votes, runs * self.gradient.backwards

    def search(self, task: Task) -> Attempt:
        book = Book(task, self.votes, self.kappa, self.steps * self.search_steps)
        rows, start = book.begin()
        start = book.ledger.images(rows) if task.start is None else start  # no copy, where these are all
        if len(rows):
            {"l2": self._l2, "linf": self._linf, "l0": self._l0}[task.threat.name](book, rows, start)
        if task.threat.name != "l0":
            book.tighten()
        return book.attempt()

    def _l2(self, book: Book, rows: Tensor, start: Tensor) -> None:
        c = torch.full_like(book.best[rows], self.initial)
        low, high = torch.zeros_like(c), torch.full_like(c, torch.inf)
        for _ in range(self.search_steps):
            found = torch.isfinite(book.best[rows]) & book.ledger.watch.deterministic
            run = _Adam(self, book, rows, torch.where(like(found, start), book.ledger.found[rows], start), c)
            run.descend(book.task.stream.subset(rows))
            high, low = torch.where(run.won, c, high), torch.where(run.won, low, c)
            c = torch.where(high.isinf(), 10 * c, (low + high) / 2)

    def _linf(self, book: Book, rows: Tensor, start: Tensor) -> None:
        x, c = start, torch.full_like(book.best[rows], self.initial)
        tau = torch.ones_like(c)
        for _ in range(OUTER):
            run = _Adam(self, book, rows, x, c, tau=tau)
            run.descend(book.task.stream.subset(rows))
            x = run.x
            tau = torch.where(run.won, TAU * torch.minimum(tau, book.distance(x, rows)), tau)
            c = torch.where(run.won, c, 4 * c)
            stay = (tau > FINEST) & (c <= LARGEST)
            rows, x, c, tau = rows[stay], x[stay], c[stay], tau[stay]
            if not len(rows):
                return

    def _l0(self, book: Book, rows: Tensor, start: Tensor) -> None:
        x, c = start, torch.full_like(book.best[rows], max(self.initial, 0.1))
        allowed = torch.ones_like(_units(book, x), dtype=torch.bool)
        for _ in range(OUTER):
            x0 = book.ledger.images(rows)
            run = _Adam(self, book, rows, torch.where(_spread(book, allowed, x), x, x0), c, allowed=allowed)
            run.descend(book.task.stream.subset(rows))
            x = run.x
            slope = book.ledger.gradient(self.gradient, x, rows, margin, book.task.stream.subset(rows)).gradient
            changed = _units(book, (x - x0).abs()) > 1e-6
            score = _units(book, (slope * (x - x0)).abs())
            score = score.masked_fill(~changed, -1).masked_fill(~allowed, torch.inf)
            rank = score.argsort(dim=1, stable=True).argsort(dim=1)
            drop = (0.3 * (allowed & changed).sum(1).to(c).sqrt()).ceil().clamp(min=1)
            fewer = allowed & (rank >= ((allowed & ~changed).sum(1) + drop)[:, None])
            allowed = torch.where(run.won[:, None], fewer, allowed)
            c = torch.where(run.won, c, 4 * c)
            stay = (c <= LARGEST) & allowed.any(1)
            rows, x, c, allowed = rows[stay], x[stay], c[stay], allowed[stay]
            if not len(rows):
                return


def _units(book: Book, x: Tensor) -> Tensor:
    """[n, units]: the values of x, or its pixels where the threat counts those."""
    if getattr(book.threat, "per", "value") == "pixel" and x.dim() == 4:
        return rows_of(x.sum(1))
    return rows_of(x)


def _spread(book: Book, mask: Tensor, x: Tensor) -> Tensor:
    """[n, units] -> like x."""
    if getattr(book.threat, "per", "value") == "pixel" and x.dim() == 4:
        return mask.view(len(x), 1, *x.shape[2:]).expand_as(x)
    return mask.view_as(x)


class _Adam:
    """One descent per row, all at once. Under linf (`tau`) and l0 (`allowed`) a row ends with its first success.

    Attributes:
        won: [n] whether the row met an adversarial input (inside tau), under l2 in its last tenth. x: there, or at
            the end (under l2: nothing).
    """

    def __init__(self, attack: CW, book: Book, rows: Tensor, x: Tensor, c: Tensor, tau=None, allowed=None):
        self.attack, self.book, self.rows, self.c, self.tau = attack, book, rows, c, tau
        self.allowed = None if allowed is None else _spread(book, allowed, x)
        self.single = tau is not None or allowed is not None
        self.x, self.won = x.clone() if self.single else x, torch.zeros_like(c, dtype=torch.bool)
        self.objective = Clipped(attack.kappa)
        self.relaxed = getattr(attack.gradient, "relaxed", None) is not None

    def descend(self, stream: Stream) -> None:
        """All steps; fills the attributes."""
        a, book, index = self.attack, self.book, torch.arange(len(self.rows), device=self.rows.device)
        w = self.x.mul(2).sub_(1).mul_(EDGE).atanh_()
        edge, window = math.atanh(EDGE), max(1, a.steps // CHECKS)
        rows, x0, c, tau, allowed = self.rows, book.ledger.images(self.rows), self.c, self.tau, self.allowed
        self.x = x = self.x if self.single else self.x[:0].clone()  # what is not asked for is not held
        first, second = torch.zeros_like(w), torch.zeros_like(w)
        total, before = torch.zeros_like(c), torch.full_like(c, torch.inf)
        for step in range(a.steps):
            x = w.tanh().mul_(0.5 / EDGE).add_(0.5).clamp_(0, 1)
            if allowed is not None:
                x = torch.where(allowed, x, x0)
            result = book.ledger.gradient(a.gradient, x, rows, self.objective, stream)
            delta = x - x0
            distance = None if allowed is None else book.distance(x, rows)
            penalty, slope, length = self._penalty(delta, tau)
            won = book.offer(rows, x, length if distance is None else distance, result, self.relaxed)
            done = won & (penalty == 0) if tau is not None else won
            self.won[index] |= done
            total += penalty - c * result.value
            check = (step + 1) % window == 0
            if self.single or (check and a.abort_early):
                stay = ~done if self.single else total < 0.9999 * before
                if check and a.abort_early:
                    stay = stay & (total < 0.9999 * before)
                    before, total = total, torch.zeros_like(total)
                if not bool(stay.all()):
                    if self.single:
                        self.x[index[~stay]] = x[~stay]
                    slope, gradient = slope[stay], result.gradient[stay]
                    rows, index, x0, w, first, second, c, before, total, x = (
                        v[stay] for v in (rows, index, x0, w, first, second, c, before, total, x)
                    )
                    tau, allowed = (None if v is None else v[stay] for v in (tau, allowed))
                    stream, result = stream.subset(stay), result._replace(gradient=gradient)
                    if not len(rows):
                        return
            if check and not self.single and step + 1 <= a.steps - window:
                self.won[index] = False  # what the first, too long, steps of Adam cross says nothing about c
            g = slope.addcmul_(result.gradient, like(c, x), value=-1)
            g.mul_(w.tanh().square_().neg_().add_(1))  # d tanh(w) / d w, up to a factor that Adam does not see
            first.lerp_(g, 1 - FIRST)
            second.mul_(SECOND).addcmul_(g, g, value=1 - SECOND)
            root = torch.sqrt(second, out=g).mul_(1 / math.sqrt(1 - SECOND ** (step + 1))).add_(1e-8)
            rate = a.rate * (FINAL + (1 - FINAL) * (1 + math.cos(math.pi * step / a.steps)) / 2)
            w.addcdiv_(first, root, value=-rate / (1 - FIRST ** (step + 1))).clamp_(-edge, edge)
            del result, delta, slope, g, root  # not held beside the next pass
        if self.single:
            self.x[index] = x

    def _penalty(self, delta: Tensor, tau: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """(what is to be small [n], its derivative by the change, the distance [n])."""
        if tau is None:
            squared = torch.linalg.vecdot(rows_of(delta), rows_of(delta))
            return squared, delta.mul_(2), squared.sqrt()
        size = delta.abs()
        over = (size - like(tau, delta)).clamp_min_(0)
        return rows_of(over).sum(1), delta.sign_() * (over > 0), rows_of(size).amax(1)
