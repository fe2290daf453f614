"""Problems as files that either environment reads: weights, images, labels, budget. Torch and NumPy only."""

import hashlib
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent / "peers"))
import models

PACKAGES = ("torch", "torchattacks", "foolbox", "adversarial-robustness-toolbox", "adv-lib", "numpy", "stochade")


def write_case(folder: Path, name: str, model: nn.Module, images: Tensor, labels: Tensor, eps: float = 0.0) -> None:
    """<name>.npz; the network's class is one of `peers/models.py`, by name."""
    weights = {f"w:{key}": value.numpy() for key, value in model.state_dict().items()}
    arrays = {"images": images.numpy(), "labels": labels.numpy(), "eps": np.float64(eps)}
    np.savez(folder / f"{name}.npz", network=np.array(type(model).__name__), **arrays, **weights)


def load_case(folder: Path, name: str) -> tuple[nn.Module, Tensor, Tensor, float]:
    """What `write_case` has written; the network in eval mode."""
    with np.load(folder / f"{name}.npz", allow_pickle=False) as file:
        model = getattr(models, str(file["network"]))()
        arrays = {key: torch.from_numpy(file[key]) for key in file.files if key != "network"}
    model.load_state_dict({k[2:]: v for k, v in arrays.items() if k.startswith("w:")})
    return model.eval(), arrays["images"], arrays["labels"], float(arrays["eps"])


def source_digest(package: str) -> str | None:
    """A digest of a package's Python files, for peers that have no released version."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        return None
    digest = hashlib.sha256()
    for path in sorted(Path(spec.origin).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def versions() -> dict[str, str]:
    """What this environment holds of stochade and the peers."""
    table = {}
    for name in PACKAGES:
        try:
            table[name] = version(name)
        except PackageNotFoundError:
            continue
    digest = source_digest("autoattack")
    return table | ({"auto-attack": f"sha256 of its sources {digest}"} if digest else {})
