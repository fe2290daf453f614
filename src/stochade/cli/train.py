"""`stochade train`: any registered model, any data, any of the papers' trainings; resumable by the same command."""

import difflib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, PositionalMetavarFromFieldName, arg

from stochade.cli import common
from stochade.errors import UsageError

Name = Annotated[str, Positional, PositionalMetavarFromFieldName]
OBJECTIVES = ("auto", "standard", "reinforced", "elbo", "tet", "e-rsct")


@dataclass
class Train:
    """Train a model and keep it as a checkpoint; selected on the validation split only, the test split is not read.
    The same command goes on where a stopped one was.

    Examples:

    stochade train gated --data digits --out runs/gated

    stochade train 2cnn --data mnist --epochs 5 --adversarial "pgd steps=7" --threat linf=0.3 --out runs/robust

    stochade train 2cnn --options "hidden=200 activation=stochastic" --l2 1e-4 --patience 5 --out runs/bin

    stochade train 2cnn --data cifar10 --mixture --threat linf=8/255 --out runs/mixture

    stochade train snn --options "encoder=rate" --objective e-rsct --teacher runs/gated --out runs/taught

    stochade train pni-cnn --data cifar10 --setup pni --epochs 30 --out runs/pni
    """

    model: Name
    """A model of `stochade ls models`."""
    out: Path
    """Folder for the checkpoint, metrics.jsonl and the resumable state."""
    options: str = ""
    """Options of the model in quotes: "hidden=200 activation=stochastic"."""
    data: str = "digits"
    """digits, a data folder, an .npz file, or a name such as mnist."""
    examples: int = 0
    """Training images, a seeded subset; 0 takes all."""
    setup: str | None = None
    """How a paper trains: pni, lwta, galloway, lab-report, lab-report-lwta; other options change parts of it."""
    epochs: int | None = None
    """Passes over the training images (30, or the setup's)."""
    batch: int | None = None
    """Images per step (50, or the setup's)."""
    rate: Annotated[float | None, arg(aliases=["--lr"])] = None
    """Learning rate (1e-3, or the setup's)."""
    optimizer: str | None = None
    """adam (the default), or sgd with momentum 0.9."""
    momentum: float | None = None
    """Of sgd."""
    weight_decay: float | None = None
    """Of the optimizer."""
    schedule: str | None = None
    """Of the learning rate: constant, "steps 80,120 factor=0.1", "halving 75", "cosine floor=0.01"."""
    patience: int | None = None
    """Stop after so many epochs without a better one on the validation images."""
    objective: str = "auto"
    """auto, standard, reinforced, elbo, tet or e-rsct; auto takes what the model's layers ask for."""
    teacher: Path | None = None
    """Checkpoint folder of the network that teaches in e-rsct; loading it runs no code."""
    augment: str = ""
    """Of training images: "crop flip", "crop=2", "flip"; a crop is of images padded by 4, or that many, pixels."""
    adversarial: str | None = None
    """Train on this attack's images as well: "pgd steps=7"; or on its codes, behind an encoder: "sea k=5"."""
    clean_weight: Annotated[float, arg(aliases=["--tau"])] = 0.5
    """Weight of the clean loss beside the adversarial one (kubo2019, equation 2.29)."""
    labels: str = "true"
    """What the attack pushes away from: true labels, or the classes predicted for the clean images."""
    start: int = 0
    """Epochs of clean training before the attack sets in."""
    mixture: bool = False
    """Each batch clean with probability 4/8, else PGD, FGSM, C&W or noise (the lab report's training)."""
    threat: str = "linf=0.1"
    """The threat of adversarial training."""
    l1: float = 0.0
    """Penalty on the sum of absolute weights."""
    l2: float = 0.0
    """Penalty on the sum of squared weights."""
    seed: int = 0
    """Everything random follows from it."""
    device: str = "cpu"
    """Where to train: cpu, cuda, mps."""
    precision: str | None = None
    """32-true, bf16-mixed or 16-mixed."""
    tensorboard: bool = False
    """Write OUT/tensorboard as well (needs stochade[tensorboard])."""
    download: bool = False
    """Allow a download by name (needs stochade[download])."""
    dry_run: bool = False
    """Only say what it would cost."""
    quiet: bool = False
    """No progress."""

    def run(self) -> None:
        from stochade import data
        from stochade.randomness import forked, seed_for
        from stochade.registry import build
        from stochade.train import train

        options = parse_options(self.model, self.options)
        self._check()
        self._settings(None)  # wrong words are told before data is read
        images = data.load(self.data, "train", download=self.download, progress=not self.quiet)
        validation = data.load(self.data, "validation", download=self.download, progress=not self.quiet)
        if self.examples:
            images = images.take(min(self.examples, len(images)), seed=self.seed)
        with forked(seed_for(self.seed, "initial weights")):
            model = build(self.model, images.shape[1:], images.num_classes, **options)
        settings = self._settings(model)
        if self.dry_run:
            self._cost(model, images, settings)
            return
        self.out.mkdir(parents=True, exist_ok=True)
        history = train(
            model, images, validation, seed=self.seed, out=self.out, device=self.device, precision=self.precision,
            patience=self.patience, tensorboard=self.tensorboard, progress=not self.quiet, **settings,
        )  # fmt: skip
        self._tell(history, len(validation))

    def _check(self) -> None:
        from stochade.train.fabric import make_fabric, quiet
        from stochade.train.telling import board_writer

        common.check_device(self.device)
        if self.examples < 0 or self.seed < 0:
            name = "examples" if self.examples < 0 else "seed"
            raise UsageError(f"--{name} of at least 0", str(getattr(self, name)))
        if self.objective not in OBJECTIVES:
            raise UsageError(f"an objective out of {', '.join(OBJECTIVES)}", repr(self.objective))
        if (self.teacher is not None) != (self.objective == "e-rsct"):
            raise UsageError(
                "--teacher beside --objective e-rsct, and only there",
                f"{'no' if self.teacher is None else 'a'} teacher beside {self.objective}",
                "--teacher CHECKPOINT_FOLDER",
            )
        if sum((self.setup is not None, self.adversarial is not None, self.mixture)) > 1:
            raise UsageError(
                "one of --setup, --adversarial and --mixture", "several", "a setup brings attacks of its own"
            )
        if self.adversarial is None and (self.start or self.clean_weight != 0.5 or self.labels != "true"):
            raise UsageError(
                "--adversarial beside --start, --tau or --labels", "none", "they say how it is trained on"
            )
        if self.tensorboard:
            board_writer()
        with quiet():
            make_fabric(self.device, self.precision)

    def _settings(self, model: Any) -> dict[str, Any]:
        """The keyword arguments of `train` that these options (over those of the setup) stand for."""
        from stochade.train import SETUPS, Penalised, Setup, Standard, optimizer_named, parse_augment, parse_schedule

        if self.setup is not None and self.setup not in SETUPS:
            near = difflib.get_close_matches(self.setup, SETUPS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(SETUPS)}"
            raise UsageError("a setup", repr(self.setup), hint)
        setup = SETUPS[self.setup]() if self.setup else Setup(30, 50, 1e-3, Standard())
        given = {"epochs": self.epochs, "batch": self.batch, "lr": self.rate}
        settings = setup.settings() | {key: value for key, value in given.items() if value is not None}
        settings["objective"] = self._objective(model)
        if (augment := parse_augment(self.augment)) is not None:
            settings["augment"] = augment
        if self.optimizer is not None or self.momentum is not None or self.weight_decay is not None:
            name = self.optimizer or ("adam" if self.setup is None else None)
            if name is None:
                raise UsageError("--optimizer beside --momentum or --weight-decay", "none", "a setup has one already")
            settings["optimizer"] = optimizer_named(
                name, momentum=self.momentum, weight_decay=self.weight_decay or 0.0
            )
        if self.schedule is not None:
            settings["schedule"] = parse_schedule(self.schedule, settings["epochs"])
        if self.l1 or self.l2:
            settings["objective"] = Penalised(settings["objective"], self.l1, self.l2)
        return settings

    def _objective(self, model: Any) -> Any:
        from stochade import checkpoint
        from stochade.train import SETUPS, Standard
        from stochade.train.elbo import ELBO
        from stochade.train.reinforced import Reinforced
        from stochade.train.temporal import NAMES, temporal

        def attacked(inner: Any) -> Any:
            return SETUPS[self.setup](inner).objective if self.setup else self._attacked(inner, model)

        if self.objective in NAMES:
            teacher = None if self.teacher is None else checkpoint.load(self.teacher).to(self.device)
            return temporal(self.objective, model, teacher, attacked)
        name = asked_for(model) if self.objective == "auto" else self.objective
        return attacked({"standard": Standard, "reinforced": Reinforced, "elbo": ELBO}[name]())

    def _attacked(self, inner: Any, model: Any) -> Any:
        from stochade.attacks import parse_threat
        from stochade.attacks.transfer import for_transfer
        from stochade.train import lab_report_mixture
        from stochade.train.codes import adversarial_by, parse_for

        threat = parse_threat(self.threat)
        if self.mixture:
            return lab_report_mixture(threat, inner=inner)
        if self.adversarial is None:
            return inner
        attack = for_transfer(parse_for(self.adversarial, threat, model))  # nobody leaves early
        return adversarial_by(attack, self.clean_weight, inner, self.labels, self.start)

    def _cost(self, model: Any, images: Any, settings: dict[str, Any]) -> None:
        from stochade.evaluate import expected_seconds
        from stochade.progress import progress

        with progress("timing one pass", shown=not self.quiet):
            cost = expected_seconds(model.eval(), images, None, {}, 1)
        passes = passes_of(settings["objective"])
        count = len(images) * settings["epochs"] * passes
        minutes = cost["seconds"] * 1.5 * passes * settings["epochs"] / 60
        print(f"{count:.0f} forwards and backwards, about {minutes:.1f} minutes")

    def _tell(self, history: Any, count: int) -> None:
        from stochade.evaluate.intervals import binomial

        best = history.epochs[history.best]
        low, high = binomial(round(best.validation_accuracy * count), count)
        if history.resumed_from:
            print(f"went on after {history.resumed_from} epochs of an earlier run")
        why = ", stopped early" if history.stopped_early else ""
        print(
            f"best epoch: {history.best + 1} of {len(history.epochs)}{why}\n"
            f"validation accuracy: {100 * best.validation_accuracy:.1f} % [{100 * low:.1f}, {100 * high:.1f}] "
            f"on {count} images, one draw each; optimistic, because the epoch was chosen by it (the test split was "
            f"not read)\ncheckpoint: {self.out}\naudit it:   stochade audit {self.out} --data {self.data}"
        )


def passes_of(objective: Any) -> float:
    """About how many forwards and backwards an objective takes per image."""
    attacks = getattr(objective, "attacks", None)
    if attacks is not None:
        return 1 + (1 - objective.clean) * sum(attack.cost()[1] for attack in attacks) / len(attacks)
    if hasattr(objective, "attack"):
        return 2 + objective.attack.cost()[1]
    return passes_of(objective.inner) if hasattr(objective, "inner") else 1


def asked_for(model: Any) -> str:
    """What a model's layers ask for: "reinforced" for REINFORCE units, "elbo" for stochastic winners and
    Gaussian weights, else "standard"."""
    from stochade.nn import LWTA
    from stochade.nn.bayesian import BlockUtility, GaussianConv2d, GaussianLinear
    from stochade.nn.reinforce import ReinforceBinary

    modules = [] if model is None else list(model.modules())
    if any(isinstance(module, ReinforceBinary) for module in modules):
        return "reinforced"
    if any(isinstance(module, BlockUtility | GaussianConv2d | GaussianLinear) for module in modules):
        return "elbo"
    return "elbo" if any(isinstance(module, LWTA) and module.stochastic for module in modules) else "standard"


def parse_options(model: str, text: str) -> dict[str, Any]:
    """`"hidden=200 activation=stochastic"` -> options of that registered model, read as their defaults are.

    Numbers, words, yes and no; lists as "32,64"; where the default tells nothing, JSON or else a word.

    Raises:
        UsageError: an unknown model or option, or a value of another kind.
    """
    from stochade.registry import MODELS

    if model not in MODELS:
        near = difflib.get_close_matches(model, MODELS, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UsageError("a registered model", repr(model), f"{hint}`stochade ls models` lists them")
    known = MODELS[model].options()
    options = {}
    for pair in text.split():
        key, equals, value = pair.partition("=")
        if not equals or key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"options: {', '.join(known) or 'none'}"
            raise UsageError(f"option=value for {model}", repr(pair), hint)
        options[key] = _value(key, value, known[key])
    return options


def _value(key: str, text: str, default: Any) -> Any:
    if isinstance(default, bool):
        if text.lower() not in ("yes", "no", "true", "false"):
            raise UsageError(f"yes or no for {key}", repr(text))
        return text.lower() in ("yes", "true")
    if isinstance(default, str):
        return text
    if isinstance(default, int | float):
        try:
            return int(text) if isinstance(default, int) else float(text)
        except ValueError:
            kind = "a whole number" if isinstance(default, int) else "a number"
            raise UsageError(f"{kind} for {key}", repr(text)) from None
    if isinstance(default, tuple | list) and not text.startswith("["):
        text = f"[{text}]"
    try:
        return json.loads(text)
    except ValueError:
        return text
