"""The full transfer matrix: adversarial examples of every source, scored on every target."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stochade.attacks.base import Attack
from stochade.attacks.flips import refuse_codes
from stochade.attacks.gradients import Model
from stochade.attacks.transfer import for_transfer
from stochade.errors import ModelError, RecordsError
from stochade.evaluate.intervals import Estimate
from stochade.evaluate.records import KINDS, Records
from stochade.evaluate.run import evaluate
from stochade.evaluate.source import Source
from stochade.evaluate.store import slug, write_json

CLEAN = "clean images"
MADE = "made"


@dataclass(frozen=True)
class TransferMatrix:
    """Accuracy of every target on the adversarial examples of every source.

    Attributes:
        sources: rows; the first is the clean images. targets: columns.
        records: {(source, target): Records}, each with the scores of its target on these images as "clean".
        attack: what made the examples, as plain data.
    """

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    records: dict[tuple[str, str], Records]
    attack: str

    def score(self, source: str, target: str, kind: str = "single") -> Estimate:
        """Accuracy of `target` on the examples made on `source`; RecordsError for a name that is not there."""
        if (source, target) not in self.records:
            raise RecordsError(
                f"a source out of {self.sources} and a target out of {self.targets}", f"{source}, {target}"
            )
        return self.records[source, target].score("clean", kind)

    def stronger_from_outside(self) -> list[tuple[str, str]]:
        """(source, target) where the examples of another model beat the target's own: masking, when it is more than
        the intervals allow."""
        found = []
        for target in self.targets:
            own = self.score(target, target)
            for source in self.sources[1:]:
                other = self.score(source, target)
                if source != target and None not in (own.low, other.high) and other.high < own.low:  # type: ignore[operator]
                    found.append((source, target))
        return found

    def table(self, fmt: str = "markdown", kind: str = "single") -> str:
        """Rows sources, columns targets, percent with 95 % intervals: "markdown", "latex", or "csv" (one line a pair,
        fractions)."""
        if kind not in KINDS:
            raise RecordsError(f"a kind out of {KINDS}", repr(kind))
        if fmt == "csv":
            lines = ["source,target,accuracy,low,high"]
            for (source, target), records in self.records.items():
                s = records.score("clean", kind)
                lines.append(
                    ",".join([_quoted(source), _quoted(target), *(f"{v}" for v in (s.value, s.low, s.high))])
                )
            return "\n".join(lines) + "\n"
        cells = [[source, *(str(self.score(source, t, kind)) for t in self.targets)] for source in self.sources]
        head = ["made on \\ scored on", *self.targets]
        if fmt == "markdown":
            rows = [head, ["---", *["---:"] * len(self.targets)], *cells]
            return "\n".join("| " + " | ".join(c.replace("|", "\\|") for c in row) + " |" for row in rows) + "\n"
        if fmt == "latex":
            rows = [head, *cells]
            body = [" & ".join(_latex(c) for c in row) + r" \\" for row in rows]
            spec = "l" + "r" * len(self.targets)
            parts = [rf"\begin{{tabular}}{{{spec}}}", r"\toprule", body[0], r"\midrule", *body[1:], r"\bottomrule"]
            return "\n".join([*parts, r"\end{tabular}"]) + "\n"
        raise RecordsError("fmt out of markdown, csv, latex", repr(fmt))


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"' if any(c in text for c in ',"\n') else text


def _latex(text: str) -> str:
    text = text.replace("\\", "$\\backslash$")
    for character in "%&#_":
        text = text.replace(character, "\\" + character)
    return text


def transfer_matrix(
    models: Mapping[str, Model],
    images: Any,
    labels: Any = None,
    attack: Attack | None = None,
    *,
    sources: Mapping[str, Model] | None = None,
    draws: int = 20,
    seed: int = 0,
    out: str | Path | None = None,
    **options: Any,
) -> TransferMatrix:
    """Attack every source once, and score its images on every target on fresh draws (kubo2019, table 4.8).

    Args:
        models: the targets by name; they are the sources as well.
        images, labels: as for `evaluate`.
        attack: run on each source; nobody leaves early. Required.
        sources: further models that only make examples, ensembles for instance (`EnsembleModel`).
        out: folder; every part of the matrix is resumable by itself.
        draws, seed, options: as for `evaluate`.

    Raises:
        ModelError: no models, or a name twice. Otherwise as `evaluate`.
    """
    makers = dict(models) | dict(sources or {})
    if not models or len(makers) != len(models) + len(sources or {}) or CLEAN in makers:
        raise ModelError("models by distinct names", f"{list(models)} and {list(sources or {})}")
    if not isinstance(attack, Attack):
        raise ModelError("an attack such as PGD(Linf(0.3))", repr(attack), "pass attack=")
    refuse_codes(
        attack.threat, "a transfer matrix", "attacked codes are no images to pass on; score them by evaluate"
    )
    attack, folder = for_transfer(attack), None if out is None else Path(out)
    examples = len(Source(images, labels, 1))
    options = {"draws": draws, "seed": seed} | options
    records: dict[tuple[str, str], Records] = {}

    def run(source: str, target: str, x: Any, y: Any, attacks: dict[str, Attack], keep: int) -> Records:
        place = None if folder is None else folder / f"{slug(source)}--{slug(target)}"
        model = makers[target]
        return evaluate(model, x, y, attacks, out=place, keep_images=keep, **options)

    made: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for name in makers:
        found = run(MADE, name, images, labels, {MADE: attack}, examples)
        kept = found.attacks[MADE].images
        made[name] = np.stack([kept[row] for row in range(examples)]), found.labels
    for target in models:
        records[CLEAN, target] = run(CLEAN, target, images, labels, {}, 0)
        for source, (x, y) in made.items():
            records[source, target] = run(source, target, _tensor(x), _tensor(y), {}, 0)
    matrix = TransferMatrix((CLEAN, *makers), tuple(models), records, str(attack))
    if folder is not None:
        write_json(folder / "transfer.json", as_document(matrix))
    return matrix


def _tensor(array: np.ndarray) -> Any:
    import torch

    return torch.from_numpy(array)


def as_document(matrix: TransferMatrix) -> dict:
    """The matrix as plain data, with provenance."""
    pairs = [
        {"source": s, "target": t} | {kind: r.score("clean", kind).as_dict() for kind in KINDS}
        for (s, t), r in matrix.records.items()
    ]
    first = next(iter(matrix.records.values()))
    return {
        "sources": list(matrix.sources), "targets": list(matrix.targets), "attack": matrix.attack, "pairs": pairs,
        "examples": len(first), "provenance": first.meta.get("provenance"),
    }  # fmt: skip
