"""Checks of an audit on codes, beside those that it shares with images: what flips tell of a gradient through
spikes."""

from stochade.audit import plan_codes
from stochade.audit.evidence import ATHALYE, SMALLEST, Evidence, established, points
from stochade.audit.findings import Finding

MUKHOTY = "mukhoty2025, section 4: one step, one draw"


def random_flips_do_as_well(e: Evidence) -> Finding | None:
    """The claimed attack must beat as many random flips, or it measures the noise that a code stands. Where that does
    not show and another attack finds more, beyond doubt, it is the attack's fault; where it is within 4 points,
    beyond doubt, and no other finds more, the budget may be too small to say anything."""
    others = [n for n in e.inside() if n not in (plan_codes.FLIPS, e.claim)]
    if not e.has(plan_codes.FLIPS, e.claim) or e.claim == plan_codes.FLIPS or not others:
        return None
    gain, best = e.drop(plan_codes.FLIPS, e.claim), e.best(others)
    more = e.stronger(best, e.claim)
    if gain.low is None or gain.high is None or (gain.low > 0 if more else gain.high >= 2 * SMALLEST):
        return None
    return Finding(
        "random-flips-do-as-well", "incomplete" if more else "notice",
        f"nothing shows that {e.claim} does better than as many random flips",
        {e.claim: e.text(e.claim), plan_codes.FLIPS: e.text(plan_codes.FLIPS), "difference": str(gain),
         best: e.text(best)},
        f"report {best!r}" if more else "raise k: the budget may be too small to matter",
        f"{ATHALYE}; the threshold is this project's",
    )  # fmt: skip


def unseen_flips_beat_seen_ones(e: Evidence) -> Finding | None:
    """Flips fixed before the encoding is drawn are among those that an attack who sees it could choose."""
    if not e.has(plan_codes.OBLIVIOUS) or not e.own():
        return None
    best = e.best(e.own())
    drop = e.stronger(plan_codes.OBLIVIOUS, best)
    if drop is None:
        return None
    return Finding(
        "unseen-flips-beat-seen-ones", "masking",
        f"flips chosen without sight of the encoding find {points(drop)} points more than those that see it",
        {plan_codes.OBLIVIOUS: e.text(plan_codes.OBLIVIOUS), best: e.text(best), "difference": str(drop)},
        "the gradient at one code misleads and its mean over encodings does not: substitute the backward",
        "after transfer above white box, Athalye et al. 2018",
    )  # fmt: skip


def encoding_is_the_defence(e: Evidence) -> Finding | None:
    """What fresh encodings are worth to a defender whose draws nobody sees: a claim must say which attacker it
    means."""
    names = [n for n in e.inside() if n != plan_codes.OBLIVIOUS]
    if not e.has(plan_codes.OBLIVIOUS) or not names:
        return None
    best = e.best(names)
    drop = e.drop(plan_codes.OBLIVIOUS, best)
    if not established(drop):
        return None
    return Finding(
        "encoding-is-the-defence", "notice",
        f"an attacker who sees the encoding takes {points(drop)} points more than one who does not",
        {best: e.text(best), plan_codes.OBLIVIOUS: e.text(plan_codes.OBLIVIOUS), "difference": str(drop),
         **e.probes.get("encodings", {})},
        "say which attacker a claim means; raise steps and draws of the one without sight before relying on it",
        "this project",
    )  # fmt: skip


def one_step_claim(e: Evidence) -> Finding | None:
    """The paper's attack is one step: where that is all that a claim rests on, a reader must know."""
    if e.claim != plan_codes.ONE_STEP:
        return None
    return Finding(
        "one-step-claim", "notice", "the claimed attack takes one gradient of one draw and never looks again", {},
        "report iterated attacks with restarts and several backwards beside it", MUKHOTY,
    )  # fmt: skip


def left_out_on_codes(e: Evidence) -> Finding | None:
    """What the audit of images does and makes no sense for codes."""
    return Finding(
        "left-out-on-codes", "notice", f"this audit is about codes and left out {', '.join(plan_codes.LEFT_OUT)}",
        dict(plan_codes.LEFT_OUT), "audit the same model under Linf(eps) for attacks on its images", "this project",
    )  # fmt: skip
