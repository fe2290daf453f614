"""Which images are train, validation and test, decided once and the same everywhere."""

import os
from collections.abc import Mapping
from typing import Protocol

import numpy as np

from stochade.data.images import Images, shuffled
from stochade.errors import DataError

_SEED = 20_240_301
_ALIASES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}


class Source(Protocol):
    """Something that holds the images of one or more splits under its own names."""

    def splits(self) -> list[str]: ...

    def read(
        self, split: str, size: int | None = None, cache: "str | os.PathLike | None" = None, progress: bool = True
    ) -> Images: ...


def roles_of(splits: list[str]) -> dict[str, str]:
    """The source's own word for each of train, validation and test that it has.

    A source with train and a validation split but no test split has its labels there (Tiny ImageNet,
    ImageNet): that split is the test split, as the literature reports it.
    """
    roles = {role: word for role, words in _ALIASES.items() for word in words if word in splits}
    if "test" not in roles and "train" in roles and "validation" in roles:
        roles["test"] = roles.pop("validation")
    return roles


def validation_rows(total: int, count: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The rows (train, validation) of a train split of `total` images, both ascending.

    Args:
        total: images in the source's train split.
        count: images to hold out; None for min(5000, a tenth, rounded down, at least one); 0 for none.

    Raises:
        DataError: a count that leaves no train image.
    """
    wanted = min(5000, max(1, total // 10)) if count is None else count
    if not 0 <= wanted < total:
        raise DataError(
            f"a validation split of 0 to {total - 1} images", f"{wanted}", "there must be train images left"
        )
    order = shuffled(total, _SEED)
    return np.sort(order[wanted:]), np.sort(order[:wanted])


def read_split(
    source: Source,
    split: str,
    where: str,
    *,
    roles: Mapping[str, str] | None = None,
    validation: int | None = None,
    size: int | None = None,
    cache: "str | os.PathLike | None" = None,
    progress: bool = True,
) -> Images:
    """Train, validation or test of a source; the validation split is cut from train where there is none.

    Args:
        source: where the images are.
        split: "train", "validation" or "test", or the source's own word for another of its splits.
        where: the source in words, for errors.
        roles: overrides `roles_of`.
        validation: images to cut from train; see `validation_rows`.
        size, cache, progress: passed on.

    Raises:
        DataError: a split that the source has not.
    """
    there = source.splits()
    own = {r: word for r, word in roles.items() if word in there} if roles is not None else roles_of(there)

    def read(word: str) -> Images:
        return source.read(word, size=size, cache=cache, progress=progress)

    if validation is not None and "validation" in own:
        raise DataError(
            f"validation=None for {where}, which has a validation split of its own ({own['validation']!r})",
            f"validation={validation}",
            "leave it out",
        )
    if split in ("train", "validation") and "train" in own and "validation" not in own:
        whole = read(own["train"])
        rows = validation_rows(len(whole), validation)[0 if split == "train" else 1]
        if len(rows) == 0:
            raise DataError("validation >= 1 to load the validation split", "validation=0", "choose its size")
        return _as(whole if len(rows) == len(whole) else whole.subset(rows), split)
    if split in own:
        return _as(read(own[split]), split)
    if split in there and split not in ("train", "validation", "test"):
        return read(split)
    raise _absent(split, where, there, own)


def _absent(split: str, where: str, there: list[str], own: dict[str, str]) -> DataError:
    names = ", ".join(repr(s) for s in there)
    if len(there) == 1 and there[0] == "all":
        hint = "load it whole with split='all', or store the splits apart (see stochade.data.load)"
        return DataError(f"a split {split!r} of {where}", "images without splits ('all')", hint)
    if "train" in own and "validation" not in own:
        names += " (and 'validation', which is cut from train)"
    few = "only the split" if len(there) == 1 else "the splits"
    return DataError(f"a split {split!r} of {where}", f"{few} {names}", "ask for one of those")


def _as(images: Images, split: str) -> Images:
    images.split = split
    return images
