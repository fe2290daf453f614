"""`stochade attack`: the accuracy table of attacks of your choice."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import OmitArgPrefixes, Positional, PositionalMetavarFromFieldName

from stochade.cli import common
from stochade.errors import UsageError

Options = OmitArgPrefixes[common.RunOptions]
Data = OmitArgPrefixes[common.DataOptions]
Name = Annotated[str, Positional, PositionalMetavarFromFieldName]


@dataclass
class Attack:
    """Attack TARGET with attacks of your choice and print the accuracy table.

    Examples:

    stochade attack digits-gated --attacks fgsm pgd "pgd draws=20 backward=soft" --threat linf=0.15

    stochade attack mynet.py:build --data mnist --attacks "pgd steps=100 restarts=5" --threat l2=2 --format latex

    stochade attack digits-mlp --attacks pgd --threat linf=0.1 --budgets 0.02 0.05 0.1 0.2

    stochade attack digits-mlp --attacks standard "pgd target=runner-up" "fgsm eps=0.05" "transfer source=digits-kwta"
    """

    target: Name
    """A built-in (see `stochade ls`), a checkpoint folder, module:function or file.py:function."""
    attacks: tuple[str, ...] = ("fgsm", "pgd")
    """Attacks with their options, each in quotes: "pgd steps=100 draws=20"; `stochade ls attacks` lists both."""
    threat: str | None = None
    """Norm and budget: linf=8/255, l2=0.5, l1=12, l0=10."""
    budgets: tuple[float, ...] = ()
    """Further budgets of the same norm: an accuracy-over-budget sweep."""
    format: str = "markdown"
    """markdown, csv or latex."""
    eight_bit: bool = False
    """Round adversarial images to whole grey levels first."""
    out: Path | None = None
    """Folder for the records; an interrupted run is taken up again."""
    images: Data = field(default_factory=common.DataOptions)
    run_options: Options = field(default_factory=common.RunOptions)

    def run(self) -> None:
        from stochade.attacks import parse_threat
        from stochade.evaluate import evaluate, expected_seconds
        from stochade.progress import progress
        from stochade.report import table
        from stochade.targets import load_target

        o = self.run_options
        common.check_format(self.format)
        threat = None if self.threat is None else parse_threat(self.threat)
        self._named(threat or parse_threat("linf=0.1"))
        common.check_run(o)
        target = load_target(self.target, seed=0, device=o.device, show_progress=not o.quiet)
        threat = threat or parse_threat(target.threat or "linf=0.1")

        models: dict[str, Any] = {}

        def load(name: str) -> Any:
            if name not in models:
                models[name] = load_target(name, seed=0, device=o.device, show_progress=not o.quiet).model
            return models[name]

        table_of = self._named(threat, load, target.model)
        images, labels, facts = common.load_images(self.images, target.data, o.seed)
        if o.dry_run:
            with progress("timing one pass", shown=not o.quiet):
                cost = expected_seconds(target.model, images, labels, table_of, o.draws)
            common.print_cost(cost, len(images))
            return
        records = evaluate(
            target.model, images, labels, table_of, o.draws, o.seed, chunk=o.chunk, workers=o.workers, out=self.out,
            eight_bit=self.eight_bit, device=o.device, show_progress=not o.quiet, meta=target.about | facts,
        )  # fmt: skip
        print(table(records, self.format))

    def _named(self, given: Any, load: Callable[[str], Any] | None = None, model: Any = None) -> dict[str, Any]:
        """Every attack at the threat, and at each further budget; without `load` only to see that they make sense.
        Attacks on codes take the letters of the model's encoder."""
        from stochade.attacks.registry import parse_attack
        from stochade.train.codes import flips_in, names_codes

        found = {}
        for text in self.attacks:
            threat = flips_in(model) if names_codes(text) else given
            found[text] = parse_attack(text, threat, load)
            if self.budgets and " eps=" in text:
                raise UsageError("no eps= in attacks beside --budgets", repr(text), "leave one of them out")
            for eps in self.budgets:
                if eps != threat.eps:
                    found[f"{text} eps={eps:g}"] = parse_attack(text, threat.resized(eps), load)
        return found
