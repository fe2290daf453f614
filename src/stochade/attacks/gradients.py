"""Gradients of an objective through random and discrete models: `Backprop` and `Evolution`.

A gradient is called with a model and a batch and returns a `Pass`: everything per example, and the logits of
every draw it made, so that the search can see how often the current point fools the model at no extra cost.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from stochade.attacks.objectives import Objective
from stochade.errors import BudgetError, GradientError, LogitsError
from stochade.nn.discrete import Surrogate, backward_as, forward_as, scope_of
from stochade.randomness import Stream

Model = Callable[[Tensor], Tensor]
TILE = 256  # images per forward when draws are tiled; more costs memory and, on a CPU, time (results/memory)


class Pass(NamedTuple):
    """One evaluation of an objective and its gradient.

    Attributes:
        value: [N] mean objective over the draws.
        gradient: like x, of the mean objective.
        logits: [draws, N, K], one entry per draw at x itself.
        spent: [2, N] forwards and backwards of each example, from gradients that stop early; None: as many as the
            gradient's own `forwards` and `backwards` say.
    """

    value: Tensor
    gradient: Tensor
    logits: Tensor
    spent: Tensor | None = None


class Gradient(Protocol):
    """How an attacker differentiates. `forwards` and `backwards` are the passes per example of one call."""

    @property
    def forwards(self) -> int: ...

    @property
    def backwards(self) -> int: ...

    def __call__(
        self,
        model: Model,
        x: Tensor,
        y: Tensor,
        objective: Objective,
        *,
        targets: Tensor | None = None,
        stream: Stream | None = None,
    ) -> Pass: ...


def check_whole(value: object, name: str, least: int = 1) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise BudgetError(f"a whole number {name} >= {least}", repr(value), f"pass {name}={20 if least else 0}, say")
    return value


def all_finite(t: Tensor) -> bool:
    """Whether no entry is NaN or infinite. A sum tells at a tenth of the cost: both survive it, and only where it
    overflows must every entry be looked at."""
    return bool(torch.isfinite(t.sum())) or bool(torch.isfinite(t).all())


def check_logits(logits: Tensor, count: int) -> Tensor:
    """The logits, when they are [count, K] and finite; a named error otherwise."""
    if not isinstance(logits, Tensor) or logits.dim() != 2 or logits.shape[0] != count:
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise LogitsError(f"logits [{count}, K] from the model", str(got), "return one row of class scores per image")
    if logits.shape[1] < 2:
        raise LogitsError("logits of at least two classes", f"{logits.shape[1]}", "return one score per class")
    if not all_finite(logits.detach()):
        bad = int((~torch.isfinite(logits.detach())).any(1).sum())
        raise LogitsError(
            "finite logits", f"NaN or infinity in {bad} of {count} rows", "look for overflow in the model"
        )
    return logits


def objective_values(objective: Objective, logits: Tensor, y: Tensor, targets: Tensor | None) -> Tensor:
    return objective(logits, y) if targets is None else objective(logits, y, targets)


@dataclass(frozen=True)
class Backprop:
    """Backpropagation, averaged over `draws` of the model's own randomness (expectation over randomness).

    The mean over draws of the objective is differentiated, never the objective of a mean. Draws are tiled into
    one batch where every layer declares noise per example, and looped otherwise: a tiled batch sees one draw of
    per-call noise.

    Args:
        draws: forward and backward passes per gradient.
        substitutes: backwards to use instead of the layers' own, as in `backward_as`: a name for all layers that
            declare it ("soft") or a mapping.
        relaxed: forwards to use instead of the layers' own, as in `forward_as` ("mean-field"). The logits of
            such a pass are not the model's, so it never says who is fooled.
    """

    draws: int = 1
    substitutes: Mapping | str | None = None
    relaxed: Mapping | str | None = None
    tile: int = field(default=TILE, repr=False)

    def __post_init__(self):
        check_whole(self.draws, "draws")
        check_whole(self.tile, "tile")

    @property
    def forwards(self) -> int:
        return self.draws

    @property
    def backwards(self) -> int:
        return self.draws

    @contextmanager
    def swapped(self, model: Model) -> Iterator[None]:
        """The model as this attacker sees it."""
        with ExitStack() as stack:
            if self.substitutes is not None and isinstance(model, nn.Module):
                stack.enter_context(backward_as(model, _mapping(self.substitutes)))
            if self.relaxed is not None and isinstance(model, nn.Module):
                stack.enter_context(forward_as(model, _mapping(self.relaxed)))
            yield

    def __call__(self, model, x, y, objective, *, targets=None, stream=None) -> Pass:
        with self.swapped(model), torch.enable_grad():
            if self.draws > 1 and self.tile >= 2 * len(x) and scope_of(model) in ("none", "example"):
                return self._tiled(model, x, y, objective, targets)
            return self._looped(model, x, y, objective, targets)

    def _once(self, model, x, y, objective, targets) -> tuple[Tensor, Tensor, Tensor]:
        leaf = x.detach().requires_grad_()
        logits = check_logits(model(leaf), len(x))
        value = objective_values(objective, logits, y, targets)
        return value.detach().to(x.dtype), differentiate(value.sum(), leaf), logits.detach()

    def _looped(self, model, x, y, objective, targets) -> Pass:
        if self.draws == 1:  # nothing to add up: passes over the images cost as much as a small layer
            value, gradient, logits = self._once(model, x, y, objective, targets)
            return Pass(value, gradient, logits[None])
        total_value = torch.zeros(len(x), dtype=x.dtype, device=x.device)
        total_gradient, seen = torch.zeros_like(x), None
        for draw in range(self.draws):
            value, gradient, logits = self._once(model, x, y, objective, targets)
            seen = logits.new_empty(self.draws, *logits.shape) if seen is None else seen
            seen[draw] = logits  # stacking a list would hold everything twice
            total_value += value
            total_gradient += gradient
        assert seen is not None
        return Pass(total_value / self.draws, total_gradient.div_(self.draws), seen)

    def _tiled(self, model, x, y, objective, targets) -> Pass:
        n, done, seen = len(x), 0, []
        value = torch.zeros(n, dtype=x.dtype, device=x.device)
        gradient = torch.zeros_like(x)
        per_pass = self.tile // n
        while done < self.draws:
            d = min(per_pass, self.draws - done)
            leaf = x.detach().requires_grad_()
            logits = check_logits(model(leaf.repeat(d, *(1,) * (x.dim() - 1))), d * n)
            values = objective_values(objective, logits, y.repeat(d), None if targets is None else targets.repeat(d))
            gradient += differentiate(values.sum(), leaf)
            value += values.detach().view(d, n).sum(0)
            seen.append(logits.detach().view(d, n, -1))
            done += d
        return Pass(value / self.draws, gradient / self.draws, torch.cat(seen))


def _mapping(choice: Mapping | str) -> Mapping:
    return {"*": choice} if isinstance(choice, str | Surrogate) else choice


def differentiate(total: Tensor, leaf: Tensor, again: bool = False) -> Tensor:
    """d total / d leaf; NaN counts as no information (0), an infinite entry as a very large one.

    Args:
        again: keep the graph for another derivative.
    """
    if not total.requires_grad:
        raise GradientError(
            "logits that depend on the images by autograd",
            "a graph that never reaches them (detached, or under no_grad)",
            "declare a surrogate backward (nn.Discrete), or attack with gradient=Evolution()",
        )
    (gradient,) = torch.autograd.grad(total, leaf, retain_graph=again, allow_unused=True)
    if gradient is None:
        raise GradientError(
            "logits that depend on the images by autograd",
            "a graph that does not contain them",
            "declare a surrogate backward (nn.Discrete), or attack with gradient=Evolution()",
        )
    if not all_finite(gradient):
        gradient = gradient.nan_to_num(nan=0.0, posinf=1e30, neginf=-1e30)
    return gradient


@dataclass(frozen=True)
class Evolution:
    """A gradient without backpropagation: antithetic Gaussian search directions, per example.

    g = mean over u of (L(x + sigma u) - L(x - sigma u)) / (2 sigma) * u, u standard normal (Salimans et al. 2017;
    NES, Ilyas et al. 2018). Unbiased for the gradient of the objective smoothed by N(0, sigma^2), whatever the
    model's own derivative is (zero, exploding, wrong); on a random model it averages over draws by itself.
    Losses never mix across examples.

    Args:
        pairs: antithetic pairs per gradient; 2 * pairs forwards.
        sigma: standard deviation of the directions, in units of images.
        draws: forwards at x itself, for the value.
    """

    pairs: int = 50
    sigma: float = 0.03
    draws: int = 1
    tile: int = field(default=TILE, repr=False)

    def __post_init__(self):
        check_whole(self.pairs, "pairs")
        check_whole(self.draws, "draws")
        if not (isinstance(self.sigma, int | float) and 0 < self.sigma < float("inf")):
            raise BudgetError("sigma > 0", repr(self.sigma), "0.01 to 0.1 suits images in [0,1]")

    @property
    def forwards(self) -> int:
        return 2 * self.pairs + self.draws

    @property
    def backwards(self) -> int:
        return 0

    def directions(self, stream: Stream, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """[N, *shape] random directions whose covariance is the identity."""
        return stream.normal(shape, dtype)

    @torch.no_grad()
    def __call__(self, model, x, y, objective, *, targets=None, stream=None) -> Pass:
        if stream is None:
            raise BudgetError("a stream of per-example randomness", "none", "pass stream=Stream(seed, ids)")
        seen = torch.stack([check_logits(model(x), len(x)) for _ in range(self.draws)])
        value = torch.stack([objective_values(objective, z, y, targets) for z in seen]).mean(0)
        gradient, done, n = torch.zeros_like(x), 0, len(x)
        per_pass = max(1, self.tile // (2 * n)) if scope_of(model) in ("none", "example") else 1
        while done < self.pairs:
            p = min(per_pass, self.pairs - done)
            u = self.directions(stream, (p, *x.shape[1:]), x.dtype).transpose(0, 1)  # [p, N, ...]
            if per_pass == 1:
                up = objective_values(objective, check_logits(model(x + self.sigma * u[0]), n), y, targets)[None]
                down = objective_values(objective, check_logits(model(x - self.sigma * u[0]), n), y, targets)[None]
            else:
                points = torch.cat([x + self.sigma * u, x - self.sigma * u]).flatten(0, 1)
                t = None if targets is None else targets.repeat(2 * p)
                values = objective_values(objective, check_logits(model(points), 2 * p * n), y.repeat(2 * p), t)
                up, down = values.view(2, p, n)
            weight = ((up - down) / (2 * self.sigma)).nan_to_num(nan=0.0)
            gradient += torch.einsum("pn,pn...->n...", weight, u)
            done += p
        return Pass(value, gradient / self.pairs, seen)
