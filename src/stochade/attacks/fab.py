"""FAB: the fast adaptive boundary attack, a minimum-norm attack (Croce and Hein 2020b)."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from stochade.attacks.apgd import Towards, likely
from stochade.attacks.ball import Ball, like, rows_of
from stochade.attacks.base import Attack, Attempt, Task
from stochade.attacks.fooled import misses
from stochade.attacks.gradients import Backprop, Gradient, Pass, check_logits, check_whole
from stochade.attacks.hyperplane import onto_hyperplane
from stochade.attacks.ledger import Ledger
from stochade.attacks.minimal import ROUNDS, Book, check_norm, within
from stochade.attacks.threats import Threat
from stochade.attacks.tiles import folded, groups, tiled
from stochade.errors import BudgetError, GradientError
from stochade.randomness import Stream


@dataclass(frozen=True)
class FAB(Attack):
    """The smallest change that is misclassified, in linf, l2 or l1. Every step projects the point and the original
    onto the linearised decision boundary inside the box, and goes to a mixture of the two, a little beyond; from a
    misclassified point it goes back towards the original first.

    The authors' code looks at every point with a forward, and takes the gradient behind it if it is misclassified.
    Here the gradient pass that sees a misclassified point also linearises there, which saves a forward per step and
    finds distances as small.

    Misclassified means P(correct) <= 1/2, by a vote on random models; the boundary is that of the mean logits over
    the draws of `gradient`. See `Book`. The last finds are brought closer along the line to their originals.

    Args:
        threat: Linf, L2 or L1. Its budget only decides what is handed back: with eps=inf every find.
        steps: gradients per run.
        targets: one run towards each of that many classes, the most likely on the clean image first; None: one run
            towards whatever class is nearest, at one backward per class and step. Targets given by the caller are
            the only class.
        restarts: runs per class; from the second on, from a random point at half the distance found so far.
        alpha_max: most weight of the original's projection. eta: length of a step in distances to the boundary.
        beta: what is left of the change of a misclassified point.
        gradient: how the difference of two logits is differentiated. votes: forwards of a vote on random models.
        drop_fooled: examples with a find inside the threat are done. For suites, where a smaller one buys nothing.

    Raises:
        BudgetError: another norm, or numbers that make no sense.
    """

    threat: Threat
    steps: int = 100
    targets: int | None = 9
    restarts: int = 1
    alpha_max: float = 0.1
    eta: float = 1.05
    beta: float = 0.9
    gradient: Gradient = field(default_factory=Backprop)
    votes: int = 20
    drop_fooled: bool = False

    minimal = True

    def __post_init__(self):
        check_norm(self.threat, ("l1", "l2", "linf"), "FAB")
        for name in ("steps", "restarts", "votes"):
            check_whole(getattr(self, name), name)
        if self.targets is not None:
            check_whole(self.targets, "targets")
        for name, low, high in (("alpha_max", 0, 1), ("eta", 1, 10), ("beta", 0, 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
                raise BudgetError(f"{name} in [{low}, {high}]", repr(value), "0.1, 1.05 and 0.9 are usual")
        if self.targets is None and not isinstance(self.gradient, Backprop):
            raise BudgetError("Backprop for the nearest class", repr(self.gradient), "pass a number of targets")

    def cost(self) -> tuple[int, int]:
        runs = self.restarts * (self.targets or 1)
        per_class = 1 if self.targets is not None else 10
        look = (1 + runs + 2 * ROUNDS) * self.votes
        steps = runs * self.steps
        return steps * self.gradient.forwards + look, steps * self.gradient.backwards * per_class

    def search(self, task: Task) -> Attempt:
        runs = self.restarts * (self.targets or 1)
        book = Book(task, self.votes, steps=runs)
        rows, start = book.begin()
        if len(rows):
            self._all_runs(book, rows, start)
        book.tighten()
        return book.attempt()

    def _all_runs(self, book: Book, rows: Tensor, start: Tensor) -> None:
        """Every class once, and again for every restart."""
        task, ledger = book.task, book.ledger
        clean = ledger.logits(ledger.images(rows), rows).mean(0)
        classes = likely(clean, *ledger.goals(rows), self.targets or 1)
        for restart in range(self.restarts):
            limit = within(book.threat, book.best)
            radius = torch.minimum(book.best, limit)  # of the random starts of this round, whatever class comes first
            for group in groups(classes.shape[1], len(rows)):
                own = task.stream.subset(rows)
                streams = [own.fork("class", number, "restart", restart) for number in group]
                tiles = Book(tiled(task, rows, streams), self.votes, steps=self.steps + 1)
                x = start.repeat(len(group), *(1,) * (start.dim() - 1))
                if restart:
                    x = _random_start(tiles.threat, radius[rows].repeat(len(group)), tiles.x0, tiles.task.stream)
                goals = classes[:, group.start : group.stop].T.flatten()
                self._run(tiles, x, None if self.targets is None and task.targets is None else goals, len(group))
                self._write(book, rows, tiles, len(group))
                if self.drop_fooled:
                    stay = book.best[rows] > limit[rows]
                    rows, classes, start = rows[stay], classes[stay], start[stay]
                if not len(rows):
                    return

    def _write(self, book: Book, rows: Tensor, tiles: Book, count: int) -> None:
        """The best find of each example out of its tiles: the first inside the threat where that is enough, or else
        the smallest."""
        best = tiles.best.view(count, -1)
        pick, inside = best.argmin(0), self._inside(tiles).view(count, -1)
        if self.drop_fooled:
            pick = torch.where(inside.any(0), inside.int().argmax(0), pick)
        part = folded(tiles.ledger.attempt(tiles.best), pick)
        found_at = book.ledger.join(rows, part)
        closer = part.distance < book.best[rows]
        index = rows[closer]
        book.ledger.replace(index, part.inputs[closer], part.value[closer])
        book.best[index], book.ledger.found_at[index] = part.distance[closer], found_at[closer]

    def _inside(self, book: Book) -> Tensor:
        """[N] who has a find inside the threat."""
        return book.best <= within(book.threat, book.best)

    def _run(self, book: Book, x: Tensor, goals: Tensor | None, tiles: int) -> None:
        """All steps of one run from x. goals: [N] classes, None for the nearest."""
        ledger, threat, stream = book.ledger, book.threat, book.task.stream
        rows, x0 = ledger.open, book.x0
        for _ in range(self.steps):
            if goals is None:
                result = self._nearest(ledger, x, rows)
            else:
                result = ledger.gradient(self.gradient, x, rows, Towards(lead, goals), stream)
            crossed = self._offer(book, rows, x, result)
            if self.drop_fooled:  # a find inside the threat ends the run, and those towards less likely classes
                done = self._inside(book).view(tiles, -1).cumsum(0).flatten()[rows] > 0
                if bool(done.any()):
                    stay = ~done
                    rows, x, x0, crossed = rows[stay], x[stay], x0[stay], crossed[stay]
                    result = Pass(result.value[stay], result.gradient[stay], result.logits[:, stay])
                    goals, stream = None if goals is None else goals[stay], stream.subset(stay)
                    if not len(rows):
                        return
            x = self._moved(threat.name, x, x0, crossed, result)
        _, logits = ledger.see(x, rows, lambda z, y, targets=None: z[:, 0], 1, self.gradient)
        self._offer(book, rows, x, Pass(logits[0, :, 0], x, logits))

    def _offer(self, book: Book, rows: Tensor, x: Tensor, result: Pass) -> Tensor:
        """Write down finds. Returns [n] whether the draws of the pass lie beyond the boundary; closer to it than what
        counts as a find, or an example would sit there for good."""
        relaxed = getattr(self.gradient, "relaxed", None) is not None
        book.offer(rows, x, book.distance(x, rows), result, relaxed)
        missed = misses(result.logits, *book.ledger.goals(rows))
        return 2 * missed.sum(0) >= len(missed)

    def _moved(self, norm: str, x: Tensor, x0: Tensor, crossed: Tensor, result: Pass) -> Tensor:
        """The next point: f(x) + <slope, z - x> = 0 is where the boundary is taken to be."""
        back = torch.lerp(x0, x, like(1 - (1 - self.beta) * crossed.to(x.dtype), x))
        slope = result.gradient
        here, there = (
            onto_hyperplane(norm, p, slope, -result.value - rows_of(slope * (p - x)).sum(1)) for p in (back, x0)
        )
        near, far = (_length(norm, change).clamp_min(1e-8) for change in (here, there))
        weight = like((near / (near + far)).clamp(max=self.alpha_max), x)
        return torch.lerp(back.add_(here, alpha=self.eta), torch.add(x0, there, alpha=self.eta), weight).clamp_(0, 1)

    def _nearest(self, ledger: Ledger, x: Tensor, rows: Tensor) -> Pass:
        """The lead of the class whose linearised boundary is nearest, over the mean of the draws."""
        assert isinstance(self.gradient, Backprop)
        seen, jacobian = [], torch.zeros(())
        with self.gradient.swapped(ledger.model), ledger.watch:
            for _ in range(self.gradient.draws):
                logits, rows_of_jacobian = _jacobian(ledger.model, x)
                seen.append(logits)
                jacobian = jacobian + rows_of_jacobian
        logits = torch.stack(seen)
        ledger.forwards[rows] += len(seen)
        ledger.backwards[rows] += len(seen) * logits.shape[-1]
        y = ledger.y[rows]
        pick = torch.arange(len(rows), device=x.device)
        mean, jacobian = logits.mean(0), jacobian / len(seen)
        slopes = jacobian - jacobian[y, pick]
        leads = mean - mean[pick, y][:, None]
        ways = [_way(ledger.threat.name, x, slope, -gap) for slope, gap in zip(slopes, leads.unbind(1), strict=True)]
        nearest = torch.stack(ways, 1).scatter(1, y[:, None], torch.inf).argmin(1)
        return Pass(leads[pick, nearest], slopes[nearest, pick], logits)


def _random_start(threat: Ball, radius: Tensor, x0: Tensor, stream: Stream) -> Tensor:
    """Within half the distance found so far, or half the budget where that is smaller."""
    usual = {"linf": 0.3, "l2": 1.0, "l1": 5.0}[threat.name]  # where neither says anything
    return threat.for_each(torch.where(torch.isfinite(radius), radius, usual) / 2).start(x0, stream)


def lead(logits: Tensor, y: Tensor, targets: Tensor) -> Tensor:
    """z_t - z_y: positive where the target is ahead of the true class."""
    return logits.gather(1, targets[:, None])[:, 0] - logits.gather(1, y[:, None])[:, 0]


def _way(norm: str, x: Tensor, slope: Tensor, gap: Tensor) -> Tensor:
    """[n] the length of the shortest change inside the box that gains `gap` along `slope`; where there is none, the
    length of the longest change there is and more, the more the further it misses."""
    change = onto_hyperplane(norm, x, slope, gap)
    short = (gap.abs() - rows_of(slope * change).sum(1).abs()).clamp_min(0)
    return _length(norm, change) + torch.where(short > 1e-3 * gap.abs(), x[0].numel() * (1 + short), 0)


def _length(norm: str, change: Tensor) -> Tensor:
    order = {"linf": torch.inf, "l2": 2.0, "l1": 1.0}[norm]
    return torch.linalg.vector_norm(rows_of(change), ord=order, dim=1)


@torch.enable_grad()
def _jacobian(model, x: Tensor) -> tuple[Tensor, Tensor]:
    """Logits [n, K] of one draw and their derivatives [K, n, ...], a backward for each class."""
    leaf = x.detach().requires_grad_()
    logits = check_logits(model(leaf), len(x))
    if not logits.requires_grad:
        raise GradientError(
            "logits that depend on the images by autograd", "a graph that never reaches them",
            "declare a surrogate backward (nn.Discrete), or attack with Square",
        )  # fmt: skip
    parts = [torch.autograd.grad(z.sum(), leaf, retain_graph=True)[0] for z in logits.unbind(1)]
    return logits.detach(), torch.stack(parts).nan_to_num_(nan=0.0, posinf=1e30, neginf=-1e30)
