"""Calls of kernels on several threads at once; ctypes lets go of the interpreter meanwhile."""

import threading
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch


def parts(count: int, most: int) -> list[tuple[int, int]]:
    """Ranges that split `count` things evenly over `torch.get_num_threads()` threads, `most` ranges at most."""
    wanted = max(1, min(torch.get_num_threads(), count, most))
    return list(pairwise(i * count // wanted for i in range(wanted + 1)))


def spread(calls: Sequence[Callable[[], int | None]]) -> None:
    """Runs the calls at once, the first on this thread.

    Raises:
        MemoryError: a kernel gave back something else than 0 or nothing: no room for what it works with.
    """
    codes: list[int | None] = [-1] * len(calls)

    def run(i: int) -> None:
        codes[i] = calls[i]()

    threads: list[threading.Thread] = []
    try:
        for i in range(1, len(calls)):
            thread = threading.Thread(target=run, args=(i,))
            thread.start()
            threads.append(thread)
        run(0)
    finally:  # also after an interrupt: they write to memory that the caller would give back
        for thread in threads:
            thread.join()
    if any(codes):
        raise MemoryError("no room for the intermediate results of a kernel")
