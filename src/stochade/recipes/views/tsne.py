"""Clean and perturbed images in two dimensions (kubo2019, figure 4.12).

The thesis judges by eye whether digits stay in clusters. The share of points whose nearest neighbours in the plane
have their class says it in a number; it tells of the images, not of what any network makes of them.
"""

import numpy as np
from torch import Tensor

from stochade.progress import progress
from stochade.recipes.result import Reproduction
from stochade.recipes.views.crafting import crafted
from stochade.report.figures import Figure

MOST = {"smoke": 40, "small": 1000, "paper": 10_000}
NEIGHBOURS = 5
_TONES = (  # ten tones that stand out on light and dark pages; the digits are written too
    "#4477aa", "#ee6677", "#228833", "#b8a13a", "#66ccee", "#aa3377", "#8a8a8a", "#ee7733", "#7b61c4", "#009988",
)  # fmt: skip


def tsne(r: Reproduction) -> list[Figure]:
    """One figure for the clean images, and one for each network's examples at the largest budget of the first
    attack."""
    assert r.test is not None
    attack = r.recipe.attack[0]
    budget = max(attack.budgets)
    x, y = r.test[: MOST[r.scale]]
    figures = [_figure("clean", "Clean images", x, y, r)]
    for number, (name, net) in enumerate(r.networks.items()):
        made = crafted(net.model, attack, budget * r.settings.budgets, x, y)
        title = f"Examples of {name}, {attack.name} {budget:g}"
        figures.append(_figure(str(number), title, made, y, r))
    return figures


def _figure(key: str, title: str, x: Tensor, y: Tensor, r: Reproduction) -> Figure:
    with progress(f"t-SNE: {title}", shown=r.show_progress):
        points = embedded(x.flatten(1).numpy())
    labels = y.numpy()
    data = []
    for label in np.unique(labels):
        chosen = points[labels == label]
        text = r.test.classes[label] if r.test is not None and r.test.classes else str(label)
        data.append({
            "type": "scatter", "mode": "text", "name": text, "x": chosen[:, 0].round(2).tolist(),
            "y": chosen[:, 1].round(2).tolist(), "text": [text] * len(chosen), "hoverinfo": "text",
            "textfont": {"color": _TONES[int(label) % len(_TONES)], "size": 11},
        })  # fmt: skip
    flat, plane = agreement(x.flatten(1).numpy(), labels), agreement(points, labels)
    note = (
        f"{len(labels)} images, their pixels by t-SNE. {100 * plane:.1f} % of the {NEIGHBOURS} nearest neighbours "
        f"in the plane have the same class, {100 * flat:.1f} % of those in the space of pixels."
    )
    layout = {"xaxis": {"showticklabels": False}, "yaxis": {"showticklabels": False}, "height": 460}
    columns = ["neighbours of the same class", "share"]
    rows = [["in the plane", f"{plane:.3f}"], ["in the space of pixels", f"{flat:.3f}"]]
    return Figure(f"tsne-{key}", title, note, data, layout, columns, rows)


def embedded(points: np.ndarray) -> np.ndarray:
    """[N, 2] by t-SNE from the first two principal components, with a seed of its own."""
    from sklearn.manifold import TSNE

    perplexity = max(1.0, min(30.0, (len(points) - 1) / 3))
    return TSNE(2, perplexity=perplexity, init="pca", random_state=0).fit_transform(points.astype(np.float64))


def agreement(points: np.ndarray, labels: np.ndarray, neighbours: int = NEIGHBOURS) -> float:
    """The share of the nearest neighbours of all points that have the point's class."""
    from sklearn.neighbors import NearestNeighbors

    count = min(neighbours, len(points) - 1)
    near = NearestNeighbors(n_neighbors=count).fit(points).kneighbors(return_distance=False)
    return float((labels[near] == labels[:, None]).mean())
