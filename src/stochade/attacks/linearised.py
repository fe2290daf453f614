"""The model linearised at a point: slopes of every likely wrong class, and the shortest change that lets one win."""

import torch
from torch import Tensor

from stochade.attacks.apgd import Towards, likely
from stochade.attacks.ball import Ball, like
from stochade.attacks.gradients import TILE, Backprop, Gradient, Pass, check_logits, differentiate
from stochade.attacks.hyperplane import onto_hyperplane
from stochade.attacks.minimal import Book
from stochade.attacks.objectives import margin
from stochade.attacks.sparse_balls import L0
from stochade.randomness import Stream

FURTHER = 0.02  # of the gap: a first guess right on the boundary would be adversarial by luck


def lead(logits: Tensor, y: Tensor, goals: Tensor) -> Tensor:
    """z_goal - z_y."""
    return logits.gather(1, goals[:, None])[:, 0] - logits.gather(1, y[:, None])[:, 0]


def slopes(
    book: Book, gradient: Gradient, x: Tensor, rows: Tensor, goals: Tensor, stream: Stream
) -> tuple[Pass, Tensor, Tensor]:
    """The pass at x with, for every goal, how far it is ahead of the true class [n, C] and the derivative of that
    [n, C, ...]. Targeted, the one goal is to be ahead of all others. Plain backpropagation makes one forward per draw
    for all goals, with a backward for each."""
    if book.task.targets is not None:
        result = book.ledger.gradient(gradient, x, rows, margin, stream)
        return result, result.value[:, None], result.gradient[:, None]
    if isinstance(gradient, Backprop):
        return _shared(book, gradient, x, rows, goals)
    passes = [book.ledger.gradient(gradient, x, rows, Towards(lead, goal), stream) for goal in goals.T]
    return passes[0], torch.stack([p.value for p in passes], 1), torch.stack([p.gradient for p in passes], 1)


def _shared(book: Book, gradient: Backprop, x: Tensor, rows: Tensor, goals: Tensor) -> tuple[Pass, Tensor, Tensor]:
    ledger, seen, count = book.ledger, [], goals.shape[1]
    y, _ = ledger.goals(rows)
    leads = torch.zeros(goals.shape, dtype=x.dtype, device=x.device)
    found = x.new_zeros(*goals.shape, *x.shape[1:])
    with gradient.swapped(ledger.model), torch.enable_grad(), ledger.watch:
        for _ in range(gradient.draws):
            leaf = x.detach().requires_grad_()
            logits = check_logits(ledger.model(leaf), len(x))
            seen.append(logits.detach())
            for j, goal in enumerate(goals.T):
                ahead = lead(logits, y, goal)
                leads[:, j] += ahead.detach().to(x.dtype) / gradient.draws
                found[:, j] += differentiate(ahead.sum(), leaf, j + 1 < count) / gradient.draws
    ledger.forwards[rows] += gradient.draws
    ledger.backwards[rows] += gradient.draws * count
    return Pass(leads.amax(1), found[:, 0], torch.stack(seen)), leads, found


def shortest(threat: Ball, x: Tensor, slope: Tensor, need: Tensor) -> tuple[Tensor, Tensor]:
    """The shortest change in the threat's norm, inside the box, that lets one goal gain what it needs; where the box
    lets none, the change that gets nearest.

    Args:
        slope: [n, C, ...]. need: [n, C], positive.

    Returns:
        The change, like x, and [n] whether the box lets it gain enough.
    """
    n, goals = need.shape
    at, flat = x.repeat_interleave(goals, 0), slope.flatten(0, 1)
    if isinstance(threat, L0):
        step = threat.for_each(units(threat, at, flat, need.flatten())).move(flat, at) - at
    else:
        step = onto_hyperplane(threat.name, at, flat, need.flatten())
    gained = torch.linalg.vecdot(slope.flatten(2), step.view(n, goals, -1)) / need
    length = threat.distance(step, torch.zeros_like(step)).view(n, goals)
    enough = gained > 0.999
    best = torch.where(enough, length, 1e9 * (2 - gained)).argmin(1)
    return step.view(n, goals, *x.shape[1:])[torch.arange(n, device=x.device), best], enough.any(1)


def units(threat: L0, x: Tensor, slope: Tensor, need: Tensor) -> Tensor:
    """[n] how many values (or pixels) have to go to their bounds for a gain of `need` [n]."""
    bound = torch.where(slope > 0, 1.0, 0.0).to(x.dtype)
    gain = threat._merge(slope * (bound - x)).sort(1, descending=True).values.cumsum(1)
    return (gain < need[:, None]).sum(1).clamp(max=gain.shape[1] - 1).to(x.dtype) + 1


def first_guess(book: Book, gradient: Gradient, rows: Tensor, x: Tensor, classes: int, stream: Stream) -> Tensor:
    """Where a search begins: at the nearest boundary of the model linearised at the original, which is the answer on
    linear models and chooses the class to go to on others. The margin alone would choose the runner-up, which need
    not be near. Rows that a warm start has brought to the boundary, and targeted ones, keep their x."""
    if book.task.targets is not None or classes < 2:
        return x
    new = torch.isinf(book.best[rows])
    index, x = rows[new], x.clone()
    if not len(index):
        return x
    guesses, ours = x[new], stream.subset(new)
    every = torch.arange(len(index), device=x.device)
    for part in every.split(max(1, TILE // classes)):  # each has a gradient for every class
        guesses[part] = _guessed(book, gradient, index[part], guesses[part], classes, ours.subset(part))
    x[new] = guesses
    return x


def _guessed(book: Book, gradient: Gradient, rows: Tensor, x: Tensor, classes: int, stream: Stream) -> Tensor:
    goals = likely(book.clean[rows], book.task.y[rows], None, classes - 1)
    _, leads, found = slopes(book, gradient, x, rows, goals, stream)
    scale = leads.abs().amax(1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
    need = torch.maximum(-leads, 1e-3 * scale) * (1 if isinstance(book.threat, L0) else 1 + FURTHER)
    step, enough = shortest(book.threat, x, found, need)
    guess = (x + step).clamp_(0, 1)
    won = book.walk(rows, guess)
    return torch.where(like(won, guess), book.ledger.found[rows], torch.where(like(enough, guess), guess, x))
