"""`stochade detect`: a detector calibrated, tried, and broken."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import OmitArgPrefixes, Positional, PositionalMetavarFromFieldName

from stochade.cli import common
from stochade.errors import DataError, UsageError


@dataclass
class Detect:
    """Put the "Odds are Odd" detector in front of TARGET, and break it: calibration on clean images, false positives,
    detection and correction under PGD, and under two attacks that know the detector, at the same distance.

    Examples:

    stochade detect digits-mlp --threat linf=0.2 --rate 0.05 --noise 0.05

    stochade detect runs/mynet --data mnist --threat linf=0.3 --rate 0.01 --calibration 2000 --out runs/odds
    """

    target: Annotated[str, Positional, PositionalMetavarFromFieldName]
    """A built-in (see `stochade ls`), a checkpoint folder, module:function or file.py:function."""
    threat: str | None = None
    """Norm and budget of all attacks: linf=8/255, l2=0.5. Default: what the target is usually measured under."""
    rate: float = 0.01
    """Share of clean images that may be flagged."""
    noise: tuple[str, ...] = ("paper",)
    """The bank: gaussian=SIZE, uniform=SIZE, bernoulli=SIZE, SIZE (all three) or paper (all three at 0.003, 0.005 and
    0.008)."""
    noise_draws: int = 32
    """Draws of each noise per image."""
    calibration: int = 1000
    """Clean images that calibrate, of the validation split, or of the same images as the attacked ones (but others)
    where there is none; at most what there are."""
    steps: int = 100
    """Steps of the attacks that know the detector."""
    seed: int = 0
    """Everything random follows from it."""
    chunk: int = 100
    """Images per batch of an attack; part of the results' identity."""
    device: str = "cpu"
    """Where the model runs: cpu, cuda, cuda:1, mps."""
    out: Path | None = None
    """Folder for calibration, records, result.json and page.html; an interrupted run is taken up again."""
    dry_run: bool = False
    """Only say what it would cost."""
    quiet: bool = False
    """No progress."""
    images: OmitArgPrefixes[common.DataOptions] = field(default_factory=common.DataOptions)

    def run(self) -> None:
        from stochade.attacks import parse_threat
        from stochade.detect import page, parse_bank
        from stochade.detect.odds import check_draws, rank_of
        from stochade.detect.study import study
        from stochade.targets import load_target

        for name, least in (("calibration", 1), ("steps", 1), ("seed", 0), ("chunk", 1), ("noise_draws", 1)):
            if getattr(self, name) < least:
                option = name.replace("_", "-")
                raise UsageError(f"--{option} of at least {least}", str(getattr(self, name)))
        noises = parse_bank(self.noise)
        check_draws(self.noise_draws)
        rank_of(self.calibration // 2, self.rate)
        given = None if self.threat is None else parse_threat(self.threat)
        common.check_device(self.device)
        found = load_target(self.target, seed=0, device=self.device, show_progress=not self.quiet)
        threat = given or parse_threat(found.threat or "linf=0.1")
        clean, x, y, facts = self._loaded(found.data)
        rank_of(len(clean) // 2, self.rate)
        if self.dry_run:
            self._cost(threat, noises, len(clean), len(x))
            return
        clean, x, y = (part.to(self.device) for part in (clean, x, y))
        result = study(
            found.model, clean, x, y, threat, rate=self.rate, noises=noises, draws=self.noise_draws, steps=self.steps,
            seed=self.seed, chunk=self.chunk, out=self.out, show_progress=not self.quiet,
        )  # fmt: skip
        print(f"{found.name}: {len(x)} images, detector calibrated on {len(clean)} others")
        for name, value in page.clean_rows(result):
            print(f"  {name:32} {value}")
        _print(page.COLUMNS, page.rows_of(result))
        print("wrong (and undetected): of images right before; detected, corrected: of the wrong ones")
        if self.out is not None:
            told = {"target": common._short(found.name), "data": facts["data"]}
            print(f"page: {page.save(result, self.out, told, common.repeated('detect', self))}")

    def _loaded(self, own: Any) -> tuple[Any, Any, Any, dict]:
        """(calibration images, attacked images, their classes, facts); no image is in both."""
        import torch

        from stochade import data

        images, labels, facts = common.load_images(self.images, own, self.seed)
        if labels is not None:
            half = len(images) // 2
            return images[:half], images[half:], labels[half:], facts
        x, y = images[:]
        source = self.images.data or own
        try:
            others = data.load(source, "validation", download=self.images.download)
            if facts["split"] == "validation":
                others = data.load(source, "test", download=self.images.download)
            clean, _ = others.take(min(self.calibration, len(others)), seed=self.seed)[:]
        except DataError as problem:
            if "splits" not in str(problem):
                raise
            pool = data.load(source, "all", download=self.images.download)
            pool = pool.take(min(len(pool), len(x) + self.calibration), seed=self.seed)
            if len(pool) == len(x):
                got = f"all {len(x)} attacked"
                raise UsageError("images left over for calibration", got, "lower --examples") from None
            clean = pool[len(x) :][0]  # draws with a seed are nested: the attacked images come first
        return torch.as_tensor(clean), torch.as_tensor(x), torch.as_tensor(y), facts

    def _cost(self, threat: Any, noises: Any, calibration: int, count: int) -> None:
        each = 1 + len(noises) * self.noise_draws
        print(f"calibration: {calibration} images x {each} forwards; test: 4 x {count} images x {each} forwards")
        matching = self.steps * 8
        loop = self.steps * (1 + 2 * len(noises)) + 50 * 8
        for name, passes in (("pgd", 40), ("logit matching", matching), ("in the loop", loop)):
            print(f"{name}: {count} images x {passes} forwards and backwards, in {threat.name} {threat.eps:g}")


def _print(columns: list[str], rows: list[list[str]]) -> None:
    widths = [max(len(row[i]) for row in [columns, *rows]) for i in range(len(columns))]
    for row in [columns, *rows]:
        print("  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())
