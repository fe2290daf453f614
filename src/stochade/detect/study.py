"""The whole story of a detector on one model: calibrated, tried on clean images, on a plain attack, and on attacks
that know it. Every attack is kept as soon as it is done; the same call takes an interrupted run up again."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from stochade.attacks.base import Attack
from stochade.attacks.descent import PGD
from stochade.attacks.gradients import Model
from stochade.attacks.inputs import check_inputs
from stochade.attacks.threats import Threat
from stochade.describe import describe, digest, fingerprint_model
from stochade.detect.attack import InTheLoop, LogitMatching
from stochade.detect.bank import PAPER, Noise
from stochade.detect.odds import Detector
from stochade.detect.roc import Curve, curve, share
from stochade.evaluate.intervals import Estimate
from stochade.evaluate.store import slug
from stochade.files import write_atomically
from stochade.progress import progress
from stochade.randomness import seed_for

CLEAN, PLAIN = "clean", "pgd"


@dataclass(frozen=True)
class Result:
    """One attack. All shares are of images that the model has right before it; detection and correction of those
    among them that it has wrong afterwards.

    Attributes:
        wrong: predicted wrongly. detected: flagged, of the wrong ones. corrected: given the true class, of the wrong
            ones. through: wrong and not flagged.
        curve: scores of the wrong ones against those of all clean images; None where nothing is wrong.
        scores: of the wrong ones.
    """

    wrong: Estimate
    detected: Estimate
    corrected: Estimate
    through: Estimate
    curve: Curve | None
    scores: np.ndarray


@dataclass(frozen=True)
class Study:
    """Attributes:
    detector: calibrated. threat: of every attack.
    accuracy: on clean images. false: flagged among all clean images. kept: right after correction among all of them.
    clean: scores of all clean images. attacks: results by name.
    """

    detector: Detector
    threat: Threat
    accuracy: Estimate
    false: Estimate
    kept: Estimate
    clean: np.ndarray
    attacks: dict[str, Result]


def attacks_on(detector: Detector, threat: Threat, steps: int = 100) -> dict[str, Attack]:
    """The plain attack and the two that know the detector, at one distance."""
    c = detector.calibration
    return {
        PLAIN: PGD(threat, 40, drop_fooled=False),
        "logit matching": LogitMatching(c, threat, steps),
        "in the loop": InTheLoop(c, threat, steps),
    }


def study(
    model: Model,
    calibration: Tensor,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    rate: float = 0.01,
    noises: Sequence[Noise] = PAPER,
    draws: int = 32,
    steps: int = 100,
    seed: int = 0,
    chunk: int = 100,
    out: str | Path | None = None,
    show_progress: bool = False,
) -> Study:
    """Calibrate a detector, attack the model with and without knowledge of it, and look what is flagged.

    Args:
        calibration: clean images [M,C,H,W]. x, y: other images, which are attacked, and their classes.
        threat: of every attack. steps: of the attacks that know the detector.
        rate, noises, draws: as in `Detector.calibrate`.
        seed: calibration, attacks and test draw noises of their own from it.
        chunk: images per batch of an attack; part of the results' identity.
        out: folder that calibration and attacks are kept in and taken up from.

    Raises:
        As `Detector.calibrate` and attacks, before any attack.
    """
    check_inputs(x, y)
    made = {"model": fingerprint_model(model), "calibration": calibration, "rate": rate, "noises": list(noises)}
    made |= {"draws": draws, "seed": seed}
    detector = _calibrated(model, made, calibration, out, show_progress)
    attacks = attacks_on(detector, threat, steps)
    told = digest([made, x, y, chunk])
    seen = {CLEAN: _kept(detector, None, x, y, told, chunk, out, CLEAN, show_progress)}
    for name, attack in attacks.items():
        seen[name] = _kept(detector, attack, x, y, told, chunk, out, name, show_progress)
    clean, labels = seen[CLEAN], y.cpu()
    right = clean["predicted"] == labels
    return Study(
        detector, threat, share(right.numpy()), share(clean["flags"].numpy()),
        share((clean["corrected"] == labels).numpy()), clean["scores"].numpy(),
        {name: _result(seen[name], clean["scores"], right, labels) for name in attacks},
    )  # fmt: skip


def _result(seen: Mapping[str, Tensor], clean: Tensor, right: Tensor, y: Tensor) -> Result:
    wrong = right & (seen["predicted"] != y)
    scores = seen["scores"][wrong].numpy()
    return Result(
        share(wrong[right].numpy()), share(seen["flags"][wrong].numpy()),
        share((seen["corrected"] == y)[wrong].numpy()), share((wrong & ~seen["flags"])[right].numpy()),
        curve(clean.numpy(), scores) if len(scores) else None, scores,
    )  # fmt: skip


def _calibrated(model: Model, made: dict, images: Tensor, out: str | Path | None, show: bool) -> Detector:
    folder = None if out is None else Path(out) / f"calibration-{digest(made)[:12]}"
    if folder is not None and (folder / "calibration.json").is_file():
        return Detector.load(folder, model)
    detector = Detector.calibrate(
        model, images, rate=made["rate"], noises=made["noises"], draws=made["draws"], seed=made["seed"],
        show_progress=show,
    )  # fmt: skip
    if folder is not None:
        detector.save(folder)
    return detector


def _kept(detector, attack, x, y, told, chunk, out, name, show) -> dict[str, Tensor]:
    """Predictions, scores, flags and corrections of attacked images, from the folder where they are there."""
    key = digest([told, describe(attack)])
    path = None if out is None else Path(out) / "records" / f"{slug(name)}.safetensors"
    if path is not None and path.is_file():
        try:
            kept = load_tensors(path.read_bytes())
            if bytes(kept.pop("key").numpy()).decode() == key:
                return kept
        except (SafetensorError, KeyError):
            pass  # damaged, or of something else: done again
    inputs = x if attack is None else _attacked(detector, attack, x, y, chunk, name, show)
    verdict = detector.examine(inputs, show_progress=show)
    found = verdict._asdict()
    if path is not None:
        label = torch.tensor(list(key.encode()), dtype=torch.uint8)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, save_tensors({**found, "key": label}))
    return found


def _attacked(detector: Detector, attack: Attack, x: Tensor, y: Tensor, chunk: int, name: str, show: bool) -> Tensor:
    parts = []
    with progress(f"attacking: {name}", len(x), show) as tick:
        for i, (images, labels) in enumerate(zip(x.split(chunk), y.split(chunk), strict=True)):
            seed = detector.seed
            model_seed = seed_for(seed, name, i)
            parts.append(attack.run(detector.model, images, labels, seed=seed, model_seed=model_seed).inputs)
            tick(len(images))
    return torch.cat(parts)
