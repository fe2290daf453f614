"""What a certificate by smoothing needs to know: how one draw is made, and how far the majority vote is safe.

A randomised classifier F takes x to one class per draw; g(x) = argmax_c P(F(x) = c). A certificate bounds how much
P(F(x') = c) can fall below P(F(x) = c) as x' moves, from the distribution of the randomised input alone. Whatever
comes after it (a spiking network, further noise of its own) is one more randomised function of that input, and no
function of it can tell two distributions better than they differ: so the bound holds for any such network, as long as
its own draws are independent of the input's noise and of other draws.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from stochade.attacks.gradients import check_logits
from stochade.attacks.inputs import check_model
from stochade.errors import ModelError
from stochade.nn.discrete import scope_of
from stochade.randomness import reseed, untouched

Model = Callable[[Tensor], Tensor]


class Smoothing:
    """How inputs are randomised, and what follows from a lower bound p of the probability of the chosen class.

    Attributes:
        norm: of the radius: "l2", "l1", "l0" or "linf". unit: of the radius, in words.
    """

    norm: str
    unit: str = "units of images in [0,1]"

    def check(self, model: Model) -> None:
        """ModelError for a model that this smoothing says nothing about."""

    def draw(self, model: Model, x: Tensor) -> Tensor:
        """Logits [B,K] of one independent draw for every row of x [B,...]."""
        raise NotImplementedError

    def rest(self, model: Model, x: Tensor, seed: int) -> Tensor:
        """Logits [B,K] behind a fixed draw of the smoothing's own noise: what still follows `seed` is noise of the
        model's own."""
        reseed(seed)
        return model(x)

    def radius(self, p: float, x: Tensor | None = None) -> float:
        """The largest r such that at every distance below r the class keeps a probability above 1/2; 0 for p <= 1/2.

        Args:
            p: lower bound of the probability of the class at x.
            x: one input without its batch dimension, for radii that depend on it.
        """
        raise NotImplementedError

    def describe(self) -> dict:
        """Plain values for records."""
        return {"smoothing": type(self).__name__, "norm": self.norm, **vars(self)}


ROWS = 8  # equal rows that are looked at before any draw counts


@torch.no_grad()
def check_independent(model: Model, x: Tensor, smoothing: Smoothing, independent: bool = False) -> None:
    """Whether the rows of one forward count as independent draws. Looks at eight equal rows; the model is left as it
    was.

    Args:
        x: one input [1,...].
        independent: the caller's word for a foreign random model that its noise is drawn anew for every row.

    Raises:
        ModelError: rows that see each other (batch norm in train mode), noise shared by a batch, state that a forward
            leaves behind, or a foreign model whose noise nobody vouches for.
    """
    check_model(model)
    smoothing.check(model)
    rows = x.expand(ROWS, *x.shape[1:])
    mixed = torch.cat([rows[:1], torch.zeros_like(rows[1:])])
    with untouched(model):
        once, again, beside = (_seeded(smoothing, model, part) for part in (rows, rows, mixed))
        if not _same(once, again):
            raise ModelError(
                "a model that repeats itself under equal seeds", "other logits in its second forward",
                "it keeps state from one forward to the next or has a generator of its own: draws would depend on "
                "each other",
            )  # fmt: skip
        if not _same(once[:1], beside[:1]):
            raise ModelError(
                "logits of a row that do not depend on the rest of its batch", "a row that sees the others",
                "draws of one batch would depend on each other",
            )  # fmt: skip
        first, second = (smoothing.rest(model, rows, seed) for seed in (1, 2))
    if _same(first, second):
        return  # nothing random behind the smoothing's own noise
    scope = scope_of(model)
    if scope == "call" or _same(first, first[:1].expand_as(first)):
        raise ModelError(
            "noise drawn anew for every row", "noise drawn once per call for the whole batch",
            "all draws of a batch would be one: give the layer noise per example",
        )  # fmt: skip
    if scope == "unknown" and not independent:
        raise ModelError(
            "a random model whose noise is independent row by row", f"{type(model).__name__}, which does not say so",
            "set model.scope = 'example' if it is, or pass independent=True",
        )  # fmt: skip


def _seeded(smoothing: Smoothing, model: Model, rows: Tensor) -> Tensor:
    reseed(0)
    return check_logits(smoothing.draw(model, rows), len(rows))


def _same(a: Tensor, b: Tensor) -> bool:
    """Equal but for the order of sums."""
    return torch.allclose(a, b, rtol=1e-4, atol=1e-5)
