"""One progress display for everything that takes over two seconds: a bar with the remaining time on a terminal,
a plain line now and then elsewhere. Always on stderr."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

PATIENCE = 2.0  # seconds of silence
PLAIN_EVERY = 10.0  # seconds between lines where there is no terminal

Tick = Callable[..., None]  # tick(amount=1.0, note="")


@contextmanager
def progress(label: str, total: float, shown: bool = True, done: float = 0.0) -> Iterator[Tick]:
    """A function `tick(amount, note)` to call as work gets done; `total` and amounts in any one unit.

    Args:
        label: the work, in words.
        shown: False keeps it silent.
        done: what an earlier run already did: shown, but not counted in the speed.
    """
    display = _Display(label, total, done)
    try:
        yield display.tick if shown else _silent
    finally:
        if display.bar is not None:
            display.bar.stop()


def _silent(amount: float = 1.0, note: str = "") -> None:
    pass


class _Display:
    def __init__(self, label: str, total: float, done: float):
        self.label, self.total, self.before, self.done = label, total, done, done
        self.start = time.monotonic()
        self.next = self.start + PATIENCE
        self.bar: Any = None
        self.task: Any = None

    def tick(self, amount: float = 1.0, note: str = "") -> None:
        self.done += amount
        now = time.monotonic()
        if self.bar is not None:
            self.bar.update(self.task, completed=self.done, description=f"{self.label} {note}".strip())
        elif now >= self.next:
            if sys.stderr.isatty():
                self._start_bar()
            else:
                self._line(now, note)

    def _line(self, now: float, note: str) -> None:
        self.next = now + PLAIN_EVERY
        line = f"{self.label}: {100 * self.done / self.total if self.total else 100:.0f} %"
        fresh = self.done - self.before
        if fresh > 0.02 * self.total:  # before that, start-up time would be extrapolated
            line += f", about {(now - self.start) / fresh * (self.total - self.done):.0f} s left"
        print(f"{line} {note}".rstrip(), file=sys.stderr, flush=True)

    def _start_bar(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
        self.bar = Progress(*columns, console=Console(stderr=True), transient=True)
        self.task = self.bar.add_task(self.label, total=self.total)
        self.bar.update(self.task, completed=self.done)
        self.bar.start()
