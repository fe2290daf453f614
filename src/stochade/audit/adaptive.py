"""The adaptive search as the audit runs it: on a few examples, inside a stated budget, with a log for the report."""

from typing import Any

from torch import Tensor

from stochade.attacks.adaptive import Search, Trial, search_attacks, worth_attacking
from stochade.attacks.ball import Ball
from stochade.attacks.base import Attack
from stochade.attacks.descent import PGD
from stochade.attacks.gradients import Backprop, Model
from stochade.audit.plan import Effort
from stochade.evaluate import intervals
from stochade.progress import progress

PREFIX = "adaptive "
FREE = 10  # times as many passes for winners without backpropagation
WINNERS = 3  # attacks that the search may choose


def adaptive_attacks(
    model: Model, x: Tensor, y: Tensor, threat: Ball, random: bool, effort: Effort, seed: int, show_progress: bool
) -> tuple[dict[str, Attack], list[dict[str, Any]]]:
    """The attacks that the search chose, with the budget they get on all examples, and the log of what it tried.

    Args:
        x, y: examples to choose from; those that the model gets right are searched on.
        random: whether the model is random, as measured.

    Returns:
        {"adaptive 1: ...": attack}, strongest first, and one dict per trial: attack, parts, rung, examples, passes
        (per example), accuracy with low and high, kept, note.
    """
    if not effort.search:
        return {}, []
    rows = worth_attacking(model, x, y, effort.searched, seed)
    with progress("searching", 1.3 * effort.search * len(rows), show_progress) as tick:
        found = search_attacks(
            model, x[rows], y[rows], threat, passes=effort.search, winners=WINNERS, seed=seed, random=random,
            report=lambda trial: tick(trial.passes * trial.examples, trial.candidate.name),
        )  # fmt: skip
    final = effort.steps * 2 * (effort.draws if random else 1)
    attacks = {
        f"{PREFIX}{index}: {candidate.name}": candidate.attack(threat, final * (FREE if candidate.free else 1))
        for index, candidate in enumerate(found.winners, 1)
    }
    return attacks, search_log(found)


def search_log(found: Search) -> list[dict[str, Any]]:
    """The trials as plain data, in the order tried."""
    return [_line(trial) for trial in found.trials]


def _line(trial: Trial) -> dict[str, Any]:
    c = trial.candidate
    score = intervals.mean(trial.right.numpy(), "single", "test set") if trial.right.numel() else None
    return {
        "attack": c.name,
        "parts": f"{c.view.name}, {c.objective}, {c.rule}, {c.draws} draws, from {c.start}",
        "rung": trial.round,
        "examples": trial.examples,
        "passes": round(trial.passes, 1),
        "accuracy": trial.accuracy if score is None else score.value,
        "low": None if score is None else score.low,
        "high": None if score is None else score.high,
        "kept": trial.kept,
        "note": trial.note,
    }


def expected_winners(threat: Ball, effort: Effort, random: bool) -> dict[str, Attack]:
    """What the search may choose at most, as far as cost goes."""
    gradient = Backprop(effort.draws if random else 1)
    return {f"{PREFIX}{i}": PGD(threat, effort.steps, gradient=gradient) for i in range(1, WINNERS + 1)}


def search_cost(effort: Effort, examples: int) -> int:
    """Passes of the search at most, over all of its examples."""
    return effort.search * min(effort.searched, examples) if effort.search else 0
