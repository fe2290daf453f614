"""Findings: what an audit saw, with its evidence and the next step. Never "passed"."""

from dataclasses import asdict, dataclass, field

SEVERITIES = ("masking", "incomplete", "notice")


@dataclass(frozen=True)
class Finding:
    """One thing an audit saw.

    Attributes:
        check: short name of the check, e.g. "one-step-beats-iterated".
        severity: "masking" (robustness that is not real), "incomplete" (the attack was not strong or long enough
            to conclude), "notice" (a fact that a reader needs, e.g. the model is random).
        title: one plain sentence.
        evidence: name -> number or text, all from this run.
        next_step: what to do about it.
        source: where the check and its threshold come from.
    """

    check: str
    severity: str
    title: str
    evidence: dict = field(default_factory=dict)
    next_step: str = ""
    source: str = ""

    def as_dict(self) -> dict:
        return asdict(self)
