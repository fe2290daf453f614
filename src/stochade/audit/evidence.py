"""What the checks of an audit look at: records and measurements, never a model.

Differences between attacks are paired over examples, and count only when their interval excludes zero at CONFIDENCE
and they exceed SMALLEST: with about fifteen such checks, honest models raise a masking finding in fewer than 5
audits of 100 (`tests/test_audit_slow.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stochade.audit import plan
from stochade.evaluate.intervals import Estimate, paired
from stochade.evaluate.records import CLEAN, AttackRecord, Records

CONFIDENCE = 0.998
SMALLEST = 0.02

ATHALYE = "Athalye, Carlini, Wagner 2018, signs of obfuscated gradients"
CARLINI = "Carlini et al. 2019, On Evaluating Adversarial Robustness"
PINTOR = "Pintor et al. 2022, Indicators of Attack Failure"
AUTO_ATTACK = "Croce and Hein 2020, checks of auto-attack"


@dataclass(frozen=True)
class Evidence:
    """What one audit measured.

    Attributes:
        records: every attack, on every example.
        probes: what `probe_model` and the experiments measured on the model.
        threat: {"norm", "eps"}.
        curves: "budget", "steps", "draws" -> [{"x", "attack", "series"}, ...].
        claim: the attack that stands for the authors' own.
        names: what the plan's attacks are called.
    """

    records: Records
    probes: dict[str, Any]
    threat: dict
    curves: dict[str, list[dict]]
    claim: str
    names: plan.Names = plan.IMAGES

    def has(self, *names: str) -> bool:
        return all(n in self.records.attacks or n == "worst" for n in names)

    def drop(self, weak: str, strong: str) -> Estimate:
        """accuracy(weak) - accuracy(strong), paired, at the audit's confidence."""
        right = self.records.right
        return self.paired(right(weak, threat=self.threat), right(strong, threat=self.threat))

    def paired(self, first: np.ndarray, second: np.ndarray) -> Estimate:
        """mean(first - second) of [N, draws] each, at the audit's confidence."""
        return paired(first, second, CONFIDENCE, self.records.noise_block())

    def stronger(self, strong: str, weak: str) -> Estimate | None:
        """The drop from weak to strong where it is established, else None."""
        drop = self.drop(weak, strong)
        return drop if established(drop) else None

    def own(self) -> list[str]:
        """Attacks with the model's own gradient inside the threat."""
        return [n for n in self.names.own_gradient if self.has(n)]

    def inside(self) -> list[str]:
        """All attacks inside the threat, without the further points of the curves."""
        names = [n for n in self.records.within(self.threat) if n != CLEAN]
        return [n for n in names if not n.rpartition(" ")[2].startswith(plan.ON_CURVES)]

    def best(self, names: Sequence[str]) -> str:
        """The strongest of some attacks, chosen on the selection draws, so that scoring draws stay fresh."""
        labels = self.records.labels[:, None]
        return min(names, key=lambda n: float((self.records.attacks[n].selection == labels).mean()))

    def breaks_alone(self, strong: Sequence[str], weak: Sequence[str]) -> Estimate:
        """What `strong` attacks take, example by example, on examples that every one of the `weak` leaves standing.

        Both sides take their best attack for each example on the selection draws; there an example counts when the
        weak side leaves it right in most draws and the strong side wrong in at least half. The drop is then measured
        on the scoring draws, which had no part in the choice, so it has no bias towards either side.
        """
        labels = self.records.labels[:, None]

        def side(names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
            chosen = np.stack([(self.records.attacks[n].selection == labels).mean(1) for n in names])
            scored = np.stack([self.records.attacks[n].predictions == labels for n in names])
            pick = chosen.argmin(0)
            rows = np.arange(len(pick))
            return chosen[pick, rows], scored[pick, rows]

        (left_strong, right_strong), (left_weak, right_weak) = side(strong), side(weak)
        only = ((left_strong <= 0.5) & (left_weak > 0.5))[:, None]
        return self.paired(right_weak & only, right_strong & only)

    def standing(self, name: str) -> np.ndarray:
        """[N] bool: examples that are right in most of the scoring draws under an attack."""
        return self.records.right(name).mean(1) > 0.5

    def record(self, name: str) -> AttackRecord:
        return self.records.attacks[name]

    def objective(self, name: str) -> str:
        """The objective that an attack maximised, by its qualified name; empty where it does not say."""
        described = self.record(name).info.get("attack")
        while isinstance(described, dict) and "objective" not in described:
            described = described.get("attack")  # a transfer tells of the attack on its source
        return str(described["objective"]) if isinstance(described, dict) else ""

    def text(self, name: str) -> str:
        return str(self.records.score(name, threat=self.threat))


def established(drop: Estimate, smallest: float = SMALLEST) -> bool:
    """Whether a drop is beyond doubt and large enough to matter."""
    known = drop.value is not None and drop.low is not None
    return known and drop.low > 0 and drop.value >= smallest  # type: ignore[operator]


def points(drop: Estimate) -> str:
    """A difference of accuracies in points."""
    assert drop.value is not None
    return f"{100 * drop.value:.1f}"


def percent(share: float) -> str:
    return f"{100 * share:.0f} %"
