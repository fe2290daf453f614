"""The audit: probe the model, search for the strongest attack, draw the curves, run the checks."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from stochade.attacks.base import Attack, FromProbabilities
from stochade.attacks.codes import flips_for
from stochade.attacks.descent import Descent
from stochade.attacks.flips import Flips
from stochade.attacks.gradients import Model, check_whole
from stochade.attacks.inputs import check_inputs, check_model, probe
from stochade.attacks.threats import Ball
from stochade.audit import claims, codes, plan, plan_codes
from stochade.audit.adaptive import adaptive_attacks, expected_winners, search_cost
from stochade.audit.baseline import Baseline, check_baseline, transfer_attack
from stochade.audit.checks import Evidence, run_checks
from stochade.audit.experiments import experiments, shown
from stochade.audit.probes import probe_model
from stochade.audit.result import Audit
from stochade.describe import digest, fingerprint_model
from stochade.errors import BudgetError, RecordsError
from stochade.evaluate.records import Records, threat_info
from stochade.evaluate.run import evaluate, expected_seconds, fingerprint_data
from stochade.evaluate.source import Source
from stochade.progress import progress
from stochade.randomness import reseed, seed_for, untouched

PROBED = 64  # examples for the measurements on the model


def audit(
    model: Model,
    images: Any,
    labels: Any = None,
    threat: Ball | float | None = None,
    *,
    effort: str | plan.Effort = "standard",
    draws: int = 20,
    seed: int = 0,
    claim: float | None = None,
    claim_attack: str | Attack | None = None,
    baseline: Baseline | None = None,
    planted: int | None = None,
    out: str | Path | None = None,
    chunk: int = 100,
    workers: int = 0,
    threads: int = 1,
    eight_bit: bool = False,
    keep_images: int = 64,
    device: str = "cpu",
    show_progress: bool = True,
    meta: dict | None = None,
    command: str | None = None,
) -> Audit:
    """How accurate a model looks under the attack its authors would use, how accurate it is under the best attack
    found, and why the two differ.

    Probes the model, runs noise, one-step, iterated, averaged, substituted-backward, relaxed-forward and
    gradient-free attacks inside the threat, then accuracy over budget, steps and draws for the best of them, and
    turns all of it into findings. The lowest accuracy found is an upper bound on the robust accuracy; nothing is
    ever called robust.

    Args:
        model: images [N,C,H,W] in [0,1] -> logits [N,K], in eval mode; one call is one draw.
        images, labels: as for `evaluate`.
        threat: Linf(eps), L2(eps), L1(eps), L0(k), or Flips(k, alphabet, per) for the codes of a model with an
            encoder in front; a number means Linf; None: that of the claimed attack, else Linf(0.1).
        effort: "quick", "standard" or "thorough", or a `plan.Effort`.
        draws: scoring draws per example.
        claim: the accuracy in print, in [0,1], put beside our replication of it and the lowest accuracy found.
        claim_attack: the attack it was claimed for, "fgsm eps=0.3" or an Attack; by default FGSM at the threat.
        baseline: training images of nearly black and white pixels: the defence is compared with a plain network
            behind a threshold that is trained on them, and images that fool a plain network are tried on it.
        planted: examples of the active test; None: what the effort says.
        out: folder for records, audit.json and (by the command line) the report; resumable.
        seed, chunk, workers, threads, eight_bit, keep_images, device, show_progress, meta: as for `evaluate`.
        command: how to repeat this audit, as the report shows it; None: the call of this function.

    Raises:
        As `evaluate`; BudgetError for a threat that has no budget or a claim outside [0,1]; ThreatError for a claimed
        attack in another norm.
    """
    claims.check_claim(claim)
    usual = flips_for(model) if claims.about_codes(claim_attack) else None
    claimed, threat = claims.claimed_attack(claim_attack, threat, usual)
    if threat.eps == 0:
        raise BudgetError("a budget above 0", "0", "an audit without a budget is the clean accuracy: use evaluate")
    flips = threat if isinstance(threat, Flips) else None
    if flips is not None:
        codes.check_codes(model, flips, baseline, planted, eight_bit)
    strength = plan.effort_of(effort)
    if planted is not None:
        strength = replace(strength, planted=check_whole(planted, "planted", 0))
    if baseline is not None:
        check_baseline(baseline)
    check_whole(chunk, "chunk")
    check_whole(draws, "draws")
    check_whole(workers, "workers", 0)
    check_whole(keep_images, "keep_images", 0)
    source = Source(images, labels, chunk)
    x, y = source[0]
    check_inputs(x, y)
    check_model(model)
    request = digest(
        {
            "model": fingerprint_model(model),
            "data": fingerprint_data(source),
            "attack": [threat, strength, draws, seed, chunk],
            "show": [claim, claimed, eight_bit, keep_images, meta],
            "baseline": None if baseline is None else fingerprint_data(Source(baseline.images, baseline.labels)),
        }
    )
    if out is not None and (finished := _finished(Path(out), request)) is not None:
        return finished
    x, y = x[:PROBED].to(device), y[:PROBED].to(device)
    with progress("measuring the model", shown=show_progress):
        model, probes = _measured(model, x, y, seed, flips)
    info = threat_info(threat)
    assert info is not None
    options: dict[str, Any] = {
        "draws": draws, "seed": seed, "chunk": chunk, "workers": workers, "threads": threads, "meta": meta,
        "eight_bit": eight_bit, "device": device, "keep_images": keep_images, "show_progress": show_progress,
    }  # fmt: skip
    work = None if out is None else Path(out) / "work"

    noisy = _noisy(probes)
    first = _planned(model, threat, probes, strength)
    if baseline is not None:
        first |= transfer_attack(baseline, threat, strength.steps, seed)
    looked, labelled = source[0]
    searched_on = model, looked.to(device)
    if flips is not None:
        searched_on = codes.seen(model, searched_on[1], flips, seed)  # type: ignore[arg-type]
    adaptive, log = adaptive_attacks(*searched_on, labelled.to(device), threat, noisy, strength, seed, show_progress)
    first |= adaptive
    told = "" if claim_attack is None else claims.written(claim_attack)
    name, tried = ("", first) if claimed is None else claims.with_claim(first, claimed, told)
    searched = evaluate(model, images, labels, tried, out=None if work is None else work / "search", **options)
    best = _strongest(searched, first)
    if flips is None:
        probes |= experiments(model, source, (best, first[best]), threat, probes, noisy, strength, baseline, options)
    second = _curves(best, first, threat, probes) if strength.curves else plan.Curves({}, {})
    records = searched
    if second.attacks:
        curves = evaluate(
            model, images, labels, second.attacks, out=None if work is None else work / "curves", **options
        )
        records = _merged(searched, curves)
    names = plan.IMAGES if flips is None else plan_codes.NAMES
    usual = names.one_step if names.one_step in records.attacks else best
    name = name or usual
    compared = name if records.attacks[name].threat == info else usual  # at another budget it says nothing here
    findings = run_checks(Evidence(records, probes, info, second.curves, compared, names))
    settings: dict[str, Any] = {"draws": draws, "seed": seed, "chunk": chunk}
    settings |= {"eight_bit": True} if eight_bit else {}
    settings |= {} if planted is None else {"planted": planted}
    call = claims.repeat_call(threat, effort, claim, told, settings, baseline is not None)
    result = Audit(
        records, findings, info, name, claim, second.curves, shown(probes), request, log, told, command or call
    )
    if out is not None:
        records.folder = None
        result.save(out)
        shutil.rmtree(Path(out) / "work", ignore_errors=True)
    return result


def _finished(out: Path, request: str) -> Audit | None:
    """The audit that `out` already holds, when it is this one; RecordsError when it is another."""
    if not (out / "audit.json").is_file():
        if (out / "run.json").is_file():
            raise RecordsError(
                "an empty folder or this audit", f"{out} with another run", "choose another out folder"
            )
        return None
    found = Audit.load(out)
    if found.request != request:
        raise RecordsError(
            "an empty folder or the same audit", f"{out} with an audit of another model, data or settings",
            "choose another out folder, or delete this one",
        )  # fmt: skip
    return found


def _measured(model: Model, x: torch.Tensor, y: torch.Tensor, seed: int, flips: Flips | None) -> tuple[Model, dict]:
    """Measurements, and the model as it will be attacked: through the logarithm where it outputs probabilities."""
    if flips is not None:
        return model, codes.measure(model, x, y, flips, seed)  # type: ignore[arg-type]
    check_model(model)
    with untouched(model):
        reseed(seed_for(seed, "first look"))
        probe(model, x, y, probabilities_allowed=True)
    probes = probe_model(model, x, y, seed)
    if probes["probabilities"]:
        model = FromProbabilities(model)
        probes["gradient"] = probe_model(model, x, y, seed)["gradient"]
    return model, probes


def _noisy(probes: dict) -> bool:
    """Whether what is attacked is random: the model, or the network given a code."""
    if "network_random" in probes:
        return probes["network_random"]
    return bool(probes["random"]) or probes["declared_scope"] in ("example", "call")


def _planned(model: Model, threat: Ball, probes: dict, strength: plan.Effort) -> dict[str, Attack]:
    """The fixed attacks of the first round."""
    there = probes["gradient"]["available"]
    if isinstance(threat, Flips):
        return plan_codes.code_attacks(model.network, threat, _noisy(probes), there, strength)  # type: ignore[attr-defined]
    return plan.search_attacks(model, threat, _noisy(probes), there, strength)


def _curves(best: str, first: dict[str, Attack], threat: Ball, probes: dict) -> plan.Curves:
    """The second round, around the best attack of the first."""
    if not isinstance(threat, Flips):
        own = first.get(plan.OWN_MARGIN)
        return plan.curve_attacks(best, first[best], own, threat, probes["pixels"], _noisy(probes))
    own, names = first.get(plan_codes.MARGIN), plan_codes.NAMES
    return plan.curve_attacks(
        best, first[best], own, threat, probes["letters"], _noisy(probes), names, plan_codes.BUDGETS
    )


def _strongest(records: Records, attacks: dict[str, Attack]) -> str:
    """The descent attack of the fixed plan with the lowest accuracy on the selection draws. Those of the adaptive
    search have budgets that nobody wants to repeat for every point of a curve."""
    labels = records.labels[:, None]
    fixed = [n for n, a in attacks.items() if isinstance(a, Descent) and not n.startswith(plan.ADAPTIVE)]
    names = [n for n in fixed if attacks[n].steps > 1] or list(attacks)  # type: ignore[attr-defined]
    return min(names, key=lambda n: float((records.attacks[n].selection == labels).mean()))


def _merged(first: Records, second: Records) -> Records:
    """Both rounds as one: the same examples, draws and seed."""
    attacks = first.attacks | {n: r for n, r in second.attacks.items() if n != "clean"}
    meta = dict(first.meta) | {
        "attacks": list(attacks),
        "parts": first.meta["parts"] | second.meta["parts"],
        "digest": first.meta["digest"] + second.meta["digest"],
    }
    facts = first.meta["provenance"], second.meta["provenance"]
    meta["provenance"] = facts[0] | {"seconds": facts[0]["seconds"] | facts[1]["seconds"]}
    return Records(first.ids, first.labels, attacks, meta)


def expected_cost(
    model: Model, images: Any, labels: Any, threat: Ball, effort: str | plan.Effort = "standard", draws: int = 20
) -> dict:
    """Passes per example and expected seconds of an audit, from one timed pass; for --dry-run. An upper bound:
    fooled examples leave early."""
    strength, source = plan.effort_of(effort), Source(images, labels, PROBED)
    x, y = source[0]
    check_inputs(x, y)
    flips = threat if isinstance(threat, Flips) else None
    if flips is not None:
        codes.check_codes(model, flips, None, None, False)
    model, probes = _measured(model, x, y, 0, flips)
    first = _planned(model, threat, probes, strength)
    usual = (plan.OWN_MARGIN, plan.EVOLUTION) if flips is None else (plan_codes.MARGIN, plan_codes.SEARCH)
    second = _curves(next(n for n in usual if n in first), first, threat, probes)
    curves = second.attacks if strength.curves else {}
    third = expected_winners(threat, strength, _noisy(probes)) if strength.search else {}
    cost = expected_seconds(model, images, labels, first | curves | third, draws)
    searching = search_cost(strength, len(source)) // (2 * len(source))  # half forwards, half backwards
    share = 3 * searching / max(1, cost["forwards"] + 2 * cost["backwards"])
    return {
        "forwards": cost["forwards"] + searching,
        "backwards": cost["backwards"] + searching,
        "seconds": cost["seconds"] * (1 + share),
    }
