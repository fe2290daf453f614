"""Networks in time: layers that do not see it, and the mean over it at the end."""

from torch import Tensor, nn

from stochade.errors import ModelError


class Merged(nn.Sequential):
    """Layers without time on every step: [T, N, ...] as one batch of T N."""

    scope = "composite"

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.flatten(0, 1)).unflatten(0, input.shape[:2])


class OverTime(nn.Module):
    """codes [N, T, ...] -> logits [N, K]: `body` on [T, N, ...], averaged over time.

    Args:
        body: [T, N, ...] -> logits of every step [T, N, K].
    """

    scope = "composite"

    def __init__(self, body: nn.Module):
        super().__init__()
        self.body = body

    def over_time(self, codes: Tensor) -> Tensor:
        """Logits of every step [T, N, K].

        Raises:
            ModelError: codes without a time axis.
        """
        if codes.dim() < 3:
            raise ModelError("codes [N, T, ...]", f"{list(codes.shape)}", "put an encoder in front: Encoded")
        return self.body(codes.transpose(0, 1))

    def forward(self, codes: Tensor) -> Tensor:
        return self.over_time(codes).mean(0)
