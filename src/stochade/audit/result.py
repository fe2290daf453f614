"""What an audit hands back: records, findings, curves and the headline, on disk as one folder."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from stochade.audit.claims import Card, card_of
from stochade.audit.findings import Finding
from stochade.errors import RecordsError
from stochade.evaluate.intervals import Estimate
from stochade.evaluate.records import Records
from stochade.files import write_atomically


@dataclass
class Audit:
    """The outcome of one audit.

    Attributes:
        records: raw records of every attack that was run.
        findings: what the checks saw, masking first.
        threat: {"norm", "eps"}: what the headline is about.
        claim_attack: name of the attack in the records that stands for the authors' own ("fgsm" unless told
            otherwise).
        claim: accuracy that was claimed in print for that attack, or None.
        curves: "budget", "steps", "draws" -> [{"x": number, "attack": name in the records}, ...], sorted by x.
        probes: measurements on the model itself (gradient norms, cosines between draws, state, scope, ...).
        request: digest of everything that determines the outcome; tells one audit's folder from another's.
        search: what the adaptive search tried, in that order: dicts of attack, parts, rung, examples, passes (per
            example), accuracy, low, high, kept, note.
        claimed_as: the claimed attack as it was written ("fgsm eps=0.3"), empty where nobody named one.
        command: what repeats this audit.
    """

    records: Records
    findings: list[Finding]
    threat: dict
    claim_attack: str
    claim: float | None = None
    curves: dict[str, list[dict]] = field(default_factory=dict)
    probes: dict = field(default_factory=dict)
    request: str = ""
    search: list[dict] = field(default_factory=list)
    claimed_as: str = ""
    command: str = ""

    @property
    def clean(self) -> Estimate:
        """Accuracy on the images as they are."""
        return self.records.score("clean")

    @property
    def claimed(self) -> Estimate:
        """Accuracy under the attack the authors would use, on our draws."""
        return self.records.score(self.claim_attack)

    @property
    def found(self) -> Estimate:
        """The lowest accuracy found: worst attack per example inside the threat. An upper bound, never a proof."""
        return self.records.score("worst", threat=self.threat)

    @property
    def card(self) -> Card | None:
        """The claim beside its replication and the lowest accuracy found; None where nobody claimed anything."""
        return card_of(self)

    @property
    def masking(self) -> list[Finding]:
        """The findings that say the claimed robustness is not real."""
        return [f for f in self.findings if f.severity == "masking"]

    def save(self, folder: str | Path) -> Path:
        """Write `audit.json` beside the records (which are written there if they are not yet)."""
        folder = Path(folder)
        if self.records.folder is None or Path(self.records.folder).resolve() != folder.resolve():
            self.records.save(folder)
        card = self.card
        document = {
            "schema": 2,
            "request": self.request,
            "threat": self.threat,
            "claim_attack": self.claim_attack,
            "claim": self.claim,
            "claimed_as": self.claimed_as,
            "command": self.command,
            "curves": self.curves,
            "probes": self.probes,
            "findings": [f.as_dict() for f in self.findings],
            "headline": {
                "clean": self.clean.as_dict(),
                "claimed": self.claimed.as_dict(),
                "found": self.found.as_dict(),
            },
            "card": None if card is None else card.as_dict(),
            "search": self.search,
        }
        write_atomically(folder / "audit.json", (json.dumps(document, indent=1) + "\n").encode())
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> "Audit":
        """Read an audit folder back; RecordsError where there is none."""
        folder = Path(folder)
        path = folder / "audit.json"
        if not path.is_file():
            raise RecordsError("a folder with audit.json", str(folder), "run: stochade audit TARGET --out FOLDER")
        try:
            document = json.loads(path.read_text())
        except json.JSONDecodeError as problem:
            raise RecordsError(f"valid JSON in {path}", str(problem), "delete it and run the audit again") from None
        if document["schema"] == 1:  # before claims had attacks of their own
            document |= {"claim_attack": document["claim"], "claim": document["published"]}
        return cls(
            records=Records.load(folder),
            findings=[Finding(**item) for item in document["findings"]],
            threat=document["threat"],
            claim_attack=document["claim_attack"],
            claim=document["claim"],
            curves=document["curves"],
            probes=document["probes"],
            request=document.get("request", ""),
            search=document.get("search", []),
            claimed_as=document.get("claimed_as", ""),
            command=document.get("command", ""),
        )
