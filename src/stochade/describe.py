"""Plain, stable descriptions of what was run: configurations without addresses, fingerprints of models, and
provenance (versions, hardware, revision)."""

import dataclasses
import functools
import hashlib
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn


def describe(value: object) -> object:
    """A JSON-able description that is equal for equal configurations, in every process and on every machine."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if np.isfinite(value) else str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        named = {f.name: describe(getattr(value, f.name)) for f in dataclasses.fields(value) if _told(f, value)}
        return {"type": type(value).__name__} | named
    if isinstance(value, functools.partial):
        return {
            "partial": describe(value.func),
            "args": [describe(a) for a in value.args],
            "keywords": {k: describe(v) for k, v in sorted(value.keywords.items())},
        }
    if isinstance(value, Mapping):
        return {k if isinstance(k, str) else json.dumps(describe(k)): describe(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [describe(v) for v in value]
    if isinstance(value, Tensor | np.ndarray):
        array = value.detach().cpu().numpy() if isinstance(value, Tensor) else value
        return {
            "array": list(array.shape),
            "sha256": hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16],
        }
    if isinstance(value, nn.Module):
        return {"module": type(value).__name__, "sha256": fingerprint_model(value)[:16]}
    name = getattr(value, "__qualname__", None)
    if name is not None:
        return f"{getattr(value, '__module__', '')}.{name}"
    return type(value).__name__


def _told(part: dataclasses.Field, value: object) -> bool:
    """Whether a field is described. One with metadata {"later": True} came after runs that must be taken up without
    it: it is silent at its default."""
    return part.repr and not (part.metadata.get("later") and getattr(value, part.name) == part.default)


def as_call(description: object) -> str:
    """A described object as the call that makes it: {"type": "Linf", "eps": 0.1} is "Linf(eps=0.1)"."""
    if isinstance(description, dict) and "type" in description:
        inner = ", ".join(f"{key}={as_call(item)}" for key, item in description.items() if key != "type")
        return f"{description['type']}({inner})"
    if isinstance(description, list | tuple):
        return "[" + ", ".join(as_call(item) for item in description) + "]"
    own = isinstance(description, str) and description.startswith("stochade.")
    return str(description).rpartition(".")[2] if own else str(description)


def digest(value: object) -> str:
    """sha256 of a description."""
    return hashlib.sha256(json.dumps(describe(value), sort_keys=True).encode()).hexdigest()


def fingerprint_model(model: object) -> str:
    """sha256 over the architecture's printed form and every parameter and buffer; for a plain callable, over its
    qualified name."""
    state = hashlib.sha256()
    if not isinstance(model, nn.Module):
        name = getattr(model, "__qualname__", type(model).__qualname__)
        return hashlib.sha256(f"{getattr(model, '__module__', '')}.{name}".encode()).hexdigest()
    state.update(f"{type(model).__module__}.{type(model).__qualname__}\n{model}".encode())
    for name, tensor in sorted(model.state_dict().items()):
        if isinstance(tensor, Tensor):
            state.update(name.encode())
            state.update(
                tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
                if tensor.numel()
                else b""
            )
    return state.hexdigest()


def git_revision(folder: str | Path | None = None) -> str | None:
    """The commit of the checkout that `folder` (default: the working directory) lies in, "+" when it has
    uncommitted changes; None outside one."""
    options = {"cwd": folder, "capture_output": True, "text": True, "timeout": 5, "check": True}
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], **options).stdout.strip()
        dirty = subprocess.run(["git", "status", "--porcelain", "-uno"], **options).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + ("+" if dirty else "")


def processor() -> str:
    """The processor's name, as far as the system tells."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def provenance() -> dict:
    """Versions, hardware, revision, command and date of this run."""
    import scipy

    from stochade import __version__
    from stochade.native import status

    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]) if sys.argv else "",
        "git_revision": git_revision(),
        "versions": {
            "stochade": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
            "scipy": scipy.__version__,
        },
        "hardware": {
            "processor": processor(),
            "cores": os.cpu_count(),
            "system": f"{platform.system()} {platform.machine()}",
            "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            "compiled kernels": status(),
        },
    }
