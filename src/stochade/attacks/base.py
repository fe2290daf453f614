"""What every attack has in common: its call, the checks before any compute, and what it hands back.

An attack returns inputs, never a success flag. Success is decided by `evaluate`, on fresh draws.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from stochade.attacks.ball import Threat
from stochade.attacks.gradients import Model
from stochade.attacks.inputs import check_budgets, check_ids, check_inputs, check_model, check_start, probe
from stochade.nn.discrete import as_module
from stochade.randomness import Stream, identities, reseed, seed_for, untouched


class Trace(NamedTuple):
    """What a search saw, a line per step of its loop, [steps, N] each; NaN (and 0 passes) after an example has left.

    Attributes:
        value: the attacker's mean objective at the point that was tried.
        distance: of that point, in the units of the threat; NaN where the attack does not measure it.
        passes: forwards and backwards spent so far.
    """

    value: Tensor
    distance: Tensor
    passes: Tensor


@dataclass(frozen=True)
class Attempt:
    """The inputs an attack wants tried, with what it cost per example.

    Attributes:
        inputs: like x.
        value: [N] the attacker's own mean objective at the inputs it chose, NaN where it never looked.
        distance: [N] in the units of the threat. A minimum-norm attack that found nothing says inf.
        forwards, backwards: [N] passes that this example took part in.
        trace: what the search saw on its way.
        found_at: [N] passes that had been spent when the inputs were found.
        winner: [N] index of the member of a suite that the inputs come from, -1 for none; None for single attacks.
        targets: [N] classes that the attack pulled to, -1 for examples left alone; None for any wrong class.
    """

    inputs: Tensor
    value: Tensor
    distance: Tensor
    forwards: Tensor
    backwards: Tensor
    trace: Trace
    found_at: Tensor
    winner: Tensor | None = None
    targets: Tensor | None = None


@dataclass(frozen=True)
class Task:
    """What a search is given: everything checked, the model guarded, the generators seeded.

    Attributes:
        model: images -> logits; one call is one draw.
        x, y: images and true classes.
        threat: the attack's threat, with a budget for every example where the caller gave one.
        targets: [N] classes to pull towards, or None.
        stream: the attack's own randomness, per example.
        start: like x, inputs to begin at instead of the attack's own choice (a warm start), or None.
    """

    model: Model
    x: Tensor
    y: Tensor
    threat: Any
    targets: Tensor | None
    stream: Stream
    start: Tensor | None = None


class Attack:
    """Base of all attacks. Subclasses are frozen dataclasses with a `threat` and write `search`.

    `attack(model, x, y)` returns the inputs to try; `attack.run(...)` the same inputs with costs and trace. The
    model comes back as it was, and so do the global generators; equal seeds give equal inputs.

    Attributes:
        minimal: whether the attack looks for the smallest change instead of the worst inside a budget. It then says
            the distance it found even where that exceeds the threat (and hands back the original image there).
    """

    threat: Threat
    probabilities_allowed = False
    minimal = False

    def __call__(
        self, model: Model, x: Tensor, y: Tensor, *, targets=None, seed: int = 0, ids=None, **more
    ) -> Tensor:
        """The inputs to try, like x. See `run`."""
        return self.run(model, x, y, targets=targets, seed=seed, ids=ids, **more).inputs

    def run(
        self,
        model: Model,
        x: Tensor,
        y: Tensor,
        *,
        targets: Tensor | None = None,
        seed: int = 0,
        ids=None,
        model_seed: int | None = None,
        budgets: Tensor | None = None,
        start: Tensor | None = None,
    ) -> Attempt:
        """Search.

        Args:
            model: images [N,C,H,W] in [0,1] -> logits [N,K]; one call is one draw.
            x: float images [N,...] in [0,1]; what the threat says instead where it has a `check` (codes).
            y: int64 true classes [N].
            targets: int64 classes [N] to pull towards; None for any wrong class.
            seed: the attack's seed, and through it the model's draws during the search.
            model_seed: seeds the model's draws apart from the attack's own (evaluation gives every chunk its own).
            ids: int64 [N] identities; by default a hash of image and label. Image i gets the same random start
                whatever else is in the batch.
            budgets: float [N], a budget for every example instead of the threat's.
            start: like x, where to begin (a warm start); projected onto the threat.

        Raises:
            ImagesError, LabelsError, LogitsError, ModelError, BudgetError: bad input, before any backward.
            GradientError: no gradient reaches the images.
        """
        check_inputs(x, y, targets, self.threat)
        check_model(model)
        names = identities(x, y) if ids is None else check_ids(ids, len(x))
        threat = self.threat if budgets is None else check_budgets(budgets, self.threat, x)
        start = None if start is None else check_start(start, x)
        x, y, targets = x.detach(), y.long(), None if targets is None else targets.long()
        with untouched(model):  # its own block: what the probe leaves in a stateful model must not reach the search
            probe(model, x, y, targets, self.probabilities_allowed)
        with torch.inference_mode(False), untouched(model):  # inference mode would hide every gradient
            x, y = (t.clone() if t.is_inference() else t for t in (x, y))
            targets = targets.clone() if targets is not None and targets.is_inference() else targets
            start = start.clone() if start is not None and start.is_inference() else start
            reseed(seed_for(seed, "model draws") if model_seed is None else model_seed)
            stream = Stream(seed_for(seed, "attack"), names.to(x.device))
            return self.search(Task(model, x, y, threat, targets, stream, start))

    def search(self, task: Task) -> Attempt:
        """The attack itself; inputs are checked, the model is guarded, the generators are seeded."""
        raise TypeError(f"{type(self).__name__} must define search")

    def cost(self) -> tuple[int, int]:
        """(forwards, backwards) per example at most, apart from the probe, the search for least-likely classes and
        the forwards that let an example leave early."""
        raise TypeError(f"{type(self).__name__} must define cost")


@runtime_checkable
class AttackLike(Protocol):
    """Anything with a threat that maps (model, x, y) to inputs."""

    threat: Threat

    def __call__(self, model: Model, x: Tensor, y: Tensor, *, targets=None, seed: int = 0) -> Tensor: ...


def keep_dropout(model: nn.Module) -> nn.Module:
    """The same model, in eval mode but for its dropout layers: randomness as a defence (MC dropout)."""
    model.eval()
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.train()
    return model


class FromProbabilities(nn.Module):
    """A model that outputs probabilities, turned into one that outputs logits: log p, floored at log 1e-30."""

    scope = "composite"

    def __init__(self, model: Model):
        super().__init__()
        self.model = as_module(model)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x).clamp_min(1e-30).log()
