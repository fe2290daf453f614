"""Where adaptive dropout drops (kubo2019, section 4.7, which says it in words: mostly away from the centre)."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from stochade.nn import Standout
from stochade.randomness import reseed, seed_for, untouched
from stochade.recipes.result import Reproduction
from stochade.recipes.views.crafting import CHUNK
from stochade.recipes.views.pictures import enlarged
from stochade.report.document import Strip
from stochade.report.figures import Figure

MOST = 500  # images


@dataclass(frozen=True)
class Dropped:
    """One layer of adaptive dropout over many images: maps [h,w], means over images and channels of the probability
    to drop (`every`), of that among units that ReLU lets through (`active`; nan where there is none), and the share
    of those units (`alive`)."""

    every: np.ndarray
    active: np.ndarray
    alive: np.ndarray

    def inside(self, values: np.ndarray) -> tuple[float, float]:
        """Means over the inner half of rows and columns, and over the rest, nan left out."""
        height, width = values.shape
        inner = np.zeros((height, width), dtype=bool)
        inner[height // 4 : height - height // 4, width // 4 : width - width // 4] = True
        return _mean(values[inner]), _mean(values[~inner])


def measured(model: nn.Module, x: Tensor) -> list[Dropped]:
    """Every layer of adaptive dropout on feature maps, in the order of the model; the model stays as it was."""
    layers = [m for m in model.modules() if isinstance(m, Standout)]
    sums: dict[int, list[Tensor]] = {}

    def watcher(index: int, standout: Standout):
        def watch(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            z = inputs[0]
            drop = (1 - torch.sigmoid(standout.gate.alpha * z + standout.gate.beta)).double()
            on = (z > 0).double()
            count = torch.full_like(on[0, 0], float(z.shape[0] * z.shape[1]))
            new = [drop.sum((0, 1)), (drop * on).sum((0, 1)), on.sum((0, 1)), count]
            sums[index] = [a + b for a, b in zip(sums[index], new, strict=True)] if index in sums else new

        return watch

    handles = [layer.register_forward_pre_hook(watcher(i, layer)) for i, layer in enumerate(layers)]
    try:
        with untouched(model), torch.no_grad():
            model.eval()
            for start in range(0, len(x), CHUNK):
                reseed(seed_for(0, "view", "dropped", start))
                model(x[start : start + CHUNK])
    finally:
        for handle in handles:
            handle.remove()
    found = []
    for index in sorted(sums):
        every, active, on, count = (value.numpy() for value in sums[index])
        share = np.divide(active, on, out=np.full_like(active, np.nan), where=on > 0)
        found.append(Dropped(every / count, share, on / count))
    return found


def dropped(r: Reproduction) -> list[Figure | Strip]:
    """A strip for each network with adaptive dropout, and the means at the centre and around it."""
    assert r.test is not None
    x, _ = r.test[:MOST]
    names, centre, border, rows = [], [], [], []
    strips: list[Strip] = []
    for name, net in r.networks.items():
        images = []
        for number, layer in enumerate(measured(net.model, x)):
            for text, values in (("all", layer.every), ("active", layer.active)):
                inner, outer = layer.inside(values)
                label = f"{name} {number + 1}, {text}"
                names.append(label)
                centre.append(None if np.isnan(inner) else inner)
                border.append(None if np.isnan(outer) else outer)
                rows.append([label, f"{inner:.3f}", f"{outer:.3f}"])
                images.append((enlarged(np.nan_to_num(values, nan=0.5)[None]), f"layer {number + 1}, {text}"))
            images.append((enlarged(layer.alive[None]), f"layer {number + 1}, share of active units"))
        if images:
            note = "White is always dropped, black never; grey where no unit is active (ReLU lets none through)."
            strips.append(Strip(f"Where {name} drops", images, note))
    bars = [
        {"type": "bar", "name": text, "x": names, "y": values, "meta": {"colour": colour}}
        for text, values, colour in (("centre", centre, "single"), ("around it", border, "vote"))
    ]
    layout = {
        "yaxis": {"title": {"text": "probability to drop"}, "range": [0, 1]}, "barmode": "group", "bargap": 0.3,
    }  # fmt: skip
    note = (
        f"{len(x)} test images, means over channels. The centre is the inner half of rows and columns; active are "
        f"units that ReLU lets through."
    )
    columns = ["layer", "centre", "around it"]
    return [
        Figure("dropped", "Dropping at the centre and around it", note, bars, layout, columns, rows, True),
        *strips,
    ]


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")
