"""The audit: probe the model, search for the strongest attack, draw the curves, run the checks."""

import shutil
from pathlib import Path
from typing import Any

import torch

from stochade.attacks.base import Attack, FromProbabilities
from stochade.attacks.descent import Descent
from stochade.attacks.gradients import Model, _whole
from stochade.attacks.inputs import check_inputs, check_model, probe
from stochade.attacks.threats import Ball, Linf
from stochade.audit import plan
from stochade.audit.checks import Evidence, run_checks
from stochade.audit.probes import probe_model
from stochade.audit.result import Audit
from stochade.describe import digest, fingerprint_model
from stochade.errors import BudgetError, RecordsError
from stochade.evaluate.records import Records, threat_info
from stochade.evaluate.run import evaluate, expected_seconds, fingerprint_data
from stochade.evaluate.source import Source
from stochade.randomness import reseed, seed_for, untouched

PROBED = 64  # examples for the measurements on the model


def audit(
    model: Model,
    images: Any,
    labels: Any = None,
    threat: Ball | float = 0.1,
    *,
    effort: str | plan.Effort = "standard",
    draws: int = 20,
    seed: int = 0,
    published: float | None = None,
    out: str | Path | None = None,
    chunk: int = 100,
    workers: int = 0,
    threads: int = 1,
    eight_bit: bool = False,
    keep_images: int = 64,
    device: str = "cpu",
    show_progress: bool = True,
    meta: dict | None = None,
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
        threat: Linf(eps), L2(eps), L1(eps), L0(k); a number means Linf.
        effort: "quick", "standard" or "thorough", or a `plan.Effort`.
        draws: scoring draws per example.
        published: the accuracy that was claimed in print for the one-step attack, shown beside ours.
        out: folder for records, audit.json and (by the command line) the report; resumable.
        seed, chunk, workers, threads, eight_bit, keep_images, device, show_progress, meta: as for `evaluate`.

    Raises:
        As `evaluate`; BudgetError for a threat that is none of the four norms or has no budget.
    """
    threat = threat if isinstance(threat, Ball) else Linf(threat)
    if threat.eps == 0:
        raise BudgetError("a budget above 0", "0", "an audit without a budget is the clean accuracy: use evaluate")
    if published is not None and not 0 <= published <= 1:
        raise BudgetError("a published accuracy in [0,1]", repr(published), "write 0.931 for 93.1 %")
    strength = plan.effort_of(effort)
    _whole(chunk, "chunk")
    _whole(draws, "draws")
    source = Source(images, labels, chunk)
    x, y = source[0]
    check_inputs(x, y)
    check_model(model)
    request = digest(
        {
            "model": fingerprint_model(model),
            "data": fingerprint_data(source),
            "attack": [threat, strength, draws, seed, chunk],
            "show": [published, eight_bit, keep_images, meta],
        }
    )
    if out is not None and (finished := _finished(Path(out), request)) is not None:
        return finished
    x, y = x[:PROBED].to(device), y[:PROBED].to(device)
    model, probes = _measured(model, x, y, seed)
    info = threat_info(threat)
    assert info is not None
    options: dict[str, Any] = {
        "draws": draws, "seed": seed, "chunk": chunk, "workers": workers, "threads": threads, "meta": meta,
        "eight_bit": eight_bit, "device": device, "keep_images": keep_images, "show_progress": show_progress,
    }  # fmt: skip
    work = None if out is None else Path(out) / "work"

    first = plan.search_attacks(model, threat, _random(probes), probes["gradient"]["available"], strength)
    searched = evaluate(model, images, labels, first, out=None if work is None else work / "search", **options)
    best = _strongest(searched, first)
    pixels = x[0].numel()
    own = first.get(plan.OWN_MARGIN)
    second = plan.curve_attacks(best, first[best], own, threat, pixels, _random(probes))
    records = searched
    if second.attacks:
        curves = evaluate(
            model, images, labels, second.attacks, out=None if work is None else work / "curves", **options
        )
        records = _merged(searched, curves)
    claim = plan.ONE_STEP if plan.ONE_STEP in records.attacks else best
    findings = run_checks(Evidence(records, probes, info, second.curves, claim))
    result = Audit(records, findings, info, claim, published, second.curves, probes, request)
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


def _measured(model: Model, x: torch.Tensor, y: torch.Tensor, seed: int) -> tuple[Model, dict]:
    """Measurements, and the model as it will be attacked: through the logarithm where it outputs probabilities."""
    check_model(model)
    with untouched(model):
        reseed(seed_for(seed, "first look"))
        probe(model, x, y, probabilities_allowed=True)
    probes = probe_model(model, x, y, seed)
    if probes["probabilities"]:
        model = FromProbabilities(model)
        probes["gradient"] = probe_model(model, x, y, seed)["gradient"]
    return model, probes


def _random(probes: dict) -> bool:
    return bool(probes["random"]) or probes["declared_scope"] in ("example", "call")


def _strongest(records: Records, attacks: dict[str, Attack]) -> str:
    """The descent attack with the lowest accuracy on the selection draws."""
    labels = records.labels[:, None]
    names = [n for n, a in attacks.items() if isinstance(a, Descent) and a.steps > 1] or list(attacks)
    return min(names, key=lambda n: float((records.attacks[n].selection == labels).mean()))


def _merged(first: Records, second: Records) -> Records:
    """Both rounds as one: the same examples, draws and seed."""
    attacks = first.attacks | {n: r for n, r in second.attacks.items() if n != "clean"}
    meta = dict(first.meta) | {
        "attacks": list(attacks),
        "parts": first.meta["parts"] | second.meta["parts"],
        "digest": first.meta["digest"] + second.meta["digest"],
    }
    return Records(first.ids, first.labels, attacks, meta)


def expected_cost(
    model: Model, images: Any, labels: Any, threat: Ball, effort: str | plan.Effort = "standard", draws: int = 20
) -> dict:
    """Passes per example and expected seconds of an audit, from one timed pass; for --dry-run. An upper bound:
    fooled examples leave early."""
    strength, source = plan.effort_of(effort), Source(images, labels, PROBED)
    x, y = source[0]
    check_inputs(x, y)
    model, probes = _measured(model, x, y, 0)
    first = plan.search_attacks(model, threat, _random(probes), probes["gradient"]["available"], strength)
    name = plan.OWN_MARGIN if plan.OWN_MARGIN in first else plan.EVOLUTION
    second = plan.curve_attacks(name, first[name], first.get(plan.OWN_MARGIN), threat, x[0].numel(), _random(probes))
    return expected_seconds(model, images, labels, first | second.attacks, draws)
