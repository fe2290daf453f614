"""HopSkipJump: a minimum-norm attack that sees nothing but decisions (Chen, Jordan and Wainwright 2020)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from stochade.attacks.ball import like, rows_of
from stochade.attacks.base import Attack, Attempt, Task
from stochade.attacks.fooled import misses
from stochade.attacks.gradients import TILE, check_whole
from stochade.attacks.ledger import Ledger
from stochade.attacks.minimal import ROUNDS, Book, check_norm
from stochade.attacks.threats import Threat
from stochade.randomness import Stream

TRIES = 50  # random images among which a first adversarial one is looked for
HALVINGS = 20  # of a step that does not stay adversarial
NOISY = 1.0  # least width of an estimate on random models, as a share of the distance
FIRST = 0.1  # width of the first estimate, in units of images


@dataclass(frozen=True)
class HopSkipJump(Attack):
    """Walks along the decision boundary: a bisection to the boundary, an estimate of its normal from decisions at
    random points around, a step along it that stays adversarial, and again. No logit and no gradient is used, so
    nothing that a defence does to either is in its way.

    Decisions on random models: where one decision counts (bisection, step sizes, what is written down) it is the
    majority of `votes` forwards; the normal is a mean over many decisions anyway, and takes one forward for each,
    since more directions say more than more votes. They are drawn as wide as the distance there: at the widths of the
    paper, a few hundredths of it, noise decides (measured: 1.7 times the exact distance on a noisy linear model,
    against 1.05).

    The first adversarial input is the warm start (`start=`) where that is adversarial, else the first of 50 random
    images that is. Targeted, random images rarely are of the target class: hand in a start of that class. Without
    any, the example fails: distance inf, the original image.

    Args:
        threat: L2 or Linf. Its budget only decides what is handed back: with eps=inf every find.
        steps: estimates of the normal.
        evaluations: decisions in the first estimate; the t-th takes evaluations * sqrt(t).
        most: decisions in an estimate at most.
        votes: forwards of one decision on random models.

    Raises:
        BudgetError: another norm, or numbers that make no sense.
    """

    threat: Threat
    steps: int = 40
    evaluations: int = 100
    most: int = 10_000
    votes: int = 20

    minimal = True
    probabilities_allowed = True

    def __post_init__(self):
        check_norm(self.threat, ("linf", "l2"), "HopSkipJump")
        for name in ("steps", "evaluations", "most", "votes"):
            check_whole(getattr(self, name), name)

    def count(self, step: int) -> int:
        """Decisions of the estimate in this step, counted from 1."""
        return min(self.most, round(self.evaluations * math.sqrt(step)))

    def cost(self) -> tuple[int, int]:
        """On random models; the bisections are reckoned at 20 decisions each."""
        estimates = sum(self.count(step) for step in range(1, self.steps + 1))
        return estimates + self.votes * (TRIES + (HALVINGS + 21) * self.steps + 21 + 2 * ROUNDS), 0

    @torch.no_grad()
    def search(self, task: Task) -> Attempt:
        book = Book(task, self.votes, steps=self.steps)
        rows, x = book.begin()
        found = torch.isfinite(book.best[rows])
        x, found = self._first(book, rows, x, found, task.stream.subset(rows).fork("first"))
        rows, x = rows[found], x[found]
        if len(rows):
            self._walk(book, rows, x, task.stream.subset(rows))
        book.tighten()
        return book.attempt()

    def _first(self, book: Book, rows: Tensor, x: Tensor, found: Tensor, stream: Stream) -> tuple[Tensor, Tensor]:
        """A first adversarial input for every example that has none, among random images."""
        for _ in range(TRIES):
            left = (~found).nonzero()[:, 0]
            if not len(left):
                break
            tried = stream.uniform(x.shape[1:], x.dtype)[left]
            good = book.judge(tried, rows[left])
            x[left[good]] = tried[good]
            found[left[good]] = True
        return x, found

    def _walk(self, book: Book, rows: Tensor, x: Tensor, stream: Stream) -> None:
        ledger, linf = book.ledger, book.threat.name == "linf"
        pixels = x[0].numel()
        root = pixels if linf else math.sqrt(pixels)
        finest = 1 / (pixels * root)  # of the bisection, as a share of the distance
        unknown = torch.full_like(x.flatten(1)[:, 0], torch.nan)
        x = self._boundary(book, rows, x, finest)
        for step in range(1, self.steps + 1):
            distance = book.distance(x, rows)
            ledger.note(rows, unknown, distance)
            width = torch.full_like(distance, FIRST) if step == 1 else distance * finest * root
            if not ledger.watch.deterministic:  # what noise decides at so small a width says nothing of the boundary
                width = torch.maximum(width, NOISY * distance)
            normal = self._normal(ledger, rows, x, width.clamp_min(1e-6), self.count(step), stream, linf)
            x = self._stepped(book, rows, x, normal, distance / math.sqrt(step))
            x = self._boundary(book, rows, x, finest)
            book.look(rows, x)

    def _boundary(self, book: Book, rows: Tensor, x: Tensor, finest: float) -> Tensor:
        """The adversarial end of a bisection between the original and x: along the line, or for linf by the box
        around the original that x is clipped to."""
        x0, low = book.ledger.images(rows), torch.zeros_like(x.flatten(1)[:, 0])
        high = torch.ones_like(low)
        reach = book.distance(x, rows)
        best = x
        for _ in range(math.ceil(math.log2(1 / max(finest, 1e-6)))):
            middle = (low + high) / 2
            tried = self._toward(book.threat.name, x0, x, middle, reach)
            good = book.judge(tried, rows)
            best = torch.where(like(good, x), tried, best)
            low, high = torch.where(good, low, middle), torch.where(good, middle, high)
        return best

    @staticmethod
    def _toward(norm: str, x0: Tensor, x: Tensor, share: Tensor, reach: Tensor) -> Tensor:
        """The input that keeps `share` [n] of the distance `reach` [n] of x."""
        if norm == "linf":
            bound = like(share * reach, x0)
            return torch.clamp(x, x0 - bound, x0 + bound)
        return torch.lerp(x0, x, like(share, x0))

    def _normal(
        self, ledger: Ledger, rows: Tensor, x: Tensor, width: Tensor, count: int, stream: Stream, linf: bool
    ) -> Tensor:
        """The direction into the adversarial side, estimated from `count` decisions at `width` [n] around x."""
        y, targets = ledger.goals(rows)
        n, done, axes = len(x), 0, tuple(range(1, x.dim()))
        total, weighted, votes = torch.zeros_like(x), torch.zeros_like(x), torch.zeros_like(width)
        per_call = max(1, TILE // n) if ledger.tiled else 1
        while done < count:
            p = min(per_call, count - done)
            shape = (p, *x.shape[1:])
            u = (2 * stream.uniform(shape, x.dtype) - 1) if linf else stream.normal(shape, x.dtype)
            u = u / torch.linalg.vector_norm(u, dim=tuple(a + 1 for a in axes), keepdim=True).clamp_min(1e-30)
            spread = width.view(n, *(1,) * x.dim())
            points = (x[:, None] + spread * u).clamp_(0, 1)
            u = (points - x[:, None]) / spread  # what the box left of the direction
            with ledger.watch:
                logits = ledger.model(points.transpose(0, 1).flatten(0, 1))
            goal = None if targets is None else targets.repeat(p)
            sign = 2 * misses(logits[None], y.repeat(p), goal)[0].view(p, n).T.to(x.dtype) - 1  # [n, p]
            total += u.sum(1)
            weighted += torch.einsum("np,np...->n...", sign, u)
            votes += sign.sum(1)
            done += p
        ledger.forwards[rows] += count
        mean = votes / count  # decisions that all agree carry no contrast: then the mean direction itself is taken
        agreed = mean.abs() >= 1
        direction = torch.where(like(agreed, x), weighted, weighted - like(mean, x) * total)
        if linf:
            return direction.sign()
        return direction / like(rows_of(direction).norm(dim=1).clamp_min(1e-30), x)

    def _stepped(self, book: Book, rows: Tensor, x: Tensor, normal: Tensor, size: Tensor) -> Tensor:
        """x after the longest of size, size / 2, size / 4, ... along the normal that stays adversarial; x where none
        does."""
        out, left = x.clone(), torch.arange(len(x), device=x.device)
        for _ in range(HALVINGS):
            tried = (x[left] + like(size[left], x) * normal[left]).clamp_(0, 1)
            good = book.judge(tried, rows[left])
            out[left[good]] = tried[good]
            left = left[~good]
            if not len(left):
                break
            size = size / 2
        return out
