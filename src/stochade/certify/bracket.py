"""The other side of the bracket: how accurate the certified vote still is under attacks of the same distance."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stochade.attacks import L0, L1, L2, Linf
from stochade.attacks.descent import PGD
from stochade.attacks.gradients import Backprop
from stochade.attacks.objectives import cross_entropy, margin
from stochade.certify.bracket_codes import attacked_codes, attacks_on_codes
from stochade.certify.choose import as_attacked
from stochade.certify.confidence import check_alpha, vote_decided
from stochade.certify.flips import FlipNoise
from stochade.certify.smoothing import Model, Smoothing
from stochade.errors import BudgetError
from stochade.evaluate import Estimate, Records, evaluate, intervals

NORMS = {"linf": Linf, "l2": L2, "l1": L1, "l0": L0}


def attacks_at(norm: str, radii: Sequence[float], steps: int = 20, draws: int = 8) -> dict[str, Any]:
    """PGD through the expectation over the noise, by cross entropy and by margin, at every radius above 0.

    Raises:
        BudgetError: a norm without such an attack, or no radius above 0.
    """
    if norm not in NORMS or norm == "l0":
        raise BudgetError("a norm out of linf, l2, l1", repr(norm))
    budgets = [r for r in radii if r > 0]
    if not budgets or not all(math.isfinite(r) for r in budgets):
        raise BudgetError("finite radii above 0 to attack at", str(list(radii)), "or certify without an attack")
    return {
        f"{name} {norm} {budget:g}": PGD(
            NORMS[norm](budget), steps=steps, gradient=Backprop(draws), objective=objective, drop_fooled=False
        )
        for budget in budgets
        for name, objective in (("pgd", cross_entropy), ("pgd margin", margin))
    }  # fmt: skip


def attacks_on(smoothing: Smoothing, radii: Sequence[float], steps: int = 20) -> dict[str, Any]:
    """The attacks that bracket a certificate at these distances: on codes for flip noise, else on images. Raises as
    `attacks_on_codes` and `attacks_at`."""
    if isinstance(smoothing, FlipNoise):
        return attacks_on_codes(smoothing.alphabet, radii, steps)
    return attacks_at(smoothing.norm, radii, steps)


def attacked(
    model: Model, smoothing: Smoothing, images: Any, labels: Any, radii: Sequence[float], *, draws: int = 100,
    steps: int = 20, seed: int = 0, out: str | Path | None = None, device: str = "cpu", show_progress: bool = True,
    workers: int = 0, chunk: int = 100, meta: dict | None = None,
) -> Records:  # fmt: skip
    """Records of the randomised classifier under `attacks_on`, with as many scoring draws as PREDICT takes.

    Args:
        images: what is certified: images, or for flip noise codes, with the network behind the encoder as `model`.
    """
    attacks, noisy = attacks_on(smoothing, radii, steps), as_attacked(model, smoothing)
    if isinstance(smoothing, FlipNoise):
        return attacked_codes(
            noisy, smoothing, images, labels, attacks, draws=draws, seed=seed, out=out, device=device,
            show_progress=show_progress, workers=workers, chunk=chunk, meta=meta,
        )  # fmt: skip
    return evaluate(
        noisy, images, labels, attacks, draws=draws, seed=seed, out=out, device=device,
        show_progress=show_progress, workers=workers, chunk=chunk, meta=meta,
    )  # fmt: skip


def upper_bounds(records: Records, alpha: float = 0.001, undecided: bool = False) -> dict[float, Estimate]:
    """{distance: accuracy of the vote under the attacks}; at 0 on the clean images.

    For each example the attack whose selection draws were the least right is judged by PREDICT on its scoring draws.
    An attack within a smaller distance counts at a larger one too.

    Args:
        undecided: what an abstention counts as. False, an error: what a user of PREDICT with so many draws gets; it
            may lie below the truth about the vote itself. True: right, which bounds that truth from above.
    """
    check_alpha(alpha)
    at: dict[float, list[str]] = {0.0: ["clean"]}
    for name, record in records.attacks.items():
        if record.threat is not None:
            at.setdefault(float(record.threat["eps"]), []).append(name)
    found, known = {}, []
    for distance in sorted(at):
        known += at[distance]
        found[distance] = intervals.mean(_worst(records, known, alpha, undecided)[:, None], "vote")
    return found


def _worst(records: Records, names: list[str], alpha: float, undecided: bool) -> np.ndarray:
    """[N] whether the vote is right under the attack that did best on other draws."""
    labels = records.labels[:, None]
    chosen = np.stack([(records.attacks[n].selection == labels).mean(1) for n in names]).argmin(0)
    right = np.zeros(len(labels), bool)
    for i, which in enumerate(chosen):
        counts = np.bincount(records.attacks[names[which]].predictions[i], minlength=int(labels[i, 0]) + 2)
        most = int(counts.argmax())
        decided = vote_decided(int(counts[most]), int(np.delete(counts, most).max()), alpha)
        right[i] = most == labels[i, 0] if decided else undecided
    return right


def bracketed(certified: Mapping[float, Estimate], above: Mapping[float, Estimate]) -> bool:
    """Whether at every distance that both name the certified lower end lies at or below the attacked upper end."""

    def ends(r: float) -> tuple[float, float]:
        low, high = certified[r].low, above[r].high
        return 0.0 if low is None else low, 1.0 if high is None else high

    return all(low <= high for low, high in (ends(r) for r in certified if r in above))
