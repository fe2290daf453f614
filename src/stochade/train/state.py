"""The state of a training run in one file, written whole or not at all, so that a killed run goes on.

One safetensors file holds the network, the best network so far and the optimizer's moments; its metadata hold
the epoch, the history and a fingerprint of the run's settings. No generator state is needed: every epoch seeds
the generators from (seed, epoch), so what it draws does not depend on what ran before it.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_tensors
from torch import Tensor, nn
from torch.optim import Optimizer

from stochade.checkpoint import load_into, tensors_of
from stochade.errors import CheckpointError
from stochade.files import write_atomically

STATE, METRICS = "state.safetensors", "metrics.jsonl"


@dataclass(frozen=True)
class Epoch:
    """One epoch as `metrics.jsonl` tells it. Accuracies are of one draw per image; losses are means per image.

    `rate` is the learning rate; `terms` are the parts of the training loss that the objective names.
    """

    epoch: int
    train_loss: float
    train_accuracy: float
    validation_loss: float
    validation_accuracy: float
    slope: float | None
    seconds: float
    rate: float | None = None
    terms: Mapping[str, float] = field(default_factory=dict)


@dataclass
class Progress:
    """How far a run has come: its epochs so far, the best of them and its tensors."""

    epochs: list[Epoch]
    best: int | None
    best_tensors: dict[str, Tensor]


def metrics_text(epochs: list[Epoch]) -> bytes:
    return "".join(json.dumps(asdict(epoch)) + "\n" for epoch in epochs).encode()


def save_state(
    folder: Path, model: nn.Module, optimizer: Optimizer, progress: Progress, settings: Mapping[str, Any]
) -> None:
    """Write the state after an epoch, then the metrics. A kill at any moment leaves a state to go on from."""
    tensors = {f"model.{name}": tensor for name, tensor in tensors_of(model).items()}
    tensors |= {f"best.{name}": tensor for name, tensor in progress.best_tensors.items()}
    for index, values in optimizer.state_dict()["state"].items():
        for key, value in values.items():
            if value is None:  # momentum that has not begun
                continue
            value = value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)
            tensors[f"optimizer.{index}.{key}"] = value.detach().cpu().contiguous().clone()
    told = {"settings": dict(settings), "best": progress.best, "epochs": [asdict(e) for e in progress.epochs]}
    told["digest"] = _digest(tensors)
    write_atomically(folder / STATE, save_tensors(tensors, metadata={"stochade": json.dumps(told)}))
    write_atomically(folder / METRICS, metrics_text(progress.epochs))


def load_state(folder: Path, model: nn.Module, optimizer: Optimizer, settings: Mapping[str, Any]) -> Progress | None:
    """Put the network and the optimizer where the run in `folder` stopped; None when there is no run.

    Raises:
        CheckpointError: a damaged state, or a run with other settings.
    """
    file = folder / STATE
    if not file.is_file():
        return None
    try:
        with safe_open(str(file), framework="pt") as opened:
            told = json.loads((opened.metadata() or {}).get("stochade", "null"))
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError, OSError) as error:
        raise CheckpointError(f"a training state in {file}", str(error), "remove the file to start again") from None
    if not isinstance(told, dict) or told.get("digest") != _digest(tensors):
        got = told.get("digest") if isinstance(told, dict) else None
        raise CheckpointError(
            f"a training state with digest {got}", f"{_digest(tensors)} in {file}", "remove the file to start again"
        )
    differing = [
        f"{key}: {told['settings'].get(key)!r} there, {settings.get(key)!r} here"
        for key in sorted(set(told["settings"]) | set(settings))
        if told["settings"].get(key) != settings.get(key)
    ]
    if differing:
        raise CheckpointError(
            f"the run of {folder} with its own settings", "; ".join(differing), "choose another folder, or remove it"
        )
    load_into(model, _under("model.", tensors))
    _restore(optimizer, _under("optimizer.", tensors))
    return Progress([Epoch(**e) for e in told["epochs"]], told["best"], _under("best.", tensors))


def _restore(optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    # The hyperparameters are those of the settings, which were compared; only the moments come from the file.
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
