"""Measurements on the model itself, before any attack: is it random and at which scope, does it keep state, is its
gradient zero or mostly noise, does it output probabilities."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from stochade.attacks.gradients import Backprop, Model, check_logits
from stochade.attacks.inputs import looks_like_probabilities
from stochade.attacks.objectives import margin
from stochade.errors import GradientError
from stochade.nn.discrete import discrete_layers, scope_of
from stochade.randomness import fingerprint, reseed, seed_for, untouched

DRAWS = 5  # forwards of the randomness test (auto-attack's checks)
GRADIENTS = 10  # gradients for signal and noise


def probe_model(model: Model, x: Tensor, y: Tensor, seed: int = 0) -> dict[str, Any]:
    """All measurements as plain data. The model and the generators come back as they were.

    Args:
        x, y: a few dozen examples are enough.

    Returns:
        declared scope, measured randomness, state, batch dependence, probabilities, and the gradient's health.
    """
    with untouched(model):
        reseed(seed_for(seed, "probe"))
        facts: dict[str, Any] = {"declared_scope": scope_of(model), "examples": len(x)}
        with torch.no_grad():
            facts |= _outputs(model, x, seed)
        facts["gradient"] = _gradient(model, x, y, seed)
        facts["layers"] = (
            sorted({type(m).__name__ for m in discrete_layers(model).values()})
            if isinstance(model, nn.Module)
            else []
        )
        facts["active_dropout"] = _is(model) and any(
            isinstance(m, nn.modules.dropout._DropoutNd) and m.training and m.p > 0
            for m in model.modules()  # type: ignore[union-attr]
        )
    return facts


def _is(model: object) -> bool:
    return isinstance(model, nn.Module)


def _outputs(model: Model, x: Tensor, seed: int) -> dict[str, Any]:
    consumes, drawn = False, []
    for draw in range(DRAWS):  # each from the same state: what a model remembers is no randomness
        with untouched(model):
            reseed(seed_for(seed, "draw", draw))
            before = fingerprint()
            drawn.append(check_logits(model(x), len(x)))
            consumes = fingerprint() != before
    draws = torch.stack(drawn)
    predictions = draws.argmax(-1)
    spread = float((draws - draws[0]).abs().max())
    reseed(seed_for(seed, "state"))
    first = model(x)
    reseed(seed_for(seed, "state"))
    second = model(x)
    repeats = bool(torch.equal(first, second))
    restored = []
    for _ in range(2):
        with untouched(model):
            reseed(seed_for(seed, "state"))
            restored.append(model(x))
    same_rows = model(x[:1].repeat(16, *(1,) * (x.dim() - 1)))
    rows_differ = bool((same_rows - same_rows[:1]).abs().max() > 1e-4 * max(1.0, float(same_rows.abs().max())))
    reseed(seed_for(seed, "batch"))
    alone = model(x[:1])
    reseed(seed_for(seed, "batch"))
    together = model(x)[:1]
    random = spread > 1e-4 * max(1.0, float(draws.abs().max()))
    return {
        "random": random,
        "predictions_that_change": float((predictions != predictions[0]).any(0).float().mean()),
        "uses_global_generators": consumes,
        "differs_at_equal_seed": not repeats,  # state kept between calls, or a generator of its own
        "differs_at_equal_state": not bool(torch.equal(*restored)),  # a generator of its own
        "rows_of_one_call_differ": rows_differ,
        "depends_on_batch": not random and not bool(torch.allclose(alone, together, rtol=1e-3, atol=1e-4)),
        "probabilities": looks_like_probabilities(draws[0]),
        "classes": draws.shape[-1],
    }


def _gradient(model: Model, x: Tensor, y: Tensor, seed: int) -> dict[str, Any]:
    """Share of exactly zero gradients, norm, cosine between two draws, and the signal-to-noise ratio."""
    reseed(seed_for(seed, "gradient"))
    try:
        passes = [Backprop()(model, x, y, margin).gradient.flatten(1).double() for _ in range(GRADIENTS)]
    except GradientError as problem:
        return {"available": False, "reason": str(problem)}
    stack = torch.stack(passes)
    norms = stack.norm(dim=2)
    zero = (norms == 0).all(0)
    living = ~zero
    cosine = functional.cosine_similarity(stack[0], stack[1], dim=1)[living]
    mean = stack.mean(0)
    noise = stack.var(0, unbiased=True).sum(1)
    # |mean|^2 overstates the signal by noise / n; both sides per example, then the median
    signal = (mean.square().sum(1) - noise / GRADIENTS).clamp_min(0)
    ratio = (signal / noise.clamp_min(1e-30))[living]
    return {
        "available": True,
        "zero_share": float(zero.double().mean()),
        "zero_pixels": float((stack[0] == 0).double().mean()),
        "norm_median": float(norms[0].median()),
        "norm_max": float(norms.max()),
        "cosine_between_draws": float(cosine.median()) if len(cosine) else None,
        "signal_to_noise": min(float(ratio.median()), 1e12) if len(ratio) else None,
        "draws": GRADIENTS,
    }
