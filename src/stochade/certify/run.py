"""A run of certificates: one line per example, written as it is found, so that a stopped run goes on where it was.

OUT/certify.json          what was asked, its digest
OUT/certificates.jsonl    one certificate a line
OUT/provenance.json       versions, hardware, revision
"""

import math
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stochade.certify.confidence import ceiling, check_alpha, check_count, check_draws
from stochade.certify.identity import fingerprint
from stochade.certify.lines import Lines, check_same, read_lines, read_settings, taken_up
from stochade.certify.procedure import ABSTAIN, Certificate, certify_one, first_look
from stochade.certify.sequential import check_radii, largest
from stochade.certify.smoothing import Model, Smoothing
from stochade.certify.votes import Voter
from stochade.describe import digest
from stochade.evaluate import Estimate, intervals
from stochade.evaluate.run import fingerprint_data
from stochade.evaluate.source import Source
from stochade.progress import progress
from stochade.randomness import identities, untouched

SETTINGS, LINES = "certify.json", "certificates.jsonl"
ABOVE = 1 + 1e-9  # "at distances below this" includes the distance that was asked for
VOTE = 1e-12  # and, for distance 0, nothing else


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
        meta = read_settings(Path(folder) / SETTINGS)
        return cls(read_lines(Path(folder) / LINES, meta["examples"], _line), meta)


def _line(told: dict) -> Line:
    votes, numbers = tuple(int(v) for v in told["votes"]), ("radius", "lower", "seconds")
    certificate = Certificate(
        int(told["prediction"]), votes=votes, draws=int(told["draws"]), **{n: float(told[n]) for n in numbers}
    )
    return Line(told["row"], int(told["id"]), int(told["label"]), certificate)


def _told(line: Line) -> dict:
    return {"row": line.row, "id": line.id, "label": line.label, **asdict(line.certificate)}


def certify_examples(
    model: Model, images: Any, labels: Any, smoothing: Smoothing, *, selection: int = 100, draws: int = 100_000,
    alpha: float = 0.001, batch: int = 1000, seed: int = 0, out: str | Path | None = None, device: str = "cpu",
    independent: bool = False, radii: Sequence[float] = (), show_progress: bool = True, meta: dict | None = None,
    held: ExitStack | None = None,
) -> Certified:  # fmt: skip
    """`certify` over a data set, with records.

    Args:
        images, labels: as for `evaluate`. The rest as for `certify`.
        radii: rising distances; when given, each is decided with as few draws as that takes (`largest`) and `draws`
            are the most; a certificate's radius is then just above the largest that is certified. At distance 0 the
            vote itself is decided.
        out: folder of the run, held by one run at a time; a stopped run in it goes on, another one is refused. Its
            first example with draws is drawn once more, to see that the model is still the one of the run.
        meta: further facts for the records.
        held: keeps other runs out of `out` until it closes, for what else is written there; None: until the last
            certificate.

    Raises:
        RecordsError: `out` holds another run, one of another model, or damaged lines, or is being written to. Else as
            `certify`, before any compute.
    """
    check_alpha(alpha)
    check_draws(selection, draws, alpha)
    check_count(batch, "draws per forward (batch)")
    asked = just_above(radii)
    source = Source(images, labels, 1)
    config = {
        "schema": 1, "examples": len(source), "selection": selection, "draws": draws, "alpha": alpha, "batch": batch,
        "seed": seed, "device": device, "smoothing": smoothing.describe(), "unit": smoothing.unit,
        "radii": list(radii), "about": meta or {},
    }  # fmt: skip
    config["digest"] = digest([config, fingerprint(model), fingerprint_data(source)])
    classes = first_look(model, source[0][0].to(device), smoothing, independent, batch)

    def one(row: int) -> Line:
        x, y = source[row]
        identity = int(identities(x, y)[0])
        voter = Voter(model, smoothing, x.to(device), seed, identity, batch)
        if asked:
            return Line(row, identity, int(y), _largest(voter, classes, asked, selection, draws, alpha))
        return Line(row, identity, int(y), certify_one(voter, classes, selection, draws, alpha))

    run = nullcontext(Lines[Line](Path(), [])) if out is None else taken_up(Path(out), SETTINGS, LINES, config, _line)
    label = f"certifying, {'at most ' if asked else ''}{selection + draws} draws each"
    with ExitStack() as own, untouched(model):
        records = (own if held is None else held).enter_context(run)
        done = list(records.found)
        kept = next((line for line in done if line.certificate.draws), None)
        if kept is not None:
            check_same(kept.row, _drawn(kept), _drawn(one(kept.row)), records.path.parent)
        with progress(label, len(source), show_progress, len(done)) as tick:
            for row in range(len(done), len(source)):
                done.append(one(row))
                if out is not None:
                    records.append(_told(done[-1]))
                tick(1, f"certified {sum(line.right for line in done)} of {row + 1}")
    return Certified(done, config)


def just_above(radii: Sequence[float]) -> list[float]:
    """Radii that include the distances asked for; BudgetError unless those rise from 0 or more."""
    zero = len(radii) > 0 and radii[0] == 0 and not isinstance(radii[0], bool)
    rest = radii[zero:]
    above = [r * ABOVE for r in check_radii(rest)] if rest else []
    return [min([VOTE, *(r / 2 for r in above)])] * zero + above


def _drawn(line: Line) -> tuple:
    """What follows from the model and the seed alone."""
    return line.certificate.prediction, line.certificate.votes, line.certificate.draws


def _largest(voter: Voter, classes: int, radii: list[float], selection: int, draws: int, alpha: float) -> Certificate:
    """As a certificate: no bound of the probability, votes for the chosen class and for all others."""
    found = largest(voter, classes, radii, selection=selection, most=draws, alpha=alpha)
    counts = [0] * classes
    if found.chosen != ABSTAIN:
        counts[found.chosen] = found.votes
    return Certificate(found.prediction, found.radius, 0.0, tuple(counts), found.draws, found.seconds)


GREYS = (0.5, 1, 2, 4, 8)


def grid(smoothing: Smoothing, draws: int, alpha: float, count: int = 5) -> list[float]:
    """Distances for a table: 0 and even steps up to the largest radius that unanimous draws would certify anywhere; a
    few grey levels of 1/255 where that depends on the image. In l0 at most `count` whole numbers, from 0 to the
    largest that is certified."""
    most = smoothing.radius(ceiling(draws, alpha))
    if smoothing.norm == "l0":
        reach = max(0, math.ceil(most) - 1) if most > 0 or smoothing.unit == "flips" else count - 1
        return [float(i) for i in sorted({round(reach * i / (count - 1)) for i in range(count)})]
    steps = [most * i / count for i in range(1, count + 1)] if most > 0 else [level / 255 for level in GREYS]
    return [0.0, *(float(f"{step:.3g}") for step in steps)]
