"""Backwards that are worked out from all potentials of a forward, among them the adaptive sharpness of ASSG."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from stochade.errors import UsageError
from stochade.nn.discrete import Surrogate


@dataclass(frozen=True)
class PerForward(Surrogate):
    """A surrogate whose derivative is one tensor for each forward, made from everything that the layer saw in it and
    constant from there on. Spiking layers ask once for all steps. Subclasses write `weights`."""

    def weights(self, x: Tensor) -> Tensor:
        """The derivative at `x`, shaped like it: distances to the threshold, [T, N, ...] in spiking layers."""
        raise TypeError(f"{type(self).__name__} must define weights(x)")

    def __call__(self, hard: Tensor, x: Tensor) -> Tensor:
        if not (torch.is_grad_enabled() and x.requires_grad):
            return hard
        with torch.no_grad():
            weights = self.weights(x.detach())
        return hard.detach() + weights * (x - x.detach())


class Moments:
    """Running means of |u| and of its deviation, of every neuron, step and example."""

    def __init__(self) -> None:
        self.mean: Tensor | None = None
        self.deviation: Tensor | None = None
        self.frozen = False

    def update(self, size: Tensor, keep: float) -> tuple[Tensor, Tensor]:
        """Mean and deviation with `size` = |u| taken in, or as they are while frozen."""
        if self.mean is None or self.deviation is None:
            mean, deviation = torch.ones_like(size), torch.zeros_like(size)
        else:
            mean, deviation = self.mean, self.deviation
        if mean.shape != size.shape:
            raise UsageError(
                f"potentials {list(mean.shape)} as in the forwards before",
                f"{list(size.shape)}",
                "each layer needs an adaptive surrogate of its own; reset() or keep(rows) when the examples change",
            )
        if not self.frozen:
            mean = keep * mean + (1 - keep) * size
            deviation = keep * deviation + (1 - keep) * (size - mean).abs()
            self.mean, self.deviation = mean, deviation
        return mean, deviation


@dataclass(frozen=True)
class Adaptive(PerForward):
    """The derivative of `atan(alpha)` with an alpha for every neuron, step and example, from running moments of its
    distance u to the threshold (ASSG).

    In each forward M <- k M + (1 - k)|u| and D <- k D + (1 - k)||u| - M| with k = `keeping`, from M = 1 and D = 0;
    then alpha = 2 tan(pi degree) / pi / (M + relax D + 1e-4). The moments stay from one forward to the next, over the
    steps of an attack: one object for each layer, `reset()` for another batch, `keep(rows)` when examples leave it.

    Source: the released code of ASSG (CVPR 2026), in which `degree`, half the expected share of vanished gradients,
    is searched in [0.35, 0.49], and moments are frozen while gradients are averaged over draws.
    """

    degree: float = 0.4
    relax: float = 1.5
    keeping: float = 0.9
    moments: Moments = field(default_factory=Moments, repr=False, compare=False)

    def weights(self, x: Tensor) -> Tensor:
        mean, deviation = self.moments.update(x.abs(), self.keeping)
        alpha = 2 / math.pi * math.tan(math.pi * self.degree) / (mean + self.relax * deviation + 1e-4)
        return alpha / 2 / (1 + (math.pi / 2 * alpha * x) ** 2)

    def reset(self) -> None:
        """Forget the moments."""
        self.moments.mean = self.moments.deviation = None

    def keep(self, rows: Tensor) -> None:
        """Go on with these examples only: indices or a mask for the second axis, [T, N, ...]."""
        if self.moments.mean is not None and self.moments.deviation is not None:
            self.moments.mean, self.moments.deviation = self.moments.mean[:, rows], self.moments.deviation[:, rows]

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """No updates inside the block: for the second draw and later ones of an average over randomness."""
        before = self.moments.frozen
        self.moments.frozen = True
        try:
            yield
        finally:
            self.moments.frozen = before


def adaptive(degree: float = 0.4, relax: float = 1.5, keeping: float = 0.9) -> Adaptive:
    """Adaptive sharpness (ASSG): see `Adaptive`.

    Raises:
        UsageError: a degree outside (0, 1/2), a negative relax, or a keeping outside [0, 1).
    """
    for name, value, good, wanted in (
        ("degree", degree, 0 < degree < 0.5, "in (0, 0.5)"),
        ("relax", relax, 0 <= relax < math.inf, "of at least 0"),
        ("keeping", keeping, 0 <= keeping < 1, "in [0, 1)"),
    ):
        if not good:
            raise UsageError(f"a {name} {wanted} for the surrogate adaptive", repr(value))
    shown = f"adaptive(degree={degree:g}, relax={relax:g}, keeping={keeping:g})"
    return Adaptive(_no_primitive, shown, degree, relax, keeping)


def _no_primitive(x: Tensor) -> Tensor:
    raise UsageError("a surrogate with a primitive", "an adaptive one", "use it as the backward of a layer")
