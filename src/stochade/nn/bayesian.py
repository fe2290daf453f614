"""The Bayesian half of LWTA networks: Gaussian weights, and blocks that an Indian buffet process may switch off.

Source: Panousis, Chatzis and Theodoridis 2019 and 2021 (stick-breaking prior, equations 5 to 14 of the former).
The divergences here are those of the formulas. The released code leaves out the half of KL_z that belongs to
unused blocks, puts 2 sigma where KL_w has 2 log sigma, and tiles utilities over units in another order than
its blocks; docs/deviations.md lists it.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stochade.errors import ModelError, UsageError
from stochade.nn.discrete import Discrete, Scope, Surrogate
from stochade.nn.masking import conv2d_per_example, linear_per_example
from stochade.nn.sampling import logistic_like, uniform_like

Sampling = Literal["local", "example", "call"]
Test = Literal["mean", "sample"]
_EULER = 0.5772156649015329


def kumaraswamy_log(a: Tensor, b: Tensor) -> Tensor:
    """log u of one draw of every u ~ Kumaraswamy(a, b), reparametrised: u = (1 - x^(1/b))^(1/a), x uniform."""
    x = uniform_like(a).clamp_(2**-24, 1 - 2**-24)
    return torch.log1p(-x.pow(1 / b).clamp(max=1 - 2**-24)) / a


def kumaraswamy_mean_log(a: Tensor, b: Tensor) -> Tensor:
    """E[log u] under Kumaraswamy(a, b): -(psi(b + 1) + Euler's constant) / a."""
    return -(torch.digamma(b + 1) + _EULER) / a


def kl_kumaraswamy(a: Tensor, b: Tensor, alpha: float) -> Tensor:
    """KL(Kumaraswamy(a, b) || Beta(alpha, 1)), elementwise, closed form (Nalisnick and Smyth 2017 with beta = 1)."""
    return (a - alpha) * kumaraswamy_mean_log(a, b) + torch.log(a * b / alpha) - (b - 1) / b


def kl_gaussian(mean: Tensor, sigma: Tensor) -> Tensor:
    """KL(N(mean, sigma^2) || N(0, 1)), elementwise, closed form."""
    return 0.5 * (mean.square() + sigma.square() - 1) - sigma.log()


def _choice(value: str, names: tuple[str, ...], what: str) -> None:
    if value not in names:
        raise UsageError(f"{what} among {list(names)}", repr(value))


class _OwnDraw(Discrete):
    """A layer whose own draw is differentiable as it stands, also in the layer's parameters."""

    test: Test

    def __init__(self, test: Test):
        _choice(test, ("mean", "sample"), "a test")
        mean_field = Surrogate(self.mean_field, "mean-field")
        super().__init__(
            Surrogate(self.drawn, "own draw"), {"mean-field": mean_field}, {"mean-field": self.mean_field}
        )
        self._own, self.test = self.surrogate, test

    def mean_field(self, x: Tensor) -> Tensor:
        """The layer without noise."""
        raise TypeError(f"{type(self).__name__} must define mean_field(x)")

    def drawn(self, x: Tensor) -> Tensor:
        """The layer with fresh noise."""
        raise TypeError(f"{type(self).__name__} must define drawn(x)")

    @property
    def scope(self) -> Scope:  # type: ignore[override]
        return "none" if not self.training and self.test == "mean" else self._noise_scope

    @property
    def _noise_scope(self) -> Scope:
        return "example"

    def hard(self, x: Tensor) -> Tensor:
        return self.mean_field(x) if self.scope == "none" else self.drawn(x)

    def _check(self, x: Tensor) -> None:
        """Subclasses refuse inputs that do not fit."""

    def forward(self, x: Tensor) -> Tensor:
        self._check(x)
        if self._forward is None and (self._backward or self.surrogate) is self._own:
            return self.hard(x)
        return super().forward(x)


class BlockUtility(_OwnDraw):
    """Multiplies every block of `units` adjacent channels by its utility z, drawn anew for every example.

    Prior: z_k ~ Bernoulli(pi_k), pi_k = u_1 ... u_k, u ~ Beta(alpha, 1), so that late blocks are rarely used.
    Posterior: z_k ~ Bernoulli(q_k), relaxed (binary concrete) at `temperature` in training and `test_temperature`
    in evaluation; u ~ Kumaraswamy(a, b). Evaluation drops blocks with q_k <= `cut_off`. z multiplies the whole
    filter bank of a block, which is its product with the block's output before the bias.

    Args:
        blocks, units: the input has blocks * units channels.
        alpha: concentration of the prior; smaller ones want fewer blocks.
        test: "sample" draws z in evaluation as the released code does, "mean" takes q (0 below the cut-off).

    Shapes: [N, C, ...]; independent draws for every example, one for all positions of a block.
    Relaxed and substitute "mean-field": z = q with the cut-off.
    Parameters start at logit q in U(4, 5), a = softplus(2), b = softplus(0.5453).

    Raises:
        UsageError: counts, a concentration, temperatures or a cut-off that make no sense.
        ModelError: an input with other channels.
    """

    def __init__(
        self,
        blocks: int,
        units: int = 2,
        alpha: float = 1.0,
        temperature: float = 0.67,
        test_temperature: float = 0.01,
        cut_off: float = 0.01,
        test: Test = "sample",
    ):
        if min(blocks, units) < 1:
            raise UsageError("at least one block and one unit", f"{blocks} and {units}")
        for name, value in (("alpha", alpha), ("temperature", temperature), ("test_temperature", test_temperature)):
            if not (math.isfinite(value) and value > 0):
                raise UsageError(f"a positive {name}", repr(value))
        if not 0 <= cut_off < 1:
            raise UsageError("a cut-off in [0, 1)", repr(cut_off))
        super().__init__(test)
        self.blocks, self.units, self.alpha, self.cut_off = blocks, units, alpha, cut_off
        self.temperature, self.test_temperature = temperature, test_temperature
        self.logits = nn.Parameter(torch.empty(blocks).uniform_(4.0, 5.0))
        self.raw_a = nn.Parameter(torch.full((blocks,), 2.0))
        self.raw_b = nn.Parameter(torch.full((blocks,), 0.5453))

    def sticks(self) -> tuple[Tensor, Tensor]:
        """The posterior's a and b, positive."""
        return F.softplus(self.raw_a), F.softplus(self.raw_b)

    def used(self) -> Tensor:
        """q, and 0 for blocks that evaluation drops, [blocks]."""
        q = self.logits.sigmoid()
        return torch.where(q > self.cut_off, q, 0.0)

    def _times(self, x: Tensor, z: Tensor) -> Tensor:
        """x times the utilities z [N or 1, blocks], each for the adjacent channels of its block."""
        factors = z.repeat_interleave(self.units, 1)
        return (x * factors.view(*factors.shape, *[1] * (x.ndim - 2))).to(x.dtype)

    def mean_field(self, x: Tensor) -> Tensor:
        """`x` times the mean utilities, without noise."""
        return self._times(x, self.used()[None])

    def drawn(self, x: Tensor) -> Tensor:
        """`x` times fresh utilities."""
        logits = self.logits.expand(len(x), -1)
        temperature = self.temperature if self.training else self.test_temperature
        z = ((logits + logistic_like(logits)) / temperature).sigmoid()
        if not self.training:
            z = z * (self.used() > 0)
        return self._times(x, z)

    def _check(self, x: Tensor) -> None:
        if x.ndim < 2 or x.shape[1] != self.blocks * self.units:
            raise ModelError(f"an input [N, {self.blocks * self.units}, ...]", f"{list(x.shape)}")

    def kl_sticks(self) -> Tensor:
        """KL_u, summed over blocks, closed form."""
        return kl_kumaraswamy(*self.sticks(), self.alpha).sum()

    def kl_utilities(self) -> Tensor:
        """KL_z = E_u KL(Bernoulli(q) || Bernoulli(pi)), summed over blocks.

        E log pi is exact; E log(1 - pi) is estimated by one draw of u, without bias.
        """
        a, b = self.sticks()
        log_q, log_not_q = F.logsigmoid(self.logits), F.logsigmoid(-self.logits)
        q = log_q.exp()
        log_pi = kumaraswamy_mean_log(a, b).cumsum(0)
        drawn = kumaraswamy_log(a, b).cumsum(0).clamp(max=-(2**-30))
        log_not_pi = torch.log(-torch.expm1(drawn))
        return (q * (log_q - log_pi) + (1 - q) * (log_not_q - log_not_pi)).sum()

    def extra_repr(self) -> str:
        return f"blocks={self.blocks}, units={self.units}, alpha={self.alpha:g}, test={self.test!r}"


class GaussianWeights(_OwnDraw):
    """Weights with posterior N(mean, sigma^2) and prior N(0, 1); the bias, if any, has no noise."""

    def __init__(self, shape: tuple[int, ...], bias: bool, sampling: Sampling, test: Test):
        _choice(sampling, ("local", "example", "call"), "a sampling")
        super().__init__(test)
        self.sampling = sampling
        self.weight = nn.Parameter(torch.empty(shape))
        self.raw_sigma = nn.Parameter(torch.full(shape, -5.0))
        self.bias = nn.Parameter(torch.zeros(shape[0])) if bias else None
        nn.init.xavier_normal_(self.weight)

    @property
    def _noise_scope(self) -> Scope:
        return "call" if self.sampling == "call" else "example"

    @property
    def sigma(self) -> Tensor:
        """Standard deviations of the weights, positive."""
        return F.softplus(self.raw_sigma)

    def _apply_weights(self, x: Tensor, weight: Tensor) -> Tensor:
        raise TypeError(f"{type(self).__name__} must say how weights act")

    def _apply_rows(self, x: Tensor, weights: Tensor) -> Tensor:
        raise TypeError(f"{type(self).__name__} must say how weights of every example act")

    def _with_bias(self, out: Tensor) -> Tensor:
        return out if self.bias is None else out + self.bias.view(1, -1, *[1] * (out.ndim - 2))

    def mean_field(self, x: Tensor) -> Tensor:
        """The layer with its mean weights."""
        return self._with_bias(self._apply_weights(x, self.weight))

    def drawn(self, x: Tensor) -> Tensor:
        """The layer with fresh weights."""
        if self.sampling == "local":
            mean = self._apply_weights(x, self.weight)
            # where the input is 0 the variance is too, and its root has no derivative
            sigma = self._apply_weights(x.square(), self.sigma.square()).clamp_min(1e-16).sqrt()
            return self._with_bias(mean + sigma * torch.randn_like(mean))
        rows = len(x) if self.sampling == "example" else 1
        noise = torch.randn(rows, *self.weight.shape, dtype=self.weight.dtype, device=self.weight.device)
        weights = self.weight + self.sigma * noise
        out = self._apply_weights(x, weights[0]) if self.sampling == "call" else self._apply_rows(x, weights)
        return self._with_bias(out)

    def kl_weights(self) -> Tensor:
        """KL_w, summed over the weights, closed form."""
        return kl_gaussian(self.weight, self.sigma).sum()

    def extra_repr(self) -> str:
        return f"{list(self.weight.shape)}, sampling={self.sampling!r}, test={self.test!r}"


class GaussianLinear(GaussianWeights):
    """A dense layer with Gaussian weights, N(mean, sigma^2), sigma starting at softplus(-5) = 0.0067.

    Args:
        sampling: "local" draws every output from its law given the input (local reparametrisation, Kingma et al.
            2015), which is the law of weights of its own for every example; "example" draws those weights;
            "call" draws one set for the batch, as the released code does.
        test: in evaluation "mean" takes the mean weights, "sample" draws.

    Shapes: [N, inputs] -> [N, outputs]. Relaxed and substitute "mean-field": the mean weights.

    Raises:
        UsageError: another sampling or test.
    """

    def __init__(
        self, inputs: int, outputs: int, bias: bool = True, sampling: Sampling = "local", test: Test = "sample"
    ):
        super().__init__((outputs, inputs), bias, sampling, test)

    def _apply_weights(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.linear(x, weight)

    def _apply_rows(self, x: Tensor, weights: Tensor) -> Tensor:
        return linear_per_example(x, weights)


class GaussianConv2d(GaussianWeights):
    """A convolution with Gaussian weights. Arguments as in `GaussianLinear` and of a convolution.

    With "local" sampling every output has the right law given the input, but positions, which share their
    weights, get noise of their own; "example" and "call" draw weights and have the joint law too.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        stride: int = 1,
        padding: int = 0,
        bias: bool = True,
        sampling: Sampling = "local",
        test: Test = "sample",
    ):
        super().__init__((outputs, inputs, kernel, kernel), bias, sampling, test)
        self.stride, self.padding = stride, padding

    def _apply_weights(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.conv2d(x, weight, None, self.stride, self.padding)

    def _apply_rows(self, x: Tensor, weights: Tensor) -> Tensor:
        return conv2d_per_example(x, weights, self.stride, self.padding)
