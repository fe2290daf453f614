"""Cluttered translated images."""

import numpy as np
import pytest

from stochade.data import Images, load
from stochade.data.cluttered import cluttered
from stochade.errors import DataError


def found(canvas: np.ndarray, image: np.ndarray) -> list[tuple[int, int]]:
    """Places of the canvas where no pixel is darker than the image's."""
    side, size = canvas.shape[-1], image.shape[-1]
    return [
        (top, left) for top in range(side - size + 1) for left in range(side - size + 1)
        if bool((canvas[:, top : top + size, left : left + size] >= image).all())
    ]  # fmt: skip


def test_every_image_is_somewhere_on_its_canvas_and_places_differ():
    images = load("digits", "test").take(30)
    made = cluttered(images, 16, pieces=0)
    assert made.shape == (30, 1, 16, 16)
    assert np.array_equal(made.labels, images.labels)
    places = set()
    for canvas, image in zip(np.asarray(made.pixels), np.asarray(images.pixels), strict=True):
        (here, *_) = found(canvas, image)
        places.add(here)
        assert canvas.sum() == image.sum()  # nothing else is there
    assert len(places) > 10


def test_pieces_come_from_the_images_and_add_light():
    """White images: the canvas holds nothing but 0 and 255, and pieces add at most pieces * patch^2 pixels."""
    white = Images(np.full((20, 1, 7, 7), 255, dtype=np.uint8), np.zeros(20, dtype=int), "white", ["a"])
    lit = np.asarray(cluttered(white, 40, pieces=3, patch=2).pixels).astype(bool).sum((1, 2, 3))
    assert set(np.unique(cluttered(white, 40).pixels)) == {0, 255}
    assert lit.min() >= 49
    assert lit.max() == 49 + 3 * 4


def test_rows_depend_on_the_seed_and_their_place_alone():
    images = load("digits", "test").take(6)
    one = np.asarray(cluttered(images, 20, seed=1).pixels)
    assert np.array_equal(one, np.asarray(cluttered(images, 20, seed=1).pixels))
    assert not np.array_equal(one, np.asarray(cluttered(images, 20, seed=2).pixels))


@pytest.mark.parametrize("options", [{"side": 7}, {"side": 16, "patch": 9}, {"side": 16, "pieces": -1}])
def test_impossible_sizes_are_named_errors(options):
    with pytest.raises(DataError):
        cluttered(load("digits", "test").take(2), **options)


def test_a_dark_image_does_not_wipe_out_the_pieces_under_it():
    pixels = np.full((20, 1, 7, 7), 255, dtype=np.uint8)
    pixels[0] = 0
    made = cluttered(Images(pixels, np.zeros(20, dtype=int), "one dark", ["a"]), 7, pieces=5, patch=2)
    assert 4 <= int((np.asarray(made.pixels)[0] > 0).sum()) <= 20
