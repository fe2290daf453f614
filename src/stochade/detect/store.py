"""Calibrations as files: tensors as safetensors, the rest as JSON; loading runs no code."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from stochade.errors import CheckpointError
from stochade.files import write_atomically

TENSORS = ("mean", "std", "counts", "held", "typical")
WEIGHTS, DESCRIPTION, SCHEMA = "calibration.safetensors", "calibration.json", 1
FORMAT = "stochade odds calibration"


def save(folder: str | Path, tensors: Mapping[str, Tensor], told: Mapping[str, Any]) -> Path:
    """Write both files, each replaced as a whole; returns the folder."""
    folder = Path(folder)
    content = save_tensors({name: t.detach().cpu().contiguous() for name, t in tensors.items()})
    document = {"format": FORMAT, "schema": SCHEMA, **told,
                "tensors": {"file": WEIGHTS, "sha256": hashlib.sha256(content).hexdigest()}}  # fmt: skip
    write_atomically(folder / WEIGHTS, content)
    write_atomically(folder / DESCRIPTION, (json.dumps(document, indent=1, allow_nan=False) + "\n").encode())
    return folder


def load(folder: str | Path, model: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, description) of a folder, for the model of a fingerprint.

    Raises:
        CheckpointError: files that are missing, damaged, of another schema or of another model.
    """
    folder = Path(folder)
    for name in (WEIGHTS, DESCRIPTION):
        if not (folder / name).is_file():
            raise CheckpointError(f"a folder with {WEIGHTS} and {DESCRIPTION}", f"no file {folder / name}")
    try:
        told = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"JSON in {folder / DESCRIPTION}", str(error), "calibrate again") from None
    if not isinstance(told, dict) or (told.get("format"), told.get("schema")) != (FORMAT, SCHEMA):
        raise CheckpointError("the description of a detector's calibration", f"something else in {DESCRIPTION}")
    content = (folder / WEIGHTS).read_bytes()
    if hashlib.sha256(content).hexdigest() != told["tensors"]["sha256"]:
        raise CheckpointError(f"{WEIGHTS} as it was written", "another checksum", "calibrate again")
    if told["model"] != model:
        raise CheckpointError(
            "the model that was calibrated", "another one (weights or class differ)", "calibrate the detector on it"
        )
    try:
        tensors = load_tensors(content)
    except SafetensorError as error:
        raise CheckpointError(f"safetensors in {WEIGHTS}", str(error), "calibrate again") from None
    return tensors, told
