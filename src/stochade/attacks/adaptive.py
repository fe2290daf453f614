"""The adaptive search: given any model, find by itself the attack that works on it.

Views of the model x objectives x draws x step rules x starts is far too many to try in full, so candidates meet on a
few examples with a few passes, the better ones go on with more of both (successive halving, Jamieson and Talwalkar
2016), and what is learnt about one part is combined with what is learnt about the others. Everything that was tried
is kept, with what it bought.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from stochade.attacks.ball import Ball
from stochade.attacks.base import Attack
from stochade.attacks.gradients import Model, check_whole
from stochade.attacks.objectives import margin
from stochade.attacks.space import Candidate, variations, views
from stochade.errors import GradientError
from stochade.nn.discrete import scope_of
from stochade.randomness import reseed, seed_for, untouched

SCORING = 20  # fresh draws that score a trial on a random model
SHARES = (0.3, 0.35, 0.2, 0.15)  # of the budget: views, variations, combinations, finals
FEWEST = 8  # examples of the first round
GAIN = 0.02  # accuracy that another winner must take away
FREE = 4  # attacks without backpropagation need so many times the passes of others to show what they can do


@dataclass(frozen=True)
class Trial:
    """One candidate in one round.

    Attributes:
        candidate: what was tried, and `attack` with the budget it had.
        round: 0 views, 1 variations of the best, 2 combinations, 3 finals. examples: how many it ran on.
        passes: forwards and backwards it really spent per example.
        right: [n, draws] whether fresh draws at its inputs were right; empty where it failed.
        margin: mean margin there (negative: the model is right), by which ties are broken.
        kept: whether it went on to the next round, or was chosen in the last.
        note: why it failed, or "".
    """

    candidate: Candidate
    attack: Attack
    round: int
    examples: int
    passes: float
    right: Tensor
    margin: float
    kept: bool = False
    note: str = ""

    @property
    def accuracy(self) -> float:
        """Mean accuracy of one prediction; 1 where the candidate failed."""
        return float(self.right.double().mean()) if self.right.numel() else 1.0

    @property
    def rank(self) -> tuple[float, float]:
        """What decides: the lower accuracy, then the higher margin."""
        return (round(self.accuracy, 3), -self.margin)


@dataclass
class Search:
    """The outcome: trials in the order tried, and the attacks worth running on everything, strongest first."""

    trials: list[Trial] = field(default_factory=list)
    winners: list[Candidate] = field(default_factory=list)

    @property
    def passes(self) -> float:
        """Forwards and backwards of all trials, summed over examples."""
        return sum(t.passes * t.examples for t in self.trials)


def search_attacks(
    model: Model,
    x: Tensor,
    y: Tensor,
    threat: Ball,
    *,
    passes: int = 3000,
    winners: int = 3,
    seed: int = 0,
    random: bool | None = None,
    report: Callable[[Trial], None] | None = None,
) -> Search:
    """Look for the strongest attacks on the model inside the threat.

    Args:
        x, y: a few dozen examples that the model mostly gets right (`worth_attacking` picks such).
        passes: forwards and backwards per example for the whole search, at most (attacks leave fooled examples, so
            less is used on weak models).
        winners: how many attacks to choose at most; each must break examples that those before it do not.
        random: whether the model is random, where that is known better than from its layers.
        report: called with every finished trial.

    Raises:
        BudgetError: a budget too small to try anything.
    """
    check_whole(passes, "passes", 100)
    check_whole(winners, "winners")
    random = scope_of(model) != "none" if random is None else random
    run = _Run(model, x, y, threat, random, seed, report)
    shares, draws = [round(passes * share) for share in SHARES], 4 if random else 1
    seen = views(model, threat, random)
    first = run.round(0, [Candidate(v, draws=draws if v.averages else 1) for v in seen], shares[0], 1 / 3)
    bases = _best([t for t in first if not t.candidate.free], 3)
    bases += _best([t for t in first if t.candidate.free], 1)
    run.keep(bases)
    pool = [c for t in bases for c in variations(t.candidate, random, threat.name)]
    second = run.round(1, pool, shares[1], 2 / 3)
    kept = _best(second, max(4, len(second) // 4))
    run.keep(kept)
    third = run.round(2, _combined(bases, second) + [t.candidate for t in kept[:4]], shares[2], 1.0)
    kept = _best(third, 6)
    run.keep(kept)
    last = run.round(3, [t.candidate for t in kept], shares[3], 1.0)
    chosen = _covering(last, winners)
    run.keep(chosen)
    return Search(run.trials, [t.candidate for t in chosen])


class _Run:
    """The rounds of one search on one set of examples."""

    def __init__(self, model: Model, x: Tensor, y: Tensor, threat: Ball, random: bool, seed: int, report):
        self.model, self.x, self.y, self.threat, self.random = model, x, y, threat, random
        self.seed, self.report = seed, report
        self.trials: list[Trial] = []

    def round(self, number: int, candidates: list[Candidate], passes: int, part: float) -> list[Trial]:
        """Try each candidate on a part of the examples, within `passes` per example of the whole set."""
        count = min(len(self.x), max(FEWEST, round(part * len(self.x))))
        distinct = {c.name: c for c in candidates}
        while True:  # what cannot be tried within its share makes room for the others
            weights = {name: FREE if c.free else 1 for name, c in distinct.items()}
            unit = passes * len(self.x) / (max(1, sum(weights.values())) * count)
            dear = {n: c.least / weights[n] for n, c in distinct.items() if c.least > 1.5 * unit * weights[n]}
            if not dear or len(distinct) <= 2:
                break
            del distinct[max(dear, key=lambda name: dear[name])]
        done = [self._trial(number, c, count, int(unit * weights[n])) for n, c in distinct.items()]
        self.trials += done
        return done

    def keep(self, kept: list[Trial]) -> None:
        self.trials[:] = [replace(t, kept=True) if any(t is k for k in kept) else t for t in self.trials]

    def _trial(self, number: int, candidate: Candidate, count: int, passes: int) -> Trial:
        x, y = self.x[:count], self.y[:count]
        attack = candidate.attack(self.threat, passes)
        try:
            attempt = attack.run(self.model, x, y, seed=seed_for(self.seed, "search", number))
        except GradientError as problem:
            trial = Trial(candidate, attack, number, count, 0.0, torch.empty(count, 0), -torch.inf, note=str(problem))
        else:
            right, worth = self._score(attempt.inputs, y, number)
            spent = float((attempt.forwards + attempt.backwards).double().mean())
            trial = Trial(candidate, attack, number, count, spent, right, worth)
        if self.report is not None:
            self.report(trial)
        return trial

    @torch.no_grad()
    def _score(self, inputs: Tensor, y: Tensor, number: int) -> tuple[Tensor, float]:
        """[n, draws] right on fresh draws, and the mean margin, each example's clipped so that none outweighs all."""
        rights, margins = [], []
        with untouched(self.model):
            reseed(seed_for(self.seed, "search score", number))
            for _ in range(SCORING if self.random else 1):
                logits = self.model(inputs)
                rights.append(logits.argmax(1) == y)
                scale = (logits.amax(1) - logits.mean(1)).clamp_min(1e-12)
                margins.append(margin(logits, y) / scale)
        return torch.stack(rights, 1).cpu(), float(torch.stack(margins).mean(0).clamp(-2, 2).mean())


def _best(trials: list[Trial], count: int) -> list[Trial]:
    """The strongest trials; equal ones in the order tried."""
    return sorted((t for t in trials if t.right.numel()), key=lambda t: t.rank)[:count]


def _combined(bases: list[Trial], variants: list[Trial]) -> list[Candidate]:
    """For each base the candidate with the best value of every part at once, as its one-part variations found it."""
    found = []
    for base in bases:
        changes = {}
        same = [t for t in variants if t.candidate.view is base.candidate.view]
        reference = next((t for t in same if t.candidate == base.candidate), base)
        for part in ("objective", "rule", "start", "draws"):
            others = [t for t in same if getattr(t.candidate, part) != getattr(base.candidate, part)]
            best = _best(others, 1)
            if best and best[0].rank < reference.rank:
                changes[part] = getattr(best[0].candidate, part)
        found.append(replace(base.candidate, **changes))
        for part, value in changes.items():  # each gain left out once: gains do not always add up
            if len(changes) > 1:
                found.append(replace(base.candidate, **{p: v for p, v in changes.items() if (p, v) != (part, value)}))
    return found


def _covering(trials: list[Trial], count: int) -> list[Trial]:
    """The strongest, then whichever lowers the accuracy of the worst-of-chosen most, while any does by GAIN."""
    chosen, ranked = _best(trials, 1), _best(trials, len(trials))
    while chosen and len(chosen) < count:
        before = _worst([t.right for t in chosen])
        gains = [before - _worst([*(c.right for c in chosen), t.right]) for t in ranked]
        if max(gains) < GAIN:
            break
        chosen.append(ranked[gains.index(max(gains))])
    return chosen


def _worst(rights: list[Tensor]) -> float:
    """Accuracy under the worst of several attacks per example; half of the draws choose, the other half judge, so
    that luck is not taken for strength. One draw does both on a deterministic model."""
    stacked = torch.stack(rights).double()
    halves = (stacked[:, :, ::2], stacked[:, :, 1::2]) if stacked.shape[2] > 1 else (stacked, stacked)
    rows = torch.arange(stacked.shape[1])
    judged = [
        judge.mean(2)[choose.mean(2).argmin(0), rows].mean() for choose, judge in (halves, (halves[1], halves[0]))
    ]
    return float(sum(judged) / 2)


@torch.no_grad()
def worth_attacking(model: Model, x: Tensor, y: Tensor, count: int, seed: int = 0) -> Tensor:
    """Indices [<= count] of the first examples that most of 8 draws get right; of the first ones where none is."""
    with untouched(model):
        reseed(seed_for(seed, "worth attacking"))
        right = torch.stack([model(x).argmax(1) == y for _ in range(8)]).double().mean(0) > 0.5
    index = right.nonzero()[:count, 0]
    return index if len(index) else torch.arange(min(count, len(x)), device=x.device)
