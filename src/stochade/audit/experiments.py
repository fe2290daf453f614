"""Experiments on the model that an audit makes between its rounds, beside attacking it: what frozen noise leaves, the
active test, the threshold baseline. Each gives plain facts, which the checks judge."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stochade.attacks import Backprop, Descent
from stochade.attacks.base import Attack
from stochade.attacks.gradients import Model
from stochade.attacks.threats import Ball
from stochade.audit import plan
from stochade.audit.active_test import active_test
from stochade.audit.baseline import Baseline, baseline_facts
from stochade.audit.frozen_noise import frozen_noise
from stochade.errors import ModelError
from stochade.evaluate.source import Source

FROZEN = 64  # examples of the experiment with frozen noise


def experiments(
    model: Model,
    source: Source,
    best: tuple[str, Attack],
    threat: Ball,
    probes: dict[str, Any],
    random: bool,
    effort: plan.Effort,
    baseline: Baseline | None,
    options: dict[str, Any],
) -> dict[str, Any]:
    """Facts by experiment: "frozen", "active_test", "baseline", as far as they were made.

    Args:
        best: name and attack that found most so far.
        options: of `evaluate`.
    """
    name, attack = best
    seed, device = options["seed"], options["device"]
    facts: dict[str, Any] = {}
    if random and isinstance(model, nn.Module) and not probes["differs_at_equal_seed"]:
        x, y = _first(source, FROZEN, device)
        facts["frozen"] = frozen_noise(model, x, y, attack, name, seed)
    if effort.planted:
        x, y = _first(source, effort.planted, device)
        facts["active_test"] = _planted(model, x, y, attack, name, seed)
    if baseline is not None:
        facts["baseline"] = baseline_facts(baseline, source.images, source.labels, threat, effort, **options)
    return {key: value for key, value in facts.items() if value}


def shown(probes: dict[str, Any]) -> dict[str, Any]:
    """The probes as the audit keeps them: where checks compare example by example, their mean."""
    table = dict(probes)
    if "frozen" in table:
        right = table["frozen"]["right"]
        means = {f"accuracy, noise from {n} known": float(np.mean(rows)) for n, rows in right.items()}
        table["frozen"] = {"attack": table["frozen"]["attack"], "examples": len(right["1"])} | means
    if "baseline" in table:
        facts = {key: value for key, value in table["baseline"].items() if key != "right"}
        table["baseline"] = facts | {"worst": float(np.mean(table["baseline"]["right"]))}
    return table


def _first(source: Source, count: int, device: str) -> tuple[Tensor, Tensor]:
    """The first so many examples."""
    chunks = [source[i] for i in range(-(-min(count, len(source)) // source.chunk))]
    x, y = torch.cat([x for x, _ in chunks])[:count], torch.cat([y for _, y in chunks])[:count]
    return x.to(device), y.to(device)


def _planted(model: Model, x: Tensor, y: Tensor, attack: Attack, name: str, seed: int) -> dict[str, Any]:
    single = attack
    if isinstance(attack, Descent) and isinstance(attack.gradient, Backprop):
        single = replace(attack, gradient=replace(attack.gradient, draws=1))  # frozen draws are all equal
    if not isinstance(model, nn.Module):
        return {"reason": "the model is a plain function, without layers to be seen"}
    try:
        result = active_test(model, x, y, single, examples=len(x), seed=seed)
    except ModelError as problem:
        return {"reason": str(problem)}
    return {
        "attack": name,
        "examples": result.examples,
        "planted": int(result.planted.sum()),
        "found": int(result.found.sum()),
        "random": int(result.random.sum()),
        "frozen": result.frozen,
    }
