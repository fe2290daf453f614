"""Square: random search over square windows of the image, by values of the objective alone."""

from dataclasses import dataclass

import torch
from torch import Tensor

from stochade.attacks import patches
from stochade.attacks.ball import like
from stochade.attacks.base import Attack, Attempt, Task
from stochade.attacks.gradients import _objective, _whole
from stochade.attacks.ledger import LINES, Ledger
from stochade.attacks.objectives import Objective, cross_entropy, margin
from stochade.attacks.threats import L1, L2, Ball, Linf, Threat
from stochade.errors import BudgetError
from stochade.randomness import Stream

STAGES = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # of 10,000 queries; p halves after each
REFRESH = 10  # queries after which every incumbent of a random model is drawn again


@dataclass(frozen=True)
class Square(Attack):
    """Square attack (Andriushchenko et al. 2020): a window of the best point so far gets new values, and the change
    stays if the mean objective rises. Needs no gradient, so it sees through shattered and zero gradients.

    Under linf a window's channels go to + or - eps each (start: vertical stripes); under l2 and l1 (Croce and Hein
    2021) the mass of a second window moves into a pyramid of two signs. The window's area is p of the image and
    shrinks by the schedule of the authors' code, stretched to `queries`. Each example has windows of its own and
    keeps them whatever else is in the batch. Unlike that code, a window may touch the last row and column, need not
    be square where the image is not, and never proposes what is there already.

    On random models every point is averaged over `draws` forwards. A change that wins against the incumbent has to
    win again on fresh draws; and the incumbent, drawn again whenever it is challenged and every `REFRESH` queries,
    carries the mean of all its draws, so that no point lives on a lucky one. Their authors use 1000 queries of 20
    draws.

    The original image is looked at first; what is fooled beyond doubt leaves. The trace has the incumbents.

    Args:
        threat: Linf, L2 or L1.
        queries: points tried per restart, each `draws` forwards.
        p: share of the image that the first windows cover.
        objective: what is maximised; None: the margin, and with targets the cross entropy.
        draws: forwards per point where the model is random (one where it is not).
        restarts: independent runs; the highest mean objective wins.

    Raises:
        BudgetError: another threat, or numbers that make no sense.
    """

    threat: Threat
    queries: int = 5000
    p: float = 0.8
    objective: Objective | None = None
    draws: int = 1
    restarts: int = 1

    def __post_init__(self):
        if not isinstance(self.threat, Linf | L2 | L1):
            raise BudgetError("Linf, L2 or L1 for Square", repr(self.threat), "for L0 try SigmaZero")
        for name in ("queries", "draws", "restarts"):
            _whole(getattr(self, name), name)
        if not (isinstance(self.p, int | float) and 0 < self.p <= 1):
            raise BudgetError("p in (0, 1]", repr(self.p), "0.8 is usual")

    def cost(self) -> tuple[int, int]:
        """Random models: a candidate at most twice and its incumbent once more."""
        once = 1 + self.restarts * self.queries
        return (once if self.draws == 1 else self.draws * (3 * once + self.restarts)), 0

    def side(self, query: int) -> float:
        """The share of the image that the window of this query covers."""
        done = int(query / self.queries * 10_000)
        return self.p / 2 ** sum(done > stage for stage in STAGES)

    @torch.no_grad()
    def search(self, task: Task) -> Attempt:
        ledger = Ledger(task, self.draws)
        value, logits = self._look(ledger, task.x, ledger.open)
        if ledger.watch.deterministic:
            ledger.keep(ledger.open, task.x, value)
        leave = ledger.leaving(task.x, logits, ledger.open, self.queries * ledger.draws)
        if leave is not None:
            ledger.settle(ledger.open[leave], task.x[leave], value[leave])
        for restart in range(self.restarts):
            if len(ledger.open):
                self._run(ledger, restart)
        return ledger.attempt()

    def _look(self, ledger: Ledger, x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Mean objective [n] and logits [draws, n, K]."""
        y, targets = ledger.goals(rows)
        objective = self.objective or (margin if targets is None else cross_entropy)
        logits = ledger.logits(x, rows)
        return torch.stack([_objective(objective, z, y, targets) for z in logits]).mean(0).to(x.dtype), logits

    def _run(self, ledger: Ledger, restart: int) -> None:
        rows, task = ledger.open, ledger.task
        stream, x0 = ledger.stream.subset(rows).fork("restart", restart), ledger.images(rows)
        threat: Ball = task.threat.rows(rows)
        if task.start is not None and restart == 0:
            x = threat.project(task.start[rows], x0)
        else:
            x = patches.start(threat, x0, stream)
        value, logits = self._look(ledger, x, rows)
        state = _State(rows, stream, threat, x0, x, value, torch.full_like(value, ledger.draws))
        self._leave(ledger, state, torch.arange(len(rows), device=rows.device), x, logits, value, self.queries - 1)
        for query in range(1, self.queries):
            if not len(state.rows):
                return
            new = patches.propose(state.threat, state.x, state.x0, state.stream, self.side(query - 1))
            value, logits = self._look(ledger, new, state.rows)
            tried, left = torch.arange(len(state.rows), device=rows.device), self.queries - query - 1
            if ledger.watch.deterministic:
                better = value > state.value
                state.take(better, new, value, 1)
            else:
                tried, new, value, logits = self._contest(ledger, state, new, value, query % REFRESH == 0)
            self._leave(ledger, state, tried, new, logits, value, left)
            if query % max(1, self.queries // LINES) == 0 and len(state.rows):
                ledger.note(state.rows, state.value, state.threat.distance(state.x, state.x0))
        if self.restarts > 1 and not ledger.watch.deterministic:
            state.value, _ = self._look(ledger, state.x, state.rows)
        if ledger.watch.deterministic or self.restarts > 1:
            ledger.keep(state.rows, state.x, state.value)
        else:
            ledger.replace(state.rows, state.x, state.value)

    def _contest(self, ledger: Ledger, state: "_State", new: Tensor, value: Tensor, everyone: bool):
        """Incumbents against candidates of a random model, on fresh draws.

        Returns:
            (which rows of the state were drawn again, the points that now stand there, their means, their logits).
        """
        challenged = (value > state.value).nonzero()[:, 0]
        drawn = torch.arange(len(value), device=value.device) if everyone else challenged
        if not len(drawn):
            return drawn, new[drawn], value[drawn], torch.empty(0)
        own, logits = self._look(ledger, state.x[drawn], state.rows[drawn])
        state.again(drawn, own, len(logits))
        still = (value[drawn] > state.value[drawn]).nonzero()[:, 0]
        if len(still):
            index = drawn[still]
            second, fresh = self._look(ledger, new[index], state.rows[index])
            wins = second > state.value[index]
            chosen = torch.zeros_like(value, dtype=torch.bool)
            chosen[index] = wins
            means = value.clone()
            means[index] = second
            state.take(chosen, new, means, len(fresh))
            logits = logits.clone()
            logits[:, still[wins]] = fresh[:, wins]
        return drawn, state.x[drawn], state.value[drawn], logits

    def _leave(self, ledger: Ledger, state: "_State", tried: Tensor, x: Tensor, logits, value, left: int) -> None:
        """Rows that are fooled beyond doubt at the points x hand these back."""
        leave = ledger.leaving(x, logits, state.rows[tried], left * ledger.draws) if len(tried) else None
        if leave is not None:
            ledger.settle(state.rows[tried[leave]], x[leave], value[leave])
            stay = torch.ones_like(state.rows, dtype=torch.bool)
            stay[tried[leave]] = False
            state.shrink(stay)


@dataclass
class _State:
    """The examples that are still attacked: rows [n] of the batch, the best point x of each so far (the incumbent),
    its mean objective and the draws that this mean rests on."""

    rows: Tensor
    stream: Stream
    threat: Ball
    x0: Tensor
    x: Tensor
    value: Tensor
    weight: Tensor

    def take(self, better: Tensor, x: Tensor, value: Tensor, draws: int) -> None:
        """New incumbents."""
        self.x = torch.where(like(better, x), x, self.x)
        self.value = torch.where(better, value, self.value)
        self.weight = self.weight.masked_fill(better, draws)

    def again(self, index: Tensor, value: Tensor, draws: int) -> None:
        """Fresh draws at the incumbents."""
        weight = self.weight[index]
        self.value[index] = (self.value[index] * weight + value * draws) / (weight + draws)
        self.weight[index] = weight + draws

    def shrink(self, stay: Tensor) -> None:
        self.rows, self.stream, self.threat = self.rows[stay], self.stream.subset(stay), self.threat.rows(stay)
        self.x0, self.x, self.value, self.weight = (t[stay] for t in (self.x0, self.x, self.value, self.weight))
