"""Square: random search over square windows of the image, by values of the objective alone."""

from dataclasses import dataclass

import torch
from torch import Tensor

from stochade.attacks import patches
from stochade.attacks.base import Attack, Attempt, Task
from stochade.attacks.fooled import misses
from stochade.attacks.gradients import check_whole, objective_values
from stochade.attacks.ledger import LINES, Ledger
from stochade.attacks.objectives import Objective, cross_entropy, margin
from stochade.attacks.threats import L1, L2, Ball, Linf, Threat
from stochade.errors import BudgetError
from stochade.randomness import Stream

STAGES = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # of 10,000 queries; p halves after each
LOOKS = 8  # at a candidate that challenges the incumbent of a random model
AHEAD = 64  # images in a forward up to which a deterministic model is asked several queries of an example at once
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

    On random models every point is averaged over `draws` forwards (the authors: 1000 queries of 20 draws). A change
    that looks better is looked at again, until it falls behind on fresh draws or wins; and the best point, drawn
    again whenever it is challenged and every `REFRESH` queries, carries the mean of all its draws, so that none lives
    on a lucky one. All this costs about as many draws again.

    Where few images are left and the model is deterministic, several queries share one forward, each as if the ones
    before had changed nothing. From the first that does the answers are thrown away, but counted: the points are the
    same as one by one, and `queries` of them are used.

    The original image is looked at first; what is fooled beyond doubt leaves. The trace has the best points.

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
            check_whole(getattr(self, name), name)
        if not (isinstance(self.p, int | float) and 0 < self.p <= 1):
            raise BudgetError("p in (0, 1]", repr(self.p), "0.8 is usual")

    def cost(self) -> tuple[int, int]:
        """Random models: about this much, since every second draw or so is spent on a contest. Deterministic ones:
        what is used; where few images are left about two thirds as much again is thrown away."""
        return (1 + self.restarts * self.queries) * self.draws * (1 if self.draws == 1 else 2), 0

    def side(self, query: int) -> float:
        """The share of the image that the window of this query covers."""
        done = int(query / self.queries * 10_000)
        return self.p / 2 ** sum(done > stage for stage in STAGES)

    @torch.no_grad()
    def search(self, task: Task) -> Attempt:
        ledger = Ledger(task, self.draws)
        values, logits = self._look(ledger, task.x, ledger.open)
        value = values.mean(0)
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
        """Objective [draws, n] and logits [draws, n, K]."""
        y, targets = ledger.goals(rows)
        objective = self.objective or (margin if targets is None else cross_entropy)
        logits = ledger.logits(x, rows)
        return torch.stack([objective_values(objective, z, y, targets) for z in logits]).to(x.dtype), logits

    def _run(self, ledger: Ledger, restart: int) -> None:
        rows, task = ledger.open, ledger.task
        stream, x0 = ledger.stream.subset(rows).fork("restart", restart), ledger.images(rows)
        threat: Ball = task.threat.rows(rows)
        if task.start is not None and restart == 0:
            x = threat.project(task.start[rows], x0)
        else:
            x = patches.start(threat, x0, stream)
        values, logits = self._look(ledger, x, rows)
        value = values.mean(0)
        state = _State(rows, stream, threat, x0, x.clone(), value, torch.full_like(value, len(values)))
        self._leave(ledger, state, torch.arange(len(rows), device=rows.device), x, logits, value, self.queries - 1)
        query, ahead, pace = 1, 1, {}
        while query < self.queries and len(state.rows):
            share = self.side(query - 1)
            width = min(ahead, AHEAD // len(state.rows), self.queries - query)
            while width > 1 and self.side(query + width - 2) != share:
                width -= 1
            if width > 1 and share in pace and ledger.watch.deterministic and state.apart:
                used, quiet = self._look_ahead(ledger, state, query, width, pace[share])
                query, ahead = query + used, min(2 * ahead, AHEAD) if quiet else max(1, ahead // 2)
                continue
            before = state.stream.drawn
            new = patches.propose(state.threat, state.x, state.x0, state.stream, share)
            pace[share] = state.stream.drawn - before
            values, logits = self._look(ledger, new, state.rows)
            value = values.mean(0)
            if ledger.watch.deterministic:
                ahead = 1 if self._step(ledger, state, new, value, logits, query) else min(2 * ahead, AHEAD)
            else:
                tried, new, value, logits = self._contest(ledger, state, new, value, query % REFRESH == 0)
                self._leave(ledger, state, tried, new, logits, value, self.queries - query - 1)
                self._note(ledger, state, query)
            query += 1
        if not ledger.watch.deterministic and len(state.rows):  # what won has had luck
            state.value = self._look(ledger, state.x, state.rows)[0].mean(0)
        if ledger.watch.deterministic or self.restarts > 1:
            ledger.keep(state.rows, state.x, state.value)
        else:
            ledger.replace(state.rows, state.x, state.value)

    def _step(self, ledger: Ledger, state: "_State", new: Tensor, value: Tensor, logits: Tensor, query: int) -> bool:
        """One query of a deterministic model; whether any incumbent was replaced."""
        tried = torch.arange(len(state.rows), device=new.device)
        better = (value >= state.value).nonzero()[:, 0]  # ties too: discrete networks have plateaus
        state.take(better, new[better], value[better], 1)
        self._leave(ledger, state, tried, new, logits, value, self.queries - query - 1)
        self._note(ledger, state, query)
        return len(better) > 0

    def _note(self, ledger: Ledger, state: "_State", query: int) -> None:
        if query % max(1, self.queries // LINES) == 0 and len(state.rows):
            ledger.note(state.rows, state.value, state.threat.distance(state.x, state.x0))

    def _look_ahead(self, ledger: Ledger, state: "_State", query: int, width: int, pace: int) -> tuple[int, bool]:
        """Several queries in one forward, as if each but the first came after the ones before: they do, as long as
        nothing replaces an incumbent. The first time, and whenever the batch is longer than any before, a model of
        unknown scope is asked the last of them alone too: one whose answers depend on the rest of the batch is asked
        one by one from then on.

        Args:
            width: queries that are asked, all with windows of one size. pace: numbers that a proposal draws.

        Returns:
            (queries that are used, whether no incumbent was replaced).
        """
        n, draw = len(state.rows), state.stream.ahead(width, pace)
        index = torch.arange(n, device=state.rows.device).repeat(width)
        new = patches.propose(state.threat.rows(index), state.x[index], state.x0[index], draw, self.side(query - 1))
        values, logits = self._look(ledger, new, state.rows[index])
        if not ledger.tiled and len(new) > state.together:
            alone = ledger.logits(new[-n:], state.rows, 1)
            state.apart = torch.allclose(alone, logits[:, -n:], rtol=1e-3, atol=1e-5)
            state.together = len(new)
        if not (state.apart and ledger.watch.deterministic):  # the proposals are made again, one by one
            return 0, False
        value = values.mean(0).view(width, n)
        y, targets = ledger.goals(state.rows[index])
        stirred = (value >= state.value).any(1) | misses(logits, y, targets).all(0).view(width, n).any(1)
        used = int(stirred.nonzero()[0]) + 1 if bool(stirred.any()) else width
        state.stream.skip(used * pace)
        for quiet in range(query, query + used - 1):
            self._note(ledger, state, quiet)
        last = slice((used - 1) * n, used * n)
        changed = self._step(ledger, state, new[last], value[used - 1], logits[:, last], query + used - 1)
        return used, not changed

    def _contest(self, ledger: Ledger, state: "_State", new: Tensor, value: Tensor, everyone: bool):
        """Incumbents against candidates of a random model, on fresh draws: a candidate is looked at again until its
        mean is below the incumbent's, or above by two standard errors, or above after `LOOKS`.

        Returns:
            (which rows of the state were drawn again, the points that now stand there, their means, the logits of
            their last look).
        """
        challenged = value > state.value
        drawn = torch.ones_like(challenged).nonzero()[:, 0] if everyone else challenged.nonzero()[:, 0]
        if not len(drawn):
            return drawn, new[drawn], value[drawn], torch.empty(0)
        own, logits = self._look(ledger, state.x[drawn], state.rows[drawn])
        state.again(drawn, own)
        place = (value > state.value)[drawn].nonzero()[:, 0]  # of those still in the contest, among the drawn
        seen = own.new_empty(0, len(place))
        for look in range(LOOKS):
            if not len(place):
                break
            index = drawn[place]
            values, fresh = self._look(ledger, new[index], state.rows[index])
            seen = torch.cat([seen, values])
            gain = seen.mean(0) - state.value[index]
            error = (seen.var(0) * (1 / len(seen) + 1 / state.weight[index])).sqrt() if len(seen) > 4 else torch.inf
            wins = gain > (0 if look == LOOKS - 1 else 2 * error)
            state.take(index[wins], new[index[wins]], seen[:, wins].mean(0), len(seen))
            logits[:, place[wins]] = fresh[:, wins]
            on = (gain > 0) & ~wins
            place, seen = place[on], seen[:, on]
        return drawn, state.x[drawn], state.value[drawn], logits

    def _leave(self, ledger: Ledger, state: "_State", tried: Tensor, x: Tensor, logits, value, left: int) -> None:
        """Rows that are fooled beyond doubt at the points x hand these back. Of the draws seen, all of which must be
        misses, the test counts one: the others had a say in choosing the point."""
        y, targets = ledger.goals(state.rows[tried])
        sure = misses(logits, y, targets).all(0) if len(tried) else tried
        if not bool(sure.any()):
            return
        tried, x, value = tried[sure], x[sure], value[sure]
        leave = ledger.leaving(x, logits[-1:, sure], state.rows[tried], left * ledger.draws)
        if leave is not None:
            ledger.settle(state.rows[tried[leave]], x[leave], value[leave])
            stay = torch.ones_like(state.rows, dtype=torch.bool)
            stay[tried[leave]] = False
            state.shrink(stay)


@dataclass
class _State:
    """The examples that are still attacked: rows [n] of the batch, the best point x of each so far (the incumbent),
    its mean objective and the draws that this mean rests on; apart: whether the model's answer for an example is
    the same in any batch, as far as `together` images in one have shown."""

    rows: Tensor
    stream: Stream
    threat: Ball
    x0: Tensor
    x: Tensor
    value: Tensor
    weight: Tensor
    apart: bool = True
    together: int = 0

    def take(self, index: Tensor, x: Tensor, value: Tensor, draws: int) -> None:
        """New incumbents."""
        self.x[index], self.value[index], self.weight[index] = x, value, float(draws)

    def again(self, index: Tensor, values: Tensor) -> None:
        """Fresh draws [draws, n] at the incumbents."""
        weight = self.weight[index]
        self.value[index] = (self.value[index] * weight + values.sum(0)) / (weight + len(values))
        self.weight[index] = weight + len(values)

    def shrink(self, stay: Tensor) -> None:
        self.rows, self.stream, self.threat = self.rows[stay], self.stream.subset(stay), self.threat.rows(stay)
        self.x0, self.x, self.value, self.weight = (t[stay] for t in (self.x0, self.x, self.value, self.weight))
