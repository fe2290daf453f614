"""Labelled images: bundled digits, known data sets, and your own files.

>>> images = load("digits", split="test")
>>> x, y = images[:32]      # float32 in [0,1] [32,1,8,8], int64 [32]
"""

import difflib
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from stochade.data.arrays import ArrayFiles
from stochade.data.digits import SPLITS as _DIGIT_SPLITS
from stochade.data.digits import load_digits
from stochade.data.download import KNOWN, Known, fetch, home_of, is_here, known_name, not_here
from stochade.data.folders import ClassFolders
from stochade.data.images import Images, Rows
from stochade.data.parquet import ParquetFolder, has_parquet
from stochade.data.splits import Source, read_split, validation_rows
from stochade.data.wrap import ClassMap, Normalized
from stochade.errors import DataError

__all__ = ["KNOWN", "ClassMap", "Images", "Normalized", "Rows", "load", "validation_rows"]


def load(
    source: "str | os.PathLike",
    split: str = "test",
    *,
    validation: int | None = None,
    size: int | None = None,
    download: bool = False,
    cache: "str | os.PathLike | None" = None,
    progress: bool = True,
) -> Images:
    """One split of a data set, the same images in the same order on every machine.

    Args:
        source: "digits" (bundled); a known name (`KNOWN`: "mnist", "cifar10", ...), looked for in
            $STOCHADE_DATA/<name>, then among the downloads; or a path: a folder of parquet shards, a folder
            of class folders, a folder of .npz files, one .npz or one .parquet file.
        split: "train", "validation" or "test"; "all" for a source without splits; or the source's own word.
        validation: how many images are cut from train for the validation split, at random with a fixed seed,
            where the source has none of its own. None: min(5000, a tenth of train). Train never contains them,
            so train and validation go together only at the same number.
        size: resize the shorter side to this and crop the centre; needed where sizes differ.
        download: fetch a known set from the Hugging Face hub when it is on no disk. Nothing else reaches the
            network.
        cache: where decoded images (and downloads) are kept; $STOCHADE_CACHE or ~/.cache/stochade.
        progress: show progress on stderr when decoding takes longer than two seconds.

    Raises:
        DataError: unknown, missing, unreadable or unlabelled data, or a split that is not there.
    """
    _check_arguments(split, validation, size)
    text = os.fspath(source)
    options = {"validation": validation, "size": size, "cache": cache, "progress": progress}
    if text.lower() == "digits":
        if size is not None or validation is not None:
            raise DataError("size=None and validation=None for the bundled digits", f"{size=}, {validation=}")
        if split not in _DIGIT_SPLITS:
            raise DataError(f"a split of digits: {', '.join(_DIGIT_SPLITS)}", repr(split))
        return load_digits(split)
    name = known_name(text)
    if name is not None:
        return _load_known(name, split, download, options)
    path = Path(text).expanduser()
    if not path.exists():
        raise _unknown(text)
    found = _source_at(path)
    known = KNOWN.get(known_name(path.name) or "") if isinstance(found, ParquetFolder) else None
    return read_split(found, split, str(path), roles=_roles(known, found), **options)


def _load_known(name: str, split: str, download: bool, options: dict) -> Images:
    known, looked = KNOWN[name], []
    word = known.splits["test" if split == "test" else "train"]
    if split not in ("train", "validation", "test"):
        raise DataError(f"a split of {known.title}: train, validation, test", repr(split))
    if os.environ.get("STOCHADE_DATA"):
        own = _own(Path(os.environ["STOCHADE_DATA"]).expanduser(), name)
        looked.append(own)
        for folder in (own, own / known.folder):
            if folder.is_dir() and has_parquet(folder):
                source = _parquet(folder, name)
                where = f"{known.title} in {folder}"
                return read_split(source, split, where, roles=_roles(known, source), **options)
        if own.exists():
            return read_split(_source_at(own, name), split, f"{known.title} in {own}", **options)
    looked.append(home_of(name, options["cache"]))
    if not download and not is_here(name, word, options["cache"]):
        raise not_here(name, word, looked)
    folder = fetch(name, word, options["cache"])
    source = replace(_parquet(folder, name), image=known.image, label=known.label)
    return read_split(source, split, known.title, roles=known.splits, **options)


def _own(data: Path, name: str) -> Path:
    """The caller's folder for a known set, also when it is spelled otherwise (fashion_mnist)."""
    folders = sorted(data.iterdir()) if data.is_dir() else []
    return next((p for p in (data / name, *folders) if p.is_dir() and known_name(p.name) == name), data / name)


def _roles(known: "Known | None", source: Source) -> "Mapping[str, str] | None":
    """The table's roles where the set is tested on its validation split: a test split has no labels there."""
    word = known.splits["test"] if known else "test"
    return known.splits if known and word != "test" and word in source.splits() else None


def _parquet(path: Path, name: str) -> ParquetFolder:
    known = KNOWN[name]
    return ParquetFolder(path, name, known.title, published_as_jpeg=known.published_as_jpeg)


def _source_at(path: Path, name: str | None = None) -> Source:
    """What lies at a path, by looking at its names."""
    name = name or known_name(path.name)
    short, title = (name, KNOWN[name].title) if name else (path.stem if path.is_file() else path.resolve().name,) * 2
    if path.is_file():
        if path.suffix == ".npz":
            return ArrayFiles(path, short, title)
        if path.suffix == ".parquet":
            return ParquetFolder(path, short, title)
        raise DataError(
            "a folder, a .npz or a .parquet file", str(path), "see stochade.data.load for what can be read"
        )
    if has_parquet(path):
        return _parquet(path, name) if name else ParquetFolder(path, short, title)
    if any(path.glob("*.npz")):
        return ArrayFiles(path, short, title)
    if any(p.is_dir() and not p.name.startswith(".") for p in path.iterdir()):
        return ClassFolders(path, short, title)
    raise DataError(
        f"parquet shards, .npz files or class folders in {path}",
        "none of them",
        "see stochade.data.load for the layouts that can be read",
    )


def _check_arguments(split: str, validation: int | None, size: int | None) -> None:
    if not isinstance(split, str) or not split:
        raise DataError("a split by name: train, validation, test", repr(split))
    if validation is not None and (not isinstance(validation, int) or isinstance(validation, bool) or validation < 0):
        raise DataError("validation: a number of images >= 0, or None", repr(validation))
    if size is not None and (not isinstance(size, int) or isinstance(size, bool) or size < 1):
        raise DataError("size: a side in pixels >= 1, or None", repr(size))


def _unknown(text: str) -> DataError:
    names = ["digits", *KNOWN]
    close = difflib.get_close_matches(text.lower(), names, n=1, cutoff=0.6)
    if os.sep in text or Path(text).suffix:
        return DataError("an existing file or folder", text, "check the path")
    hint = f"did you mean {close[0]!r}? " if close else ""
    return DataError("a data set by name, or an existing path", repr(text), f"{hint}names: {', '.join(names)}")
