"""The threat in spike space: few letters of a code may change, and each stays in its alphabet (mukhoty2025,
section 4). Codes are batch-first, [N, T, ...]; every attack that takes a threat takes them in the place of images.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stochade.attacks.ball import Ball, Threat
from stochade.attacks.gradients import Evolution
from stochade.attacks.sparse_balls import largest_mask
from stochade.errors import BudgetError, ImagesError

BINARY, SIGNED = (0.0, 1.0), (-1.0, 0.0, 1.0)
ALPHABETS = {"binary": BINARY, "signed": SIGNED}
PER = ("frame", "total")


@dataclass(frozen=True)
class Flips(Ball):
    """At most k letters of every frame of a code change (per="frame", the paper's budget), or of the whole code
    (per="total"); the changed ones may be any letter of the alphabet.

    A change counts once whatever its size: from -1 to 1 it is 2 long and one flip, as in table 3 of mukhoty2025.
    `steepest` solves equations 14 to 17 for {0, 1} and 18, 19 for {-1, 0, 1} exactly: what an entry can gain at most
    is separable, so the k largest positive gains are the best change.

    Args:
        eps: k, a whole number or inf (any code).
        alphabet: (0, 1) or "binary", (-1, 0, 1) or "signed".
        per: "frame" or "total". In codes of an aggregated model all encodings' frames count.

    Raises:
        BudgetError: a budget that is no whole number >= 0, another alphabet, another `per`.
    """

    alphabet: Sequence[float] | str = BINARY
    per: str = "frame"

    name = "flips"

    def __post_init__(self):
        number = isinstance(self.eps, int | float) and not isinstance(self.eps, bool)
        if not number or not self.eps >= 0 or (math.isfinite(self.eps) and self.eps != int(self.eps)):
            raise BudgetError(
                "a whole number of flips >= 0, or inf", repr(self.eps), "Flips(k) counts, it has no scale"
            )
        super().__post_init__()
        named = self.alphabet if isinstance(self.alphabet, str) else None
        letters = tuple(self.alphabet) if isinstance(self.alphabet, Sequence) else ()
        given = ALPHABETS.get(named) if named is not None else letters
        if given not in ALPHABETS.values():
            raise BudgetError("an alphabet (0, 1) or (-1, 0, 1)", repr(self.alphabet), "or 'binary', 'signed'")
        object.__setattr__(self, "alphabet", ALPHABETS["binary" if given == BINARY else "signed"])
        if self.per not in PER:
            raise BudgetError("per='frame' or per='total'", repr(self.per), "Flips(k) counts per frame by default")

    @property
    def k(self) -> float:
        """The budget: flips per frame, or in total."""
        return self.eps

    @property
    def bound(self) -> "Flips":
        """What holds for an attacked code and its encoding."""
        return self

    @property
    def lowest(self) -> float:
        """The first letter of the alphabet."""
        return float(self.alphabet[0])

    def resized(self, eps: float) -> "Flips":
        return type(self)(int(eps) if math.isfinite(eps) else eps, self.alphabet, self.per)

    def for_each(self, budgets: Tensor) -> Ball:
        if bool((budgets != budgets.round()).any()):
            raise BudgetError("whole numbers of flips", "fractions", "round the budgets")
        return super().for_each(budgets)

    def contains(self, other: Threat) -> bool:
        """k flips in total are at most k in every frame; the other way round depends on the number of frames."""
        if type(other) is not type(self) or other.size > self.size:
            return False
        assert isinstance(other, Flips)
        return set(other.alphabet) <= set(self.alphabet) and self.per in ("frame", other.per)

    def check(self, codes: object) -> None:
        """Codes [N, T, ...] of the alphabet, floating point, at least one entry; ImagesError otherwise."""
        letters = f"{{{', '.join(f'{letter:g}' for letter in self.alphabet)}}}"
        if not isinstance(codes, Tensor) or not codes.is_floating_point():
            got = f"dtype {codes.dtype}" if isinstance(codes, Tensor) else type(codes).__name__
            raise ImagesError(f"a float tensor of codes in {letters}", got, "encode the images: encoder(images)")
        if codes.dim() < 3 or codes.numel() == 0:
            raise ImagesError("codes [N,T,...]", f"shape {tuple(codes.shape)}", "batch first, then time")
        if not bool(self._spelled(codes).all()):
            low, high = float(codes.min()), float(codes.max())
            told = "images? Attack the network behind the encoder, or the signed alphabet"
            raise ImagesError(f"codes in {letters}", f"other values in [{low:.4g}, {high:.4g}]", told)

    def _spelled(self, codes: Tensor) -> Tensor:
        """Which entries are letters."""
        return (codes == codes.round()) & (codes >= self.lowest) & (codes <= 1)

    def allows(self, x: Tensor, x0: Tensor) -> Tensor:
        """[N] whether x is a code of the alphabet and inside the budget around x0."""
        budget = self.eps if self._each is None else self._each.to(x)
        return self._spelled(x).flatten(1).all(1) & (self.distance(x, x0) <= budget)

    def move(self, gradient, x, x0=None, size=None):
        """The k best letters changed, all others as in x0. With `size`, at most that many entries of each frame (or
        of the code) that x does not change yet may enter, at least one."""
        x0 = x if x0 is None else x0
        best = self._best(gradient, x0)
        gain = self._units((best - x0).mul_(gradient))
        if size is not None:
            present = self._units(x != x0)
            if isinstance(size, Tensor):
                entering = self._per_unit(size.round().clamp_min(1), x)
            else:
                entering = max(1, round(min(size, 1e9)))
            fresh = largest_mask(gain.masked_fill(present, -1), entering)
            gain = gain.masked_fill(~(present | fresh), -1)
        return self._written(x0, best, gain)

    def _best(self, gradient: Tensor, x0: Tensor) -> Tensor:
        """The letter that the gradient wants in every place, equations 16 and 19 as z + delta; any letter where it
        is zero, since there is nothing to gain."""
        return gradient.sign().clamp_min_(self.lowest).to(x0.dtype)

    def _units(self, values: Tensor) -> Tensor:
        """[N, T, ...] -> [units, entries]: what a budget is for is a row."""
        return values.flatten(2).flatten(0, 1) if self.per == "frame" else values.flatten(1)

    def _per_unit(self, each: Tensor, x: Tensor) -> Tensor:
        """[N] -> [units]."""
        return each.repeat_interleave(x.shape[1]) if self.per == "frame" else each

    def _count(self, x: Tensor) -> float | Tensor:
        return self.eps if self._each is None else self._per_unit(self._each.to(x.device), x)

    def _written(self, x0: Tensor, letters: Tensor, score: Tensor) -> Tensor:
        """x0 with `letters` in the places of the budget's largest positive scores [units, entries]."""
        if self._each is not None or self.eps >= score.shape[1]:
            return torch.where(largest_mask(score, self._count(x0)).view_as(x0), letters, x0)
        top = score.topk(int(self.eps), 1)  # few places: a mask over all would cost more than finding them
        before = self._units(x0)
        new = torch.where(top.values > 0, self._units(letters).gather(1, top.indices), before.gather(1, top.indices))
        return before.scatter(1, top.indices, new).view_as(x0)

    def project(self, x, x0):
        """The nearest allowed code in Euclidean distance."""
        letters = x.clamp(self.lowest, 1).round()
        saved = self._units((x - x0).square() - (x - letters).square())
        return self._written(x0, letters, saved)

    def start(self, x0, generator):
        """k places of every frame (or of the code) drawn without replacement, each with another letter."""
        order = generator.uniform(x0.shape[1:])
        if self.lowest < 0:
            further = 1 + (generator.uniform(x0.shape[1:], x0.dtype) < 0.5).to(x0.dtype)
            other = (x0 + 1 + further) % 3 - 1
        else:
            other = 1 - x0
        return self._written(x0, other, self._units(order))

    def distance(self, x, x0):
        """[N] flips: of the frame with the most, or of the whole code."""
        return self.counts(x, x0).amax(1) if self.per == "frame" else self.counts(x, x0).sum(1)

    def counts(self, x: Tensor, x0: Tensor) -> Tensor:
        """[N, T] flips of every frame."""
        return (x != x0).flatten(2).sum(2).to(x.dtype)

    @property
    def letters(self) -> str:
        """The alphabet by name: "binary" or "signed"."""
        return "signed" if self.lowest < 0 else "binary"

    def __str__(self) -> str:
        return in_words(self.eps, self.letters, self.per)


def in_words(k: float, letters: str | None, per: str) -> str:
    """ "signed flips 10 per frame", "flips 3 in total"; `letters` is None where nobody said."""
    return f"{'signed ' * (letters == 'signed')}flips {k:.4g} {'per frame' if per == 'frame' else 'in total'}"


NAMED = re.compile(
    r"(?:(?P<letters>binary|signed)[ -])?flips[ =:]+(?P<k>\S+?)(?:[ /]+(?P<per>per frame|frame|in total|total))?"
)


def names_flips(text: str) -> bool:
    """Whether the words of a threat are about codes: "flips=5", "signed flips 5 in total"."""
    return bool(re.match(r"(?:(?:binary|signed)[ -])?flips\b", text.strip().lower()))


def parse_flips(text: str, alphabet: Sequence[float] | str | None = None) -> Flips:
    """`"flips=5"`, `"flips=5 in total"`, `"signed flips 5 per frame"` -> a threat, as tables write it too.

    Args:
        alphabet: where the words name none: the letters of a model's encoder; None: {0, 1}.

    Raises:
        BudgetError: words that say something else, or a number that is no count.
    """
    hint = "for example flips=5, or 'flips=20 in total'"
    found = NAMED.fullmatch(text.strip().lower())
    if found is None:
        raise BudgetError("flips=K, per frame or in total", repr(text), hint)
    try:
        k = float(found["k"])
    except ValueError:
        raise BudgetError("a whole number of flips", repr(found["k"]), hint) from None
    per = "total" if (found["per"] or "").endswith("total") else "frame"
    whole = int(k) if math.isfinite(k) and k == int(k) else k
    return Flips(whole, found["letters"] or (BINARY if alphabet is None else alphabet), per)


def refuse_codes(threat: object, attack: str, hint: str = "for codes there are SEA and RandomSearch") -> None:
    """BudgetError for what moves between letters, where a code has nothing, or takes images only."""
    if isinstance(threat, Flips):
        raise BudgetError(f"a threat on images for {attack}", str(threat), hint)


def gradient_free(gradient: object) -> bool:
    """Whether a gradient, or one inside it, comes from queries around a point instead of backpropagation."""
    inner = [getattr(gradient, "inner", None), *(getattr(gradient, "parts", None) or ())]
    return isinstance(gradient, Evolution) or any(gradient_free(part) for part in inner if part is not None)


def refuse_queries(threat: object, gradient: object) -> None:
    """BudgetError for gradients by queries at x + sigma u: no such point is a code, and nobody may send it."""
    if isinstance(threat, Flips) and gradient_free(gradient):
        hint = "without gradients there is RandomSearch(Flips(k)), which asks about codes only"
        raise BudgetError(f"a gradient by backpropagation under {threat}", type(gradient).__name__, hint)
