"""The checks of an audit, one short function each: evidence in, a finding or nothing out.

Differences between attacks are paired over examples, and count only when their interval excludes zero at
CONFIDENCE and they exceed SMALLEST: with about ten such checks, honest models raise a masking finding in fewer
than 5 audits of 100.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from stochade.audit import plan
from stochade.audit.findings import Finding
from stochade.evaluate.intervals import Estimate, paired
from stochade.evaluate.records import Records

CONFIDENCE = 0.998
SMALLEST = 0.02

ATHALYE = "Athalye, Carlini, Wagner 2018, signs of obfuscated gradients"
CARLINI = "Carlini et al. 2019, On Evaluating Adversarial Robustness"


@dataclass(frozen=True)
class Evidence:
    """What checks may look at: records and measurements, never a model."""

    records: Records
    probes: dict[str, Any]
    threat: dict
    curves: dict[str, list[dict]]
    claim: str

    def has(self, *names: str) -> bool:
        return all(n in self.records.attacks or n == "worst" for n in names)

    def drop(self, weak: str, strong: str) -> Estimate:
        """accuracy(weak) - accuracy(strong), paired, at the audit's confidence."""
        right = self.records.right
        return paired(right(weak, threat=self.threat), right(strong, threat=self.threat), CONFIDENCE)

    def stronger(self, strong: str, weak: str) -> Estimate | None:
        """The drop from weak to strong where it is established, else None."""
        drop = self.drop(weak, strong)
        beyond_doubt = drop.value is not None and drop.low is not None and drop.low > 0 and drop.value >= SMALLEST
        return drop if beyond_doubt else None

    def own(self) -> list[str]:
        """Attacks with the model's own gradient inside the threat."""
        return [n for n in (plan.ITERATED, plan.OWN, plan.OWN_AVERAGED, plan.OWN_MARGIN) if self.has(n)]

    def best(self, names: list[str]) -> str:
        """The strongest of some attacks, chosen on the selection draws, so that scoring draws stay fresh."""
        labels = self.records.labels[:, None]
        return min(names, key=lambda n: float((self.records.attacks[n].selection == labels).mean()))

    def text(self, name: str) -> str:
        return str(self.records.score(name, threat=self.threat))


def points(drop: Estimate) -> str:
    """A difference of accuracies in points."""
    assert drop.value is not None
    return f"{100 * drop.value:.1f}"


def one_step_beats_iterated(e: Evidence) -> Finding | None:
    """Steps of the same gradient must help: one step that beats many means that the gradient misleads."""
    if not e.has(plan.ONE_STEP) or not e.own():
        return None
    best = e.best(e.own())
    drop = e.stronger(plan.ONE_STEP, best)
    if drop is None:
        return None
    return Finding(
        "one-step-beats-iterated", "masking",
        f"one step finds {points(drop)} points more than many steps with the same gradient",
        {plan.ONE_STEP: e.text(plan.ONE_STEP), best: e.text(best), "difference": str(drop)},
        "average the gradient over draws, and try substituted backwards",
        ATHALYE,
    )  # fmt: skip


def iterated_collapses(e: Evidence) -> Finding | None:
    """The claim rests on the authors' attack being weak: one step with one draw, where more steps of the model's
    own gradient already find much more. Not masking, an incomplete attack."""
    if not e.has(e.claim) or not e.own():
        return None
    best = e.best(e.own())
    drop = e.stronger(best, e.claim)
    if drop is None:
        return None
    return Finding(
        "stronger-with-own-gradient", "incomplete",
        f"the authors' attack is not converged: {best}, by the same gradient, finds {points(drop)} points more",
        {e.claim: e.text(e.claim), best: e.text(best), "difference": str(drop)},
        f"report {best} instead of {e.claim}",
        CARLINI,
    )  # fmt: skip


def gradient_free_beats_gradient(e: Evidence) -> Finding | None:
    """An attack without the gradient must not beat one that has it."""
    free = [n for n in (plan.EVOLUTION, plan.SEARCH) if e.has(n)]
    if not free or not e.own():
        return None
    best_free, best_own = e.best(free), e.best(e.own())
    drop = e.stronger(best_free, best_own)
    if drop is None:
        return None
    return Finding(
        "gradient-free-beats-gradient", "masking",
        f"an attack without gradients finds {points(drop)} points more than the model's own gradient",
        {best_free: e.text(best_free), best_own: e.text(best_own), "difference": str(drop)},
        "the model's backward is wrong or mostly noise: substitute it",
        ATHALYE,
    )  # fmt: skip


def noise_beats_gradient(e: Evidence) -> Finding | None:
    """Undirected noise must not beat the gradient."""
    noises = [n for n in (plan.NOISE, plan.GAUSSIAN) if e.has(n)]
    if not noises or not e.own():
        return None
    noise, own = e.best(noises), e.best(e.own())
    drop = e.stronger(noise, own)
    if drop is None:
        return None
    return Finding(
        "noise-beats-gradient", "masking",
        f"plain noise finds {points(drop)} points more than the model's own gradient",
        {noise: e.text(noise), own: e.text(own), "difference": str(drop)},
        "check the sign of the objective and the model's backward",
        ATHALYE,
    )  # fmt: skip


def substituted_backward_wins(e: Evidence) -> Finding | None:
    """Another backward or a relaxed forward for the same layers must not find much more than the model's own."""
    others = e.records.prefix(plan.BACKWARD) + e.records.prefix(plan.FORWARD)
    others = [n for n in others if n in set(e.records.within(e.threat)) and "eps=" not in n]
    others = [n for n in others if " steps=" not in n and " draws=" not in n]
    if not others or not e.own():
        return None
    best, own = e.best(others), e.best(e.own())
    drop = e.stronger(best, own)
    if drop is None:
        return None
    layers = ", ".join(e.probes["layers"]) or "the discrete layers"
    kind, _, name = best.removeprefix("pgd ").partition("=")
    return Finding(
        "substituted-backward-wins", "masking",
        f"the {kind} of {layers} hides the way: with its {name!r} {kind} the attack finds {points(drop)} points more "
        "than with the model's own gradient",
        {best: e.text(best), own: e.text(own), "difference": str(drop)},
        f"report the accuracy under {best!r}",
        "backward pass differentiable approximation, Athalye et al. 2018",
    )  # fmt: skip


def averaging_wins(e: Evidence) -> Finding | None:
    """If averaging the gradient over draws finds more, a single-draw attack measures the noise, not the defence."""
    if not e.has(plan.OWN, plan.OWN_AVERAGED):
        return None
    drop = e.stronger(plan.OWN_AVERAGED, plan.OWN)
    if drop is None:
        return None
    return Finding(
        "averaging-wins", "masking",
        f"averaging the gradient over draws finds {points(drop)} points more than one draw",
        {plan.OWN: e.text(plan.OWN), plan.OWN_AVERAGED: e.text(plan.OWN_AVERAGED), "difference": str(drop),
         "cosine between draws": e.probes["gradient"].get("cosine_between_draws")},
        "attack with Backprop(draws=20) or more, until accuracy stops moving",
        "expectation over randomness, Athalye et al. 2018",
    )  # fmt: skip


def unbounded_survives(e: Evidence) -> Finding | None:
    """With the whole box allowed, every example must fall to the model's own gradient (margin objective, which does
    not saturate)."""
    own = [p for p in e.curves.get("budget", []) if p["attack"].startswith(plan.OWN_MARGIN)]
    if not own:
        return None
    last = max(own, key=lambda p: p["x"])
    score = e.records.score(last["attack"])
    limit = max(0.05, 1 / e.probes["classes"])
    if score.low is None or score.low <= limit or score.value is None:
        return None
    return Finding(
        "unbounded-survives", "masking",
        f"{100 * score.value:.0f} % survive an attack that may change every pixel at will",
        {"budget": last["x"], "accuracy": str(score), "expected at most": f"{100 * limit:.0f} %"},
        "the gradient does not lead anywhere: substitute the backward or attack without gradients",
        ATHALYE,
    )  # fmt: skip


def budget_does_not_help(e: Evidence) -> Finding | None:
    """A larger budget must never raise accuracy under the same attack."""
    series: dict[str, list[dict]] = {}
    for point in e.curves.get("budget", []):
        series.setdefault(point.get("series", ""), []).append(point)
    for line in series.values():
        line = sorted(line, key=lambda p: p["x"])
        for small, large in pairwise(line):
            right = e.records.right
            drop = paired(right(large["attack"]), right(small["attack"]), CONFIDENCE)
            if drop.low is not None and drop.low > 0 and drop.value is not None and drop.value >= SMALLEST:
                return Finding(
                    "budget-does-not-help", "masking",
                    f"accuracy rises by {points(drop)} points when the budget grows from {small['x']:.3g} "
                    f"to {large['x']:.3g}",
                    {small["attack"]: str(e.records.score(small["attack"])),
                     large["attack"]: str(e.records.score(large["attack"])), "difference": str(drop)},
                    "the attack gets lost: more steps, averaged gradients, another backward",
                    ATHALYE,
                )  # fmt: skip
    return None


def zero_gradient(e: Evidence) -> Finding | None:
    """Exactly zero gradients are no robustness. auto-attack warns at any such example; here at 5 %."""
    facts = e.probes["gradient"]
    if facts["available"] and facts["zero_share"] < 0.05:
        return None
    share = "no gradient reaches the images" if not facts["available"] else (
        f"the gradient is exactly zero on {100 * facts['zero_share']:.0f} % of the examples"
    )  # fmt: skip
    return Finding(
        "zero-gradient", "masking", share, dict(facts),
        "give the discrete layers a surrogate backward (nn.Discrete), or attack with gradient=Evolution()",
        "Pintor et al. 2022, indicators of attack failure: unavailable gradients",
    )  # fmt: skip


def label_leaking(e: Evidence) -> Finding | None:
    """Accuracy under attack above clean accuracy: the attack tells the model the label, or its sign is wrong."""
    for name in [n for n in (e.claim, *e.own()) if e.has(n)]:
        gain = paired(e.records.right(name), e.records.right("clean"), CONFIDENCE)
        if gain.low is not None and gain.low > 0 and gain.value is not None and gain.value >= SMALLEST:
            return Finding(
                "label-leaking", "masking",
                f"accuracy under {name} is {points(gain)} points above the clean accuracy",
                {name: e.text(name), "clean": e.text("clean"), "difference": str(gain)},
                "attack the predicted label instead of the true one, and check the objective's sign",
                "Kurakin et al. 2017, label leaking",
            )  # fmt: skip
    return None


def noisy_gradient(e: Evidence) -> Finding | None:
    """Two draws of the gradient that share no direction: one draw is no gradient."""
    cosine = e.probes["gradient"].get("cosine_between_draws")
    if not e.probes["random"] or cosine is None or cosine > 0.3:
        return None
    return Finding(
        "noisy-gradient", "incomplete",
        f"two draws of the gradient of one image have a cosine of {cosine:.2f}: one draw is mostly noise",
        dict(e.probes["gradient"]),
        "average over draws, or relax the random layers (mean field)",
        "threshold of this project; see Athalye et al. 2018",
    )  # fmt: skip


def not_converged(e: Evidence) -> Finding | None:
    """Doubling steps or draws must not find more."""
    for curve in ("steps", "draws"):
        line = sorted(e.curves.get(curve, []), key=lambda p: p["x"])
        if len(line) < 2:
            continue
        last, before = line[-1], line[-2]
        drop = e.stronger(last["attack"], before["attack"])
        if drop is not None:
            return Finding(
                f"{curve}-not-converged", "incomplete",
                f"{last['x']:g} instead of {before['x']:g} {curve} find {points(drop)} points more: not converged",
                {before["attack"]: e.text(before["attack"]), last["attack"]: e.text(last["attack"])},
                f"raise the effort: more {curve}",
                CARLINI,
            )  # fmt: skip
    return None


def retries_help(e: Evidence) -> Finding | None:
    """On a random model an attacker who may try again wins more often: single and all differ."""
    if not e.probes["random"]:
        return None
    single, every = e.records.score("clean"), e.records.score("clean", "all")
    if single.value is None or every.value is None or single.value - every.value < SMALLEST:
        return None
    return Finding(
        "retries-help", "notice",
        f"without any attack, only {100 * every.value:.1f} % of the images are right in all {single.draws} draws "
        f"(one draw: {100 * single.value:.1f} %): an attacker who may retry needs no perturbation for the rest",
        {"single": str(single), "all": str(every)},
        "say which of the two a claim means",
        "Lucas et al. 2023",
    )  # fmt: skip


def randomness(e: Evidence) -> Finding | None:
    """Whether the model is random, and at which scope: a reader needs it to read any number."""
    if not e.probes["random"]:
        return None
    measured = "example" if e.probes["rows_of_one_call_differ"] else "call"
    shared = (
        "" if measured == "example" else "; all images of a batch share one draw, so tiled draws would be one draw"
    )
    return Finding(
        "random", "notice",
        f"the model is random: {100 * e.probes['predictions_that_change']:.0f} % of the clean predictions change "
        f"within five draws{shared}",
        {"declared scope": e.probes["declared_scope"], "measured scope": measured,
         "uses the global generators": e.probes["uses_global_generators"]},
        "read 'single' as the accuracy of one prediction, 'vote' as that of a majority",
        "auto-attack's checks: five forwards",
    )  # fmt: skip


def state(e: Evidence) -> Finding | None:
    """The same input under the same seed must give the same output."""
    if not e.probes["differs_at_equal_seed"]:
        return None
    own = e.probes["differs_at_equal_state"]
    title = (
        "the model draws from a generator of its own: no seed repeats its outputs"
        if own
        else "the same input under the same seed gives another output: the model keeps state between calls"
    )
    return Finding(
        "keeps-state", "incomplete", title, {},
        "reset the state at the start of forward; until then every number depends on what ran before",
        "spiking models without reset, see docs/design.md",
    )  # fmt: skip


def probabilities(e: Evidence) -> Finding | None:
    """Softmax outputs flatten the objectives."""
    if not e.probes["probabilities"]:
        return None
    return Finding(
        "probabilities", "notice",
        "the model outputs probabilities; their logarithm was attacked instead",
        {},
        "return logits",
        "auto-attack's checks",
    )  # fmt: skip


def active_dropout(e: Evidence) -> Finding | None:
    """Dropout that is on in an eval-mode model is a defence, or a mistake."""
    if not e.probes["active_dropout"]:
        return None
    return Finding(
        "active-dropout", "notice", "dropout is active", {}, "switch it off unless it is the defence",
        "torchattacks and ART would have switched it off silently",
    )  # fmt: skip


def batch_dependence(e: Evidence) -> Finding | None:
    """A deterministic model whose logits depend on the rest of the batch."""
    if not e.probes["depends_on_batch"]:
        return None
    return Finding(
        "depends-on-batch", "incomplete", "an image's logits depend on what else is in the batch", {},
        "look for train-mode normalisation or a shared buffer", "this project",
    )  # fmt: skip


def few_examples(e: Evidence) -> Finding | None:
    """Intervals are wide on few examples."""
    if len(e.records) >= 100:
        return None
    return Finding(
        "few-examples", "notice", f"only {len(e.records)} examples: intervals are wide", {},
        "use 500 or more for a figure in print", CARLINI,
    )  # fmt: skip


CHECKS: dict[str, Callable[[Evidence], Finding | None]] = {
    f.__name__.replace("_", "-"): f
    for f in (
        substituted_backward_wins, averaging_wins, one_step_beats_iterated, gradient_free_beats_gradient,
        noise_beats_gradient, unbounded_survives, budget_does_not_help, zero_gradient, label_leaking,
        iterated_collapses, noisy_gradient, not_converged, state, batch_dependence,
        randomness, retries_help, probabilities, active_dropout, few_examples,
    )
}  # fmt: skip


def run_checks(evidence: Evidence) -> list[Finding]:
    """All findings, masking first."""
    found = [finding for check in CHECKS.values() if (finding := check(evidence)) is not None]
    order = {"masking": 0, "incomplete": 1, "notice": 2}
    return sorted(found, key=lambda f: order[f.severity])
