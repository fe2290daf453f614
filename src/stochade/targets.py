"""Targets of the command line: what `stochade audit TARGET` may name, and how it becomes a model.

digits-gated             a built-in: trained on first use, then kept in the cache
known:coin-flip          a known-answer model with its own examples
runs/mynet/              a checkpoint folder (safetensors and a description; loading runs no code)
package.module:build     a function of yours that returns an nn.Module in eval mode
path/to/file.py:build    the same, in a file
"""

import difflib
import importlib
import os
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stochade.errors import StochadeError, UsageError


@dataclass(frozen=True)
class BuiltIn:
    """A model that this project can train by itself in seconds, on the bundled digits."""

    model: str
    data: str
    description: str
    threat: str
    epochs: int = 30
    rate: float = 1e-2
    adversarial: bool = False


BUILT_IN: dict[str, BuiltIn] = {
    "digits-gated": BuiltIn(
        "gated", "digits", "stochastic gates on the weights and binarised units (after SGBN)", "linf=0.15"
    ),
    "digits-mlp": BuiltIn("mlp", "digits", "plain network, for comparison", "linf=0.1"),
    "digits-stochastic": BuiltIn("mlp-stochastic", "digits", "one layer of stochastic binary units", "linf=0.15"),
    "digits-kwta": BuiltIn("kwta-cnn", "digits", "k-winners-take-all", "linf=0.1"),
    "digits-sap": BuiltIn("sap-cnn", "digits", "stochastic activation pruning", "linf=0.1"),
    "digits-lwta": BuiltIn("lwta-cnn", "digits", "stochastic local winner-takes-all", "linf=0.15", rate=3e-3),
    "digits-quantised": BuiltIn("quantised-cnn", "digits", "input of four grey levels", "linf=0.2"),
    "digits-noisy": BuiltIn("noisy-cnn", "digits", "Gaussian noise on the input", "linf=0.1"),
    "digits-rate": BuiltIn("rate-cnn", "digits", "Bernoulli rate-coded input", "linf=0.1"),
    "digits-adversarial": BuiltIn(
        "1cnn", "digits", "plain network, adversarially trained", "linf=0.1", adversarial=True
    ),
}


@dataclass
class Target:
    """A model ready to be called, with what is known about it.

    Attributes:
        model: in eval mode unless it is foreign code that says otherwise.
        name: as the user wrote it.
        data: images of its own (known-answer models), the name of its data, or None.
        threat: the threat it is usually measured under, or None.
        about: facts for the records.
    """

    model: nn.Module
    name: str
    data: Any
    threat: str | None
    about: dict


def cache_folder() -> Path:
    """Where trained built-ins and decoded data are kept: $STOCHADE_CACHE, else ~/.cache/stochade."""
    return Path(os.environ.get("STOCHADE_CACHE") or Path.home() / ".cache" / "stochade")


def load_target(name: str, *, seed: int = 0, device: str = "cpu", show_progress: bool = True) -> Target:
    """The model behind a target.

    Raises:
        UsageError: nothing answers to that name, or the function does not return a module.
        CheckpointError: a damaged checkpoint.
    """
    if name in BUILT_IN:
        target = _built_in(name, seed, show_progress)
    elif name.startswith("known:"):
        target = _known(name, seed)
    elif ":" in name and not Path(name).exists():
        target = _function(name)
    elif Path(name).exists():
        target = _checkpoint(name)
    else:
        raise _unknown(name)
    target.model.to(device)
    return target


def _unknown(name: str) -> UsageError:
    names = [*BUILT_IN, *(f"known:{n}" for n in _known_cases())]
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]!r}?" if near else "`stochade ls models` lists the built-ins"
    return UsageError("a built-in name, a checkpoint folder, module:function or file.py:function", repr(name), hint)


def _built_in(name: str, seed: int, show: bool) -> Target:
    from stochade import __version__, checkpoint
    from stochade.describe import digest

    part = BUILT_IN[name]
    folder = cache_folder() / "models" / f"{name}-{digest([part, seed, __version__, torch.__version__])[:12]}"
    about = {"target": name, "description": part.description, "data": part.data, "training seed": seed}
    if folder.is_dir():
        try:
            return Target(checkpoint.load(folder), name, part.data, part.threat, about)
        except StochadeError:
            pass  # an interrupted or damaged cache entry is trained again
    model = train_built_in(part, seed, folder, show)
    return Target(model, name, part.data, part.threat, about)


def train_built_in(part: BuiltIn, seed: int, folder: Path, show: bool) -> nn.Module:
    """Train a built-in on its data and keep it in `folder`."""
    from stochade import checkpoint, data
    from stochade.attacks import PGD, parse_threat
    from stochade.randomness import forked, seed_for
    from stochade.registry import build
    from stochade.train import Adversarial, Standard, train

    images = data.load(part.data, "train")
    with forked(seed_for(seed, "initial weights")):
        model = build(part.model, images.shape[1:], images.num_classes)
    objective = Adversarial(PGD(parse_threat(part.threat), 7, drop_fooled=False)) if part.adversarial else Standard()
    train(
        model, images, data.load(part.data, "validation"), epochs=part.epochs, batch=50, lr=part.rate,
        objective=objective, seed=seed, progress=show,
    )  # fmt: skip
    model.eval()
    checkpoint.save(model, folder)
    return model


def _known_cases() -> dict:
    from stochade.models.known_answer import KNOWN

    return KNOWN


def _known(name: str, seed: int) -> Target:
    cases = _known_cases()
    key = name.removeprefix("known:")
    if key not in cases:
        raise _unknown(name)
    case = cases[key](seed)
    threat = f"{case.threat.name}={case.threat.eps:.9g}"
    about = {"target": name, "description": case.description, "data": "generated"}
    return Target(case.model, name, (case.images, case.labels), threat, about)


def _checkpoint(name: str) -> Target:
    from stochade import checkpoint

    model = checkpoint.load(name)
    description = getattr(model, "description", {}) or {}
    return Target(model, name, None, None, {"target": Path(name).name, "description": description})


def _function(name: str) -> Target:
    """Import `module:function` or `file.py:function` and call it. This runs the user's own code."""
    place, _, attribute = name.rpartition(":")
    if not place or not attribute:
        raise UsageError("module:function or file.py:function", repr(name))
    if place.endswith(".py"):
        path = Path(place).resolve()
        if not path.is_file():
            raise UsageError("a Python file that exists", repr(place), "check the path")
        folder, place = str(path.parent), path.stem
    else:
        folder = os.getcwd()
    if folder not in sys.path:  # worker processes inherit it
        sys.path.insert(0, folder)
    try:
        module = importlib.import_module(place)
    except ModuleNotFoundError as problem:
        raise UsageError(f"a module {place!r} that can be imported", str(problem), "run from its folder") from problem
    except Exception as problem:
        raise UsageError(f"a module {place!r} that imports without an error", _where(problem)) from problem
    if not hasattr(module, attribute):
        near = difflib.get_close_matches(attribute, [n for n in dir(module) if not n.startswith("_")], n=1)
        hint = f"did you mean {near[0]!r}?" if near else ""
        raise UsageError(f"a function in {place}", repr(attribute), hint)
    made = getattr(module, attribute)
    try:
        model = made if isinstance(made, nn.Module) else made() if callable(made) else made
    except Exception as problem:
        raise UsageError(
            f"{attribute}() to return a network", _where(problem), "it is called with no arguments"
        ) from problem
    if not isinstance(model, nn.Module):
        raise UsageError(
            "a function that returns an nn.Module", type(model).__name__, "return the network in eval mode"
        )
    return Target(model, name, None, None, {"target": f"{place}:{attribute}", "class": type(model).__name__})


def _where(problem: BaseException) -> str:
    """An exception in the user's own code as one line, with the place it came from."""
    frames = traceback.extract_tb(problem.__traceback__)
    place = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"{type(problem).__name__}{place}: {str(problem).splitlines()[0] if str(problem) else ''}".rstrip(": ")
