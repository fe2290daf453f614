"""Several searches for each example side by side in one batch. On a few examples a step costs its overhead and not
its arithmetic, so that nine classes at once take little longer than one."""

from dataclasses import replace

import torch
from torch import Tensor

from stochade.attacks.base import Attempt, Task, Trace
from stochade.attacks.gradients import TILE
from stochade.attacks.ledger import Ledger
from stochade.randomness import Stream

AT_ONCE = TILE // 2  # images in a batch of tiles


def groups(count: int, examples: int) -> list[range]:
    """0 ... count - 1 in groups that run at once: as many as AT_ONCE images hold, and one at least."""
    size = max(1, AT_ONCE // max(examples, 1))
    return [range(i, min(i + size, count)) for i in range(0, count, size)]


def tiled(task: Task, rows: Tensor, streams: list[Stream]) -> Task:
    """These rows once for each stream, [len(streams) * n]: tile k of example i is row k * n + i."""
    every = rows.repeat(len(streams))
    return replace(
        task, x=task.x[every], y=task.y[every], threat=task.threat.rows(every), stream=Stream.joined(streams),
        targets=None if task.targets is None else task.targets[every],
        start=None if task.start is None else task.start[every],
    )  # fmt: skip


class Race(Ledger):
    """The ledger of tiles of which the first that breaks its example decides: once a tile has, later ones of the same
    example are given up, and earlier ones go on. So the outcome is that of one tile after the other.

    Attributes:
        broke: [tiles * n] rows that were fooled beyond doubt.
    """

    def __init__(self, task: Task, draws: int, tiles: int):
        super().__init__(task, draws)
        self.tiles = tiles
        self.broke = torch.zeros(len(task.x), dtype=torch.bool, device=task.x.device)

    def leaving(self, x: Tensor, logits: Tensor, rows: Tensor, saved: float) -> Tensor | None:
        leave = super().leaving(x, logits, rows, saved)
        if leave is None:
            return None
        self.broke[rows[leave]] = True
        broke = self.broke.view(self.tiles, -1)
        pointless = (broke.cumsum(0) > broke).flatten()  # an earlier tile broke the example
        return leave | pointless[rows]

    def pick(self) -> Tensor:
        """[n] the tile whose inputs count: the first that broke the example, or else the one of highest value."""
        broke, value = self.broke.view(self.tiles, -1), self.value.view(self.tiles, -1)
        return torch.where(broke.any(0), broke.int().argmax(0), value.argmax(0))


def folded(part: Attempt, pick: Tensor) -> Attempt:
    """What the tiles did for each example, with the inputs of tile `pick` [n]: costs add up, traces follow one
    another."""
    n = len(pick)
    tiles = len(part.inputs) // n
    row = pick * n + torch.arange(n, device=pick.device)
    passes = (part.forwards + part.backwards).view(tiles, n)
    before = passes.cumsum(0) - passes
    value, distance, spent = (t.view(-1, tiles, n) for t in part.trace)
    spent = torch.where(spent > 0, spent + before, spent)
    trace = Trace(*(t.transpose(0, 1).reshape(-1, n) for t in (value, distance, spent)))
    return replace(
        part, inputs=part.inputs[row], value=part.value[row], distance=part.distance[row],
        forwards=part.forwards.view(tiles, n).sum(0), backwards=part.backwards.view(tiles, n).sum(0), trace=trace,
        found_at=torch.minimum(passes, part.found_at[row]).sum(0),
    )  # fmt: skip
