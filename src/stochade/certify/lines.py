"""A folder that one run at a time fills, one line of JSON per example, so that a stopped run goes on where it was.

OUT/<settings>.json     what was asked, with its digest
OUT/<lines>.jsonl       {"row": i, ...} on line i, in the order of the examples
OUT/provenance.json     versions, hardware, revision
OUT/.lock               held by the run that writes here, until its process ends
"""

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Generic, TypeVar

from stochade.describe import provenance
from stochade.errors import RecordsError
from stochade.evaluate.store import write_json

try:
    import fcntl
except ImportError:  # Windows: no lock
    fcntl = None

T = TypeVar("T")
LOCK = ".lock"
OTHER = "choose another out folder, or delete this one"


class Lines(Generic[T]):
    """The lines of a run: what was found when it was taken up, and more of them.

    Attributes:
        found: one entry per line.
    """

    def __init__(self, path: Path, found: list[T]):
        self.path, self.found = path, found

    def append(self, told: dict) -> None:
        """One line more. A kill in the middle of it leaves a part without a line's end, which is not read again."""
        with open(self.path, "ab") as file:
            file.write((json.dumps(told) + "\n").encode())


@contextlib.contextmanager
def taken_up(folder: Path, settings: str, lines: str, config: dict, entry: Callable[[dict], T]) -> Iterator[Lines[T]]:
    """The run of these settings in a folder, new or where it stopped; no other run writes there meanwhile.

    Args:
        settings, lines: names of the files. config: what was asked, with "digest" and the number of "examples".
        entry: what a line means; KeyError, TypeError or ValueError for one that means nothing.

    Raises:
        RecordsError: the folder holds something else, is being written to, or a line is damaged.
    """
    _check_ours(folder, settings)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        _check_ours(folder, settings)
        if not (folder / settings).is_file():
            write_json(folder / settings, config)
            write_json(folder / "provenance.json", provenance())
        before = read_settings(folder / settings)
        if before.get("digest") != config["digest"]:
            keys = [k for k in config if k != "digest" and before.get(k) != json.loads(json.dumps(config[k]))]
            raise RecordsError(
                "an empty folder or a stopped run of the same settings",
                f"{folder} with another run, which differs in: {', '.join(keys) or 'model or images'}", OTHER,
            )  # fmt: skip
        found = read_lines(folder / lines, config["examples"], entry)
        _cut(folder / lines)
        yield Lines(folder / lines, found)


def _check_ours(folder: Path, settings: str) -> None:
    """RecordsError for a folder with files but without these settings."""
    if (folder / settings).is_file() or not folder.exists():
        return
    if not folder.is_dir() or any(p.name != LOCK and p.suffix != ".part" for p in folder.iterdir()):
        raise RecordsError("an empty folder", str(folder), "choose another out folder")


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps other runs out of a folder; the end of the process, however it ends, lets them in.

    Raises:
        RecordsError: another run is in it.
    """
    handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if fcntl is not None:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RecordsError(
                    "a folder to itself", f"{folder}: another run is writing here", "wait for it, or choose another"
                ) from None
            except OSError:  # a file system without locks
                pass
        yield
    finally:
        os.close(handle)


def read_settings(path: Path) -> dict[str, Any]:
    """RecordsError where there are none, or damaged ones."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError) as problem:
        raise RecordsError(f"a folder of `stochade {path.stem}`", f"{path}: {problem}", OTHER) from None
    if not isinstance(found, dict) or not isinstance(found.get("examples"), int):
        raise RecordsError(f"the settings of `stochade {path.stem}`", f"{path}: something else", OTHER)
    return found


def read_lines(path: Path, most: int, entry: Callable[[dict], T]) -> list[T]:
    """The whole lines of a file, of which the last may have been cut by a kill.

    Raises:
        RecordsError: a line that is no JSON object, is not of its row, or means nothing; more than `most` lines.
    """
    if not path.is_file():
        return []
    found = []
    for row, text in enumerate(path.read_bytes().split(b"\n")[:-1]):
        place = f"{path}, line {row + 1}"
        if row == most:
            raise RecordsError(f"at most {most} lines, one per example", f"more: {place}", OTHER)
        try:
            told = json.loads(text)
            if not isinstance(told, dict) or told.get("row") != row:
                raise ValueError(f"not of row {row}")
            found.append(entry(told))
        except (KeyError, TypeError, ValueError) as problem:
            raise RecordsError(
                f"the record of row {row}", f"{place}: {type(problem).__name__}: {problem}",
                "delete this line and all below it: they are made again",
            ) from None  # fmt: skip
    return found


def _cut(path: Path) -> None:
    """Takes away what stands behind the last line's end."""
    if path.is_file():
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(path, whole)


def check_same(row: int, kept: object, again: object, folder: Path) -> None:
    """RecordsError where an example that was looked at again does not give what was kept of it."""
    if kept != again:
        raise RecordsError(
            "the model of the run that this folder holds",
            f"another model than the one of this run: row {row} of {folder} was {kept}, is now {again}", OTHER,
        )  # fmt: skip
