"""PREDICT and CERTIFY of randomized smoothing (Cohen, Rosenfeld, Kolter 2019, figure 2), for every `Smoothing`."""

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from stochade.attacks.inputs import check_ids
from stochade.certify.confidence import check_alpha, check_count, check_draws, lower_bound, vote_decided
from stochade.certify.smoothing import Model, Smoothing, check_independent
from stochade.certify.votes import Voter
from stochade.randomness import identities, untouched

ABSTAIN = -1


@dataclass(frozen=True)
class Certificate:
    """What is proven about the majority vote at one input, wrong with probability at most alpha.

    Attributes:
        prediction: the class, or -1: the draws did not decide it.
        radius: at every distance below it (in the smoothing's norm) the majority class is the same; 0 when
        abstaining.
        lower: the confidence bound of the class's probability that the radius follows from.
        votes: of the draws that bound it, per class. draws: how many were made in all, those that chose it included.
        seconds: wall time.
    """

    prediction: int
    radius: float
    lower: float
    votes: tuple[int, ...]
    draws: int
    seconds: float = 0.0


def certify_one(
    voter: Voter, classes: int, selection: int = 100, draws: int = 100_000, alpha: float = 0.001
) -> Certificate:
    """CERTIFY of one input: `selection` draws choose the class, `draws` further ones bound its probability from below
    at level alpha. The chosen class is the one that is bounded, whatever the second votes say: bounding their own
    winner would use the same draws twice.
    """
    start = time.perf_counter()
    first = voter.votes("selection", selection, classes)
    chosen = int(first.argmax())
    votes = voter.votes("bound", draws, classes)
    lower = lower_bound(int(votes[chosen]), draws, alpha)
    sure = lower > 0.5
    return Certificate(
        chosen if sure else ABSTAIN, voter.smoothing.radius(lower, voter.x[0]) if sure else 0.0, lower,
        tuple(votes.tolist()), selection + draws, time.perf_counter() - start,
    )  # fmt: skip


def predict_one(voter: Voter, classes: int, draws: int = 100, alpha: float = 0.001) -> tuple[int, tuple[int, ...]]:
    """PREDICT: (class or -1, votes). The class is that of the smoothed classifier but for probability alpha."""
    votes = voter.votes("prediction", draws, classes)
    (most, second), order = votes.topk(2).values.tolist(), int(votes.argmax())
    return (order if vote_decided(most, second, alpha) else ABSTAIN), tuple(votes.tolist())


def certify(
    model: Model, x: Tensor, smoothing: Smoothing, *, selection: int = 100, draws: int = 100_000, alpha: float =
    0.001,
    batch: int = 1000, seed: int = 0, ids: Tensor | None = None, independent: bool = False,
) -> list[Certificate]:  # fmt: skip
    """One certificate per input; the model and the global generators come back as they were.

    Args:
        model: x [N,...] -> logits [N,K]; a random one must draw anew for every row.
        x: inputs [N,...]. smoothing: what is random, such as Gaussian(0.25) or RateCode(4).
        selection, draws, alpha: n0, n and the failure probability, per input.
        batch: draws per forward. seed, ids: draws of an input follow (seed, its identity).
        independent: the caller's word that a foreign random model draws anew for every row.

    Raises:
        BudgetError: too few draws for alpha, n0 >= n, or other impossible numbers; before any compute.
        ModelError: a model whose draws would not be independent (see `check_independent`).
    """
    check_alpha(alpha)
    check_draws(selection, draws, alpha)
    check_count(batch, "draws per forward (batch)")
    check_count(seed, "a seed", 0)
    classes = first_look(model, x, smoothing, independent, batch)
    known = checked_ids(ids, x)
    found = []
    with untouched(model):
        for i in range(len(x)):
            voter = Voter(model, smoothing, x[i : i + 1], seed, int(known[i]), batch)
            found.append(certify_one(voter, classes, selection, draws, alpha))
    return found


@torch.no_grad()
def first_look(model: Model, x: Tensor, smoothing: Smoothing, independent: bool, batch: int = 64) -> int:
    """The number of classes, after every check of the inputs x [N,...] and of the model in batches of `batch`."""
    smoothing.check_inputs(x)
    check_independent(model, x[:1], smoothing, independent, batch)
    with untouched(model):
        return smoothing.draw(model, x[:1]).shape[1]


def checked_ids(ids: object, x: Tensor) -> Tensor:
    """Whole numbers [N], by default the hashes of the inputs; LabelsError for others."""
    return identities(x, torch.zeros(len(x), dtype=torch.int64)) if ids is None else check_ids(ids, len(x))
