"""Exact verification of small binarised networks: no allowed image changes the class, or here is one that does.

Bounds first (`intervals`), which decide most units and often everything; what they leave open becomes a mixed-integer
program for each class that could win (`exact_encoding`, `exact_milp`).

"robust" covers two networks at once: the one of real arithmetic with the stored parameters, and the one that a
computer evaluates in the images' own precision, whatever the order of its sums and with or without fused operations
(reduced-precision modes such as TF32, and convolutions by transforms, are not covered). Sums of +-1 are integers and
exact in both. Where rounding or underflow could turn a sign, both signs are allowed (numbers must underflow
gradually, as they do unless `torch.set_flush_denormal` says otherwise); networks whose sums could come near the
largest number of the format are refused. It rests on HiGHS being right about
infeasibility, with margins far above its tolerances. "broken" comes with an image that the model itself was run on.
Whatever is neither is "unknown", with the reason.

The literature's way: Tjeng, Xiao, Tedrake 2019 (MILP with bounds); Narodytska et al. 2018 (binarised networks).
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from stochade.attacks.inputs import check_inputs, check_model, probe
from stochade.attacks.threats import L0, Linf, Threat
from stochade.certify.exact_encoding import Demand, Encoding, row_of
from stochade.certify.exact_layers import Op, read
from stochade.certify.exact_milp import Programs
from stochade.certify.exact_trace import check_layers, unchanged
from stochade.certify.intervals import State, bounds
from stochade.errors import BudgetError, ImagesError, ModelError, ThreatError
from stochade.randomness import reseed, untouched

WIDENED = 2.0**-22  # of every linf box: what float32 rounding may add when an attack computes x0 +- eps

Status = Literal["robust", "broken", "unknown"]


@dataclass(frozen=True)
class Verdict:
    """What is proven about one image.

    Attributes:
        status: "robust", "broken" or "unknown". reason: of "unknown": "time limit" or "tolerance" (the solver's
            example is not one for the model, and no other was found).
        example: [...] an allowed image that the model gets wrong, for "broken".
        seconds: wall time. units: of all steps and ReLUs. open: those that intervals could not fix.
        solved: whether a mixed-integer program was needed.
    """

    status: Status
    seconds: float
    reason: str = ""
    example: Tensor | None = None
    units: int = 0
    open: int = 0
    solved: bool = False

    @property
    def fixed(self) -> int:
        """Units that intervals fixed."""
        return self.units - self.open


@dataclass(frozen=True)
class LargestRobust:
    """Largest budget that is proven and smallest that is broken, of those asked; None: none."""

    robust: float | None
    broken: float | None
    example: Tensor | None = None


@torch.no_grad()
def verify(
    model: nn.Module, x: Tensor, y: Tensor, threat: Threat, seconds: float = 60.0,
    attacks: Sequence[Callable[[nn.Module, Tensor, Tensor], Tensor]] = (),
    tell: Callable[[Verdict], None] = lambda verdict: None,
) -> list[Verdict]:  # fmt: skip
    """A verdict for every image. Deterministic; the model is left as it was.

    Args:
        model: a deterministic network of the layers that `exact_layers` knows, on the CPU.
        x: images [N,...] in [0,1], float32 or float64. y: classes [N].
        threat: Linf(eps), or L0(k) per value or per pixel.
        seconds: time for each image, without attacks; 0 gives "unknown".
        attacks: tried first, on all images at once, to save time where an example is easy to find.
        tell: told each verdict as it comes, in the order of the images.

    Raises:
        ModelError: a network that is random, holds layers or calls that are not known, changes values in place, or
            gives other logits than it was read to give, on these images or on some more. ThreatError: another threat.
        BudgetError: a time that is negative or no number.
    """
    _check_asked(model, x, y, threat, seconds)
    found = []
    with untouched(model):
        ops, unit = _read(model, x, y, threat)
        tried = _tried(model, x, y, threat, attacks) if seconds else {}
        for i in range(len(x)):
            found.append(tried.get(i) or _one(model, ops, x[i : i + 1], int(y[i]), threat, float(seconds), unit))
            tell(found[-1])
    return found


def _check_asked(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, seconds: float) -> None:
    check_inputs(x, y)
    if type(threat) not in (Linf, L0):
        raise ThreatError("Linf(eps) or L0(k)", repr(threat), "other norms have no exact verification here")
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds >= 0:
        raise BudgetError("seconds >= 0 for each image", repr(seconds))
    if x.dtype not in (torch.float32, torch.float64) or x.device.type != "cpu":
        raise ImagesError("float32 or float64 images on the CPU", f"{x.dtype} on {x.device.type}")
    if not isinstance(model, nn.Module):
        raise ModelError("an nn.Module, whose layers can be read", type(model).__name__)
    check_model(model)


def _read(model: nn.Module, x: Tensor, y: Tensor, threat: Threat) -> tuple[list[Op], float]:
    """(the network's operations, the rounding unit of the images), held against the model on these images and some
    of the threat; inside `untouched`."""
    unit = torch.finfo(x.dtype).eps / 2
    check_layers(model)
    probe(model, x[:2].clone(), y, probabilities_allowed=True)
    with unchanged(model):
        ops = read(model, tuple(x.shape[1:]), x.dtype)
        for image in (*x, *_points(x, threat)):
            _check_reading(model, ops, image[None], unit)
    return ops, unit


@torch.no_grad()
def largest_robust(
    model: nn.Module, x: Tensor, y: Tensor, budgets: Sequence[float] | None = None,
    threat: Callable[[float], Threat] = Linf, seconds: float = 60.0,
) -> list[LargestRobust]:  # fmt: skip
    """Bisection over rising budgets: log2 of their number plus one verdicts for each image at most, of a network that
    is read once. Raises as `verify`.

    Args:
        budgets: rising; None: 1 to 128 grey levels of 255. threat: from a budget.
        seconds: for each verdict.
    """
    grid = [level / 255 for level in range(1, 129)] if budgets is None else [float(b) for b in budgets]
    if not grid or any(a >= b for a, b in pairwise(grid)):
        raise BudgetError("rising budgets, at least one", repr(budgets))
    _check_asked(model, x, y, threat(grid[-1]), seconds)
    found = []
    with untouched(model):
        ops, unit = _read(model, x, y, threat(grid[-1]))
        for i in range(len(x)):
            proven, open_end, broken, example = -1, len(grid), len(grid), None
            while open_end - proven > 1:
                middle = (proven + open_end) // 2
                verdict = _one(model, ops, x[i : i + 1], int(y[i]), threat(grid[middle]), float(seconds), unit)
                if verdict.status == "robust":
                    proven = middle
                else:
                    open_end = middle
                    if verdict.status == "broken":
                        broken, example = middle, verdict.example
            least = grid[broken] if broken < len(grid) else None
            found.append(LargestRobust(grid[proven] if proven >= 0 else None, least, example))
    return found


def _encoding(x: Tensor, threat: Threat | None, unit: float) -> Encoding:
    """What each pixel may become. A linf box is widened by `WIDENED`, so that it holds what attacks call allowed."""
    pixels, tiny = x[0].double().flatten().numpy(), torch.finfo(x.dtype).tiny
    groups = np.arange(len(pixels))
    if isinstance(threat, L0):
        if threat.per == "pixel" and x.dim() == 4:
            groups = groups % math.prod(x.shape[2:])
        low, high = np.minimum(pixels, 0.0), np.maximum(pixels, 1.0)
        budget = int(min(threat.size, len(pixels)))
        return Encoding(pixels, low, high, budget if budget < len(np.unique(groups)) else None, groups, unit, tiny)
    if threat is None:
        return Encoding(pixels, pixels, pixels, None, groups, unit, tiny)
    reach = min(threat.size, 1.0) + WIDENED
    low, high = np.clip(pixels - reach, 0.0, 1.0), np.clip(pixels + reach, 0.0, 1.0)
    return Encoding(pixels, np.minimum(low, pixels), np.maximum(high, pixels), None, groups, unit, tiny)


def _points(x: Tensor, threat: Threat) -> Tensor:
    """16 images of the threat, half of them corners, around the first images, and 4 anywhere, by a fixed seed."""
    generator = torch.Generator().manual_seed(1)
    around = x[torch.arange(16) % len(x)]
    moves = 2 * torch.rand(around.shape, generator=generator, dtype=x.dtype) - 1
    moves[::2] = moves[::2].sign()
    if isinstance(threat, L0):
        groups = around[:, :1] if threat.per == "pixel" and x.dim() == 4 else around
        ranks = torch.rand(groups.shape, generator=generator).flatten(1).argsort(1).argsort(1).view(groups.shape)
        inside = torch.where(ranks < threat.size, (moves + 1) / 2, around)
    else:
        inside = around + threat.size * moves
    anywhere = torch.rand((4, *x.shape[1:]), generator=generator, dtype=x.dtype)
    return torch.cat([threat.project(inside, around), anywhere])


def _check_reading(model: nn.Module, ops: list[Op], x: Tensor, unit: float) -> None:
    """The model repeats itself under other seeds, leaves its input alone, and gives the logits of the network as it
    was read, within what rounding may do to its signs and sums."""
    reseed(1)
    given = _logits(model, x)
    reseed(2)
    if not torch.equal(given, _logits(model, x)):
        raise ModelError("a deterministic network", "other logits in a second forward", "certify it by smoothing")
    logits = _encoding(x, None, unit).run(ops, tuple(x.shape[1:]))
    low, high = bounds(logits)
    numbers = given.double().numpy()
    room = logits.error + 1e-9 * (1 + np.abs(numbers))
    if numbers.shape != low.shape or not ((numbers >= low - room) & (numbers <= high + room)).all():
        raise ModelError(
            "a model that computes what its layers say", "other logits than its layers give",
            "a forward that changes with data cannot be read",
        )  # fmt: skip


def _one(
    model: nn.Module, ops: list[Op], x: Tensor, label: int, threat: Threat, seconds: float, unit: float
) -> Verdict:
    start = time.perf_counter()
    if seconds == 0:
        return Verdict("unknown", 0.0, "time limit")
    if _wrong(model, x, label):
        return Verdict("broken", time.perf_counter() - start, example=x[0].clone())
    encoding = _encoding(x, threat, unit)
    logits = encoding.run(ops, tuple(x.shape[1:]))
    goals = _goals(logits, label)
    status, reason, example = "robust", "", None
    if goals:
        encoding.limit_changes()
        status, reason, example = _search(model, x, label, threat, Programs(encoding, start + seconds), goals)
    spent = time.perf_counter() - start
    return Verdict(status, spent, reason, example, encoding.units, encoding.open, bool(goals))


def _goals(logits: State, label: int) -> list[Demand]:
    """For every class that may win, the demand that it does; the likeliest first. argmax gives a tie to the class
    that comes first."""
    others = [j for j in range(len(logits.shift)) if j != label]
    lead = State(
        logits.matrix[others] - logits.matrix[[label] * len(others)], logits.shift[others] - logits.shift[label],
        logits.error[others] + logits.error[label], logits.base, (), logits.whole,
    )  # fmt: skip
    most = bounds(lead)[1]
    found = []
    for i, j in enumerate(others):
        least = 1.0 if lead.whole and j > label else 0.0
        if most[i] + lead.error[i] >= least:
            columns, row = row_of(lead, i)
            shift, error = float(lead.shift[i]), float(lead.error[i])
            demand = Demand(
                columns, row, least - error - shift, least + error - shift, whole=lead.whole, edge=not lead.whole
            )
            found.append((-most[i], i, demand))
    return [demand for *_, demand in sorted(found, key=lambda t: t[:2])]


def _search(
    model: nn.Module, x: Tensor, label: int, threat: Threat, programs: Programs, goals: list[Demand]
) -> tuple[Status, str, Tensor | None]:
    """Each class in turn: proven impossible, or an example, or neither."""
    reasons = set()
    for goal in goals:
        for sharp in (False, True):
            solved = programs.find(goal, sharp)
            if solved.answer == "none":
                reasons |= {"tolerance"} if sharp else set()
                break
            if solved.values is None:
                reasons.add("time limit")
                break
            centred = programs.center(goal, solved.values)
            for values in (centred, solved.values):
                if values is None:
                    continue
                example = _image(programs.encoding, values, x, threat)
                if _wrong(model, example, label):
                    return "broken", "", example[0].clone()
        else:
            reasons.add("tolerance")
    if not reasons:
        return "robust", "", None
    return "unknown", "time limit" if "time limit" in reasons else "tolerance", None


def _image(encoding: Encoding, values: np.ndarray, x: Tensor, threat: Threat) -> Tensor:
    """The pixels of a point, inside the threat by the threat's own projection."""
    pixels = values[: encoding.pixels].copy()
    if encoding.changes:
        gates = np.array([encoding.changes[int(g)] for g in encoding.groups])
        pixels = np.where(values[gates] > 0.5, pixels, encoding.image)
    return threat.project(torch.from_numpy(pixels).to(x.dtype).view_as(x), x)


def _tried(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, attacks: Sequence[Callable]) -> dict[int, Verdict]:
    """Examples that attacks find, inside the threat by its own projection and wrong one by one."""
    found: dict[int, Verdict] = {}
    for attack in attacks:
        left = torch.tensor([i for i in range(len(x)) if i not in found], dtype=torch.int64)
        if not len(left):
            break
        start = time.perf_counter()
        with torch.enable_grad():
            images = attack(model, x[left], y[left])
        images = threat.project(images.detach(), x[left])
        spent = (time.perf_counter() - start) / len(left)
        for row, i in enumerate(left.tolist()):
            if _wrong(model, images[row : row + 1], int(y[i])):
                found[i] = Verdict("broken", spent, example=images[row].clone())
    return found


def _wrong(model: nn.Module, x: Tensor, label: int) -> bool:
    return int(_logits(model, x).argmax()) != label


def _logits(model: nn.Module, x: Tensor) -> Tensor:
    """The logits [K] of one image [1,...]; ModelError for a model that writes into it."""
    given = x.clone()
    logits = model(given)[0]
    if not torch.equal(given, x):
        raise ModelError(
            "a model that leaves its images as they are",
            "one that changes them in place",
            "write h = h - c for h -= c",
        )
    return logits
