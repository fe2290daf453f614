"""Images in NumPy `.npz` files."""

import os
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stochade.data.images import Images, checked_labels
from stochade.errors import DataError

_KEYS = (("{0}_images", "{0}_labels"), ("x_{0}", "y_{0}"))
_WORDS = ("train", "validation", "valid", "val", "test")
# what zipfile, zlib and NumPy raise for damaged files (encrypted members are a RuntimeError)
_UNREADABLE = (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, RuntimeError)
_LAYOUT = "save 'images' and 'labels', or 'train_images', 'train_labels', 'test_images', 'test_labels'"


@dataclass(frozen=True)
class ArrayFiles:
    """One `.npz` file, or a folder with one for each split (`train.npz`, `test.npz`).

    A file holds `images` and `labels` (one split, "all"), or `<split>_images` and `<split>_labels`, or
    `x_<split>` and `y_<split>`. Images are uint8, or floats in [0,1], of shape [N,C,H,W], [N,H,W,C] or
    [N,H,W]; channels are 1 or 3. Nothing in the file is executed (`allow_pickle=False`).

    Args:
        path: the file or the folder.
        name: short name.
        title: the note beside figures.
    """

    path: Path
    name: str
    title: str

    def splits(self) -> list[str]:
        """The splits here, in order of name."""
        return sorted(self._places())

    def read(
        self,
        split: str,
        size: int | None = None,
        cache: "str | os.PathLike | None" = None,
        progress: bool = True,
    ) -> Images:
        """One split, in memory. `cache` and `progress` do nothing: there is nothing to decode.

        Raises:
            DataError: a file that is no .npz, lacks the keys, holds objects, or whose arrays are no images and
                labels; a `size` (arrays are not resized).
        """
        if size is not None:
            raise DataError("size=None for .npz files", f"size={size}", "resize the images before you save them")
        places = self._places()
        path, image_key, label_key = places[split]
        labels = checked_labels(_array(path, label_key), what=f"{label_key!r} in {path.name}")
        pixels = channels_first(_array(path, image_key), f"{image_key!r} in {path.name}")
        others = [labels, *(_array(p, key) for p, _, key in places.values())]
        in_use = max((int(y.max()) for y in others if y.size and y.dtype.kind in "iu"), default=-1) + 1
        return Images(pixels, labels, self.name, None, self.title, split, in_use)

    def _places(self) -> dict[str, tuple[Path, str, str]]:
        if self.path.is_file():
            return _places_in(self.path)
        places = {}
        for path in sorted(self.path.glob("*.npz")):
            inside = _places_in(path)
            if set(inside) == {"all"}:
                places[path.stem] = inside["all"]
            else:
                places |= inside
        return places


def channels_first(images: np.ndarray, what: str) -> np.ndarray:
    """Images as [N,C,H,W] with C of 1 or 3, copied only to turn them round.

    Raises:
        DataError: a shape that is none of [N,H,W], [N,C,H,W], [N,H,W,C], or that could be two of them.
    """
    shape = images.shape
    if images.ndim == 3:
        return images[:, None]
    if images.ndim != 4:
        raise DataError(f"{what} of shape [N,H,W], [N,C,H,W] or [N,H,W,C]", f"{list(shape)}")
    first, last = shape[1] in (1, 3), shape[3] in (1, 3)
    if first == last:
        why = "both the first and the last axis could be channels" if first else "no axis of 1 or 3 channels"
        raise DataError(
            f"{what} with 1 or 3 channels, first or last",
            f"{list(shape)}: {why}",
            "load the array yourself and pass Images(pixels, labels) with pixels [N,C,H,W]",
        )
    return images if first else np.ascontiguousarray(images.transpose(0, 3, 1, 2))


def _places_in(path: Path) -> dict[str, tuple[Path, str, str]]:
    try:
        with path.open("rb") as file:  # numpy leaves a file that it cannot read open when it opens it itself
            content = np.load(file, allow_pickle=False)
            keys = list(content.keys()) if isinstance(content, np.lib.npyio.NpzFile) else None
    except _UNREADABLE as problem:
        raise DataError(".npz files written by numpy.savez", f"{path}: {problem}", "write it again") from problem
    if keys is None:
        raise DataError(".npz files written by numpy.savez", f"{path}: a single array", _LAYOUT)
    places = {"all": (path, "images", "labels")} if {"images", "labels"} <= set(keys) else {}
    for word in _WORDS:
        for image_key, label_key in _KEYS:
            pair = image_key.format(word), label_key.format(word)
            if set(pair) <= set(keys):
                places.setdefault(word, (path, *pair))
    if not places:
        raise DataError(f"images and labels in {path.name}", f"keys {', '.join(keys) or 'none'}", _LAYOUT)
    if len(places) > 1:
        places.pop("all", None)
    return places


def _array(path: Path, key: str) -> np.ndarray:
    try:
        with np.load(path, allow_pickle=False) as file:
            return file[key]
    except _UNREADABLE as problem:
        hint = "save plain arrays of numbers: objects are never unpickled"
        raise DataError(f"a plain array {key!r} in {path.name}", f"{problem}", hint) from problem
