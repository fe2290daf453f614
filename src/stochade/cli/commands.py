"""The commands. Each is a dataclass whose fields are its options; heavy imports stay inside `run`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, PositionalMetavarFromFieldName

from stochade.cli import common
from stochade.cli.attack import Attack
from stochade.cli.audit import Audit
from stochade.cli.certify import Certify
from stochade.cli.detect import Detect
from stochade.cli.measure import Measure
from stochade.cli.reproduce import Reproduce
from stochade.cli.train import Train
from stochade.cli.transfer import Transfer
from stochade.cli.verify import Verify
from stochade.errors import UsageError

Name = Annotated[str, Positional, PositionalMetavarFromFieldName]


@dataclass
class Report:
    """Build the report of a finished run again, from its records alone; no model is loaded.

    Examples:

    stochade report runs/demo

    stochade report runs/demo --format latex

    stochade report runs/demo --to paper/report.html
    """

    folder: Annotated[Path, Positional, PositionalMetavarFromFieldName]
    """The folder of an audit or an attack run."""
    to: Path | None = None
    """Where the page goes; default FOLDER/report.html."""
    format: str = "html"
    """html (a page), or markdown, csv, latex (the accuracy table on standard output)."""

    def run(self) -> None:
        from stochade.audit.result import Audit as Result
        from stochade.evaluate import Records
        from stochade.progress import progress
        from stochade.report import build, table

        if self.format != "html":
            common.check_format(self.format)
        audited = (self.folder / "audit.json").is_file()
        with progress("reading records"):
            result = Result.load(self.folder) if audited else Records.load(self.folder)
        if self.format != "html":
            print(table(result, self.format))
            return
        with progress("writing the report"):
            page = build(result, self.to or self.folder / "report.html")
        print(f"report: {page}")


@dataclass
class Diff:
    """Compare two runs on the same examples, attack by attack: paired differences with intervals.

    Examples:

    stochade diff runs/before runs/after

    stochade diff runs/a runs/b --kind vote --threat linf=0.1
    """

    first: Annotated[Path, Positional, PositionalMetavarFromFieldName]
    """Folder of the first run."""
    second: Annotated[Path, Positional, PositionalMetavarFromFieldName]
    """Folder of the second run."""
    kind: str = "single"
    """single, vote or all."""
    threat: str | None = None
    """Threat of the "worst" row where the runs hold several."""

    def run(self) -> None:
        from stochade.attacks import parse_threat
        from stochade.evaluate import Records, compare_runs
        from stochade.progress import progress

        threat = None if self.threat is None else parse_threat(self.threat)
        with progress("reading records"):
            first, second = Records.load(self.first), Records.load(self.second)
            rows = compare_runs(first, second, self.kind, threat)
        common = rows[0].difference.examples
        print(f"{common} examples in both runs ({len(first)} and {len(second)} in all)")
        if first.meta.get("model") != second.meta.get("model"):
            print("the two runs are of different models")
        width = max(len(r.attack) for r in rows)
        print(f"{'':{width}}  {'first':22}  {'second':22}  second - first, points (paired)")
        for r in rows:
            d = r.difference
            gap = "unknown" if d.value is None else f"{100 * d.value:+.1f}"
            if d.low is not None and d.high is not None:
                gap += f" [{100 * d.low:+.1f}, {100 * d.high:+.1f}]"
            print(f"{r.attack:{width}}  {r.first!s:22}  {r.second!s:22}  {gap}")


@dataclass
class Ls:
    """List what can be named: models, targets, attacks, threats, objectives, defences, certificates, recipes, data.

    Examples:

    stochade ls

    stochade ls attacks
    """

    what: Name = "all"
    """all, or one of the kinds."""

    def run(self) -> None:
        from stochade.listing import attack_details, listing
        from stochade.progress import progress

        with progress("listing"):
            kinds = listing()
        details = attack_details() if self.what == "attacks" else {}
        if self.what != "all" and self.what not in kinds:
            raise UsageError(f"one of: all, {', '.join(kinds)}", repr(self.what))
        for kind, entries in kinds.items():
            if self.what not in ("all", kind):
                continue
            print(f"{kind}:")
            width = max((len(n) for n in entries), default=0)
            for name, description in entries.items():
                print(f"  {name:{width}}  {description}")
                for line in details.get(name, ()) if kind == "attacks" else ():
                    print(f"  {'':{width}}    {line}")
            if not entries:
                print("  (none yet)")
        if details:
            print("every attack takes eps=NUMBER, norm=NORM and target=least-likely|runner-up|random|CLASS as well")


@dataclass
class Doctor:
    """Say what is installed, which devices there are, and which data are found.

    Examples:

    stochade doctor
    """

    def run(self) -> None:
        from stochade.listing import doctor

        for name, value in doctor().items():
            print(f"{name:22} {value}")


COMMANDS = {
    "audit": Audit, "train": Train, "attack": Attack, "report": Report, "transfer": Transfer,
    "reproduce": Reproduce, "measure": Measure, "certify": Certify, "verify": Verify, "detect": Detect, "diff": Diff,
    "ls": Ls, "doctor": Doctor,
}  # fmt: skip
