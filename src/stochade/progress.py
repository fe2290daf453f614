"""One progress display for everything that takes over two seconds: a bar with the remaining time on a terminal,
a plain line now and then elsewhere. Always on stderr."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

PATIENCE = 2.0  # seconds of silence
PLAIN_EVERY = 10.0  # seconds between lines where there is no terminal
BEAT = 1.0  # seconds between looks at the clock while no work gets done

Tick = Callable[..., None]  # tick(amount=1.0, note="")


@contextmanager
def progress(label: str, total: float = 0.0, shown: bool = True, done: float = 0.0) -> Iterator[Tick]:
    """A function `tick(amount, note)` to call as work gets done; `total` and amounts in any one unit.

    The display also appears while nothing ticks, so that one long piece of work does not look like a standstill.

    Args:
        label: the work, in words.
        total: 0 where nobody knows; then the seconds so far are shown.
        shown: False keeps it silent.
        done: what an earlier run already did: shown, but not counted in the speed.
    """
    if not shown:
        yield _silent
        return
    display = _Display(label, total, done)
    threading.Thread(target=display.watch, daemon=True).start()
    try:
        yield display.tick
    finally:
        display.stop()


def _silent(amount: float = 1.0, note: str = "") -> None:
    pass


class _Display:
    def __init__(self, label: str, total: float, done: float):
        self.label, self.total, self.before, self.done = label, total, done, done
        self.start = time.monotonic()
        self.next = self.start + PATIENCE
        self.note = ""
        self.bar: Any = None
        self.task: Any = None
        self.lock, self.over = threading.Lock(), threading.Event()

    def watch(self) -> None:
        while not self.over.wait(BEAT):
            self.tick(0.0, self.note)

    def stop(self) -> None:
        self.over.set()
        with self.lock:
            if self.bar is not None:
                self.bar.stop()

    def tick(self, amount: float = 1.0, note: str = "") -> None:
        with self.lock:
            self.done += amount
            self.note = note
            now = time.monotonic()
            if self.over.is_set():
                return
            if self.bar is not None:
                self.bar.update(self.task, completed=self.done, description=f"{self.label} {note}".strip())
            elif now >= self.next:
                if sys.stderr.isatty():
                    self._start_bar()
                else:
                    self._line(now)

    def _line(self, now: float) -> None:
        self.next = now + PLAIN_EVERY
        line = f"{self.label}: {100 * self.done / self.total:.0f} %" if self.total else (
            f"{self.label}: {now - self.start:.0f} s"
        )  # fmt: skip
        fresh = self.done - self.before
        if fresh > 0.02 * self.total:  # before that, start-up time would be extrapolated
            line += f", about {(now - self.start) / fresh * (self.total - self.done):.0f} s left"
        elif self.total:
            line += f", {now - self.start:.0f} s so far"
        print(f"{line} {self.note}".rstrip(), file=sys.stderr, flush=True)

    def _start_bar(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
        from rich.progress import TimeRemainingColumn as Left

        known = (TaskProgressColumn(), Left()) if self.total else (TimeElapsedColumn(),)
        columns = (TextColumn("{task.description}"), BarColumn(), *known)
        self.bar = Progress(*columns, console=Console(stderr=True), transient=True)
        self.task = self.bar.add_task(self.label, total=self.total or None)
        self.bar.update(self.task, completed=self.done)
        self.bar.start()
