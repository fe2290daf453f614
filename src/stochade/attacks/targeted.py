"""Any attack, pulled towards a class that is chosen for each example: the runner-up, the least likely, a random or a
fixed one."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from stochade.attacks.base import Attack, Attempt, Task, Trace
from stochade.attacks.gradients import check_whole
from stochade.attacks.ledger import Ledger
from stochade.errors import BudgetError, LabelsError

GOALS = ("least-likely", "runner-up", "random")


@dataclass(frozen=True)
class Targeted(Attack):
    """Runs another attack towards one wrong class per example, and says which class that was.

    Classes are ranked by their mean logits on the clean image. Examples whose true class is the goal have nothing to
    be pulled to: they come back as they are, at no cost, with distance inf where the attack is a minimum-norm one.

    Args:
        attack: what is run; targets given to `run` go before the goal.
        goal: "least-likely" (kubo2019, equation 2.28), "runner-up" (the most likely wrong class), "random" (any wrong
            class, by the example's own stream), or the number of a class.
        draws: forwards that rank the classes on a random model (one where it is not).

    Raises:
        BudgetError: no attack, or a goal that is none of these. LabelsError: a class that the model does not have.
    """

    attack: Attack
    goal: str | int = "least-likely"
    draws: int = 10

    def __post_init__(self):
        if not isinstance(self.attack, Attack):
            raise BudgetError("an attack to pull to a class", repr(self.attack), "for example PGD(Linf(0.3))")
        whole = isinstance(self.goal, int) and not isinstance(self.goal, bool) and self.goal >= 0
        if not whole and self.goal not in GOALS:
            raise BudgetError(f"a goal out of {', '.join(GOALS)} or the number of a class", repr(self.goal))
        check_whole(self.draws, "draws")

    @property
    def threat(self):  # type: ignore[override]
        return self.attack.threat

    @property
    def minimal(self):  # type: ignore[override]
        return self.attack.minimal

    @property
    def probabilities_allowed(self):  # type: ignore[override]
        return self.attack.probabilities_allowed

    def cost(self) -> tuple[int, int]:
        forwards, backwards = self.attack.cost()
        return forwards + self.draws, backwards

    def search(self, task: Task) -> Attempt:
        if task.targets is not None:
            return self.attack.search(task)
        targets, spent = self._chosen(task)
        rows = (targets != task.y).nonzero()[:, 0]
        if len(rows) == len(task.x):
            attempt = self.attack.search(replace(task, targets=targets))
        elif len(rows):
            attempt = _spread(self.attack.search(_part(task, rows, targets[rows])), task, rows, self.minimal)
        else:
            distance = torch.full_like(task.x.flatten(1)[:, 0], torch.inf if self.minimal else 0.0)
            attempt = Ledger(task).attempt(distance)
        at_once = torch.zeros_like(spent)
        at_once[rows] = spent[rows]
        trace = attempt.trace
        passes = torch.where(trace.passes > 0, trace.passes + at_once, trace.passes)
        return replace(
            attempt, forwards=attempt.forwards + at_once, found_at=attempt.found_at + at_once,
            trace=Trace(trace.value, trace.distance, passes),
            targets=torch.where(targets != task.y, targets, torch.full_like(targets, -1)),
        )  # fmt: skip

    @torch.no_grad()
    def _chosen(self, task: Task) -> tuple[Tensor, Tensor]:
        """[N] classes, the true one where it is the goal, and [N] forwards spent on ranking them."""
        ledger, rows = Ledger(task, self.draws), torch.arange(len(task.x), device=task.x.device)
        seen = ledger.logits(task.x, rows, 1)
        ranked = self.goal in ("least-likely", "runner-up")
        if ranked and ledger.draws > 1:  # the first draw may have shown that an unknown model is random
            seen = torch.cat([seen, ledger.logits(task.x, rows, ledger.draws - 1)])
        logits, own = seen.mean(0), task.y[:, None]
        classes = logits.shape[1]
        if classes < 2 or (isinstance(self.goal, int) and self.goal >= classes):
            raise LabelsError(f"a goal among the model's {classes} classes", repr(self.goal), "classes count from 0")
        if isinstance(self.goal, int):
            return torch.full_like(task.y, self.goal), ledger.forwards
        if self.goal == "least-likely":
            return logits.scatter(1, own, torch.inf).argmin(1), ledger.forwards
        if self.goal == "runner-up":
            return logits.scatter(1, own, -torch.inf).argmax(1), ledger.forwards
        pick = (task.stream.fork("target").uniform((), torch.float64) * (classes - 1)).long()
        return pick + (pick >= task.y), ledger.forwards


def _part(task: Task, rows: Tensor, targets: Tensor) -> Task:
    """The task of some examples, with their targets."""
    threat = task.threat.rows(rows) if hasattr(task.threat, "rows") else task.threat
    start = None if task.start is None else task.start[rows]
    return Task(task.model, task.x[rows], task.y[rows], threat, targets, task.stream.subset(rows), start)


def _spread(part: Attempt, task: Task, rows: Tensor, minimal: bool) -> Attempt:
    """What an attack did to some examples, beside the others as they are."""

    def all_rows(values: Tensor, fill: float) -> Tensor:
        """[n] or [steps, n] -> [N] or [steps, N]."""
        whole = values.new_full((*values.shape[:-1], len(task.x)), fill)
        whole[..., rows] = values
        return whole

    inputs = task.x.clone()
    inputs[rows] = part.inputs
    trace = Trace(
        all_rows(part.trace.value, torch.nan),
        all_rows(part.trace.distance, torch.nan),
        all_rows(part.trace.passes, 0),
    )
    return Attempt(
        inputs, all_rows(part.value, torch.nan), all_rows(part.distance, torch.inf if minimal else 0.0),
        all_rows(part.forwards, 0), all_rows(part.backwards, 0), trace, all_rows(part.found_at, 0),
        None if part.winner is None else all_rows(part.winner, -1),
    )  # fmt: skip
