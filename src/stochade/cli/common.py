"""What several commands share: options of a run, data, threats, attacks by name."""

import os
import shlex
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from stochade.errors import BudgetError, DataError, UsageError


@dataclass
class RunOptions:
    """Options that every command with a model takes."""

    seed: int = 0
    """Everything random follows from it."""
    device: str = "cpu"
    """Where the model runs: cpu, cuda, cuda:1, mps."""
    workers: int = 0
    """Worker processes; 0 runs in this one."""
    chunk: int = 100
    """Examples per unit of work; part of the results' identity."""
    draws: int = 20
    """Scoring draws of the model per example."""
    dry_run: bool = False
    """Only say what it would cost."""
    quiet: bool = False
    """No progress."""


@dataclass
class DataOptions:
    """Which images."""

    data: str | None = None
    """digits, a data folder (parquet, class folders), an .npz file, or a name such as mnist. Default: the
    target's own."""
    split: str | None = None
    """train, validation, test, or all for data without splits. Default: test, or all where there are no splits."""
    examples: int = 200
    """How many images, a seeded subset; 0 takes all."""
    download: bool = False
    """Allow a download by name (needs stochade[download])."""


WITHOUT_EFFECT = ("out", "quiet", "dry_run")  # on results


def repeated(name: str, command: Any) -> str:
    """The command line that gives these results again: every option that is not at its default, quoted for a shell,
    with absolute paths cut to their last part (run it from that folder)."""
    return shlex.join(["stochade", name, *_arguments(command)])


def _arguments(command: Any) -> list[str]:
    places, options = [], []
    for part in fields(command):
        value = getattr(command, part.name)
        if is_dataclass(value):
            options += _arguments(value)
        elif part.default is MISSING and part.default_factory is MISSING:
            places += [_short(v) for v in (value if isinstance(value, tuple) else (value,))]
        elif part.name not in WITHOUT_EFFECT and value != part.default:
            options.append(f"--{part.name.replace('_', '-')}")
            options += [] if value is True else [_short(v) for v in (value if isinstance(value, tuple) else (value,))]
    return places + options


def _short(value: Any) -> str:
    text = str(value)
    return os.path.basename(text.rstrip("/")) if os.path.isabs(text) else text


def file_name(target: str) -> str:
    """A target's name as a part of a path."""
    from stochade.evaluate.store import slug

    return slug(target.replace("/", "_").strip("_."))


def check_run(options: RunOptions) -> None:
    """UsageError for numbers that make no sense, and for a device that this machine does not have."""
    for name, least in (("draws", 1), ("chunk", 1), ("workers", 0), ("seed", 0)):
        value = getattr(options, name)
        if value < least:
            raise UsageError(f"--{name} of at least {least}", str(value))
    check_device(options.device)


def check_device(device: str) -> None:
    """UsageError for a device that this machine does not have."""
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as problem:
        reason = str(problem).split("\n")[0]
        raise UsageError(
            "a device of this machine", f"{device!r} ({reason})", "`stochade doctor` lists them"
        ) from None


def read_threat(text: str, model: Any = None) -> Any:
    """A threat on images, or on codes ("flips=5", "flips=20 in total"); flips have the letters of the model's encoder
    where the words name none."""
    from stochade.attacks import parse_threat
    from stochade.attacks.flips import names_flips, parse_flips

    if not names_flips(text):
        return parse_threat(text)
    return parse_flips(text, getattr(getattr(model, "encoder", None), "alphabet", None))


def aggregated(model: Any, encodings: int) -> Any:
    """The model with the mean logits of so many encodings; itself for one."""
    from stochade.models.encoded import Aggregated, Encoded

    if encodings < 1:
        raise UsageError("--encodings of at least 1", str(encodings))
    if encodings == 1:
        return model
    if isinstance(model, Aggregated):
        raise UsageError("a model of one encoding for --encodings", f"one that takes the mean of {model.encoder.m}")
    if not isinstance(model, Encoded):
        raise UsageError("a model behind an encoder for --encodings", type(model).__name__)
    return Aggregated(model, encodings).eval()


def check_format(name: str) -> None:
    """UsageError for a table format that does not exist."""
    from stochade.report.tables import FORMATS

    if name not in FORMATS:
        raise UsageError(f"a format out of {', '.join(FORMATS)}", repr(name))


def check_kind(name: str) -> None:
    """UsageError for a score that does not exist."""
    from stochade.evaluate.records import KINDS

    if name not in KINDS:
        raise UsageError(f"a kind out of {', '.join(KINDS)}", repr(name))


def load_baseline(options: DataOptions, own: Any) -> Any:
    """Training images for the baselines of an audit."""
    from stochade import data
    from stochade.audit.baseline import Baseline
    from stochade.targets import cache_folder

    name = own if options.data is None else options.data
    if not isinstance(name, str):
        raise UsageError(
            "data with training images for --baseline", "a target with examples of its own", "pass --data"
        )
    return Baseline(data.load(name, "train", download=options.download), cache=cache_folder() / "baselines")


def load_images(options: DataOptions, own: Any, seed: int) -> tuple[Any, Any, dict]:
    """(images, labels, facts for the records)."""
    if seed < 0:
        raise BudgetError("--seed >= 0", str(seed))
    if options.examples < 0:
        raise BudgetError("--examples >= 0", str(options.examples), "0 takes all")
    if options.data is None and isinstance(own, tuple):
        images, labels = own
        if options.examples:
            images, labels = images[: options.examples], labels[: options.examples]
        return images, labels, {"data": "generated with the model"}
    source = options.data or own
    if source is None:
        raise UsageError("--data for a model of your own", "none", "e.g. --data digits, --data mnist, --data folder/")
    found = _loaded(source, options)
    if options.examples and options.examples < len(found):
        found = found.take(options.examples, seed=seed)
    facts = {"data": found.note or found.name, "split": found.split, "of": str(Path(source).name)}
    return found, None, facts


def _loaded(source: str, options: DataOptions) -> Any:
    from stochade import data

    if options.split is not None:
        return data.load(source, options.split, download=options.download)
    try:
        return data.load(source, "test", download=options.download)
    except DataError as problem:
        if "without splits" not in problem.got:
            raise
    return data.load(source, "all", download=options.download)


def print_cost(cost: dict, examples: int) -> None:
    """The answer of --dry-run."""
    minutes = cost["seconds"] / 60
    print(
        f"{examples} examples x ({cost['forwards']} forwards + {cost['backwards']} backwards), "
        f"about {minutes:.1f} minutes in one process at most; fooled examples leave earlier"
    )
