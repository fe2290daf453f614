"""Does the gradient that attacks follow exist at all? Asked before they run, also where nobody asked for an audit."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from stochade.attacks.base import Attack
from stochade.attacks.codes import attacks_codes, flips_of
from stochade.attacks.gradients import Model
from stochade.attacks.inputs import check_inputs, check_model
from stochade.attacks.oblivious import FixedFlips
from stochade.audit.checks_model import zero_gradients
from stochade.audit.codes import seen
from stochade.audit.findings import Finding
from stochade.audit.probes import blocked_by, gradient_facts
from stochade.evaluate.source import Source
from stochade.randomness import untouched

LOOKED_AT, DRAWS = 32, 3  # examples, and forwards and backwards of each


def zero_gradient_findings(
    model: Model, images: Any, labels: Any, attacks: Mapping[str, Attack], *, seed: int = 0, device: str = "cpu"
) -> list[Finding]:
    """Findings where the gradient is exactly zero on many examples, or does not exist: one for the images and one
    for the codes, as far as attacks by gradients are among those given. An example counts as zero when three draws
    give it none. The model and the generators come back as they were.

    Raises:
        As `evaluate` for images, labels and models that make no sense.
    """
    climbing = [attack for attack in attacks.values() if attack.cost()[1] > 0]
    on_codes = [a for a in climbing if attacks_codes(a)]
    x, y = Source(images, labels, LOOKED_AT)[0]
    check_inputs(x, y)
    check_model(model)
    x, y, found = x.to(device), y.to(device), []
    places: list[tuple[Model, Any, str]] = [(model, x, "pixel")] if len(on_codes) < len(climbing) else []
    if on_codes:
        threat = flips_of(on_codes[0])
        threat = threat.bound if isinstance(threat, FixedFlips) else threat
        places.append((*seen(model, x, threat, seed), "letter"))  # type: ignore[arg-type]
    for part, inputs, entry in places:
        with untouched(part):
            facts = gradient_facts(part, inputs, y, seed, DRAWS)
            finding = zero_gradients(facts, len(inputs), entry)
            if finding is None:
                continue
            stops = blocked_by(part, inputs[:16]) if isinstance(part, nn.Module) else []
        finding.evidence["examples"] = len(inputs)
        finding.evidence["it stops at"] = ", ".join(stops) or "no single layer"
        found.append(finding)
    return found


def told(finding: Finding) -> str:
    """A finding in plain words for a terminal."""
    stops = finding.evidence.get("it stops at", "")
    where = f" It stops at {stops}." if stops and stops != "no single layer" else ""
    return (
        f"{finding.check} ({finding.severity}): {finding.title}, so accuracy under attacks that follow it says "
        f"nothing about robustness.{where} Next: {finding.next_step}."
    )
