"""Checks on experiments that an audit makes only when asked: the active test and the threshold baseline."""

import numpy as np

from stochade.audit.evidence import CONFIDENCE, Evidence, established, percent, points
from stochade.audit.findings import Finding
from stochade.evaluate.intervals import binomial
from stochade.evaluate.records import WORST

ZIMMERMANN = "Zimmermann et al. 2022, Increasing Confidence in Adversarial Robustness Evaluations"
PASSES = 0.95  # success on planted examples below which an attack fails the active test
EASY = 0.5  # success of random points above which the test says nothing


def active_test_fails(e: Evidence) -> Finding | None:
    """An attack must find adversarial examples that were planted inside the threat."""
    facts = e.probes.get("active_test")
    if not facts or "reason" in facts or not facts["planted"]:
        return None
    high = binomial(facts["found"], facts["planted"], CONFIDENCE)[1]
    if high >= PASSES:
        return None
    return Finding(
        "active-test-fails", "incomplete",
        f"the strongest attack finds only {percent(facts['found'] / facts['planted'])} of the adversarial examples "
        "that were planted inside the threat",
        {"found": f"{facts['found']} of {facts['planted']}", "threshold": percent(PASSES),
         "attack": facts["attack"], "random points find": percent(facts["random"] / facts["planted"])},
        "the attack is too weak for this network: no accuracy under it counts; substitute the backward",
        ZIMMERMANN,
    )  # fmt: skip


def active_test_says_nothing(e: Evidence) -> Finding | None:
    """Where nothing can be planted, or random points find it, the active test does not tell attacks apart."""
    facts = e.probes.get("active_test")
    if not facts:
        return None
    if "reason" in facts:
        title, shown = f"the active test could not be made: {facts['reason']}", {}
    elif facts["planted"] < facts["examples"] / 2:
        title = "the active test could plant an adversarial example for fewer than half of the images"
        shown = {"planted": f"{facts['planted']} of {facts['examples']}"}
    elif facts["random"] > EASY * facts["planted"]:
        title = f"the active test is too easy: random points find {percent(facts['random'] / facts['planted'])}"
        shown = {"found by random points": str(facts["random"]), "threshold": percent(EASY)}
    else:
        return None
    return Finding(
        "active-test-inconclusive", "notice", title, shown,
        "active_test(model, x, y, attack, inner=...) with more inner points makes it harder", ZIMMERMANN,
    )  # fmt: skip


def below_threshold_baseline(e: Evidence) -> Finding | None:
    """On nearly binary images a plain network behind a threshold at 0.5 is robust for free; a defence must be above
    it."""
    facts = e.probes.get("baseline")
    if not facts:
        return None
    gap = e.paired(np.asarray(facts["right"])[:, None], e.records.right(WORST, threat=e.threat))
    if not established(gap):
        return None
    return Finding(
        "below-threshold-baseline", "notice",
        f"a plain network behind a threshold at 0.5 keeps {points(gap)} points more under attack than this defence",
        {"threshold and network, clean": percent(facts["clean"]),
         "threshold and network, worst attack": percent(float(np.mean(facts["right"]))),
         "this model, worst attack": e.text(WORST), "difference": str(gap)},
        "a defence for such images has to be compared with this baseline",
        "Schott et al. 2019, binary networks on MNIST; Carlini et al. 2019",
    )  # fmt: skip
