"""`stochade attack`: the accuracy table of attacks of your choice."""

import sys
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

    stochade attack digits-rate --attacks sea "sea steps=20 restarts=5" sea-oblivious --threat flips=5 --encodings 4

    stochade attack digits-mlp --attacks standard "pgd target=runner-up" "fgsm eps=0.05" "transfer source=digits-kwta"
    """

    target: Name
    """A built-in (see `stochade ls`), a checkpoint folder, module:function or file.py:function."""
    attacks: tuple[str, ...] = ("fgsm", "pgd")
    """Attacks with their options, each in quotes: "pgd steps=100 draws=20"; `stochade ls attacks` lists both."""
    threat: str | None = None
    """Norm and budget: linf=8/255, l2=0.5, l1=12, l0=10; flips of codes (models with an encoder): flips=5, in every
    frame, or "flips=20 in total"."""
    budgets: tuple[float, ...] = ()
    """Further budgets of the same norm: an accuracy-over-budget sweep."""
    format: str = "markdown"
    """markdown, csv or latex."""
    encodings: int = 1
    """Encodings of every image whose logits are averaged (models with an encoder)."""
    eight_bit: bool = False
    """Round adversarial images to whole grey levels first."""
    out: Path | None = None
    """Folder for the records; an interrupted run is taken up again."""
    images: Data = field(default_factory=common.DataOptions)
    run_options: Options = field(default_factory=common.RunOptions)

    def run(self) -> None:
        from stochade.audit.canary import told, zero_gradient_findings
        from stochade.evaluate import evaluate, expected_seconds
        from stochade.evaluate.codes import check_code_attacks
        from stochade.progress import progress
        from stochade.report import table
        from stochade.targets import load_target

        o = self.run_options
        common.check_format(self.format)
        self._named(common.read_threat(self.threat or "linf=0.1"))
        common.check_run(o)
        target = load_target(self.target, seed=0, device=o.device, show_progress=not o.quiet)
        model = common.aggregated(target.model, self.encodings)
        threat = common.read_threat(self.threat or target.threat or "linf=0.1", model)

        models: dict[str, Any] = {}

        def load(name: str) -> Any:
            if name not in models:
                models[name] = load_target(name, seed=0, device=o.device, show_progress=not o.quiet).model
            return models[name]

        table_of = self._named(threat, load, model)
        check_code_attacks(model, table_of)
        images, labels, facts = common.load_images(self.images, target.data, o.seed)
        if o.dry_run:
            with progress("timing one pass", shown=not o.quiet):
                cost = expected_seconds(model, images, labels, table_of, o.draws)
            common.print_cost(cost, len(images))
            return
        for finding in zero_gradient_findings(model, images, labels, table_of, seed=o.seed, device=o.device):
            print(told(finding), file=sys.stderr)
        about = target.about | ({"encodings": self.encodings} if self.encodings > 1 else {})
        records = evaluate(
            model, images, labels, table_of, o.draws, o.seed, chunk=o.chunk, workers=o.workers, out=self.out,
            eight_bit=self.eight_bit, device=o.device, show_progress=not o.quiet, meta=about | facts,
        )  # fmt: skip
        print(table(records, self.format))

    def _named(self, given: Any, load: Callable[[str], Any] | None = None, model: Any = None) -> dict[str, Any]:
        """Every attack at the threat, and at each further budget; without `load` only to see that they make sense.
        Attacks on codes take the threat where it counts flips, else 10 flips per frame, in the letters of the model's
        encoder."""
        from stochade.attacks.codes import flips_for
        from stochade.attacks.flips import Flips
        from stochade.attacks.registry import CODE_ATTACKS, parse_attack

        found = {}
        for text in self.attacks:
            on_codes = next(iter(text.split()), "") in CODE_ATTACKS and not isinstance(given, Flips)
            threat = flips_for(model) if on_codes else given
            found[text] = parse_attack(text, threat, load)
            if self.budgets and " eps=" in text:
                raise UsageError("no eps= in attacks beside --budgets", repr(text), "leave one of them out")
            for eps in self.budgets:
                if eps != threat.eps:
                    found[f"{text} eps={eps:g}"] = parse_attack(text, threat.resized(eps), load)
        return found
