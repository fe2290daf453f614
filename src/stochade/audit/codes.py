"""What an audit of attacks on codes needs beside that of images: refusals before any compute, measurements on the
network behind the encoder, and the letters that one budget is for."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from stochade.attacks.codes import encode, encoder_and_network
from stochade.attacks.flips import Flips
from stochade.attacks.gradients import Backprop, Model
from stochade.attacks.inputs import check_model, probe
from stochade.attacks.objectives import margin
from stochade.audit.probes import blocked_by, differentiates_inside, drops, gradient_facts, outputs
from stochade.errors import BudgetError, GradientError
from stochade.nn.discrete import discrete_layers, scope_of
from stochade.randomness import reseed, seed_for, untouched


def check_codes(model: object, threat: Flips, baseline: object, planted: int | None, eight_bit: bool) -> None:
    """What an audit of codes cannot do, by name.

    Raises:
        ModelError: a model without an encoder, or with one of another alphabet. BudgetError: parts that need images.
    """
    encoder_and_network(model, threat)
    if threat.size == float("inf"):
        raise BudgetError("a finite number of flips for an audit", str(threat), "its curve over budgets ends there")
    for given, name in ((baseline is not None, "baseline"), (bool(planted), "active test"), (eight_bit, "eight_bit")):
        if given:
            raise BudgetError(f"no {name} under {threat}", name, "it is about images; audit the model under Linf too")


def measure(model: nn.Module, x: Tensor, y: Tensor, threat: Flips, seed: int = 0) -> dict[str, Any]:
    """Measurements as plain data, those of randomness and state on the whole model, those of the gradient on the
    network behind one encoding of the images. The model and the generators come back as they were.

    Raises:
        As `check_model` and `probe` do: LogitsError for a network that gives probabilities.
    """
    _, network = encoder_and_network(model, threat)
    check_model(model)
    with untouched(model):
        codes = encode(model, x, threat, seed_for(seed, "probe codes"))
        other = encode(model, x, threat, seed_for(seed, "other codes"))
        reseed(seed_for(seed, "first look"))
        probe(network, codes, y)
        facts: dict[str, Any] = {"declared_scope": scope_of(model), "examples": len(x), "pixels": x[0].numel()}
        with torch.no_grad():
            facts |= outputs(model, x, seed)
            facts["network_random"] = bool(outputs(network, codes, seed)["random"]) or scope_of(network) in (
                "example", "call",
            )  # fmt: skip
        facts["gradient"] = gradient_facts(network, codes, y, seed)
        facts["encodings"] = _encodings(network, codes, other, y, threat)
        facts["dynamic"] = differentiates_inside(network, codes[:2])
        facts["blocked_by"] = blocked_by(network, codes[:16])
        facts["layers"] = sorted({type(m).__name__ for m in discrete_layers(network).values()})
        facts["active_dropout"] = drops(model)
        facts["letters"] = math.prod(codes.shape[2:]) * (1 if threat.per == "frame" else codes.shape[1])
    return facts


def _encodings(network: Model, codes: Tensor, other: Tensor, y: Tensor, threat: Flips) -> dict[str, Any]:
    """How far two encodings of one image, and the gradients there, lie apart."""
    facts: dict[str, Any] = {"flips between two encodings": float(threat.distance(codes, other).mean())}
    try:
        both = [Backprop()(network, z, y, margin).gradient.flatten(1) for z in (codes, other)]
    except GradientError:
        return facts
    living = (both[0] != 0).any(1) & (both[1] != 0).any(1)
    if bool(living.any()):
        cosine = functional.cosine_similarity(*both, dim=1)[living]
        facts["cosine of the gradients at two encodings"] = float(cosine.median())
    return facts


def seen(model: nn.Module, x: Tensor, threat: Flips, seed: int) -> tuple[nn.Module, Tensor]:
    """The network and one encoding of some images, for the adaptive search."""
    _, network = encoder_and_network(model, threat)
    with untouched(model):
        return network, encode(model, x, threat, seed_for(seed, "search codes"))
