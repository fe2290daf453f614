"""What an attack costs a model: the passes that it really saw, and the floor that the same passes take alone."""

import torch
from torch import Tensor, nn


class Counter:
    """Counts, per image of the case, what goes forward through a model and what comes back."""

    def __init__(self, model: nn.Module, images: int):
        self.images, self.forward_rows, self.backward_rows = images, 0, 0
        self.handle = model.register_forward_hook(self.forward)

    def forward(self, _module, _inputs, output: Tensor) -> None:
        self.forward_rows += len(output)
        if output.requires_grad:
            output.register_hook(self.backward)

    def backward(self, gradient: Tensor) -> None:
        self.backward_rows += len(gradient)

    def close(self) -> dict:
        self.handle.remove()
        return {"forwards": self.forward_rows / self.images, "backwards": self.backward_rows / self.images}


def floor(model: nn.Module, images: Tensor, labels: Tensor, steps: int) -> None:
    """So many forwards and backwards to the images, no more: what no gradient attack of so many steps can avoid,
    unless examples leave."""
    x = images.clone()
    for _ in range(steps):
        x.requires_grad_()
        torch.autograd.grad(nn.functional.cross_entropy(model(x), labels, reduction="sum"), x)
        x = x.detach()
