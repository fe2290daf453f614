"""Settings of a run as text that is the same in every process, to recognise the run when it is resumed."""

import hashlib
from dataclasses import fields, is_dataclass
from functools import partial

import torch
from torch import nn

from stochade.describe import fingerprint_model
from stochade.train.checks import LabelledImages


def named(thing: object) -> str:
    """A name for settings that is the same in every process: no addresses."""
    if isinstance(thing, partial):
        given = [*map(named, thing.args), *(f"{key}={named(value)}" for key, value in thing.keywords.items())]
        return f"{named(thing.func)}({', '.join(given)})"
    if isinstance(thing, tuple | list):
        return f"({', '.join(map(named, thing))})"
    qualified = getattr(thing, "__qualname__", None)
    if qualified is not None:
        return f"{getattr(thing, '__module__', '')}.{qualified}"
    name = type(thing).__qualname__
    if is_dataclass(thing):
        return f"{name}({', '.join(f'{f.name}={named(getattr(thing, f.name))}' for f in fields(thing))})"
    if isinstance(thing, nn.Module):
        return f"{name}, weights {fingerprint_model(thing)[:16]}"
    text = repr(thing)
    return text if " at 0x" not in text else name


def fingerprint_of(images: LabelledImages) -> str:
    """Number of images and a hash of the first ones, to notice other data under the same folder."""
    x, y = images[0 : min(64, len(images))]
    digest = hashlib.sha256(x.cpu().numpy().tobytes())
    digest.update(torch.as_tensor(y, dtype=torch.long).cpu().numpy().tobytes())
    return f"{len(images)} images, {digest.hexdigest()[:16]}"
