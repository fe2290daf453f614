"""What running a recipe gives: rows with the paper's attacks and the adaptive ones, over all seeds."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from stochade.audit.result import Audit
from stochade.data import Images
from stochade.evaluate.intervals import Estimate, mean
from stochade.evaluate.records import Records
from stochade.evaluate.transfer import TransferMatrix
from stochade.recipes.networks import Trained
from stochade.recipes.schema import Attacked, Published, Recipe, Scale


@dataclass
class Row:
    """A network of the recipe, over all its seeds.

    Attributes:
        name: as in the recipe. scores: (attack, budget) -> accuracy, "clean" and "train" with budget 0.
        spread: the same keys -> standard deviation over seeds, None with one seed.
        audits: one per seed.
        facts: of training, one per seed.
    """

    name: str
    scores: dict[tuple[str, float], Estimate] = field(default_factory=dict)
    spread: dict[tuple[str, float], float | None] = field(default_factory=dict)
    audits: list[Audit] = field(default_factory=list)
    facts: list[dict] = field(default_factory=list)

    @property
    def found(self) -> Estimate | None:
        """The lowest accuracy found, over all seeds; None where nothing was audited."""
        return self._audited("worst")

    @property
    def claimed(self) -> Estimate | None:
        """The accuracy under the paper's attack as the audits measured it, over all seeds."""
        return self._audited(None)

    def _audited(self, attack: str | None) -> Estimate | None:
        if not self.audits:
            return None
        parts = [
            a.records.right(a.claim_attack if attack is None else attack, threat=None if attack is None else a.threat)
            for a in self.audits
        ]
        return pooled(parts, [a.records.noise_block() for a in self.audits])


@dataclass
class Reproduction:
    """What running a recipe gave.

    Attributes:
        recipe, scale: what ran. rows: in the recipe's order.
        matrix: the transfer matrix (first seed), or None.
        data: what the images are, as to be written beside every figure.
        meta: provenance, counts and settings.
        networks: the trained networks of the first seed, for the views.
        records: name -> records of the first seed.
        test, validation, train: the images.
        show_progress: whether views that take long may say so.
    """

    recipe: Recipe
    scale: str
    rows: list[Row]
    matrix: TransferMatrix | None
    data: str
    meta: dict[str, Any]
    networks: dict[str, Trained] = field(default_factory=dict)
    records: dict[str, Records] = field(default_factory=dict)
    test: Images | None = None
    validation: Images | None = None
    show_progress: bool = True
    train: Images | None = None

    @property
    def settings(self) -> Scale:
        return self.recipe.scale[self.scale]


def pooled(parts: list[np.ndarray], blocks: list[int | None]) -> Estimate:
    """The accuracy of several trainings on the same examples: draws of all of them, examples as clusters."""
    shared = next((block for block in blocks if block is not None), None)
    return mean(np.concatenate(parts, axis=1), shared=shared)


def named(attack: Attacked, budget: float) -> str:
    """What the records call an attack at a budget."""
    return f"{attack.name} {budget:g}"


def budgets_of(attack: Attacked, settings: Scale) -> list[tuple[float, float]]:
    """(budget in the paper, budget here) of an attack at a scale."""
    if attack.norm == "flips":
        return [(b, max(1, round(b * settings.flips))) for b in attack.budgets]
    return [(b, b if attack.norm == "l0" else b * settings.budgets) for b in attack.budgets]


def claimed_number(recipe: Recipe, network: str) -> Published | None:
    """What the paper printed for a network under the very attack and budget of the audit."""
    about = recipe.audit
    if about is None:
        return None
    same = {a.name for a in recipe.attack if (a.attack, a.norm) == (about.attack, about.norm)}
    found = (p for p in recipe.published if p.network == network and p.what == "attack" and p.attack in same)
    return next((p for p in found if p.budget == about.budget), None)
