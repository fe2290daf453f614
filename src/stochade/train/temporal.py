"""Losses that look at every time step of a spiking network: TET, and distillation from a network without spikes.

By name they are "tet" and "e-rsct" (`NAMES`), on their own or around an attack (`temporal`).

wu2024's E-RSCT (section 3.5, equations 15 and 16) is `Distilled(teacher)` on a network of randomized smoothing codes:
lambda KL + the loss of its reference 8 (Deng et al. 2022, temporal efficient training). It names neither the teacher,
nor a temperature, nor what follows the bar in its divergence; see `Distilled`.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stochade.errors import BudgetError, LogitsError, ModelError, UsageError
from stochade.nn.over_time import OverTime
from stochade.randomness import forked, untouched
from stochade.train.objectives import TrainingObjective, measured

NAMES = ("tet", "e-rsct")


def over_time(model: nn.Module) -> OverTime:
    """The one network over time of a model; ModelError where there is none, or several."""
    networks = [module for module in model.modules() if isinstance(module, OverTime)]
    if len(networks) != 1:
        raise ModelError(
            "a model with one network over time (stochade.nn.over_time.OverTime)", f"{len(networks)}",
            "train others by the standard objective",
        )  # fmt: skip
    return networks[0]


@contextmanager
def logits_over_time(model: nn.Module) -> Iterator[list[Tensor]]:
    """Inside the block every forward of the model's `OverTime` network adds its logits [T, N, K] to the list. Nothing
    stays on the model afterwards.

    Raises:
        ModelError: a model that is not one network over time.
    """
    network = over_time(model)
    told: list[Tensor] = []

    def tell(_body: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        told.append(output)

    handle = network.body.register_forward_hook(tell)
    try:
        yield told
    finally:
        handle.remove()


@dataclass(frozen=True)
class TET:
    """(1 - weight) mean_t CE(o_t, y) + weight mean_t MSE(o_t, target): the loss of every step, not that of the mean
    (Deng et al. 2022, equations 8 to 10). Both parts are told as terms.

    Args:
        weight: lambda of the second part, which keeps logits near `target`, in [0, 1]; their code has 1e-3 on static
            images by default.
        target: phi, the threshold of the neurons.

    Raises:
        BudgetError: a weight outside [0, 1] or a target that is not finite. ModelError (when called): a model without
            logits over time.
    """

    weight: float = 1e-3
    target: float = 1.0

    def __post_init__(self):
        for name, good in (("weight", "in [0, 1]"), ("target", "that is finite")):
            value = getattr(self, name)
            number = not isinstance(value, bool) and isinstance(value, int | float) and math.isfinite(value)
            if not number or (name == "weight" and not 0 <= value <= 1):
                raise BudgetError(f"a {name} {good}", repr(value))

    def __call__(
        self, forward: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, *, model: nn.Module, seed: int
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        with logits_over_time(model) as told:
            logits = forward(x)
        steps, each = len(told[0]), told[0]
        if each.shape[1] != len(y):
            raise ModelError(
                f"logits over time of {len(y)} images", f"{each.shape[1]}", "train one encoding, aggregate afterwards"
            )
        ce = F.cross_entropy(each.flatten(0, 1), y.repeat(steps))
        terms = {"ce": (1 - self.weight) * ce}
        if self.weight:
            terms["mse"] = self.weight * (each - self.target).square().mean()
        return sum(terms.values(), ce.new_zeros(())), logits, terms


@dataclass(frozen=True)
class Distilled:
    """weight * KL(student || teacher) + the inner loss (wu2024, equations 15 and 16).

    The paper writes KL(O_stu, O_tea). Taken is the order it writes, the divergence of softmax(student / temperature)
    from softmax(teacher / temperature), a mean over the batch; `order="teacher"` is that of Hinton et al. 2015. At a
    temperature other than 1 the term counts temperature^2 times, so that gradients keep their size.

    Args:
        teacher: images -> logits [N, K], in evaluation mode while asked and left as it was; on the device of the
            images.
        weight: lambda, >= 0; the paper has 0.1.
        temperature: > 0.
        order: "student" or "teacher", the distribution that the divergence averages over.
        inner: the other part.

    Raises:
        BudgetError: a weight or temperature that makes no sense. UsageError: another order, or a teacher that cannot
            be called. LogitsError (when called): a teacher with other classes than the student.
    """

    teacher: nn.Module
    weight: float = 0.1
    temperature: float = 1.0
    order: str = "student"
    inner: TrainingObjective = field(default_factory=TET)

    def __post_init__(self):
        for name in ("weight", "temperature"):
            value = getattr(self, name)
            number = not isinstance(value, bool) and isinstance(value, int | float) and math.isfinite(value)
            if not number or value < 0 or (name == "temperature" and value == 0):
                raise BudgetError(f"a {name} {'> 0' if name == 'temperature' else '>= 0'}", repr(value))
        if self.order not in ("student", "teacher"):
            raise UsageError('order "student" or "teacher"', repr(self.order))
        if not isinstance(self.teacher, nn.Module):
            raise UsageError("a teacher that is a module", type(self.teacher).__name__, "train one, or load one")

    def __call__(
        self, forward: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, *, model: nn.Module, seed: int,
        epoch: int = 0,
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:  # fmt: skip
        loss, logits, terms = measured(self.inner, forward, x, y, model=model, seed=seed, epoch=epoch)
        with torch.no_grad(), forked(seed), untouched(self.teacher):
            self.teacher.eval()
            told = self.teacher(x)
        if told.shape != logits.shape:
            raise LogitsError(f"logits {list(logits.shape)} from the teacher", f"{list(told.shape)}")
        student = F.log_softmax(logits.float() / self.temperature, 1)
        teacher = F.log_softmax(told.float() / self.temperature, 1)
        first, second = (student, teacher) if self.order == "student" else (teacher, student)
        divergence = (first.exp() * (first - second)).sum(1).mean()
        terms = dict(terms) | {"kd": self.weight * self.temperature**2 * divergence}
        return loss + terms["kd"], logits, terms


def temporal(
    name: str, model: nn.Module | None, teacher: nn.Module | None,
    attacked: Callable[[TrainingObjective], TrainingObjective] = lambda inner: inner,
) -> TrainingObjective:  # fmt: skip
    """The objective "tet" or "e-rsct" of a model, around which an attack may be put.

    Adversarial training by "tet" has the loss of every step on what is attacked. In "e-rsct" the divergence joins
    outside: the teacher sees the images as they are, never those of the attack, which need not fool it the same way;
    the student's logits are those of the clean batch where it counts, else of the attacked one.

    Args:
        model: what is trained; None where there is none yet.
        teacher: of "e-rsct", on the device of the images.
        attacked: inner objective -> the same on attacked images or codes.

    Raises:
        UsageError: another name, "e-rsct" without a teacher, or a teacher of another objective. ModelError: a model
            without one network over time, or a teacher of other images or classes.
    """
    if name not in NAMES:
        raise UsageError(f"an objective among {', '.join(NAMES)}", repr(name))
    if (teacher is not None) != (name == "e-rsct"):
        raise UsageError(
            "a teacher for e-rsct, and for nothing else", f"{'none' if teacher is None else 'one'} for {name}"
        )
    if model is not None:
        over_time(model)
    if teacher is None:
        return attacked(TET())
    ours, theirs = (getattr(m, "description", None) for m in (model, teacher))
    if isinstance(ours, dict) and isinstance(theirs, dict):
        asked, got = ((d["input_shape"], d["classes"]) for d in (ours, theirs))
        if asked != got:
            raise ModelError(
                f"a teacher of images {asked[0]} and {asked[1]} classes", f"one of {got[0]} and {got[1]}"
            )
    return Distilled(teacher, inner=attacked(TET()))
