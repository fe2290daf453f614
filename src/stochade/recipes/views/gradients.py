"""Histograms and variances of the gradient of the loss with respect to the input (kubo2019, figures 4.16 and 4.20).

The thesis reads a large variance as protection. FGSM looks at signs only, so what protects is that the sign differs
from draw to draw; the cosine between two draws, which the thesis does not give, says how much it does.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stochade.recipes.result import Reproduction
from stochade.recipes.views.crafting import input_gradients
from stochade.recipes.views.styles import curve
from stochade.report.figures import Figure

MOST = 500  # images
BINS = 41


def gradients(r: Reproduction) -> list[Figure]:
    """A histogram with one line for each network, and a bar of the standard deviation for each."""
    assert r.test is not None
    x, y = r.test[:MOST]
    return figures_of({name: net.model for name, net in r.networks.items()}, x, y)


def figures_of(models: dict[str, nn.Module], x: Tensor, y: Tensor) -> list[Figure]:
    """The same for models that are no rows of the recipe."""
    found = {name: measured(model, x, y) for name, model in models.items()}
    edges = _edges([values for values, _ in found.values()])
    centres = ((edges[:-1] + edges[1:]) / 2).tolist()
    data, rows = [], []
    for index, (name, (values, facts)) in enumerate(found.items()):
        share = np.histogram(values.clip(edges[0], edges[-1]), edges)[0] / len(values)
        data.append(curve(index, name, centres, [s or None for s in share.tolist()]))
        rows.append([name, *[f"{facts[key]:.3g}" for key in ("mean", "deviation", "zeros", "cosine")]])
    columns = ["network", "mean", "standard deviation", "share exactly zero", "cosine between two draws"]
    note = (
        f"Every pixel of {len(y)} test images, gradient of each image's own cross-entropy, one draw. Values beyond "
        f"the axis are counted in its last bins."
    )
    layout = {
        "xaxis": {"title": {"text": "gradient of the loss with respect to a pixel"}},
        "yaxis": {"title": {"text": "share of pixels"}, "type": "log"},
    }  # fmt: skip
    names = list(found)
    spread = [found[name][1]["deviation"] for name in names]
    bars = [{"type": "bar", "x": names, "y": spread, "name": "standard deviation", "meta": {"colour": "single"}}]
    sizes = {"yaxis": {"title": {"text": "standard deviation"}}, "bargap": 0.5}
    told = "Where draws disagree (cosine near 0) a large gradient misleads the attack; it makes no network safe."
    return [
        Figure("gradients", "Gradients of the loss with respect to the input", note, data, layout, columns, rows),
        Figure("gradient-spread", "Spread of the gradients", told, bars, sizes, columns[:1] + columns[2:3],
               [[row[0], row[2]] for row in rows]),
    ]  # fmt: skip


def measured(model: nn.Module, x: Tensor, y: Tensor) -> tuple[np.ndarray, dict[str, float]]:
    """(all values of one draw, flat; mean, standard deviation, share of exact zeros, cosine between two draws)."""
    one = input_gradients(model, x, y, "first")
    other = input_gradients(model, x, y, "second")
    cosine = F.cosine_similarity(one.flatten(1), other.flatten(1))
    known = (one.flatten(1).abs().amax(1) > 0) & (other.flatten(1).abs().amax(1) > 0)
    facts = {
        "mean": float(one.double().mean()),
        "deviation": float(one.double().std(unbiased=False)),
        "zeros": float((one == 0).double().mean()),
        "cosine": float(cosine[known].mean()) if bool(known.any()) else float("nan"),
    }
    return torch.flatten(one).numpy(), facts


def _edges(found: list[np.ndarray]) -> np.ndarray:
    """Shared edges with zero in the middle of a bin; as wide as three deviations of the widest."""
    reach = 3 * max((float(v.std()) for v in found), default=0.0)
    return np.linspace(-reach, reach, BINS + 1) if reach > 0 else np.linspace(-1, 1, BINS + 1)
