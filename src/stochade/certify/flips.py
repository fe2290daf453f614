"""Certificates of flip noise on codes: how many letters of one realised code anybody may change.

What is certified is the network behind the encoder, for one code: the majority class of network(noise(code)) is the
same for every code of the alphabet that differs in fewer than `radius` letters, wherever they are and whatever they
become. That is the threat of the sparse encoding attack (`attacks.Flips`): a change counts once, also from -1 to 1,
and k flips per frame are k T in all. It says nothing about images by itself, since another draw of the encoder is
another code; `certify_encodings` bounds the share of an image's encodings that are certified.

The bound and its rounding are derived in `flip_table`. For every split of r changes into added, deleted and turned
letters, a class with probability p keeps the vote when p > 1 - m(split); the radius is the largest r of which every
split that the code allows is certified (no more deletions than spikes, no more additions than zeros), plus one: it is
certified at every distance strictly below.

Cost: the table depends on the noise alone and is made once for all inputs (plus = minus: microseconds per flip; else
a table up to 100 flips of {0, 1} takes tenths of a second, up to 30 of {-1, 0, 1} a second); an input then costs a
look-up. Network evaluations per input: selection + draws, as for any smoothing.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn

from stochade.attacks.codes import encode, encoder_and_network
from stochade.attacks.flips import BINARY, Flips
from stochade.certify.confidence import check_alpha, check_count, check_draws, lower_bound
from stochade.certify.flip_table import Table
from stochade.certify.procedure import Certificate, certify
from stochade.certify.smoothing import Model, Smoothing
from stochade.errors import BudgetError, LabelsError, ModelError
from stochade.randomness import identities, seed_for, untouched

GRAIN = 2**24  # noise is drawn in whole numbers of this many, so its probabilities are just those of the table


@lru_cache(maxsize=16)
def _table(plus: float, minus: float, signed: bool) -> Table:
    return Table(plus, minus, signed)


class FlipNoise(Smoothing):
    """Every letter of a code changes independently: 0 with probability p_plus, every other letter with p_minus; of
    {-1, 0, 1}, each of the two other letters has half of it.

    Probabilities are rounded to multiples of 2^-24 (signed: 2^-23), the attributes say to which.

    Args:
        p_plus: probability that a 0 changes. p_minus: that a spike changes; None: the same (uniform noise, Lee et
            al. 2019).
        alphabet: (0, 1) or "binary", (-1, 0, 1) or "signed", as in `Flips`.

    Raises:
        BudgetError: a probability outside [0, 1], noise that never flips anything, another alphabet.
    """

    norm = "l0"

    def __init__(self, p_plus: float, p_minus: float | None = None, alphabet: Sequence[float] | str = BINARY):
        both = (p_plus, p_plus if p_minus is None else p_minus)
        for p in both:
            if isinstance(p, bool) or not isinstance(p, int | float) or not 0 <= p <= 1:
                raise BudgetError("probabilities of a flip in [0, 1]", repr(p), "FlipNoise(0.01, 0.3)")
        self.alphabet = Flips(0, alphabet).letters
        grain = GRAIN // 2 if self.signed else GRAIN
        self.p_plus, self.p_minus = (round(p * grain) / grain for p in both)
        if self.p_plus == self.p_minus == 0:
            raise BudgetError("noise that flips something", f"p_plus={both[0]}, p_minus={both[1]}", "FlipNoise(0.1)")
        self.unit = "flips"

    @property
    def signed(self) -> bool:
        """Whether the letters are -1, 0 and 1."""
        return self.alphabet == "signed"

    @property
    def table(self) -> Table:
        """m of every split of flips; shared by equal noises."""
        return _table(self.p_plus, self.p_minus, self.signed)

    def describe(self) -> dict:
        return {
            "smoothing": type(self).__name__, "norm": self.norm,
            "p_plus": self.p_plus, "p_minus": self.p_minus, "alphabet": self.alphabet,
        }  # fmt: skip

    def check(self, model: Model) -> None:
        if all(isinstance(getattr(model, part, None), nn.Module) for part in ("encoder", "network")):
            raise ModelError(
                "the network behind the encoder, for flip noise on codes", type(model).__name__,
                "certify(model.network, codes, ...), or certify_encodings(model, images, labels, ...)",
            )  # fmt: skip

    def check_inputs(self, x: Tensor) -> None:
        Flips(0, self.alphabet).check(x)

    def draw(self, model: Model, x: Tensor) -> Tensor:
        return model(self.flipped(x))

    def flipped(self, x: Tensor) -> Tensor:
        """Codes [B,T,...] with their letters drawn anew; ImagesError for other letters than the alphabet's."""
        one = x[:1] if x.stride(0) == 0 else x  # many draws of one code
        Flips(0, self.alphabet).check(one)
        chance = torch.where(one == 0, round(self.p_plus * GRAIN), round(self.p_minus * GRAIN)).to(torch.int32)
        number = torch.randint(GRAIN, x.shape, dtype=torch.int32, device=x.device)
        changed = (number < chance).to(x.dtype)  # where() broadcasts several times slower than these products
        if not self.signed:
            return changed.mul_(1 - 2 * one).add_(one)
        first, second = ((one + 1 + step) % 3 - 1 for step in (1, 2))
        return changed.mul_(second - one).add_(one).addcmul_((number < chance // 2).to(x.dtype), first - second)

    def needed(self, added: int = 0, deleted: int = 0, turned: int = 0) -> float:
        """The probability 1 - m above which a class keeps the vote under so many letters added (0 -> v), deleted
        (v -> 0) and turned (v -> -v).

        Raises:
            BudgetError: numbers that are no counts, letters turned in {0, 1}, or more flips than tables go up to.
        """
        split = [check_count(value, "flips", 0) for value in (added, deleted, turned)]
        if turned and not self.signed:
            raise BudgetError("no letter of {0, 1} turned", str(turned), "1 -> 0 is a deletion")
        every = len(self.table.kinds)
        share = self.table.shares(sum(split))[tuple(split[:every]) if every > 1 else (sum(split),)]
        return math.nextafter(1 - share, 1)  # the difference may have been rounded down

    def radius(self, p: float, x: Tensor | None = None) -> float:
        """One more than the largest number of flips that leave the class; without `x`, of a code with enough letters
        of every kind. Tables end at 10,000 flips for p_plus = p_minus, at 400 for {0, 1} and 40 for {-1, 0, 1}
        otherwise."""
        if not 0 <= p <= 1:
            raise BudgetError("a probability in [0, 1]", repr(p))
        zeros, others = math.inf, math.inf
        if x is not None:
            zeros = int((x == 0).sum())
            others = x.numel() - zeros
        return self.table.largest(1 - p, zeros, others) + 1.0  # 1 - p is exact for p >= 1/2


def in_all(threat: Flips, frames: int) -> float:
    """The flips of a threat in a whole code of so many frames: k T for k per frame."""
    return threat.k * (check_count(frames, "frames") if threat.per == "frame" else 1)


@dataclass(frozen=True)
class Encodings:
    """Certificates of fresh encodings of one image.

    Attributes:
        certificates: of each encoding, wrong with probability at most alpha each. label: of the image.
    """

    certificates: tuple[Certificate, ...]
    label: int
    alpha: float

    def count(self, flips: float) -> int:
        """How many encodings are certified to keep the label under so many flips in all."""
        return sum(one.prediction == self.label and one.radius > flips for one in self.certificates)

    def share(self, flips: float, alpha: float = 0.001) -> float:
        """A lower bound of the probability that a fresh encoding of the image keeps the label under any so many flips
        in all; it exceeds the truth with probability at most `alpha`, over encodings and draws.

        Let A: an encoding is drawn and certified. Encodings are independent, so their number bounds P(A) from below
        (Clopper-Pearson at `alpha`). A certificate is wrong with probability at most self.alpha, so at least
        P(A) - self.alpha of the encodings keep the label. The bound is of one number of flips, chosen beforehand.
        """
        return max(0.0, lower_bound(self.count(flips), len(self.certificates), alpha) - self.alpha)


def certify_encodings(
    model: nn.Module, x: Tensor, y: Tensor, smoothing: FlipNoise, encodings: int = 100, *, selection: int = 100,
    draws: int = 10_000, alpha: float = 0.001, batch: int = 1000, seed: int = 0, ids: Tensor | None = None,
    independent: bool = False,
) -> list[Encodings]:  # fmt: skip
    """Encodes every image anew so many times and certifies the network behind the encoder on each code.

    Args:
        model: with an `encoder` (images -> codes) and a `network` (codes -> logits).
        x, y: images [N,...] and labels [N]. ids: as in `certify`.
        encodings: m. The rest, of each of them: as in `certify`. Network evaluations per image: m (selection +
            draws).

    Raises:
        LabelsError: not one label per image. Else as `certify`, and ModelError for a model without these parts or
            with codes of another alphabet.
    """
    check_alpha(alpha)
    check_draws(selection, draws, alpha)
    check_count(encodings, "encodings")
    if not isinstance(y, Tensor) or y.shape != x.shape[:1]:
        raise LabelsError(f"labels [{len(x)}]", str(tuple(y.shape)) if isinstance(y, Tensor) else type(y).__name__)
    threat = Flips(0, smoothing.alphabet)
    _, network = encoder_and_network(model, threat)
    known = identities(x, y) if ids is None else ids
    found = []
    for i in range(len(x)):
        own = [seed_for(seed, "encoding", int(known[i]), j) for j in range(encodings)]
        with untouched(model):
            codes = torch.cat([encode(model, x[i : i + 1], threat, one) for one in own])
        certificates = certify(
            network, codes, smoothing, selection=selection, draws=draws, alpha=alpha, batch=batch, seed=seed,
            ids=torch.tensor(own), independent=independent,
        )  # fmt: skip
        found.append(Encodings(tuple(certificates), int(y[i]), alpha))
    return found
