"""The commands. Each is a dataclass whose fields are its options; heavy imports stay inside `run`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import OmitArgPrefixes, Positional, PositionalMetavarFromFieldName

from stochade.cli import common
from stochade.cli.transfer import Transfer
from stochade.errors import UsageError

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
    """

    target: Name
    """A built-in (see `stochade ls`), a checkpoint folder, module:function or file.py:function."""
    threat: str | None = None
    """Norm and budget: linf=8/255, l2=0.5, l1=12, l0=10. Default: the claim attack's own, else what the target is
    usually measured under."""
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
    eight_bit: bool = False
    """Round adversarial images to whole grey levels first."""
    out: Path | None = None
    """Folder for records and report; default runs/audit-TARGET. An interrupted run is taken up again."""
    images: Data = field(default_factory=common.DataOptions)
    run_options: Options = field(default_factory=common.RunOptions)

    def run(self) -> None:
        from stochade.attacks import parse_threat
        from stochade.audit import audit
        from stochade.audit.claims import check_claim, claimed_attack
        from stochade.audit.plan import effort_of
        from stochade.audit.run import expected_cost
        from stochade.report import build, summary
        from stochade.targets import load_target

        o = self.run_options
        effort_of(self.effort)
        check_claim(self.claim)
        threat = None if self.threat is None else parse_threat(self.threat)
        claimed_attack(self.claim_attack, threat)
        common.check_device(o.device)
        target = load_target(self.target, seed=0, device=o.device, show_progress=not o.quiet)
        usual = parse_threat(target.threat or "linf=0.1")
        _, threat = claimed_attack(self.claim_attack, threat, usual)
        images, labels, facts = common.load_images(self.images, target.data, o.seed)
        baseline = common.load_baseline(self.images, target.data) if self.baseline else None
        if o.dry_run:
            common.print_cost(expected_cost(target.model, images, labels, threat, self.effort, o.draws), len(images))
            return
        out = self.out or Path("runs") / f"audit-{_slug(self.target)}"
        result = audit(
            target.model, images, labels, threat, effort=self.effort, draws=o.draws, seed=o.seed, out=out,
            claim=self.claim, claim_attack=self.claim_attack, baseline=baseline, planted=self.active_test,
            chunk=o.chunk, workers=o.workers,
            eight_bit=self.eight_bit, device=o.device, show_progress=not o.quiet, meta=target.about | facts,
            command=common.repeated("audit", self),
        )  # fmt: skip
        page = build(result, out / "report.html")
        print(summary(result))
        print(f"report: {page}")


@dataclass
class Attack:
    """Attack TARGET with attacks of your choice and print the accuracy table.

    Examples:

    stochade attack digits-gated --attacks fgsm pgd "pgd draws=20 backward=soft" --threat linf=0.15

    stochade attack mynet.py:build --data mnist --attacks "pgd steps=100 restarts=5" --threat l2=2 --format latex

    stochade attack digits-mlp --attacks pgd --threat linf=0.1 --budgets 0.02 0.05 0.1 0.2
    """

    target: Name
    """A built-in (see `stochade ls`), a checkpoint folder, module:function or file.py:function."""
    attacks: tuple[str, ...] = ("fgsm", "pgd")
    """Attacks with their options, each in quotes: "pgd steps=100 draws=20"."""
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
        from stochade.attacks.registry import parse_attack
        from stochade.evaluate import evaluate, expected_seconds
        from stochade.report import table
        from stochade.targets import load_target

        o = self.run_options
        common.check_format(self.format)
        threat = None if self.threat is None else parse_threat(self.threat)
        for text in self.attacks:
            parse_attack(text, threat or parse_threat("linf=0.1"))
        common.check_device(o.device)
        target = load_target(self.target, seed=0, device=o.device, show_progress=not o.quiet)
        threat = threat or parse_threat(target.threat or "linf=0.1")
        table_of = {}
        for text in self.attacks:
            table_of[text] = parse_attack(text, threat)
            for eps in self.budgets:
                if eps != threat.eps:
                    table_of[f"{text} eps={eps:g}"] = parse_attack(text, threat.resized(eps))
        images, labels, facts = common.load_images(self.images, target.data, o.seed)
        if o.dry_run:
            common.print_cost(expected_seconds(target.model, images, labels, table_of, o.draws), len(images))
            return
        records = evaluate(
            target.model, images, labels, table_of, o.draws, o.seed, chunk=o.chunk, workers=o.workers, out=self.out,
            eight_bit=self.eight_bit, device=o.device, show_progress=not o.quiet, meta=target.about | facts,
        )  # fmt: skip
        print(table(records, self.format, threat=threat))


@dataclass
class Train:
    """Train a model and keep it as a checkpoint; selected on the validation split only.

    Examples:

    stochade train gated --data digits --out runs/gated

    stochade train 2cnn --data mnist --epochs 5 --adversarial "pgd steps=7" --threat linf=0.3 --out runs/robust
    """

    model: Name
    """A model of `stochade ls models`."""
    out: Path
    """Folder for the checkpoint, metrics.jsonl and the resumable state."""
    data: str = "digits"
    """digits, a data folder, an .npz file, or a name such as mnist."""
    epochs: int = 30
    """Passes over the training images."""
    batch: int = 50
    """Images per step."""
    rate: float = 1e-3
    """Learning rate of Adam."""
    adversarial: str | None = None
    """Train on this attack's images as well: "pgd steps=7"."""
    clean_weight: float = 0.5
    """Weight of the clean loss beside the adversarial one (kubo2019, equation 2.29)."""
    threat: str = "linf=0.1"
    """The threat of adversarial training."""
    seed: int = 0
    """Everything random follows from it."""
    device: str = "cpu"
    """Where to train: cpu, cuda, mps."""
    download: bool = False
    """Allow a download by name (needs stochade[download])."""
    dry_run: bool = False
    """Only say what it would cost."""
    quiet: bool = False
    """No progress."""

    def run(self) -> None:
        from dataclasses import fields, replace

        from stochade import data
        from stochade.attacks import parse_threat
        from stochade.attacks.registry import parse_attack
        from stochade.randomness import forked, seed_for
        from stochade.registry import build
        from stochade.train import Adversarial, Standard, train

        objective, passes = Standard(), 1
        if self.adversarial is not None:
            attack = parse_attack(self.adversarial, parse_threat(self.threat))
            if "drop_fooled" in {f.name for f in fields(attack)}:  # type: ignore[arg-type]
                attack = replace(attack, drop_fooled=False)  # type: ignore[type-var]
            objective, passes = Adversarial(attack, weight=self.clean_weight), 2 + attack.cost()[1]
        common.check_device(self.device)
        images = data.load(self.data, "train", download=self.download)
        validation = data.load(self.data, "validation", download=self.download)
        with forked(seed_for(self.seed, "initial weights")):
            model = build(self.model, images.shape[1:], images.num_classes)
        if self.dry_run:
            from stochade.evaluate import expected_seconds

            cost = expected_seconds(model.eval(), images, None, {}, 1)
            minutes = cost["seconds"] * 1.5 * passes * self.epochs / 60
            count = len(images) * self.epochs * passes
            print(f"{count} forwards and backwards, about {minutes:.1f} minutes")
            return
        train(
            model, images, validation, epochs=self.epochs, batch=self.batch, lr=self.rate, objective=objective,
            seed=self.seed, out=self.out, device=self.device, progress=not self.quiet,
        )  # fmt: skip
        print(f"checkpoint: {self.out}\naudit it:   stochade audit {self.out} --data {self.data}")


@dataclass
class Report:
    """Build the report of a finished run again, from its records alone; no model is loaded.

    Examples:

    stochade report runs/demo

    stochade report runs/demo --format latex

    stochade report runs/demo --to paper/report.html
    """

    folder: Annotated[Path, Positional, PositionalMetavarFromFieldName]
    """The folder of an audit or an attack run."""
    to: Path | None = None
    """Where the page goes; default FOLDER/report.html."""
    format: str = "html"
    """html (a page), or markdown, csv, latex (the accuracy table on standard output)."""

    def run(self) -> None:
        from stochade.audit.result import Audit as Result
        from stochade.evaluate import Records
        from stochade.report import build, table

        if self.format != "html":
            common.check_format(self.format)
        audited = (self.folder / "audit.json").is_file()
        result = Result.load(self.folder) if audited else Records.load(self.folder)
        if self.format != "html":
            records = result.records if isinstance(result, Result) else result
            print(table(records, self.format, threat=result.threat if isinstance(result, Result) else None))
            return
        print(f"report: {build(result, self.to or self.folder / 'report.html')}")


@dataclass
class Diff:
    """Compare two runs on the same examples, attack by attack: paired differences with intervals.

    Examples:

    stochade diff runs/before runs/after

    stochade diff runs/a runs/b --kind vote --threat linf=0.1
    """

    first: Annotated[Path, Positional, PositionalMetavarFromFieldName]
    """Folder of the first run."""
    second: Annotated[Path, Positional, PositionalMetavarFromFieldName]
    """Folder of the second run."""
    kind: str = "single"
    """single, vote or all."""
    threat: str | None = None
    """Threat of the "worst" row where the runs hold several."""

    def run(self) -> None:
        from stochade.attacks import parse_threat
        from stochade.evaluate import Records, compare_runs

        threat = None if self.threat is None else parse_threat(self.threat)
        first, second = Records.load(self.first), Records.load(self.second)
        rows = compare_runs(first, second, self.kind, threat)
        common = rows[0].difference.examples
        print(f"{common} examples in both runs ({len(first)} and {len(second)} in all)")
        if first.meta.get("model") != second.meta.get("model"):
            print("the two runs are of different models")
        width = max(len(r.attack) for r in rows)
        print(f"{'':{width}}  {'first':22}  {'second':22}  second - first, points (paired)")
        for r in rows:
            d = r.difference
            gap = "unknown" if d.value is None else f"{100 * d.value:+.1f}"
            if d.low is not None and d.high is not None:
                gap += f" [{100 * d.low:+.1f}, {100 * d.high:+.1f}]"
            print(f"{r.attack:{width}}  {r.first!s:22}  {r.second!s:22}  {gap}")


@dataclass
class Ls:
    """List what can be named: models, targets, attacks, threats, objectives, defences, certificates, recipes, data.

    Examples:

    stochade ls

    stochade ls attacks
    """

    what: Name = "all"
    """all, or one of the kinds."""

    def run(self) -> None:
        from stochade.listing import listing

        kinds = listing()
        if self.what != "all" and self.what not in kinds:
            raise UsageError(f"one of: all, {', '.join(kinds)}", repr(self.what))
        for kind, entries in kinds.items():
            if self.what not in ("all", kind):
                continue
            print(f"{kind}:")
            width = max((len(n) for n in entries), default=0)
            for name, description in entries.items():
                print(f"  {name:{width}}  {description}")
            if not entries:
                print("  (none yet)")


@dataclass
class Doctor:
    """Say what is installed, which devices there are, and which data are found.

    Examples:

    stochade doctor
    """

    def run(self) -> None:
        from stochade.listing import doctor

        for name, value in doctor().items():
            print(f"{name:22} {value}")


COMMANDS = {
    "audit": Audit, "train": Train, "attack": Attack, "report": Report, "transfer": Transfer,
    "diff": Diff, "ls": Ls, "doctor": Doctor,
}  # fmt: skip


def _slug(name: str) -> str:
    from stochade.evaluate.store import slug

    return slug(name.replace("/", "_").strip("_."))
