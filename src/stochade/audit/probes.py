"""Measurements on the model itself, before any attack: is it random and at which scope, does it keep state, is its
gradient zero or mostly noise and where does it stop, does its loss jump, does it output probabilities."""

import sys
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from stochade.attacks.gradients import Backprop, Model, check_logits
from stochade.attacks.inputs import looks_like_probabilities
from stochade.attacks.objectives import margin
from stochade.errors import GradientError
from stochade.nn.discrete import discrete_layers, scope_of
from stochade.randomness import Stream, fingerprint, reseed, seed_for, untouched

DRAWS = 5  # forwards of the randomness test (auto-attack's checks)
GRADIENTS = 10  # gradients for signal and noise
DIRECTIONS, RADIUS = 100, 4 / 255  # of the stability test (Pintor et al. 2022)
STEADY, REPEATS = 16, 4  # its examples, and draws per direction on random models


def probe_model(model: Model, x: Tensor, y: Tensor, seed: int = 0) -> dict[str, Any]:
    """All measurements as plain data. The model and the generators come back as they were.

    Args:
        x, y: a few dozen examples are enough.

    Returns:
        declared scope, measured randomness, state, batch dependence, probabilities, and the gradient's health.
    """
    with untouched(model):
        reseed(seed_for(seed, "probe"))
        facts: dict[str, Any] = {"declared_scope": scope_of(model), "examples": len(x), "pixels": x[0].numel()}
        with torch.no_grad():
            facts |= outputs(model, x, seed)
        facts["gradient"] = gradient_facts(model, x, y, seed)
        facts["stability"] = _stability(model, x[:STEADY], y[:STEADY], seed, facts["random"])
        facts["dynamic"] = differentiates_inside(model, x[:2])
        facts["blocked_by"] = blocked_by(model, x[:STEADY]) if isinstance(model, nn.Module) else []
        facts["layers"] = (
            sorted({type(m).__name__ for m in discrete_layers(model).values()})
            if isinstance(model, nn.Module)
            else []
        )
        facts["active_dropout"] = drops(model)
    return facts


def drops(model: object) -> bool:
    """Whether a dropout layer is on."""
    layers = model.modules() if isinstance(model, nn.Module) else ()
    return any(isinstance(m, nn.modules.dropout._DropoutNd) and m.training and m.p > 0 for m in layers)


def outputs(model: Model, x: Tensor, seed: int) -> dict[str, Any]:
    """Randomness, its scope, state, dependence on the batch, and whether these are probabilities."""
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


def gradient_facts(model: Model, x: Tensor, y: Tensor, seed: int, draws: int = GRADIENTS) -> dict[str, Any]:
    """Share of exactly zero gradients, norm, cosine between two draws, and the signal-to-noise ratio, from two
    draws or more."""
    reseed(seed_for(seed, "gradient"))
    try:
        passes = [Backprop()(model, x, y, margin).gradient.flatten(1).double() for _ in range(draws)]
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
    signal = (mean.square().sum(1) - noise / draws).clamp_min(0)
    ratio = (signal / noise.clamp_min(1e-30))[living]
    return {
        "available": True,
        "zero_share": float(zero.double().mean()),
        "zero_pixels": float((stack[0] == 0).double().mean()),
        "norm_median": float(norms[0].median()),
        "norm_max": float(norms.max()),
        "cosine_between_draws": float(cosine.median()) if len(cosine) else None,
        "signal_to_noise": min(float(ratio.median()), 1e12) if len(ratio) else None,
        "draws": draws,
    }


@torch.no_grad()
def _stability(model: Model, x: Tensor, y: Tensor, seed: int, random: bool) -> dict[str, float]:
    """Mean relative change of the margin over uniform directions within RADIUS (per example at most 1), and the same
    without any direction: what the model's own noise does."""
    reseed(seed_for(seed, "stability"))
    stream = Stream(seed_for(seed, "directions"), torch.arange(len(x), device=x.device))
    repeats = REPEATS if random else 1

    def at(points: Tensor) -> Tensor:
        return torch.stack([margin(model(points), y) for _ in range(repeats)]).mean(0)

    reference = torch.stack([at(x) for _ in range(10 if random else 1)]).mean(0)
    scale = torch.where(reference == 0, torch.ones_like(reference), reference.abs())
    moved = [
        ((at(x + RADIUS * (2 * stream.uniform(x.shape[1:], x.dtype) - 1)) - reference) / scale).abs()
        for _ in range(DIRECTIONS)
    ]
    still = [((at(x) - reference) / scale).abs() for _ in range(DIRECTIONS // 4)] if random else [0 * scale]

    def mean(changes: list[Tensor]) -> float:
        return float(torch.stack(changes).mean(0).clamp(max=1).mean())

    return {"relative_change": mean(moved), "change_by_noise": mean(still), "directions": DIRECTIONS}


@torch.no_grad()
def differentiates_inside(model: Model, x: Tensor) -> bool:
    """Whether a forward calls autograd: purification or adaptation at test time. Under a profiler that is not ours to
    stop, nothing is seen."""
    if sys.getprofile() is not None:
        return False
    watched = {torch.autograd.grad.__code__, torch.autograd.backward.__code__}
    seen: list[bool] = []

    def look(frame: FrameType, event: str, argument: object) -> None:
        if event == "call" and frame.f_code in watched:
            seen.append(True)

    sys.setprofile(look)
    try:
        model(x)
    finally:
        sys.setprofile(None)
    return bool(seen)


def blocked_by(model: nn.Module, x: Tensor) -> list[str]:
    """Names of the innermost modules into which a gradient could go and out of which none comes: their output is cut
    off from the graph, or its derivative is exactly zero for the whole batch."""
    found: list[str] = []

    def look(name: str, module: nn.Module, given: tuple, output: object) -> None:
        image = next((g for g in given if isinstance(g, Tensor) and g.requires_grad), None)
        if image is None or not isinstance(output, Tensor) or not output.is_floating_point():
            return
        if not output.requires_grad:
            found.append(name or type(module).__name__)
            return
        weights = torch.arange(1, output.numel() + 1, device=output.device).to(output.dtype).cos()
        try:  # uneven weights: the sum over a softmax has no derivative
            total = (output * weights.view_as(output)).sum()
            (gradient,) = torch.autograd.grad(total, image, retain_graph=True, allow_unused=True)
        except RuntimeError:  # changed in place since
            return
        if gradient is None or not bool(gradient.any()):
            found.append(name or type(module).__name__)

    leaves = [(name, m) for name, m in model.named_modules() if not any(True for _ in m.children())]
    hooks = [
        m.register_forward_hook(lambda m, given, output, name=name: look(name, m, given, output))
        for name, m in leaves
    ]
    try:
        with torch.enable_grad():
            model(x.detach().clone().requires_grad_())
    finally:
        for hook in hooks:
            hook.remove()
    return sorted(set(found))
