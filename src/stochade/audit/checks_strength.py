"""Whether the attacks were strong enough, and what each stronger one bought: other backwards, averaging, more steps
and draws, restarts, surrogates; what the noise itself is worth; and attacks that work against themselves."""

import numpy as np

from stochade.audit import plan
from stochade.audit.evidence import CARLINI, PINTOR, SMALLEST, Evidence, established, percent, points
from stochade.audit.findings import Finding
from stochade.evaluate.records import WORST

RANDOM_POINTS = 10_000  # that a random search should look at


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


def substituted_backward_wins(e: Evidence) -> Finding | None:
    """Another backward or a relaxed forward for the same layers must not find much more than the model's own."""
    others = [n for n in e.inside() if n.startswith((e.names.backward, e.names.forward))]
    if not others or not e.own():
        return None
    best, own = e.best(others), e.best(e.own())
    drop = e.stronger(best, own)
    if drop is None:
        return None
    layers = ", ".join(e.probes["layers"]) or "the discrete layers"
    kind, _, name = best.partition(" ")[2].partition("=")
    return Finding(
        "substituted-backward-wins", "masking",
        f"the {kind} of {layers} hides the way: with its {name!r} {kind} the attack finds {points(drop)} points more "
        "than with the model's own gradient",
        {best: e.text(best), own: e.text(own), "difference": str(drop)},
        f"report the accuracy under {best!r}",
        "backward pass differentiable approximation, Athalye et al. 2018",
    )  # fmt: skip


def adaptive_search_wins(e: Evidence) -> Finding | None:
    """An attack that a short search put together must not find much more than every attack of the fixed plan."""
    found = [n for n in e.inside() if n.startswith(plan.ADAPTIVE)]
    fixed = [n for n in e.inside() if n not in found]
    if not found or not fixed:
        return None
    best, before = e.best(found), e.best(fixed)
    drop = e.stronger(best, before)
    if drop is None:
        return None
    return Finding(
        "adaptive-search-wins", "incomplete",
        f"an attack put together for this model finds {points(drop)} points more than every attack of the fixed plan",
        {best: e.text(best), before: e.text(before), "difference": str(drop)},
        "report the adapted attack; a longer search (effort 'thorough') may find still more",
        "Tramèr et al. 2020, On Adaptive Attacks to Adversarial Example Defenses",
    )  # fmt: skip


def averaging_wins(e: Evidence) -> Finding | None:
    """If averaging the gradient over draws finds more, a single-draw attack measures the noise, not the defence. The
    single draws have as many gradients in all, where such an attack was run."""
    single = [n for n in (e.names.own, e.names.single) if e.has(n)]
    if not single or not e.has(e.names.averaged):
        return None
    single = e.best(single)
    drop = e.stronger(e.names.averaged, single)
    if drop is None:
        return None
    return Finding(
        "averaging-wins", "masking",
        f"averaging the gradient over draws finds {points(drop)} points more than one draw",
        {single: e.text(single), e.names.averaged: e.text(e.names.averaged), "difference": str(drop),
         "cosine between draws": e.probes["gradient"].get("cosine_between_draws")},
        "attack with Backprop(draws=20) or more, until accuracy stops moving",
        "expectation over randomness, Athalye et al. 2018",
    )  # fmt: skip


def averaging_buys_nothing(e: Evidence) -> Finding | None:
    """At equal numbers of gradients, single draws must lose to averages where the randomness is what defends."""
    if not e.has(plan.OWN_SINGLE, plan.OWN_AVERAGED):
        return None
    drop = e.drop(plan.OWN_SINGLE, plan.OWN_AVERAGED)
    if drop.value is None or drop.high is None or drop.high >= 2 * SMALLEST:
        return None
    return Finding(
        "averaging-buys-nothing", "notice",
        "at the same number of gradients, single draws attack as well as averages over draws: noisy gradients are "
        "not what stops attacks",
        {plan.OWN_SINGLE: e.text(plan.OWN_SINGLE), plan.OWN_AVERAGED: e.text(plan.OWN_AVERAGED),
         "averages find more": str(drop), "threshold": f"less than {200 * SMALLEST:.0f} points",
         "clean predictions that change between draws": percent(e.probes["predictions_that_change"])},
        "compare with the same network without its noise: what is left may be invariance learnt in training",
        "Gao, Shumailov, Fawaz, Papernot 2022, limitations of stochastic pre-processing defences",
    )  # fmt: skip


def label_leaking(e: Evidence) -> Finding | None:
    """Accuracy under attack above clean accuracy: the attack tells the model the label, or its sign is wrong."""
    for name in [n for n in (e.claim, *e.own()) if e.has(n)]:
        gain = e.paired(e.records.right(name), e.records.right("clean"))
        if established(gain):
            return Finding(
                "label-leaking", "masking",
                f"accuracy under {name} is {points(gain)} points above the clean accuracy",
                {name: e.text(name), "clean": e.text("clean"), "difference": str(gain)},
                "attack the predicted label instead of the true one, and check the objective's sign",
                "Kurakin et al. 2017, label leaking",
            )  # fmt: skip
    return None


def not_converged(e: Evidence) -> Finding | None:
    """Doubling steps or draws must not find more. The number of draws is large enough when accuracy stops moving
    beyond its interval; the literature's is 20."""
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
                {before["attack"]: e.text(before["attack"]), last["attack"]: e.text(last["attack"]),
                 "difference": str(drop)},
                f"raise the effort: more {curve}",
                CARLINI,
            )  # fmt: skip
    return None


def more_does_not_help(e: Evidence) -> Finding | None:
    """More steps or draws must never find less: an attack that gets worse on the way loses what it had."""
    for curve in ("steps", "draws"):
        line = sorted(e.curves.get(curve, []), key=lambda p: p["x"])
        for i, few in enumerate(line):
            for many in line[i + 1 :]:
                drop = e.stronger(few["attack"], many["attack"])
                if drop is not None:
                    return Finding(
                        f"more-{curve}-find-less", "incomplete",
                        f"{many['x']:g} {curve} find {points(drop)} points less than {few['x']:g}",
                        {few["attack"]: e.text(few["attack"]), many["attack"]: e.text(many["attack"]),
                         "difference": str(drop)},
                        "keep the best point of the search, average more draws, or take smaller steps",
                        CARLINI,
                    )  # fmt: skip
    return None


def restarts_help(e: Evidence) -> Finding | None:
    """Several random starts must not find more than one: else one start is not enough."""
    if not e.has(e.names.margin, e.names.restarted):
        return None
    drop = e.stronger(e.names.restarted, e.names.margin)
    if drop is None:
        return None
    return Finding(
        "restarts-help", "incomplete",
        f"several random starts find {points(drop)} points more than one",
        {n: e.text(n) for n in (e.names.margin, e.names.restarted)} | {"difference": str(drop)},
        "attack with restarts=10 or more",
        CARLINI,
    )  # fmt: skip


def transfer_failure(e: Evidence) -> Finding | None:
    """Images made on a surrogate (the model with a relaxed forward, or a network without the defence) that fool the
    surrogate and not the model: accuracy under them says little about the model."""
    worst: tuple[float, str, int] | None = None
    for name in [n for n in e.inside() if n.startswith((plan.FORWARD, plan.TRANSFER))]:
        fooled = _fooled_surrogate(e, name)
        if fooled is None or fooled.sum() < 10:
            continue
        share = float((e.standing(name) & fooled).sum() / fooled.sum())
        if worst is None or share > worst[0]:
            worst = share, name, int(fooled.sum())
    if worst is None or worst[0] < 0.1:
        return None
    share, name, count = worst
    only = e.best(e.inside()) == name
    return Finding(
        "transfer-failure", "incomplete" if only else "notice",
        f"of the images that fool the surrogate of {name!r}, the model itself stands {percent(share)}",
        {"surrogate fooled on": f"{count} examples", "model stands": percent(share), name: e.text(name),
         "threshold": "10 %", "strongest attack": "this one" if only else e.best(e.inside())},
        "do not report accuracy under transferred images alone: attack the model end to end",
        f"{PINTOR}: transfer failure",
    )  # fmt: skip


def _fooled_surrogate(e: Evidence, name: str) -> np.ndarray | None:
    """[N] bool: whether the surrogate is fooled, by the margin on it that the trace ends with."""
    record = e.record(name)
    if not e.objective(name).endswith("margin") or not record.trace.shape[1]:
        return None
    steps = np.isfinite(record.trace)
    last = np.where(steps.any(1), record.trace.shape[1] - 1 - steps[:, ::-1].argmax(1), 0)
    return np.where(steps.any(1), record.trace[np.arange(len(last)), last], -1.0) > 0


def static_baseline(e: Evidence) -> Finding | None:
    """The network without its discrete or random part (its forward relaxed), attacked by itself, must not be more
    accurate than the defence."""
    for name in [n for n in e.inside() if n.startswith(plan.FORWARD)]:
        fooled = _fooled_surrogate(e, name)
        if fooled is None:
            continue
        gap = e.paired(~fooled[:, None], e.records.right(WORST, threat=e.threat))
        if established(gap):
            return Finding(
                "below-static-baseline", "notice",
                f"with its {name.removeprefix(plan.FORWARD)!r} forward the same network keeps {points(gap)} points "
                "more under attack than with its discrete layers: they defend nothing",
                {"relaxed network under its own attack": percent(1 - float(fooled.mean())),
                 "lowest found on the model": e.text(WORST), "difference": str(gap)},
                "report the relaxed network beside the defence",
                "Croce et al. 2022, adaptive test-time defences against their static baselines",
            )  # fmt: skip
    return None


def frozen_noise_survives(e: Evidence) -> Finding | None:
    """With the noise frozen the model is an ordinary network: an attack that knows the noise must do at least as
    well as against fresh noise. Where it does not, the gradient is at fault, not the noise."""
    frozen = e.probes.get("frozen")
    if not frozen or not e.has(frozen["attack"]):
        return None
    known = np.asarray(frozen["right"]["1"])
    rise = e.paired(known, e.records.right(frozen["attack"])[: len(known)])
    if not established(rise):
        return None
    return Finding(
        "frozen-noise-survives", "masking",
        f"an attack that knows the noise finds {points(rise)} points less than the same one against fresh noise",
        {**_by_realisations(frozen), "difference": str(rise)},
        "the noise is not what stops the attack: substitute the backward, then freeze and try again",
        CARLINI,
    )  # fmt: skip


def noise_is_the_defence(e: Evidence) -> Finding | None:
    """What a known realisation of the noise does not stop but fresh noise does, is the worth of the noise to a
    defender whose generator nobody can predict."""
    frozen = e.probes.get("frozen")
    if not frozen:
        return None
    known = np.asarray(frozen["right"]["1"])
    drop = e.paired(e.records.right(WORST, threat=e.threat)[: len(known)], known)
    if not established(drop):
        return None
    return Finding(
        "noise-is-the-defence", "notice",
        f"with the noise known, {points(drop)} points less are left than the best attack leaves against fresh noise",
        {**_by_realisations(frozen), "best attack, fresh noise": e.text(WORST), "difference": str(drop)},
        "say whether the attacker may know the seed; against fresh noise, raise draws until accuracy stops moving",
        f"{CARLINI}: fix the randomness, then bring it back step by step",
    )  # fmt: skip


def _by_realisations(frozen: dict) -> dict[str, str]:
    """Accuracy by the number of realisations that the noise is drawn from, on the probed examples."""
    right = frozen["right"]
    shown = {f"noise out of {n} known": percent(float(np.mean(right[n]))) for n in sorted(right, key=int)}
    return shown | {"attack": frozen["attack"], "examples": str(len(right["1"]))}


def adaptive_loss(e: Evidence) -> Finding | None:
    """A higher objective must mean misclassification: among attacked examples, those that fall must have the higher
    objective. Judged by the share of pairs in the right order, on examples that are clearly one or the other."""
    for name in [n for n in e.own() if e.record(n).trace.shape[1] and n != plan.MINIMAL]:
        value, wrong = _last(e.record(name).trace), 1 - e.records.right(name).mean(1)
        falls, stands = value[(wrong > 0.9) & np.isfinite(value)], value[(wrong < 0.1) & np.isfinite(value)]
        if len(falls) < 10 or len(stands) < 10:
            continue
        ordered = float((falls[:, None] > stands[None]).mean() + 0.5 * (falls[:, None] == stands[None]).mean())
        chance = 3 * ((len(falls) + len(stands) + 1) / (12 * len(falls) * len(stands))) ** 0.5  # of a rank statistic
        if ordered + chance < 0.8:
            return Finding(
                "objective-misleads", "incomplete",
                f"the objective of {name} does not follow the decision: fallen examples have the higher one in only "
                f"{percent(ordered)} of the pairs",
                {"pairs in order": percent(ordered), "fallen": str(len(falls)), "standing": str(len(stands)),
                 "threshold": "80 %", "objective": e.objective(name)},
                "attack an objective whose rise implies misclassification, on the simplest whole pipeline",
                "after Tramèr et al. 2020, On Adaptive Attacks; the threshold is this project's",
            )  # fmt: skip
    return None


def _last(trace: np.ndarray) -> np.ndarray:
    """[N] the last value of each trace, NaN where there is none."""
    steps = np.isfinite(trace)
    last = trace.shape[1] - 1 - steps[:, ::-1].argmax(1)
    return np.where(steps.any(1), trace[np.arange(len(trace)), last], np.nan)


def far_from_everything(e: Evidence) -> Finding | None:
    """A minimum-norm attack must not need more than it takes to leave every image behind: linf 0.5 makes all of them
    grey, and l2 9 was the most that any honest MNIST model needs, here in proportion to the root of the pixels."""
    limits = {"linf": 0.5, "l2": 9 * (e.probes.get("pixels", 0) / 784) ** 0.5}
    limit = limits.get(e.threat["norm"])
    if not e.has(plan.MINIMAL) or not limit:
        return None
    needed = e.record(plan.MINIMAL).distance[e.standing("clean")]
    median = float(np.median(needed)) if len(needed) else 0.0
    if median <= limit:
        return None
    return Finding(
        "far-from-everything", "incomplete",
        f"the smallest change that fools the model is {median:.3g} for half of the images: no image is so far from "
        "another class",
        {"median distance": median, "threshold": limit, "attack": plan.MINIMAL, "norm": e.threat["norm"]},
        "the minimum-norm attack fails: substitute the backward or attack without gradients",
        f"{CARLINI}: median l2 distances above 9 on MNIST",
    )  # fmt: skip


def effort_left_out(e: Evidence) -> Finding | None:
    """What the literature asks for once and a shorter audit leaves out: 10,000 random points, ten random starts,
    targeted attacks, an attack by labels alone."""
    missing = []
    looked = e.record(plan.SEARCH).forwards[e.standing(plan.SEARCH)] if e.has(plan.SEARCH) else np.zeros(1)
    if len(looked) and looked.max() < RANDOM_POINTS:
        missing.append(f"a random search of {RANDOM_POINTS} points")
    if not e.has(plan.RESTARTED):
        missing.append("ten random starts")
    if not e.has(plan.TARGETED):
        missing.append("targeted attacks")
    if not e.has(plan.BY_LABELS):
        missing.append("an attack by labels alone")
    if not missing:
        return None
    return Finding(
        "short-audit", "notice", f"this audit left out {', '.join(missing)}", {},
        "use effort 'thorough' for a figure in print", CARLINI,
    )  # fmt: skip
