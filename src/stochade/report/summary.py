"""The outcome of an audit in about ten plain lines for a terminal."""

from collections import Counter
from pathlib import Path

from stochade.audit.claims import Card
from stochade.audit.findings import SEVERITIES
from stochade.audit.result import Audit
from stochade.report.headline import headline
from stochade.report.rows import severity_rank, threat_text, unpack


def summary(audit: Audit, report: str | Path | None = None) -> str:
    """Clean, claimed and lowest accuracy found, why they differ, the findings, and where the report lies.

    Plain text without colour or control characters; at most six findings are named, masking first.

    Raises:
        RecordsError: the records are empty or lack the claimed attack.
    """
    records, known = unpack(audit)
    head = headline(records, known)
    labels = [f"{bar.label} ({bar.detail})" for bar in head.bars]
    width = max(map(len, labels), default=0)
    lines = [f"  {label:<{width}}  {bar.estimate}" for label, bar in zip(labels, head.bars, strict=True)]
    if known is not None and (card := known.card) is not None:
        lines += ["", *_claim(card)]
    if known is not None:
        lines += ["", *_findings(known)]
    lines += ["", head.why, f"{len(records)} examples, {records.draws} draws each; 95 % intervals; upper bounds."]
    if report is not None:
        lines.append(f"Report: {report}")
    title = f"Audit under {threat_text(known.threat)}" if known else "Records"
    return "\n".join(_printable(line) for line in [title, *lines])


def _claim(card: Card) -> list[str]:
    """The claim card: the verdict, the three numbers inside it, and what repeats it."""
    told = f"Claim ({card.attack}, {threat_text(card.threat)}): {card.title[:1].lower()}{card.title[1:]}."
    return [told, *(f"  {sentence}" for sentence in card.verdict), f"  Repeat: {card.command}"]


def _findings(audit: Audit, most: int = 6) -> list[str]:
    if not audit.findings:
        return ["No findings from the checks that ran."]
    counts = Counter(f.severity for f in audit.findings)
    ordered = sorted(audit.findings, key=severity_rank)
    lines = ["Findings: " + ", ".join(f"{counts[s]} {s}" for s in SEVERITIES if counts[s])]
    lines += [f"  {f.severity:<10}  {f.title}" for f in ordered[:most]]
    if len(ordered) > most:
        lines.append(f"  and {len(ordered) - most} more in the report")
    return lines


def _printable(line: str) -> str:
    """Names come from files: control characters could move the cursor or recolour the terminal."""
    return "".join(c if c.isprintable() else "?" for c in line)
