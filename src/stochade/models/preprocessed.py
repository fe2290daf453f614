"""A network behind a preprocessor: it sees shifted, turned, resized, compressed or smoothed images."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from stochade.errors import UsageError
from stochade.nn.preprocess import (
    JPEG,
    GaussianSmoothing,
    RandomResizePad,
    RandomRotation,
    RandomShift,
    bit_depth,
)

PREPROCESSORS: dict[str, Callable[..., nn.Module]] = {
    "shift": RandomShift,
    "rotation": RandomRotation,
    "resize": RandomResizePad,
    "smoothing": GaussianSmoothing,
    "jpeg": JPEG,
    "bit-depth": bit_depth,
}


class Preprocessed(nn.Module):
    """`network(preprocess(images))`, in training and evaluation alike. Images [N,C,H,W] -> logits [N,K]."""

    scope = "composite"

    def __init__(self, preprocess: nn.Module, network: nn.Module):
        super().__init__()
        self.preprocess, self.network = preprocess, network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(self.preprocess(x))


def behind(
    name: str, network: Callable[[Sequence[int]], nn.Module], input_shape: Sequence[int], **options: Any
) -> Preprocessed:
    """A network, made for the shape that its images then have, behind a preprocessor by name.

    Args:
        name: a key of `PREPROCESSORS`.
        network: shape (channels, height, width) -> network.
        input_shape: of the images before.
        options: of the preprocessor.

    Raises:
        UsageError: another name, or options that make no sense.
    """
    if name not in PREPROCESSORS:
        raise UsageError(f"a preprocessor among {', '.join(PREPROCESSORS)}", repr(name))
    shape = tuple(int(side) for side in input_shape)
    made = PREPROCESSORS[name](shape, **options) if name == "resize" else PREPROCESSORS[name](**options)
    if isinstance(made, RandomResizePad):
        shape = (shape[0], *made.canvas)
    if isinstance(made, JPEG):
        made(torch.zeros(0, *shape))  # tells channels that it cannot take
    return Preprocessed(made, network(shape))
