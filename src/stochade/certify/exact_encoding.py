"""A network around one image as constraints: interval bounds first, then one binary variable for every unit that they
leave open.

A unit u of a step is open if both its sides can be reached. Its binary a then has: a = 1 demands u >= low, a = 0
demands u <= high, with `low` and `high` as in `exact_fold`, further apart by the floating-point error of u. That is
the relaxed ("may") form, which holds for every image of the threat as the network itself evaluates it. The sharp
("must") form demands u beyond both, and is only used to look for examples. Integer sums have no error: their
thresholds move to the nearest value that the sum can take.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse

from stochade.certify.exact_fold import Norm, Relu
from stochade.certify.exact_layers import Op, Pool, Step, Sum
from stochade.certify.intervals import Base, State, bounds
from stochade.errors import ModelError

_BEYOND = 1e30  # ends of a cut beyond every sum


@dataclass(frozen=True)
class Demand:
    """coefficients @ v[columns] >= may (relaxed) or must (sharp), whenever v[gate] == when.

    Attributes:
        least: a bound of the left side that always holds. gate: column of a binary, or -1: always demanded.
        whole: integers without rounding. edge: a threshold over real numbers, from which examples keep away.
    """

    columns: np.ndarray
    coefficients: np.ndarray
    may: float
    must: float
    least: float = 0.0
    gate: int = -1
    when: int = 1
    whole: bool = False
    edge: bool = False


class Encoding:
    """Columns and demands of one image; `run` sends the image through a network's operations.

    Args:
        x: [D] pixels. low, high: [D] what each may become. budget: how many groups may change; None: all.
        groups: [D] pixels that count as one. unit, tiny: unit roundoff and smallest normal one of the network's
            numbers.
    """

    def __init__(
        self, x: np.ndarray, low: np.ndarray, high: np.ndarray, budget: int | None, groups: np.ndarray, unit: float,
        tiny: float,
    ):  # fmt: skip
        self.low, self.high = list(low), list(high)
        self.binary = [False] * len(x)
        self.demands: list[Demand] = []
        self.unit, self.tiny, self.pixels, self.open, self.units = unit, tiny, len(x), 0, 0
        self.image, self.groups, self.budget = x, groups, budget
        self.base = Base(np.arange(len(x)), low, high, x, groups, budget)
        self.changes: dict[int, int] = {}

    def column(self, low: float, high: float, binary: bool = False) -> int:
        self.low.append(low)
        self.high.append(high)
        self.binary.append(binary)
        return len(self.low) - 1

    def limit_changes(self) -> None:
        """Binaries for pixels that change, where only some may. After `run`: intervals may need none of this."""
        if self.budget is None or self.changes:
            return
        for group in np.unique(self.groups):
            self.changes[int(group)] = self.column(0, 1, binary=True)
        for i in range(self.pixels):
            gate, value = self.changes[int(self.groups[i])], float(self.image[i])
            up = Demand(np.array([i]), np.ones(1), value, value, self.low[i], gate, 0)
            down = Demand(np.array([i]), -np.ones(1), -value, -value, -self.high[i], gate, 0)
            self.demands += [up, down]
        gates = np.array(list(self.changes.values()))
        limit = -float(self.budget)
        self.demands.append(Demand(gates, -np.ones(len(gates)), limit, limit, whole=True))

    def run(self, ops: list[Op], shape: tuple[int, ...]) -> State:
        """The logits [K] as functions of the columns."""
        eye = sparse.csr_array(sparse.eye_array(self.pixels))
        image = State(eye, np.zeros(self.pixels), np.zeros(self.pixels), self.base, shape)
        states: list[State] = []
        for op in ops:
            inputs = [states[i] if i >= 0 else image for i in op.sources]
            states.append(dataclasses.replace(self._apply(op.part, inputs), shape=op.shape))
        return states[-1] if states else image

    def _apply(self, part: Any, inputs: list[State]) -> State:
        state = inputs[0]
        if part == "stack":
            return State(
                sparse.csr_array(sparse.vstack([s.matrix for s in inputs])),
                np.concatenate([s.shift for s in inputs]), np.concatenate([s.error for s in inputs]),
                state.base, (), all(s.whole for s in inputs),
            )  # fmt: skip
        if isinstance(part, Sum):
            return self._sum(part, state)
        if isinstance(part, Norm):
            return self._norm(part, state)
        if isinstance(part, Relu):
            return self._relu(state)
        return self._step(part, state) if isinstance(part, Step) else self._pool(part, state)

    def _sum(self, part: Sum, state: State) -> State:
        """A float sum of n products errs by at most n u / (1 - n u) times their absolute sum, in any order, and by
        what n products and n additions lose below the smallest normal number."""
        low, high = bounds(state)
        size = np.maximum(np.abs(low), np.abs(high)) + state.error
        absolute = abs(part.matrix)
        total = self._inside(absolute @ size + np.abs(part.shift))
        products = absolute.astype(bool).astype(np.float64) @ (size > 0)
        count = products + 2
        integers = bool((part.matrix.data % 1 == 0).all() and (part.shift % 1 == 0).all())
        whole = state.whole and integers and bool((total < 0.25 / self.unit).all())
        error = absolute @ state.error
        if not (whole or part.exact):
            error = error + count * self.unit / (1 - count * self.unit) * total + 2 * self.tiny * products
        matrix = sparse.csr_array(part.matrix @ state.matrix)
        return State(matrix, part.matrix @ state.shift + part.shift, error, state.base, (), whole)

    def _norm(self, part: Norm, state: State) -> State:
        low, high = bounds(state)
        size = np.maximum(np.abs(low), np.abs(high)) + state.error
        exact = all(abs(g) == 1 and m == 0 and q == 1 and b == 0 for g, m, q, b in part.table)
        scale, mean, beta, gamma = _numbers(part)
        total = np.abs(scale) * (size + np.abs(mean)) + np.abs(beta)
        self._reach(part, size)
        error = np.abs(scale) * state.error
        if not exact:
            lost = 4 * self.tiny * (1 + size + np.abs(mean) + np.abs(gamma))  # by underflow, as in `exact_fold`
            error = error + 16 * self.unit * total + np.where((size > 0) | (mean != 0), lost, 0.0)
        matrix = sparse.csr_array(sparse.diags_array(scale) @ state.matrix)
        return State(matrix, scale * (state.shift - mean) + beta, error, state.base, (), state.whole and exact)

    def _inside(self, most: np.ndarray) -> np.ndarray:
        """The numbers, where no order of operations can overflow: below a quarter of the format's largest one."""
        if not (most < 1 / self.tiny).all():
            raise ModelError(
                "numbers far inside the network's format at every allowed image", f"up to {float(most.max()):.3g}",
                "scale its weights down: classes can turn where a sum overflows",
            )  # fmt: skip
        return most

    def _reach(self, part: Norm, size: np.ndarray) -> np.ndarray:
        """How large a batch norm's value and all numbers on its way may be, in any order of its operations."""
        scale, mean, beta, gamma = (np.abs(n) for n in _numbers(part))
        with np.errstate(over="ignore"):
            return self._inside(np.maximum(1.0, np.maximum(scale, gamma)) * (size + mean) + beta)

    def _relu(self, state: State) -> State:
        low, high = bounds(state)
        low, high = low - state.error, high + state.error
        stay, undecided = low >= 0, np.nonzero((low < 0) & (high > 0))[0]
        self.units += len(low)
        self.open += len(undecided)
        matrix = sparse.csr_array(sparse.diags_array(stay.astype(np.float64)) @ state.matrix)
        shift, error = np.where(stay, state.shift, 0.0), np.where(stay, state.error, 0.0)
        if not len(undecided):
            return State(matrix, shift, error, state.base, (), state.whole)
        ids = []
        for i in undecided:
            y, gate = self.column(0.0, high[i]), self.column(0, 1, binary=True)
            columns, row = row_of(state, int(i))
            slack, own = float(state.error[i]), float(state.shift[i])
            columns, above = np.append(columns, y), np.append(-row, 1.0)
            self.demands += [
                Demand(columns, above, own - slack, own),  # y >= z
                Demand(columns, -above, -own - slack, -own, float(low[i]) - own - slack, gate, 1),  # y <= z
                Demand(np.array([y]), -np.ones(1), 0.0, 0.0, -float(high[i]), gate, 0),  # y <= 0
            ]
            ids.append(y)
        extra = (np.ones(len(ids)), (undecided, np.arange(len(ids))))
        wide = sparse.csr_array(extra, shape=(len(low), len(ids)))
        base = Base(
            np.append(state.base.ids, ids),
            np.append(state.base.low, np.zeros(len(ids))),
            np.append(state.base.high, high[undecided]),
        )
        return State(sparse.csr_array(sparse.hstack([matrix, wide])), shift, error, base, ())

    def _step(self, part: Step, state: State) -> State:
        cuts, (off, on) = part.cuts, part.values
        sign = cuts.direction
        mirrored = dataclasses.replace(
            state, matrix=sparse.csr_array(sparse.diags_array(sign) @ state.matrix), shift=sign * state.shift
        )
        least, most = bounds(mirrored)
        size = np.maximum(np.abs(least), np.abs(most)) + state.error
        for op in part.chain:
            size = size if isinstance(op, Relu) else self._reach(op, size)
        may_high, may_low = _reachable(mirrored, cuts, least, most)
        self.units += len(least)
        undecided = np.nonzero(may_high & may_low)[0]
        self.open += len(undecided)
        ids = np.array([self._unit(mirrored, cuts, int(i), least[i], most[i]) for i in undecided], dtype=np.int64)
        shift = np.where(may_high, on, off)
        shift[undecided] = off
        places = (np.full(len(ids), on - off), (undecided, np.arange(len(ids))))
        matrix = sparse.csr_array(places, shape=(len(least), len(ids)))
        base = self._carried(mirrored, part, ids, undecided)
        whole = float(on).is_integer() and float(off).is_integer()
        return State(matrix, shift, np.zeros(len(shift)), base, (), whole, (off, on))

    def _unit(self, state: State, cuts: Any, i: int, least: float, most: float) -> int:
        """The binary of one open unit."""
        gate = self.column(0, 1, binary=True)
        columns, row = row_of(state, i)
        shift, error = float(state.shift[i]), float(state.error[i])
        free = cuts.low[i] <= -_BEYOND and cuts.high[i] >= _BEYOND
        if free or not row.any():  # any value, or a fixed sum inside the band of its threshold, may be either
            return gate
        if state.whole:
            grain = float(np.gcd.reduce(np.abs(row).astype(np.int64)))
            first, last = cuts.first[i], cuts.last[i]
            up = [_lattice(t, shift, grain, np.ceil) for t in (first, last + 1)]
            down = [_lattice(t, shift, grain, np.floor) for t in (last, first - 1)]
        else:
            up, down = [cuts.low[i] - error, cuts.high[i] + error], [cuts.high[i] + error, cuts.low[i] - error]
        self.demands += [
            Demand(columns, row, up[0] - shift, up[1] - shift, least - shift, gate, 1, state.whole, not state.whole),
            Demand(
                columns, -row, shift - down[0], shift - down[1], shift - most, gate, 0, state.whole, not state.whole
            ),
        ]
        return gate

    def _carried(self, state: State, part: Step, ids: np.ndarray, undecided: np.ndarray) -> Base:
        """Steps of single pixels keep the count of changes: one group of units for each group of pixels."""
        low, high = np.zeros(len(ids)), np.ones(len(ids))
        base, matrix = state.base, state.matrix
        plain = Base(ids, low, high)
        if (
            base.budget is None
            or base.center is None
            or base.groups is None
            or not (np.diff(matrix.indptr) <= 1).all()
        ):
            return plain
        value = matrix @ base.center + state.shift
        may_high, may_low = _reachable(state, part.cuts, value, value)
        if (may_high & may_low).any():
            return plain
        groups = (
            base.groups[matrix.indices[matrix.indptr[undecided]]] if len(undecided) else np.zeros(0, dtype=np.int64)
        )
        return Base(ids, low, high, may_high[undecided].astype(np.float64), groups, base.budget)

    def _pool(self, part: Pool, state: State) -> State:
        assert state.levels is not None  # the reader lets no other state come here
        off, on = state.levels
        fixed = np.diff(state.matrix.indptr) == 0
        high = fixed & (state.shift == on)
        shift, rows, ids = np.full(len(part.windows), off), [], []
        for i, window in enumerate(part.windows):
            members = window[~fixed[window]]
            if high[window].any():
                shift[i] = on
            elif len(members):
                gates = np.unique(state.base.ids[state.matrix.indices[state.matrix.indptr[members]]])
                rows.append(i)
                ids.append(int(gates[0]) if len(gates) == 1 else self._any(gates))
        self.units += len(shift)
        columns, place = np.unique(np.array(ids, dtype=np.int64), return_inverse=True)
        entries = (np.full(len(rows), on - off), (np.array(rows, dtype=np.int64), place))
        matrix = sparse.csr_array(entries, shape=(len(shift), len(columns)))
        base = Base(columns, np.zeros(len(columns)), np.ones(len(columns)))
        return State(matrix, shift, np.zeros(len(shift)), base, (), state.whole, state.levels)

    def _any(self, gates: np.ndarray) -> int:
        """A binary that is the largest of others."""
        top = self.column(0, 1, binary=True)
        self.open += 1
        for gate in gates:
            self.demands.append(Demand(np.array([top, gate]), np.array([1.0, -1.0]), 0.0, 0.0, whole=True))
        signs = np.append(np.ones(len(gates)), -1.0)
        self.demands.append(Demand(np.append(gates, top), signs, 0.0, 0.0, whole=True))
        return top


def _reachable(state: State, cuts: Any, least: np.ndarray, most: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """([M], [M]) whether units between `least` and `most` may be high, may be low."""
    if state.whole:
        return most >= cuts.first, least <= cuts.last
    return most + state.error >= cuts.low, least - state.error <= cuts.high


def _lattice(threshold: float, shift: float, grain: float, to: Any) -> float:
    """The nearest value shift + integer * grain at or beyond a threshold."""
    return shift + grain * float(to((threshold - shift) / grain))


def _numbers(part: Norm) -> np.ndarray:
    """[4, M]: scale, mean, beta and gamma of every unit."""
    table = [(float(g) / float(q) ** 0.5, float(m), float(b), float(g)) for g, m, q, b in part.table]
    return np.array(table)[part.index].T


def row_of(state: State, i: int) -> tuple[np.ndarray, np.ndarray]:
    """Columns and coefficients of one unit."""
    here = slice(state.matrix.indptr[i], state.matrix.indptr[i + 1])
    return state.base.ids[state.matrix.indices[here]], state.matrix.data[here].copy()
