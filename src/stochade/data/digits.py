"""The bundled digits: 1,797 real handwritten digits that need no download."""

import numpy as np

from stochade.data.images import Images, shuffled

_SEED = 20_240_229
_VALIDATION, _TEST = 200, 400
SPLITS = ("train", "validation", "test")


def load_digits(split: str) -> Images:
    """One split of scikit-learn's digits, [N,1,8,8]: train 1,197, validation 200, test 400 images.

    The splits are fixed, disjoint and stratified: every class has its share in each, up to one image.
    Strokes have 17 levels 0..16, kept as bytes round(255 v / 16) (8 becomes 128), so a pixel differs from
    v / 16 by less than 0.002.

    Source: E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, UCI (its test part).
    """
    from sklearn import datasets

    levels, labels = (np.asarray(a) for a in datasets.load_digits(return_X_y=True))
    labels = labels.astype(np.int64)
    pixels = np.rint(levels * 255 / 16).astype(np.uint8).reshape(-1, 1, 8, 8)
    rows = _splits(labels)[split]
    names = [str(i) for i in range(10)]
    return Images(pixels[rows], labels[rows], "digits", names, "digits (8x8, scikit-learn)", split)


def _splits(labels: np.ndarray) -> dict[str, np.ndarray]:
    order = shuffled(len(labels), _SEED)
    place = np.empty(len(labels))  # where each image stands within its class, as a fraction
    for k in np.unique(labels):
        members = order[labels[order] == k]
        place[members] = (np.arange(len(members)) + 0.5) / len(members)
    ranked = order[np.argsort(place[order], kind="stable")]  # classes take turns, so any cut is stratified
    test, validation, train = np.split(ranked, [_TEST, _TEST + _VALIDATION])
    return {"train": np.sort(train), "validation": np.sort(validation), "test": np.sort(test)}
