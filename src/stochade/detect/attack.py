"""Breaking the detector at the distance it was shown at: attacks that know the noise and the calibration.

* `LogitMatching` (Tramèr, Carlini, Brendel, Madry 2020): make the logits, with and without noise, those of a clean
  image of another class. An image with the logits of a clean one under every noise moves as a clean one does.
* `InTheLoop`: ascend misclassification and the test's own statistics together, over noise in every gradient.

Both know the bank and the calibration, not the draws: `Detector.examine` decides, on noise of its own.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from stochade.attacks.base import Attack, Attempt, Task
from stochade.attacks.descent import PGD
from stochade.attacks.gradients import Backprop, Model, check_logits, check_whole
from stochade.attacks.objectives import margin
from stochade.attacks.threats import Threat
from stochade.detect.odds import Calibration
from stochade.errors import BudgetError, LabelsError
from stochade.nn.discrete import as_module, scope_of

LOOKS = 10  # forwards that rank classes or judge a point on a random model


class UnderNoise(nn.Module):
    """A model behind the bank: every row meets one of its noises, or none, each as likely. [N,...] -> [N,K]."""

    def __init__(self, model: Model, calibration: Calibration):
        super().__init__()
        self.model, self.noises = as_module(model), calibration.noises
        inner = scope_of(self.model)
        self.scope = "example" if inner in ("none", "example") else inner

    def forward(self, x: Tensor) -> Tensor:
        source = torch.randint(len(self.noises) + 1, (len(x),), device=x.device)
        added = torch.zeros_like(x)
        for i, noise in enumerate(self.noises):
            rows = source == i
            added[rows] = noise.draw(x[rows])
        return self.model((x + added).clamp(0, 1))


class Statistics(nn.Module):
    """What the detector sees, differentiable: [N, K + S K], logits and their moves under S noises.

    Of each noise there are `draws` pairs, eta and -eta: noises are symmetric, so a pair is unbiased, and the part of
    a move that is linear in eta, most of what is drawn and none of its mean, cancels.
    """

    def __init__(self, model: Model, calibration: Calibration, draws: int):
        super().__init__()
        self.model, self.noises, self.draws = as_module(model), calibration.noises, draws
        self.scope = scope_of(self.model) if scope_of(self.model) in ("call", "unknown") else "example"

    def forward(self, x: Tensor) -> Tensor:
        rows = [x]
        for noise in self.noises:
            copies = x.repeat(self.draws, *(1,) * (x.dim() - 1))
            drawn = noise.draw(copies)
            rows += [(copies + drawn).clamp(0, 1), (copies - drawn).clamp(0, 1)]
        logits = self.model(torch.cat(rows))
        plain, noisy = logits[: len(x)], logits[len(x) :].view(len(self.noises), 2 * self.draws, len(x), -1)
        moved = noisy.mean(1).transpose(0, 1) - plain[:, None]
        return torch.cat([plain, moved.flatten(1)], 1)


@dataclass(frozen=True, eq=False)
class Matching:
    """Objective: minus half the squared distance of the logits from the typical clean logits of the target class."""

    typical: Tensor

    def __call__(self, logits: Tensor, y: Tensor, targets: Tensor | None = None) -> Tensor:
        assert targets is not None
        goal = self.typical.to(logits.device, logits.dtype)[targets]
        return -(logits - goal).square().sum(1) / 2


@dataclass(frozen=True, eq=False)
class Evasion:
    """Objective on `Statistics`: the margin of the strongest wrong class c (or of the target) up to `lead`, less
    `weight` times what the standardised statistics of c exceed the threshold minus `slack` by, summed over classes.
    At most `lead`, reached where c wins by it and every statistic stays below."""

    calibration: Calibration
    lead: float
    slack: float
    weight: float

    def __call__(self, seen: Tensor, y: Tensor, targets: Tensor | None = None) -> Tensor:
        c = self.calibration
        logits, moved = seen[:, : c.classes], seen[:, c.classes :].view(len(seen), len(c.noises), c.classes)
        goal = logits.detach().scatter(1, y[:, None], -torch.inf).argmax(1) if targets is None else targets
        z = c.z_scores(moved, goal)
        excess = (z - (c.threshold - self.slack)).clamp_min(0)  # -inf, the goal itself, becomes 0
        return margin(logits, y, goal).clamp_max(self.lead) - self.weight * excess.sum(1)


@dataclass(frozen=True, eq=False)
class LogitMatching(Attack):
    """PGD towards the typical clean logits of another class, averaged over the detector's noises and none.

    The class is the runner-up on the clean image among those that the calibration saw predicted; targets given to
    `run` go first.

    Args:
        calibration: of the detector to be broken; also says which logits are typical.
        threat: which inputs are allowed.
        steps: gradient evaluations. draws: noises in each.
        random_start: start at `threat.start` instead of the image.

    Raises:
        BudgetError: no calibration or threat, or numbers that make no sense.
    """

    calibration: Calibration
    threat: Threat
    steps: int = 100
    draws: int = 8
    random_start: bool = False

    def __post_init__(self):
        _check(self)

    def search(self, task: Task) -> Attempt:
        if task.targets is None:
            task = replace(task, targets=runner_up(task, self.calibration))
        elif bool((self.calibration.counts.to(task.y.device)[task.targets] == 0).any()):
            raise LabelsError("targets that the calibration saw predicted", "a class without typical logits")
        inner = PGD(
            self.threat, self.steps, gradient=Backprop(self.draws), objective=Matching(self.calibration.typical),
            keep="last", drop_fooled=False, random_start=self.random_start,
        )  # fmt: skip
        return inner.search(replace(task, model=UnderNoise(task.model, self.calibration)))

    def cost(self) -> tuple[int, int]:
        return self.steps * self.draws + LOOKS, self.steps * self.draws


@dataclass(frozen=True, eq=False)
class InTheLoop(Attack):
    """PGD on `Evasion` from where `LogitMatching` ends, every gradient averaged over all noises of the detector.

    Args:
        calibration: of the detector to be broken.
        threat: which inputs are allowed.
        steps: gradient evaluations. draws: pairs eta, -eta of each noise in each.
        lead: margin in logits that the wrong class is given. slack: how far below the threshold the statistics are
            kept, in standard deviations, as the detector looks with other draws. weight: of the statistics.
        warm: steps of the logit matching before; 0 starts at random in the threat.

    Raises:
        BudgetError: no calibration or threat, or numbers that make no sense.
    """

    calibration: Calibration
    threat: Threat
    steps: int = 100
    draws: int = 1
    lead: float = 1.0
    slack: float = 1.0
    weight: float = 1.0
    warm: int = 50

    def __post_init__(self):
        _check(self)
        check_whole(self.warm, "warm", 0)
        for name in ("lead", "slack", "weight"):
            value = getattr(self, name)
            if not (isinstance(value, int | float) and 0 <= value < float("inf")) or (name == "weight" and not value):
                raise BudgetError(f"{name} >= 0 (weight > 0)", repr(value), "1.0 is usual")

    def search(self, task: Task) -> Attempt:
        before = None
        if self.warm and task.start is None:
            before = LogitMatching(self.calibration, self.threat, self.warm).search(task)
            task = replace(task, start=before.inputs)
        objective = Evasion(self.calibration, self.lead, self.slack, self.weight)
        inner = PGD(self.threat, self.steps, objective=objective, keep="best", drop_fooled=False)
        found = inner.search(replace(task, model=Statistics(task.model, self.calibration, self.draws)))
        each = 1 + 2 * self.draws * len(self.calibration.noises)  # images in one forward of the statistics
        forwards, backwards = found.forwards * each, found.backwards * each
        if before is not None:
            forwards, backwards = forwards + before.forwards, backwards + before.backwards
        return replace(found, forwards=forwards, backwards=backwards)

    def cost(self) -> tuple[int, int]:
        each = 1 + 2 * self.draws * len(self.calibration.noises)
        warm = LogitMatching(self.calibration, self.threat, self.warm).cost() if self.warm else (0, 0)
        return (self.steps + LOOKS) * each + warm[0], self.steps * each + warm[1]


def _check(attack: LogitMatching | InTheLoop) -> None:
    if not isinstance(attack.calibration, Calibration):
        raise BudgetError("the calibration of a detector", repr(attack.calibration), "pass detector.calibration")
    if not isinstance(attack.threat, Threat):
        raise BudgetError("a threat such as Linf(0.3)", repr(attack.threat))
    check_whole(attack.steps, "steps")
    check_whole(attack.draws, "draws")


@torch.no_grad()
def runner_up(task: Task, calibration: Calibration) -> Tensor:
    """[N] the class with the highest mean logit on the clean image among those, apart from the true one, that the
    calibration saw predicted."""
    looks = 1 if scope_of(task.model) == "none" else LOOKS
    logits = torch.stack([check_logits(task.model(task.x), len(task.x)) for _ in range(looks)]).mean(0)
    never = (calibration.counts == 0).to(logits.device)
    return logits.masked_fill(never, -torch.inf).scatter(1, task.y[:, None], -torch.inf).argmax(1)
