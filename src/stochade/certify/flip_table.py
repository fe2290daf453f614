"""How many changed letters flip noise hides: exact Neyman-Pearson bounds, rounded to the safe side.

Noise draws every letter of a code anew, independently: a letter a becomes c with probability K(a -> c). Let x' differ
from x in r places; the places in which they agree cancel. In a changed place the outcome c weighs here = K(a -> c)
under x and there = K(a' -> c) under x', and the weights of all places multiply. By Neyman and Pearson, of all
randomised sets of outcomes with probability p under x, the one that takes outcomes in falling order of here / there
(the last of them in part) has the least probability under x'. Turned round: the sets that x' gives probability 1/2
have, under x, a probability of at least

    m(x, x') = min { sum s h : sum s t >= 1/2, 0 <= s <= 1 }    (h, t: probabilities of outcomes under x and x').

A class with probability p > 1 - m at x leaves less than m to the others together, so less than 1/2 at x': the class
keeps more than 1/2. No weaker condition does, for any network may stand behind the noise. This m does not depend on
p, so a table of it serves every input.

**Regions.** Only here / there of an outcome matters, so outcomes of equal ratio are one region. A changed place is of
one kind: a letter added (0 -> v), deleted (v -> 0) or turned (v -> -v), v other than 0. With K(0 -> v) = plus (signed
letters: plus/2 for each of -1 and 1) and K(v -> 0) = minus (signed: minus/2 for 0 and for -v), the outcomes of one
place are

    {0, 1}:      added    stays (1-plus, minus),     flips (plus, 1-minus)
                 deleted  stays (1-minus, plus),     flips (minus, 1-plus)
    {-1, 0, 1}:  added    stays (1-plus, minus/2),   reaches v (plus/2, 1-minus),    third (plus/2, minus/2)
                 deleted  stays (1-minus, plus/2),   reaches 0 (minus/2, 1-plus),    third (minus/2, plus/2)
                 turned   stays (1-minus, minus/2),  reaches -v (minus/2, 1-minus),  third (minus/2, minus/2)

{0, 1}: the ratio of "stays" over that of "flips" is (1-plus)(1-minus) / (plus minus) in both kinds: what counts is
how many places stay (Bojchevski, Klicpera, Guennemann 2020, who count those that flip). Signed: let A, B, C be the
ratios of the three outcomes of an added place. Those of a deleted one are 1/B, 1/A, 1/C, those of a turned one C/B,
B/C, 1, and the exponents of A, B and C add up to (added - deleted): two of them say the third. So regions are cells
of a lattice, and their probabilities are coefficients of a product of polynomials, one factor per changed place. For
plus = minus all kinds are one (signed: C = 1, A B = 1) and every change of r letters is as bad as any other: uniform
noise (Lee, Yuan, Chang, Jaakkola 2019).

**Rounding.** The probabilities of letters are whole multiples of 2^-24, exact in float64. All terms are positive, so
a coefficient after r factors is right up to a factor (1 +- 2^-53)^(3r) and what underflows (far below 1e-300). And m
is bounded from below by its dual: for any price s >= 0, m >= s/2 - sum max(0, s t - h), evaluated with every t
enlarged and every h shrunk by more than those errors, less the rounding of the sum. A wrong order of regions or a
price that is not the best can only make it smaller.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stochade.errors import BudgetError

_EPS = 2.0**-52
_UNDERFLOW = 1e-300
_MOST = {1: 10_000, 2: 400, 3: 40}  # flips that a table goes up to, by its kinds of change; more is not looked for
_Masses = NDArray[np.float64]


class Kind(NamedTuple):
    """One kind of change: the letter that it needs in the code ("zero", "other" or "any"), and its outcomes: their
    probabilities under the letter before and after, and the cell of the lattice that each adds."""

    needs: str
    here: tuple[float, ...]
    there: tuple[float, ...]
    cells: tuple[tuple[int, int], ...]


def kinds(plus: float, minus: float, signed: bool) -> tuple[Kind, ...]:
    """The kinds of change under flips with these probabilities: (added, deleted[, turned]), or one for all."""
    stay0, stay1 = 1 - plus, 1 - minus
    if not signed:
        cells = ((1, 0), (0, 0))
        added = Kind("zero", (stay0, plus), (minus, stay1), cells)
        deleted = Kind("other", (stay1, minus), (plus, stay0), cells)
        return (added._replace(needs="any"),) if plus == minus else (added, deleted)
    up, down = plus / 2, minus / 2
    if plus == minus:
        return (Kind("any", (stay0, up, up), (up, stay0, up), ((2, 0), (0, 0), (1, 0))),)
    added = Kind("zero", (stay0, up, up), (down, stay1, down), ((1, 0), (0, 1), (0, 0)))
    deleted = Kind("other", (stay1, down, down), (up, stay0, up), ((1, 0), (0, 1), (1, 1)))
    turned = Kind("other", (stay1, down, down), (down, stay1, down), ((0, 0), (0, 2), (0, 1)))
    return added, deleted, turned


def times(masses: _Masses, weights: Sequence[float], cells: Sequence[tuple[int, int]]) -> _Masses:
    """The product of a polynomial [I,J] of two variables with sum of weight * cell."""
    rows, columns = masses.shape
    product = np.zeros((rows + max(i for i, _ in cells), columns + max(j for _, j in cells)))
    for weight, (i, j) in zip(weights, cells, strict=True):
        product[i : i + rows, j : j + columns] += weight * masses
    return product


def least_share(here: _Masses, there: _Masses, places: int) -> float:
    """A lower bound, within about 1e-11 of itself, of the least probability under `here` of a set with probability
    1/2 under `there`; the masses are products of so many factors."""
    h, t = here.ravel(), there.ravel()
    seen = t > 0
    with np.errstate(over="ignore"):
        ratio = h[seen] / t[seen]
    order = ratio.argsort()
    filled = t[seen][order].cumsum()
    price = float(ratio[order[min(int(filled.searchsorted(0.5)), len(order) - 1)]])
    error = (3 * places + 10) * _EPS
    dear = np.maximum(price * (1 + error) * t - (1 - error) * h, 0).sum()
    slack = 4 * (len(h) + 10) * (_EPS * price + _UNDERFLOW)
    return max(0.0, 0.5 * price - float(dear) - slack)


class Table:
    """m of every split of r changes into kinds, for r = 0, 1, ...: made once, as far as it is asked for."""

    def __init__(self, plus: float, minus: float, signed: bool):
        self.kinds = kinds(plus, minus, signed)
        self.most = _MOST[len(self.kinds)]
        one = np.ones((1, 1))
        self._layer = {(0,) * len(self.kinds): (one, one)}
        self._needs = np.array([[kind.needs == letter for letter in ("zero", "other")] for kind in self.kinds], int)
        self._splits = [np.zeros((1, len(self.kinds)), int)]
        self._shares = [np.array([0.5])]
        self._worst = [0.5]

    def _grow(self) -> None:
        """The layer of one change more: every split once, from the one without its last kind's last change."""
        layer = {}
        for split, (here, there) in self._layer.items():
            last = max((k for k, count in enumerate(split) if count), default=0)
            for k in range(last, len(split)):
                kind = self.kinds[k]
                larger = (*split[:k], split[k] + 1, *split[k + 1 :])
                layer[larger] = times(here, kind.here, kind.cells), times(there, kind.there, kind.cells)
        places = len(self._shares)
        shares = np.array([least_share(here, there, places) for here, there in layer.values()])
        self._layer = layer
        self._splits.append(np.array(list(layer)))
        self._shares.append(shares)
        self._worst.append(float(shares.min()))

    def shares(self, places: int) -> dict[tuple[int, ...], float]:
        """m of every split of so many changes. BudgetError: more than the table goes up to."""
        if not 0 <= places <= self.most:
            raise BudgetError(f"0 to {self.most} flips", str(places), "larger radii are not looked for")
        while len(self._shares) <= places:
            self._grow()
        return dict(zip(map(tuple, self._splits[places].tolist()), self._shares[places].tolist(), strict=True))

    def largest(self, rest: float, zeros: float, others: float) -> int:
        """The largest number of changes of a code with so many zeros and other letters of which every split leaves
        the class, when the other classes have at most the probability `rest`; at most `most`, -1 if not even none.
        """
        end = min(self.most, zeros + others)
        while self._worst[-1] > rest and len(self._worst) <= end:
            self._grow()
        safe = max((r for r, worst in enumerate(self._worst) if worst > rest), default=-1)
        while safe < end:
            if len(self._shares) == safe + 1:
                self._grow()
            allowed = (self._splits[safe + 1] @ self._needs <= (zeros, others)).all(1)
            if (self._shares[safe + 1][allowed] <= rest).any():
                break
            safe += 1
        return int(min(safe, end))
