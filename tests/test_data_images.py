"""Images: exact floats, fixed draws, light pickles, checked input."""

import hashlib
import pickle
from fractions import Fraction

import numpy as np
import pytest
import torch

from stochade.data import Images
from stochade.data.images import Rows, shuffled
from stochade.errors import DataError


def some(n=20, channels=1, seed=0, **kwargs) -> Images:
    r = np.random.default_rng(seed)
    return Images(r.integers(0, 256, (n, channels, 4, 5), dtype=np.uint8), r.integers(0, 3, n), **kwargs)


def mapped(path, n=50) -> tuple[np.ndarray, np.memmap]:
    pixels = np.random.default_rng(1).integers(0, 256, (n, 3, 4, 5), dtype=np.uint8)
    np.save(path, pixels)
    return pixels, np.load(path, mmap_mode="r")


def sha(array: np.ndarray) -> str:
    return hashlib.sha256(array.astype("<i8").tobytes()).hexdigest()


def test_every_byte_reads_as_the_float32_nearest_to_its_fraction():
    images = Images(np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16), np.zeros(1, dtype=np.int64))
    x, y = images[:]
    assert x.dtype == torch.float32
    assert y.dtype == torch.int64
    for v, value in enumerate(x.flatten().numpy()):
        error = abs(Fraction(float(value)) - Fraction(v, 255))
        for neighbour in (np.nextafter(value, np.float32(-1)), np.nextafter(value, np.float32(2))):
            assert error <= abs(Fraction(float(neighbour)) - Fraction(v, 255))


def test_indexing_by_slice_array_mask_tensor_and_number():
    images = some()
    whole = torch.from_numpy(images.pixels).float() / 255
    for index in (slice(3, 9), slice(None, None, -2), np.array([5, 1, 5]), np.arange(20) % 3 == 0):
        x, y = images[index]
        expected = np.arange(20)[index].copy()
        assert torch.equal(x, whole[expected])
        assert y.tolist() == images.labels[expected].tolist()
    assert torch.equal(images[torch.tensor([2, 4])][0], whole[[2, 4]])
    x, y = images[7]
    assert x.shape == (1, 4, 5)
    assert y.shape == ()
    assert sum(1 for _ in images) == 20  # and ends with IndexError, as a sequence does


def test_what_is_given_out_is_a_copy():
    images = some()
    before = images.pixels.copy(), images.labels.copy()
    x, y = images[:]
    x.zero_()
    y.fill_(7)
    assert np.array_equal(images.pixels, before[0])
    assert np.array_equal(images.labels, before[1])


def test_batches_cover_everything_in_order():
    images = some(23)
    parts = list(images.batches(5))
    assert [len(x) for x, _ in parts] == [5, 5, 5, 5, 3]
    assert torch.equal(torch.cat([x for x, _ in parts]), images[:][0])
    assert torch.equal(torch.cat([y for _, y in parts]), images[:][1])


def test_float_images_keep_values_that_no_byte_has():
    values = np.float32([0, 1, 0.123456, 1 / 3]).reshape(1, 1, 2, 2)
    images = Images(values, np.zeros(1, dtype=np.int64))
    assert torch.equal(images[:][0], torch.from_numpy(values))
    wide = Images(values.astype(np.float64), np.zeros(1, dtype=np.int64))
    assert wide.pixels.dtype == np.float32


def test_take_is_nested_seeded_and_fixed():
    images = some(200)
    assert np.array_equal(images.take(7).pixels, images.pixels[:7])
    small, large = images.take(30, seed=5), images.take(100, seed=5)
    assert np.array_equal(small.pixels, large.pixels[:30])
    assert np.array_equal(small.pixels, images.pixels[shuffled(200, 5)[:30]])
    assert not np.array_equal(small.pixels, images.take(30, seed=6).pixels)
    assert len(images.take(200, seed=1)) == 200


def test_the_shuffle_is_a_permutation_and_the_same_everywhere():
    order = shuffled(1000, 0)
    assert np.array_equal(np.sort(order), np.arange(1000))
    # stated so that a change of NumPy or of this code cannot move a split unseen
    assert order[:5].tolist() == [855, 921, 269, 11, 850]
    assert sha(order) == "06746a10e1b2f0a2899dfba7ac1c788256b98fd48fda133ad30543ce7990f929"


def test_no_global_generator_is_touched():
    torch.manual_seed(0)
    before = torch.get_rng_state(), np.random.get_state()[1].tobytes()  # noqa: NPY002
    some().take(5, seed=1)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tobytes() == before[1]  # noqa: NPY002


def test_memory_maps_pickle_as_paths_whole_sliced_and_selected(tmp_path):
    pixels, memory = mapped(tmp_path / "x.npy", 5000)
    images = Images(memory, np.arange(5000) % 4)
    cases = {
        "whole": (images, slice(None)),
        "run": (images.take(300), slice(0, 300)),
        "later run": (images.subset(range(1000, 1400)), slice(1000, 1400)),
        "run of a run": (images.subset(range(1000, 1400)).subset(range(17, 40)), slice(1017, 1040)),
        "draw": (images.take(50, seed=3), shuffled(5000, 3)[:50]),
        "part of a draw": (images.take(50, seed=3).subset([4, 2]), shuffled(5000, 3)[[4, 2]]),
        "draw of a run": (images.subset(range(1000, 1400)).take(9, seed=1), 1000 + shuffled(400, 1)[:9]),
    }
    for what, (part, rows) in cases.items():
        assert np.array_equal(np.asarray(part.pixels), pixels[rows]), what
        data = pickle.dumps(part)
        assert len(data) < 1500 + 20 * len(part), what  # labels and rows, never pixels (60 bytes each here)
        again = pickle.loads(data)
        assert np.array_equal(np.asarray(again.pixels), pixels[rows]), what
        assert torch.equal(again[:][1], part[:][1]), what


def test_selecting_from_a_memory_map_reads_nothing(tmp_path):
    _, memory = mapped(tmp_path / "x.npy")
    part = Images(memory, np.zeros(50, dtype=np.int64)).subset([9, 3, 4])
    assert isinstance(part.pixels, Rows)
    assert part.pixels.base is memory
    assert part.shape == (3, 3, 4, 5)


def test_a_pickle_whose_file_is_gone_says_so(tmp_path):
    _, memory = mapped(tmp_path / "x.npy")
    data = pickle.dumps(Images(memory, np.zeros(50, dtype=np.int64)))
    (tmp_path / "x.npy").unlink()
    with pytest.raises(DataError, match="load the images again"):
        pickle.loads(data)


def test_arrays_in_memory_pickle_too():
    images = some(classes=["a", "b", "c"], name="n", note="n (JPEG)", split="test")
    again = pickle.loads(pickle.dumps(images))
    assert np.array_equal(again.pixels, images.pixels)
    assert (again.name, again.note, again.split, again.classes) == ("n", "n (JPEG)", "test", ["a", "b", "c"])


def test_number_of_classes():
    assert some(classes=["a", "b", "c", "d"]).num_classes == 4
    images = Images(np.zeros((3, 1, 2, 2), np.uint8), np.array([0, 8, 1]))
    assert images.num_classes == 9
    assert images.take(1).num_classes == 9  # a part does not lose classes
    assert Images(images.pixels, images.labels, labels_in_use=12).num_classes == 12


def test_torch_tensors_and_narrow_integers_are_taken():
    images = Images(torch.zeros(2, 1, 3, 3, dtype=torch.uint8), torch.tensor([0, 1], dtype=torch.int32))  # type: ignore[arg-type]
    assert images.labels.dtype == np.int64


GOOD, LABELS = np.zeros((2, 1, 3, 3), np.uint8), np.zeros(2, np.int64)


@pytest.mark.parametrize(
    ("pixels", "labels", "says"),
    [
        (GOOD[:, 0], LABELS, "add the channel axis"),
        (GOOD[:0], LABELS[:0], "at least one"),
        (GOOD.tolist(), LABELS, "array of images"),
        (GOOD.astype(np.int64), LABELS, "uint8 images"),
        (GOOD.astype(object), LABELS, "dtype object"),
        (GOOD + np.float32(2), LABELS, "divide by 255"),
        (GOOD - np.float32(0.5), LABELS, "undo any normalisation"),
        (GOOD * np.float32(np.nan), LABELS, "nan"),
        (GOOD, LABELS.astype(np.float32), "whole numbers"),
        (GOOD, LABELS.astype(bool), "whole numbers"),
        (GOOD, LABELS.astype(object), "dtype object"),
        (GOOD, LABELS[:1], r"shape \[2\]"),
        (GOOD, np.zeros((2, 3), np.int64), r"shape \[2\]"),
        (GOOD, LABELS - 1, "unlabelled"),
    ],
)
def test_bad_arrays(pixels, labels, says):
    with np.errstate(invalid="ignore"), pytest.raises(DataError, match=says) as caught:
        Images(pixels, labels)
    assert caught.value.expected
    assert caught.value.got


def test_bad_requests():
    images = some()
    for bad in (lambda: images.take(0), lambda: images.take(21), lambda: images.subset([])):
        with pytest.raises(DataError):
            bad()
    with pytest.raises(DataError, match="indices from 0 to 19"):
        images.subset([-1])
    with pytest.raises(DataError, match="indices from 0 to 19"):
        images.subset([20])
    with pytest.raises(DataError, match="batch size"):
        next(images.batches(0))
    with pytest.raises(DataError, match="name every class"):
        Images(GOOD, LABELS + 3, classes=["a", "b"])
