"""What a threat is, and the common ground of the four norm balls: a budget for all examples or one for each."""

import copy
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from stochade.errors import BudgetError
from stochade.randomness import Stream


@runtime_checkable
class Threat(Protocol):
    """A set of allowed inputs around each original."""

    @property
    def size(self) -> float:
        """The budget as one number, in the units of `distance`."""
        ...

    def steepest(
        self, gradient: Tensor, x: Tensor, x0: Tensor | None = None, size: float | Tensor | None = None
    ) -> Tensor:
        """The feasible change of x that raises <gradient, change> most: at most `size` long (a number, or [N]), and
        never out of the budget around x0 (default x) or the box. size=None: the whole budget left around x0."""
        ...

    def project(self, x: Tensor, x0: Tensor) -> Tensor:
        """The nearest allowed input."""
        ...

    def start(self, x0: Tensor, generator: Stream) -> Tensor:
        """A random allowed input."""
        ...

    def distance(self, x: Tensor, x0: Tensor) -> Tensor:
        """[N], in the units of the budget."""
        ...

    def contains(self, other: "Threat") -> bool:
        """Whether every input that `other` allows is allowed here."""
        ...


def rows_of(t: Tensor) -> Tensor:
    return t.flatten(1)


def like(v: Tensor, x: Tensor) -> Tensor:
    """[N] -> [N, 1, ...] so that it broadcasts over x."""
    return v.reshape(-1, *(1,) * (x.dim() - 1))


@dataclass(frozen=True)
class Ball:
    """Common ground of the four norms: the budget, its check, containment and the box.

    Raises:
        BudgetError: a budget that is negative, NaN or not a number.
    """

    eps: float

    name = "ball"
    _each = None  # [N] one budget for each row of a batch, only during a search

    def __post_init__(self):
        value = self.eps
        if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
            raise BudgetError(
                f"a budget eps >= 0 for {type(self).__name__} (in units of images in [0,1])",
                repr(value),
                "for 8 grey levels of 255 write 8/255",
            )
        object.__setattr__(self, "eps", float(value))

    @property
    def size(self) -> float:
        return self.eps

    def contains(self, other: Threat) -> bool:
        return type(other) is type(self) and other.size <= self.size

    def resized(self, eps: float) -> "Ball":
        """The same norm with another budget."""
        return type(self)(eps)

    def for_each(self, budgets: Tensor) -> "Ball":
        """The same norm with a budget of its own for every row of a batch; `eps` is then the largest of them."""
        ball = copy.copy(self)
        object.__setattr__(ball, "eps", float(budgets.max()))
        object.__setattr__(ball, "_each", budgets)
        return ball

    def rows(self, index: Tensor) -> "Ball":
        """This threat for some rows of the batch."""
        if self._each is None:
            return self
        ball = copy.copy(self)
        object.__setattr__(ball, "_each", self._each[index])
        return ball

    def limit(self, x: Tensor) -> float | Tensor:
        """The budget as it broadcasts over x: a number, or [N, 1, ...]."""
        return self.eps if self._each is None else like(self._each.to(x), x)

    def scaled(self, size: float) -> float | Tensor:
        """A length given for `eps`, in proportion to every row's own budget: a number, or [N]."""
        return size if self._each is None else size * self._each / max(self.eps, 1e-30)

    def move(
        self, gradient: Tensor, x: Tensor, x0: Tensor | None = None, size: float | Tensor | None = None
    ) -> Tensor:
        """x after its change of steepest ascent; exact where `x + steepest(...)` would round."""
        raise TypeError(f"{type(self).__name__} must define move")

    def steepest(
        self, gradient: Tensor, x: Tensor, x0: Tensor | None = None, size: float | Tensor | None = None
    ) -> Tensor:
        return self.move(gradient, x, x0, size) - x

    def project(self, x: Tensor, x0: Tensor) -> Tensor:
        raise TypeError(f"{type(self).__name__} must define project")

    def start(self, x0: Tensor, generator: Stream) -> Tensor:
        raise TypeError(f"{type(self).__name__} must define start")

    def distance(self, x: Tensor, x0: Tensor) -> Tensor:
        raise TypeError(f"{type(self).__name__} must define distance")

    def __str__(self) -> str:
        return f"{self.name} {self.eps:.4g}"


def spread(size: float | Tensor, x: Tensor) -> float | Tensor:
    """A length as it broadcasts over x."""
    return like(size.to(x), x) if isinstance(size, Tensor) else size
