"""Decision regions: in a plane through an image, and of small networks on points in two dimensions."""

import numpy as np
import torch
from torch import Tensor, nn

from stochade.progress import progress
from stochade.randomness import forked, seed_for
from stochade.recipes.result import Reproduction
from stochade.recipes.views.looking import attack_of, device_of, draws_for, logits_of
from stochade.registry import build
from stochade.report.figures import Figure

PALETTE = (
    "#4477aa",
    "#ee6677",
    "#228833",
    "#ccbb44",
    "#66ccee",
    "#aa3377",
    "#bbbbbb",
    "#222255",
    "#ee7733",
    "#663333",
)
POINTS = {"smoke": 11, "small": 41, "paper": 61}  # along each axis
DRAWS = 10
REACH = 2.0  # lengths of the attack's change to each side
NETWORKS, IMAGES = 3, 2
TOY_STEPS = {"smoke": 20, "small": 400, "paper": 400}
TOY_POINTS = 200


def decision_regions(r: Reproduction) -> list[Figure]:
    """For the first networks and images: the class that the mean probability of several draws prefers, in the plane
    through the image that the recipe's first attack (at its largest budget) and a random direction span (the lab
    report's decision-boundary plots; it prints no numbers)."""
    assert r.test is not None
    figures, points = [], POINTS[r.scale]
    for number, (name, net) in enumerate(list(r.networks.items())[:NETWORKS]):
        model, x, y = net.model, *r.test[:64]
        x, y = x.to(device_of(model)), y.to(device_of(model))
        right = (logits_of(model, x, "regions", name)[0].argmax(1) == y).nonzero().flatten()[:IMAGES].tolist()
        for index in right:
            image, label = x[index : index + 1], y[index : index + 1]
            change = attack_of(r)(model, image, label, seed=index) - image
            length = float(change.norm())
            if length == 0:  # no gradient: any direction is as good
                change = torch.randn(image.shape, generator=torch.Generator().manual_seed(index)).to(image)
                length = float(change.norm())
            axis = np.linspace(-REACH * length, REACH * length, points)
            plane = plane_through(image, change, seed_for(0, "plane", index), axis)
            classes = _classes(model, plane, name, index).reshape(points, points)
            figures.append(_regions(r, f"regions-{number}-{index}", name, int(label), axis, classes, length))
    return figures


def plane_through(image: Tensor, change: Tensor, seed: int, axis: np.ndarray) -> Tensor:
    """[len(axis)^2, C, H, W]: the image moved along the unit vector of `change` (fast index) and along a random unit
    vector orthogonal to it (slow index), clipped to the box."""
    first = change.flatten() / change.norm()
    other = torch.randn(first.shape, generator=torch.Generator().manual_seed(seed % 2**63)).to(first)
    other -= (other @ first) * first
    other /= other.norm()
    along = torch.as_tensor(axis, dtype=image.dtype, device=image.device)
    moved = along[None, :, None] * first + along[:, None, None] * other
    return (image.flatten() + moved.flatten(0, 1)).clamp(0, 1).view(-1, *image.shape[1:])


def _classes(model: nn.Module, plane: Tensor, *purpose: object) -> np.ndarray:
    logits = logits_of(model, plane, "plane", *purpose, draws=draws_for(model, DRAWS))
    return logits.softmax(2).mean(0).argmax(1).cpu().numpy()


def _regions(
    r: Reproduction, id: str, name: str, label: int, axis: np.ndarray, classes: np.ndarray, length: float
) -> Figure:
    found = np.unique(classes).tolist()
    assert r.test is not None
    names = r.test.classes or [str(c) for c in range(r.test.num_classes)]
    size = max(r.test.num_classes, 2)
    scale = [[(c + s) / size, PALETTE[c % len(PALETTE)]] for c in range(size) for s in (0, 1)]
    text = [[names[c] for c in row] for row in classes.tolist()]
    data: list[dict] = [
        {"type": "heatmap", "x": axis.tolist(), "y": axis.tolist(), "z": classes.tolist(), "zmin": -0.5,
         "zmax": size - 0.5, "colorscale": scale, "text": text, "hovertemplate": "%{text}<extra></extra>",
         "colorbar": {"tickvals": found, "ticktext": [names[c] for c in found], "thickness": 12}},
        {"type": "scatter", "mode": "markers+text", "name": "image and attacked", "x": [0, length], "y": [0, 0],
         "text": ["image", "attacked"], "textposition": "top center", "textfont": {"color": "black"},
         "marker": {"symbol": ["circle", "x"], "size": 10, "color": "black"}, "showlegend": False},
    ]  # fmt: skip
    layout = {
        "xaxis": {"title": {"text": "along the attack (l2)"}}, "yaxis": {"title": {"text": "random direction (l2)"}},
        "height": 420,
    }  # fmt: skip
    rows = [[names[c], f"{(classes == c).mean():.3f}"] for c in found]
    note = f"True class {names[label]}. Class of the mean probability over draws; points outside the box are clipped."
    return Figure(id, f"Decision regions of {name}", note, data, layout, ["class", "share of the plane"], rows)


def toy_regions(r: Reproduction) -> list[Figure]:
    """Two moons in the unit square, learnt by a dense ReLU network and by stochastic LWTA of the same size: the class
    of one draw at every point, and for LWTA the mean probability of several."""
    x, y = toy_points()
    axis = np.linspace(0, 1, POINTS[r.scale])
    grid = torch.tensor(np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2, 1, 1), dtype=torch.float32)
    figures = []
    with progress("two moons", 2, r.show_progress) as tick:
        for number, (title, name, options) in enumerate(
            (("ReLU", "mlp", {"hidden": 64}), ("stochastic LWTA", "lwta-mlp", {"hidden": [64, 64]}))
        ):
            model = toy_network(name, options, x, y, TOY_STEPS[r.scale])
            draws = logits_of(model, grid, "toy", title, draws=draws_for(model, DRAWS)).softmax(2)[..., 1]
            told = [(", one draw" if len(draws) > 1 else "", draws[0])] + (
                [(f", mean of {len(draws)} draws", draws.mean(0))] if len(draws) > 1 else []
            )
            for part, (kind, values) in enumerate(told):
                z = values.view(len(axis), len(axis)).numpy()
                figures.append(_moons(f"toy-{number}-{part}", f"Two moons, {title}{kind}", axis, z, x, y))
            tick()
    return figures


def toy_points() -> tuple[Tensor, Tensor]:
    """[200, 2, 1, 1] in the unit square, and labels 0 and 1."""
    from sklearn.datasets import make_moons

    points, labels = (np.asarray(part) for part in make_moons(TOY_POINTS, noise=0.1, random_state=0))
    low, high = points.min(0), points.max(0)
    scaled = 0.1 + 0.8 * (points - low) / (high - low)
    return torch.tensor(scaled, dtype=torch.float32).view(-1, 2, 1, 1), torch.tensor(labels, dtype=torch.int64)


def toy_network(name: str, options: dict, x: Tensor, y: Tensor, steps: int) -> nn.Module:
    """A small network, trained on all points at once."""
    with forked(seed_for(0, "toy", name)):
        model = build(name, (2, 1, 1), 2, **options)
        optimizer = torch.optim.Adam(model.parameters(), 0.01)
        for _ in range(steps):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    return model.eval()


def _moons(id: str, title: str, axis: np.ndarray, z: np.ndarray, x: Tensor, y: Tensor) -> Figure:
    data: list[dict] = [
        {"type": "heatmap", "x": axis.tolist(), "y": axis.tolist(), "z": z.round(4).tolist(), "zmin": 0, "zmax": 1,
         "colorscale": [[0, PALETTE[0]], [0.5, "#ffffff"], [1, PALETTE[1]]], "colorbar": {"thickness": 12}}
    ]  # fmt: skip
    for label, symbol in ((0, "circle"), (1, "square")):
        points = x[y == label].flatten(1)
        data.append(
            {"type": "scatter", "mode": "markers", "name": f"class {label}", "x": points[:, 0].tolist(),
             "y": points[:, 1].tolist(), "showlegend": False,
             "marker": {"symbol": symbol, "size": 5, "color": "black" if label else "white", "line": {"width": 1}}}
        )  # fmt: skip
    sure = float((np.abs(z - 0.5) > 0.4).mean())
    rows = [["class 1", f"{(z > 0.5).mean():.3f}"], ["surer than 90 %", f"{sure:.3f}"]]
    note = "Probability of class 1; the points are the training set."
    layout = {"xaxis": {"range": [0, 1]}, "yaxis": {"range": [0, 1]}, "height": 420}
    return Figure(id, title, note, data, layout, ["where", "share of the square"], rows)
