"""The smoothing that a model brings with it, and the model that an attacker of its vote sees."""

from functools import partial

import torch
from torch import Tensor, nn

from stochade.certify.bernoulli import RateCode
from stochade.certify.flips import FlipNoise
from stochade.certify.gaussian import Gaussian, SmoothingCode
from stochade.certify.smoothing import Model, Smoothing
from stochade.errors import UsageError
from stochade.models.encoded import SeveralEncodings
from stochade.models.noisy import NoisyInput
from stochade.nn import surrogates
from stochade.nn.discrete import Discrete, Surrogate, as_module
from stochade.nn.encoders import BernoulliRate, SignedRate
from stochade.nn.encoders_gaussian import RSC
from stochade.nn.noise import GaussianNoise


def smoothing_of(model: Model, sigma: float | None = None, norm: str | None = None) -> tuple[Model, Smoothing]:
    """(classifier, smoothing) of a model: its own encoder's randomness, its own input noise, or Gaussian noise of
    `sigma` around it.

    Args:
        sigma: of added Gaussian noise; None: what the model brings.
        norm: of the radius; None: l1 for rate codes, l2 for Gaussian noise.

    Raises:
        UsageError: a model without randomness of its own and no sigma, or a norm in which nothing is proven for it.
        BudgetError, ModelError: as the smoothing that it leads to.
    """
    encoder = getattr(model, "encoder", None)
    m, encoder = (encoder.m, encoder.encoder) if isinstance(encoder, SeveralEncodings) else (1, encoder)
    if sigma is not None:
        found: tuple[Model, Smoothing] = model, Gaussian(sigma)
    elif isinstance(encoder, BernoulliRate | SignedRate):
        mean = encoder.mean if isinstance(encoder, SignedRate) else None
        return model, RateCode(
            encoder.steps, isinstance(encoder, SignedRate), encoder.floor, mean, "l1" if norm is None else norm, m
        )  # fmt: skip
    elif isinstance(encoder, RSC):
        found = model, SmoothingCode(encoder.sigma, encoder.steps, encoder.kind, m)
    elif isinstance(model, NoisyInput) and model.noise.scope == "example":
        found = model.model, Gaussian(model.noise.sigma)
    else:
        raise UsageError(
            "noise to certify by", f"{type(model).__name__} without noise at its input",
            "give sigma, for example --sigma 0.25: Gaussian noise on every pixel",
        )  # fmt: skip
    if norm not in (None, found[1].norm):
        raise UsageError(f"the norm {found[1].norm} for {type(found[1]).__name__}", repr(norm))
    return found


def as_attacked(model: Model, smoothing: Smoothing) -> nn.Module:
    """The randomised classifier whose vote is certified, as an attacker sees it: one forward is one draw."""
    if isinstance(smoothing, Gaussian):
        return _behind(GaussianNoise(smoothing.sigma), model)
    if isinstance(smoothing, FlipNoise):
        return _behind(FlippedLetters(smoothing), model)
    return as_module(model)


def _behind(noise: nn.Module, model: Model) -> nn.Module:
    """The model, as it is, behind noise in eval mode."""
    both = nn.Sequential(noise.eval(), as_module(model))
    both.training = False
    return both


class FlippedLetters(Discrete):
    """Codes [N,T,...] with their letters drawn anew (`FlipNoise`).

    The derivative is that of the mean of a drawn letter: 1 - p_plus - p_minus in {0, 1}, 1 - 3/2 p_minus in
    {-1, 0, 1}, whose mean is linear in the letter. Where it is 0, letters matter in higher orders only, and it is 1.
    """

    scope = "example"

    def __init__(self, noise: FlipNoise):
        mean = 1 - 1.5 * noise.p_minus if noise.signed else 1 - noise.p_plus - noise.p_minus
        own, identity = Surrogate(partial(torch.mul, other=mean or 1.0), "mean"), surrogates.identity()
        super().__init__(own, {"mean": own, "identity": identity, "ste": identity})
        self.noise = noise

    def hard(self, x: Tensor) -> Tensor:
        return self.noise.flipped(x)

    def extra_repr(self) -> str:
        return f"p_plus={self.noise.p_plus:g}, p_minus={self.noise.p_minus:g}, {self.noise.alphabet}"
