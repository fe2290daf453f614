"""Loss landscapes around an image: heat maps, surfaces, and the section along the gradient."""

import numpy as np
import torch
from torch import Tensor, nn

from stochade.attacks import Backprop, cross_entropy
from stochade.progress import progress
from stochade.randomness import reseed, seed_for, untouched
from stochade.recipes.result import Reproduction, budgets_of
from stochade.recipes.views.looking import device_of, logits_of
from stochade.report.figures import Figure

POINTS = {"smoke": 13, "small": 61, "paper": 101}
SECTION = {"smoke": 61, "small": 401, "paper": 1001}
_COLOURS, _DASHES = ("single", "vote", "all", "claimed"), ("solid", "dash", "dot", "dashdot")


def loss_landscape(r: Reproduction) -> list[Figure]:
    """The cross-entropy around one test image that all networks get right (if there is one), moved along the sign of
    the network's own gradient and along random signs, up to the largest budget of the recipe's first attack in each:
    a heat map and a surface for each network, and the sections along the gradient in one plot with their roughness
    (pallaprolu2020, section 8; Xiao et al. 2020, figure 3). One draw of random networks."""
    assert r.test is not None
    budget = max(here for _, here in budgets_of(r.recipe.attack[0], r.settings))
    index, figures, data, rows = _shared(r), [], [], []
    axis = np.linspace(-budget, budget, POINTS[r.scale])
    fine = np.linspace(-budget, budget, SECTION[r.scale])
    with progress("loss landscapes", len(r.networks), r.show_progress) as tick:
        for number, (name, net) in enumerate(r.networks.items()):
            device = device_of(net.model)
            x, y = (t.to(device) for t in r.test[index : index + 1])
            first, other = directions(net.model, x, y)
            z = losses(net.model, x, y, first, other, axis, axis)
            figures += _maps(number, name, axis, z)
            line = losses(net.model, x, y, first, other, fine, np.zeros(1))[0]
            data.append(
                {"type": "scatter", "mode": "lines", "name": name, "x": fine.tolist(), "y": line.tolist(),
                 "line": {"width": 2, "dash": _DASHES[number % 4]}, "meta": {"colour": _COLOURS[number % 4]}}
            )  # fmt: skip
            rows.append([name, f"{roughness(line):.2f}", f"{line.max() - line.min():.3g}"])
            tick()
    note = (
        f"{SECTION[r.scale]} points along the sign of each network's own gradient. Roughness: the way the loss goes "
        "up and down over its range, 1 for a monotone curve."
    )
    layout = {"xaxis": {"title": {"text": "change of every pixel"}}, "yaxis": {"title": {"text": "cross-entropy"}}}
    columns = ["network", "roughness", "range"]
    return [Figure("section", "Loss along the gradient", note, data, layout, columns, rows, wide=True), *figures]


def _shared(r: Reproduction, looked: int = 64) -> int:
    """The first test image that all networks get right, else the first one."""
    assert r.test is not None
    x, y = r.test[:looked]
    right = torch.ones(len(y), dtype=torch.bool)
    for name, net in r.networks.items():
        right &= logits_of(net.model, x.to(device_of(net.model)), "landscape", name)[0].argmax(1).cpu() == y
    return int(right.long().argmax())


def directions(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Signs of the network's own gradient of the cross-entropy, and random signs."""
    with untouched(model):
        reseed(seed_for(0, "view", "directions"))
        first = Backprop()(model, x, y, cross_entropy).gradient.sign()
    generator = torch.Generator().manual_seed(0)
    other = torch.randint(0, 2, x.shape, generator=generator).to(x) * 2 - 1
    return first, other


def losses(
    model: nn.Module, x: Tensor, y: Tensor, first: Tensor, other: Tensor, along: np.ndarray, across: np.ndarray
) -> np.ndarray:
    """[len(across), len(along)] cross-entropy at x + a first + b other, not clipped to the box."""
    a = torch.as_tensor(along, dtype=x.dtype, device=x.device).view(1, -1, 1, 1, 1)
    b = torch.as_tensor(across, dtype=x.dtype, device=x.device).view(-1, 1, 1, 1, 1)
    points = (x + a * first + b * other).flatten(0, 1)
    logits = logits_of(model, points, "losses")[0]
    return cross_entropy(logits, y.expand(len(points))).view(len(across), len(along)).cpu().double().numpy()


def roughness(line: np.ndarray) -> float:
    """Total variation over range: 1 for a monotone curve, more the oftener it turns or jumps back."""
    spread = float(line.max() - line.min())
    return float(np.abs(np.diff(line)).sum()) / spread if spread > 0 else 1.0


def _maps(number: int, name: str, axis: np.ndarray, z: np.ndarray) -> list[Figure]:
    at = {"x": axis.tolist(), "y": axis.tolist(), "z": z.round(5).tolist(), "colorscale": "Viridis"}
    layout = {
        "xaxis": {"title": {"text": "along the gradient's sign"}}, "yaxis": {"title": {"text": "along random signs"}},
        "height": 420,
        "scene": {
            "xaxis": {"title": {"text": "gradient"}}, "yaxis": {"title": {"text": "random"}},
            "zaxis": {"title": {"text": "loss"}}, "camera": {"eye": {"x": 2.1, "y": -2.1, "z": 1.3}},
        },
    }  # fmt: skip
    rows = [["lowest", f"{z.min():.4g}"], ["at the image", f"{z[len(axis) // 2, len(axis) // 2]:.4g}"],
            ["highest", f"{z.max():.4g}"]]  # fmt: skip
    columns = ["cross-entropy", "value"]
    heat = {"type": "heatmap", **at, "colorbar": {"thickness": 12}}
    surface = {"type": "surface", **at, "showscale": False}
    return [
        Figure(f"landscape-{number}", f"Loss, {name}", "Cross-entropy.", [heat], layout, columns, rows),
        Figure(f"surface-{number}", f"Loss as a surface, {name}", "Drag to turn.", [surface], layout, columns, rows),
    ]
