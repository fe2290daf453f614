"""Exact certificates of linear classifiers, and their training for the worst case.

With logits z = W x + b the class y loses to j where (w_y - w_j) x + b_y - b_j <= 0. The least value of that
difference over all x' with |x' - x|_p <= eps is m_j - eps |w_y - w_j|_q, 1/p + 1/q = 1 (Hoelder; attained). So
without the box the radius is min_j m_j / |w_y - w_j|_q. Inside the box [0,1] a pixel moves no farther than its room
r_i, which only helps the classifier; for each norm the cheapest change that costs m_j is known:

* linf: every pixel min(eps, r_i); l0: the pixels with the largest |d_i| r_i, wholly; l1: those with the largest |d_i|
  first; l2: min(t |d_i|, r_i) for one t (the conditions of Karush, Kuhn and Tucker).

All of it in float64, radii are exact up to rounding: these are the oracles that attacks are measured by. Multi-class
robust training minimises the cross entropy of z_j + eps |w_j - w_y|_q: each logit at its own worst, which is the
largest loss inside the ball for two classes and an upper bound for more (pallaprolu2020, section 4, which prints it
with the sign that rewards large weights).
"""

import math
from typing import NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stochade.attacks.inputs import check_images, check_labels
from stochade.attacks.threats import Ball
from stochade.certify.confidence import check_count
from stochade.errors import BudgetError, LabelsError, ModelError
from stochade.progress import progress
from stochade.randomness import forked

DUAL = {"linf": 1.0, "l2": 2.0, "l1": math.inf}
NORMS = (*DUAL, "l0")


def linear_parts(model: nn.Module) -> tuple[Tensor, Tensor]:
    """(weight [K,D], bias [K]) in float64 of a model that is one linear layer, with layers that only reshape around
    it: nn.Linear, or nn.Sequential of Flatten, Identity and one Linear, each just as its class has it.

    Raises:
        ModelError: any other model, subclasses, hooks, a layer that stands twice.
    """
    parts = list(model.modules())
    for part in parts:
        if type(part) not in (nn.Sequential, nn.Flatten, nn.Identity, nn.Linear):
            _refuse(type(part).__name__)
        if "forward" in vars(part) or part._forward_hooks or part._forward_pre_hooks:
            _refuse(f"{type(part).__name__} with hooks or a forward of its own")
        if isinstance(part, nn.Flatten) and (part.start_dim, part.end_dim) != (1, -1):
            _refuse(repr(part))
    places = [m for part in parts for m in part._modules.values() if isinstance(m, nn.Linear)]
    layers = [part for part in parts if isinstance(part, nn.Linear)]
    if len(layers) != 1 or len(places) > 1:
        _refuse(f"{max(len(layers), len(places))} linear layers")
    layer = layers[0]
    bias = torch.zeros(layer.out_features) if layer.bias is None else layer.bias
    return layer.weight.detach().double(), bias.detach().double()


def _refuse(got: str) -> NoReturn:
    raise ModelError("one nn.Linear, with nn.Flatten around it", got, "certify other models by smoothing")


def linear_radii(model: nn.Module, x: Tensor, y: Tensor, norm: str, box: bool = True) -> Tensor:
    """[N] float64: the distance of the nearest input that is classified otherwise; at every distance below it the
    class is y. 0 where the model errs (or ties) at once, inf where no input of the box is.

    Args:
        model: see `linear_parts`. x: images [N,...] in [0,1]. y: classes [N].
        norm: linf, l2, l1 or l0 (whole numbers of values). box: whether the other input must lie in [0,1] too.

    Raises:
        ModelError: a model that is not linear. BudgetError: an unknown norm, or l0 without the box.
    """
    check_images(x)
    check_labels(y, len(x))
    if norm not in NORMS:
        raise BudgetError(f"a norm out of {', '.join(NORMS)}", repr(norm))
    if norm == "l0" and not box:
        raise BudgetError("the box for l0", "box=False", "one pixel without limits changes every class")
    weight, bias = (part.to(x.device) for part in linear_parts(model))
    pixels = x.detach().flatten(1).double()
    if pixels.shape[1] != weight.shape[1]:
        raise ModelError(f"images of {weight.shape[1]} values", str(pixels.shape[1]))
    if int(y.max()) >= len(weight):
        raise LabelsError(f"labels below {len(weight)}", str(int(y.max())))
    logits = pixels @ weight.T + bias
    radii = torch.full((len(x),), torch.inf, dtype=torch.float64, device=x.device)
    for other in range(len(weight)):
        direction = weight[y] - weight[other]
        gap = logits.gather(1, y[:, None])[:, 0] - logits[:, other]
        found = _cheapest(direction, pixels, gap, norm) if box else gap / direction.norm(DUAL[norm], dim=1)
        radii = torch.where(y == other, radii, torch.minimum(radii, torch.where(gap > 0, found, 0.0)))
    return radii


def _cheapest(direction: Tensor, x: Tensor, gap: Tensor, norm: str) -> Tensor:
    """[N]: the smallest change inside the box that lowers <direction, x> by `gap`; inf where none does."""
    room = torch.where(direction > 0, x, torch.where(direction < 0, 1 - x, 0.0)).clamp_min(0)
    pull = direction.abs()
    if norm == "l0":
        gains = (pull * room).sort(1, descending=True).values.cumsum(1)
        short = (gains < gap[:, None]).sum(1)
        return torch.where(short < x.shape[1], short + 1.0, torch.inf)
    key = {"linf": room, "l1": -pull, "l2": torch.where(pull > 0, room / pull, torch.inf)}[norm]
    order = key.argsort(1)
    pull, room = pull.gather(1, order), room.gather(1, order)
    spent = (pull * room).cumsum(1)
    before = spent - pull * room  # by the pixels that were used up
    rest = {
        "linf": pull.flip(1).cumsum(1).flip(1),
        "l1": pull,
        "l2": pull.square().flip(1).cumsum(1).flip(1),
    }[norm]
    need = (gap[:, None] - before).clamp_min(0)
    part = torch.where(rest > 0, need / rest, torch.inf)  # of the pixels that are not: a height, an amount, or t
    edge = {"linf": room, "l1": room, "l2": key.gather(1, order)}[norm]
    fits = (part <= edge) & part.isfinite()
    first = fits.int().argmax(1, keepdim=True)
    height = part.gather(1, first)[:, 0]
    used = {"linf": 0 * room, "l1": room, "l2": room.square()}[norm]
    full = (used.cumsum(1) - used).gather(1, first)[:, 0]
    if norm == "l2":
        height = (full + height.square() * rest.gather(1, first)[:, 0]).sqrt()
    else:
        height = height + full
    return torch.where(fits.any(1), height, torch.inf)


def worst_logits(weight: Tensor, logits: Tensor, y: Tensor, eps: float, norm: str) -> Tensor:
    """Logits [N,K] with every other class raised by eps |w_j - w_y|_q: the largest each can be against y."""
    apart = weight[None] - weight[y][:, None]
    lengths = (
        apart.abs().amax(2) if norm == "l1" else apart.abs().sum(2) if norm == "linf" else _norm(apart)
    )  # q = inf, 1, 2
    return logits + eps * lengths


def _norm(v: Tensor) -> Tensor:
    return torch.where(v.any(2), v.square().sum(2), 1.0).sqrt() * v.any(2)  # the derivative at 0 is 0, not NaN


def train_linear(
    x: Tensor, y: Tensor, threat: Ball | None = None, *, classes: int = 0, steps: int = 500, lr: float = 0.02,
    show_progress: bool = True,
) -> nn.Sequential:  # fmt: skip
    """A linear classifier trained on its worst case inside a norm ball (None: on clean images), by Adam over all
    images at once with a rate that falls to 0. Deterministic: it starts at zero.

    Args:
        x: images [N,...] in [0,1]. y: classes [N]. threat: Linf, L2 or L1 of a budget; the box is ignored.
        classes: K; 0 takes the largest label + 1.

    Returns:
        nn.Sequential(Flatten, Linear) in evaluation mode.

    Raises:
        ImagesError, LabelsError, BudgetError: bad input, or a threat in another norm; before any compute.
    """
    check_images(x)
    check_labels(y, len(x))
    check_count(steps, "steps")
    name = "l2" if threat is None else threat.name
    if name not in DUAL:
        raise BudgetError(f"a threat in {', '.join(DUAL)}, for robust linear training", str(threat))
    eps = 0.0 if threat is None else float(threat.size)
    pixels, count = x.detach().flatten(1), max(classes, int(y.max()) + 1)
    weight = torch.zeros(count, pixels.shape[1], dtype=x.dtype, device=x.device, requires_grad=True)
    bias = torch.zeros(count, dtype=x.dtype, device=x.device, requires_grad=True)
    optimizer = torch.optim.Adam([weight, bias], lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    with progress("training a linear classifier", steps, show_progress) as tick, torch.enable_grad():
        for _ in range(steps):
            optimizer.zero_grad()
            logits = pixels @ weight.T + bias
            F.cross_entropy(worst_logits(weight, logits, y, eps, name), y).backward()
            optimizer.step()
            schedule.step()
            tick()
    with forked():  # its first weights are thrown away
        layer = nn.Linear(pixels.shape[1], count, dtype=x.dtype, device=x.device)
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    return nn.Sequential(nn.Flatten(), layer).eval()
