"""`stochade audit`: findings, the lowest accuracy found, and the card of a claim."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import OmitArgPrefixes, Positional, PositionalMetavarFromFieldName

from stochade.cli import common

Options = OmitArgPrefixes[common.RunOptions]
Data = OmitArgPrefixes[common.DataOptions]
Name = Annotated[str, Positional, PositionalMetavarFromFieldName]


@dataclass
class Audit:
    """How accurate TARGET looks under its authors' attack, how accurate it is under the best attack found, and why
    the two differ. Ends with a report.

    Examples:

    stochade audit digits-gated --out runs/demo

    stochade audit known:coin-flip

    stochade audit mynet.py:build --data mnist --threat linf=0.3 --examples 500

    stochade audit runs/mymodel --data cifar10 --threat linf=8/255 --dry-run

    stochade audit mynet.py:build --data mnist --claim 0.931 --claim-attack "fgsm eps=0.3"

    stochade audit digits-rate --threat flips=5 --claim-attack sea
    """

    target: Name
    """A built-in (see `stochade ls`), a checkpoint folder, module:function or file.py:function."""
    threat: str | None = None
    """Norm and budget: linf=8/255, l2=0.5, l1=12, l0=10; flips of codes (models with an encoder): flips=5, in every
    frame, or "flips=20 in total". Default: the claim attack's own, else what the target is usually measured under."""
    effort: str = "standard"
    """quick, standard or thorough."""
    claim: float | None = None
    """Accuracy under attack that was claimed in print, in [0,1]: 0.931 for 93.1 %."""
    claim_attack: str | None = None
    """The attack it was claimed for, with its options, in quotes: "fgsm eps=0.3". Default: fgsm at the threat."""
    baseline: bool = False
    """Compare with a plain network behind a threshold, trained on the training images of the same data (nearly black
    and white images only, such as MNIST)."""
    active_test: int | None = None
    """Examples of the active test (can the attacks find what was planted?); default 64 when thorough, else none."""
    encodings: int = 1
    """Encodings of every image whose logits are averaged (models with an encoder)."""
    eight_bit: bool = False
    """Round adversarial images to whole grey levels first."""
    out: Path | None = None
    """Folder for records and report; default runs/audit-TARGET. An interrupted run is taken up again."""
    images: Data = field(default_factory=common.DataOptions)
    run_options: Options = field(default_factory=common.RunOptions)

    def run(self) -> None:
        from stochade.attacks import parse_threat
        from stochade.attacks.codes import flips_for
        from stochade.audit import audit
        from stochade.audit.claims import about_codes, check_claim, claimed_attack
        from stochade.audit.plan import effort_of
        from stochade.audit.run import expected_cost
        from stochade.progress import progress
        from stochade.report import build, summary
        from stochade.targets import load_target

        o = self.run_options
        effort_of(self.effort)
        check_claim(self.claim)
        threat = None if self.threat is None else common.read_threat(self.threat)
        claimed_attack(self.claim_attack, threat)
        common.check_run(o)
        target = load_target(self.target, seed=0, device=o.device, show_progress=not o.quiet)
        model = common.aggregated(target.model, self.encodings)
        threat = None if self.threat is None else common.read_threat(self.threat, model)
        on_codes = about_codes(self.claim_attack)
        usual = flips_for(model) if on_codes else parse_threat(target.threat or "linf=0.1")
        _, threat = claimed_attack(self.claim_attack, threat, usual)
        images, labels, facts = common.load_images(self.images, target.data, o.seed)
        baseline = common.load_baseline(self.images, target.data) if self.baseline else None
        if o.dry_run:
            with progress("timing one pass", shown=not o.quiet):
                cost = expected_cost(model, images, labels, threat, self.effort, o.draws)
            common.print_cost(cost, len(images))
            return
        about = target.about | ({"encodings": self.encodings} if self.encodings > 1 else {})
        out = self.out or Path("runs") / f"audit-{common.file_name(self.target)}"
        result = audit(
            model, images, labels, threat, effort=self.effort, draws=o.draws, seed=o.seed, out=out,
            claim=self.claim, claim_attack=self.claim_attack, baseline=baseline, planted=self.active_test,
            chunk=o.chunk, workers=o.workers, eight_bit=self.eight_bit, device=o.device,
            show_progress=not o.quiet, meta=about | facts, command=common.repeated("audit", self),
        )  # fmt: skip
        with progress("writing the report", shown=not o.quiet):
            page = build(result, out / "report.html")
        print(summary(result))
        print(f"report: {page}")
