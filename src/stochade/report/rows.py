"""Rows of an accuracy table, and how numbers are written: shared by the HTML page, the tables and the summary."""

import math
from dataclasses import dataclass, field

import numpy as np

from stochade.audit.findings import SEVERITIES, Finding
from stochade.audit.result import Audit
from stochade.errors import RecordsError
from stochade.evaluate.intervals import Estimate
from stochade.evaluate.records import CLEAN, KINDS, ON_CODES, WORST, Records, threat_info, threat_key, threat_words

UNKNOWN = "–"


@dataclass(frozen=True)
class Row:
    """What one attack did, ready to be written.

    Attributes:
        name: name of the attack in the records, or "worst".
        label: what the attack calls itself, the name where it does not say.
        threat: {"norm", "eps"} or None.
        scores: kind -> Estimate.
        distance: median over the examples (inf where most attempts failed), None where unknown.
        failed: how many attempts returned no adversarial example (distance inf).
        forwards, backwards: mean passes per example, None for "worst".
        reached: how often the class that the attack pulled to was predicted; None without targets.
        members: of a suite, what each brought, in their order; empty for other attacks.
    """

    name: str
    label: str
    threat: dict | None
    scores: dict[str, Estimate]
    distance: float | None = None
    failed: int = 0
    forwards: float | None = None
    backwards: float | None = None
    reached: Estimate | None = None
    members: list["Member"] = field(default_factory=list)


@dataclass(frozen=True)
class Member:
    """One member of a suite: on how many examples its inputs were handed back, and on how many of these the model
    errs in at least half of the scoring draws. `number`: its place, -1 for the clean image."""

    name: str
    number: int
    chosen: int
    broken: int


def unpack(source: Audit | Records) -> tuple[Records, Audit | None]:
    """The records of an audit, or bare records and no audit.

    Raises:
        RecordsError: something else, or records without examples or attacks.
    """
    audit = source if isinstance(source, Audit) else None
    records = audit.records if audit else source
    if not isinstance(records, Records):
        hint = "load one with Audit.load(folder) or Records.load(folder)"
        raise RecordsError("an Audit or Records", type(source).__name__, hint)
    if not len(records) or not records.attacks:
        got = f"{len(records)} examples and {len(records.attacks)} attacks"
        raise RecordsError("records of at least one example and one attack", got, "evaluate first")
    return records, audit


def attack_row(records: Records, name: str, kinds=KINDS) -> Row:
    """The row of one attack."""
    record = records.attacks[name]
    distance = np.asarray(record.distance, dtype=np.float64)
    known = distance[~np.isnan(distance)]
    return Row(
        name=name,
        label=str(record.info.get("label") or name),
        threat=record.threat,
        scores={kind: records.score(name, kind) for kind in kinds},
        distance=float(np.median(known)) if len(known) and name != CLEAN else None,
        failed=int(np.isinf(known).sum()),
        forwards=float(np.mean(record.forwards)) if len(record.forwards) else None,
        backwards=float(np.mean(record.backwards)) if len(record.backwards) else None,
        reached=records.reached(name),
        members=members_of(records, name),
    )


def members_of(records: Records, name: str) -> list[Member]:
    """What each member of a suite brought, the clean image first; empty for other attacks."""
    record = records.attacks[name]
    names = record.info.get("members")
    if not isinstance(names, list) or not names:
        return []
    errs = records.right(name).mean(1) <= 0.5
    found = []
    for number_, member in enumerate(["no attack", *names], -1):
        rows = record.winner == number_
        found.append(Member(str(member), number_, int(rows.sum()), int((rows & errs).sum())))
    return found


def members_text(row: Row) -> str:
    """What the members of a suite broke, in one line."""
    parts = [f"{m.name}: {m.broken}" for m in row.members]
    left = sum(m.chosen - m.broken for m in row.members)
    return f"{row.name}, examples broken by each member: {'; '.join(parts)}; unbroken: {left}"


def worst_row(records: Records, threat, kinds=KINDS) -> Row:
    """The row of the worst attack per example inside a threat."""
    scores = {kind: records.score(WORST, kind, threat=threat) for kind in kinds}
    return Row(WORST, "worst per example", threat_info(threat), scores)


def composition(records: Records, threat) -> list[tuple[str, float]]:
    """Which attacks make up "worst": (name, share of the examples), largest first, zeros left out."""
    names = records.within(threat)
    shares = np.bincount(records.worst_choice(threat), minlength=len(names)) / len(records)
    pairs = [(name, float(share)) for name, share in zip(names, shares, strict=True) if share > 0]
    return sorted(pairs, key=lambda pair: -pair[1])


def shared_threats(records: Records, at_least: int = 2) -> list[dict]:
    """The threats that at least so many attacks share exactly, in order of appearance."""
    seen: dict[tuple, list] = {}
    for record in records.attacks.values():
        if record.threat is not None:
            seen.setdefault(threat_key(record.threat) or (), []).append(record.threat)
    return [same[0] for same in seen.values() if len(same) >= at_least]


def is_random(records: Records) -> bool:
    """Whether any prediction differs between draws."""
    return any((r.predictions != r.predictions[:, :1]).any() for r in records.attacks.values())


def threat_text(threat) -> str:
    """A threat in words: "linf 0.2", "linf 8/255", "l0 12 per pixel", "flips 10 in total"; empty for none."""
    info = threat_info(threat)
    if info is None or info["norm"] in ON_CODES:
        return threat_words(info)
    per = f" per {info['per']}" if info.get("per") else ""
    return f"{info['norm']} {budget_text(info['eps'])}{per}"


def norm_text(threat: dict) -> str:
    """What a budget counts: "linf", "signed flips per frame"."""
    if threat["norm"] not in ON_CODES:
        return threat["norm"]
    return threat_words(threat | {"eps": 0.0}).replace("flips 0 ", "flips ")


def budget_text(eps) -> str:
    """A budget as it is usually said: 0.2, or 8/255 where the decimals would be endless."""
    eps = float(eps)
    scaled = eps * 255
    endless = round(eps, 3) != eps
    if endless and eps < 1 and round(scaled) >= 1 and math.isclose(scaled, round(scaled), rel_tol=1e-4):
        return f"{round(scaled)}/255"
    return f"{eps:.4g}"


def percent(value: float | None) -> str:
    """An accuracy in percent with one decimal; a dash where it is unknown."""
    return UNKNOWN if value is None else f"{100 * value:.1f} %"


def interval_text(estimate: Estimate) -> str:
    """The limits in percent, "[80.0, 86.0]"; empty where they are unknown."""
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return ""
    return f"[{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"


def number(value) -> str:
    """Any number in at most four significant digits, counts whole; a dash for None and NaN."""
    if value is None:
        return UNKNOWN
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, int | np.integer):
        return str(value)
    value = float(value)
    if math.isnan(value):
        return UNKNOWN
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if 1000 <= abs(value) < 1e6:
        return f"{value:.0f}"
    return f"{value:.4g}"


def passes(count: float | None) -> str:
    """A mean number of passes: whole from ten on, one decimal below where it is not whole anyway."""
    if count is None or math.isnan(count):
        return UNKNOWN
    return f"{count:.0f}" if count >= 10 or count == int(count) else f"{count:.1f}"


def severity_rank(finding: Finding) -> int:
    """Masking first, then incomplete, then notices; a severity from elsewhere comes last."""
    return SEVERITIES.index(finding.severity) if finding.severity in SEVERITIES else len(SEVERITIES)
