"""What minimum-norm attacks share: the book of the smallest adversarial input of every example.

An input is adversarial when P(correct) <= 1/2 by vote (targeted: P(target) >= 1/2): one forward on deterministic
models, `votes` of them on random ones. A search over thousands of points near the boundary meets many that win a vote
by luck, so on random models the last word is a fresh vote along the way back to the original (`Book.tighten`).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from stochade.attacks.ball import Ball, like
from stochade.attacks.base import Attempt, Task
from stochade.attacks.fooled import misses
from stochade.attacks.gradients import Pass, objective_values
from stochade.attacks.ledger import Ledger
from stochade.attacks.objectives import margin
from stochade.errors import BudgetError

PROBES = 10  # of a search along a line
FIRM = 3  # votes together, at each probe of the last such search
ROUNDS = PROBES * FIRM  # votes that one search along a line casts at most
CLOSE = 1e-3  # of its length: as far as such a search looks
LINES = 256  # lines of a trace, whatever the number of steps
SAFE = 1e-5  # a margin below this part of the largest logit may turn with the size of the batch, by rounding
GAIN = 0.99  # on a random model a point is put to the vote when it is closer than the best by this factor


@dataclass(frozen=True)
class Clipped:
    """The margin, clipped at kappa: the objective of Carlini and Wagner 2017 (f6, negated). Its gradient is zero
    where a draw is misclassified by more than kappa."""

    kappa: float = 0.0

    def __call__(self, logits: Tensor, y: Tensor, targets: Tensor | None = None) -> Tensor:
        return margin(logits, y, targets).clamp(max=self.kappa)


def check_norm(threat: object, norms: tuple[str, ...], attack: str) -> None:
    """BudgetError unless the threat is a ball of one of these norms."""
    if not isinstance(threat, Ball) or threat.name not in norms:
        names = {"l0": "L0", "l1": "L1", "l2": "L2", "linf": "Linf"}
        raise BudgetError(
            f"a threat out of {', '.join(names[n] for n in norms)} for {attack}",
            repr(threat),
            f"every distance counts with {names[norms[-1]]}(float('inf'))",
        )


class Book:
    """The smallest adversarial input of every example so far, and the looks at the model that it rests on.

    Args:
        task: what the search was given. votes: forwards of a vote where the model is random.
        kappa: a draw counts as a win from this margin on.
        steps: how many times the search will call `offer`, for thinning the trace.

    Attributes:
        best: [N] distance of the smallest adversarial input, inf where there is none yet.
        clean: [N, K] mean logits on the originals, once the search has begun.
        ledger: counts passes and holds the inputs.
    """

    def __init__(self, task: Task, votes: int, kappa: float = 0.0, steps: int = 1):
        self.ledger, self.task, self.kappa = Ledger(task, votes), task, kappa
        self.threat, self.x0 = task.threat, task.x
        self.best = torch.full_like(self.ledger.value, torch.inf)
        self.clean, self._clean = task.x.new_empty(len(task.x), 0), self.ledger.value.clone()
        self._offers, self._every = 0, -(-steps // LINES)

    def distance(self, x: Tensor, rows: Tensor) -> Tensor:
        """[n] of x from the originals, in the units of the threat."""
        return self.threat.distance(x, self.ledger.images(rows))

    def wins(self, logits: Tensor, rows: Tensor) -> Tensor:
        """[draws, n] whether each draw is what the attacker wants, by at least kappa, and by more than rounding.
        Exact ties count as the model's argmax has them: spike counts tie often."""
        y, targets = self.ledger.goals(rows)
        margins = self._margins(logits, rows)
        least = (SAFE * logits.abs().amax(-1)).clamp_min(self.kappa)
        return misses(logits, y, targets) & ((margins >= least) | ((margins == 0) & (self.kappa == 0)))

    def judge(self, x: Tensor, rows: Tensor, draws: int | None = None) -> Tensor:
        """[n] whether x is adversarial by a fresh vote."""
        return self._vote(x, rows, draws)[0] >= 0.5

    def _vote(self, x: Tensor, rows: Tensor, draws: int | None = None) -> tuple[Tensor, Tensor]:
        """[n] the share of fresh draws that x wins, and [n] its mean margin."""
        logits = self.ledger.logits(x, rows, draws)
        return self.wins(logits, rows).to(x.dtype).mean(0), self._margins(logits, rows).mean(0).to(x.dtype)

    def _sure(self, x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The same by a vote, and where that is won on a random model by another, larger one: of many points that are
        put to the vote, some win it by luck, and the closer they are to the original the longer they stay."""
        share, value = self._vote(x, rows)
        won = share >= 0.5
        index = won.nonzero()[:, 0]
        if len(index) and not self.ledger.watch.deterministic:
            share, value[index] = self._vote(x[index], rows[index], FIRM * self.ledger.draws)
            won[index] = share >= 0.5
        return won, value

    def _margins(self, logits: Tensor, rows: Tensor) -> Tensor:
        y, targets = self.ledger.goals(rows)
        return torch.stack([objective_values(margin, z, y, targets) for z in logits])

    def begin(self) -> tuple[Tensor, Tensor]:
        """(rows, x): the examples that need a search and where to begin it. Those that are adversarial as they are
        have distance 0 and leave. A warm start that is adversarial is brought to the boundary first, and counts; one
        that is not is only a place to begin."""
        ledger = self.ledger
        rows = ledger.open
        logits = ledger.logits(self.x0, rows)
        value = self._margins(logits, rows).mean(0).to(self.x0.dtype)
        self.clean, self._clean, ledger.value = logits.mean(0), value, value.clone()
        ledger.found_at = ledger.passes.clone()
        done = _carried(self.wins(logits, rows))
        self.best[done] = 0
        ledger.settle(rows[done], self.x0[done])
        rows = rows[~done]
        if self.task.start is None or not len(rows):
            return rows, self.x0[rows]
        x = self.task.start[rows].clamp(0, 1)
        good = self.look(rows, x)
        self._along(rows[good], 0.5, self.ledger.watch.deterministic)
        x[good] = ledger.found[rows[good]]
        return rows, x

    def offer(self, rows: Tensor, x: Tensor, distance: Tensor, result: Pass, relaxed: bool = False) -> Tensor:
        """Write down what is adversarial and closer than before.

        Args:
            distance: [n] of x. result: the gradient pass at x.
            relaxed: whether the logits of the pass are not the model's, so that x needs forwards of its own.

        Returns:
            [n] whether the draws of the pass itself carry x, which on a random model is an estimate.
        """
        if self._offers % self._every == 0:
            self.ledger.note(rows, result.value, distance)
        self._offers += 1
        won = _carried(self.wins(result.logits, rows))
        best = self.best[rows]
        if self.ledger.watch.deterministic and not relaxed:
            closer = won & (distance < best)
        else:  # a relaxed forward may see no win where there is one, so it does not choose what is put to the vote
            closer = (distance < GAIN * best) & (won | relaxed)
            index = closer.nonzero()[:, 0]
            if len(index):
                closer[index] = self._sure(x[index], rows[index])[0]
        index = closer.nonzero()[:, 0]
        if len(index):
            self._write(rows[index], x[index], distance[index], result.value[index])
        return won

    def look(self, rows: Tensor, x: Tensor) -> Tensor:
        """[n] whether x is adversarial by a fresh vote; written down where it is, and closer than before."""
        (won, value), distance = self._sure(x, rows), self.distance(x, rows)
        index = (won & (distance < self.best[rows])).nonzero()[:, 0]
        self._write(rows[index], x[index], distance[index], value[index])
        return won

    def _write(self, rows: Tensor, x: Tensor, distance: Tensor, value: Tensor) -> None:
        self.ledger.replace(rows, x, value)
        self.best[rows] = distance

    def walk(self, rows: Tensor, x: Tensor) -> Tensor:
        """[n] whether there is an adversarial point on the line from the originals through x, or up to twice as far;
        the nearest to be found becomes the find of rows that have none."""
        self._write(rows, x, self.distance(x, rows), self.ledger.value[rows])
        self._along(rows, 0.5, False)
        return torch.isfinite(self.best[rows])

    def tighten(self, rows: Tensor | None = None) -> Tensor:
        """Move finds along the line to their originals: in, as far as they stay adversarial. On a random model, by
        fresh votes; where a find loses the first of them, it moves out until one is won.

        Args:
            rows: whose finds; None: everybody's.

        Returns:
            The rows whose finds were luck: they have none now, and a search has to find another.
        """
        found = torch.isfinite(self.best) & (self.best > 0)
        rows = found.nonzero()[:, 0] if rows is None else rows[found[rows]]
        ledger = self.ledger
        if len(rows) and ledger.watch.scope == "unknown" and ledger.watch.deterministic:
            x = ledger.found[rows]  # a generator of its own would show here
            ledger.watch.repeats(x, ledger.logits(x, rows, 1)[0])
        self._along(rows, 0.9, ledger.watch.deterministic)
        return rows[torch.isinf(self.best[rows])]

    def _along(self, rows: Tensor, shrink: float, sure: bool) -> None:
        """Bisection on the length of the change found.

        Args:
            shrink: the factor by which it shrinks until a probe fails. Under l0 it does not: nothing is gained.
            sure: whether the finds need no vote of their own.
        """
        x0, found, ledger = self.ledger.images(rows), self.ledger.found[rows], self.ledger
        change, value = found - x0, ledger.value[rows]
        draws = ledger.draws if ledger.watch.deterministic else FIRM * ledger.draws
        low = torch.zeros_like(self.best[rows])
        high = torch.full_like(low, 1.0 if sure else torch.inf)
        sparse, first = self.threat.name == "l0", torch.ones_like(low)
        for _ in range(PROBES):
            wide = (low < (1 - CLOSE) * high) if not sparse else torch.isinf(high)
            index = wide.nonzero()[:, 0]
            if not len(index):
                break
            a, b = low[index], high[index]
            scale = torch.where(
                torch.isinf(b),
                torch.where(a > 0, a + (a - 1).clamp_min(0.1), 1.0),
                torch.where(a > 0, (a + b) / 2, shrink * b),
            )
            x = (x0[index] + like(scale, x0) * change[index]).clamp_(0, 1)
            share, seen = self._vote(x, rows[index], draws)
            good = share >= 0.5
            first[index] = torch.where(scale == 1, share, first[index])
            high[index], low[index] = torch.where(good, scale, b), torch.where(good, a, scale)
            value[index] = torch.where(good, seen, value[index])
        lost = torch.isinf(high) & (first <= _clearly(draws))
        moved = torch.isfinite(high) & (high != 1)
        index = rows[moved]
        x = (x0[moved] + like(high[moved], x0) * change[moved]).clamp_(0, 1)
        ledger.found[index], self.best[index], ledger.value[rows] = x, self.distance(x, index), value
        ledger.found[rows[lost]], self.best[rows[lost]] = x0[lost], torch.inf

    def attempt(self) -> Attempt:
        """The smallest adversarial inputs, with the originals where there is none inside the budget."""
        outside = ~(self.best <= within(self.threat, self.best)) | torch.isinf(self.best)
        self.ledger.found[outside] = self.x0[outside]
        self.ledger.value[outside] = self._clean[outside]
        return self.ledger.attempt(self.best)


def _clearly(draws: int) -> float:
    """The share of a vote that says no at two standard errors; of few draws, only that none was won."""
    return max(0.0, 0.5 - 1 / draws**0.5)


def _carried(won: Tensor) -> Tensor:
    """[draws, n] -> [n]: at least half of the draws."""
    return 2 * won.sum(0) >= len(won)


def within(threat: Ball, distance: Tensor) -> Tensor:
    """[N] the budget of every example."""
    return torch.as_tensor(threat.limit(distance)).to(distance).expand_as(distance)
