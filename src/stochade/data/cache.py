"""Decoded images kept on disk as memory maps, so that a set is decoded once.

An entry is two files: `<key>.npy`, uint8 [N,C,H,W], and `<key>.json`, which describes it and carries its
checksum. Both are written under another name, synced and moved into place with `os.replace`, the description
last; an entry without a description that fits does not exist. A killed process therefore leaves at most a
temporary file, and two processes at once write the same bytes twice.
"""

import hashlib
import json
import os
import re
import secrets
import shutil
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from stochade.errors import DataError

_FORMAT = 1
_ALL_BELOW = 1 << 28  # bytes; larger files are checked at 256 places
_PAGE = 1 << 12
_STALE = 24 * 3600.0  # seconds after which a temporary file belongs to nobody


def cache_home(cache: "str | os.PathLike | None" = None) -> Path:
    """The cache directory: `cache`, else $STOCHADE_CACHE, else ~/.cache/stochade."""
    return Path(cache or os.environ.get("STOCHADE_CACHE") or Path.home() / ".cache" / "stochade").expanduser()


def key_of(*parts: object) -> str:
    """A name for what an entry was made from: equal parts give equal keys, and the pillow version counts."""
    from PIL import __version__ as pillow

    text = json.dumps([_FORMAT, pillow, *parts], sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def cached_pixels(
    home: Path,
    label: str,
    key: str,
    build: "Callable[[Callable[[tuple[int, int, int, int]], np.ndarray]], dict[str, Any]]",
) -> tuple[np.ndarray, dict[str, Any]]:
    """The pixels [N,C,H,W] as a read-only memory map, and what `build` told about them.

    Args:
        home: the cache directory.
        label: a readable beginning for the file names.
        key: from `key_of`.
        build: called only when no whole entry exists, with a function that makes a uint8 memory map for a
            shape; it fills the last map it asked for and returns what to remember (JSON).

    Raises:
        DataError: a directory that cannot be written, or a disk without room.
    """
    folder = home / "pixels"
    stem = f"{re.sub(r'[^A-Za-z0-9.-]+', '_', label)}-{key}"
    pixels, description = folder / f"{stem}.npy", folder / f"{stem}.json"
    entry = _read(pixels, description)
    if entry is not None:
        return entry
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _sweep(folder)
        with _temporary(folder, stem) as temporary:
            maps: list[np.memmap] = []

            def allocate(shape: tuple[int, int, int, int]) -> np.ndarray:
                maps[:] = [_reserved(temporary, shape)]
                return maps[0]

            told = build(allocate)
            array = maps.pop()
            array.flush()
            shape, dtype = list(array.shape), str(array.dtype)
            del array
            _sync(temporary)
            about = {"format": _FORMAT, "shape": shape, "dtype": dtype, "told": told}
            about |= {"bytes": temporary.stat().st_size, "checksum": _checksum(temporary)}
            os.replace(temporary, pixels)
        with _temporary(folder, stem) as temporary:
            temporary.write_text(json.dumps(about))
            _sync(temporary)
            os.replace(temporary, description)
    except OSError as problem:
        raise DataError(
            "a cache directory with room to write decoded images",
            f"{folder}: {problem}",
            "set STOCHADE_CACHE or pass cache=... to name another",
        ) from problem
    entry = _read(pixels, description)
    if entry is None:
        raise DataError("a cache entry that can be read back", f"{pixels}", "is something else writing there?")
    return entry


def _read(pixels: Path, description: Path) -> tuple[np.ndarray, dict[str, Any]] | None:
    """The entry if it is whole, else None."""
    try:
        about = json.loads(description.read_text())
        if about["format"] != _FORMAT or pixels.stat().st_size != about["bytes"]:
            return None
        if _checksum(pixels) != about["checksum"]:
            return None
        array = np.load(pixels, mmap_mode="r", allow_pickle=False)
        if list(array.shape) != about["shape"] or str(array.dtype) != about["dtype"]:
            return None
        return array, about["told"]
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None


def _checksum(path: Path) -> int:
    """CRC-32 of the whole file, or of 256 pages spread over it when it is larger than 256 MiB (reading an
    ImageNet before every run would cost more than it guards)."""
    size = path.stat().st_size
    total = 0
    with path.open("rb") as file:
        if size <= _ALL_BELOW:
            while block := file.read(1 << 22):
                total = zlib.crc32(block, total)
            return total
        for place in np.linspace(0, size - _PAGE, 256).astype(np.int64):
            file.seek(int(place))
            total = zlib.crc32(file.read(_PAGE), total)
    return total


def _reserved(path: Path, shape: tuple[int, int, int, int]) -> np.memmap:
    """A uint8 memory map whose bytes exist on disk: writing to a hole of a full disk would kill the process."""
    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    elif shutil.disk_usage(path.parent).free < array.nbytes:
        raise OSError(f"no room for {array.nbytes} bytes")
    return array


@contextmanager
def _temporary(folder: Path, stem: str) -> Iterator[Path]:
    """A file of this process alone, gone at the end unless it was moved into place."""
    path = folder / f"{stem}.{os.getpid()}-{secrets.token_hex(4)}.tmp"
    path.open("xb").close()  # not mkstemp, which would hide the entry from a group that shares the cache
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    with path.open("r+b") as file:
        os.fsync(file.fileno())


def _sweep(folder: Path) -> None:
    """Remove what killed processes left a day ago or earlier."""
    for path in folder.glob("*.tmp"):
        try:
            if time.time() - path.stat().st_mtime > _STALE:
                path.unlink()
        except OSError:  # another process was quicker
            continue
