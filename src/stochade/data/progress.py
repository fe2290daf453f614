"""Progress on stderr for work that takes longer than two seconds."""

import sys
import time

_PATIENCE = 2.0  # seconds of silence
_PLAIN_EVERY = 5.0  # seconds between lines where there is no terminal


class Progress:
    """Nothing for two seconds, then a bar on a terminal, or a plain line every five seconds elsewhere.

    Args:
        what: the work, in words.
        total: steps in all.
        shown: False keeps it silent.
    """

    def __init__(self, what: str, total: int, shown: bool = True):
        self.what, self.total, self.shown = what, total, shown
        self.done, self._bar, self._task = 0, None, None

    def __enter__(self) -> "Progress":
        self._next = time.monotonic() + _PATIENCE
        return self

    def advance(self, steps: int) -> None:
        """Tell that `steps` more are done."""
        self.done += steps
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=self.done)
        elif self.shown and time.monotonic() >= self._next:
            self._show()

    def _show(self) -> None:
        if not sys.stderr.isatty():
            print(f"{self.what}: {self.done} of {self.total}", file=sys.stderr, flush=True)
            self._next = time.monotonic() + _PLAIN_EVERY
            return
        from rich import progress
        from rich.console import Console

        self._bar = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._bar.add_task(self.what, total=self.total, completed=self.done)
        self._bar.start()

    def __exit__(self, *_) -> None:
        if self._bar is not None:
            self._bar.stop()
