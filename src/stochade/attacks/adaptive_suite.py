"""The adaptive search as one attack: `Adaptive`."""

from dataclasses import dataclass, replace

import torch

from stochade.attacks.adaptive import search_attacks, worth_attacking
from stochade.attacks.ball import Ball, Threat
from stochade.attacks.base import Attack, Attempt, Task
from stochade.attacks.flips import refuse_codes
from stochade.attacks.gradients import check_whole
from stochade.attacks.ledger import Ledger
from stochade.attacks.suites import Suite
from stochade.errors import BudgetError


@dataclass(frozen=True)
class Adaptive(Attack):
    """Searches for the strongest attack on some examples of the batch, then runs the winners on all of them, one
    after the other on what is still unbroken.

    What it does to an example depends on the batch, because the search learns from its first examples.

    Args:
        passes: forwards and backwards per example for the search, at most.
        examples: how many of the batch the search may look at.
        final: forwards and backwards per example for each winner.
        winners: how many attacks are chosen at most.
    """

    threat: Threat
    passes: int = 3000
    examples: int = 32
    final: int = 1000
    winners: int = 3

    def __post_init__(self):
        if not isinstance(self.threat, Ball):
            raise BudgetError("a threat such as Linf(0.3)", repr(self.threat), "pass threat=Linf(eps), L2(eps) ...")
        refuse_codes(self.threat, "the adaptive search")
        for name in ("examples", "final", "winners"):
            check_whole(getattr(self, name), name)
        check_whole(self.passes, "passes", 100)

    def cost(self) -> tuple[int, int]:
        total = self.passes + self.winners * self.final
        return total // 2, total // 2

    def search(self, task: Task) -> Attempt:
        assert isinstance(self.threat, Ball)
        rows = worth_attacking(task.model, task.x, task.y, self.examples, task.stream.seed)
        found = search_attacks(
            task.model, task.x[rows], task.y[rows], self.threat, passes=self.passes, winners=self.winners,
            seed=task.stream.seed,
        )  # fmt: skip
        members = tuple(candidate.attack(self.threat, self.final) for candidate in found.winners)
        if not members:
            return Ledger(task).attempt()
        attempt = Suite(self.threat, members).search(replace(task, stream=task.stream.fork("winners")))
        spent = torch.zeros_like(attempt.forwards)
        spent[rows] = round(found.passes / max(1, len(rows)))
        return replace(attempt, forwards=attempt.forwards + spent)
