"""`stochade verify`: exact answers for small binarised networks, image by image."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import OmitArgPrefixes, Positional, PositionalMetavarFromFieldName

from stochade.cli import common
from stochade.errors import BudgetError

STATUSES = ("robust", "broken", "unknown")


@dataclass
class Verify:
    """Decide exactly whether any image within linf or l0 of a test image changes the class of a small binarised
    TARGET: robust (proven), broken (with an example that the model was run on), or unknown (time). The same command
    goes on where a stopped one was.

    Examples:

    stochade verify runs/dbn --data digits --threat linf=0.05 --seconds 10

    stochade verify runs/dbn --data mnist --threat l0=2 --examples 50 --out runs/exact
    """

    target: Annotated[str, Positional, PositionalMetavarFromFieldName]
    """A checkpoint folder, a name of `stochade ls targets`, module:function or file.py:function."""
    out: Path | None = None
    """Folder for the verdicts (runs/verify-TARGET)."""
    threat: str = "linf=0.05"
    """linf=EPS, or l0=K changed values."""
    seconds: float = 10.0
    """For each image; what is not decided by then is unknown."""
    no_attack: bool = False
    """Leave out the attack that looks for easy examples first."""
    seed: int = 0
    """Of the choice of images and of that attack."""
    quiet: bool = False
    """No progress."""
    images: OmitArgPrefixes[common.DataOptions] = field(default_factory=common.DataOptions)

    def run(self) -> None:
        import torch

        from stochade.attacks import PGD, parse_threat
        from stochade.certify.exact import Verdict, verify
        from stochade.certify.identity import fingerprint
        from stochade.certify.lines import check_same, taken_up
        from stochade.describe import digest
        from stochade.evaluate.run import fingerprint_data
        from stochade.evaluate.source import Source
        from stochade.progress import progress
        from stochade.targets import load_target

        if not self.seconds >= 0:
            raise BudgetError("--seconds of at least 0", str(self.seconds))
        threat = parse_threat(self.threat)
        target = load_target(self.target, seed=0, show_progress=not self.quiet)
        images, labels, facts = common.load_images(self.images, target.data, self.seed)
        source = Source(images, labels, 1)
        attacks = [] if self.no_attack else [PGD(threat, steps=20)]
        verify(target.model, *source[0], threat, 0.0, attacks)  # every refusal, before anything is written
        config = {
            "schema": 1, "examples": len(source), "threat": str(threat), "seconds": self.seconds,
            "attack": not self.no_attack, "seed": self.seed, "about": target.about | facts,
        }  # fmt: skip
        config["digest"] = digest([config, fingerprint(target.model), fingerprint_data(source)])
        out = self.out or Path("runs") / f"verify-{common.file_name(self.target)}"

        def asked(rows: list[int], tell: Callable[[Verdict], None]) -> list[Verdict]:
            parts = [source[row] for row in rows]
            x, y = (torch.cat(part) for part in zip(*parts, strict=True))
            return verify(target.model, x, y, threat, self.seconds, attacks, tell)

        with taken_up(out, "verify.json", "verdicts.jsonl", config, _verdict) as records:
            done = records.found
            kept = next((told for told in done if told["status"] != "unknown"), None)
            if kept is not None:
                again = asked([kept["row"]], lambda verdict: None)[0].status
                check_same(kept["row"], kept["status"], kept["status"] if again == "unknown" else again, out)
            with progress("verifying", len(source), not self.quiet, len(done)) as tick:

                def keep(found: Verdict) -> None:
                    row = len(done)
                    done.append(_line(row, int(source[row][1]), found))
                    records.append(done[-1])
                    tick(1, ", ".join(f"{_count(done, s)} {s}" for s in STATUSES))

                if len(done) < len(source):
                    asked(list(range(len(done), len(source))), keep)
        self._tell(target.name, str(facts["data"]), str(threat), done, out)

    def _tell(self, name: str, data: str, threat: str, done: list[dict], out: Path) -> None:
        from stochade.evaluate.intervals import binomial

        print(f"{name} on {data}: {len(done)} images, {threat}")
        for status in STATUSES:
            count = _count(done, status)
            low, high = binomial(count, len(done))
            print(f"{status:8} {count:6}  {100 * count / len(done):.1f} % [{100 * low:.1f}, {100 * high:.1f}]")
        robust, broken = (_count(done, s) for s in STATUSES[:2])
        print(f"accuracy under the threat on these images: {robust} to {len(done) - broken} of {len(done)}, proven")
        print(f"verdicts: {out / 'verdicts.jsonl'}")


def _line(row: int, label: int, found: Any) -> dict:
    """What is kept of a `Verdict`."""
    return {
        "row": row, "label": label, "status": found.status, "reason": found.reason,
        "seconds": round(found.seconds, 4), "units": found.units, "open": found.open, "solved": found.solved,
        "example": None if found.example is None else found.example.flatten().tolist(),
    }  # fmt: skip


def _count(done: list[dict], status: str) -> int:
    return sum(one["status"] == status for one in done)


def _verdict(told: dict) -> dict:
    """A line as it is; ValueError for another status."""
    if told["status"] not in STATUSES:
        raise ValueError(f"status {told['status']!r}")
    return told
