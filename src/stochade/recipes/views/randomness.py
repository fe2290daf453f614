"""How random rate codes of a data set are, and when taking off a mean makes them less so (mukhoty2025, table 1,
figure 1 and the end of section 3.2).

A pixel x codes with randomness 2 |x| (1 - |x|). Taking off a mean m in (0, 1) lowers it exactly where m / 2 < x <
(1 + m) / 2: with a = |x - m|, x (1 - x) - a (1 - a) = (x - a) (1 - x - a), which is m (1 + m - 2 x) for x >= m and
(2 x - m) (1 - m) below. The paper's [m / 2, 1 / 2] is the part of it that does not exceed 1 / 2. Summed over pixels
that share m, the mean of x, the change is 2 (m (1 - m) - E|x - m|) on average: centring pays where the mean absolute
deviation is below the variance of a black and white pixel of that mean.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stochade import data as images_of
from stochade.attacks.flip_budgets import encoding_randomness, randomness_reduction
from stochade.data import Images
from stochade.errors import DataError
from stochade.recipes.result import Reproduction
from stochade.recipes.views.styles import curve
from stochade.report.figures import Figure

SETS = ("cifar10", "mnist", "digits")  # beside those of the scale, where they are at hand
PIECE = 500  # images
BORDER = 4  # pixels of black that the paper's random crops are taken from
CURVE = 101  # points
BINS = 40


@dataclass(frozen=True)
class Randomness:
    """What a data set's codes are, as means over images (share, deviation and bound over pixels).

    Attributes:
        mean: [C,1,1] or [C,H,W], what is taken off. size: numbers of an image.
        k1, k2, k3: randomness before and after centring, and the mean ratio of the two.
        reduced, guaranteed: share of pixels whose randomness falls, and of those in the paper's interval.
        deviation, bound: E|x - m| and the mean of m (1 - m).
    """

    mean: Tensor
    size: int
    k1: float
    k2: float
    k3: float
    reduced: float
    guaranteed: float
    deviation: float
    bound: float


def falls(x: Tensor, mean: Tensor) -> Tensor:
    """Where centring lowers the randomness of a pixel x in [0, 1]; a mean of 0 or 1 changes nothing."""
    return (mean / 2 < x) & (x < (1 + mean) / 2) & (mean > 0) & (mean < 1)


def promised(x: Tensor, mean: Tensor) -> Tensor:
    """Where the paper says that it does: x in [mean / 2, 1 / 2], for a mean above 0."""
    return (mean / 2 <= x) & (x <= 0.5) & (mean > 0)


def measured(images: Images, per: str = "channel", crops: bool = False) -> Randomness:
    """The randomness of a data set's rate codes, centred per "channel" or per "pixel".

    Args:
        crops: every image is one random crop of itself in a black border of 4 pixels, mirrored half the time, as
            the paper's released code has them; equal crops at every call.
    """
    total = sum(x.sum(0) for x in _pieces(images, crops))
    mean = torch.as_tensor(total) / len(images)
    mean = mean.mean((1, 2), keepdim=True) if per == "channel" else mean
    sums = torch.zeros(6, dtype=torch.float64)
    for x in _pieces(images, crops):
        sums += torch.stack(
            [
                encoding_randomness(x).sum(), encoding_randomness(x - mean).sum(),
                randomness_reduction(x, mean).sum(), falls(x, mean).double().sum(),
                promised(x, mean).double().sum(), (x - mean).abs().sum(),
            ]
        )  # fmt: skip
    size = int(np.prod(images.pixels.shape[1:]))
    k1, k2, k3 = (sums[:3] / len(images)).tolist()
    reduced, guaranteed, deviation = (sums[3:] / len(images) / size).tolist()
    return Randomness(mean, size, k1, k2, k3, reduced, guaranteed, deviation, float((mean * (1 - mean)).mean()))


def _pieces(images: Images, crops: bool):
    """Images in float64, a few at a time."""
    rng = np.random.default_rng(0)
    for x, _ in images.batches(PIECE):
        x = x.double()
        yield cropped(x, rng) if crops else x


def cropped(x: Tensor, rng: np.random.Generator) -> Tensor:
    """Images [N,C,H,W] moved by up to 4 pixels each way with black behind them, mirrored half the time."""
    height, width = x.shape[2:]
    wide = torch.nn.functional.pad(x, (BORDER,) * 4)
    made = []
    for image in wide:
        down, right = rng.integers(0, 2 * BORDER + 1, 2)
        part = image[:, down : down + height, right : right + width]
        made.append(part.flip(2) if rng.random() < 0.5 else part)
    return torch.stack(made)


def _sets(r: Reproduction) -> tuple[list[Images], list[str]]:
    """The training images of the scale and as many of other sets, and the names of sets that are not here."""
    assert r.train is not None
    found, missing = [r.train], []
    for name in SETS if r.scale != "smoke" else ():
        if name == r.train.name:
            continue
        try:
            images = images_of.load(name, "train", progress=r.show_progress)
        except DataError:
            missing.append(name)
            continue
        most = r.settings.train or len(images)
        found.append(images.take(most, seed=0) if most < len(images) else images)
    return found, missing


def randomness(r: Reproduction) -> list[Figure]:
    """Table 1: k1, k2 and k3 of every data set at hand, and whether centring lowers the randomness on average."""
    sets, missing = _sets(r)
    rows, names, before, after = [], [], [], []
    for images in sets:
        variants = [("channel", False), ("pixel", False)]
        if images.pixels.shape[2:] == (32, 32):
            variants.append(("pixel", True))
        for per, crops in variants:
            found = measured(images, per, crops)
            title = f"{images.note}{', cropped and mirrored' if crops else ''}"
            names.append(f"{title}, per {per}")
            before.append(found.k1 / found.size)
            after.append(found.k2 / found.size)
            means = ", ".join(f"{value:.3f}" for value in found.mean.mean((1, 2)).tolist())
            rows.append(
                [title, per, str(found.size), means, f"{found.k1:.2f}", f"{found.k2:.2f}", f"{found.k3:.3f}",
                 f"{100 * found.reduced:.1f}", f"{100 * found.guaranteed:.1f}", f"{found.deviation:.4f}",
                 f"{found.bound:.4f}"]
            )  # fmt: skip
    data = [
        {"type": "bar", "name": "k1 / d, as they are", "x": names, "y": before, "meta": {"colour": "single"}},
        {"type": "bar", "name": "k2 / d, centred", "x": names, "y": after, "meta": {"colour": "vote"}},
    ]
    columns = ["images", "centred per", "d", "mean of channels", "k1(x)", "k2(x - m)", "k3", "pixels that fall, %",
               "in [m/2, 1/2], %", "E|x - m|", "mean of m (1 - m)"]  # fmt: skip
    note = (
        f"{len(sets[0])} training images or fewer of each set. Centring lowers the randomness on average exactly "
        "where E|x - m| is below m (1 - m), both averaged over pixels; k3 is a mean of ratios and may exceed 1 "
        "where it rises."
    )
    note += f" Not at hand: {', '.join(missing)}." if missing else ""
    layout = {"barmode": "group", "yaxis": {"title": {"text": "randomness of a number"}, "rangemode": "tozero"}}
    return [Figure("randomness", "Randomness of codes", note, data, layout, columns, rows, wide=True)]


def signed_rates(r: Reproduction) -> list[Figure]:
    """Figure 1: the rates that pixels fire with before and after centring per channel, under the randomness of a
    rate."""
    assert r.train is not None
    edges = np.linspace(-1, 1, BINS + 1)
    counts, moments = np.zeros((2, BINS)), np.zeros((2, 3))
    mean = measured(r.train).mean
    for x in _pieces(r.train, False):
        for which, rates in enumerate((x.numpy(), (x - mean).numpy())):
            counts[which] += np.histogram(rates, edges)[0]
            moments[which] += [rates.sum(), (rates**2).sum(), (2 * np.abs(rates) * (1 - np.abs(rates))).sum()]
    total = counts[0].sum()
    moments /= total
    at = np.linspace(-1, 1, CURVE)
    data = [curve(0, "randomness 2|x|(1 - |x|)", at.tolist(), (2 * np.abs(at) * (1 - np.abs(at))).tolist(), "lines")]
    rows = []
    middle = ((edges[1:] + edges[:-1]) / 2).tolist()
    for which, name in enumerate(("as they are", "centred")):
        average, square, noise = moments[which]
        spread = float(np.sqrt(max(0.0, square - average**2)))
        data.append(
            {"type": "bar", "name": f"pixels, {name}", "x": middle, "y": (counts[which] / total).tolist(),
             "opacity": 0.5, "meta": {"colour": ("vote", "all")[which]}}
        )  # fmt: skip
        rows.append([name, f"{average:.4f}", f"{spread:.4f}", f"{noise:.4f}"])
    layout = {
        "barmode": "overlay", "xaxis": {"title": {"text": "rate of a pixel"}},
        "yaxis": {"title": {"text": "randomness; share of pixels"}, "rangemode": "tozero"},
    }  # fmt: skip
    note = f"Bars: {BINS} bins over [-1, 1]. Randomness is the chance that two codes of a pixel differ in a step."
    columns = ["rates", "mean", "deviation", "mean randomness"]
    return [Figure("signed-rates", f"Rates of {r.train.note}", note, data, layout, columns, rows, wide=True)]


def centring(r: Reproduction) -> list[Figure]:
    """How much randomness a pixel gains or loses by centring, for the mean of every channel, with the interval where
    it falls and the part of it that the paper gives."""
    assert r.train is not None
    mean = measured(r.train).mean.flatten()
    x = torch.linspace(0, 1, CURVE, dtype=torch.float64)[:, None]
    data, rows = [], []
    for channel, m in enumerate(mean.tolist()):
        lost = encoding_randomness(x) - encoding_randomness(x - m)
        data.append(curve(channel, f"m = {m:.3f}", x.flatten().tolist(), lost.tolist(), "lines"))
        rows.append([str(channel), f"{m:.4f}", f"({m / 2:.4f}, {(1 + m) / 2:.4f})", f"[{m / 2:.4f}, 0.5]"])
    layout = {
        "xaxis": {"title": {"text": "pixel x"}}, "yaxis": {"title": {"text": "randomness that centring takes away"}},
    }  # fmt: skip
    note = "Above zero a pixel codes less randomly once the mean is taken off."
    columns = ["channel", "mean m", "falls in", "the paper's interval"]
    return [Figure("centring", "What centring takes away", note, data, layout, columns, rows)]
