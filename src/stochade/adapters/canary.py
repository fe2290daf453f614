"""Does a gradient reach the images at all? A network that hides it looks robust and is not."""

import torch
from torch import Tensor, nn

from stochade.adapters.stateful import Adapted
from stochade.attacks.gradients import check_logits
from stochade.attacks.inputs import check_images, check_labels
from stochade.attacks.objectives import margin
from stochade.errors import GradientError, UsageError
from stochade.nn.discrete import Discrete
from stochade.randomness import untouched


def _why(model: nn.Module) -> str:
    """The likely cause and what to do about it."""
    found = [
        type(m).__name__
        for m in model.modules()
        if "Encoder" in type(m).__name__ and not isinstance(m, Discrete | Adapted)
    ]
    front = "put stochade.nn.BernoulliRate(steps) or SignedRate(steps) in front instead (encoder=...)"
    if found:
        return f"{', '.join(sorted(set(found)))} inside the network has no derivative: take it out and {front}"
    return (
        f"if the network encodes its images by itself (snntorch.spikegen.rate, a Poisson encoder), take that out and "
        f"{front}; if its neurons never fire or have no surrogate, try one: backward_as(model, {{'*': 'atan'}})"
    )


def check_gradients(model: nn.Module, x: Tensor, y: Tensor, *, draws: int = 3, share: float = 0.9) -> Tensor:
    """Which examples have an input gradient of exactly zero: [N] bool. Refuses a model where that is almost all.

    The gradient is that of the margin, which no confident prediction makes vanish, in the mode the model is in; an
    example counts as zero when all `draws` forwards give it none. The model and all generators are left as they were.

    Args:
        model: any differentiable classifier.
        x, y: images [N,C,H,W] in [0,1] and labels [N]; a few dozen are enough.
        share: from this share of zero gradients on the model is refused.

    Raises:
        GradientError: the images are not in the graph, or at least `share` of the gradients are exactly zero; says
            what to change. ImagesError, LabelsError, LogitsError, UsageError: as named.
    """
    check_images(x)
    check_labels(y, len(x))
    if isinstance(draws, bool) or not isinstance(draws, int) or draws < 1:
        raise UsageError("a number of draws >= 1", repr(draws))
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
        raise UsageError("a share in (0, 1]", repr(share))
    zero = torch.ones(len(x), dtype=torch.bool, device=x.device)
    with untouched(model), torch.enable_grad():
        for _ in range(draws):
            leaf = x.detach().clone().requires_grad_()
            total = margin(check_logits(model(leaf), len(x)), y).sum()
            gradient = torch.autograd.grad(total, leaf, allow_unused=True)[0] if total.requires_grad else None
            if gradient is None:
                raise GradientError("logits that depend on the images by autograd", "a detached graph", _why(model))
            zero &= ~(gradient.flatten(1) != 0).any(1)
            if not bool(zero.any()):
                break
    count = int(zero.sum())
    if count >= share * len(x):
        raise GradientError("gradients that reach the images", f"exactly zero on {count} of {len(x)}", _why(model))
    return zero
