"""JSMA (Papernot et al. 2016): saturates the most salient pair of values at a time until the class changes."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from stochade.attacks.apgd import Towards, likely
from stochade.attacks.ball import rows_of
from stochade.attacks.base import Attack, Attempt, Task
from stochade.attacks.gradients import Backprop, Gradient, check_whole, objective_values
from stochade.attacks.minimal import Book, check_norm
from stochade.attacks.objectives import margin
from stochade.attacks.sigma_zero import stands
from stochade.attacks.sparse_balls import L0
from stochade.attacks.threats import Threat
from stochade.errors import BudgetError
from stochade.randomness import Stream

CELLS = 1 << 22  # pairs that are compared at once
FIRST = 16  # best values in each direction among which a first good pair is found


def target_logit(logits: Tensor, y: Tensor, targets: Tensor) -> Tensor:
    """The logit of the class to pull towards, as an objective."""
    return logits.gather(1, targets[:, None])[:, 0]


def total(logits: Tensor, y: Tensor, targets: Tensor | None = None) -> Tensor:
    """The sum of all logits, as an objective."""
    return logits.sum(1)


@dataclass(frozen=True)
class JSMA(Attack):
    """Greedy l0: at every step, the pair of values with the largest saliency -(a_p + a_q)(b_p + b_q) moves by theta
    (algorithm 3 of the paper), a being the derivative of the target's logit and b that of the sum of the others, with
    a_p + a_q > 0 > b_p + b_q (theta < 0: the opposite signs). The pair is the best of all, not of a sample. Values at
    the bound they move to leave the search. An example stops when it is adversarial, or when no pair is salient.

    Even on a linear model the rule does not find the fewest values: a run moves values one way only and two at a time
    (of three it uses two), and it ranks them by slope, not by slope times the room that is left to the bound.

    Untargeted, the likeliest wrong classes are the targets in turn, each from the original image, and any wrong class
    counts as success; the smallest find is handed back. A warm start counts if it is adversarial, and is no place
    to begin. With L0(k, per="pixel") the unit is a pixel, whose channels move together.

    Args:
        threat: L0. Its budget only decides what is handed back: with L0(inf) every find.
        steps: pairs per run, so that at most 2 * steps values change; 56 is 14.5 % of an MNIST image (the paper's).
        theta: change of a value per step, within [-1, 1], not 0; 1 saturates at once.
        classes: wrong classes to try where there is no target.
        gradient: how logits are differentiated. votes: forwards of a vote on random models.

    Raises:
        BudgetError: another norm, or options that make no sense.
    """

    threat: Threat
    steps: int = 56
    theta: float = 1.0
    classes: int = 3
    gradient: Gradient = field(default_factory=Backprop)
    votes: int = 20

    minimal = True

    def __post_init__(self):
        check_norm(self.threat, ("l0",), "JSMA")
        check_whole(self.steps, "steps")
        check_whole(self.classes, "classes")
        check_whole(self.votes, "votes")
        if isinstance(self.theta, bool) or not isinstance(self.theta, int | float) or not 0 < abs(self.theta) <= 1:
            raise BudgetError("theta within [-1, 1], not 0", repr(self.theta), "1 brightens at once, -1 darkens")

    def cost(self) -> tuple[int, int]:
        forwards = self.steps * (2 * self.gradient.forwards + 2 * self.votes) + 2 * self.votes
        return self.votes + self.classes * forwards, 2 * self.classes * self.steps * self.gradient.backwards

    def search(self, task: Task) -> Attempt:
        book = Book(task, self.votes, steps=self.steps * self.classes)
        rows, _ = book.begin()
        if len(rows):
            classes = likely(book.clean[rows], *book.ledger.goals(rows), self.classes)
            for run, goals in enumerate(classes.T):
                self._run(book, rows, goals, task.stream.subset(rows).fork(run))
        return book.attempt()

    def _run(self, book: Book, rows: Tensor, goals: Tensor, stream: Stream) -> None:
        """One class per example, from the original."""
        threat, x0 = book.threat, book.x0[rows]
        assert isinstance(threat, L0)
        x = x0.clone()
        for _ in range(self.steps):
            toward = book.ledger.gradient(self.gradient, x, rows, Towards(target_logit, goals), stream)
            stay = self._offer(book, rows, x, toward.logits)
            if not bool(stay.all()):
                rows, goals, x, x0, stream = rows[stay], goals[stay], x[stay], x0[stay], stream.subset(stay)
                toward = toward._replace(gradient=toward.gradient[stay])
            if not len(rows):
                return
            every = book.ledger.gradient(self.gradient, x, rows, total, stream)
            a, b = toward.gradient, every.gradient - toward.gradient
            free = x < 1 if self.theta > 0 else x > 0
            sign = 1 if self.theta > 0 else -1
            up, down = (threat._merge(t * free) for t in (sign * a, -sign * b))
            pair, score = best_pair(up, down, threat._merge(free.to(x)) > 0)
            chosen = torch.zeros_like(up, dtype=torch.bool).scatter_(1, pair, True)
            chosen &= (score > 0)[:, None]
            x = torch.where(threat._spread(chosen, x), x + self.theta, x).clamp_(0, 1)
            stay = score > 0
            if not bool(stay.all()):
                rows, goals, x, x0, stream = rows[stay], goals[stay], x[stay], x0[stay], stream.subset(stay)
        if len(rows):
            self._offer(book, rows, x, book.ledger.logits(x, rows))

    def _offer(self, book: Book, rows: Tensor, x: Tensor, logits: Tensor) -> Tensor:
        """Write down what is adversarial and smaller than before. Returns [n] who goes on: who is not adversarial,
        and could still become so with fewer changes than known.

        Args:
            logits: [draws, n, K] at x.
        """
        ledger, distance = book.ledger, book.threat.distance(x, book.x0[rows])
        y, targets = ledger.goals(rows)
        value = torch.stack([objective_values(margin, z, y, targets) for z in logits]).mean(0).to(x.dtype)
        ledger.note(rows, value, distance)
        won = 2 * book.wins(logits, rows).sum(0) >= len(logits)
        if getattr(self.gradient, "relaxed", None) is not None:  # those logits are not the model's
            won = book.judge(x, rows)
        won &= distance < book.best[rows]
        index = won.nonzero()[:, 0]
        index = index[stands(book, rows[index], x[index])]
        ledger.replace(rows[index], x[index], value[index])
        book.best[rows[index]] = distance[index]
        return distance < book.best[rows]


def best_pair(up: Tensor, down: Tensor, free: Tensor) -> tuple[Tensor, Tensor]:
    """The pair p != q of free units with the largest (up_p + up_q)(down_p + down_q), both sums positive.

    Exact, without looking at all pairs: for every t > 0, ab <= ((t a + b / t) / 2)^2, so with s = t up + down / t a
    pair that beats the value L of a known pair has s_p + s_q >= 2 sqrt(L), hence both s >= 2 sqrt(L) - max s. The
    pairs among the few units left are compared, in bounded memory.

    Args:
        up, down: [N, D]. free: [N, D] bool.

    Returns:
        pair [N, 2] and its product [N]; 0 where no pair has positive sums (the pair then means nothing).
    """
    up, down = (torch.where(free, t, -torch.inf) for t in (up, down))
    n, units = up.shape
    if units < 2:
        return up.new_zeros(n, 2, dtype=torch.long), up.new_zeros(n)
    a, b = (rows_of(torch.where(free, t, 0)).abs().amax(1, keepdim=True).clamp_min(1e-30) for t in (up, down))
    few = min(FIRST, units)
    first = torch.cat([(t * up / a + down / (t * b)).topk(few, 1).indices for t in (0.25, 1.0, 4.0)], 1)
    p, q, known = _compare(up, down, first)
    pair = torch.stack([p, q], 1)
    sums = [t.gather(1, pair).sum(1, keepdim=True) for t in (up, down)]
    good = known > 0
    t = torch.where(good[:, None], (sums[1] / sums[0]).sqrt(), (b / a).sqrt())
    s = t * up + down / t
    least = 2 * known.sqrt()[:, None] * (1 - 1e-5) - s.amax(1, keepdim=True)
    left = (free & ((s >= least) | ~good[:, None])).sum(1)
    order = s.argsort(dim=1, descending=True, stable=True)
    for size in left.unique().tolist():
        index = (left == size).nonzero()[:, 0]
        if size < 2:
            continue
        for part in index.split(max(1, CELLS // size**2)):
            p, q, value = _compare(up[part], down[part], order[part, :size])
            pair[part], known[part] = torch.stack([p, q], 1), value
    return pair, known


def _compare(up: Tensor, down: Tensor, units: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(p, q, product) of the best pair among some units [N, M], a block of rows of the M x M table at a time."""
    u, v = up.gather(1, units), down.gather(1, units)
    n, m = units.shape
    best = u.new_zeros(n)
    at = torch.zeros(n, 2, dtype=torch.long, device=u.device)
    block = max(1, CELLS // (n * m))
    for start in range(0, m, block):
        rows = slice(start, start + block)
        a, b = u[:, rows, None] + u[:, None], v[:, rows, None] + v[:, None]
        good = (a > 0) & (units[:, rows, None] != units[:, None])  # a product above 0 says that b > 0
        value, flat = torch.where(good, a * b, 0).flatten(1).max(1)
        better = value > best
        best = torch.where(better, value, best)
        at = torch.where(better[:, None], torch.stack([flat // m + start, flat % m], 1), at)
    p, q = (units.gather(1, at[:, i : i + 1])[:, 0] for i in (0, 1))
    return p, q, best
