"""`stochade reproduce`: a table or figure of a paper, with the paper's numbers, ours and the adaptive ones."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, PositionalMetavarFromFieldName

from stochade.cli import common


@dataclass
class Reproduce:
    """Train, attack and audit what a table or figure of a paper is about; ends with the paper's table beside our
    numbers, and a page with its figures. `stochade ls recipes` lists the recipes.

    Examples:

    stochade reproduce kubo2019-binarised-mlp --scale smoke

    stochade reproduce kubo2019-fgsm --scale small --workers 2

    stochade reproduce my-recipe.toml --data mnist --seeds 3
    """

    recipe: Annotated[str, Positional, PositionalMetavarFromFieldName]
    """A recipe by name, or a .toml file."""
    scale: str = "small"
    """smoke (seconds, bundled digits), small (minutes on two cores) or paper (the paper's own setting)."""
    data: str | None = None
    """Other images: a name or a folder. Default: the scale's."""
    download: bool = False
    """Allow a download by name (needs stochade[download])."""
    seeds: int | None = None
    """Networks trained from scratch per row. Default: the scale's."""
    rows: tuple[str, ...] = ()
    """Only these rows, by name."""
    models: tuple[str, ...] = ()
    """Models of your own in the place of rows: NAME=TARGET, such as ResNet=mine.py:resnet50."""
    out: Path = Path("runs/reproduce")
    """Folder for networks, records, audits and the page; an interrupted run is taken up again."""
    seed: int = 0
    """Everything random follows from it."""
    workers: int = 0
    """Worker processes; 0 runs in this one."""
    device: str = "cpu"
    """Where the networks run: cpu, cuda, cuda:1, mps."""
    quiet: bool = False
    """No progress."""

    def run(self) -> None:
        from stochade.errors import UsageError
        from stochade.recipes import page, reproduce, tables
        from stochade.targets import load_target

        for name, least in (("seed", 0), ("workers", 0)):
            if getattr(self, name) < least:
                raise UsageError(f"--{name} of at least {least}", str(getattr(self, name)))
        common.check_device(self.device)
        given = {}
        for pair in self.models:
            name, equals, target = pair.partition("=")
            if not (name and equals and target):
                raise UsageError("--models NAME=TARGET", repr(pair), "such as ResNet=mine.py:resnet50")
            given[name] = load_target(target, device=self.device, show_progress=not self.quiet).model
        found = reproduce(
            self.recipe, self.scale, out=self.out, data=self.data, seed=self.seed, seeds=self.seeds,
            only=list(self.rows), download=self.download, models=given or None, workers=self.workers,
            device=self.device, show_progress=not self.quiet,
        )  # fmt: skip
        place = page.save(found, self.out / f"{found.recipe.name}-{self.scale}" / self._part())
        print(tables.text(found))
        print(f"page: {place}")

    def _part(self) -> str:
        """A folder of its own for results that are not the whole recipe's: those stay as they are."""
        from stochade.evaluate.store import slug

        words = [f"seed {self.seed}"] if self.seed else []
        words += [f"{self.seeds} seeds"] if self.seeds else []
        words += [f"rows {' '.join(self.rows)}"] if self.rows else []
        words += [f"data {Path(self.data).name}"] if self.data else []
        words += [f"models {' '.join(self.models)}"] if self.models else []
        return slug(", ".join(words)) if words else ""
