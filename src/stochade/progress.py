"""One progress display for everything that takes over two seconds: a bar with the remaining time on a terminal,
a plain line now and then elsewhere. Always on stderr."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Ticker(Protocol):
    def __call__(self, amount: float = 1.0, note: str = "") -> None: ...


QUIET_SECONDS = 2.0  # nothing is shown before
LINE_SECONDS = 15.0  # between plain lines


@contextmanager
def progress(label: str, total: float, enabled: bool = True, done: float = 0.0) -> Iterator[Ticker]:
    """A function to call as work gets done; `total` and amounts in any one unit.

    Args:
        done: what an earlier run already did: shown, but not counted in the speed.
    """
    if not enabled:
        yield lambda amount=1.0, note="": None
    elif sys.stderr.isatty():
        with _bar(label, total, done) as tick:
            yield tick
    else:
        yield _lines(label, total, done)


@contextmanager
def _bar(label: str, total: float, done: float) -> Iterator[Ticker]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn(compact=True))
    with Progress(*columns, console=Console(stderr=True), transient=True) as display:
        task = display.add_task(label, total=total)
        display.update(task, completed=done)

        def tick(amount: float = 1.0, note: str = "") -> None:
            display.update(task, advance=amount, description=f"{label} {note}".strip())

        yield tick


def _lines(label: str, total: float, done: float) -> Ticker:
    start = time.monotonic()
    state = {"done": done, "shown": start - LINE_SECONDS + QUIET_SECONDS}

    def tick(amount: float = 1.0, note: str = "") -> None:
        state["done"] += amount
        now = time.monotonic()
        if now - state["shown"] < LINE_SECONDS:
            return
        state["shown"] = now
        fresh = state["done"] - done
        share = state["done"] / total if total else 1.0
        line = f"{label}: {100 * share:.0f} %"
        if fresh > 0.02 * total:  # before that, start-up time would be extrapolated
            line += f", about {(now - start) / fresh * (total - state['done']):.0f} s left"
        print(f"{line} {note}".rstrip(), file=sys.stderr, flush=True)

    return tick
