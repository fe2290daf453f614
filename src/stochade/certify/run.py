"""A run of certificates: one line per example, written as it is found, so that a stopped run goes on where it was.

OUT/certify.json          what was asked, its digest
OUT/certificates.jsonl    one certificate a line
OUT/provenance.json       versions, hardware, revision
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stochade.certify.confidence import ceiling, check_alpha, check_count, check_draws
from stochade.certify.procedure import ABSTAIN, Certificate, certify_one, first_look
from stochade.certify.sequential import check_radii, largest
from stochade.certify.smoothing import Model, Smoothing
from stochade.certify.votes import Voter
from stochade.describe import digest, fingerprint_model, provenance
from stochade.errors import RecordsError
from stochade.evaluate import Estimate, intervals
from stochade.evaluate.run import fingerprint_data
from stochade.evaluate.source import Source
from stochade.evaluate.store import write_json
from stochade.progress import progress
from stochade.randomness import identities, untouched

ABOVE = 1 + 1e-9  # "at distances below this" includes the distance that was asked for


@dataclass(frozen=True)
class Line:
    """One example: its row, identity, label and certificate."""

    row: int
    id: int
    label: int
    certificate: Certificate

    @property
    def right(self) -> bool:
        return self.certificate.prediction == self.label


@dataclass(frozen=True)
class Certified:
    """The certificates of one run, in the order of the examples."""

    lines: list[Line]
    meta: dict[str, Any]

    def __len__(self) -> int:
        return len(self.lines)

    def accuracy(self, radius: float = 0.0) -> Estimate:
        """Share of examples whose vote is certified to be right at the distance `radius`, and nearer; with the
        interval of examples. Abstentions are errors. Each certificate fails with probability at most alpha on top."""
        good = [line.right and (line.certificate.radius > radius) for line in self.lines]
        return intervals.mean(np.array(good)[:, None], "certified")

    def abstained(self) -> Estimate:
        """Share of examples without a decided class."""
        return intervals.mean(
            np.array([[line.certificate.prediction == ABSTAIN] for line in self.lines]), "abstained"
        )

    def radii(self) -> np.ndarray:
        """[N] radii, 0 where the vote is wrong or undecided."""
        return np.array([line.certificate.radius if line.right else 0.0 for line in self.lines])

    def draws(self) -> np.ndarray:
        """[N] draws spent."""
        return np.array([line.certificate.draws for line in self.lines])

    @classmethod
    def load(cls, folder: str | Path) -> "Certified":
        """The finished or unfinished run in a folder; RecordsError where there is none."""
        folder = Path(folder)
        try:
            meta = json.loads((folder / "certify.json").read_text())
        except (OSError, json.JSONDecodeError) as problem:
            raise RecordsError("a folder of `stochade certify`", f"{folder}: {problem}") from None
        return cls(_lines(folder / "certificates.jsonl"), meta)


def _lines(path: Path) -> list[Line]:
    """Whole lines only: the last one may have been cut by a kill."""
    if not path.is_file():
        return []
    whole = path.read_bytes().rpartition(b"\n")[0]
    found = []
    for text in whole.decode().splitlines():
        told = json.loads(text)
        told["votes"] = tuple(told["votes"])
        found.append(Line(told.pop("row"), told.pop("id"), told.pop("label"), Certificate(**told)))
    return found


def certify_examples(
    model: Model, images: Any, labels: Any, smoothing: Smoothing, *, selection: int = 100, draws: int = 100_000,
    alpha: float = 0.001, batch: int = 1000, seed: int = 0, out: str | Path | None = None, device: str = "cpu",
    independent: bool = False, radii: Sequence[float] = (), show_progress: bool = True, meta: dict | None = None,
) -> Certified:  # fmt: skip
    """`certify` over a data set, with records.

    Args:
        images, labels: as for `evaluate`. The rest as for `certify`.
        radii: distances above 0; when given, each is decided with as few draws as that takes (`largest`) and `draws`
            are the most; a certificate's radius is then just above the largest that is certified.
        out: folder of the run; a stopped run in it goes on, another one is refused.
        meta: further facts for the records.

    Raises:
        RecordsError: `out` holds another run. Else as `certify`, before any compute.
    """
    check_alpha(alpha)
    check_draws(selection, draws, alpha)
    check_count(batch, "draws per forward (batch)")
    asked = [r * ABOVE for r in check_radii(radii)] if radii else []
    source = Source(images, labels, 1)
    config = {
        "schema": 1, "examples": len(source), "selection": selection, "draws": draws, "alpha": alpha, "batch": batch,
        "seed": seed, "device": device, "smoothing": smoothing.describe(), "unit": smoothing.unit,
        "radii": list(radii), "about": meta or {},
    }  # fmt: skip
    config["digest"] = digest([config, fingerprint_model(model), fingerprint_data(source)])
    folder = None if out is None else Path(out)
    done = [] if folder is None else _open(folder, config)
    classes = first_look(model, source[0][0].to(device), smoothing, independent) if len(done) < len(source) else 0
    label = f"certifying, {'at most ' if asked else ''}{selection + draws} draws each"
    with untouched(model), progress(label, len(source), show_progress, len(done)) as tick:
        for row in range(len(done), len(source)):
            x, y = source[row]
            identity = int(identities(x, y)[0])
            voter = Voter(model, smoothing, x.to(device), seed, identity, batch)
            if asked:
                one = _largest(voter, classes, asked, selection, draws, alpha)
            else:
                one = certify_one(voter, classes, selection, draws, alpha)
            done.append(Line(row, identity, int(y), one))
            if folder is not None:
                _append(folder, done[-1])
            tick(1, f"certified {sum(line.right for line in done)} of {row + 1}")
    return Certified(done, config)


def _largest(voter: Voter, classes: int, radii: list[float], selection: int, draws: int, alpha: float) -> Certificate:
    """As a certificate: no bound of the probability, votes for the chosen class and for all others."""
    found = largest(voter, classes, radii, selection=selection, most=draws, alpha=alpha)
    counts = [0] * classes
    if found.chosen != ABSTAIN:
        counts[found.chosen] = found.votes
    return Certificate(found.prediction, found.radius, 0.0, tuple(counts), found.draws, found.seconds)


def _append(folder: Path, line: Line) -> None:
    told = {"row": line.row, "id": line.id, "label": line.label, **asdict(line.certificate)}
    with open(folder / "certificates.jsonl", "ab") as file:
        file.write((json.dumps(told) + "\n").encode())
        file.flush()


def _open(folder: Path, config: dict) -> list[Line]:
    """The certificates that a stopped run of the same settings left; its cut last line is removed."""
    path = folder / "certify.json"
    if not path.is_file():
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise RecordsError("an empty folder", str(folder), "choose another out folder")
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, config)
        write_json(folder / "provenance.json", provenance())
        return []
    before = Certified.load(folder)
    if before.meta.get("digest") != config["digest"]:
        keys = [k for k in config if k != "digest" and before.meta.get(k) != json.loads(json.dumps(config[k]))]
        raise RecordsError(
            "an empty folder or a stopped run of the same settings",
            f"{folder} with a run that differs in: {', '.join(keys) or 'model or images'}",
            "choose another out folder, or delete this one",
        )  # fmt: skip
    lines = folder / "certificates.jsonl"
    if lines.is_file():
        content = lines.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:
            lines.write_bytes(whole)
    return before.lines


GREYS = (0.5, 1, 2, 4, 8)


def grid(smoothing: Smoothing, draws: int, alpha: float, count: int = 5) -> list[float]:
    """Distances for a table: 0 and even steps up to the largest radius that unanimous draws would certify anywhere; a
    few grey levels of 1/255 where that depends on the image."""
    most = smoothing.radius(ceiling(draws, alpha))
    steps = [most * i / count for i in range(1, count + 1)] if most > 0 else [level / 255 for level in GREYS]
    return [0.0, *(float(f"{step:.3g}") for step in steps)]
