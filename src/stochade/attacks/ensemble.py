"""One gradient out of several: `Ensemble`."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from stochade.attacks.ball import like
from stochade.attacks.expectation import check_gradient, spent_by
from stochade.attacks.gradients import Gradient, Model, Pass
from stochade.errors import BudgetError


@dataclass(frozen=True)
class Ensemble:
    """The weighted mean of several gradients at the same point: the layers' own backward, other substitutes, relaxed
    forwards, evolution. Where one of them is zero or noise for an example, the others still point somewhere.

    Each part is divided by its own mean absolute value per example first, so that a backward with a steep surrogate
    does not drown the others; a part that is zero for an example is left out there by itself. Passes add up.

    Value and logits come from the first part whose forward is the model's own (`relaxed` is None), because only
    that one is the model; from the first part where there is none, and then nobody counts as fooled.

    Args:
        parts: gradients, at least one.
        weights: one positive number per part; None: all equal. Only their ratios matter.
        normalised: whether the parts are brought to the same size before they are averaged.

    Raises:
        BudgetError: no parts, something that is no gradient, weights that do not fit.
    """

    parts: Sequence[Gradient]
    weights: Sequence[float] | None = None
    normalised: bool = True

    def __post_init__(self):
        if isinstance(self.parts, str) or not isinstance(self.parts, Sequence) or not len(self.parts):
            raise BudgetError("a list of gradients", repr(self.parts), "Ensemble([Backprop(), Backprop(1, 'soft')])")
        for index, part in enumerate(self.parts):
            check_gradient(part, f"part {index}")
        object.__setattr__(self, "parts", tuple(self.parts))
        if self.weights is not None:
            if not isinstance(self.weights, Sequence) or len(self.weights) != len(self.parts):
                raise BudgetError(f"{len(self.parts)} weights, one per part", repr(self.weights))
            if not all(isinstance(w, int | float) and 0 < w < float("inf") for w in self.weights):
                raise BudgetError("weights > 0", repr(self.weights), "leave a part out instead of weighting it 0")
            object.__setattr__(self, "weights", tuple(self.weights))

    @property
    def forwards(self) -> int:
        return sum(part.forwards for part in self.parts)

    @property
    def backwards(self) -> int:
        return sum(part.backwards for part in self.parts)

    @property
    def _speaker(self) -> Gradient:
        """The part that says what the model answers."""
        honest = (part for part in self.parts if getattr(part, "relaxed", None) is None)
        return next(honest, self.parts[0])

    @property
    def draws(self) -> int:
        return getattr(self._speaker, "draws", 1)

    @property
    def whole_batch(self) -> bool:
        """Whether answers hold only for the batch as it is, neither cut nor tiled."""
        return any(getattr(part, "whole_batch", False) for part in self.parts)

    @property
    def relaxed(self) -> object:
        """None where the logits of a pass are the model's own at x; only then do they say who is fooled."""
        return getattr(self._speaker, "relaxed", None)

    def swapped(self, model: Model) -> AbstractContextManager[None]:
        """The model as the part sees it that gives value and logits."""
        swapped = getattr(self._speaker, "swapped", None)
        return nullcontext() if swapped is None else swapped(model)

    def __call__(self, model, x, y, objective, *, targets=None, stream=None) -> Pass:
        weights = self.weights or (1.0,) * len(self.parts)
        speaker, said = self._speaker, None
        total, spent = torch.zeros_like(x), torch.zeros(2, len(x), dtype=torch.long, device=x.device)
        for part, weight in zip(self.parts, weights, strict=True):
            result = part(model, x, y, objective, targets=targets, stream=stream)
            spent += spent_by(part, result)
            gradient = _same_size(result.gradient) if self.normalised else result.gradient
            total.add_(gradient, alpha=weight / sum(weights))
            if said is None and part is speaker:
                said = result
        assert said is not None
        return Pass(said.value, total, said.logits, spent)


def _same_size(gradient: Tensor) -> Tensor:
    """Each example's gradient at mean absolute value 1; zero stays zero. By its peak first: neither 1e-40 nor 1e30
    is lost in the mean."""
    peak = gradient.flatten(1).abs().amax(1)
    gradient = gradient / like(torch.where(peak > 0, peak, 1), gradient)
    mean = gradient.flatten(1).abs().mean(1)
    return gradient.div_(like(torch.where(mean > 0, mean, 1), gradient))
