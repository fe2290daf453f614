"""What the measurements on the model itself say, before any attack: its gradient, its randomness, its state, its
outputs. `probes.py` measures, this file judges."""

import math

from stochade.audit.evidence import ATHALYE, AUTO_ATTACK, CARLINI, CONFIDENCE, PINTOR, SMALLEST, Evidence, percent
from stochade.audit.findings import Finding
from stochade.evaluate.intervals import binomial
from stochade.evaluate.records import WORST

ZERO = 0.05  # share of examples without any gradient
RUGGED = 0.1  # relative change of the margin from which on predictions count as unstable
STEEP, FLAT = 1e3, 1e-8  # norms of the margin's gradient beyond which numbers, not images, decide


def zero_gradient(e: Evidence) -> Finding | None:
    """Exactly zero gradients are no robustness. auto-attack warns at any such example; here at 5 %, which counts as
    masking where it is beyond doubt: a few saturated examples are no defence."""
    return zero_gradients(e.probes["gradient"], e.probes["examples"], e.names.entry)


def zero_gradients(facts: dict, count: int, entry: str) -> Finding | None:
    """The finding of `zero_gradient` out of what `gradient_facts` measured on so many examples.

    Args:
        entry: "pixel" or "letter" (of a code).
    """
    if facts["available"] and facts["zero_share"] < ZERO:
        return None
    where = "images" if entry == "pixel" else "codes"
    share = f"no gradient reaches the {where}" if not facts["available"] else (
        f"the gradient is exactly zero on {percent(facts['zero_share'])} of the examples"
    )  # fmt: skip
    certain = not facts["available"] or binomial(facts["zero_share"] * count, count, CONFIDENCE)[0] > ZERO
    spikes = "swap the neurons' backward (backward=atan), or take RandomSearch(Flips(k)), which needs no gradient"
    return Finding(
        "zero-gradient", "masking" if certain else "incomplete", share, {**facts, "threshold": percent(ZERO)},
        spikes if entry == "letter" else
        "give the discrete layers a surrogate backward (nn.Discrete), or attack with gradient=Evolution()",
        f"{PINTOR}: unavailable gradients",
    )  # fmt: skip


def gradient_size(e: Evidence) -> Finding | None:
    """A gradient so small or so large that rounding or jumps decide about it."""
    facts = e.probes["gradient"]
    norm = facts.get("norm_median")
    if not facts["available"] or facts["zero_share"] >= 0.5 or norm is None or FLAT <= norm <= STEEP:
        return None
    word = "vanishes" if norm < FLAT else "explodes"
    return Finding(
        f"gradient-{word}", "incomplete",
        f"the gradient of the margin {word}: its norm is {norm:.1e} on half of the examples",
        {"median norm": norm, "largest norm": facts.get("norm_max"), "threshold": f"{FLAT:g} to {STEEP:g}"},
        "attack with substituted backwards, in double precision, or without gradients",
        f"{ATHALYE}: exploding and vanishing gradients; the thresholds are this project's",
    )  # fmt: skip


def noisy_gradient(e: Evidence) -> Finding | None:
    """Two draws of the gradient that share no direction: one draw is no gradient."""
    facts = e.probes["gradient"]
    cosine, ratio = facts.get("cosine_between_draws"), facts.get("signal_to_noise")
    if not e.probes["random"] or cosine is None or cosine > 0.3:
        return None
    needed = math.ceil(9 / ratio) if ratio else None
    enough = f"{needed} draws give a cosine of about 0.95 with the true gradient" if needed else "no draws suffice"
    return Finding(
        "noisy-gradient", "incomplete",
        f"two draws of the gradient of one image have a cosine of {cosine:.2f}: one draw is mostly noise",
        {**facts, "threshold": "a cosine of 0.3", "draws needed": enough},
        "average over draws, or relax the random layers (mean field)",
        "threshold of this project; see Athalye et al. 2018",
    )  # fmt: skip


def unstable_predictions(e: Evidence) -> Finding | None:
    """A loss that jumps between neighbouring images: gradients say nothing about the next step."""
    facts = e.probes.get("stability")
    if not facts:
        return None
    change, noise = facts["relative_change"], facts["change_by_noise"]
    if change - noise <= RUGGED or change <= 1.5 * noise:  # noise shared by a batch is itself measured roughly
        return None
    return Finding(
        "unstable-predictions", "incomplete",
        f"the margin changes by {percent(change)} within ±4/255 of an image",
        {**facts, "threshold": percent(RUGGED)},
        "smooth the loss: average gradients over a neighbourhood (Evolution, UniformJitter), smaller steps",
        f"{PINTOR}: unstable predictions, {facts['directions']} uniform draws; what the model's own noise does is "
        "taken off",
    )  # fmt: skip


def blocked_gradient(e: Evidence) -> Finding | None:
    """The parts through which no gradient passes; attack the undefended network with them, by a stand-in."""
    parts = e.probes.get("blocked_by")
    if not parts:
        return None
    return Finding(
        "blocked-gradient", "incomplete",
        f"no gradient passes {', '.join(parts[:3])}{' and others' if len(parts) > 3 else ''}",
        {"parts": ", ".join(parts)},
        "give each a stand-in backward (BPDA): subclass nn.Discrete, or backward_as(model, {...: 'identity'})",
        f"{CARLINI}: attack with non-differentiable parts; {ATHALYE}",
    )  # fmt: skip


def dynamic_defence(e: Evidence) -> Finding | None:
    """A model that differentiates inside its forward purifies or adapts at test time; attacks that treat it as a
    fixed network are weak."""
    if not e.probes.get("dynamic"):
        return None
    return Finding(
        "dynamic-defence", "incomplete", "the model calls autograd inside its forward: it optimises at test time", {},
        "attack end to end (higher order, or BPDA around the loop), and the network without the loop; the defence "
        "must not be below it",
        f"{AUTO_ATTACK}: dynamic defences; Croce et al. 2022",
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


def retries_help(e: Evidence) -> Finding | None:
    """On a random model an attacker who may try again wins more often: single and all differ."""
    if not e.probes["random"]:
        return None
    single, every = e.records.score("clean"), e.records.score("clean", "all")
    if single.value is None or every.value is None or single.value - every.value < SMALLEST:
        return None
    attacked = {k: str(e.records.score(WORST, k, threat=e.threat)) for k in ("single", "all")}
    return Finding(
        "retries-help", "notice",
        f"without any attack, only {100 * every.value:.1f} % of the images are right in all {single.draws} draws "
        f"(one draw: {100 * single.value:.1f} %): an attacker who may retry needs no perturbation for the rest",
        {"single": str(single), "all": str(every), "single, under the best attack": attacked["single"],
         "all, under the best attack": attacked["all"]},
        "say which of the two a claim means",
        "Lucas et al. 2023",
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
        {"threshold": "values in [0,1] and sums within 1e-5"},
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
