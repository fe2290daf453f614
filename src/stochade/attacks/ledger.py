"""The bookkeeping that all searches share: every look at the model goes through a `Ledger`, which counts passes per
example, holds what was found, and decides who may leave."""

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from stochade.attacks.base import Attempt, Task, Trace
from stochade.attacks.fooled import Watch, confirm, draws_needed, misses
from stochade.attacks.gradients import TILE, Gradient, Pass, check_logits, objective_values
from stochade.attacks.objectives import Objective

LINES = 512  # lines that a trace keeps; longer ones are thinned evenly


class Ledger:
    """One search on one batch: looks at the model, counted per example; the best inputs so far; who is still open.

    Rows are indices [n] into the batch. What a method takes beside rows belongs to exactly these rows.

    Args:
        task: what the search was given.
        draws: forwards on which a judgement rests where the model is random (one where it is not).

    Attributes:
        found: like x, the inputs to hand back, at first x. value: [N] mean objective there, -inf before.
        found_at: [N] passes that had been spent when they were found.
        forwards, backwards: [N] passes.
        open: [n] examples that have not been settled.
        watch: tells deterministic models from random ones.
    """

    def __init__(self, task: Task, draws: int = 1):
        self.task, self.model, self.x0, self.y, self.targets = task, task.model, task.x, task.y, task.targets
        self.threat, self.stream = task.threat, task.stream
        self.watch, self._draws = Watch(task.model), draws
        n, device = len(task.x), task.x.device
        self.found = task.x.clone()
        self.value = torch.full((n,), -torch.inf, dtype=task.x.dtype, device=device)
        self.forwards, self.backwards, self.found_at = (
            torch.zeros(n, dtype=torch.long, device=device) for _ in range(3)
        )
        self.open = torch.arange(n, device=device)
        self.looks = 0  # sequential tests made, for spending the level
        self.tiled = self.watch.scope in ("none", "example")
        self._lines: list[tuple[Tensor, Tensor, Tensor]] = []

    @property
    def draws(self) -> int:
        """Forwards on which a judgement rests: 1 as long as the model counts as deterministic."""
        return 1 if self.watch.deterministic else self._draws

    @property
    def passes(self) -> Tensor:
        """[N] forwards and backwards spent so far."""
        return self.forwards + self.backwards

    def goals(self, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """(labels, targets) of some rows."""
        return self.y[rows], None if self.targets is None else self.targets[rows]

    def images(self, rows: Tensor) -> Tensor:
        """The original images of some rows, without a copy where these are all of them."""
        return self.x0 if len(rows) == len(self.x0) else self.x0[rows]

    def gradient(self, gradient: Gradient, x: Tensor, rows: Tensor, objective: Objective, stream: Any) -> Pass:
        """One evaluation of the gradient at x, counted."""
        y, targets = self.goals(rows)
        aimed: Any = objective
        if getattr(aimed, "classes", None) is not None:  # as targets: what cuts the batch cuts them too
            objective, targets = aimed.objective, aimed.classes
        with self.watch:
            result = gradient(self.model, x, y, objective, targets=targets, stream=stream)
        spent = getattr(result, "spent", None)
        if spent is None:
            self.forwards[rows] += gradient.forwards
            self.backwards[rows] += gradient.backwards
        else:  # a gradient that stops early says what each example took
            self.forwards[rows] += spent[0]
            self.backwards[rows] += spent[1]
        return result

    @torch.no_grad()
    def logits(self, x: Tensor, rows: Tensor, draws: int | None = None) -> Tensor:
        """[draws, n, K]: forward draws at x, counted; by default as many as a judgement rests on. A row may be there
        several times, with several x."""
        draws, n, seen = self.draws if draws is None else draws, len(x), []
        per_pass = max(1, TILE // n) if self.tiled else 1
        while len(seen) < draws:
            d = min(per_pass, draws - len(seen))
            with self.watch:
                batch = x if d == 1 else x.repeat(d, *(1,) * (x.dim() - 1))
                seen.extend(check_logits(self.model(batch), d * n).view(d, n, -1))
        self.forwards.index_add_(0, rows, torch.full_like(rows, draws))
        return torch.stack(seen)

    def look(
        self, x: Tensor, rows: Tensor, objective: Objective, draws: int | None = None, gradient: object = None
    ) -> tuple[Tensor, Tensor]:
        """Mean objective [n] and misses [draws, n] at x, over forward draws; through the eyes of `gradient` where it
        relaxes the forward."""
        value, logits = self.see(x, rows, objective, draws, gradient)
        return value, misses(logits, *self.goals(rows))

    def see(
        self, x: Tensor, rows: Tensor, objective: Objective, draws: int | None = None, gradient: object = None
    ) -> tuple[Tensor, Tensor]:
        """As `look`, with the logits [draws, n, K] themselves."""
        y, targets = self.goals(rows)
        swapped = getattr(gradient, "swapped", None)
        with nullcontext() if swapped is None else swapped(self.model):
            logits = self.logits(x, rows, draws)
        value = torch.zeros(len(x), dtype=x.dtype, device=x.device)
        for z in logits:
            value += objective_values(objective, z, y, targets).to(x.dtype)
        return value / len(logits), logits

    def judge(self, x: Tensor, rows: Tensor, draws: int | None = None) -> Tensor:
        """[n] whether x is adversarial by vote: P(correct) <= 1/2 (targeted: P(target) >= 1/2) over the draws."""
        y, targets = self.goals(rows)
        return misses(self.logits(x, rows, draws), y, targets).double().mean(0) >= 0.5

    def leaving(self, x: Tensor, logits: Tensor, rows: Tensor, saved: float) -> Tensor | None:
        """[n] who is fooled beyond doubt at x, or None when nobody is.

        Args:
            logits: [draws, n, K] of the model itself at x, drawn after x was chosen.
            saved: forwards per example that leaving would save; a test that costs more is not made.
        """
        y, targets = self.goals(rows)
        candidates = misses(logits, y, targets).all(0)
        if not bool(candidates.any()):
            return None
        if self.watch.deterministic and self.watch.repeats(x[candidates], logits[-1][candidates]):
            return candidates
        free, needed = len(logits), draws_needed(self.looks + 1)
        if saved <= needed - free:
            return None
        self.looks += 1
        index = candidates.nonzero()[:, 0]
        goal = None if targets is None else targets[index]
        leaves, spent = confirm(self.model, x[index], y[index], goal, free, needed, self.tiled)
        self.forwards[rows[index]] += spent
        candidates[index] = leaves
        return candidates if bool(leaves.any()) else None

    def keep(self, rows: Tensor, x: Tensor, value: Tensor) -> None:
        """Remember x where its value beats what was found before."""
        better = value > self.value[rows]
        index = rows[better]
        self.found[index], self.value[index] = x[better], value[better]
        self.found_at[index] = self.passes[index]

    def replace(self, rows: Tensor, x: Tensor, value: Tensor | None = None) -> None:
        """Remember x whatever was found before."""
        self.found[rows] = x
        self.found_at[rows] = self.passes[rows]
        if value is not None:
            self.value[rows] = value

    def settle(self, rows: Tensor, x: Tensor, value: Tensor | None = None) -> None:
        """x is what these rows hand back; they leave."""
        self.replace(rows, x, value)
        self.close(rows)

    def close(self, rows: Tensor) -> None:
        """These rows are settled with what was found for them; they leave."""
        self.open = self.open[~torch.isin(self.open, rows)]

    def note(self, rows: Tensor, value: Tensor, distance: Tensor | None = None) -> None:
        """A line of the trace: the objective at the points just tried, and their distance."""
        lines = torch.full((2, len(self.x0)), torch.nan, dtype=self.x0.dtype, device=self.x0.device)
        lines[0, rows] = value.to(self.x0.dtype)
        if distance is not None:
            lines[1, rows] = distance.to(self.x0.dtype)
        passes = torch.zeros_like(self.forwards)
        passes[rows] = self.passes[rows]
        self._lines.append((lines[0], lines[1], passes))

    def join(self, rows: Tensor, part: Attempt) -> Tensor:
        """Add what another search spent and saw on these rows. Returns [n] passes, counted from the beginning of this
        search, at which it found its inputs."""
        before = self.passes[rows]
        self.forwards[rows] += part.forwards
        self.backwards[rows] += part.backwards
        for value, distance, passes in zip(*part.trace, strict=True):
            line = self.x0.new_full((2, len(self.x0)), torch.nan)
            line[0, rows], line[1, rows] = value, distance
            spent = torch.zeros_like(self.forwards)
            spent[rows] = torch.where(passes > 0, passes + before, passes)
            self._lines.append((line[0], line[1], spent))
        return before + part.found_at

    def attempt(self, distance: Tensor | None = None, winner: Tensor | None = None) -> Attempt:
        """What the search hands back.

        Args:
            distance: [N] of a minimum-norm attack; by default that of `found`.
        """
        value = torch.where(torch.isfinite(self.value), self.value, torch.nan)
        if distance is None:
            distance = self.threat.distance(self.found, self.x0)
        assert distance is not None
        return Attempt(
            self.found, value, distance, self.forwards, self.backwards, self.trace(), self.found_at, winner,
            self.targets,
        )  # fmt: skip

    def trace(self) -> Trace:
        """The lines so far, at most LINES of them."""
        if not self._lines:
            empty = self.x0.new_full((0, len(self.x0)), torch.nan)
            return Trace(empty, empty, self.forwards.new_zeros(0, len(self.x0)))
        lines = self._lines
        if len(lines) > LINES:
            lines = [lines[round(i * (len(lines) - 1) / (LINES - 1))] for i in range(LINES)]
        value, distance, passes = (torch.stack(part) for part in zip(*lines, strict=True))
        return Trace(value, distance, passes)
