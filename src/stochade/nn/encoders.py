"""Encoders from images to binary codes in time. Codes are batch-first: [N, T, C, H, W]."""

from functools import partial

from torch import Tensor

from stochade.errors import BudgetError
from stochade.nn.discrete import Discrete, Surrogate
from stochade.nn.sampling import bernoulli


def repeat_over_time(x: Tensor, steps: int) -> Tensor:
    """The same frame `steps` times: [N, ...] -> [N, T, ...]. Its derivative sums over time."""
    return x.unsqueeze(1).expand(-1, steps, *x.shape[1:])


def _clipped_rate(x: Tensor, steps: int) -> Tensor:
    return repeat_over_time(x.clamp(0, 1), steps)


class BernoulliRate(Discrete):
    """Fires each pixel in each step with probability clip(x, 0, 1), independently: [N,C,H,W] -> [N,T,C,H,W].

    Substitutes: "ste", "identity" (the derivative of the expectation inside the box, everywhere) and "clipped"
    (0 for pixels outside [0, 1]). Relaxed "mean-field": the rate itself, repeated over time.

    Raises:
        BudgetError: fewer than one step.
    """

    scope = "example"

    def __init__(self, steps: int = 8):
        if not (isinstance(steps, int) and steps >= 1):
            raise BudgetError("a number of time steps >= 1", repr(steps))
        ste = Surrogate(partial(repeat_over_time, steps=steps), "ste")
        clipped = Surrogate(partial(_clipped_rate, steps=steps), "clipped")
        super().__init__(
            ste,
            {"ste": ste, "identity": ste, "clipped": clipped},
            {"mean-field": partial(_clipped_rate, steps=steps)},
        )
        self.steps = steps

    def hard(self, x: Tensor) -> Tensor:
        return bernoulli(_clipped_rate(x, self.steps))

    def extra_repr(self) -> str:
        return f"steps={self.steps}"
