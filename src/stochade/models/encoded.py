"""Networks that see codes in time instead of pixels."""

import torch
from torch import Tensor, nn

from stochade.errors import BudgetError, ModelError
from stochade.nn import BernoulliRate, scope_of


class Encoded(nn.Module):
    """`network(encoder(images))`. Attacks on codes reach the two parts by their names.

    Args:
        encoder: images [N,C,H,W] -> codes [N,T,...]; its `alphabet` says the letters of its codes, None that they are
            real numbers.
        network: codes [N,T,...] -> logits [N,K].
    """

    scope = "composite"

    def __init__(self, encoder: nn.Module, network: nn.Module):
        super().__init__()
        self.encoder, self.network = encoder, network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(self.encoder(x))


class FrameMean(nn.Module):
    """Mean over time of `network` on every frame: codes [N,T,C,H,W] -> logits [N,K]."""

    scope = "composite"

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, codes: Tensor) -> Tensor:
        frames = self.network(codes.flatten(0, 1))
        return frames.view(codes.shape[0], codes.shape[1], -1).mean(1)


class SeveralEncodings(nn.Module):
    """m encodings of every image one after the other: [N,C,H,W] -> [N,m*T,...]."""

    scope = "composite"

    def __init__(self, encoder: nn.Module, m: int):
        super().__init__()
        self.encoder, self.m = encoder, m

    @property
    def alphabet(self) -> tuple[float, ...] | None:
        return getattr(self.encoder, "alphabet", None)

    def forward(self, x: Tensor) -> Tensor:
        if scope_of(self.encoder) in ("none", "example"):
            codes = self.encoder(x.repeat_interleave(self.m, 0))
            return codes.reshape(len(x), -1, *codes.shape[2:])
        return torch.cat([self.encoder(x) for _ in range(self.m)], 1)  # noise of a call is one draw for its batch


class MeanOfEncodings(nn.Module):
    """Mean logits of `network` over m codes that lie one after the other: [N,m*T,...] -> [N,K]."""

    scope = "composite"

    def __init__(self, network: nn.Module, m: int):
        super().__init__()
        self.network, self.m = network, m

    def forward(self, codes: Tensor) -> Tensor:
        if codes.shape[1] % self.m:
            raise ModelError(
                f"codes of {self.m} encodings", f"{codes.shape[1]} frames", "one encoding after the other"
            )
        each = codes.reshape(-1, codes.shape[1] // self.m, *codes.shape[2:])
        return self.network(each).view(len(codes), self.m, -1).mean(1)


class Aggregated(Encoded):
    """The mean logits over m encodings of every image (mukhoty2025, appendix A.3): one call is one draw of all m.

    Its codes are the m encodings one after the other, so an attack on codes sees all of them, with a budget of k
    flips in each of their m T frames. It shares its parts with `model`.

    Raises:
        ModelError: a model that is not `Encoded`. BudgetError: fewer than one encoding.
    """

    def __init__(self, model: Encoded, m: int = 10):
        if not isinstance(model, Encoded):
            raise ModelError("an Encoded model", type(model).__name__, "Aggregated(Encoded(encoder, network), m)")
        if isinstance(m, bool) or not isinstance(m, int) or m < 1:
            raise BudgetError("a number of encodings >= 1", repr(m))
        super().__init__(SeveralEncodings(model.encoder, m), MeanOfEncodings(model.network, m))


def rate_coded(network: nn.Module, steps: int = 8) -> Encoded:
    """A network of images turned into one of Bernoulli rate codes: its logits are averaged over `steps` frames."""
    return Encoded(BernoulliRate(steps), FrameMean(network))
