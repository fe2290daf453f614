"""Labelled images as attacks and evaluations take them: bytes at rest, floats in [0,1] a chunk at a time."""

import math
import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stochade.errors import DataError

_CHECKED_AT_ONCE = 1 << 24  # values looked at together when a float array is checked


class Rows:
    """Some rows of an array, in a given order, read from it only when asked for.

    It answers to what `Images` needs of an array (`shape`, `dtype`, `len`, indexing, `numpy.asarray`), so that
    a train split of a memory map costs eight bytes an image.

    Args:
        base: the array or memory map [M,...].
        rows: int64 [N], the rows of `base` in the order wanted.
    """

    def __init__(self, base: np.ndarray, rows: np.ndarray):
        self.base, self.rows = base, np.asarray(rows, dtype=np.int64)
        self.shape: tuple[int, ...] = (len(self.rows), *base.shape[1:])
        self.dtype, self.ndim = base.dtype, base.ndim

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index) -> np.ndarray:
        return self.base[self.rows[index]]

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.asarray(self.base[self.rows], dtype=dtype)

    def __getstate__(self) -> dict[str, Any]:
        return {"base": _packed(self.base), "rows": self.rows}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(_unpacked(state["base"]), state["rows"])


@dataclass(eq=False)
class Images:
    """Images and their labels, checked once: every pixel lies in [0,1] when read, every label in [0, num_classes).

    Pixels stay as they are stored (uint8, or float32 where the source has other values than multiples of
    1/255) and become float32 when indexed: a byte v reads as the float32 nearest to v/255. Pickling a
    memory-mapped set sends the path, not the pixels, so workers open the file themselves.

    Args:
        pixels: [N,C,H,W], uint8 or float in [0,1] (kept as float32); an array, a memory map or `Rows` of one.
        labels: [N], whole numbers >= 0 (kept as int64).
        name: short name of the set ("cifar10").
        classes: the names of the classes, in the order of the labels, or None.
        note: what to write beside every figure measured on these images ("CIFAR-10 (JPEG)"); `name` by default.
        split: "train", "validation", "test", or the source's own word.
        labels_in_use: how many labels the whole source uses, where no class names say it; found if 0.

    Raises:
        DataError: other types, shapes, ranges or counts.
    """

    pixels: "np.ndarray | Rows"
    labels: np.ndarray
    name: str = "images"
    classes: list[str] | None = None
    note: str = ""
    split: str = ""
    labels_in_use: int = field(default=0, repr=False)

    def __post_init__(self):
        self.pixels = _checked_pixels(self.pixels)
        self.labels = checked_labels(self.labels, len(self.pixels))
        self.note = self.note or self.name
        top = int(self.labels.max())
        if self.classes is not None:
            self.classes = [str(c) for c in self.classes]
            if top >= len(self.classes):
                raise DataError(
                    f"labels below {len(self.classes)} (there are {len(self.classes)} class names)",
                    f"label {top}",
                    "name every class, or pass classes=None",
                )
        self.labels_in_use = max(self.labels_in_use, top + 1)

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index) -> tuple[Tensor, Tensor]:
        """Images (float32 in [0,1]) and labels (int64), copied: [n,C,H,W] and [n] for a slice, an index array
        or a mask; one image [C,H,W] and its label [] for one number, as `torch.utils.data` expects."""
        if isinstance(index, Tensor):
            index = index.cpu().numpy()
        labels = np.array(self.labels[index], dtype=np.int64)
        return torch.from_numpy(as_floats(np.asarray(self.pixels[index]))), torch.from_numpy(labels)

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The images in order, `size` at a time (the last batch may be smaller)."""
        if size < 1:
            raise DataError("a batch size >= 1", f"{size}")
        for start in range(0, len(self), size):
            yield self[start : start + size]

    def take(self, n: int, seed: int | None = None) -> "Images":
        """The first n images; with a seed, n images drawn without replacement.

        The draw depends on the seed and on `len(self)` alone, is the same on every machine, and is nested:
        `take(100, seed=s)` is the beginning of `take(1000, seed=s)`.
        """
        if not 1 <= n <= len(self):
            raise DataError(f"a number of images from 1 to {len(self)}", f"{n}", f"{self.name} has no more")
        return self.subset(np.arange(n) if seed is None else shuffled(len(self), seed)[:n])

    def subset(self, indices: "Sequence[int] | np.ndarray | Tensor") -> "Images":
        """The images at these places, in this order; memory maps are not read."""
        rows = np.asarray(indices)
        if rows.ndim != 1 or len(rows) == 0 or not np.issubdtype(rows.dtype, np.integer):
            raise DataError("a list of at least one index", f"shape {rows.shape}, dtype {rows.dtype}")
        if rows.min() < 0 or rows.max() >= len(self):
            raise DataError(f"indices from 0 to {len(self) - 1}", f"{rows.min()} to {rows.max()}")
        rows = rows.astype(np.int64)
        if isinstance(self.pixels, Rows):
            pixels = Rows(self.pixels.base, self.pixels.rows[rows])
        elif isinstance(self.pixels, np.memmap):
            first, last = int(rows[0]), int(rows[-1]) + 1
            run = len(rows) == last - first and np.array_equal(rows, np.arange(first, last))
            pixels = self.pixels[first:last] if run else Rows(self.pixels, rows)
        else:
            pixels = self.pixels[rows]
        return replace(self, pixels=pixels, labels=self.labels[rows])

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, C, H, W)."""
        n, channels, height, width = self.pixels.shape
        return n, channels, height, width

    @property
    def num_classes(self) -> int:
        """The number of class names, else the largest label of the whole source plus one."""
        return len(self.classes) if self.classes is not None else self.labels_in_use

    def __repr__(self) -> str:
        return (
            f"Images({self.note!r}, split={self.split!r}, shape={self.shape}, classes={self.num_classes}, "
            f"dtype={self.pixels.dtype})"
        )

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        if isinstance(self.pixels, np.ndarray):
            state["pixels"] = _packed(self.pixels)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.pixels = _unpacked(state["pixels"])


def as_floats(pixels: np.ndarray) -> np.ndarray:
    """A float32 copy: bytes divided by 255 with one IEEE rounding (a multiplication by 1/255 would differ in
    the last bit for some bytes); floats as they are."""
    if pixels.dtype == np.uint8:
        return np.divide(pixels, np.float32(255), dtype=np.float32, order="C")
    return np.array(pixels, dtype=np.float32, order="C")


def shuffled(n: int, seed: int) -> np.ndarray:
    """A permutation of range(n), int64, that is the same on every machine and for every version of NumPy.

    It sorts raw PCG64 output: NumPy promises that stream, but not what `Generator.permutation` makes of it
    (NEP 19).
    """
    return np.argsort(np.random.PCG64(seed).random_raw(n), kind="stable")


def checked_labels(labels, count: int | None = None, what: str = "labels") -> np.ndarray:
    """Labels as int64 [N]; DataError when they are not `count` whole numbers >= 0."""
    labels = labels.cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    if not np.issubdtype(labels.dtype, np.integer):
        hint = "cast them with .astype('int64') if they hold class numbers"
        raise DataError(f"{what} that are whole numbers", f"dtype {labels.dtype}", hint)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or (count is not None and len(labels) != count):
        raise DataError(f"{what} of shape [{'N' if count is None else count}]", f"{list(labels.shape)}")
    if len(labels) and labels.min() < 0:
        raise DataError(
            f"{what} >= 0",
            f"{int(labels.min())}",
            "a label below zero marks an unlabelled image: use a labelled split, or drop those images",
        )
    return np.ascontiguousarray(labels, dtype=np.int64)


def _checked_pixels(pixels) -> "np.ndarray | Rows":
    if isinstance(pixels, Tensor):
        pixels = pixels.detach().cpu().numpy()
    if not isinstance(pixels, np.ndarray | Rows):
        raise DataError("an array of images [N,C,H,W]", type(pixels).__name__, "convert with numpy.asarray")
    if pixels.ndim != 4 or 0 in pixels.shape:
        hint = "add the channel axis: pixels[:, None]" if pixels.ndim == 3 else "give at least one image"
        raise DataError("images [N,C,H,W], at least one", f"shape {tuple(pixels.shape)}", hint)
    if pixels.dtype == np.uint8:
        return pixels
    if not np.issubdtype(pixels.dtype, np.floating):
        raise DataError(
            "uint8 images, or float images in [0,1]",
            f"dtype {pixels.dtype}",
            "cast values 0..255 with .astype('uint8')",
        )
    step = max(1, _CHECKED_AT_ONCE // math.prod(pixels.shape[1:]))
    for start in range(0, len(pixels), step):
        part = pixels[start : start + step]
        low, high = float(part.min()), float(part.max())
        if not (low >= 0 and high <= 1):  # also catches nan
            hint = "divide by 255" if 1 < high <= 255 and low >= 0 else "scale to [0,1]; undo any normalisation"
            raise DataError("float images in [0,1], all finite", f"values from {low:g} to {high:g}", hint)
    if pixels.dtype == np.float32:
        return pixels
    return np.asarray(pixels).astype(np.float32)


@dataclass(frozen=True)
class _File:
    """Where a memory map lies, so that another process can open it."""

    path: str
    offset: int
    shape: tuple[int, ...]
    dtype: str


def _packed(array):
    """A `_File` for a contiguous view of a memory map, otherwise the array itself."""
    base = getattr(array, "_mmap", None)
    if not (isinstance(array, np.memmap) and isinstance(base, mmap.mmap) and array.flags.c_contiguous):
        return np.asarray(array) if isinstance(array, np.memmap) else array
    # a slice keeps the `offset` of the whole map, so the place of its first byte is measured instead
    start = np.frombuffer(base, dtype=np.uint8).ctypes.data
    offset = array.offset - array.offset % mmap.ALLOCATIONGRANULARITY + array.ctypes.data - start
    return _File(str(array.filename), offset, array.shape, array.dtype.str)


def _unpacked(packed):
    if not isinstance(packed, _File):
        return packed
    try:
        return np.memmap(packed.path, dtype=packed.dtype, mode="r", offset=packed.offset, shape=packed.shape)
    except (OSError, ValueError) as problem:
        raise DataError(
            "the file behind these images", f"{packed.path}: {problem}", "load the images again"
        ) from problem
