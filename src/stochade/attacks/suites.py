"""Suites: attacks in turn, each on what the ones before have not broken beyond doubt. `standard` and `random` are
what AutoAttack means by them; `fast` asks for the same answer at a fraction of the time."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from stochade.attacks.apgd import APGD, APGDTargeted
from stochade.attacks.ball import Ball, Threat
from stochade.attacks.base import Attack, Attempt, Task
from stochade.attacks.fab import FAB
from stochade.attacks.gradients import Backprop, check_whole
from stochade.attacks.ledger import Ledger
from stochade.attacks.objectives import cross_entropy, dlr, margin
from stochade.attacks.square import Square
from stochade.errors import BudgetError, ThreatError


@dataclass(frozen=True)
class Suite(Attack):
    """Runs its members in turn on the examples that are still open, and hands back each example's best inputs.

    An example is broken, and no later member sees it, once its inputs are misclassified (deterministic models), or
    once a sequential test on fresh draws puts P(correct) below 0.05 at the 95 % level (random models). Examples that
    nothing broke get the inputs of highest margin out of the clean image and every member's, on random models by its
    mean over `draws` fresh draws for each, which scoring does not share. Clean images are looked at first. Inputs
    outside the threat do not count. An example's result does not depend on the others.

    `Attempt.winner` is the index of the member that an example's inputs come from, -1 for the clean image; costs add
    up, traces follow one another.

    Args:
        threat: every member's. attacks: the members, in the order in which they run.
        draws: forwards at each member's inputs on random models (one on deterministic ones).

    Raises:
        BudgetError: no members, or something that is no attack. ThreatError: a member with another threat.
    """

    threat: Threat
    attacks: tuple[Attack, ...]
    draws: int = 50

    def __post_init__(self):
        if not isinstance(self.threat, Ball):
            raise BudgetError("a threat such as Linf(0.3)", repr(self.threat), "use Linf, L2, L1 or L0")
        if not isinstance(self.attacks, tuple) or not self.attacks:
            raise BudgetError("a tuple of attacks", repr(self.attacks), "for example Suite(t, (APGD(t), Square(t)))")
        check_whole(self.draws, "draws")
        for attack in self.attacks:
            if not isinstance(attack, Attack):
                raise BudgetError("attacks as members", repr(attack), "wrap a function as Custom(function, threat)")
            if attack.threat != self.threat:
                raise ThreatError(f"members with the suite's own threat {self.threat}", f"{attack.threat}")

    @property
    def probabilities_allowed(self) -> bool:  # type: ignore[override]
        return all(attack.probabilities_allowed for attack in self.attacks)

    def cost(self) -> tuple[int, int]:
        forwards, backwards = zip(*(attack.cost() for attack in self.attacks), strict=True)
        return sum(forwards) + self.draws * (1 + len(self.attacks)), sum(backwards)

    def search(self, task: Task) -> Attempt:
        ledger = Ledger(task, self.draws)
        winner = torch.full_like(task.y, -1)
        self._take(ledger, ledger.open, task.x, winner, -1, ledger.passes)
        for index, attack in enumerate(self.attacks):
            rows = ledger.open
            if not len(rows):
                break
            attempt = attack.search(_part(task, rows, index))
            found_at = ledger.join(rows, attempt)
            self._take(ledger, rows, _inside(task, rows, attempt.inputs), winner, index, found_at)
        return ledger.attempt(winner=winner)

    def _take(self, ledger: Ledger, rows: Tensor, x: Tensor, winner: Tensor, index: int, found_at: Tensor) -> None:
        """Look at a member's inputs: keep them where they are better, and let go of what they broke."""
        value, logits = ledger.see(x, rows, margin)
        leave = ledger.leaving(x, logits, rows, math.inf)
        better = value > ledger.value[rows] if leave is None else leave | (value > ledger.value[rows])
        kept = rows[better]
        ledger.replace(kept, x[better], value[better])
        ledger.found_at[kept], winner[kept] = found_at[better], index
        if leave is not None:
            ledger.close(rows[leave])


def _part(task: Task, rows: Tensor, index: int) -> Task:
    """The task of some rows, with randomness of their own for member `index`."""
    return replace(
        task, x=task.x[rows], y=task.y[rows], threat=task.threat.rows(rows),
        targets=None if task.targets is None else task.targets[rows],
        stream=task.stream.subset(rows).fork("member", index),
        start=None if task.start is None else task.start[rows],
    )  # fmt: skip


def _inside(task: Task, rows: Tensor, inputs: Tensor) -> Tensor:
    """The inputs, with the originals in place of what lies outside the threat."""
    x0, threat = task.x[rows], task.threat.rows(rows)
    distance = threat.distance(inputs, x0)
    limit = torch.as_tensor(threat.limit(distance)).to(distance)
    rounding = 0.0 if threat.name == "l0" else 2e-7 * max(1.0, x0[0].numel() ** 0.5)
    outside = ~(distance <= limit * (1 + 1e-5) + rounding)
    return torch.where(outside.view(-1, *(1,) * (x0.dim() - 1)), x0, inputs) if bool(outside.any()) else inputs


def standard(threat: Ball) -> Suite:
    """AutoAttack's `standard` (Croce and Hein 2020; l1: 2021), same components and budgets: APGD on cross entropy
    (100 steps), APGD on targeted DLR (9 classes), targeted FAB (9 classes) and Square (5000 queries). Under l1, APGD
    begins with wide budgets, from five starts, and then tries five classes.

    Raises:
        BudgetError: another threat than Linf, L2 or L1.
    """
    sparse = threat.name == "l1"
    return Suite(
        threat,
        (
            APGD(threat, restarts=5 if sparse else 1, wide=sparse),
            APGDTargeted(threat, targets=5 if sparse else 9, wide=sparse),
            FAB(threat, targets=9, drop_fooled=True),
            Square(threat, queries=5000),
        ),
    )


def random(threat: Ball, draws: int = 20) -> Suite:
    """AutoAttack's `rand`, for random models: APGD on cross entropy and on DLR, `draws` draws for every gradient.
    Best points, step sizes and leaving rest on all of them, where AutoAttack takes the last."""
    return Suite(
        threat,
        tuple(APGD(threat, objective=objective, gradient=Backprop(draws)) for objective in (cross_entropy, dlr)),
    )


def fast(threat: Ball) -> Suite:
    """The answer of `standard` in less time: short targeted runs over all nine classes first, which break nearly all
    that can be broken, then cross entropy, long runs over the four likeliest classes, and 1000 queries of Square in
    place of FAB and 5000. About a third of the passes of `standard` on an example that nothing breaks."""
    sparse = threat.name == "l1"
    return Suite(
        threat,
        (
            APGDTargeted(threat, steps=30, wide=sparse),
            APGD(threat, steps=50, restarts=3 if sparse else 1, wide=sparse),
            APGDTargeted(threat, targets=4, wide=sparse),
            Square(threat, queries=1000),
        ),
    )
