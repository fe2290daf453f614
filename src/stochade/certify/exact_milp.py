"""Mixed-integer programs of an `Encoding`, by SciPy's HiGHS.

The solver accepts points that violate a constraint by its tolerance (1e-6), so "infeasible" says more than is asked.
Beyond that, every relaxed constraint over real numbers is widened by `SLACK` of its largest coefficient, and every
one over integers by a hundredth: whatever is truly possible is feasible with a margin far above the tolerance.
"""

import time
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import sparse
from scipy.optimize import Bounds, LinearConstraint, milp

from stochade.certify.exact_encoding import Demand, Encoding

SLACK = 1e-5
_WHOLE = 0.01

Answer = Literal["found", "none", "unknown"]


@dataclass(frozen=True)
class Solved:
    """ "found" with the columns' values, "none" (proven infeasible), or "unknown" (time, or the solver gave up)."""

    answer: Answer
    values: np.ndarray | None = None


class Programs:
    """Asks one encoding for points that meet its demands and one more: that a class beats the right one."""

    def __init__(self, encoding: Encoding, deadline: float):
        self.encoding, self.deadline = encoding, deadline

    def find(self, goal: Demand, sharp: bool) -> Solved:
        """A point of the relaxed or of the sharp form."""
        rows, lower = self._rows([*self.encoding.demands, goal], sharp)
        integrality = np.array(self.encoding.binary, dtype=np.int64)
        return self._solve(np.zeros(len(integrality)), rows, lower, self._box(), integrality)

    def center(self, goal: Demand, values: np.ndarray) -> np.ndarray | None:
        """The point with the same binaries that stays furthest from every threshold over real numbers."""
        low, high = self._box()
        binary = np.array(self.encoding.binary, dtype=bool)
        low[binary] = high[binary] = np.round(values[binary])
        demands = [d for d in [*self.encoding.demands, goal] if d.gate < 0 or high[d.gate] == d.when]
        demands = [d for d in demands if not binary[d.columns].all()]
        rows, lower = self._rows([_ungated(d) for d in demands], None)
        margin = sparse.csr_array(np.array([[-1.0 if d.edge else 0.0] for d in demands]).reshape(-1, 1))
        rows = sparse.csr_array(sparse.hstack([rows, margin]))
        cost = np.append(np.zeros(len(low)), -1.0)
        box = np.append(low, -1.0), np.append(high, 1.0)
        return self._solve(cost, rows, lower, box, np.zeros(len(cost), dtype=np.int64)).values

    def _box(self) -> tuple[np.ndarray, np.ndarray]:
        return np.array(self.encoding.low, dtype=float), np.array(self.encoding.high, dtype=float)

    def _rows(self, demands: list[Demand], sharp: bool | None) -> tuple[sparse.csr_array, np.ndarray]:
        """rows @ v >= lower. sharp=None: midway between both forms, without slack.

        A gated demand c v >= t becomes c v + (least - t) a >= least for when = 1 (a = 0 leaves c v >= least, which
        always holds), and c v + (t - least) a >= t for when = 0.
        """
        places, columns, entries, lower = [], [], [], []
        for index, d in enumerate(demands):
            scale = 1.0 if d.whole else max(float(np.abs(d.coefficients).max()), 1e-12)
            slack = _WHOLE if d.whole else SLACK * scale
            if sharp is None:
                target = 0.5 * (d.may + d.must)
            elif sharp:
                target = d.must + (slack if d.edge else -slack if d.whole else 0.0)
            else:
                target = d.may - slack
            extra, bound = 0.0, target
            if d.gate >= 0:
                least = min(d.least, target)
                extra, bound = (least - target, least) if d.when == 1 else (target - least, target)
            places.append(np.full(len(d.columns) + (d.gate >= 0), index))
            columns.append(np.append(d.columns, d.gate) if d.gate >= 0 else d.columns)
            entries.append((np.append(d.coefficients, extra) if d.gate >= 0 else d.coefficients) / scale)
            lower.append(bound / scale)
        shape = (len(demands), len(self.encoding.low))
        if not demands:
            return sparse.csr_array(shape), np.zeros(0)
        where = (np.concatenate(places), np.concatenate(columns))
        return sparse.csr_array((np.concatenate(entries), where), shape=shape), np.array(lower)

    def _solve(
        self, cost: np.ndarray, rows: sparse.csr_array, lower: np.ndarray,
        box: tuple[np.ndarray, np.ndarray], integrality: np.ndarray,
    ) -> Solved:  # fmt: skip
        left = self.deadline - time.perf_counter()
        if left <= 0:
            return Solved("unknown")
        constraints = [LinearConstraint(rows, lower, np.inf)] if len(lower) else []  # type: ignore[arg-type]
        limits = Bounds(*box)  # type: ignore[arg-type]
        options = {"time_limit": left}
        result = milp(cost, constraints=constraints, bounds=limits, integrality=integrality, options=options)
        if result.x is not None:
            return Solved("found", np.asarray(result.x))
        return Solved("none" if result.status == 2 else "unknown")


def _ungated(demand: Demand) -> Demand:
    return Demand(demand.columns, demand.coefficients, demand.may, demand.must, whole=demand.whole, edge=demand.edge)
