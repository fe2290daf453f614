"""One unit of work: one attack on one chunk of examples. A function of (configuration, seed, attack, chunk) and
nothing else, so that units may run in any order, in any process, once or again after a crash."""

import time
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from stochade.attacks.ball import like
from stochade.attacks.base import Attack, Attempt, Trace
from stochade.attacks.codes import attacks_codes
from stochade.attacks.gradients import TILE, Model, check_logits
from stochade.attacks.inputs import check_inputs, check_model, probe
from stochade.attacks.threats import L0, Ball, Threat
from stochade.describe import describe
from stochade.errors import ThreatError
from stochade.evaluate.codes import CodeDraws
from stochade.evaluate.names import member_names
from stochade.evaluate.records import CLEAN, AttackRecord, threat_info
from stochade.evaluate.source import Source
from stochade.nn.discrete import scope_of
from stochade.randomness import identities, reseed, seed_for, untouched


@dataclass(frozen=True)
class Settings:
    """What a unit needs to know besides model, data and attack."""

    seed: int
    draws: int
    keep_images: int
    eight_bit: bool
    device: str


class Unit(NamedTuple):
    """What one unit gave: identities and labels [N], the record, and the wall seconds of the attack itself."""

    ids: np.ndarray
    labels: np.ndarray
    record: AttackRecord
    seconds: float = 0.0


def attack_info(attack: object) -> dict:
    """The attack as plain data, for the records."""
    threat = getattr(attack, "threat", None)
    told = threat_info(threat)
    if told is not None:  # the alphabet is in the attack's description: runs from before it was told are taken up
        told.pop("alphabet", None)
    info = {"attack": describe(attack), "threat": told, "label": str(threat) if threat else ""}
    if getattr(attack, "minimal", False):
        info["minimal"] = True
    if members := member_names(attack):
        info["members"] = members
    return info


def run_unit(model: Model, source: Source, name: str, attack: Attack | None, index: int, settings: Settings) -> Unit:
    """One attack (None: the clean images) on chunk `index`."""
    x, y = source[index]
    check_inputs(x, y)
    ids = identities(x, y)
    x, y = x.to(settings.device), y.to(settings.device)
    check_model(model)
    with untouched(model):
        reseed(seed_for(settings.seed, "probe", name, index))
        if attack is None:
            probe(model, x, y, probabilities_allowed=True)
            inputs, empty, seconds = x, torch.zeros(len(x)), 0.0
            attempt = Attempt(x, torch.full((len(x),), torch.nan), empty, empty, empty, no_trace(len(x)), empty)
        elif attacks_codes(attack):
            return _on_codes(model, x, y, ids, name, attack, index, settings)
        else:
            start = time.perf_counter()
            attempt = attack.run(
                model, x, y, seed=settings.seed, ids=ids, model_seed=seed_for(settings.seed, "draws", name, index)
            )
            seconds = elapsed(start, x)
            inputs = checked(attempt.inputs, x, attack.threat, name)
            if settings.eight_bit:
                inputs = to_eight_bit(inputs, x, attack.threat)
            if not attack.minimal:
                attempt = replace(attempt, distance=attack.threat.distance(inputs, x))
        random = scope_of(model) != "none"
        draws = settings.draws if random else 1
        scored = draw_logits(model, inputs, draws, seed_for(settings.seed, "score", name, index))
        selected = (
            draw_logits(model, inputs, draws, seed_for(settings.seed, "select", name, index)) if random else scored
        )
    rows = source.rows(index)
    kept = {row: inputs[row - rows.start].cpu().numpy() for row in rows if row < settings.keep_images}
    info = {"attack": CLEAN, "threat": None, "label": ""} if attack is None else attack_info(attack)
    return Unit(ids.numpy(), y.cpu().numpy(), record_of(attempt, scored, selected, kept, info, x), seconds)


def _on_codes(
    model: Model, x: Tensor, y: Tensor, ids: Tensor, name: str, attack: Attack, index: int, settings: Settings
) -> Unit:
    """A unit whose attack changes codes: it runs anew in every draw, and there are no adversarial images to keep."""
    random = scope_of(model) != "none"
    on = CodeDraws(model, x, y, ids, attack, name, settings.seed, index)
    scored = on.logits(settings.draws if random else 1, "score")
    selected = on.logits(settings.draws, "select") if random else scored
    record = record_of(on.attempt, scored, selected, {}, attack_info(attack), x)
    return Unit(ids.numpy(), y.cpu().numpy(), record, on.seconds)


def record_of(attempt: Attempt, scored: Tensor, selected: Tensor, kept: dict, info: dict, x: Tensor) -> AttackRecord:
    """The record of a chunk, out of what its search says and the logits [draws, N, K] of both sets of draws."""
    return AttackRecord(
        predictions=_predictions(scored),
        selection=_predictions(selected),
        vote_logits=scored.mean(0).argmax(1).numpy().astype(np.int16),
        vote_probabilities=scored.softmax(-1).mean(0).argmax(1).numpy().astype(np.int16),
        distance=_numpy(attempt.distance, np.float32),
        value=_numpy(attempt.value, np.float32),
        forwards=_numpy(attempt.forwards, np.int32),
        backwards=_numpy(attempt.backwards, np.int32),
        found_at=_numpy(attempt.found_at, np.int32),
        winner=_numpy(_or_none(attempt.winner, x), np.int16),
        targets=_numpy(_or_none(attempt.targets, x), np.int16),
        trace=_numpy(attempt.trace.value.T, np.float32),
        trace_distance=_numpy(attempt.trace.distance.T, np.float32),
        trace_passes=_numpy(attempt.trace.passes.T, np.int32),
        images=kept,
        info=info,
    )


def _predictions(logits: Tensor) -> np.ndarray:
    """[N, draws] classes out of logits [draws, N, K]."""
    return np.ascontiguousarray(logits.argmax(-1).T.numpy().astype(np.int16))


def elapsed(start: float, x: Tensor) -> float:
    """Seconds since `start`, with what an accelerator still has to do."""
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
    return time.perf_counter() - start


def _or_none(values: Tensor | None, x: Tensor) -> Tensor:
    return torch.full((len(x),), -1) if values is None else values


def no_trace(count: int) -> Trace:
    return Trace(torch.empty(0, count), torch.empty(0, count), torch.empty(0, count, dtype=torch.long))


def _numpy(t: Tensor, dtype) -> np.ndarray:
    return np.ascontiguousarray(t.detach().cpu().numpy().astype(dtype))


@torch.no_grad()
def draw_logits(model: Model, x: Tensor, draws: int, seed: int) -> Tensor:
    """Logits [draws, N, K], on draws of their own."""
    reseed(seed)
    n, seen = len(x), []
    per_pass = max(1, TILE // n) if scope_of(model) in ("none", "example") else 1
    while len(seen) < draws:
        d = min(per_pass, draws - len(seen))
        logits = check_logits(model(x.repeat(d, *(1,) * (x.dim() - 1))), d * n).view(d, n, -1)
        seen.extend(logits.cpu())
    return torch.stack(seen)


def checked(inputs: Tensor, x: Tensor, threat: Threat, name: str) -> Tensor:
    """The inputs, when each lies in its threat and in the box; ThreatError otherwise. Rounding in float32 is
    tolerated."""
    if not isinstance(inputs, Tensor) or inputs.shape != x.shape:
        got = tuple(inputs.shape) if isinstance(inputs, Tensor) else type(inputs).__name__
        raise ThreatError(f"images {tuple(x.shape)} from attack {name!r}", str(got))
    if not bool(torch.isfinite(inputs).all()):
        raise ThreatError(f"finite images from attack {name!r}", "NaN or infinity", "look for overflow in the attack")
    low, high = float(inputs.min()), float(inputs.max())
    if isinstance(threat, Ball) and (low < -1e-6 or high > 1 + 1e-6):
        raise ThreatError(f"images in [0,1] from attack {name!r}", f"[{low:.6g}, {high:.6g}]", "clamp to [0,1]")
    distance = threat.distance(inputs, x)
    rounding = 0.0 if isinstance(threat, L0) else 2e-7 * max(1.0, x[0].numel() ** 0.5)
    allowed = threat.size * (1 + 1e-5) + rounding
    if bool((distance > allowed).any()):
        worst = int(distance.argmax())
        raise ThreatError(
            f"inputs within {threat} from attack {name!r}",
            f"distance {float(distance[worst]):.6g} at example {worst} of its chunk",
            "project before returning: threat.project(x, x0)",
        )
    return inputs


def to_eight_bit(inputs: Tensor, x: Tensor, threat: Threat) -> Tensor:
    """Images that an 8-bit file can hold: changes become whole grey levels, rounded away from x where that stays
    inside the threat, else towards x. Points that were handed back as soon as they fooled lie near the boundary,
    those of minimum-norm attacks on it: rounded towards x they would fall back. Exact where x itself is 8-bit."""
    change = inputs - x
    size, sign = change.abs() * 255, torch.sign(change)
    towards = (x + sign * torch.floor(size + 1e-3) / 255).clamp(0, 1)
    if not isinstance(threat, Ball):
        return towards
    levels = torch.ceil(size - 1e-3)
    limit = torch.as_tensor(threat.limit(x.flatten(1).amax(1))).to(x)
    if threat.name == "linf":
        levels = torch.minimum(levels, torch.floor(like(limit.expand(len(x)), x) * 255 + 1e-3))
    away = (x + sign * levels / 255).clamp(0, 1)
    inside = threat.distance(away, x) <= limit * (1 + 1e-5)
    return torch.where(like(inside, x), away, towards)
