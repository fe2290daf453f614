"""Clean, adversarial and difference images as inline PNGs, for the examples whose images were kept."""

import base64
import io
import math
from dataclasses import dataclass

import numpy as np

from stochade.evaluate.records import CLEAN, Records, majority

MOST = 24
MOST_BYTES = 6_000_000


@dataclass(frozen=True)
class Verdict:
    """What the model said about one image: majority class and fraction of draws that were right."""

    prediction: str
    right: float


@dataclass(frozen=True)
class Picture:
    """One example. The three images are data URIs; `difference` is None where shapes do not agree."""

    row: int
    label: str
    attack: str
    clean: str
    adversarial: str
    difference: str | None
    before: Verdict
    after: Verdict


@dataclass(frozen=True)
class Gallery:
    """The pictures, the factor that differences were multiplied by, and how many examples had images."""

    pictures: list[Picture]
    factor: float | None
    kept: int


def gallery(records: Records, threat=None, most: int = MOST) -> Gallery:
    """The first examples with kept images, each under the attack that leaves it the lowest accuracy.

    The attack is chosen on the selection draws among those inside `threat` (all attacks for None), "clean" left
    out; what is written below an image comes from the scoring draws. One factor amplifies all differences, so
    that they can be compared.
    """
    names = [n for n in (records.within(threat) if threat is not None else records.attacks) if n != CLEAN]
    if CLEAN not in records.attacks:
        return Gallery([], None, 0)
    before = records.attacks[CLEAN].images
    kept = [row for row in sorted(before) if any(row in records.attacks[n].images for n in names)]
    chosen = [(row, _worst(records, names, row)) for row in kept[:most]]
    pairs = [(row, n, np.asarray(before[row]), np.asarray(records.attacks[n].images[row])) for row, n in chosen]
    factor = _factor([b - a for _, _, a, b in pairs if a.shape == b.shape])
    pictures, size = [], 0
    for row, name, clean, adversarial in pairs:
        difference = None
        if factor is not None and clean.shape == adversarial.shape:
            difference = png(0.5 + factor * (adversarial - clean))
        picture = Picture(
            row, class_name(records, records.labels[row]), name, png(clean), png(adversarial), difference,
            _verdict(records, CLEAN, row), _verdict(records, name, row),
        )  # fmt: skip
        size += len(picture.clean) + len(picture.adversarial) + len(difference or "")
        if pictures and size > MOST_BYTES:
            break
        pictures.append(picture)
    return Gallery(pictures, factor, len(kept))


def _worst(records: Records, names: list[str], row: int) -> str:
    def accuracy(name: str) -> float:
        return float((records.attacks[name].selection[row] == records.labels[row]).mean())

    return min((n for n in names if row in records.attacks[n].images), key=accuracy)


def _verdict(records: Records, name: str, row: int) -> Verdict:
    predictions = records.attacks[name].predictions[row]
    said = majority(predictions[None])[0]
    return Verdict(class_name(records, said), float((predictions == records.labels[row]).mean()))


def class_name(records: Records, label) -> str:
    """The class as `meta["classes"]` calls it, its number otherwise."""
    classes = records.meta.get("classes")
    if isinstance(classes, list) and 0 <= int(label) < len(classes):
        return str(classes[int(label)])
    return str(int(label))


def _factor(differences: list[np.ndarray]) -> float | None:
    """The largest of 1, 2, 5, 10, 20, ... that keeps every difference inside half the range; at least 1."""
    largest = max((float(np.abs(d).max()) for d in differences if d.size), default=0.0)
    if not differences:
        return None
    if largest == 0 or not math.isfinite(largest):
        return 1.0
    room = 0.5 / largest
    if room <= 1:
        return 1.0
    power = 10.0 ** math.floor(math.log10(room))
    return power * max(step for step in (1, 2, 5) if step * power <= room * (1 + 1e-9))


def png(image: np.ndarray) -> str:
    """A data URI of one image [C,H,W] (or [T,C,H,W], averaged over T) in [0,1], at its own size, values clipped.

    One channel is grey, three are colour, any other number is averaged to grey.
    """
    from PIL import Image

    image = np.asarray(image, dtype=np.float32)
    while image.ndim > 3:
        image = image.mean(0)
    if image.ndim == 2:
        image = image[None]
    if image.ndim == 1:
        image = image[None, None]
    if image.shape[0] not in (1, 3):
        image = image.mean(0, keepdims=True)
    pixels = (np.nan_to_num(image).clip(0, 1) * 255).round().astype(np.uint8)
    flat = pixels[0] if pixels.shape[0] == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0))
    buffer = io.BytesIO()
    Image.fromarray(flat).save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
