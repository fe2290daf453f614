"""Activation patterns of k-winners-take-all: both theorems of Xiao et al. (2020) measured, and trained networks."""

import math

import numpy as np
import torch
from scipy.stats import multivariate_normal, norm
from torch import Tensor, nn

from stochade.nn import KWTA
from stochade.progress import progress
from stochade.randomness import reseed, seed_for, untouched
from stochade.recipes.result import Reproduction, budgets_of
from stochade.recipes.views.looking import device_of
from stochade.report.figures import Figure

RATIO = 0.1  # gamma of the theorems' layer
WINNERS = 10  # k, where it is held fixed
DIMENSIONS = 100
WIDTHS = {"smoke": (100, 1000), "small": (100, 1000, 10_000), "paper": (100, 1000, 10_000, 100_000)}
TRIALS = {"smoke": 20, "small": 200, "paper": 1000}
BETAS = (1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
PAIRS = 16  # images whose patterns are compared with one another
IMAGES = 100
_COLOURS, _MARKS = ("single", "vote", "all", "claimed"), ("circle", "square", "triangle-up", "diamond")


def activation_patterns(r: Reproduction) -> list[Figure]:
    """Theorem 1 (a change of relative squared perpendicular length beta changes the pattern of a wide layer), theorem
    2 (patterns of different inputs are disjoint), and how much of the trained networks' patterns a perturbation
    changes (pallaprolu2020, section 8)."""
    return [_first_theorem(r), _second_theorem(r), _trained(r)]


def winners_of(responses: Tensor, k: int) -> Tensor:
    """[..., l] bool: the k largest responses."""
    chosen = torch.zeros_like(responses, dtype=torch.bool)
    return chosen.scatter_(-1, responses.topk(k, dim=-1).indices, True)


def expected_overlap(cosine: float, ratio: float) -> float:
    """The share of winners that two inputs of that cosine have in common, in a layer of independent Gaussian weights
    without bias as its width grows with the share of winners fixed: P(both above the quantile) / ratio."""
    threshold = float(norm.isf(ratio))
    if cosine >= 1 - 1e-12:
        return 1.0
    both = multivariate_normal(np.zeros(2), np.array([[1, cosine], [cosine, 1]])).cdf([-threshold, -threshold])  # type: ignore[arg-type]
    return float(both) / ratio


def changed_share(width: int, beta: float, trials: int, generator: torch.Generator) -> tuple[float, float, float]:
    """Over random layers and inputs: the share of layers whose k-WTA pattern changes, the mean share of winners that
    are replaced, and the share of layers whose ReLU pattern (units above 0) changes.

    Only the responses matter: those to x are standard normal, and those to x' = x + sqrt(beta) |x| u with u
    orthogonal to x are theirs plus sqrt(beta) times independent ones.
    """
    k, changed, replaced, relu = max(1, math.floor(RATIO * width + 1e-9)), 0, 0.0, 0
    for _ in range(trials):
        before = torch.randn(width, generator=generator, dtype=torch.float64)
        after = before + math.sqrt(beta) * torch.randn(width, generator=generator, dtype=torch.float64)
        lost = int((winners_of(before, k) & ~winners_of(after, k)).sum())
        changed += lost > 0
        replaced += lost / k
        relu += bool(((before > 0) != (after > 0)).any())
    return changed / trials, replaced / trials, relu / trials


def _first_theorem(r: Reproduction) -> Figure:
    data, rows, widths = [], [], WIDTHS[r.scale]
    generator = torch.Generator().manual_seed(0)
    with progress("theorem 1", len(widths) * len(BETAS), r.show_progress) as tick:
        for index, width in enumerate(widths):
            found = []
            for beta in BETAS:
                found.append(changed_share(width, beta, TRIALS[r.scale], generator))
                tick()
            for kind, column, dash in (("k-WTA", 0, "solid"), ("ReLU", 2, "dot")):
                data.append(
                    {"type": "scatter", "mode": "lines+markers", "name": f"{kind}, {width} units", "x": list(BETAS),
                     "y": [f[column] for f in found], "line": {"width": 2, "dash": dash},
                     "marker": {"symbol": _MARKS[index], "size": 8}, "meta": {"colour": _COLOURS[index]}}
                )  # fmt: skip
            for beta, (pattern, winners, relu) in zip(BETAS, found, strict=True):
                limit = 1 - expected_overlap((1 + beta) ** -0.5, RATIO)
                shares = [f"{pattern:.3f}", f"{winners:.4f}", f"{limit:.4f}", f"{relu:.3f}"]
                rows.append([f"{beta:g}", str(width), *shares])
    note = (
        f"Random layers, {100 * RATIO:g} % winners, {TRIALS[r.scale]} each. The theorem holds, and it holds for ReLU "
        "too: what k-WTA adds is that its output jumps where the pattern changes."
    )
    layout = {
        "xaxis": {"title": {"text": "beta"}, "type": "log"},
        "yaxis": {"title": {"text": "patterns that change"}, "range": [-0.03, 1.03], "tickformat": ".0%"},
    }
    columns = ["beta", "units", "k-WTA pattern changes", "winners replaced", "as width grows", "ReLU pattern changes"]
    return Figure("theorem-1", "Theorem 1 measured", note, data, layout, columns, rows, wide=True)


def overlaps(images: Tensor, width: int, k: int, generator: torch.Generator) -> Tensor:
    """[pairs] the share of k winners that two images have in common in one random layer of that width."""
    weights = torch.randn(images.shape[1], width, generator=generator, dtype=images.dtype)
    patterns = winners_of(images @ weights, k).to(images.dtype)
    first, second = torch.triu_indices(len(images), len(images), 1)
    return (patterns @ patterns.T)[first, second] / k


def _second_theorem(r: Reproduction) -> Figure:
    assert r.test is not None
    x = r.test[:PAIRS][0].flatten(1).double()
    directions = x / x.norm(dim=1, keepdim=True)
    first, second = torch.triu_indices(len(x), len(x), 1)
    limit = float(np.mean([expected_overlap(float(c), RATIO) for c in (directions @ directions.T)[first, second]]))
    generator = torch.Generator().manual_seed(0)
    widths, data, rows = WIDTHS[r.scale], [], []
    fixed = (f"{100 * RATIO:g} % winners", lambda width: math.floor(RATIO * width + 1e-9))
    few = (f"{WINNERS} winners", lambda width: WINNERS)
    for index, (name, count) in enumerate((fixed, few)):
        found = [overlaps(directions, width, count(width), generator) for width in widths]
        data.append(
            {"type": "scatter", "mode": "lines+markers", "name": name, "x": list(widths),
             "y": [float(f.mean()) for f in found], "marker": {"symbol": _MARKS[index], "size": 8},
             "line": {"width": 2}, "meta": {"colour": _COLOURS[index]}}
        )  # fmt: skip
        rows += [
            [name, str(width), f"{float(f.mean()):.3f}", f"{float((f == 0).double().mean()):.3f}"]
            for width, f in zip(widths, found, strict=True)
        ]
    data.append(
        {"type": "scatter", "mode": "lines", "name": f"limit for {fixed[0]}", "x": [widths[0], widths[-1]],
         "y": [limit, limit], "line": {"dash": "dash", "width": 2}, "meta": {"colour": "published"}}
    )  # fmt: skip
    rows.append([f"limit for {fixed[0]}", "", f"{limit:.3f}", "0.000"])
    note = (
        f"{len(x)} test images through one random layer, all pairs. With a fixed share of winners patterns do not "
        "become disjoint as the layer widens: their overlap tends to a constant that the angle of two images fixes. "
        "They thin out only where the number of winners stays fixed."
    )
    layout = {
        "xaxis": {"title": {"text": "units"}, "type": "log"},
        "yaxis": {"title": {"text": "winners in common"}, "range": [-0.03, 1.03], "tickformat": ".0%"},
    }
    columns = ["layer", "units", "winners in common", "pairs with none"]
    return Figure("theorem-2", "Theorem 2 measured", note, data, layout, columns, rows)


def pattern_change(model: nn.Module, x: Tensor, moved: Tensor) -> float:
    """The mean share of active units of x (outputs of ReLU and k-WTA layers above 0) that are inactive at `moved`."""
    kept: list[Tensor] = []
    layers = [m for m in model.modules() if isinstance(m, nn.ReLU | KWTA)]
    handles = [m.register_forward_hook(lambda _m, _x, out: kept.append((out > 0).flatten(1))) for m in layers]
    try:
        with untouched(model), torch.no_grad():
            for points in (x, moved):
                reseed(seed_for(0, "view", "patterns"))
                model(points)
    finally:
        for handle in handles:
            handle.remove()
    before, after = torch.cat(kept[: len(kept) // 2], 1), torch.cat(kept[len(kept) // 2 :], 1)
    return float(((before & ~after).sum(1) / before.sum(1).clamp(min=1)).mean())


def _trained(r: Reproduction) -> Figure:
    assert r.test is not None
    budget = max(here for _, here in budgets_of(r.recipe.attack[0], r.settings))
    sizes = [budget * part for part in (0.05, 0.1, 0.25, 0.5, 1.0)]
    data, rows = [], []
    x = r.test[:IMAGES][0]
    signs = torch.randint(0, 2, x.shape, generator=torch.Generator().manual_seed(0)).to(x) * 2 - 1
    for index, (name, net) in enumerate(r.networks.items()):
        device = device_of(net.model)
        found = [pattern_change(net.model, x.to(device), (x + size * signs).clamp(0, 1).to(device)) for size in sizes]
        data.append(
            {"type": "scatter", "mode": "lines+markers", "name": name, "x": sizes, "y": found, "line": {"width": 2},
             "marker": {"symbol": _MARKS[index % 4], "size": 8}, "meta": {"colour": _COLOURS[index % 4]}}
        )  # fmt: skip
        rows += [[name, f"{size:.3g}", f"{share:.3f}"] for size, share in zip(sizes, found, strict=True)]
    layout = {
        "xaxis": {"title": {"text": "random change of every pixel (linf)"}},
        "yaxis": {"title": {"text": "active units lost"}, "tickformat": ".0%", "rangemode": "tozero"},
    }
    note = f"Outputs above 0 of all ReLU and k-WTA layers, {len(x)} test images."
    columns = ["network", "change", "active units lost"]
    return Figure("patterns", "Patterns of the trained networks", note, data, layout, columns, rows)
