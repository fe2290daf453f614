"""How auto-PGD moves: momentum, step sizes that halve by themselves, and the sparse steps of the l1 ball.

An `Ascent` is the state of one run on the rows that are still in it: `saw` takes the objective and its gradient at
`x`, `move` makes the next `x`. Croce and Hein 2020 (linf, l2) and 2021 (l1). Rows never mix.
"""

import torch
from torch import Tensor

from stochade.attacks.ball import Ball, like, rows_of
from stochade.randomness import Stream

MOMENTUM = 0.75  # weight of the gradient's step beside that of the last change (Croce and Hein 2020, equation 3)


def checkpoints(steps: int) -> frozenset[int]:
    """Moves after which the step size is judged: ceil(p_j steps) for p_1 = 0.22 and p_{j+1} = p_j +
    max(p_j - p_{j-1} - 0.03, 0.06), reckoned in whole hundredths."""
    before, now, marks = 0, 22, []
    while now <= 100:
        marks.append(-(-now * steps // 100))
        before, now = now, now + max(now - before - 3, 6)
    return frozenset(marks)


class Ascent:
    """Steps of linf and l2: they halve where too few of them raised the objective (fewer than `rho` of those since
    the last checkpoint), or where neither the step nor the best value changed between two checkpoints; the run then
    goes on from its best point.

    Args:
        threat: for these rows. x0, x: originals and the point to begin at, inside the threat.
        steps: moves to come. rho: see above. fresh: whether x is a random start and not one worth keeping.

    Attributes:
        x: where the objective is wanted next. best, best_value: the point of highest objective, and it.
    """

    def __init__(self, threat: Ball, x0: Tensor, x: Tensor, steps: int, rho: float, fresh: bool):
        self.threat, self.x0, self.x, self.old = threat, x0, x, x.clone()
        self.best, self.best_gradient = x.clone(), torch.zeros_like(x)
        self.marks, self.rho, self.moves, self.mark = checkpoints(steps), rho, 0, 0
        self.value = torch.full_like(x.flatten(1)[:, 0], -torch.inf)
        self.best_value, self.mark_value = self.value.clone(), self.value.clone()
        self.rises = torch.zeros_like(self.value)
        self.halved = torch.zeros_like(self.value, dtype=torch.bool)
        self.size = (_radius(threat, x0) * self.reach).expand_as(self.value)
        self.prepare(steps, fresh)

    reach = 2.0  # the first step in units of the budget

    @staticmethod
    def begin(threat: Ball, x0: Tensor, stream: Stream) -> Tensor:
        """A random point inside the threat to begin at."""
        return threat.start(x0, stream)

    def prepare(self, steps: int, fresh: bool) -> None:
        """What a norm needs besides."""

    def saw(self, value: Tensor, gradient: Tensor) -> Tensor:
        """Take note of objective [n] and gradient at x; returns the gradient to move along."""
        better = like((value > self.best_value).to(self.x.dtype), self.x)
        self.best.lerp_(self.x, better)  # weights 0 and 1 are exact, and several times as fast as torch.where
        self.best_gradient.lerp_(gradient, better)
        self.best_value = torch.maximum(value, self.best_value)
        if self.moves:
            self.rises += value > self.value
        else:
            self.mark_value = self.best_value
        self.value = value
        return self.judged(gradient) if self.moves in self.marks else gradient

    def judged(self, gradient: Tensor) -> Tensor:
        """A checkpoint: halve, and go back to the best point where steps were halved."""
        few = self.rises < self.rho * (self.moves - self.mark)
        stuck = ~self.halved & (self.best_value <= self.mark_value)
        self.halved = few | stuck
        self.size = torch.where(self.halved, self.size / 2, self.size)
        self.mark, self.mark_value, self.rises = self.moves, self.best_value, torch.zeros_like(self.value)
        return self.back(self.halved, gradient)

    def back(self, which: Tensor, gradient: Tensor) -> Tensor:
        """Put these rows where their objective was highest."""
        self.value = torch.where(which, self.best_value, self.value)
        there = like(which.to(self.x.dtype), self.x)
        self.x.lerp_(self.best, there)
        return torch.lerp(gradient, self.best_gradient, there)

    def move(self, gradient: Tensor) -> None:
        """The next x: a step along the gradient, then the pull of the last change."""
        step = self.stepped(gradient)
        if self.moves:
            step = self.threat.project(self.old.lerp_(self.x, 2.0).lerp_(step, MOMENTUM), self.x0)
        self.x, self.old = step, self.x
        self.moves += 1

    def stepped(self, gradient: Tensor) -> Tensor:
        """x after a projected step along the gradient."""
        raise TypeError(f"{type(self).__name__} must define stepped")

    def keep(self, stay: Tensor) -> None:
        """Only these rows go on."""
        self.threat = self.threat.rows(stay)
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, value[stay])


def _radius(threat: Ball, x: Tensor) -> Tensor:
    """[n] or []: the budget, or what the box leaves of it."""
    widest = {"linf": 1.0, "l2": x[0].numel() ** 0.5, "l1": float(x[0].numel())}[threat.name]
    limit = threat.limit(x)
    return torch.as_tensor(limit, dtype=x.dtype, device=x.device).flatten().clamp(max=widest)


class SignAscent(Ascent):
    """linf. Nothing is allocated in a step: on small networks a pass over the images is a per cent of the cost."""

    def prepare(self, steps: int, fresh: bool) -> None:
        eps = like(_radius(self.threat, self.x0), self.x0)
        self.low, self.high = (self.x0 - eps).clamp_(min=0), (self.x0 + eps).clamp_(max=1)
        self.spare = torch.empty_like(self.x)

    def move(self, gradient: Tensor) -> None:
        step = torch.sign(gradient, out=self.spare).mul_(like(self.size, gradient)).add_(self.x)
        torch.clamp(step, self.low, self.high, out=step)
        if self.moves:
            mixed = self.old.lerp_(self.x, 2.0).lerp_(step, MOMENTUM)
            self.x, self.old, self.spare = torch.clamp(mixed, self.low, self.high, out=mixed), self.x, step
        else:
            self.x, self.old, self.spare = step, self.x, self.old
        self.moves += 1


class UnitAscent(Ascent):
    """l2: steps along the gradient's direction."""

    def stepped(self, gradient: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(rows_of(gradient), dim=1).clamp_min(1e-30)
        step = torch.addcmul(self.x, gradient, like(self.size / length, gradient))
        return self.threat.project(step, self.x0)


class SparseAscent(Ascent):
    """l1 (Croce and Hein 2021, algorithm 1): a step changes the coordinates of largest gradient alike, as many as two
    thirds of those that the best point changes. Every 4 % of the steps that number follows the best point; where it
    fell by 5 % the step is whole again and the run goes on from the best point, elsewhere it shrinks by 1.5, to a
    tenth of the budget at least. No momentum.

    Unlike theirs, a step leaves out coordinates that the box holds where they are, and the last one goes from the
    best point to the best corner of ball and box for its gradient, which is the worst case of a linear model.
    """

    reach = 1.0

    @staticmethod
    def begin(threat: Ball, x0: Tensor, stream: Stream) -> Tensor:
        """Standard normal noise, projected, as the authors' code has it: that leaves few values changed, where a
        point drawn uniformly from the ball spends the budget on all of them, and the ascent ends lower."""
        return threat.project(x0 + stream.normal(x0.shape[1:], x0.dtype), x0)

    def prepare(self, steps: int, fresh: bool) -> None:
        every = max(int(0.04 * steps), 1)
        self.marks, self.last = frozenset(range(every, steps + 1, every)), steps - 1
        self.whole = self.size.clone()
        count = self.x[0].numel()
        self.support = torch.full_like(self.value, count) if fresh else self._changed(self.x)
        self.density = torch.full_like(self.value, 0.2) if fresh else self.support / count / 1.5

    def _changed(self, x: Tensor) -> Tensor:
        return rows_of(x != self.x0).sum(1).to(x.dtype)

    def judged(self, gradient: Tensor) -> Tensor:
        support = self._changed(self.best)
        sparser = support < 0.95 * self.support
        self.size = torch.where(sparser, self.whole, torch.maximum(self.size / 1.5, self.whole / 10))
        self.support, self.density = support, support / self.x[0].numel() / 1.5
        return self.back(sparser, gradient)

    def move(self, gradient: Tensor) -> None:
        if self.moves == self.last:
            step = self.threat.move(self.best_gradient, self.best, self.x0)
        else:
            step = self.stepped(gradient)
        self.x, self.old = step, self.x
        self.moves += 1

    def stepped(self, gradient: Tensor) -> Tensor:
        g, x, count = rows_of(gradient), rows_of(self.x), gradient[0].numel()
        free = torch.clamp(x + g * torch.finfo(g.dtype).max, 0, 1).sub_(x).sign_()  # where it can go, -1, 0 or 1
        size = (g * free).abs_()
        least = ((1 - self.density) * count).long().clamp(0, count - 1)
        least = size.sort(1).values.gather(1, least[:, None])
        way = free.mul_(size >= least)
        per = self.size / way.abs().sum(1).clamp_min(1)
        return self.threat.project(torch.addcmul(self.x, way.view_as(gradient), like(per, gradient)), self.x0)


ASCENTS: dict[str, type[Ascent]] = {"linf": SignAscent, "l2": UnitAscent, "l1": SparseAscent}
