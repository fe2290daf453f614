"""Folders of image files, one subfolder for each class."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stochade.data.cache import cache_home, cached_pixels, key_of
from stochade.data.decode import Chunk, decode_all
from stochade.data.images import Images
from stochade.data.parquet import note_of
from stochade.errors import DataError
from stochade.progress import progress as show_progress

_SPLITS = ("train", "training", "validation", "valid", "val", "dev", "test", "testing")
_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff", ".gif")


@dataclass(frozen=True)
class ClassFolders:
    """A folder with one subfolder for each class, or with train/, test/, val/ above those.

    Classes are numbered in the order of their names, by the train split where there is one; files are taken
    in the order of their paths, also from folders inside a class. They are decoded once, into the cache.

    Args:
        path: the folder.
        name: short name.
        title: the name in figures; " (JPEG)" is added where files are JPEG.
    """

    path: Path
    name: str
    title: str

    def splits(self) -> list[str]:
        """The splits here; "all" where the classes lie in the folder itself."""
        words = [p.name for p in _subfolders(self.path) if p.name in _SPLITS]
        return words or ["all"]

    def read(
        self,
        split: str,
        size: int | None = None,
        cache: "str | os.PathLike | None" = None,
        progress: bool = True,
    ) -> Images:
        """One split, whole; arguments as for `ParquetFolder.read`.

        Raises:
            DataError: no classes, a class without images, a class that train does not have, files that are no
                images, images of several sizes.
        """
        root = self._root(split)
        there = self.splits()
        reference = next((w for w in ("train", "training") if w in there), split)
        classes = [p.name for p in _subfolders(self._root(reference))]
        names = [p.name for p in _subfolders(root)]
        strange = sorted(set(names) - set(classes))
        if not names or strange:
            hint = f"the classes of {reference} are {_some(classes)}" if strange else "make one folder for each class"
            got = f"{_some(strange)}" if strange else "no subfolders"
            raise DataError(f"class folders in {root}", got, hint)
        files, labels = [], []
        for class_name in names:
            found = _files(root / class_name)
            if not found:
                raise DataError(
                    f"images in every class folder of {root}",
                    f"none in {class_name!r}",
                    f"remove the folder, or add files that end in {', '.join(_ENDINGS)}",
                )
            files += found
            labels += [classes.index(class_name)] * len(found)

        def build(allocate) -> dict[str, Any]:
            chunk = Chunk(files, lambda i: str(files[i]))
            with show_progress(f"decoding {self.title} {split}", len(files), progress) as bar:
                _, found = decode_all(lambda: [chunk], len(files), allocate, size, bar)
            return {"formats": dict(found.formats)}

        stats = [(file.relative_to(root).as_posix(), file.stat()) for file in files]
        key = key_of("folders", size, [(name, s.st_size, s.st_mtime_ns) for name, s in stats])
        pixels, told = cached_pixels(cache_home(cache), f"{self.name}-{split}", key, build)
        note = note_of(self.title, told["formats"], size)
        return Images(pixels, np.asarray(labels, dtype=np.int64), self.name, classes, note, split)

    def _root(self, split: str) -> Path:
        return self.path if split == "all" else self.path / split


def _subfolders(path: Path) -> list[Path]:
    return sorted((p for p in path.iterdir() if p.is_dir() and not p.name.startswith(".")), key=lambda p: p.name)


def _files(folder: Path) -> list[Path]:
    found = [
        Path(place) / name
        for place, _, names in os.walk(folder)
        for name in names
        if name.lower().endswith(_ENDINGS) and not name.startswith(".")
    ]
    return sorted(found, key=lambda p: p.relative_to(folder).as_posix())


def _some(names: list[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
