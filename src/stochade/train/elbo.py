"""The evidence lower bound of stochastic LWTA networks as an objective: cross-entropy and its divergences.

Source: Panousis et al. 2021, whose bound the lab report repeats with the sign of the divergence turned round
(kaspar2024, section 4). Minimised is CE + KL_xi + KL_z + KL_u + KL_w. The code released for adversarial training
computes KL_xi and never adds it.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from stochade.attacks import PGD, Backprop, Linf
from stochade.errors import BudgetError, UsageError
from stochade.nn import LWTA
from stochade.nn.bayesian import BlockUtility, GaussianWeights
from stochade.train.objectives import Adversarial

Positions = Literal["mean", "sum"]
Craft = Literal["eval", "train", "mean-field"]


@contextmanager
def winners_kl(model: nn.Module, positions: Positions = "mean") -> Iterator[list[Tensor]]:
    """Inside the block every forward of a stochastic LWTA layer adds its KL(q || uniform) to the list: a scalar,
    summed over blocks, mean or sum over positions, mean over the batch. Nothing stays on the model afterwards."""
    told: list[Tensor] = []

    def tell(layer: LWTA, inputs: tuple[Tensor, ...], _output: Tensor) -> None:
        kl = layer.kl(inputs[0].float() if inputs[0].itemsize < 4 else inputs[0])
        kl = kl.reshape(*kl.shape[:2], -1)
        told.append((kl.mean(2) if positions == "mean" else kl.sum(2)).sum(1).mean())

    layers = [module for module in model.modules() if isinstance(module, LWTA) and module.stochastic]
    handles = [layer.register_forward_hook(tell) for layer in layers]
    try:
        yield told
    finally:
        for handle in handles:
            handle.remove()


def parameter_kl(model: nn.Module) -> dict[str, Tensor]:
    """KL_z and KL_u of the utilities and KL_w of the weights, each summed over the model's layers; a kind of layer
    that the model lacks has no entry."""
    utilities = [module for module in model.modules() if isinstance(module, BlockUtility)]
    weights = [module for module in model.modules() if isinstance(module, GaussianWeights)]
    parts = {
        "kl_z": [layer.kl_utilities() for layer in utilities],
        "kl_u": [layer.kl_sticks() for layer in utilities],
        "kl_w": [layer.kl_weights() for layer in weights],
    }
    return {name: sum(values[1:], values[0]) for name, values in parts.items() if values}


@dataclass(frozen=True)
class ELBO:
    """Cross-entropy + winners KL_xi + utilities KL_z + sticks KL_u + weights KL_w; every part is told as a term, as
    it enters the loss. The negative bound per image, up to the weights.

    The defaults are the weights of the released codes (1/1000 on a mean over positions, 1/60000), which temper the
    divergences of the winners; `ELBO.exact(images)` is the bound itself. For adversarial training hand it to
    `Adversarial` as `inner`.

    Args:
        winners, utilities, sticks, weights: what multiplies each divergence, >= 0; 0 leaves it out.
        positions: whether KL_xi takes the mean or the sum over the positions of a feature map.

    Raises:
        BudgetError: a weight that is negative or not finite. UsageError: other positions.
    """

    winners: float = 1e-3
    utilities: float = 1 / 60000
    sticks: float = 1 / 60000
    weights: float = 1 / 60000
    positions: Positions = "mean"

    def __post_init__(self):
        for name in ("winners", "utilities", "sticks", "weights"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
                raise BudgetError(f"{name} >= 0", repr(value))
        if self.positions not in ("mean", "sum"):
            raise UsageError('positions "mean" or "sum"', repr(self.positions))

    @classmethod
    def exact(cls, images: int) -> "ELBO":
        """The bound of a training set of that size: winners count in full for every image, parameters once."""
        if isinstance(images, bool) or not isinstance(images, int) or images < 1:
            raise BudgetError("a training set of at least one image", repr(images))
        return cls(1.0, 1 / images, 1 / images, 1 / images, "sum")

    def __call__(
        self, forward: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, *, model: nn.Module, seed: int
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        if self.winners:
            with winners_kl(model, self.positions) as winners:
                logits = forward(x)
        else:
            winners, logits = [], forward(x)
        loss = F.cross_entropy(logits, y)
        terms = {"ce": loss}
        if winners:
            terms["kl_xi"] = self.winners * sum(winners[1:], winners[0])
        factors = {"kl_z": self.utilities, "kl_u": self.sticks, "kl_w": self.weights}
        if any(factors.values()):
            terms |= {name: factors[name] * kl for name, kl in parameter_kl(model).items() if factors[name]}
        return sum(terms.values(), loss.new_zeros(())), logits, terms


def lwta_pgd(craft: Craft = "eval", eps: float = 0.031, steps: int = 10, step: float = 0.007) -> Callable[..., Any]:
    """The PGD of LWTA's adversarial training, with the numbers of the released code.

    Args:
        craft: "eval", as in that code: winners at the test temperature 0.01, where gradients of two draws have
            nothing in common, so that training sees little more than noise; "train": winners at the training
            temperature; "mean-field": no noise. Batch norm uses its running statistics in all three.

    Raises:
        UsageError: another way of crafting.
    """
    relaxed = {"eval": None, "train": {"*": "warm"}, "mean-field": {"*": "mean-field"}}
    if craft not in relaxed:
        raise UsageError(f"crafting among {list(relaxed)}", repr(craft))
    gradient = Backprop(relaxed=relaxed[craft])
    return PGD(Linf(eps), steps, step_size=step, gradient=gradient, drop_fooled=False)  # nobody leaves


def adversarial_elbo(bound: ELBO | None = None, craft: Craft = "eval", clean: float = 0.0) -> Adversarial:
    """The bound on PGD-10 images (and on clean ones with weight `clean`), see `lwta_pgd` and `Adversarial`."""
    return Adversarial(lwta_pgd(craft), clean, inner=ELBO() if bound is None else bound)
