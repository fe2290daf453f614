"""The headline: what was claimed, what was found and why they differ, in words that promise nothing."""

from dataclasses import dataclass

from stochade.audit.result import Audit
from stochade.evaluate.intervals import Estimate
from stochade.evaluate.records import CLEAN, WORST, Records
from stochade.report.rows import percent, shared_threats, threat_text

NO_SIGN = "No sign of gradient masking was found by the checks that ran. This is not a proof that there is none."


@dataclass(frozen=True)
class Bar:
    """One legible number: `role` is "clean", "published", "claimed" or "found"."""

    role: str
    label: str
    detail: str
    estimate: Estimate


@dataclass(frozen=True)
class Headline:
    """`looks` and `leaves` are the two halves of the statement, `why` one sentence, `caveat` what it is not."""

    bars: list[Bar]
    looks: tuple[str, Estimate, str] | None
    leaves: tuple[str, Estimate, str] | None
    why: str
    caveat: str

    @property
    def statement(self) -> str:
        """The statement as one plain sentence, empty for bare records without one common threat."""
        halves = [f"{a}{estimate}{b}" for a, estimate, b in filter(None, (self.looks, self.leaves))]
        return "; ".join(halves) + "." if halves else ""


def headline(records: Records, audit: Audit | None) -> Headline:
    """The headline of an audit, or of bare records (clean accuracy and the lowest found per shared threat)."""
    return _of_audit(audit) if audit is not None else _of_records(records)


def _of_audit(audit: Audit) -> Headline:
    records, claim = audit.records, audit.claim_attack
    claimed, found = audit.claimed, audit.found
    record = records.attacks.get(claim)
    where = threat_text(record.threat if record else None)
    inside = threat_text(audit.threat)
    named = claim + (f", {where}" if where else "")
    bars = [_clean(records)] if CLEAN in records.attacks else []
    if audit.claim is not None:
        printed = Estimate(float(audit.claim), None, None, 0, 0, kind="published")
        bars.append(Bar("published", "Published claim", "as printed, no interval given", printed))
    bars.append(Bar("claimed", "Authors’ attack, rerun", named, claimed))
    bars.append(Bar("found", "Lowest accuracy found", f"worst attack per image, {inside}", found))
    lower = claimed.value is None or found.value is None or found.value < claimed.value
    tail = "" if where == inside else f" ({inside})"
    if lower:
        leaves = ("the best attack found leaves ", found, tail)
    else:
        leaves = ("no attack tried here found less: the worst one per image leaves ", found, tail)
    looks = ("Looks ", claimed, f" accurate under the authors’ attack ({named})")
    return Headline(bars, looks, leaves, _why(audit, lower), _caveat(audit))


def _of_records(records: Records) -> Headline:
    bars = [_clean(records)] if CLEAN in records.attacks else []
    threats = shared_threats(records, at_least=1)
    for threat in threats:
        tried = [n for n in records.within(threat) if n != CLEAN]
        detail = f"worst of {len(tried)} attack{'s' * (len(tried) != 1)} per image"
        found = records.score(WORST, threat=threat)
        bars.append(Bar("found", f"Lowest found, {threat_text(threat)}", detail, found))
    leaves = None
    if len(threats) == 1:
        leaves = ("The best attack found leaves ", bars[-1].estimate, f" accuracy ({threat_text(threats[0])})")
    why = "These are bare records: no check for gradient masking ran on them."
    return Headline(bars, None, leaves, why, _UPPER)


_UPPER = (
    "Every accuracy under attack is an upper bound: it says what the attacks that were run could do, "
    "and a stronger attack may leave less."
)


def _clean(records: Records) -> Bar:
    return Bar("clean", "Clean images", "no attack", records.score(CLEAN))


def _why(audit: Audit, lower: bool) -> str:
    masking = _titles(audit, "masking")
    if masking:
        return ("Why they differ: " if lower else "Signs of gradient masking: ") + masking + "."
    weak = _titles(audit, "incomplete") if lower else ""
    return (f"Why they differ: {weak}. " if weak else "") + NO_SIGN


def _titles(audit: Audit, severity: str) -> str:
    return "; ".join(f.title.strip().rstrip(".;") for f in audit.findings if f.severity == severity)


def _caveat(audit: Audit) -> str:
    open_ends = sum(f.severity == "incomplete" for f in audit.findings)
    if not open_ends:
        return _UPPER
    many = "One finding says" if open_ends == 1 else f"{open_ends} findings say"
    return f"{_UPPER} {many} that the attacks were not strong or long enough to conclude."


def spoken(estimate: Estimate) -> str:
    """An estimate for a screen reader: "12.0 %, 95 % interval 8.1 % to 17.0 %"."""
    if estimate.low is None or estimate.high is None:
        return percent(estimate.value)
    return f"{percent(estimate.value)}, 95 % interval {percent(estimate.low)} to {percent(estimate.high)}"
