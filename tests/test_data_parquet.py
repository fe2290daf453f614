"""Parquet folders and the cache behind them: exact pixels, one decoding, harmless crashes, plain errors."""

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import stochade.data.decode as decode
from stochade.data import load
from stochade.data.parquet import ParquetFolder
from stochade.errors import DataError

REAL = Path(os.environ.get("STOCHADE_DATA") or Path(__file__).parents[2] / "shared" / "data")


def real(name: str) -> Path:
    if not (REAL / name).is_dir():
        pytest.skip(f"no {name} under STOCHADE_DATA or ../shared/data")
    return REAL / name


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("STOCHADE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def shared_cache(tmp_path_factory) -> Path:
    """Real sets are decoded once for this file."""
    return tmp_path_factory.mktemp("real")


def encoded(pixels: np.ndarray, form: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form)
    return buffer.getvalue()


def random_pixels(n: int, shape=(6, 5, 3), seed=0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8)


def write(path: Path, files, labels, image="image", label="label", names=None, struct=True) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    files = [f if f is None or isinstance(f, bytes) else encoded(f) for f in files]
    column = [{"bytes": f, "path": f"{i}.png"} for i, f in enumerate(files)] if struct else files
    columns = {image: column} if label is None else {image: column, label: labels}
    table = pa.table(columns)
    if names is not None:
        about = {"info": {"features": {image: {"_type": "Image"}, label: {"names": names, "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(about)})
    pq.write_table(table, path, row_group_size=4)
    return path


def a_set(path: Path, n=10, **kwargs) -> np.ndarray:
    pixels = random_pixels(2 * n)
    write(path / "train-00000-of-00001.parquet", pixels[:n], np.arange(n) % 3, **kwargs)
    write(path / "test-00000-of-00001.parquet", pixels[n:], np.arange(n) % 2, **kwargs)
    return pixels.transpose(0, 3, 1, 2)


def forbid_decoding(monkeypatch) -> None:
    def refuse(*_):
        raise AssertionError("decoded again")

    monkeypatch.setattr(decode, "decode_image", refuse)


# ---- the real sets


def test_mnist_is_exact(shared_cache, monkeypatch):
    folder = real("mnist")
    train = load(folder, "train", validation=0, cache=shared_cache)
    test = load(folder, cache=shared_cache)
    assert train.shape == (60000, 1, 28, 28)
    assert test.shape == (10000, 1, 28, 28)
    assert train.labels[:5].tolist() == [5, 0, 4, 1, 9]
    # the class counts of the original files, as published, and their mean intensity, 0.1307
    assert np.bincount(train.labels).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert int(train.pixels.sum(dtype=np.int64)) == 1_567_298_545
    assert round(1_567_298_545 / (60000 * 784 * 255), 4) == 0.1307
    digest = hashlib.sha256(np.asarray(test.pixels).tobytes()).hexdigest()
    assert digest == "6d87418db22cc8025d05968bec9bd5c3932904b23485740db143a061a2c9d161"
    assert (test.note, test.name, test.num_classes) == ("MNIST", "mnist", 10)

    forbid_decoding(monkeypatch)
    validation = load(folder, "validation", cache=shared_cache)
    rest = load(folder, "train", cache=shared_cache)
    assert (len(validation), len(rest)) == (5000, 55000)
    assert isinstance(train.pixels, np.memmap)


def test_cifar10_says_that_it_is_jpeg(shared_cache, monkeypatch):
    monkeypatch.setenv("STOCHADE_DATA", str(real("cifar10").parent))
    images = load("cifar10", cache=shared_cache)
    assert images.note == "CIFAR-10 (JPEG)"
    assert images.shape == (10000, 3, 32, 32)
    assert images.classes is not None
    assert images.classes[:2] == ["airplane", "automobile"]
    table = pq.read_table(real("cifar10") / "test-00000-of-00001.parquet")
    for i in (0, 4999, 9999):
        row = table.slice(i, 1).to_pylist()[0]
        alone = np.asarray(Image.open(io.BytesIO(row["img"]["bytes"])))
        assert np.array_equal(images.pixels[i], alone.transpose(2, 0, 1))
        assert images.labels[i] == row["label"]


# ---- layouts


def test_pixels_labels_and_names_of_a_folder(tmp_path):
    pixels = a_set(tmp_path / "things", names=["a", "b", "c"])
    train, test = load(tmp_path / "things", "train", validation=0), load(tmp_path / "things")
    assert np.array_equal(train.pixels, pixels[:10])
    assert np.array_equal(test.pixels, pixels[10:])
    assert train.labels.tolist() == [i % 3 for i in range(10)]
    assert test.classes == ["a", "b", "c"]
    assert (test.note, test.name, test.split) == ("things", "things", "test")


def test_shards_in_a_data_folder_are_joined_in_order(tmp_path):
    pixels = random_pixels(9, (4, 4))
    for i in range(3):
        name = f"test-{i:05d}-of-00003-0123abcd.parquet"
        write(tmp_path / "data" / name, pixels[3 * i : 3 * i + 3], [i] * 3, image="img", label="fine_label")
    images = ParquetFolder(tmp_path, "n", "n").read("test")
    assert np.array_equal(images.pixels[:, 0], pixels)
    assert images.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_a_missing_shard_is_named(tmp_path):
    write(tmp_path / "test-00000-of-00003.parquet", random_pixels(2), [0, 1])
    write(tmp_path / "test-00002-of-00003.parquet", random_pixels(2), [0, 1])
    write(tmp_path / "train-00000-of-00001.parquet", random_pixels(2), [0, 1])
    with pytest.raises(DataError, match="00001"):
        load(tmp_path)
    assert len(load(tmp_path, "train", validation=0)) == 2  # other splits are not held up


def test_plain_bytes_columns_and_single_files(tmp_path):
    pixels = random_pixels(3)
    file = write(tmp_path / "some.parquet", pixels, [2, 1, 0], label="labels", struct=False)
    images = load(file, "all")
    assert np.array_equal(images.pixels, pixels.transpose(0, 3, 1, 2))
    assert images.labels.tolist() == [2, 1, 0]


def test_classes_are_counted_over_all_splits_where_they_have_no_names(tmp_path):
    a_set(tmp_path)
    assert load(tmp_path).num_classes == 3  # the test split holds only 0 and 1


def test_jpeg_is_noted_and_not_where_the_set_was_published_so(tmp_path):
    files = [encoded(p, "JPEG") for p in random_pixels(4)]
    write(tmp_path / "tiny-imagenet" / "valid-00000-of-00001.parquet", files, [0, 1, 0, 1])
    write(tmp_path / "tiny-imagenet" / "train-00000-of-00001.parquet", files, [0, 1, 0, 1])
    write(tmp_path / "other" / "test.parquet", files, [0, 1, 0, 1])
    assert load(tmp_path / "other").note == "other (JPEG)"
    assert load(tmp_path / "tiny-imagenet").note == "Tiny ImageNet"


# ---- kinds of images


def test_one_colour_image_makes_the_set_colour(tmp_path):
    grey, colour = random_pixels(3, (4, 4)), random_pixels(2, (4, 4, 3), seed=1)
    write(tmp_path / "test.parquet", [*grey, *colour], [0] * 5)
    images = load(tmp_path)
    assert images.shape == (5, 3, 4, 4)
    for c in range(3):
        assert np.array_equal(images.pixels[:3, c], grey)
    assert np.array_equal(images.pixels[3:], colour.transpose(0, 3, 1, 2))


def test_opaque_alpha_palettes_and_bits_are_read_and_other_kinds_refused(tmp_path):
    rgb = random_pixels(1, (4, 4, 3))[0]
    opaque = np.dstack([rgb, np.full((4, 4), 255, np.uint8)])
    palette = Image.fromarray(rgb[:, :, 0]).convert("RGB").quantize(256)
    buffer = io.BytesIO()
    palette.save(buffer, "PNG")
    expected = np.asarray(palette.convert("RGB"))
    write(tmp_path / "a" / "test.parquet", [opaque, buffer.getvalue()], [0, 0])
    images = load(tmp_path / "a")
    assert np.array_equal(images.pixels[0], rgb.transpose(2, 0, 1))
    assert np.array_equal(images.pixels[1], expected.transpose(2, 0, 1))

    bits = rgb[:, :, 0] > 127
    write(tmp_path / "b" / "test.parquet", [encoded(bits)], [0])
    assert np.array_equal(load(tmp_path / "b").pixels[0, 0], bits * np.uint8(255))

    opaque[0, 0, 3] = 254
    write(tmp_path / "c" / "test.parquet", [opaque], [0])
    with pytest.raises(DataError, match="transparent"):
        load(tmp_path / "c")
    write(tmp_path / "d" / "test.parquet", [encoded(np.arange(16, dtype=np.uint16).reshape(4, 4) * 4000)], [0])
    with pytest.raises(DataError, match="8-bit"):
        load(tmp_path / "d")


def test_sizes_that_differ_need_size(tmp_path):
    wide = np.zeros((8, 16, 3), np.uint8)
    wide[:, 4:12] = 200  # the centre square, which the crop must keep
    write(tmp_path / "test.parquet", [np.full((8, 8, 3), 200, np.uint8), wide], [0, 1])
    with pytest.raises(DataError, match=r"8 x 16 at test.parquet, row 1; pass size="):
        load(tmp_path)
    images = load(tmp_path, size=8)
    assert np.array_equal(images.pixels, np.full((2, 3, 8, 8), 200, np.uint8))
    assert images.note.endswith("(cropped to 8 x 8)")
    assert load(tmp_path, size=4).shape == (2, 3, 4, 4)


# ---- the cache


def test_a_second_load_decodes_nothing(tmp_path, monkeypatch):
    pixels = a_set(tmp_path / "s")
    load(tmp_path / "s")
    forbid_decoding(monkeypatch)
    assert np.array_equal(load(tmp_path / "s").pixels, pixels[10:])
    with pytest.raises(AssertionError, match="decoded again"):
        load(tmp_path / "s", size=3)  # another request is another entry


def test_changed_files_are_decoded_again(tmp_path):
    a_set(tmp_path / "s")
    load(tmp_path / "s")
    pixels = random_pixels(10, seed=9)
    write(tmp_path / "s" / "test-00000-of-00001.parquet", pixels, [0] * 10)
    assert np.array_equal(load(tmp_path / "s").pixels, pixels.transpose(0, 3, 1, 2))


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "no description", "bad description", "other shape"])
def test_a_damaged_entry_is_rebuilt(tmp_path, own_cache, damage):
    pixels = a_set(tmp_path / "s")
    load(tmp_path / "s")
    (npy,), (about,) = own_cache.rglob("*.npy"), own_cache.rglob("*.json")
    data = npy.read_bytes()
    if damage == "truncate":
        npy.write_bytes(data[:-1])
    elif damage == "flip":
        npy.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif damage == "empty":
        npy.write_bytes(b"")
    elif damage == "no description":
        about.unlink()
    elif damage == "bad description":
        about.write_text(about.read_text()[:-3])
    else:
        about.write_text(about.read_text().replace('"shape": [10', '"shape": [11'))
    assert np.array_equal(load(tmp_path / "s").pixels, pixels[10:])
    assert np.load(npy).shape == (10, 3, 6, 5)
    assert not list(own_cache.rglob("*.tmp"))


def test_a_failure_leaves_nothing_behind(tmp_path, own_cache):
    write(tmp_path / "s" / "test.parquet", [*random_pixels(5), b"no image"], [0] * 6)
    with pytest.raises(DataError, match=r"test.parquet, row 5"):
        load(tmp_path / "s")
    assert [p for p in own_cache.rglob("*") if p.is_file()] == []


def run(code: str, *args: object) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, args)], stdout=subprocess.PIPE, text=True
    )


def test_kill_and_two_processes_at_once_do_no_harm(tmp_path, own_cache):
    pixels = a_set(tmp_path / "s", n=600)
    stuck = run(
        """
        import os, sys, time
        import stochade.data.decode as decode
        from stochade.data import load
        real, count = decode.decode_image, []
        def slow(*args):
            count.append(1)
            if len(count) > 400:
                os.write(1, b"!")  # one byte from each thread
                time.sleep(60)
            return real(*args)
        decode.decode_image = slow
        load(sys.argv[1])
        """,
        tmp_path / "s",
    )
    with stuck:
        assert stuck.stdout is not None
        assert stuck.stdout.read(1) == "!"
        stuck.send_signal(signal.SIGKILL)
    assert len(list(own_cache.rglob("*.tmp"))) == 1

    both = [
        run(
            """
            import sys, hashlib, numpy as np
            from stochade.data import load
            print(hashlib.sha256(np.asarray(load(sys.argv[1]).pixels).tobytes()).hexdigest())
            """,
            tmp_path / "s",
        )
        for _ in range(2)
    ]
    expected = hashlib.sha256(pixels[600:].tobytes()).hexdigest()
    assert [p.communicate(timeout=60)[0].strip() for p in both] == [expected] * 2
    assert [p.returncode for p in both] == [0, 0]
    assert len(list(own_cache.rglob("*.npy"))) == 1


def test_old_temporary_files_are_swept(tmp_path, own_cache):
    a_set(tmp_path / "s")
    (own_cache / "pixels").mkdir(parents=True)
    for name, age in (("old.tmp", 2 * 86400), ("young.tmp", 60)):
        file = own_cache / "pixels" / name
        file.touch()
        os.utime(file, (file.stat().st_mtime - age,) * 2)
    load(tmp_path / "s")
    assert [p.name for p in own_cache.rglob("*.tmp")] == ["young.tmp"]


def test_a_cache_that_cannot_be_written(tmp_path):
    a_set(tmp_path / "s")
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="STOCHADE_CACHE"):
        load(tmp_path / "s", cache=tmp_path / "file")


# ---- bad files


def test_truncated_and_foreign_files(tmp_path):
    file = write(tmp_path / "a" / "test.parquet", random_pixels(30), [0] * 30)
    data = file.read_bytes()
    for bad in (data[: len(data) // 2], b"", b"PAR1", b"not parquet at all, but long enough to be a footer"):
        file.write_bytes(bad)
        with pytest.raises(DataError, match="fetch it again"):
            load(tmp_path / "a")
    holed = bytearray(data)
    holed[100 : len(data) // 2] = bytes(len(data) // 2 - 100)  # the footer is whole, the pages are not
    file.write_bytes(holed)
    with pytest.raises(DataError):
        load(tmp_path / "a")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"label": None}, "label column .*columns image"),
        ({"image": "picture"}, "image column .*columns picture, label"),
        ({"labels": [0.0, 1.0]}, "whole numbers"),
        ({"labels": ["cat", "dog"]}, "number the classes"),
        ({"labels": [0, -1]}, "unlabelled"),
        ({"labels": [0, None]}, "1 rows without"),
        ({"files": [b"GIF89a nothing", b""]}, "row 0"),
        ({"files": [b"", None]}, "hold 1 without"),
        ({"files": [], "labels": []}, "at least one image|encoded images"),
        ({"names": ["only"]}, "label 1"),
    ],
)
def test_bad_columns(tmp_path, options, says):
    options = {"files": list(random_pixels(2)), "labels": [0, 1]} | options
    write(tmp_path / "test.parquet", **options)
    with pytest.raises(DataError, match=says) as caught:
        load(tmp_path)
    assert caught.value.got


def test_truncated_images_and_arrays_instead_of_files(tmp_path):
    jpeg = encoded(random_pixels(1, (32, 32, 3))[0], "JPEG")
    write(tmp_path / "a" / "test.parquet", [jpeg, jpeg[: len(jpeg) // 2]], [0, 0])
    with pytest.raises(DataError, match="row 1"):
        load(tmp_path / "a")
    (tmp_path / "b").mkdir()
    pq.write_table(pa.table({"image": [[1, 2], [3, 4]], "label": [0, 1]}), tmp_path / "b" / "test.parquet")
    with pytest.raises(DataError, match="npz"):
        load(tmp_path / "b")
