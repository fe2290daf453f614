"""The progress bar of training."""

from contextlib import contextmanager, nullcontext
from typing import Any


def progress_bar(show: bool, done: int, epochs: int) -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not (show and console.is_terminal):
        return nullcontext(lambda told: None)

    @contextmanager
    def running():
        columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, TextColumn("{task.description}"), console=console, transient=True) as shown:
            task = shown.add_task("", total=epochs, completed=min(done, epochs))
            yield lambda told: shown.update(
                task, advance=1, description=f"validation {100 * told.validation_accuracy:.1f} %"
            )

    return running()
