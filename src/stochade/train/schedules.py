"""Learning-rate schedules: epoch -> factor of the rate. Frozen dataclasses, so that settings can name them."""

import math
from dataclasses import dataclass

from stochade.errors import BudgetError, UsageError


@dataclass(frozen=True)
class Constant:
    """Always 1."""

    def __call__(self, epoch: int) -> float:
        return 1.0


@dataclass(frozen=True)
class Steps:
    """`factor` to the power of how many milestones have been reached: (80, 120) and 0.1 divide by ten at each.

    Raises:
        UsageError: milestones that do not rise, or a factor that is not in (0, 1].
    """

    milestones: tuple[int, ...]
    factor: float = 0.1

    def __post_init__(self):
        object.__setattr__(self, "milestones", tuple(self.milestones))
        whole = all(isinstance(m, int) and not isinstance(m, bool) and m > 0 for m in self.milestones)
        if not self.milestones or not whole or sorted(set(self.milestones)) != list(self.milestones):
            raise UsageError("rising epochs as milestones", repr(self.milestones), "steps 80,120, say")
        if not 0 < self.factor <= 1:
            raise UsageError("a factor in (0, 1]", repr(self.factor))

    def __call__(self, epoch: int) -> float:
        return self.factor ** sum(epoch >= milestone for milestone in self.milestones)


@dataclass(frozen=True)
class Halving:
    """1 before epoch `start`, then half as much in every epoch: 1/2 in epoch `start`, 1/4 in the next."""

    start: int

    def __post_init__(self):
        _check_whole(self.start, "an epoch >= 0 to halve from", 0)

    def __call__(self, epoch: int) -> float:
        return 0.5 ** max(0, epoch - self.start + 1)


@dataclass(frozen=True)
class Cosine:
    """floor + (1 - floor) (1 + cos(pi epoch / epochs)) / 2: from 1 down to `floor` at epoch `epochs`, and after.

    The length is its own, so that a prolonged run does not change the epochs that it has behind it
    (Loshchilov and Hutter 2017, without restarts).
    """

    epochs: int
    floor: float = 0.0

    def __post_init__(self):
        _check_whole(self.epochs, "at least one epoch for a cosine", 1)
        if not 0 <= self.floor <= 1:
            raise UsageError("a floor in [0, 1]", repr(self.floor))

    def __call__(self, epoch: int) -> float:
        return self.floor + (1 - self.floor) * (1 + math.cos(math.pi * min(epoch, self.epochs) / self.epochs)) / 2


def _check_whole(value: object, expected: str, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise BudgetError(expected, repr(value))


def parse_schedule(text: str, epochs: int) -> Constant | Steps | Halving | Cosine:
    """ "constant", "steps 80,120", "steps 80,120 factor=0.2", "halving 75", "cosine", "cosine floor=0.01".

    Raises:
        UsageError: anything else. BudgetError: epochs that make no sense.
    """
    name, *rest = text.split() or [""]
    given = dict(part.split("=", 1) for part in rest if "=" in part)
    plain = [part for part in rest if "=" not in part]
    try:
        numbers = [int(n) for part in plain for n in part.split(",") if n]
        extra = {key: float(value) for key, value in given.items()}
        if name == "constant" and not rest:
            return Constant()
        if name == "steps" and numbers and extra.keys() <= {"factor"}:
            return Steps(tuple(numbers), **extra)
        if name == "halving" and len(numbers) == 1 and not extra:
            return Halving(numbers[0])
        if name == "cosine" and not plain and extra.keys() <= {"floor"}:
            return Cosine(epochs, **extra)
    except ValueError as problem:
        if isinstance(problem, BudgetError | UsageError):
            raise
    raise UsageError(
        "a schedule", repr(text), 'constant, "steps 80,120 factor=0.1", "halving 75" or "cosine floor=0.01"'
    )
