"""Stochastic local winner-takes-all (Panousis, Chatzis and Theodoridis 2021): units compete inside small blocks.

At test the released code draws a Gumbel-softmax at temperature 0.01. Two gradients of one image then have
nothing in common, which looks like robustness to any attack that follows them. The noise-free softmax of the
same activations is smooth and tells where to go.
"""

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from stochade.errors import ModelError, UsageError
from stochade.native import competition as native
from stochade.nn.discrete import Discrete, Surrogate
from stochade.nn.sampling import gumbel_like, logistic_, logistic_like

_FAR = 40.0  # a share of 4e-18 is none; smaller ones end among the subnormal numbers, where arithmetic is slow


def _blocks(x: Tensor, units: int) -> Tensor:
    return x.unflatten(1, (-1, units))


def _noise(x: Tensor, units: int) -> Tensor:
    """The noise of one competition: a Gumbel variable for every unit, [N, C / units, units, ...]. Of two units only
    the difference matters, which is logistic, [N, C / 2, ...]."""
    if units == 2:
        return native.noise(x) if native.suits(x) else logistic_like(_blocks(x, 2)[:, :, 0])
    return gumbel_like(_blocks(x, units))


def _shares(x: Tensor, units: int, temperature: float, noise: Tensor | None = None) -> Tensor:
    """Each unit's share of its block, [N, C / units, units, ...]: softmax((x + Gumbel noise) / temperature)."""
    scores = _blocks(x, units)
    if noise is None:
        return torch.softmax(scores / temperature, 2)
    if units == 2:
        share = ((noise + scores[:, :, 0] - scores[:, :, 1]) / temperature).clamp(-_FAR, _FAR).sigmoid()
        return torch.stack((share, 1 - share), 2)
    return torch.softmax((scores + noise) / temperature, 2)


def _pairs(x: Tensor, temperature: float) -> Tensor:
    """A soft draw for blocks of two without a record for the backward: what `_shares` gives, worked out where the
    result will stand."""
    if native.suits(x):
        return native.draw(x, temperature)
    blocks = _blocks(x, 2)
    first, second = blocks.unbind(2)
    out = torch.empty_like(blocks, memory_format=torch.contiguous_format)
    share, rest = out.unbind(2)
    logistic_(share).add_(first).sub_(second).div_(temperature).clamp_(-_FAR, _FAR).sigmoid_()
    torch.sub(share.new_ones(()), share, out=rest)
    rest.mul_(second)
    share.mul_(first)
    return out.flatten(1, 2)


def _winners(scores: Tensor) -> Tensor:
    """1 for the largest of each block (the first one of equals), else 0."""
    return torch.zeros_like(scores).scatter_(2, scores.argmax(2, keepdim=True), 1.0)


def _applied(x: Tensor, shares: Tensor) -> Tensor:
    return (_blocks(x, shares.shape[2]) * shares).flatten(1, 2).to(x.dtype)


def soft_competition(x: Tensor, units: int, temperature: float = 1.0) -> Tensor:
    """`x` times the noise-free softmax of its block. At temperature 1 this is the mean over hard stochastic winners:
    the largest of x + Gumbel noise is unit u with probability softmax(x)_u."""
    return _applied(x, _shares(x, units, temperature))


def drawn_competition(x: Tensor, units: int, temperature: float) -> Tensor:
    """`x` times a fresh Gumbel-softmax draw of its block."""
    return _applied(x, _shares(x, units, temperature, _noise(x, units)))


def hard_competition(x: Tensor, units: int) -> Tensor:
    """`x` where it is the largest of its block, else 0; the derivative is the mask of winners."""
    return _applied(x, _winners(_blocks(x.detach(), units)))


@dataclass(frozen=True)
class SameDraw(Surrogate):
    """The derivative of a Gumbel-softmax with the noise of this very forward, at another temperature (None: the
    layer's current one). Apart from an `LWTA` layer, `primitive` draws noise of its own."""

    temperature: float | None = None


class LWTA(Discrete):
    """Multiplies each unit by its share in a stochastic competition inside its block of adjacent channels.

    y = a * xi with xi ~ Gumbel-softmax(logits = a) over the `units` channels of a block, at every position on
    its own. Training uses `temperature`, evaluation `test_temperature`, soft unless `hard`. `kl` gives the
    divergence that the evidence lower bound charges for the winners (`train.elbo`).

    Args:
        units: competitors per block, at least 2; must divide the channels.
        temperature: of training, and of the substitutes.
        test_temperature: of evaluation.
        hard: the winner takes all in the forward; the backward stays that of the soft draw (straight-through).
        stochastic: False gives the deterministic ancestor (Srivastava et al. 2013): the largest unit of a block
            passes, the others are 0.

    Shapes: [N, D], [N, C, H, W], any [N, C, ...]; independent noise for every example and position.
    Substitutes: "soft" (noise-free softmax at `temperature`), "mean-field" (at temperature 1), "warm" (the noise
    of the forward at `temperature`; stochastic layers only). Relaxed forwards: the same three; "warm" draws.
    Its own backward is the derivative of its own draw, at 0.01 mostly noise.

    Raises:
        UsageError: fewer than two units, or a temperature that is not positive.
        ModelError: an input whose channels do not split into blocks.
    """

    def __init__(
        self,
        units: int = 2,
        temperature: float = 0.67,
        test_temperature: float = 0.01,
        hard: bool = False,
        stochastic: bool = True,
    ):
        if isinstance(units, bool) or not isinstance(units, int) or units < 2:
            raise UsageError("at least two units in a block", repr(units))
        for name, value in (("temperature", temperature), ("test_temperature", test_temperature)):
            if isinstance(value, bool) or not (isinstance(value, int | float) and math.isfinite(value) and value > 0):
                raise UsageError(f"a positive {name}", repr(value))
        soft = partial(soft_competition, units=units, temperature=float(temperature))
        mean = partial(soft_competition, units=units, temperature=1.0)
        warm = partial(drawn_competition, units=units, temperature=float(temperature))
        substitutes = {"soft": Surrogate(soft, "soft"), "mean-field": Surrogate(mean, "mean-field")}
        relaxed = {"soft": soft, "mean-field": mean}
        if stochastic:
            own: Surrogate = SameDraw(warm, "own draw")
            substitutes["warm"], relaxed["warm"] = SameDraw(warm, "warm", float(temperature)), warm
        else:
            own = Surrogate(partial(hard_competition, units=units), "winners")
        super().__init__(own, substitutes, relaxed)
        self.units, self.temperature, self.test_temperature = units, float(temperature), float(test_temperature)
        self.winner_takes_all, self.stochastic = bool(hard), bool(stochastic)
        self.scope = "example" if stochastic else "none"

    def hard(self, x: Tensor) -> Tensor:
        return self._draw(x, self._now) if self.stochastic else hard_competition(x, self.units)

    @property
    def _now(self) -> float:
        return self.temperature if self.training else self.test_temperature

    def _draw(self, x: Tensor, backward_temperature: float) -> Tensor:
        """One draw; the derivative is that of the same noise at `backward_temperature`."""
        record = torch.is_grad_enabled() and x.requires_grad
        if self.units == 2 and not (record or self.winner_takes_all) and x.dtype in (torch.float32, torch.float64):
            return _pairs(x, self._now)
        noise = _noise(x, self.units)
        shares = _shares(x, self.units, self._now, noise)
        if self.winner_takes_all or backward_temperature != self._now:
            value = _winners(shares.detach()) if self.winner_takes_all else shares.detach()
            if backward_temperature != self._now:
                shares = _shares(x, self.units, backward_temperature, noise)
            shares = value + (shares - shares.detach())
        return _applied(x, shares)

    def kl(self, x: Tensor) -> Tensor:
        """KL(q || uniform) of the winner of every block, q = softmax(a) over its units: [N, C / units, ...], in nats.

        The closed form for the discrete winners, whatever the temperature: log(units) less the entropy of q. It
        depends on the layer's input alone and leaves nothing behind.
        """
        log_q = torch.log_softmax(_blocks(x, self.units), 2)
        return (log_q.exp() * (log_q + math.log(self.units))).sum(2)

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim < 2 or x.shape[1] % self.units:
            raise ModelError(f"an input [N, C, ...] with C a multiple of {self.units}", f"{list(x.shape)}")
        backward = self._backward or self.surrogate
        if self._forward is None and self.stochastic and isinstance(backward, SameDraw):
            return self._draw(x, self._now if backward.temperature is None else backward.temperature)
        return super().forward(x)

    def extra_repr(self) -> str:
        kind = f", hard={self.winner_takes_all}" if self.stochastic else ", stochastic=False"
        return (
            f"units={self.units}, temperature={self.temperature:g}, test_temperature={self.test_temperature:g}{kind}"
        )
