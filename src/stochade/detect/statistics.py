"""How far noise moves the logits of an image: what the detector sees of it.

For logits F and noise eta of a source s, moved_s(x) = E[F(x + eta)] - F(x). The noise-perturbed log-odds of Roth,
Kilcher and Hofmann 2019 (equation 4) follow from it for every pair of classes:
    f_{y,z}(x) = F_z(x) - F_y(x),    g_{y,z}(x) = E[f_{y,z}(x + eta) - f_{y,z}(x)] = moved_z - moved_y.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from stochade.attacks.gradients import TILE, Model, check_logits
from stochade.attacks.inputs import check_ids, check_images, check_model, probe
from stochade.detect.bank import Noise
from stochade.nn.discrete import scope_of
from stochade.randomness import identities, reseed, seed_for, untouched


class Moves(NamedTuple):
    """Attributes:
    logits: [N,K] at the images themselves.
    moved: [N,S,K] mean logits under each of S noises, less `logits`.
    """

    logits: Tensor
    moved: Tensor


def check_images_for(model: Model, x: Tensor) -> int:
    """The model's number of classes, for images in [0,1] that it takes; errors as those of attacks, before any other
    forward."""
    check_images(x)
    check_model(model)
    with untouched(model):
        return probe(model, x, torch.zeros(len(x), dtype=torch.long, device=x.device))


@torch.no_grad()
def moves(
    model: Model,
    x: Tensor,
    noises: Sequence[Noise],
    draws: int,
    seed: int,
    ids: Tensor | None = None,
    tick: Callable[..., None] | None = None,
) -> Moves:
    """Logits of images and how noise moves them, in float64 on the images' device.

    Noisy images are clipped to [0,1], as in the authors' code. Images are looked at one by one, noise and the model's
    own draws following (seed, identity): what comes out for an image does not depend on the others. Logits at a
    random model's image are the mean of `draws` forwards. Noise that a model draws once per call is shared by up to
    256 draws.

    Args:
        draws: of each noise. ids: [N] identities; by default a hash of the image. tick: called after every image.
    """
    names = identities(x, torch.zeros(len(x), dtype=torch.long)) if ids is None else check_ids(ids, len(x))
    looks = 1 if scope_of(model) == "none" else draws
    logits, moved = [], []
    with untouched(model):
        for image, name in zip(x, names.tolist(), strict=True):
            key = seed_for(seed, "noise", name)
            reseed(key)
            generator = torch.Generator().manual_seed(seed_for(key, "bank"))
            own = _mean(model, image.expand(looks, *image.shape))
            like = torch.empty(draws, *image.shape, dtype=image.dtype)
            logits.append(own)
            noisy = [(image + noise.draw(like, generator).to(image.device)).clamp_(0, 1) for noise in noises]
            moved.append(torch.stack([_mean(model, part) for part in noisy]) - own)
            if tick is not None:
                tick(1)
    return Moves(torch.stack(logits), torch.stack(moved))


def _mean(model: Model, rows: Tensor) -> Tensor:
    """[K] mean logits of rows, in float64."""
    total = sum(check_logits(model(part), len(part)).double().sum(0) for part in rows.split(TILE))
    assert isinstance(total, Tensor)
    return total / len(rows)
