"""Run attacks on a model over data and keep raw records: in this process or in workers, resumable, seeded."""

import json
import multiprocessing
import os
import pickle
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stochade.attacks.base import Attack
from stochade.attacks.gradients import Model, check_whole
from stochade.attacks.inputs import check_model
from stochade.attacks.threats import Threat
from stochade.describe import describe, digest, fingerprint_model
from stochade.errors import BudgetError, ModelError, RecordsError
from stochade.evaluate.codes import check_code_attacks, runs
from stochade.evaluate.records import CLEAN, SCHEMA, WORST, Records
from stochade.evaluate.seconds import Clock
from stochade.evaluate.source import Source
from stochade.evaluate.store import join, read_unit, unit_bytes, unit_path, write_json
from stochade.evaluate.unit import Settings, Unit, attack_info, run_unit
from stochade.files import write_atomically
from stochade.native import status as kernels
from stochade.nn.discrete import scope_of
from stochade.progress import progress

Attacks = Mapping[str, Attack] | Sequence[Attack] | Attack


def named(attacks: Attacks) -> dict[str, Attack]:
    """Attacks by name, checked. A list is named by class and threat; "clean" and "worst" are reserved.

    Raises:
        BudgetError: something that is no attack, or a name twice or reserved.
    """
    if isinstance(attacks, Mapping):
        table = {str(name): attack for name, attack in attacks.items()}
    else:
        table: dict[str, Attack] = {}
        for attack in attacks if isinstance(attacks, Sequence) else [attacks]:
            name = f"{type(attack).__name__.lower()} {getattr(attack, 'threat', '')}".strip()
            while name in table:
                name += "'"
            table[name] = attack
    for name, attack in table.items():
        if name in (CLEAN, WORST) or not name:
            raise BudgetError(
                "another name for the attack", repr(name), "'clean' and 'worst' are made by evaluate itself"
            )
        if not isinstance(attack, Attack) or not isinstance(getattr(attack, "threat", None), Threat):
            raise BudgetError(
                f"an attack with a threat under the name {name!r}", repr(attack),
                "build one, for example PGD(Linf(0.3)), or wrap a function: Custom(function, Linf(0.3))",
            )  # fmt: skip
    return table


def evaluate(
    model: Model,
    images: Any,
    labels: Any = None,
    attacks: Attacks = (),
    draws: int = 20,
    seed: int = 0,
    *,
    chunk: int = 100,
    workers: int = 0,
    threads: int = 1,
    out: str | Path | None = None,
    keep_images: int = 64,
    eight_bit: bool = False,
    device: str = "cpu",
    show_progress: bool = True,
    meta: dict | None = None,
) -> Records:
    """Attack a model and score every returned image on fresh draws of the model.

    The attack never decides success: its images are checked against threat and box, then scored on `draws` fresh
    draws, and on as many other draws from which "worst" is selected. The model and the global generators come
    back as they were. Deterministic models (scope "none") are scored once.

    Args:
        model: images [N,C,H,W] in [0,1] -> logits [N,K]; one call is one draw. In eval mode.
        images: float tensor in [0,1], uint8 array or memory map, `stochade.data.Images`, or a Dataset of pairs.
        labels: [N] integers, or None where `images` brings them.
        attacks: {"name": attack}, a list of attacks, or one.
        draws: scoring draws per example.
        seed: everything random follows from it.
        chunk: examples per unit of work. Results are a function of (configuration, seed, chunk size, threads per
            process, device), not of workers, order or interruptions.
        workers: 0: in this process, with its threads; n >= 1: n processes of `threads` threads each.
        out: folder for the records; an interrupted run in it is taken up again, another run's is refused.
        keep_images: adversarial images kept for the first so many examples.
        eight_bit: round adversarial images to whole grey levels before scoring: away from the original where the
            threat allows, else towards it.
        device: where the model already is; chunks are sent there.
        meta: further facts for the records (data name, model target, ...).

    Returns:
        `Records`; `records.score("name", "single")` gives an `Estimate` with an interval.

    Raises:
        ImagesError, LabelsError, ModelError, LogitsError, BudgetError: bad input, before any backward.
        ThreatError: an attack returned images outside its threat.
        RecordsError: `out` holds another run.
    """
    table = named(attacks)
    for value, name in ((draws, "draws"), (chunk, "chunk")):
        check_whole(value, name)
    check_whole(workers, "workers", 0)
    check_whole(keep_images, "keep_images", 0)
    check_model(model)
    check_code_attacks(model, table)
    source = Source(images, labels, chunk)
    settings = Settings(seed, draws, keep_images, eight_bit, device)
    config = {
        "schema": SCHEMA,
        "model": {"sha256": fingerprint_model(model), "class": type(model).__name__, "scope": scope_of(model)},
        "examples": len(source),
        "chunk": chunk,
        "chunks": source.chunks,
        "seed": seed,
        "draws": draws,
        "eight_bit": eight_bit,
        "keep_images": keep_images,
        "device": device,
        "threads": torch.get_num_threads() if workers == 0 else threads,
        "attacks": [CLEAN, *table],
        "parts": {name: attack_info(attack) for name, attack in table.items()},
        "about": describe(meta or {}),
    }
    config["digest"] = digest(config | {"data": fingerprint_data(source)})
    # compiled here, before workers ask for them at once; draws of some layers depend on them
    config["kernels"] = {name: told == "ready" for name, told in kernels().items()}
    folder = None if out is None else Path(out)
    if folder is not None:
        open_run(folder, config)
    units = [(name, index) for index in range(source.chunks) for name in config["attacks"]]
    job = Job(model, source, {CLEAN: None} | table, settings, config["digest"], folder)
    clock = Clock(folder)
    try:
        results = run_units(job, units, clock, workers, threads, show_progress)
    finally:
        facts = clock.save()
    records = gather(results, config, folder)
    records.meta["provenance"] = facts
    return records


def fingerprint_data(source: Source) -> str:
    """A digest of the examples at both ends and of all labels: enough to tell data sets apart without a pass over
    ImageNet. Each record also carries the hash of its own image."""
    first, last = source[0], source[source.chunks - 1]
    labels = source.labels if source.labels is not None else torch.cat([first[1], last[1]])
    return digest([first[0], last[0], labels, len(source)])


def open_run(folder: Path, config: dict) -> None:
    """Start or take up a run; refuses a folder with another one."""
    path = folder / "run.json"
    if path.is_file():
        try:
            before = json.loads(path.read_text())
        except json.JSONDecodeError:
            before = {}
        told = before.get("kernels", {})  # runs of older versions do not say, or do not know every kernel
        before["kernels"] = {name: told.get(name, here) for name, here in config["kernels"].items()}
        if any(before.get(k) != config[k] for k in ("digest", "kernels")):
            keys = sorted(k for k in config if k != "digest" and before.get(k) != json.loads(json.dumps(config[k])))
            differs = ", ".join(keys) or "the images"
            raise RecordsError(
                "an empty folder or an interrupted run of the same configuration",
                f"{folder} with a run that differs in: {differs}",
                "choose another out folder, or delete this one",
            )
        return
    if folder.exists() and not folder.is_dir():
        raise RecordsError("a folder", str(folder), "choose another out")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, config)


class Job:
    """Everything a unit needs; travels to workers once."""

    def __init__(self, model, source: Source, attacks: dict, settings: Settings, run: str, folder: Path | None):
        self.model, self.source, self.attacks = model, source, attacks
        self.settings, self.run, self.folder = settings, run, folder

    def __call__(self, name: str, index: int) -> Unit:
        part = run_unit(self.model, self.source, name, self.attacks[name], index, self.settings)
        if self.folder is not None:
            data = unit_bytes(
                part.ids, part.labels, part.record, first=self.source.rows(index).start, digest=self.run
            )
            write_atomically(unit_path(self.folder, name, index), data)
        return part

    def cost(self, name: str, index: int) -> float:
        """Passes of one unit, for the progress bar; a backward counts two forwards."""
        attack = self.attacks[name]
        forwards, backwards = (0, 0) if attack is None else attack.cost()
        passes = runs(attack, self.settings.draws) * (forwards + 2 * backwards)
        return len(self.source.rows(index)) * (passes + 2 * self.settings.draws)


Results = dict[tuple[str, int], Unit]


def run_units(
    job: Job, units: list[tuple[str, int]], clock: Clock, workers: int, threads: int, show: bool
) -> Results:
    results: Results = {}
    if job.folder is not None:
        for unit in units:
            found = _finished(job, *unit)
            if found is not None:
                results[unit] = found
    left = [u for u in units if u not in results]
    total, done = sum(job.cost(*u) for u in units), sum(job.cost(*u) for u in results)
    with progress("attacking", total, show and bool(left), done) as tick:
        tick(0.0, left[0][0] if left else "")
        for number, (unit, part) in enumerate(
            _in_workers(job, left, workers, threads) if workers else _here(job, left), 1
        ):
            results[unit] = part
            clock.add(unit[0], part.seconds, part.record)
            following = unit if workers or number == len(left) else left[number]
            tick(job.cost(*unit), following[0])
    return results


def _finished(job: Job, name: str, index: int) -> Unit | None:
    """A unit that an earlier session wrote whole, or None. A damaged or foreign file is done again."""
    assert job.folder is not None
    path = unit_path(job.folder, name, index)
    if not path.is_file():
        return None
    try:
        facts, ids, labels, record = read_unit(path)
    except RecordsError:
        return None
    return Unit(ids, labels, record) if facts["digest"] == job.run else None


def _here(job: Job, units: list[tuple[str, int]]):
    for unit in units:
        yield unit, job(*unit)


_worker_job: Job | None = None


def _leave_with_parent() -> None:
    """Workers of a parent that was killed would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def _start_worker(payload: bytes, threads: int) -> None:
    global _worker_job
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    _worker_job = pickle.loads(payload)  # sent by our own parent process, never read from a file


def _work(unit: tuple[str, int]):
    assert _worker_job is not None
    return _worker_job(*unit)


def _in_workers(job: Job, units: list[tuple[str, int]], workers: int, threads: int):
    try:
        payload = pickle.dumps(job)
    except Exception as problem:
        raise ModelError(
            "a model and attacks that can be sent to worker processes", f"{type(problem).__name__}: {problem}",
            "define classes and functions at module level (no lambdas), or use workers=0",
        ) from problem  # fmt: skip
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _start_worker, (payload, threads)) as pool:
        futures = {pool.submit(_work, unit): unit for unit in units}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool as problem:
            raise ModelError(
                "worker processes that start", "one that died (out of memory, or a script without a main guard)",
                "guard the script with if __name__ == '__main__':, or use workers=0",
            ) from problem  # fmt: skip
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def gather(results: Results, config: dict, folder: Path | None) -> Records:
    attacks = {
        name: join([results[name, index].record for index in range(config["chunks"])]) for name in config["attacks"]
    }
    clean = [results[CLEAN, index] for index in range(config["chunks"])]
    ids, labels = np.concatenate([c.ids for c in clean]), np.concatenate([c.labels for c in clean])
    return Records(ids, labels, attacks, dict(config), folder)


def expected_seconds(model: Model, images: Any, labels: Any, attacks: Attacks, draws: int = 20) -> dict:
    """What an evaluation would cost, from the attacks' own counts and one timed forward and backward.

    Returns:
        {"forwards", "backwards"} per example over all attacks and scoring, and {"seconds"} for all examples in one
        process. Attacks that let fooled examples leave will need less.
    """
    from stochade.randomness import untouched

    table, source = named(attacks), Source(images, labels, 32)
    forwards = sum(a.cost()[0] * runs(a, draws) for a in table.values()) + 2 * draws * (len(table) + 1)
    backwards = sum(a.cost()[1] * runs(a, draws) for a in table.values())
    x, _ = source[0]
    check_model(model)
    with untouched(model):
        leaf = x.clone().requires_grad_()
        model(x)
        start = time.perf_counter()
        with torch.no_grad():
            model(x)
        forward = time.perf_counter() - start
        start = time.perf_counter()
        output = model(leaf).sum()
        if output.requires_grad:
            torch.autograd.grad(output, leaf, allow_unused=True)
        both = time.perf_counter() - start
    per_example = (forwards * forward + backwards * max(both - forward, 0)) / len(x)
    return {"forwards": forwards, "backwards": backwards, "seconds": per_example * len(source)}
