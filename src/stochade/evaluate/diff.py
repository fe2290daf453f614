"""Two runs on the same examples, compared example by example."""

from dataclasses import dataclass

import numpy as np

from stochade.errors import RecordsError
from stochade.evaluate.intervals import Estimate, mean, paired
from stochade.evaluate.records import WORST, Records


@dataclass(frozen=True)
class Difference:
    """One attack in two runs, on the examples that both hold: accuracies and their paired difference (second - first)
    with an interval. `difference.examples` says how many they are."""

    attack: str
    first: Estimate
    second: Estimate
    difference: Estimate


def compare_runs(first: Records, second: Records, kind: str = "single", threat=None) -> list[Difference]:
    """Paired differences, attack by attack, over the examples that both runs hold ("worst" where both have it).

    Raises:
        RecordsError: no attack or no example in common.
    """
    common, rows_first, rows_second = np.intersect1d(first.ids, second.ids, return_indices=True)
    names = [n for n in first.attacks if n in second.attacks]
    if not len(common) or not names:
        raise RecordsError(
            "two runs with examples and attacks in common",
            f"{len(common)} examples and {len(names)} attacks in common",
            "use the same data and attack names for both",
        )
    if threat is not None or all(len({str(r.threat) for r in run.attacks.values()}) <= 2 for run in (first, second)):
        names = [*names, WORST]
    rows = []
    for name in names:
        a = first.right(name, kind, threat)[rows_first]
        b = second.right(name, kind, threat)[rows_second]
        shared = [run.noise_block() if kind == "single" else None for run in (first, second)]
        rows.append(
            Difference(
                name,
                mean(a, kind, shared=shared[0]),
                mean(b, kind, shared=shared[1]),
                paired(b, a, shared=shared[0] or shared[1]),
            )
        )
    return rows
