"""Splits, the bundled digits, .npz files, class folders, and sets known by name."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import stochade.data.decode as decode
from stochade.data import load, validation_rows
from stochade.data.arrays import channels_first
from stochade.errors import DataError


@pytest.fixture(autouse=True)
def own_places(tmp_path, monkeypatch):
    monkeypatch.setenv("STOCHADE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("STOCHADE_DATA", raising=False)


def sha(array: np.ndarray) -> str:
    return hashlib.sha256(array.astype("<i8").tobytes()).hexdigest()


def pixels_of(n: int, shape=(4, 4), seed=0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8)


# ---- splits


@pytest.mark.parametrize(("total", "count"), [(1, None), (9, None), (100, None), (60_000, None), (100, 37), (100, 0)])
def test_train_and_validation_partition_the_rows(total, count):
    if total == 1:
        with pytest.raises(DataError, match="train images left"):
            validation_rows(total, count)
        return
    train, validation = validation_rows(total, count)
    assert np.array_equal(np.sort(np.concatenate([train, validation])), np.arange(total))
    assert len(validation) == (min(5000, max(1, total // 10)) if count is None else count)


def test_the_cut_is_the_same_everywhere():
    train, validation = validation_rows(60_000)
    assert sha(validation) == "a05be034d5750b3a1893d76059cc992fdcae17c6903fa9eea3121afb40bfe1de"
    assert sha(train) == "84f370eef8574460ea516f29593a5382c6e334136b4a5a110225f3b58c4fe433"


def test_a_larger_validation_split_holds_the_smaller_one():
    assert set(validation_rows(1000, 50)[1]) <= set(validation_rows(1000, 200)[1])


# ---- digits


def test_digits_are_whole_disjoint_stratified_and_fixed():
    from sklearn.datasets import load_digits

    parts = {s: load("digits", s) for s in ("train", "validation", "test")}
    assert [len(p) for p in parts.values()] == [1197, 200, 400]
    levels, labels = load_digits(return_X_y=True)
    rows = {(tuple(x.astype(int)), y) for x, y in zip(levels, labels, strict=True)}
    seen: list = []
    for part in parts.values():
        # the bytes give back the levels exactly, within the promised distance
        back = np.rint(part.pixels.astype(float) * 16 / 255).reshape(-1, 64)
        assert np.abs(part.pixels.reshape(-1, 64) / 255 - back / 16).max() < 0.002
        seen += [(tuple(x.astype(int)), y) for x, y in zip(back, part.labels, strict=True)]
        share = np.bincount(labels) * len(part) / 1797
        assert np.abs(np.bincount(part.labels) - share).max() <= 1
    assert len(seen) == 1797
    assert set(seen) == rows
    assert len(rows) == 1797  # no two digits are equal, so the splits are disjoint
    digest = hashlib.sha256(parts["test"].pixels.tobytes() + parts["test"].labels.astype("<i8").tobytes())
    assert digest.hexdigest() == "507ea4e08b07bd963fbbb0f02822399c1a81f859ef6fd18d4d53d70eedb97835"


def test_digits_take_no_options():
    for wrong in ({"split": "all"}, {"size": 16}, {"validation": 3}):
        with pytest.raises(DataError):
            load("digits", **wrong)


# ---- .npz


def test_npz_with_splits(tmp_path):
    images, labels = pixels_of(30), np.arange(30) % 7
    np.savez(
        tmp_path / "a.npz",
        train_images=images[:20],
        train_labels=labels[:20],
        test_images=images[20:25],
        test_labels=labels[20:25, None],
        val_images=images[25:],
        val_labels=labels[25:].astype(np.uint8),
    )
    for split, rows in (("train", slice(0, 20)), ("test", slice(20, 25)), ("validation", slice(25, 30))):
        part = load(tmp_path / "a.npz", split)
        assert np.array_equal(part.pixels[:, 0], images[rows])
        assert part.labels.tolist() == labels[rows].tolist()
        assert (part.split, part.num_classes, part.name) == (split, 7, "a")
    with pytest.raises(DataError, match="validation split of its own"):
        load(tmp_path / "a.npz", "train", validation=3)


def test_npz_with_one_file_for_each_split_and_keras_names(tmp_path):
    images = pixels_of(60)
    np.savez(tmp_path / "train.npz", images=images[:50], labels=np.zeros(50, int))
    np.savez(tmp_path / "test.npz", images=images[50:], labels=np.ones(10, int))
    train, validation, test = (load(tmp_path, s) for s in ("train", "validation", "test"))
    assert [len(p) for p in (train, validation, test)] == [45, 5, 10]
    assert [p.num_classes for p in (train, validation, test)] == [2, 2, 2]
    rows = validation_rows(50)
    assert np.array_equal(train.pixels[:, 0], images[rows[0]])
    assert np.array_equal(validation.pixels[:, 0], images[rows[1]])
    assert len(load(tmp_path, "train", validation=0)) == 50
    assert len(load(tmp_path, "train", validation=20)) == 30
    with pytest.raises(DataError, match="validation >= 1"):
        load(tmp_path, "validation", validation=0)

    keras = tmp_path / "keras.npz"
    np.savez(keras, x_train=images, y_train=np.zeros(60, int), x_test=images[:5], y_test=np.zeros(5, int))
    assert len(load(keras)) == 5


def test_channels_are_found_only_where_there_is_no_doubt():
    grey, nchw, nhwc = pixels_of(2), pixels_of(2, (3, 4, 5)), pixels_of(2, (4, 5, 3))
    assert np.array_equal(channels_first(grey, "x"), grey[:, None])
    assert channels_first(nchw, "x") is nchw
    turned = channels_first(nhwc, "x")
    for c in range(3):
        assert np.array_equal(turned[:, c], nhwc[:, :, :, c])
    for shape in ((3, 9, 3), (1, 5, 1), (3, 7, 1), (2, 5, 5), (4, 5, 2)):
        with pytest.raises(DataError, match=r"Images\(pixels, labels\)"):
            channels_first(pixels_of(2, shape), "x")
    with pytest.raises(DataError, match="of shape"):
        channels_first(np.zeros((2, 3)), "x")


def test_npz_floats_stay_floats(tmp_path):
    values = np.random.default_rng(0).random((4, 3, 5, 5), dtype=np.float32)
    np.savez(tmp_path / "a.npz", images=values, labels=np.arange(4))
    assert np.array_equal(load(tmp_path / "a.npz", "all").pixels, values)


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"pictures": pixels_of(2), "labels": np.zeros(2, int)}, "keys pictures, labels"),
        ({"images": pixels_of(2)}, "keys images"),
        ({"images": pixels_of(2), "labels": np.zeros(2)}, "whole numbers"),
        ({"images": pixels_of(2), "labels": np.array([0, -1])}, "unlabelled"),
        ({"images": pixels_of(2), "labels": np.array([0, 1, 2])}, r"shape \[2\]"),
        ({"images": pixels_of(2), "labels": np.array([0, None])}, "never unpickled"),
        ({"images": np.array([pixels_of(1), None], dtype=object), "labels": np.zeros(2, int)}, "never unpickled"),
        ({"images": pixels_of(2).astype(float), "labels": np.zeros(2, int)}, "divide by 255"),
        ({"images": pixels_of(2).astype(int), "labels": np.zeros(2, int)}, "uint8"),
        ({"images": pixels_of(0), "labels": np.zeros(0, int)}, "at least one"),
    ],
)
def test_bad_npz(tmp_path, arrays, says):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError, match=says) as caught:
        load(tmp_path / "a.npz", "all")
    assert caught.value.hint or caught.value.got


def test_npz_that_are_none(tmp_path):
    file = tmp_path / "a.npz"
    np.savez(file, images=pixels_of(9), labels=np.zeros(9, int))
    data = file.read_bytes()
    for bad in (data[: len(data) // 2], b"", b"text"):
        file.write_bytes(bad)
        with pytest.raises(DataError, match="write it again"):
            load(file, "all")
    np.savez_compressed(file, images=pixels_of(9), labels=np.zeros(9, int))
    holed = bytearray(file.read_bytes())
    holed[80:180] = bytes(100)  # inside the compressed images
    file.write_bytes(holed)
    with pytest.raises(DataError, match="a plain array 'images'"):
        load(file, "all")
    with file.open("wb") as out:
        np.save(out, pixels_of(2))
    with pytest.raises(DataError, match="a single array"):
        load(file, "all")
    np.savez(file, images=pixels_of(9), labels=np.zeros(9, int))
    with pytest.raises(DataError, match="size=None"):
        load(file, "all", size=8)


# ---- class folders


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def test_class_folders(tmp_path, monkeypatch):
    pixels = pixels_of(6, (4, 4, 3))
    for i, name in enumerate(["b/2.png", "a/1.png", "a/0.png", "c/x/0.png", "b/1.png", "c/0.PNG"]):
        save(tmp_path / "s" / name, pixels[i])
    (tmp_path / "s" / "a" / "notes.txt").write_text("not an image")
    (tmp_path / "s" / ".hidden").mkdir()
    images = load(tmp_path / "s", "all")
    assert images.classes == ["a", "b", "c"]
    assert images.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert np.array_equal(images.pixels, pixels[[2, 1, 4, 0, 5, 3]].transpose(0, 3, 1, 2))
    with pytest.raises(DataError, match="split='all'"):
        load(tmp_path / "s")

    def refuse(*_):
        raise AssertionError("decoded again")

    monkeypatch.setattr(decode, "decode_image", refuse)
    assert np.array_equal(load(tmp_path / "s", "all").pixels, images.pixels)
    save(tmp_path / "s" / "a" / "2.png", pixels[0])
    with pytest.raises(AssertionError, match="decoded again"):
        load(tmp_path / "s", "all")


def test_class_folders_below_splits(tmp_path):
    pixels = pixels_of(40)
    for i in range(40):
        split, name = ("train", "ab"[i % 2]) if i < 30 else ("val", "b")
        save(tmp_path / split / name / f"{i:02d}.png", pixels[i])
    test = load(tmp_path, "test")  # with train and val alone, val is the test split
    assert test.labels.tolist() == [1] * 10
    assert test.classes == ["a", "b"]
    assert np.array_equal(test.pixels[:, 0], pixels[30:])
    train, validation = load(tmp_path, "train"), load(tmp_path, "validation")
    assert (len(train), len(validation)) == (27, 3)
    both = np.concatenate([train.pixels, validation.pixels])
    assert {p.tobytes() for p in both} == {p.tobytes() for p in pixels[:30]}

    save(tmp_path / "val" / "c" / "0.png", pixels[0])
    with pytest.raises(DataError, match="got c; the classes of train are a, b"):
        load(tmp_path, "test")


def test_bad_folders(tmp_path):
    with pytest.raises(DataError, match="existing file or folder"):
        load(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="none of them"):
        load(tmp_path / "empty")
    (tmp_path / "hollow" / "a").mkdir(parents=True)
    with pytest.raises(DataError, match="none in 'a'"):
        load(tmp_path / "hollow", "all")
    (tmp_path / "bad" / "a").mkdir(parents=True)
    (tmp_path / "bad" / "a" / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n but no more")
    with pytest.raises(DataError, match=r"x.png"):
        load(tmp_path / "bad", "all")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(DataError, match=r"a folder, a .npz or a .parquet file"):
        load(tmp_path / "notes.txt")
    (tmp_path / "bare" / "train").mkdir(parents=True)
    with pytest.raises(DataError, match="no subfolders"):
        load(tmp_path / "bare", "train")
