"""Data sets known by name: where a hub keeps them, and fetching them when asked to."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from stochade.data.cache import cache_home
from stochade.errors import DataError


@dataclass(frozen=True)
class Known:
    """A data set on the Hugging Face hub, stored as parquet.

    Args:
        title: the name in figures.
        repository: the hub's id.
        folder: the folder of the repository that holds the shards ("data", or the name of a configuration).
        image, label: column names.
        splits: the repository's word for train and for test. Where the published test labels are secret, the
            validation split is the test split, as papers report it.
        published_as_jpeg: the original files are JPEG, so a JPEG copy is no loss.
        gated: the hub asks for an account that has accepted the terms.
    """

    title: str
    repository: str
    folder: str = "data"
    image: str = "image"
    label: str = "label"
    splits: Mapping[str, str] = field(default_factory=lambda: {"train": "train", "test": "test"})
    published_as_jpeg: bool = False
    gated: bool = False


KNOWN: dict[str, Known] = {
    "mnist": Known("MNIST", "ylecun/mnist", "mnist"),
    "fashion-mnist": Known("Fashion-MNIST", "zalando-datasets/fashion_mnist", "fashion_mnist"),
    "kmnist": Known("KMNIST", "tanganke/kmnist", "kmnist"),
    "cifar10": Known("CIFAR-10", "uoft-cs/cifar10", "plain_text", image="img"),
    "cifar100": Known("CIFAR-100", "uoft-cs/cifar100", "cifar100", image="img", label="fine_label"),
    "svhn": Known("SVHN", "ufldl-stanford/svhn", "cropped_digits"),
    "tiny-imagenet": Known(
        "Tiny ImageNet",
        "zh-plus/tiny-imagenet",
        splits={"train": "train", "test": "valid"},
        published_as_jpeg=True,
    ),
    "imagenet-100": Known(
        "ImageNet-100",
        "clane9/imagenet-100",
        splits={"train": "train", "test": "validation"},
        published_as_jpeg=True,
    ),
    "imagenet-1k": Known(
        "ImageNet-1k",
        "ILSVRC/imagenet-1k",
        splits={"train": "train", "test": "validation"},
        published_as_jpeg=True,
        gated=True,
    ),
}


def known_name(text: str) -> str | None:
    """The table's name for what a caller wrote: case, hyphens and underscores do not matter."""
    plain = _plain(text)
    return next((name for name in KNOWN if _plain(name) == plain), None)


def home_of(name: str, cache: "str | os.PathLike | None" = None) -> Path:
    """Where a downloaded set lies: `data/<name>` in the cache directory."""
    return cache_home(cache) / "data" / name


def is_here(name: str, word: str, cache: "str | os.PathLike | None" = None) -> bool:
    """Whether this split of the set was downloaded to the end (an interrupted download does not count)."""
    folder = home_of(name, cache) / KNOWN[name].folder
    return _mark(name, word, cache).is_file() and any(folder.glob(f"{word}*.parquet"))


def fetch(name: str, word: str, cache: "str | os.PathLike | None" = None) -> Path:
    """Fetches one split of a known set unless it is here, and gives the folder of its shards.

    Files already fetched are not fetched again; a split counts only when all of it has come.

    Args:
        name: a key of `KNOWN`.
        word: the repository's word for the split.
        cache: the cache directory.

    Raises:
        DataError: huggingface-hub is not installed, the network or the hub refuses, or it sent no such shards.
    """
    known, target = KNOWN[name], home_of(name, cache)
    folder = target / known.folder
    if is_here(name, word, cache):
        return folder
    try:
        from huggingface_hub import snapshot_download
    except ImportError as problem:
        raise DataError(
            "huggingface-hub, to download", "it is not installed", "pip install 'stochade[download]'"
        ) from problem
    try:
        snapshot_download(
            known.repository,
            repo_type="dataset",
            allow_patterns=[f"{known.folder}/{word}-*.parquet", f"{known.folder}/{word}.parquet"],
            local_dir=target,
        )
    except Exception as problem:  # the hub's exceptions change from version to version
        raise _refused(known, problem) from problem
    if not any(folder.glob(f"{word}*.parquet")):
        raise DataError(
            f"{known.folder}/{word}-*.parquet in {known.repository}",
            "no such files",
            f"the repository has changed: fetch its parquet files yourself and load their folder ({target})",
        )
    mark = _mark(name, word, cache)
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.touch()
    return folder


def not_here(name: str, word: str, looked: list[Path]) -> DataError:
    """The error for a known set that is on no disk: how to get it."""
    known = KNOWN[name]
    places = ", ".join(str(p) for p in looked)
    return DataError(
        f"{known.title} ({word}) on disk",
        f"nothing in {places}",
        f"pass download=True to fetch it from huggingface.co/datasets/{known.repository}, or put its parquet "
        f"files into $STOCHADE_DATA/{name}",
    )


def _refused(known: Known, problem: Exception) -> DataError:
    page = f"https://huggingface.co/datasets/{known.repository}"
    gated = known.gated or type(problem).__name__ == "GatedRepoError"
    hint = (
        f"accept the terms on {page}, then log in with `hf auth login`" if gated else "check the network, try again"
    )
    first = (str(problem).strip().splitlines() or [""])[0]
    return DataError(f"to download {page}", f"{type(problem).__name__}: {first}", hint)


def _mark(name: str, word: str, cache: "str | os.PathLike | None") -> Path:
    return home_of(name, cache) / ".whole" / word


def _plain(text: str) -> str:
    return re.sub(r"[-_ ]", "", text).lower()
