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
from stochade.attacks.inputs import check_images, check_model
from stochade.errors import LogitsError, ModelError
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

    def check_inputs(self, x: Tensor) -> None:
        """ImagesError unless x [N,...] are inputs that this smoothing is about: finite images in [0,1]."""
        check_images(x)

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


MASKS = 4  # random halves of a batch that are replaced
RARE = 32  # further seeds for a foreign model whose logits did not change between two


@torch.no_grad()
def check_independent(
    model: Model, x: Tensor, smoothing: Smoothing, independent: bool = False, batch: int = 64
) -> None:
    """Whether the rows of one forward count as independent draws. Looks at batches of the size that draws will have;
    the model is left as it was.

    Args:
        x: one input [1,...].
        independent: the caller's word for a foreign random model that its noise is drawn anew for every row.
        batch: draws per forward.

    Raises:
        ImagesError: an input that this smoothing is not about. ModelError: rows that see each other (batch norm in
            train mode, state that runs along the batch), noise shared by a batch, state that a forward leaves behind,
            or a foreign model whose noise nobody vouches for.
    """
    smoothing.check_inputs(x)
    check_model(model)
    smoothing.check(model)
    count = max(2, batch)
    rows = x.expand(count, *x.shape[1:])
    with untouched(model):
        once, again = (_seeded(smoothing, model, rows) for _ in range(2))
        if not _same(once, again):
            raise ModelError(
                "a model that repeats itself under equal seeds", "other logits in its second forward",
                "it keeps state from one forward to the next or has a generator of its own: draws would depend on "
                "each other",
            )  # fmt: skip
        for number in range(MASKS):
            mixed, kept = _mixed(rows, number)
            if not _same(once[kept], _seeded(smoothing, model, mixed)[kept]):
                raise ModelError(
                    "logits of a row that do not depend on the rest of its batch", "a row that sees the others",
                    "draws of one batch would depend on each other; time first? codes are [N,T,...] here",
                )  # fmt: skip
        first, second = (smoothing.rest(model, rows, seed) for seed in (1, 2))
        scope, seen = scope_of(model), not _same(first, second)
        few = [
            smoothing.rest(model, rows[:2], seed) for seed in range(RARE if scope == "unknown" and not seen else 0)
        ]
    if scope != "call" and not seen and all(_same(one, few[0]) for one in few):
        return  # nothing random behind the smoothing's own noise
    if scope == "call" or (seen and _same(first, first[:1].expand_as(first))):
        raise ModelError(
            "noise drawn anew for every row", "noise drawn once per call for the whole batch",
            "all draws of a batch would be one: give the layer noise per example",
        )  # fmt: skip
    if scope == "unknown" and not independent:
        raise ModelError(
            "a random model whose noise is independent row by row", f"{type(model).__name__}, which does not say so",
            "set model.scope = 'example' if it is, or pass independent=True",
        )  # fmt: skip


def _mixed(rows: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """(the batch with a random half of its rows replaced, the rows that stayed). In the place of the others: zeros,
    or the same values in another order, which are allowed wherever the row itself is."""
    random = torch.Generator().manual_seed(number)
    kept = torch.rand(len(rows), generator=random) < 0.5
    kept[torch.randint(len(rows), (1,), generator=random)] = True
    order = torch.randperm(rows[0].numel(), generator=random).to(rows.device)
    other = torch.zeros_like(rows[:1]) if number % 2 else rows[:1].flatten()[order].view_as(rows[:1])
    kept = kept.to(rows.device)
    return torch.where(kept.view(-1, *[1] * (rows.dim() - 1)), rows, other), kept


def _seeded(smoothing: Smoothing, model: Model, rows: Tensor) -> Tensor:
    reseed(0)
    logits = check_logits(smoothing.draw(model, rows), len(rows))
    if not logits.is_floating_point():
        raise LogitsError("floating-point logits", str(logits.dtype))
    return logits


def _same(a: Tensor, b: Tensor) -> bool:
    """Equal but for the order of sums, measured by how far apart the logits of a row are, not by their size."""
    spread = (a.amax(1) - a.amin(1))[:, None]
    return bool(((a - b).abs() <= 1e-4 * spread).all())
