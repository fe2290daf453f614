"""Adversarial examples as pictures, and how far they move (kubo2019, figures 3.12, 3.13, 4.10 and 4.11)."""

import numpy as np
from torch import Tensor

from stochade.recipes.result import Reproduction
from stochade.recipes.views.crafting import crafted, predicted
from stochade.recipes.views.styles import curve
from stochade.report.document import Strip
from stochade.report.figures import Figure
from stochade.report.pictures import png

DIGITS = (1, 0, 4)  # the thesis shows these
MOST = 500  # images of the distances
SIDE = 84  # pixels: small images are shown enlarged, without smoothing


def perturbations(r: Reproduction) -> list[Strip]:
    """One strip for each network: the first images of three classes, and for every attack at its largest budget the
    perturbation and the perturbed image. Grey is no change; black and white are the whole budget."""
    assert r.test is not None
    rows = [row for digit in DIGITS for row in np.flatnonzero(r.test.labels == digit)[:1]]
    x, y = r.test[np.array(rows or [0])]
    strips = []
    for name, net in r.networks.items():
        shown = []
        for attack in r.recipe.attack:
            budget = max(attack.budgets) * r.settings.budgets
            made = crafted(net.model, attack, budget, x, y)
            said = predicted(net.model, made).tolist()
            shown.append((f"{attack.name} {max(attack.budgets):g}", budget, made, said))
        images = []
        for i, label in enumerate(y.tolist()):
            images.append((enlarged(x[i]), f"clean, {_class(r, label)}"))
            for title, budget, made, said in shown:
                images.append((enlarged(0.5 + (made[i] - x[i]) / (2 * budget)), f"perturbation, {title}"))
                images.append((enlarged(made[i]), f"perturbed, {title}: seen as {_class(r, said[i])}"))
        note = "Grey is no change, black and white the whole budget. Seen as: one draw."
        strips.append(Strip(f"Perturbations of {name}", images, note))
    return strips


def distances(r: Reproduction) -> list[Figure]:
    """The l1 distance between clean and perturbed images over the budget of the first attack, and the share of
    pixels that moved."""
    assert r.test is not None
    x, y = r.test[:MOST]
    attack = r.recipe.attack[0]
    data, rows = [], []
    for index, (name, net) in enumerate(r.networks.items()):
        points = [(0.0, 0.0, 0.0)]
        for budget in sorted(attack.budgets):
            made = crafted(net.model, attack, budget * r.settings.budgets, x, y)
            found, moved = l1(made, x), (made != x).flatten(1).double().mean(1)
            points.append((budget, float(found.mean()), 1.96 * float(found.std()) / len(found) ** 0.5))
            rows.append([f"{budget:g}", name, f"{float(found.mean()):.2f}", f"{100 * float(moved.mean()):.1f} %"])
        steps, means, half = zip(*points, strict=True)
        bars = {"type": "data", "array": list(half), "width": 3}
        data.append(curve(index, name, list(steps), list(means)) | {"error_y": bars})
    layout = {
        "xaxis": {"title": {"text": f"budget ({attack.norm}, as in the paper)"}},
        "yaxis": {"title": {"text": "l1 distance, sum over pixels"}},
    }  # fmt: skip
    note = (
        f"{attack.name}, {len(x)} images, distance summed over pixels. A pixel stays where its gradient is exactly "
        f"zero or where the range [0, 1] stops it."
    )
    columns = ["budget", "network", "l1 distance", "pixels that moved"]
    return [Figure("distances", "Distance of the perturbed images", note, data, layout, columns, rows, wide=True)]


def l1(made: Tensor, x: Tensor) -> Tensor:
    """[N]: the sum of absolute changes of every image."""
    return (made - x).abs().flatten(1).double().sum(1)


def _class(r: Reproduction, label: int) -> str:
    names = None if r.test is None else r.test.classes
    return names[label] if names else str(label)


def enlarged(image: Tensor | np.ndarray) -> str:
    """A data URI of an image [C,H,W] with every pixel repeated up to about `SIDE` pixels."""
    array = np.asarray(image)
    times = max(1, SIDE // array.shape[-1])
    return png(array.repeat(times, -2).repeat(times, -1))
