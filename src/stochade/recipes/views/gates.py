"""Gates as pictures and as histograms (kubo2019, figures 4.7, 4.8, 4.9 and B.1).

The thesis reads the pictures as gates that adapt to the image. How much they do is measured beside the histogram: the
mean difference of gate probabilities between two images of one class, and between images of different classes.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from stochade.nn.gates import InputGatedConv2d
from stochade.randomness import reseed, seed_for, untouched
from stochade.recipes.result import Reproduction
from stochade.recipes.views.crafting import CHUNK
from stochade.recipes.views.pictures import enlarged
from stochade.recipes.views.styles import curve
from stochade.report.document import Strip
from stochade.report.figures import Figure

DIGITS = (1, 9, 9)  # two classes, and two images of one of them
FILTERS = range(7, 13)  # "filter number 7 to 12 of 32", which the thesis calls five
MOST = 200  # images of the histograms
BINS = 20
GAP = 1  # pixels between the filters of a picture


@dataclass(frozen=True)
class Seen:
    """One gated layer for some images: `inputs` [N,C,H,W], `probabilities` [N,O,I,k,k], one draw of its `gates`
    (the same shape) and of its `outputs` [N,O,h,w]."""

    inputs: Tensor
    probabilities: Tensor
    gates: Tensor
    outputs: Tensor


def gated_layers(model: nn.Module) -> list[InputGatedConv2d]:
    """The convolutions with gate networks, in the order of the model's modules."""
    return [layer for layer in model.modules() if isinstance(layer, InputGatedConv2d)]


def seen_by(model: nn.Module, layer: InputGatedConv2d, x: Tensor) -> Seen:
    """What a gated layer sees and does on images, one draw, at most `CHUNK` of them; the model stays as it was."""
    met: list[Tensor] = []
    with untouched(model), torch.no_grad():
        model.eval()
        reseed(seed_for(0, "view", "gates"))
        handle = layer.register_forward_pre_hook(lambda _, inputs: met.append(inputs[0].detach()))
        try:
            model(x)
        finally:
            handle.remove()
        inputs, gates = met[0], layer.mask(met[0])
        return Seen(inputs, probabilities(layer, inputs), gates, layer.conv(inputs, gates))


def probabilities(layer: InputGatedConv2d, inputs: Tensor) -> Tensor:
    """[N,O,I,k,k]: sigmoid of the gate logits; of a factored head, the product of the two channels' own."""
    p = torch.sigmoid(layer.logits(inputs))
    shape = layer.conv.weight.shape
    if layer.head == "full":
        return p.view(-1, *shape)
    inside, outside = layer._factors(p)
    return (outside[:, :, None] * inside[:, None, :])[..., None, None].expand(-1, *shape)


def gates(r: Reproduction) -> list[Figure | Strip]:
    """For every network with gate networks: strips of gates, probabilities and activations of the first gated layer,
    and for every gated layer a histogram of probabilities with the share of weights that are on."""
    assert r.test is not None
    chosen = [int(row) for row in _rows(r.test.labels)]
    x, y = r.test[np.array(chosen)]
    shown: list[Figure | Strip] = []
    networks = {name: net.model for name, net in r.networks.items() if gated_layers(net.model)}
    shown += histograms(networks, *r.test[:MOST])
    for name, model in networks.items():
        found = seen_by(model, gated_layers(model)[0], x)
        most = found.gates.shape[1]
        filters = [f for f in FILTERS if f < most] or list(range(min(6, most)))
        note = (
            f"First input channel of filters {filters[0]} to {filters[-1]} (counted from 0). Gates: white is on. "
            f"Probabilities: blue 0, white 0.5, red 1. Outputs: after ReLU, scaled to the largest."
        )
        for i, label in enumerate(y.tolist()):
            acts = torch.relu(found.outputs[i, filters])
            images = [
                (enlarged(x[i]), "image"),
                (enlarged(tiled(found.gates[i, filters, 0])), "gates, one draw"),
                (enlarged(tinted(found.probabilities[i, filters, 0])), "their probabilities"),
                (enlarged(tiled(acts / acts.max().clamp(min=1e-9))), "outputs of the gated filters"),
            ]
            shown.append(Strip(f"First gated layer of {name}: a {label}", images, "" if i else note))
    return shown


def histograms(models: dict[str, nn.Module], x: Tensor, y: Tensor) -> list[Figure]:
    """One figure for each gated layer by its place, with a line for each network."""
    edges = np.linspace(0, 1, BINS + 1)
    centres = ((edges[:-1] + edges[1:]) / 2).tolist()
    figures = []
    for place in range(max((len(gated_layers(m)) for m in models.values()), default=0)):
        data, rows = [], []
        for index, (name, model) in enumerate(models.items()):
            layers = gated_layers(model)
            if place >= len(layers):
                continue
            share, facts = measured(model, layers[place], x, y, edges)
            data.append(curve(index, name, centres, share.tolist()))
            rows.append([name, *[f"{facts[key]:.3f}" for key in ("on", "sure", "same", "other")]])
        note = (
            f"All gates of the layer, {len(y)} test images, before the draw. The differences of the table are means "
            f"of |p - p'| between two images: where they are near 0 the gates hardly look at the image."
        )
        layout: dict = {
            "xaxis": {"title": {"text": "probability of a gate"}, "range": [0, 1]},
            "yaxis": {"title": {"text": "share of gates"}, "rangemode": "tozero"},
        }  # fmt: skip
        columns = [
            "network", "mean probability", "share below 0.1 or above 0.9", "difference, same class",
            "difference, other class",
        ]  # fmt: skip
        title = f"Probabilities of gates, gated layer {place + 1}"
        figures.append(Figure(f"gates-{place}", title, note, data, layout, columns, rows))
    return figures


def measured(
    model: nn.Module, layer: InputGatedConv2d, x: Tensor, y: Tensor, edges: np.ndarray
) -> tuple[np.ndarray, dict[str, float]]:
    """(share of gates in every bin; mean probability, share near 0 or 1, mean difference between images)."""
    counts, total, on, sure = np.zeros(len(edges) - 1), 0, 0.0, 0.0
    same: list[float] = []
    other: list[float] = []
    for start in range(0, len(x), CHUNK):
        p = seen_by(model, layer, x[start : start + CHUNK]).probabilities.flatten(1)
        labels = y[start : start + CHUNK]
        counts += np.histogram(p.numpy(), edges)[0]
        total, on = total + p.numel(), on + float(p.double().sum())
        sure += float(((p < 0.1) | (p > 0.9)).double().sum())
        for step in range(1, min(6, len(p))):  # every image with its next five
            gap = (p[step:] - p[:-step]).abs().mean(1)
            alike = labels[step:] == labels[:-step]
            same += gap[alike].tolist()
            other += gap[~alike].tolist()
    facts = {"on": on / total, "sure": sure / total, "same": _mean(same), "other": _mean(other)}
    return counts / total, facts


def _mean(values: list[float]) -> float:
    return float(np.mean(values)) if values else float("nan")


def _rows(labels: np.ndarray) -> list[int]:
    """The first images of the wanted classes, another one where a class comes twice; any where they are missing."""
    found: list[int] = []
    for digit in DIGITS:
        of_it = [int(row) for row in np.flatnonzero(labels == digit) if row not in found]
        rest = [row for row in range(len(labels)) if row not in found]
        found += (of_it or rest)[:1]
    return found


def tiled(filters: Tensor) -> np.ndarray:
    """[F,h,w] in [0,1] -> one grey picture [1,H,W], in two rows with grey gaps; an odd place stays grey."""
    parts = np.asarray(filters, dtype=np.float32)
    columns = max(1, -(-len(parts) // 2))
    height, width = parts.shape[1:]
    picture = np.full((2 * (height + GAP) - GAP, columns * (width + GAP) - GAP), 0.5, dtype=np.float32)
    for index, one in enumerate(parts):
        top, left = (index // columns) * (height + GAP), (index % columns) * (width + GAP)
        picture[top : top + height, left : left + width] = one
    return picture[None]


def tinted(filters: Tensor) -> np.ndarray:
    """[F,h,w] in [0,1] -> one picture [3,H,W]: blue for 0, white for 0.5, red for 1."""
    p = tiled(filters)[0]
    return np.stack([np.minimum(1, 2 * p), 1 - np.abs(2 * p - 1), np.minimum(1, 2 - 2 * p)])
