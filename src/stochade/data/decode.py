"""Encoded image files to bytes [C,H,W], many at a time."""

import io
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from stochade.errors import DataError
from stochade.progress import Tick

_MAGIC = ((b"\xff\xd8\xff", "JPEG"), (b"\x89PNG\r\n\x1a\n", "PNG"))
_DEEP = ("I", "F")  # modes that start so hold more than 8 bits


@dataclass
class Chunk:
    """Some encoded images (their bytes, or paths to read) and a word for where each came from."""

    files: Sequence["bytes | Path"]
    where: Callable[[int], str]


@dataclass
class Found:
    """What the decoder saw: how many images of each format ("JPEG", "PNG", ...)."""

    formats: Counter = field(default_factory=Counter)


class _Coloured(Exception):
    """A colour image turned up in a set that began with a grey one."""


def decode_image(file: "bytes | Path", where: str, size: int | None = None) -> tuple[np.ndarray, str]:
    """One image as uint8 [H,W] (grey) or [H,W,3], and its format.

    Palettes and other colour spaces become RGB, bits become grey; an opaque alpha channel is dropped. The
    EXIF orientation is not applied (nor is it in the usual ImageNet pipelines).

    Args:
        file: the encoded bytes, or a path.
        where: named in errors.
        size: None keeps the image; otherwise the shorter side is resized to it (bicubic, antialiased) and the
            centre cropped to [size, size].

    Raises:
        DataError: bytes that are no image, truncated, deeper than 8 bits, or partly transparent.
    """
    from PIL import Image, ImageOps

    try:
        data = file.read_bytes() if isinstance(file, Path) else file
        known = [name for magic, name in _MAGIC if data.startswith(magic)]
        image = Image.open(io.BytesIO(data), formats=known or None)
        kind = image.format or "unknown"
        image.load()
    except Exception as problem:  # pillow's parsers raise whatever their format makes them raise
        raise DataError(
            "a whole image file that pillow can read",
            f"{where}: {type(problem).__name__}: {problem}",
            "replace or remove it; a truncated download must be fetched again",
        ) from problem
    if image.mode.startswith(_DEEP):
        raise DataError("8-bit images", f"{where}: mode {image.mode}", "convert them to 8 bits a channel first")
    if image.mode not in ("L", "RGB"):
        image = _plain(image, where)
    if size is not None and image.size != (size, size):
        image = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
    shape = (image.height, image.width) if image.mode == "L" else (image.height, image.width, 3)
    return np.frombuffer(image.tobytes(), dtype=np.uint8).reshape(shape), kind


def _plain(image, where: str):
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA" if image.mode not in ("LA", "La") else "LA")
        if image.getchannel("A").getextrema()[0] < 255:
            raise DataError(
                "opaque images", f"{where}: transparent pixels", "paste them on a background of your choice first"
            )
        return image.convert("L" if image.mode == "LA" else "RGB")
    return image.convert("L" if image.mode == "1" else "RGB")


def decode_all(
    chunks: Callable[[], Iterable[Chunk]],
    total: int,
    allocate: Callable[[tuple[int, int, int, int]], np.ndarray],
    size: int | None = None,
    progress: Tick | None = None,
) -> tuple[np.ndarray, Found]:
    """Every image of every chunk, in order, written into one uint8 array [N,C,H,W].

    The set is grey only if every image is: when a colour image turns up after grey ones, all are decoded
    again as RGB (grey to RGB loses nothing, the other way round would).

    Args:
        chunks: gives the chunks, afresh at every call.
        total: N.
        allocate: makes the array for a shape; called again when the set turns out to be coloured.
        size: see `decode_image`.
        progress: told about every chunk.

    Raises:
        DataError: see `decode_image`; images of different sizes where `size` is None.
    """
    first = next(iter(chunks()))
    sample, _ = decode_image(first.files[0], first.where(0), size)
    height, width = sample.shape[:2]
    told: list[int] = []

    def tell(count: int) -> None:
        told.append(count)
        if progress is not None:
            progress(count)

    for channels in (1, 3) if sample.ndim == 2 else (3,):
        out = allocate((total, channels, height, width))
        try:
            return out, _fill(out, chunks(), size, tell)
        except _Coloured:  # all over again, in colour
            tell(-sum(told))
    raise RuntimeError("unreachable: RGB holds every image")


def _fill(out: np.ndarray, chunks: Iterable[Chunk], size: int | None, tell: Callable[[int], None]) -> Found:
    found, start = Found(), 0
    workers = _cores()
    with ThreadPoolExecutor(workers, thread_name_prefix="decode") as pool:
        waiting: list[Future] = []

        def finish() -> None:
            count, formats = waiting.pop(0).result()
            found.formats.update(formats)
            tell(count)

        try:
            for chunk in _of_size(chunks):
                end = start + len(chunk.files)
                waiting.append(pool.submit(_decode_chunk, chunk, out[start:end], size))
                start = end
                if len(waiting) > 2 * workers:  # no more encoded images in memory than the workers need
                    finish()
            while waiting:
                finish()
        finally:
            for future in waiting:
                future.cancel()
    if start != len(out):
        raise DataError(f"{len(out)} images", f"{start}", "the source changed while it was read: load it again")
    return found


def _of_size(chunks: Iterable[Chunk], most: int = 256) -> Iterator[Chunk]:
    for chunk in chunks:
        for start in range(0, len(chunk.files), most):
            part = chunk.files[start : start + most]
            yield Chunk(part, lambda i, start=start, chunk=chunk: chunk.where(start + i))


def _decode_chunk(chunk: Chunk, out: np.ndarray, size: int | None) -> tuple[int, Counter]:
    formats: Counter = Counter()
    channels, height, width = out.shape[1:]
    last = np.empty((len(out), height, width, channels), dtype=np.uint8)  # channels last, as pillow gives them
    for i, file in enumerate(chunk.files):
        image, kind = decode_image(file, chunk.where(i), size)
        if image.shape[:2] != (height, width):
            raise DataError(
                f"images of one size ({height} x {width}, as the first)",
                f"{image.shape[0]} x {image.shape[1]} at {chunk.where(i)}",
                "pass size=... to resize and crop all of them to a square",
            )
        if image.ndim == 3 and channels == 1:
            raise _Coloured
        last[i] = image[:, :, None] if image.ndim == 2 else image
        formats[kind] += 1
    out[...] = last.transpose(0, 3, 1, 2)
    return len(out), formats


def _cores() -> int:
    try:
        return min(16, len(os.sched_getaffinity(0)))
    except AttributeError:  # not on every system
        return min(16, os.cpu_count() or 1)
