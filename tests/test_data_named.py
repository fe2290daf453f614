"""Sets known by name: downloads, the data directory, own copies, and names that nothing answers to."""

import io
import sys
import types
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from stochade.data import KNOWN, load
from stochade.errors import DataError


@pytest.fixture(autouse=True)
def own_places(tmp_path, monkeypatch):
    monkeypatch.setenv("STOCHADE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("STOCHADE_DATA", raising=False)


def pixels_of(n: int, shape=(4, 4), seed=0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8)


# ---- sets known by name


def shard(path: Path, n=20, image="image", label="label", seed=0) -> np.ndarray:
    pixels = pixels_of(n, seed=seed)
    files = []
    for p in pixels:
        buffer = io.BytesIO()
        Image.fromarray(p).save(buffer, "PNG")
        files.append({"bytes": buffer.getvalue(), "path": None})
    columns = {image: files, label: np.arange(n) % 3}
    if label == "fine_label":
        columns["coarse_label"] = np.zeros(n, int)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return pixels


class Hub(types.ModuleType):
    """A double of huggingface_hub: serves files of a local folder by the patterns it is asked for."""

    def __init__(self, root: Path):
        super().__init__("huggingface_hub")
        self.root, self.asked, self.fail = root, [], None

    def snapshot_download(self, repo_id, *, repo_type, allow_patterns, local_dir):
        assert repo_type == "dataset"
        self.asked.append((repo_id, allow_patterns))
        for file in sorted((self.root / repo_id).rglob("*")):
            name = file.relative_to(self.root / repo_id)
            if file.is_file() and any(name.match(p) for p in allow_patterns):
                target = Path(local_dir) / name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(file.read_bytes())
                if self.fail is not None:
                    raise self.fail
        if self.fail is not None:
            raise self.fail
        return str(local_dir)


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Hub:
    double = Hub(tmp_path / "hub")
    monkeypatch.setitem(sys.modules, "huggingface_hub", double)
    return double


@pytest.mark.parametrize("name", list(KNOWN))
def test_every_known_set_downloads_only_what_is_asked(name, hub, tmp_path):
    known = KNOWN[name]
    root = hub.root / known.repository / known.folder
    train = shard(root / f"{known.splits['train']}-00000-of-00001.parquet", 20, known.image, known.label)
    test = shard(root / f"{known.splits['test']}-00000-of-00001.parquet", 5, known.image, known.label, seed=1)
    shard(root / "extra-00000-of-00001.parquet", 3, known.image, known.label)

    with pytest.raises(DataError, match="download=True"):
        load(name)
    assert hub.asked == []  # no network unless asked

    images = load(name, download=True)
    assert np.array_equal(images.pixels[:, 0], test)
    assert (images.note, images.name, images.split) == (known.title, name, "test")
    fetched = {p.name for p in (tmp_path / "cache" / "data").rglob("*.parquet")}
    assert fetched == {f"{known.splits['test']}-00000-of-00001.parquet"}

    rest = load(name, "train", download=True)
    assert len(rest) == 18
    assert np.array_equal(load(name, "train", validation=0).pixels[:, 0], train)
    assert len(load(name, "validation")) == 2  # now here, no download needed
    assert [repo for repo, _ in hub.asked] == [known.repository] * 2
    with pytest.raises(DataError, match="train, validation, test"):
        load(name, "extra", download=True)


def test_an_interrupted_download_does_not_count(hub):
    known = KNOWN["mnist"]
    root = hub.root / known.repository / known.folder
    for i in range(2):
        shard(root / f"test-{i:05d}-of-00002.parquet", seed=i)
    hub.fail = ConnectionError("cable pulled")
    with pytest.raises(DataError, match=r"ConnectionError: cable pulled; check the network"):
        load("mnist", download=True)
    with pytest.raises(DataError, match="download=True"):
        load("mnist")
    hub.fail = None
    assert len(load("mnist", download=True)) == 40


def test_gated_absent_and_changed_repositories(hub, monkeypatch):
    class GatedRepoError(Exception):
        pass

    hub.fail = GatedRepoError("403\nmore")
    with pytest.raises(DataError, match=r"accept the terms on https://huggingface.co/datasets/ILSVRC/imagenet-1k"):
        load("imagenet-1k", download=True)
    hub.fail = None
    with pytest.raises(DataError, match="no such files"):
        load("svhn", download=True)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # an import of it now fails
    with pytest.raises(DataError, match=r"pip install 'stochade\[download\]'"):
        load("svhn", download=True)


def test_the_data_directory_comes_first(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("STOCHADE_DATA", str(tmp_path / "mine"))
    pixels = shard(tmp_path / "mine" / "cifar10" / "test-00000-of-00001.parquet", image="img")
    assert np.array_equal(load("cifar10", download=True).pixels[:, 0], pixels)
    pixels = shard(tmp_path / "mine" / "cifar100" / "cifar100" / "test-00000-of-00001.parquet", label="fine_label")
    assert np.array_equal(load("CIFAR-100").pixels[:, 0], pixels)
    assert hub.asked == []
    with pytest.raises(DataError, match="only the split 'test'"):
        load("cifar10", "train")
    with pytest.raises(DataError, match="only the split 'test'"):
        load("cifar10", "validation")


def test_own_copies_keep_their_validation_split_and_imagenet_is_tested_on_it(tmp_path, monkeypatch):
    monkeypatch.setenv("STOCHADE_DATA", str(tmp_path))
    for name in ("fashion_mnist", "imagenet-1k"):
        for seed, split in enumerate(("train", "validation", "test")):
            shard(tmp_path / name / "data" / f"{split}-00000-of-00001.parquet", 10 + seed, seed=seed)
    for source in ("fashion-mnist", tmp_path / "fashion_mnist"):  # a folder found under another spelling
        assert [len(load(source, s)) for s in ("train", "validation", "test")] == [10, 11, 12]
    for source in ("imagenet-1k", tmp_path / "imagenet-1k"):
        assert [len(load(source, s)) for s in ("train", "validation", "test")] == [9, 1, 11]


def test_single_splits_are_named(tmp_path):
    shard(tmp_path / "a" / "train.parquet")
    with pytest.raises(DataError, match="only the split 'train' \\(and 'validation', which is cut from train\\)"):
        load(tmp_path / "a")
    assert len(load(tmp_path / "a", "validation")) == 2
    shard(tmp_path / "a" / "extra.parquet", 7)
    assert len(load(tmp_path / "a", "extra")) == 7  # the source's own word


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("mnits", "mnist"), ("cifar-1O", "cifar10"), ("digit", "digits"), ("imagenet1", "imagenet-1k")],
)
def test_a_name_that_nothing_answers_to(typed, meant):
    with pytest.raises(DataError, match=f"did you mean '{meant}'.*names: digits, mnist"):
        load(typed)


def test_names_do_not_care_about_case_and_hyphens():
    for text in ("CIFAR-10", "cifar_10", "Cifar10"):
        with pytest.raises(DataError, match="uoft-cs/cifar10"):
            load(text)
    with pytest.raises(DataError) as caught:
        load("zzz")
    assert "did you mean" not in str(caught.value)


@pytest.mark.parametrize(
    "wrong", [{"split": ""}, {"split": 3}, {"validation": -1}, {"validation": 0.1}, {"size": 0}, {"size": True}]
)
def test_bad_arguments(wrong):
    with pytest.raises(DataError):
        load("mnist", **wrong)
