"""Expectation over randomness with as many draws as each example needs: `Averaged`; and what gradients that are
built around other gradients share."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor

from stochade.attacks.gradients import TILE, Backprop, Gradient, Model, Pass, check_whole
from stochade.attacks.objectives import Objective
from stochade.errors import BudgetError
from stochade.nn.discrete import scope_of
from stochade.randomness import Stream, seed_for

_ODD = -7046029254386353131  # spreads the numbers of draws over the identities of their streams


def check_gradient(value: object, name: str = "inner") -> None:
    """BudgetError where `value` is no gradient."""
    counts = [getattr(value, part, None) for part in ("forwards", "backwards")]
    if isinstance(value, type) or not callable(value) or not all(isinstance(c, int) for c in counts):
        raise BudgetError(f"a gradient for {name}", repr(value), "Backprop(), Backprop(1, 'soft'), Evolution()")


def spent_by(gradient: Gradient, result: Pass) -> Tensor:
    """[2, N] forwards and backwards that a pass took for each example."""
    if result.spent is not None:
        return result.spent
    each = torch.tensor([gradient.forwards, gradient.backwards], device=result.value.device)
    return each[:, None].expand(2, len(result.value))


def draws_per_call(model: Model, rows: int, tile: int) -> int:
    """How many draws of a batch of so many rows go into one call of the model: one where noise is not per example."""
    return max(1, tile // rows) if scope_of(model) in ("none", "example") else 1


class Copies:
    """A batch as several draws see it: copies of its labels and targets, and streams of each draw's own.

    The numbers of draw k of an example depend on the example's stream and on k alone, and one call takes equally many
    from that stream whatever is drawn later; so neither tiling nor the other examples matter.
    """

    def __init__(self, y: Tensor, targets: Tensor | None, stream: Stream | None):
        self.y, self.targets, self.seed, self.keys = y, targets, 0, None
        if stream is not None:
            halves = (stream.uniform((2,), torch.float64) * 2**24).long()
            self.seed = seed_for(stream.seed, "draws")
            self.keys = stream.ids + ((halves[:, 0] << 24) + halves[:, 1]) * _ODD

    def subset(self, stay: Tensor) -> None:
        """Go on with some of the examples."""
        self.y = self.y[stay]
        self.targets = None if self.targets is None else self.targets[stay]
        self.keys = None if self.keys is None else self.keys[stay]

    def of(self, first: int, count: int) -> tuple[Tensor, Tensor | None, Stream | None]:
        """(labels, targets, streams) of the draws first, ..., first + count - 1, [count * N] each."""
        targets = None if self.targets is None else self.targets.repeat(count)
        stream = None
        if self.keys is not None:
            number = torch.arange(first, first + count, device=self.keys.device) * _ODD
            stream = Stream(self.seed, (self.keys + number[:, None]).flatten())
        return self.y.repeat(count), targets, stream


def repeated(x: Tensor, count: int) -> Tensor:
    """[count * N, ...], without a copy for one."""
    return x if count == 1 else x.repeat(count, *(1,) * (x.dim() - 1))


def check_tiles(inner: Gradient) -> None:
    """BudgetError for a gradient that must be asked about the whole batch, in a place that cuts or tiles it."""
    if getattr(inner, "whole_batch", False):
        raise BudgetError(
            "an inner gradient that may see parts of the batch", repr(inner), "put Frozen around the others instead"
        )


class Around:
    """A gradient around another one, `inner`: it sees the model as that one does."""

    inner: Gradient

    @property
    def whole_batch(self) -> bool:
        """Whether answers hold only for the batch as it is, neither cut nor tiled."""
        return getattr(self.inner, "whole_batch", False)

    @property
    def relaxed(self) -> object:
        """None where the logits of a pass are the model's own at x; only then do they say who is fooled."""
        return getattr(self.inner, "relaxed", None)

    def swapped(self, model: Model) -> AbstractContextManager[None]:
        """The model as the inner gradient sees it."""
        swapped = getattr(self.inner, "swapped", None)
        return nullcontext() if swapped is None else swapped(model)


@dataclass(frozen=True)
class Averaged(Around):
    """Expectation over randomness with the number of draws chosen by the measured signal-to-noise ratio.

    Gradients are added until the squared length of their mean, less the part that noise contributes, is at least
    `snr` times that part: after n draws with mean g and total variance v (the trace of their covariance), the noise
    in |g|^2 is v / n, and an example stops as soon as |g|^2 - v / n >= snr * v / n. This is looked at after `least`,
    2 * `least`, 4 * `least`, ... draws and at the end, `most`. Each example has its own number of draws and leaves by
    itself, so its batch-mates do not matter. Draws are accumulated (Welford 1962), never stacked.

    A mean that is exactly zero is no signal: on a random model such an example goes on to `most`. Stopping by a
    measured ratio favours draws that agree by luck, the more the fewer they are; `least` bounds that.

    The logits of a pass are those of the first `least` draws, which every example makes before anything is decided:
    neither padded nor chosen by how they came out, they may count in a test of who is fooled. `value` is the mean
    over an example's own draws, `spent` its own passes; `forwards` and `backwards` are upper bounds.

    Args:
        least: draws before the first decision, at least 2.
        most: draws at which every example stops.
        snr: squared signal-to-noise ratio of the mean gradient to reach. At 1 the mean's expected squared cosine with
            the true gradient is about 1/2, at 9 about 0.9.
        inner: makes one draw per call, `Backprop(substitutes=...)`, `Evolution(pairs=1)`, `Transforms(...)`.

    Raises:
        BudgetError: numbers of draws or a ratio that make no sense, an inner that is no gradient.
    """

    least: int = 4
    most: int = 64
    snr: float = 1.0
    inner: Gradient = field(default_factory=Backprop)
    tile: int = field(default=TILE, repr=False)

    def __post_init__(self):
        check_whole(self.least, "least", 2)  # one draw has no variance
        check_whole(self.most, "most", self.least)
        check_whole(self.tile, "tile")
        number = isinstance(self.snr, int | float) and not isinstance(self.snr, bool)
        if not (number and 0 < self.snr < float("inf")):
            raise BudgetError("snr > 0", repr(self.snr), "1 to 10 is usual")
        check_gradient(self.inner)
        check_tiles(self.inner)

    @property
    def draws(self) -> int:
        return self.most

    @property
    def forwards(self) -> int:
        return self.most * self.inner.forwards

    @property
    def backwards(self) -> int:
        return self.most * self.inner.backwards

    def __call__(self, model, x, y, objective: Objective, *, targets=None, stream=None) -> Pass:
        n, done, goal = len(x), 0, self.least
        copies, rows = Copies(y, targets, stream), torch.arange(n, device=x.device)
        gradient, value = torch.zeros_like(x), torch.zeros(n, dtype=x.dtype, device=x.device)
        spent = torch.zeros(2, n, dtype=torch.long, device=x.device)
        moments, logits, random = _Moments(x), [], scope_of(model) != "none"
        while True:
            per_call = draws_per_call(model, len(rows), self.tile)
            while done < goal:
                d = min(per_call, goal - done)
                labels, goals, streams = copies.of(done, d)
                result = self.inner(model, repeated(x, d), labels, objective, targets=goals, stream=streams)
                spent[:, rows] += spent_by(self.inner, result).view(2, d, -1).sum(1)
                moments.add(result.value.view(d, -1), result.gradient.view(d, *x.shape))
                if done < self.least:
                    drawn = result.logits.view(len(result.logits), d, len(rows), -1)
                    logits.append(drawn.transpose(0, 1).flatten(0, 1))
                done += d
            stop = moments.enough(self.snr, random) if done < self.most else torch.ones_like(rows, dtype=torch.bool)
            gradient[rows[stop]], value[rows[stop]] = moments.gradient[stop], moments.value[stop]
            stay = ~stop
            if not bool(stay.any()):
                return Pass(value, gradient, torch.cat(logits), spent)
            if bool(stop.any()):
                rows, x = rows[stay], x[stay]
                copies.subset(stay)
                moments.subset(stay)
            goal = min(2 * goal, self.most)


class _Moments:
    """Running mean of gradients and values, and the sum of squared deviations of each example's gradients."""

    def __init__(self, x: Tensor):
        self.count, self.gradient = 0, torch.zeros_like(x)
        self.value = torch.zeros(len(x), dtype=x.dtype, device=x.device)
        self.squares = torch.zeros(len(x), dtype=torch.float64, device=x.device)  # squares of 1e30 overflow float32

    def add(self, values: Tensor, gradients: Tensor) -> None:
        """[d, n] and [d, n, ...]: some more draws."""
        for value, drawn in zip(values, gradients, strict=True):
            self.count += 1
            deviation = drawn - self.gradient
            self.gradient.add_(deviation, alpha=1 / self.count)
            self.squares += _energy(deviation) * (1 - 1 / self.count)
            self.value += (value - self.value) / self.count

    def enough(self, snr: float, random: bool) -> Tensor:
        """[n] whether the mean stands out from its own noise."""
        noise = self.squares / (self.count - 1) / self.count
        energy = _energy(self.gradient)
        enough = energy - noise >= snr * noise
        return enough & (energy > 0) if random else enough

    def subset(self, stay: Tensor) -> None:
        self.gradient, self.value, self.squares = self.gradient[stay], self.value[stay], self.squares[stay]


def _energy(t: Tensor) -> Tensor:
    """[n] squared length, in float64."""
    return torch.linalg.vector_norm(t.flatten(1), dim=1, dtype=torch.float64).square()
