"""Networks that see codes in time instead of pixels."""

from torch import Tensor, nn

from stochade.nn import BernoulliRate, Discrete


class Encoded(nn.Module):
    """`network(encoder(images))`. Attacks on codes reach the two parts by their names.

    Args:
        encoder: images [N,C,H,W] -> codes [N,T,...].
        network: codes [N,T,...] -> logits [N,K].
    """

    scope = "composite"

    def __init__(self, encoder: Discrete, network: nn.Module):
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


def rate_coded(network: nn.Module, steps: int = 8) -> Encoded:
    """A network of images turned into one of Bernoulli rate codes: its logits are averaged over `steps` frames."""
    return Encoded(BernoulliRate(steps), FrameMean(network))
