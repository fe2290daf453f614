"""The baseline that a defence of nearly binary images has to beat: a plain network behind a threshold at 0.5."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from stochade.attacks import PGD, Backprop, margin
from stochade.attacks.threats import Ball
from stochade.attacks.transfer import Transfer
from stochade.audit import plan
from stochade.describe import digest
from stochade.errors import DataError
from stochade.evaluate.records import WORST, threat_info
from stochade.evaluate.run import evaluate, fingerprint_data
from stochade.evaluate.source import Source
from stochade.files import write_atomically
from stochade.nn.discrete import Discrete, Surrogate
from stochade.randomness import forked, seed_for

BINARY = 0.8  # share of pixels within 0.1 of black or white from which on images count as nearly binary
IMAGES, EPOCHS, BATCH, RATE = 20_000, 3, 100, 2e-3  # of training
VERSION = 1  # of the above: part of the cache's key


def _same(x: Tensor) -> Tensor:
    return x


def _steep(x: Tensor) -> Tensor:
    return torch.sigmoid(10 * x)


class Threshold(Discrete):
    """1 where a pixel is at least 0.5, else 0; the backward is the identity."""

    scope = "none"

    def __init__(self):
        super().__init__(Surrogate(_same, "identity"), {"soft": Surrogate(_steep, "soft")}, {"warm": _steep})

    def hard(self, x: Tensor) -> Tensor:
        return (x >= 0).to(x.dtype)


class Network(nn.Module):
    """Two convolutions and two linear layers, with or without a threshold at 0.5 in front. [N,C,H,W] -> [N,K]."""

    scope = "composite"

    def __init__(self, shape: tuple[int, ...], classes: int, thresholded: bool):
        super().__init__()
        self.threshold = Threshold() if thresholded else None
        side = [-(-s // 4) for s in shape[1:]]
        self.body = nn.Sequential(
            nn.Conv2d(shape[0], 16, 5, 2, 2), nn.ReLU(), nn.Conv2d(16, 32, 5, 2, 2), nn.ReLU(), nn.Flatten(),
            nn.Linear(32 * side[0] * side[1], 100), nn.ReLU(), nn.Linear(100, classes),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x if self.threshold is None else self.threshold(x - 0.5))


@dataclass(frozen=True)
class Baseline:
    """Training images for the baselines of an audit.

    Args:
        images, labels: as for `evaluate`; training images, never those of the audit.
        cache: folder where trained baselines are kept, or None.
    """

    images: Any
    labels: Any = None
    cache: Path | None = None


def looks_binary(x: Tensor) -> bool:
    """Whether nearly all pixels are black or white."""
    return float(((x < 0.1) | (x > 0.9)).float().mean()) >= BINARY


def check_baseline(data: object) -> None:
    """DataError unless these are training images for a baseline: nearly black and white, [N,C,H,W]."""
    if not isinstance(data, Baseline):
        raise DataError("baseline=Baseline(images, labels)", type(data).__name__, "training images, not the audit's")
    x, _ = Source(data.images, data.labels, BATCH)[0]
    if x.dim() != 4 or not looks_binary(x):
        raise DataError(
            "training images [N,C,H,W] that are nearly black and white", f"{tuple(x.shape)} with grey in them",
            "a threshold is a baseline for images such as MNIST's only: leave the baseline out",
        )  # fmt: skip


def train_baseline(data: Baseline, thresholded: bool, seed: int = 0) -> Network:
    """A baseline trained on `data`, in eval mode; from the cache where it was trained before.

    Raises:
        DataError: images that are not nearly binary, or not [N,C,H,W].
    """
    source = Source(data.images, data.labels, BATCH)
    check_baseline(data)
    x, _ = source[0]
    key = digest(
        [fingerprint_data(source), thresholded, seed, VERSION, IMAGES, EPOCHS, BATCH, RATE, torch.__version__]
    )
    path = None if data.cache is None else data.cache / f"baseline-{key[:16]}.safetensors"
    batches = min(source.chunks, IMAGES // BATCH)
    classes = 1 + max(int(source[i][1].max()) for i in range(batches))
    with forked(seed_for(seed, "baseline")):
        network = Network(tuple(x.shape[1:]), classes, thresholded)
        if path is not None and path.is_file():
            from safetensors.torch import load

            network.load_state_dict(load(path.read_bytes()))
        else:
            _train(network, source, batches)
            if path is not None:
                from safetensors.torch import save

                write_atomically(path, save(network.state_dict()))
    return network.eval()


def _train(network: Network, source: Source, batches: int) -> None:
    optimiser = torch.optim.Adam(network.parameters(), RATE)
    with torch.enable_grad():
        for _ in range(EPOCHS):
            for index in torch.randperm(batches).tolist():
                x, y = source[index]
                optimiser.zero_grad()
                functional.cross_entropy(network(x), y.long()).backward()
                optimiser.step()


def transfer_attack(data: Baseline, threat: Ball, steps: int, seed: int) -> dict[str, Transfer]:
    """The attack that fools an undefended network and hopes that the model falls with it."""
    source = train_baseline(data, False, seed)
    return {plan.TRANSFER + "a plain network": Transfer(source, PGD(threat, steps, objective=margin))}


def baseline_facts(data: Baseline, images: Any, labels: Any, threat: Ball, effort: plan.Effort, **options) -> dict:
    """What the thresholded network keeps under the audit's own attacks, on the audit's own images.

    Returns:
        {"clean": accuracy, "right": [N] 0 or 1 under the worst attack per example}.
    """
    seed = options.get("seed", 0)
    network = train_baseline(data, True, seed).to(options.get("device", "cpu"))
    attacks = plan.search_attacks(network, threat, False, True, effort)
    attacks["whole steps"] = PGD(threat, 20, step_size=threat.eps, gradient=Backprop(), objective=margin)
    records = evaluate(network, images, labels, attacks, **options)
    right = records.right(WORST, threat=threat_info(threat))[:, 0]
    clean = records.score("clean").value
    return {"clean": clean, "right": right.astype(int).tolist(), "attacks": list(attacks)}
