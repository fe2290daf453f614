"""Histograms of predicted class probabilities: the lab report's figure 4."""

from itertools import pairwise

import numpy as np

from stochade.recipes.result import Reproduction
from stochade.recipes.views.looking import device_of, logits_of
from stochade.report.figures import Figure

BINS = 20
MOST = 1000  # images


def predicted_probabilities(r: Reproduction) -> list[Figure]:
    """Two figures for each network, from one draw on clean test images (kaspar2024, figure 4): the probability of the
    predicted class, on all images and on those that are right; and the probabilities of all classes, beside what a
    softmax applied twice makes of the predicted class."""
    assert r.test is not None
    x, y = r.test[:MOST]
    edges = np.linspace(0, 1, BINS + 1)
    names = [f"{a:.2f}-{b:.2f}" for a, b in pairwise(edges)]
    figures = []
    for number, (name, net) in enumerate(r.networks.items()):
        logits = logits_of(net.model, x.to(device_of(net.model)), "probabilities", name)[0].cpu()
        every = logits.softmax(1)
        top, found = every.max(1)
        right = found == y
        limit = float(np.e / (np.e + every.shape[1] - 1))
        for index, (title, note, parts) in enumerate(
            (
                ("Probability of the predicted class", f"{len(y)} test images, {int(right.sum())} of them right.",
                 {"all images": top, "right ones": top[right]}),
                ("Probabilities of all classes",
                 f"Over all classes the mean is 1/{every.shape[1]} whatever the network does. A softmax of "
                 f"probabilities cannot exceed {limit:.3f}: applied twice it would make any network look unsure.",
                 {"all classes": every.flatten(), "predicted class, softmax twice": every.softmax(1).amax(1)}),
            )
        ):  # fmt: skip
            data, rows = [], []
            for series, (label, values) in enumerate(parts.items()):
                values = values.numpy()
                shares = np.histogram(values, edges)[0] / max(1, len(values))
                data.append(
                    {"type": "bar", "name": label, "x": names, "y": shares.tolist(),
                     "meta": {"colour": ("single", "vote")[series]}}
                )  # fmt: skip
                mean = f"{values.mean():.3f}" if len(values) else "none"
                rows.append([label, mean, *[f"{s:.3f}" for s in shares]])
            layout = {
                "xaxis": {"title": {"text": "probability"}}, "barmode": "group", "bargap": 0.2,
                "yaxis": {"title": {"text": "share"}, "range": [0, 1]},
            }  # fmt: skip
            figures.append(
                Figure(f"probabilities-{number}-{index}", f"{title}: {name}", note, data, layout,
                       ["of", "mean", *[f"to {e:.2f}" for e in edges[1:]]], rows)
            )  # fmt: skip
    return figures
