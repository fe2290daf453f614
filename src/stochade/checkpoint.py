"""Checkpoints: a folder with `weights.safetensors` and a readable `model.json`. Loading one runs no code.

`model.json` tells the model (a name in `stochade.registry` and its options), the input, the checksum of the
weights, the versions and whatever facts on data and training the caller adds. The same description lies inside
the weights file, so that an edited `model.json` is noticed.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

import stochade
from stochade import registry
from stochade.errors import CheckpointError, StochadeError
from stochade.files import write_atomically
from stochade.randomness import forked

WEIGHTS, DESCRIPTION = "weights.safetensors", "model.json"
_SCHEMA = 1
_TYPES = {str(t): t for t in (torch.float16, torch.bfloat16, torch.float32, torch.float64)}


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """The state dict as tensors of their own on the CPU: parameters, buffers and the slopes of binary units.

    Raises:
        CheckpointError: state that is no tensor.
    """
    tensors = {}
    for name, value in module.state_dict().items():
        if not isinstance(value, Tensor):
            raise CheckpointError("a state dict of tensors", f"{type(value).__name__} under {name!r}")
        tensors[name] = value.detach().cpu().contiguous().clone()
    return tensors


def save(model: nn.Module, folder: str | Path, *, extra: Mapping[str, Any] | None = None) -> Path:
    """Write a checkpoint that `load` turns into the same model, bit for bit. The model is left as it is.

    Each file is replaced as a whole; if the process dies between the two, `load` notices.

    Args:
        model: built by `stochade.registry.build` (it has a `description`).
        folder: made when missing.
        extra: facts that JSON can hold, on training and data for instance.

    Returns: the folder.

    Raises:
        CheckpointError: a model without a description, or extra facts that JSON cannot hold.
    """
    folder = Path(folder)
    description = getattr(model, "description", None)
    if not isinstance(description, dict):
        raise CheckpointError(
            "a model with a description", type(model).__name__, "build it with stochade.registry.build"
        )
    tensors = tensors_of(model)
    weights = save_tensors(tensors, metadata={"stochade": json.dumps(description, sort_keys=True)})
    floating = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    told = {
        "format": "stochade checkpoint",
        "schema": _SCHEMA,
        "model": description,
        "input": {"shape": description["input_shape"], "layout": "N,C,H,W", "range": [0, 1]},
        "classes": description["classes"],
        "dtype": str(floating),
        "parameters": sum(p.numel() for p in model.parameters()),
        "weights": {"file": WEIGHTS, "bytes": len(weights), "sha256": hashlib.sha256(weights).hexdigest()},
        "written_by": {"stochade": stochade.__version__, "torch": torch.__version__},
        "extra": dict(extra or {}),
    }
    try:
        text = json.dumps(told, indent=2, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise CheckpointError("extra facts that JSON can hold", str(error)) from None
    write_atomically(folder / WEIGHTS, weights)
    write_atomically(folder / DESCRIPTION, (text + "\n").encode())
    return folder


def describe(path: str | Path) -> dict[str, Any]:
    """What `model.json` says, checked for its form; weights are not read.

    Args:
        path: the folder, or either of its files.

    Raises:
        CheckpointError: missing, not JSON, or not a checkpoint's description.
    """
    file = _folder(path) / DESCRIPTION
    if not file.is_file():
        raise CheckpointError(f"a checkpoint folder with {WEIGHTS} and {DESCRIPTION}", f"no file {file}")
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise CheckpointError(f"JSON in {file}", str(error), "restore the file or train again") from None
    if not isinstance(told, dict) or told.get("format") != "stochade checkpoint":
        raise CheckpointError("the description of a stochade checkpoint", f"something else in {file}")
    if told.get("schema") != _SCHEMA:
        raise CheckpointError(
            f"schema {_SCHEMA} in {file}", repr(told.get("schema")), "it was written by another version of stochade"
        )
    weights, model = told.get("weights"), told.get("model")
    if not (isinstance(weights, dict) and isinstance(weights.get("sha256"), str) and isinstance(model, dict)):
        raise CheckpointError(f"a model and the checksum of its weights in {file}", "a description without them")
    return told


def load(path: str | Path) -> nn.Module:
    """The saved model in evaluation mode, on the CPU. Runs no code and draws nothing from the caller's generators.

    Args:
        path: the folder, or either of its files.

    Raises:
        CheckpointError: a missing, truncated or altered file (with both checksums), an unknown model, or
            weights that do not fit it.
    """
    folder = _folder(path)
    told = describe(folder)
    file = folder / WEIGHTS
    if not file.is_file():
        raise CheckpointError(f"a checkpoint folder with {WEIGHTS} and {DESCRIPTION}", f"no file {file}")
    content = file.read_bytes()
    expected, actual = told["weights"]["sha256"], hashlib.sha256(content).hexdigest()
    if actual != expected:
        raise CheckpointError(
            f"{file} with sha256 {expected}",
            f"sha256 {actual} ({len(content)} bytes, {told['weights'].get('bytes')} when saved)",
            "the file is truncated or altered, or belongs to another model.json",
        )
    try:
        tensors = load_tensors(content)
        with safe_open(str(file), framework="pt") as opened:
            inside = json.loads((opened.metadata() or {}).get("stochade", "null"))
    except (SafetensorError, ValueError) as error:
        raise CheckpointError(f"safetensors in {file}", str(error)) from None
    if inside != told["model"]:
        raise CheckpointError(
            f"the model described inside {WEIGHTS}: {inside}",
            f"{told['model']} in {DESCRIPTION}",
            f"{DESCRIPTION} was altered",
        )
    try:
        with forked():
            model = registry.rebuild(told["model"])
    except (StochadeError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError("a model that this version of stochade knows", f"{told['model']} ({error})") from None
    if told.get("dtype") in _TYPES:
        model.to(_TYPES[told["dtype"]])
    load_into(model, tensors)
    return model.eval()


def load_into(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put saved tensors into a model, exactly: same names, shapes and types.

    Raises:
        CheckpointError: names, shapes or types that differ.
    """
    own = model.state_dict()
    missing, unknown = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    if missing or unknown:
        raise CheckpointError("weights for every tensor of the model", f"missing {missing}, unknown {unknown}")
    for name, tensor in tensors.items():
        if tensor.shape != own[name].shape or tensor.dtype != own[name].dtype:
            raise CheckpointError(
                f"{name} as {own[name].dtype} {list(own[name].shape)}", f"{tensor.dtype} {list(tensor.shape)}"
            )
    model.load_state_dict(dict(tensors))


def _folder(path: str | Path) -> Path:
    path = Path(path)
    return path.parent if path.name in (WEIGHTS, DESCRIPTION) else path
