"""The sparse encoding attack on one frame of one image's code (mukhoty2025, figure 2)."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stochade.attacks import SEA
from stochade.attacks.codes import attack_codes
from stochade.attacks.flips import Flips
from stochade.randomness import seed_for, untouched
from stochade.recipes.result import Reproduction, budgets_of
from stochade.recipes.views.looking import device_of
from stochade.recipes.views.pictures import enlarged
from stochade.report.document import Strip
from stochade.report.figures import Figure

EXAMPLE = torch.tensor([1.0, 1.0]), torch.tensor([-0.5, 1.0])  # code and gradient of figure 2, d = 2, k = 1


class Seen(NamedTuple):
    """The first frame of one draw, [C,H,W] each: code, gradient of the loss there, change of the attack, the largest
    change of the loss that every letter offers to first order."""

    code: Tensor
    gradient: Tensor
    change: Tensor
    gain: Tensor


def seen(model: nn.Module, image: Tensor, label: Tensor, k: float, seed: int = 0) -> Seen:
    """The attack in one step of k flips per frame, on one encoding of an image [1,C,H,W]."""
    threat = Flips(k, model.encoder.alphabet)  # type: ignore[union-attr, arg-type]
    made = attack_codes(SEA(threat), model, image, label, seed=seed)
    with untouched(model):
        model.eval()
        codes = made.codes.clone().requires_grad_()
        network = model.network
        assert isinstance(network, nn.Module)
        (gradient,) = torch.autograd.grad(F.cross_entropy(network(codes), label), codes)
    free = Flips(float("inf"), threat.alphabet).steepest(gradient, made.codes)
    frames = (made.codes, gradient, made.attacked - made.codes, gradient * free)
    return Seen(*(v[0, 0].cpu() for v in frames))


def code_pictures(r: Reproduction) -> list[Strip | Figure]:
    """For every network one test image, the first frame of its code, the gradient there, what every letter could
    gain, and the flips that the recipe's attack on codes makes at its largest budget; and figure 2's example."""
    assert r.test is not None
    attack = next(a for a in r.recipe.attack if a.norm == "flips")
    k = max(here for _, here in budgets_of(attack, r.settings))
    shown: list[Strip | Figure] = []
    for name, net in r.networks.items():
        x, y = (t.to(device_of(net.model)) for t in r.test[:1])
        one = seen(net.model, x, y, k, seed_for(0, "code pictures", name))
        low = float(net.model.encoder.alphabet[0])  # type: ignore[union-attr, index]
        images = [
            (enlarged(x[0].cpu()), "image"),
            (enlarged((one.code - low) / (1 - low)), f"code, letters {low:g} (black) to 1 (white)"),
            (enlarged(0.5 + one.gradient / (2 * _largest(one.gradient))), "gradient at the code, grey is 0"),
            (enlarged(one.gain / _largest(one.gain)), "what a change of the letter could gain"),
            (enlarged(0.5 + one.change / (2 * (1 - low))), f"{int((one.change != 0).sum())} flips, grey is none"),
            (enlarged((one.code + one.change - low) / (1 - low)), "attacked code"),
        ]
        note = f"First of {net.model.encoder.steps} frames, k = {k:g} per frame."  # type: ignore[union-attr]
        shown.append(Strip(f"A sparse encoding attack on {name}", images, note))
    return [*shown, _example()]


def _example() -> Figure:
    """The code (1, 1) with the gradient (-0.5, 1): the second letter cannot rise, so the first one falls."""
    code, gradient = EXAMPLE
    moved = code + Flips(1).steepest(gradient[None, None], code[None, None])[0, 0]
    at = [[0, 0], [0, 1], [1, 0], [1, 1]]
    data = [
        {"type": "scatter", "mode": "markers", "name": "codes", "x": [a for a, _ in at], "y": [b for _, b in at],
         "marker": {"size": 9}, "meta": {"colour": "vote"}},
        {"type": "scatter", "mode": "lines+markers", "name": "gradient", "x": [1, 1 + float(gradient[0])],
         "y": [1, 1 + float(gradient[1])], "line": {"dash": "dot"}, "meta": {"colour": "published"}},
        {"type": "scatter", "mode": "lines+markers", "name": "attack", "x": [1, float(moved[0])],
         "y": [1, float(moved[1])], "meta": {"colour": "single"}},
    ]  # fmt: skip
    rows = [
        [text, f"({v[0]:g}, {v[1]:g})"]
        for text, v in (("code", code), ("gradient", gradient), ("change", moved - code), ("attacked code", moved))
    ]
    layout = {"xaxis": {"title": {"text": "z1"}}, "yaxis": {"title": {"text": "z2"}}}
    note = "d = 2 and k = 1, as in the paper: the letter with the largest gradient may have no way to go."
    return Figure("sea-example", "Figure 2's example", note, data, layout, ["", "(z1, z2)"], rows)


def _largest(values: Tensor) -> float:
    return float(values.abs().max().clamp_min(1e-30))
