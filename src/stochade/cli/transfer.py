"""`stochade transfer`: the source x target matrix."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import OmitArgPrefixes, Positional, PositionalMetavarFromFieldName

from stochade.cli import common
from stochade.errors import UsageError


@dataclass
class Transfer:
    """Make adversarial examples on every TARGET and score them on every other: the full transfer matrix.

    Examples:

    stochade transfer digits-mlp digits-gated digits-kwta --attack "pgd steps=40" --threat linf=0.15

    stochade transfer runs/a runs/b --data mnist --attack fgsm --threat linf=0.3 --ensemble --format latex
    """

    targets: Annotated[tuple[str, ...], Positional, PositionalMetavarFromFieldName]
    """Two or more: built-ins, checkpoint folders, module:function or file.py:function."""
    attack: str = "pgd"
    """Attack with its options, in quotes."""
    threat: str | None = None
    """Norm and budget: linf=8/255, l2=0.5. Default: what the first target is usually measured under."""
    ensemble: bool = False
    """Also attack all of them at once (mean logits)."""
    format: str = "markdown"
    """markdown, csv or latex."""
    kind: str = "single"
    """single, vote or all."""
    out: Path | None = None
    """Folder for the records; an interrupted run is taken up again."""
    images: OmitArgPrefixes[common.DataOptions] = field(default_factory=common.DataOptions)
    run_options: OmitArgPrefixes[common.RunOptions] = field(default_factory=common.RunOptions)

    def run(self) -> None:
        from stochade.attacks import parse_threat
        from stochade.attacks.registry import parse_attack
        from stochade.attacks.transfer import EnsembleModel
        from stochade.evaluate.transfer import transfer_matrix
        from stochade.targets import load_target

        o = self.run_options
        if len(self.targets) < 2:
            raise UsageError("two targets or more", str(len(self.targets)), "a matrix needs a source and a target")
        if len(set(self.targets)) < len(self.targets):
            raise UsageError("each target once", " ".join(self.targets))
        common.check_format(self.format)
        common.check_kind(self.kind)
        parse_attack(self.attack, parse_threat(self.threat or "linf=0.1"))
        common.check_run(o)
        found = [load_target(t, seed=0, device=o.device, show_progress=not o.quiet) for t in self.targets]
        attack = parse_attack(self.attack, parse_threat(self.threat or found[0].threat or "linf=0.1"))
        images, labels, facts = common.load_images(self.images, found[0].data, o.seed)
        models = {t.name: t.model for t in found}
        extra = {"ensemble": EnsembleModel(list(models.values())).eval()} if self.ensemble else None
        if o.dry_run:
            forwards, backwards = attack.cost()
            print(
                f"{len(models) + self.ensemble} sources x {len(images)} examples x "
                f"({forwards} forwards + {backwards} backwards)"
            )
            return
        matrix = transfer_matrix(
            models, images, labels, attack, sources=extra, draws=o.draws, seed=o.seed, out=self.out, chunk=o.chunk,
            workers=o.workers, device=o.device, show_progress=not o.quiet, meta=facts,
        )  # fmt: skip
        print(matrix.table(self.format, self.kind), end="")
        for source, target in matrix.stronger_from_outside():
            print(f"examples made on {source} beat {target}'s own: its gradient hides the way")
