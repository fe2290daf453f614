"""Certificates of Gaussian noise: on any classifier, and of randomized smoothing codes (RSC-I, RSC-II).

Let p = P(F(x + e) = c), e ~ N(0, sigma^2 I). By Neyman and Pearson, of all sets with that probability at x the half
space {(e, delta) <= sigma |delta| Phi^-1(p)} has the least at x + delta: Phi(Phi^-1(p) - |delta|_2 / sigma). That
exceeds 1/2 exactly for |delta|_2 < sigma Phi^-1(p) (Cohen, Rosenfeld, Kolter 2019, theorem 1).

RSC-I (wu2024, equations 7 and 8) is this noise, drawn once for all frames; the clip to [0,1] is a part of F.
RSC-II draws it anew in each of T frames: the randomised input is T copies, which delta moves by (delta, ..., delta)
of length sqrt(T) |delta|_2. Hence its radius is sigma Phi^-1(p) / sqrt(T): frames that an attacker averages hide
less.
"""

import math
from typing import Any

import torch
from scipy.special import ndtri
from torch import Tensor
from torch.nn.modules import module as torch_modules

from stochade.certify.smoothing import Model, Smoothing
from stochade.errors import BudgetError, ModelError
from stochade.models.encoded import Encoded, SeveralEncodings
from stochade.nn.encoders_gaussian import RSC
from stochade.randomness import reseed


def l2_radius(p: float, sigma: float, frames: int = 1) -> float:
    """sigma Phi^-1(p) / sqrt(frames), 0 for p <= 1/2: the l2 distance below which the class keeps the majority.

    Args:
        p: (a lower bound of) the probability of the class. frames: independent draws of noise per input, T of RSC-II.

    Raises:
        BudgetError: p outside [0, 1], or sigma or frames not above 0.
    """
    check_sigma(sigma)
    if not 0 <= p <= 1:
        raise BudgetError("a probability in [0, 1]", repr(p))
    if frames < 1:
        raise BudgetError("at least one frame", repr(frames))
    return 0.0 if p <= 0.5 else sigma * float(ndtri(p)) / math.sqrt(frames)


def check_sigma(sigma: object) -> float:
    """BudgetError unless a standard deviation above 0, and of a size that images can carry."""
    if isinstance(sigma, bool) or not isinstance(sigma, int | float) or not 0 < sigma <= 1e6:
        raise BudgetError("a standard deviation sigma > 0, in units of images", repr(sigma), "0.25 and 0.5 are usual")
    return float(sigma)


class Gaussian(Smoothing):
    """Noise N(0, sigma^2) on every pixel of any classifier; nothing is clipped after it.

    Args:
        sigma: standard deviation in units of images in [0,1].

    Raises:
        BudgetError: sigma not above 0.
    """

    norm = "l2"

    def __init__(self, sigma: float):
        self.sigma = check_sigma(sigma)

    def draw(self, model: Model, x: Tensor) -> Tensor:
        return model(torch.add(x, torch.randn_like(x, memory_format=torch.contiguous_format), alpha=self.sigma))

    def radius(self, p: float, x: Tensor | None = None) -> float:
        return l2_radius(p, self.sigma)


class SmoothingCode(Smoothing):
    """The randomized smoothing code that a model has in front: its own noise is what certifies it.

    Args:
        sigma: standard deviation of the code. steps: its frames. kind: "I" (one draw for all frames) or "II".
        encodings: of every image (`Aggregated`); the network sees so many independent codes.

    Raises:
        BudgetError: sigma not above 0, or fewer than one encoding.
    """

    norm = "l2"

    def __init__(self, sigma: float, steps: int = 1, kind: str = "I", encodings: int = 1):
        self.sigma, self.steps, self.kind = check_sigma(sigma), steps, kind
        self.encodings = check_encodings(encodings)

    def describe(self) -> dict:
        return without_one_encoding(super().describe())

    def check(self, model: Model) -> None:
        encoder = encoder_in_front(model, RSC, self.encodings)
        told = (self.sigma, self.steps, self.kind)
        if (encoder.sigma, encoder.steps, encoder.kind) != told:
            raise ModelError(f"a model behind RSC(sigma={self.sigma:g}, {self.steps}, {self.kind!r})", repr(encoder))

    def draw(self, model: Model, x: Tensor) -> Tensor:
        return model(x)

    def rest(self, model: Model, x: Tensor, seed: int) -> Tensor:
        return behind_codes(model, x, seed)

    def radius(self, p: float, x: Tensor | None = None) -> float:
        return l2_radius(p, self.sigma, self.encodings * (1 if self.kind == "I" else self.steps))


def check_encodings(encodings: int) -> int:
    if isinstance(encodings, bool) or not isinstance(encodings, int) or encodings < 1:
        raise BudgetError("a number of encodings >= 1", repr(encodings))
    return encodings


def without_one_encoding(told: dict) -> dict:
    """The description as runs of one encoding have always had it, so that they are taken up."""
    return {key: value for key, value in told.items() if (key, value) != ("encodings", 1)}


def encoder_in_front(model: Model, kind: type, encodings: int = 1) -> Any:
    """The encoder of an `Encoded` model, where images reach the network through it alone, as its class has it: once,
    or in so many encodings that lie one after the other (`Aggregated`).

    Raises:
        ModelError: another model, encoder or number of encodings, a forward of their own, hooks, or an encoder whose
            forward is swapped.
    """
    outer: Any = getattr(model, "encoder", None)
    several = type(outer) is SeveralEncodings
    encoder, found = (outer.encoder, outer.m) if several else (outer, 1)
    if not isinstance(model, Encoded) or type(model).forward is not Encoded.forward:
        hint = "wrap the parts: stochade.models.Encoded(encoder, network)"
        raise ModelError(f"an Encoded model with {kind.__name__} in front", type(model).__name__, hint)
    if type(encoder) is not kind:
        raise ModelError(f"a model behind {kind.__name__}", repr(encoder), "its own randomness is what certifies")
    if found != encodings:
        raise ModelError(f"{encodings} encodings of every image", str(found), "choose.smoothing_of(model) reads them")
    hooked = torch_modules._global_forward_hooks or torch_modules._global_forward_pre_hooks
    for part in (model, outer, encoder):
        swapped = {"forward", "hard", "__call__", "_call_impl"} & set(vars(part))
        if swapped or part._forward_hooks or part._forward_pre_hooks or hooked:
            raise ModelError(
                f"a {type(part).__name__} as its class has it", "one with hooks or a forward of its own",
                "nothing is proven about what they do to images or codes",
            )  # fmt: skip
    if encoder._forward is not None:
        raise ModelError("an encoder that draws", f"{kind.__name__} with another forward", "leave `forward_as` first")
    return encoder


def behind_codes(model: Model, x: Tensor, seed: int) -> Tensor:
    """Logits of the network of an encoded model on codes that do not follow `seed`."""
    reseed(0)
    codes = model.encoder(x)  # type: ignore[attr-defined]
    reseed(seed)
    return model.network(codes)  # type: ignore[attr-defined]
