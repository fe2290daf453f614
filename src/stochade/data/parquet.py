"""Folders of parquet shards, laid out as data-set hubs lay them out."""

import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stochade.data.cache import cache_home, cached_pixels, key_of
from stochade.data.decode import Chunk, decode_all
from stochade.data.images import Images, checked_labels
from stochade.errors import DataError
from stochade.progress import progress as show_progress

_SHARD = re.compile(r"^(?P<split>.+?)(-(?P<i>\d{5})-of-(?P<n>\d{5})(-[0-9a-f]+)?)?\.parquet$")
_IMAGE_COLUMNS = ("image", "img")
_LABEL_COLUMNS = ("label", "fine_label", "labels")
_BATCH = 256  # rows; few enough that encoded ImageNet files stay small in memory


@dataclass(frozen=True)
class ParquetFolder:
    """A folder with `<split>-00000-of-00003.parquet` shards (or `<split>.parquet`), in it or in its `data/`.

    Images are decoded once, into a memory map in the cache; labels and class names are read from the shards.

    Args:
        path: the folder, or one parquet file (which is then the only split, "all").
        name: short name, for records.
        title: the name in figures; " (JPEG)" is added where images are stored as JPEG, which is lossy.
        image: the image column; found when None ("image", "img"). Structs {bytes, path}, or plain bytes.
        label: the label column; found when None ("label", "fine_label", "labels").
        published_as_jpeg: the set exists in no other form, so its note does not say it.
    """

    path: Path
    name: str
    title: str
    image: str | None = None
    label: str | None = None
    published_as_jpeg: bool = False

    def splits(self) -> list[str]:
        """The splits that have shards here, in order of name."""
        return sorted(self._shards())

    def read(
        self,
        split: str,
        size: int | None = None,
        cache: "str | os.PathLike | None" = None,
        progress: bool = True,
    ) -> Images:
        """One split, whole.

        Args:
            split: one of `splits()`.
            size: None for images as stored; see `decode_image`.
            cache: the cache directory.
            progress: show progress on stderr when decoding takes longer than two seconds.

        Raises:
            DataError: shards that are missing, truncated or lack a column; bytes that are no image; images of
                several sizes; labels that are no classes.
        """
        paths = self._shards()[split]
        _check_complete(self.path, split, [path.name for path in paths])
        shards = [_Shard(path, self.image, self.label) for path in paths]
        counts = [shard.rows for shard in shards]
        if sum(counts) == 0:
            raise DataError("at least one image", f"{shards[0].path} without rows")
        labels = np.concatenate([shard.labels() for shard in shards])
        classes = shards[0].classes()

        def build(allocate) -> dict[str, Any]:
            with show_progress(f"decoding {self.title} {split}", sum(counts), progress) as bar:
                _, found = decode_all(lambda: _chunks(shards), sum(counts), allocate, size, bar)
            return {"formats": dict(found.formats)}

        key = key_of("parquet", size, [shard.fingerprint() for shard in shards])
        pixels, told = cached_pixels(cache_home(cache), f"{self.name}-{split}", key, build)
        note = note_of(self.title, told["formats"], size, self.published_as_jpeg)
        in_use = 0 if classes else self._labels_in_use()
        return Images(pixels, labels, self.name, classes, note, split, in_use)

    def _shards(self) -> dict[str, list[Path]]:
        if self.path.is_file():
            return {"all": [self.path]}
        found: dict[str, dict[str, Path]] = {}
        for folder in (self.path, self.path / "data"):
            for path in sorted(folder.glob("*.parquet")):
                match = _SHARD.match(path.name)
                if match and path.is_file():
                    found.setdefault(match["split"], {}).setdefault(path.name, path)
        return {split: list(files.values()) for split, files in found.items()}

    def _labels_in_use(self) -> int:
        """The labels of every split count, so that train and test agree on the number of classes."""
        tops = [_Shard(p, self.image, self.label).top_label() for paths in self._shards().values() for p in paths]
        return max(tops) + 1


def has_parquet(path: Path) -> bool:
    """Whether the folder, or its `data/`, holds parquet files."""
    return any(next(folder.glob("*.parquet"), None) is not None for folder in (path, path / "data"))


def note_of(title: str, formats: dict[str, int], size: int | None, published_as_jpeg: bool = False) -> str:
    """What to write beside figures: the title, and what was done to the pixels."""
    remarks = ["JPEG"] if formats.get("JPEG") and not published_as_jpeg else []
    remarks += [f"cropped to {size} x {size}"] if size is not None else []
    return f"{title} ({', '.join(remarks)})" if remarks else title


def _check_complete(folder: Path, split: str, names: list[str]) -> None:
    numbered = [m for m in map(_SHARD.match, names) if m and m["n"]]
    if not numbered:
        return
    there, total = {int(m["i"]) for m in numbered}, int(numbered[0]["n"])
    missing = sorted(set(range(total)) - there)
    if missing or len(numbered) != total:
        got = f"{len(numbered)} files" + (f", without number {missing[0]:05d}" if missing else "")
        raise DataError(
            f"{total} shards of split {split!r} in {folder}", got, "fetch the others; keep one version of each"
        )


class _Shard:
    """One parquet file whose footer and columns have been checked."""

    def __init__(self, path: Path, image: str | None, label: str | None):
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.path = path
        try:
            with path.open("rb") as file:
                self._footer = _footer_digest(file)
            with pq.ParquetFile(path) as file:
                self.schema, self.rows = file.schema_arrow, file.metadata.num_rows
        except (pa.ArrowException, OSError, ValueError) as problem:
            raise _unreadable(path, problem) from problem
        self.image = self._column("image", image, _IMAGE_COLUMNS)
        self.label = self._column("label", label, _LABEL_COLUMNS)
        kind = self.schema.field(self.image).type
        if pa.types.is_struct(kind):
            kind = kind.field("bytes").type if kind.get_field_index("bytes") >= 0 else kind
        if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
            raise DataError(
                f"encoded images in column {self.image!r} of {path.name} (bytes, or a struct with bytes)",
                f"{self.schema.field(self.image).type}",
                "a set whose images are arrays can be saved as .npz with images and labels",
            )
        if not pa.types.is_integer(self.schema.field(self.label).type):
            raise DataError(
                f"whole numbers in label column {self.label!r} of {path.name}",
                f"{self.schema.field(self.label).type}",
                "number the classes from 0",
            )

    def _column(self, what: str, named: str | None, known: tuple[str, ...]) -> str:
        there = self.schema.names
        for name in (named,) if named else known:
            if name in there:
                return name
        expected = f"{what} column {named!r}" if named else f"{what} column ({', '.join(known)})"
        raise DataError(f"the {expected} in {self.path.name}", f"columns {', '.join(there)}", "rename the column")

    def fingerprint(self) -> list:
        """Changes whenever the file does: its name, size, time of change, the digest of its footer (which holds
        the statistics of every column chunk), and the column that is read."""
        stat = self.path.stat()
        return [self.path.name, stat.st_size, stat.st_mtime_ns, self._footer, self.image]

    def labels(self) -> np.ndarray:
        """int64 [rows]."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            with pq.ParquetFile(self.path) as file:
                column = file.read(columns=[self.label]).column(0)
        except (pa.ArrowException, OSError, ValueError) as problem:
            raise _unreadable(self.path, problem) from problem
        if column.null_count:
            raise DataError(
                f"a label in every row of {self.path.name}", f"{column.null_count} rows without", "drop those rows"
            )
        return checked_labels(column.to_numpy(), self.rows, f"labels in {self.path.name}")

    def top_label(self) -> int:
        """The largest label, -1 in a shard without rows; unlabelled splits do not count."""
        try:
            return int(self.labels().max(initial=-1))
        except DataError:
            return -1

    def classes(self) -> list[str] | None:
        """Class names from the "huggingface" entry of the schema, where there is one that can be read."""
        try:
            about = json.loads((self.schema.metadata or {})[b"huggingface"])
            names = about["info"]["features"][self.label]["names"]
            if isinstance(names, dict):
                names = [names[str(i)] for i in range(len(names))]
            return [str(name) for name in names] or None
        except (KeyError, TypeError, ValueError):
            return None


def _footer_digest(file) -> str:
    """BLAKE2 of the footer: length and magic are the last eight bytes of a parquet file."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 8))
    length = int.from_bytes(file.read(4), "little")
    file.seek(max(0, size - 8 - length))
    return hashlib.blake2b(file.read(), digest_size=12).hexdigest()


def _chunks(shards: list[_Shard]) -> Iterator[Chunk]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for shard in shards:
        start = 0
        try:
            with pq.ParquetFile(shard.path) as file:
                for batch in file.iter_batches(_BATCH, columns=[shard.image], use_threads=False):
                    column = batch.column(0)
                    lacking = column.null_count
                    if isinstance(column, pa.StructArray):
                        column = column.field("bytes")
                        lacking = max(lacking, column.null_count)
                    if lacking:
                        raise DataError(
                            f"the bytes of every image inside {shard.path.name}",
                            f"rows {start} to {start + len(batch) - 1} hold {lacking} without",
                            "embed the files: a path alone cannot be followed",
                        )
                    if len(column):
                        yield Chunk(column.to_pylist(), lambda i, s=start, n=shard.path.name: f"{n}, row {s + i}")
                    start += len(batch)
        except DataError:
            raise
        except (pa.ArrowException, OSError, ValueError) as problem:
            raise _unreadable(shard.path, problem) from problem


def _unreadable(path: Path, problem: Exception) -> DataError:
    return DataError(
        "a whole parquet file", f"{path}: {problem}".strip(), "it is truncated or damaged: fetch it again"
    )
