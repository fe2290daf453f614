"""Claim cards: what was published, what the claimed attack leaves here, and what the strongest attack leaves."""

import math
from dataclasses import asdict, dataclass

from stochade.attacks.base import Attack
from stochade.attacks.codes import attacks_codes
from stochade.attacks.flips import Flips
from stochade.attacks.registry import CODE_ATTACKS, parse_attack
from stochade.attacks.threats import Ball, Linf
from stochade.describe import as_call, describe
from stochade.errors import BudgetError, ThreatError, UsageError
from stochade.evaluate.intervals import Estimate
from stochade.evaluate.records import threat_key, threat_words

FAR = 0.1  # a replication so far from the published accuracy suggests another model
DEFAULT = 0.1  # linf budget where neither a threat nor a claim says one


@dataclass(frozen=True)
class Card:
    """A published claim beside its replication and the lowest accuracy found.

    Attributes:
        attack: the claimed attack as it was written, "fgsm eps=0.3".
        name: its name in the records.
        threat: {"norm", "eps"} of the claimed attack; all three numbers are about it.
        published: the accuracy in print, in [0,1], or None.
        clean: accuracy on clean images. replicated: under the claimed attack, on our draws. found: under the worst
            attack per example inside the claim's threat.
        replicates: whether the published accuracy lies in the interval of the replication; None where no accuracy
            was published or no interval is known.
        survives: the share of the claim (the published accuracy, else the replication) that is left, None where the
            claim is 0.
        undercut: whether the lowest accuracy found is below the claim beyond its interval.
        verdict: plain sentences.
        command: what repeats the audit.
    """

    attack: str
    name: str
    threat: dict
    published: float | None
    clean: Estimate
    replicated: Estimate
    found: Estimate
    replicates: bool | None
    survives: float | None
    undercut: bool
    verdict: list[str]
    command: str

    @property
    def title(self) -> str:
        """The verdict in one line."""
        left = f"at most {100 * (self.survives or 0):.0f} %"
        if self.published is None:
            if self.undercut:
                return f"Of the accuracy under {self.attack}, {left} survives the strongest attack found"
            return f"No attack tried here undercuts {self.attack}"
        known = {True: "The claim replicates", False: "The claim does not replicate"}
        first = "Whether the claim replicates cannot be said" if self.replicates is None else known[self.replicates]
        left = f"{left} of it survives the strongest attack found"
        return f"{first}, and {left if self.undercut else 'no attack tried here undercuts it'}"

    def as_dict(self) -> dict:
        return asdict(self) | {"title": self.title}


def check_claim(value: float | None) -> None:
    """BudgetError for a published accuracy that is no number in [0,1]."""
    if value is None:
        return
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if number and 0 <= value <= 1:
        return
    percent = number and 1 < value <= 100
    hint = f"for {value:.6g} % write {value / 100:.6g}" if percent else "for 93.1 % write 0.931"
    raise BudgetError("a claimed accuracy in [0,1]", repr(value), hint)


def about_codes(text: str | Attack | None) -> bool:
    """Whether a claimed attack is one on codes."""
    if isinstance(text, str):
        return next(iter(text.split()), "") in CODE_ATTACKS
    return attacks_codes(text)


def claimed_attack(
    text: str | Attack | None, threat: Ball | float | None, usual: Ball | None = None
) -> tuple[Attack | None, Ball]:
    """The attack of a claim by name with its own options, None where there is none, and the threat of the audit:
    `threat`, else the attack's own, else `usual`.

    Raises:
        UsageError, BudgetError: an unknown attack or option. ThreatError: another norm than the audit's.
    """
    threat = threat if threat is None or isinstance(threat, Ball) else Linf(threat)
    usual = threat or usual or Linf(DEFAULT)
    if text is None:
        return None, usual
    attack = parse_attack(text, usual) if isinstance(text, str) else text
    if not isinstance(attack, Attack) or not isinstance(attack.threat, Ball):
        raise UsageError("a claimed attack such as 'fgsm eps=0.3'", repr(text), "see: stochade ls attacks")
    if threat is not None and _norm(attack.threat) is not _norm(threat):
        raise ThreatError(
            f"a claimed attack in the audit's norm {threat.name}", f"{attack.threat}",
            "leave the threat out: the audit then runs at the claim's own",
        )  # fmt: skip
    if threat is None and isinstance(attack.threat, Flips):  # fixed flips are flips; without a budget none is claimed
        threat = attack.threat.bound if math.isfinite(attack.threat.size) else usual
    return attack, threat or attack.threat


def _norm(threat: Ball) -> type[Ball]:
    return Flips if isinstance(threat, Flips) else type(threat)


def written(attack: str | Attack) -> str:
    """The claimed attack in words: as it was typed, or as the call that makes it."""
    return " ".join(attack.split()) if isinstance(attack, str) else as_call(describe(attack))


def with_claim(attacks: dict[str, Attack], claim: Attack, text: str) -> tuple[str, dict[str, Attack]]:
    """The name of the claimed attack in the table, and the table with it: no attack runs twice."""
    for name, attack in attacks.items():
        if describe(attack) == describe(claim):
            return name, attacks
    first, _, options = text.partition(" ")
    name = f"claimed {first}({options.replace(' ', ', ')})" if options else f"claimed {first}"
    return name, {name: claim} | attacks


def card_of(audit) -> Card | None:
    """The claim card of an audit; None where nobody claimed anything."""
    if audit.claim is None and not audit.claimed_as:
        return None
    records, name = audit.records, audit.claim_attack
    threat = records.attacks[name].threat or audit.threat
    clean, replicated = audit.clean, audit.claimed
    found = records.score("worst", threat=threat)
    attack = audit.claimed_as or name
    replicates, first = _replication(audit.claim, replicated, attack)
    survives, undercut, last = _survival(audit.claim, replicated, found)
    verdict = [first]
    if audit.claim is not None and clean.high is not None and audit.claim > clean.high:
        verdict.append(
            f"The claim is above the accuracy on clean images here, {clean}: it is about another model or other "
            "data, or its attack told the model the label."
        )
    verdict.append(last)
    if threat_key(threat) != threat_key(audit.threat):
        tried = sum(n != "clean" for n in records.within(threat))
        verdict.append(
            f"The audit searched inside {threat_words(audit.threat)}, the claim is about {threat_words(threat)}, "
            f"where only {tried} of its attacks count: an audit at the claim's threat may find less."
        )
    return Card(
        attack, name, threat, audit.claim, clean, replicated, found, replicates, survives, undercut, verdict,
        audit.command,
    )  # fmt: skip


def _replication(published: float | None, replicated: Estimate, attack: str) -> tuple[bool | None, str]:
    """Whether the claim replicates, and that as a sentence."""
    if published is None:
        return None, f"No published accuracy was given; {attack} leaves {replicated} here."
    assert replicated.value is not None
    says = f"{_percent(published)} was published, {attack} leaves {replicated} here"
    if replicated.low is None or replicated.high is None:
        return None, f"{says}, without an interval: whether the claim replicates cannot be said."
    if replicated.low <= published <= replicated.high:
        return True, f"{says}: the interval holds the claim."
    gap = published - replicated.value
    sentence = f"{says}: {abs(100 * gap):.1f} points {'less' if gap > 0 else 'more'}, and outside the interval."
    if abs(gap) > FAR:
        sentence += (
            " A gap so wide points to another model, other data or another version of the attack: make sure that "
            "this is the model of the claim."
        )
    return False, sentence


def _survival(published: float | None, replicated: Estimate, found: Estimate) -> tuple[float | None, bool, str]:
    """How much of the claim is left under the strongest attack, whether that is less beyond doubt, and a sentence."""
    claim = replicated.value if published is None else published
    assert claim is not None
    assert found.value is not None
    share = found.value / claim if claim > 0 else None
    whose = "replication" if published is None else "claim"
    if found.high is None or found.high >= claim:
        beyond = "" if found.value >= claim else ", not beyond the interval"
        return (
            share,
            False,
            (
                f"The strongest attack found leaves {found}: no attack tried here undercuts the {whose}{beyond}. "
                "That is an upper bound, and a stronger attack may leave less."
            ),
        )
    left = f"{100 * (share or 0):.0f} %"
    what = _percent(claim) if whose == "claim" else f"{_percent(claim)} replicated"
    return share, True, f"The strongest attack found leaves {found}: at most {left} of the {what} survives."


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def repeat_call(
    threat: Ball, effort: object, claim: float | None, text: str, settings: dict, baseline: bool = False
) -> str:
    """The Python call that repeats an audit; the model and all images are the caller's own."""
    sized = (
        f"{int(threat.eps)}, {threat.letters!r}, {threat.per!r}" if isinstance(threat, Flips) else f"{threat.eps!r}"
    )
    parts = [f"{type(threat).__name__}({sized})", f"effort={effort!r}"]
    parts += [f"claim={claim!r}"] if claim is not None else []
    parts += [f"claim_attack={text!r}"] if text else []
    parts += [f"{name}={value!r}" for name, value in settings.items()]
    parts += ["baseline=training_images"] if baseline else []
    return f"stochade.audit(model, images, labels, {', '.join(parts)})"
