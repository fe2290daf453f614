"""The other side of the bracket for flips: the vote behind flip noise, under attacks on the realised codes.

An attack sees one code of each image and the network behind the noise. It searches once; the code that it returns is
scored on fresh draws of the noise. (`evaluate` on a model with an encoder answers another question: there every draw
is a fresh encoding and a fresh attack on it, so no two draws vote on the same code.)
"""

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stochade.attacks.base import Attack, Attempt
from stochade.attacks.codes import checked_codes, flips_of
from stochade.attacks.flips import Flips
from stochade.attacks.gradients import Backprop
from stochade.attacks.inputs import check_labels, check_model
from stochade.attacks.objectives import cross_entropy, margin
from stochade.attacks.sea import SEA
from stochade.certify.flips import FlipNoise
from stochade.describe import describe, digest, fingerprint_model
from stochade.errors import BudgetError
from stochade.evaluate import Records
from stochade.evaluate.records import CLEAN, SCHEMA
from stochade.evaluate.run import Job, fingerprint_data, gather, kernels, open_run, run_units
from stochade.evaluate.seconds import Clock
from stochade.evaluate.source import Source
from stochade.evaluate.store import unit_bytes, unit_path
from stochade.evaluate.unit import Settings, Unit, attack_info, draw_logits, elapsed, no_trace, record_of
from stochade.files import write_atomically
from stochade.nn.discrete import scope_of
from stochade.randomness import identities, seed_for, untouched


def attacks_on_codes(
    letters: Sequence[float] | str, flips: Sequence[float], steps: int = 20, draws: int = 8
) -> dict[str, Attack]:
    """The sparse encoding attack through the expectation over the noise, at every number of flips above 0 in the
    whole code: in one step, and in `steps` by cross entropy and by margin. One step has the draws of all others
    together.

    Raises:
        BudgetError: numbers of flips that are not whole, or none above 0.
    """
    budgets = [int(k) for k in flips if not isinstance(k, bool) and math.isfinite(k) and k == int(k) and k > 0]
    if len(budgets) < sum(k != 0 for k in flips):
        raise BudgetError("whole numbers of flips", str([k for k in flips if k]), "for example 1, 2, 4")
    if not budgets:
        raise BudgetError("a number of flips above 0 to attack at", str(list(flips)), "certify without an attack")
    plans = (
        ("sea one step", 1, cross_entropy, draws * steps),
        ("sea", steps, cross_entropy, draws),
        ("sea margin", steps, margin, draws),
    )
    return {
        f"{name} {k}": SEA(
            Flips(k, letters, "total"), number, gradient=Backprop(each), objective=objective, drop_fooled=False
        )
        for k in budgets
        for name, number, objective, each in plans
    }  # fmt: skip


def attacked_codes(
    noisy: nn.Module, noise: FlipNoise, codes: Any, labels: Any, attacks: dict[str, Attack], *, draws: int = 100,
    seed: int = 0, out: str | Path | None = None, device: str = "cpu", show_progress: bool = True, workers: int = 0,
    chunk: int = 100, meta: dict | None = None,
) -> Records:  # fmt: skip
    """Records of the vote behind flip noise at the codes and at attacked ones, as `evaluate` keeps them of images.

    Args:
        noisy: the network behind the noise (`as_attacked`); one call is one draw.
        codes, labels: [N,T,...] in the noise's letters, one for each image, and [N].
        attacks: of `attacks_on_codes`. The rest as for `evaluate`; no codes are kept.

    Raises:
        ThreatError: an attack that leaves its threat. RecordsError: `out` holds another run. Else as `Attack.run`.
    """
    check_model(noisy)
    source, table = Source(codes, labels, chunk), {CLEAN: None} | attacks
    config: dict[str, Any] = {
        "schema": SCHEMA,
        "model": {"sha256": fingerprint_model(noisy), "class": type(noisy).__name__, "scope": scope_of(noisy)},
        "examples": len(source), "chunk": chunk, "chunks": source.chunks, "seed": seed, "draws": draws,
        "eight_bit": False, "keep_images": 0, "device": device,
        "threads": 1 if workers else torch.get_num_threads(),
        "attacks": list(table), "parts": {name: attack_info(attack) for name, attack in attacks.items()},
        "noise": noise.describe(), "about": describe(meta or {}),
    }  # fmt: skip
    config["digest"] = digest(config | {"data": fingerprint_data(source)})
    config["kernels"] = {name: told == "ready" for name, told in kernels().items()}
    folder = None if out is None else Path(out)
    if folder is not None:
        open_run(folder, config)
    job = _CodeJob(noisy, source, table, Settings(seed, draws, 0, False, device), config["digest"], folder)
    clock = Clock(folder)
    units = [(name, index) for index in range(source.chunks) for name in table]
    try:
        results = run_units(job, units, clock, workers, 1, show_progress)
    finally:
        facts = clock.save()
    records = gather(results, config, folder)
    records.meta["provenance"] = facts
    return records


class _CodeJob(Job):
    """Units whose inputs are codes."""

    def __call__(self, name: str, index: int) -> Unit:
        part = code_unit(self.model, self.source, name, self.attacks[name], index, self.settings)
        if self.folder is not None:
            first = self.source.rows(index).start
            data = unit_bytes(part.ids, part.labels, part.record, first=first, digest=self.run)
            write_atomically(unit_path(self.folder, name, index), data)
        return part

    def cost(self, name: str, index: int) -> float:
        """Passes; a backward counts two forwards. The attack runs once for all draws."""
        attack = self.attacks[name]
        forwards, backwards = (0, 0) if attack is None else attack.cost()
        return len(self.source.rows(index)) * (forwards + 2 * backwards + 2 * self.settings.draws)


def code_unit(
    noisy: nn.Module, source: Source, name: str, attack: Attack | None, index: int, settings: Settings
) -> Unit:
    """One attack (None: the codes as they are) on chunk `index`."""
    codes, y = source[index]
    check_labels(y, len(codes))
    ids = identities(codes, y)
    x, y = codes.to(settings.device), y.to(settings.device)
    with untouched(noisy):
        if attack is None:
            empty = torch.zeros(len(x))
            attempt = Attempt(x, torch.full_like(empty, torch.nan), empty, empty, empty, no_trace(len(x)), empty)
            inputs, seconds, info = x, 0.0, {"attack": CLEAN, "threat": None, "label": ""}
        else:
            start = time.perf_counter()
            model_seed = seed_for(settings.seed, "draws", name, index)
            attempt = attack.run(noisy, x, y, seed=settings.seed, ids=ids, model_seed=model_seed)
            seconds = elapsed(start, x)
            inputs, info = checked_codes(attempt.inputs, x, flips_of(attack), name), attack_info(attack)
        scored, selected = (
            draw_logits(noisy, inputs, settings.draws, seed_for(settings.seed, purpose, name, index))
            for purpose in ("score", "select")
        )
    return Unit(ids.numpy(), y.cpu().numpy(), record_of(attempt, scored, selected, {}, info, x), seconds)
