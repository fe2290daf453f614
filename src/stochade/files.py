"""Files that are whole or not there."""

import contextlib
import os
import re
import tempfile
from pathlib import Path

_PART = ".part"
_OURS = re.compile(rf"\..+\.[a-z0-9_]{{8}}{re.escape(_PART)}")  # what mkstemp makes of our prefix and suffix
_STALE = 24 * 3600.0  # seconds; no write takes that long
_cleaned: set[Path] = set()  # folders of this process


def write_atomically(path: Path, content: bytes) -> None:
    """After this, `path` holds all of `content`, or what it held before; never a part, also after a power cut.

    A process that is killed leaves its temporary file, `.NAME.XXXXXXXX.part`; the first write of a process to a
    folder takes those away that are a day old.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=_PART)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            now = os.fstat(file.fileno()).st_mtime  # by the clock that dates the files of this folder
        os.chmod(name, 0o644)  # mkstemp makes it private
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    folder = path.parent.resolve()
    if folder not in _cleaned:
        _cleaned.add(folder)
        _clean(folder, now)


def _clean(folder: Path, now: float) -> None:
    """Takes away what killed processes have left; others may do the same."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if _OURS.fullmatch(entry.name):
                with contextlib.suppress(OSError):
                    if entry.is_file(follow_symlinks=False) and entry.stat().st_mtime < now - _STALE:
                        os.unlink(entry.path)
