"""What a recipe may say: the tables of its TOML file, checked before anything runs.

A recipe stands for a table or a figure of a paper: which networks are trained and how, which attacks they face at
which budgets, what the paper printed, and three scales. Unknown keys and impossible values are errors that name the
place in the file.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from stochade.attacks.codes import flips_for
from stochade.attacks.registry import parse_attack
from stochade.attacks.threats import L0, L1, L2, Ball, Linf
from stochade.errors import StochadeError, UsageError
from stochade.registry import MODELS
from stochade.train.augment import parse_augment
from stochade.train.codes import AdversarialCodes, names_codes
from stochade.train.schedules import parse_schedule
from stochade.train.temporal import NAMES

SCALES = ("smoke", "small", "paper")
NORMS: dict[str, type[Ball]] = {"linf": Linf, "l2": L2, "l1": L1, "l0": L0}
LATER = ("augment",)  # fields of Training that digests of networks leave out at their default
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Training(_Table):
    """How a network is trained; the names of the options of `stochade train`.

    Attributes:
        epochs, batch, lr: as for `stochade.train.train`.
        optimizer: "adam" or "sgd". schedule: "", or as `stochade train --schedule` writes it.
        adversarial: an attack with its options, on images or (behind an encoder) on codes: "sea k=5". tau: weight of
            the clean loss beside it. start: first epoch with it.
        objective: one of the papers' own by name, in place of `adversarial`; "mixture": every batch is clean with
            probability tau, else under one of the attacks of `adversarial`, which semicolons part; "tet" and "e-rsct"
            (`stochade.train.temporal`), which one attack may join.
        augment: "crop flip", "crop=2", ... (`stochade.train.augment`); "": images as they are.
        elbo: whether the divergences of LWTA layers join the loss.
        l1, l2: penalties on every layer's weights.
        slope: whether binary units' slopes are annealed.
    """

    epochs: Count = 20
    batch: Count = 50
    lr: Positive = 1e-3
    optimizer: Literal["adam", "sgd"] = "adam"
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    schedule: str = ""
    objective: Literal[
        "", "reinforce", "pni", "lwta", "galloway", "lab-report", "lab-report-lwta", "mixture", "extra-class", "tet",
        "e-rsct",
    ] = ""  # fmt: skip
    adversarial: str = ""
    tau: Share = 0.5
    start: Annotated[int, Field(ge=0)] = 0
    elbo: bool = False
    l1: Annotated[float, Field(ge=0)] = 0.0
    l2: Annotated[float, Field(ge=0)] = 0.0
    patience: Annotated[int, Field(ge=0)] = 0
    augment: str = ""

    @model_validator(mode="after")
    def _parses(self):
        if self.objective in ("extra-class", "mixture") and not self.attacks():
            raise ValueError(f"objective {self.objective!r} needs attacks in adversarial")
        if self.objective in NAMES and (self.elbo or len(self.attacks()) > 1):
            beside = "elbo" if self.elbo else "several attacks"
            raise ValueError(f"objective {self.objective!r} is a loss of its own: not with {beside}")
        try:
            parse_augment(self.augment)
            parse_schedule(self.schedule or "constant", self.epochs)
            for text in self.attacks():
                attack = parse_attack(text, Linf(0.1))
                if names_codes(text) and self.objective not in ("", *NAMES):
                    raise ValueError(f"{text!r} trains on codes, without an objective beside it ({self.objective!r})")
                if names_codes(text):
                    AdversarialCodes(attack)
        except StochadeError as problem:
            raise ValueError(str(problem)) from None
        return self

    def attacks(self) -> list[str]:
        """The attacks of training, one text each."""
        return [text.strip() for text in self.adversarial.split(";") if text.strip()]

    def told(self) -> dict[str, Any]:
        """What networks are kept by. A field that came after networks had been kept counts where it is set, so that
        they stay what they are."""
        dump = self.model_dump()
        new = [key for key in LATER if dump[key] == type(self).model_fields[key].default]
        return {key: value for key, value in dump.items() if key not in new}


class Change(_Table):
    """What a scale changes about one network: options of the model, and keys of its training; with another `model`
    (a smaller stand-in) its options start anew."""

    model: str = ""
    options: dict[str, Any] = {}
    training: dict[str, Any] = {}


class Network(_Table):
    """One row of the table: a registered model with its options and its training.

    Attributes:
        name: as the paper calls it.
        model, options: of `stochade.registry.build`.
        audited: whether the adaptive column is measured for it.
        before: name of another network of the recipe whose weights it starts from and keeps (no training of its
            own): a control that only changes the forward.
        teacher: name of another network of the recipe that teaches this one, for the objective "e-rsct".
        seed: added to the recipe's; beside a row of equal settings this is a second training of it.
        encodings: how many encodings its logits are the mean of once it is trained (`models.encoded.Aggregated`).
    """

    name: str
    model: str
    options: dict[str, Any] = {}
    training: Training = Training()
    audited: bool = True
    before: str = ""
    teacher: str = ""
    seed: Annotated[int, Field(ge=0)] = 0
    encodings: Count = 1
    smoke: Change = Change()
    small: Change = Change()
    paper: Change = Change()

    @model_validator(mode="after")
    def _known(self):
        for change in (self, self.smoke, self.small, self.paper):
            model = change.model or self.model
            if model not in MODELS:
                raise ValueError(f"model {model!r} is not registered; registered: {', '.join(MODELS)}")
            known = MODELS[model].options()
            if self.encodings > 1 and "encoder" not in known:
                raise ValueError(f"encodings={self.encodings} needs a model with an encoder, not {model!r}")
            for option in change.options:
                if option not in known:
                    raise ValueError(f"{model!r} has no option {option!r}; options: {', '.join(known) or 'none'}")
        taught = [self.at(scale)[1].objective == "e-rsct" for scale in SCALES]
        if any(taught) != bool(self.teacher):
            raise ValueError("objective 'e-rsct' and teacher go together: the name of a row above")
        return self

    def model_at(self, scale: str) -> str:
        """The registered model at a scale."""
        return getattr(self, scale).model or self.model

    def at(self, scale: str) -> tuple[dict[str, Any], Training]:
        """(options of the model, its training) at a scale."""
        change: Change = getattr(self, scale)
        options = change.options if change.model else self.options | change.options
        return options, Training.model_validate(self.training.model_dump() | change.training)


class Attacked(_Table):
    """One attack over budgets. `attack`: name and options as on the command line, without norm, eps and k.

    The norm "flips" is for attacks on codes: budgets are flips per frame, in the letters of the row's encoder.
    """

    name: str
    attack: str
    norm: Literal["linf", "l2", "l1", "l0", "flips"] = "linf"
    budgets: Annotated[list[Positive], Field(min_length=1)]

    def threat(self, budget: float, model: object = None) -> Ball:
        """The threat for a model: its encoder says the letters of flips."""
        if self.norm == "flips":
            return flips_for(model, budget)
        return NORMS[self.norm](int(budget) if self.norm == "l0" else budget)

    @model_validator(mode="after")
    def _parses(self):
        if names_codes(self.attack) and self.norm != "flips":
            raise ValueError(f'{self.attack!r} attacks codes: norm = "flips", budgets in flips per frame')
        try:
            for budget in self.budgets:
                attack = parse_attack(self.attack, self.threat(budget))
                told = any(word.startswith("k=") for word in self.attack.split())
                if self.norm == "flips" and (told or getattr(attack.threat, "eps", None) != budget):
                    raise ValueError(f"{self.attack!r} does not take its flips from budgets; leave k out")
        except StochadeError as problem:
            raise ValueError(str(problem)) from None
        return self


class Audited(_Table):
    """The adaptive column: the threat it is measured under, and the attack that the paper's own number is for."""

    norm: Literal["linf", "l2", "l1", "l0"] = "linf"
    budget: Positive
    attack: str = "fgsm"


class Published(_Table):
    """A number of the paper, in percent. `what`: under an "attack", "clean", on "train" images, "transfer", or the
    "sum" of the accuracies under several attacks, which may exceed 100."""

    network: str
    value: Annotated[float, Field(ge=0, le=200)]
    spread: float | None = None
    what: Literal["attack", "clean", "train", "transfer", "sum"] = "attack"
    attack: str = ""
    budget: float | None = None
    source: str = ""
    note: str = ""


class Printed(_Table):
    """A row of one of the paper's tables as it stands there, where no network of the recipe answers to its numbers:
    other data, or no accuracies. `values`: column -> number."""

    table: str
    row: str
    values: Annotated[dict[str, float], Field(min_length=1)]
    note: str = ""


class Scale(_Table):
    """How large the experiment is.

    Attributes:
        data: a name or path for `stochade.data.load`. train, test: how many images, 0 for all.
        epochs: at most so many, None for the paper's. seeds: networks trained from scratch per row.
        draws: scoring draws. effort: of the audit ("none" leaves the adaptive column out).
        audited: test images of the audit, 0 for all.
        budgets: budgets of attacks and audit times this (other images, other budgets).
        flips: the same for flips, to the nearest whole number >= 1: k of a smaller image.
        hidden: views that are left out.
        clutter: side of the canvas on which images are cluttered and translated; 0: as they are.
    """

    data: str
    train: Annotated[int, Field(ge=0)] = 0
    test: Annotated[int, Field(ge=0)] = 0
    epochs: Count | None = None
    seeds: Count = 1
    draws: Count = 20
    effort: Literal["none", "smoke", "brief", "small", "quick", "standard", "thorough"] = "standard"
    budgets: Positive = 1.0
    flips: Positive = 1.0
    audited: Annotated[int, Field(ge=0)] = 0
    hidden: list[str] = []
    clutter: Annotated[int, Field(ge=0)] = 0


class Recipe(_Table):
    """A table or figure of a paper, and how to make it here."""

    name: str
    title: str
    paper: Literal["kubo2019", "kaspar2024", "pallaprolu2020", "mukhoty2025", "wu2024", "survey"]
    place: str
    claim: str
    notes: str = ""
    network: list[Network] = []
    attack: list[Attacked] = []
    audit: Audited | None = None
    transfer: str = ""
    transfer_budget: Positive | None = None
    dataset: Literal["mnist", "cifar10"] = "mnist"
    published: list[Published] = []
    printed: list[Printed] = []
    views: list[str] = []
    scale: dict[str, Scale]

    @model_validator(mode="after")
    def _consistent(self):
        names = [n.name for n in self.network]
        if not names and not self.views:
            raise ValueError("a recipe needs networks, or views that train their own")
        if len(set(names)) < len(names):
            raise ValueError("two networks share a name")
        if set(self.scale) - set(SCALES):
            raise ValueError(f"scales are {', '.join(SCALES)}; got {', '.join(self.scale)}")
        labels = {a.name for a in self.attack}
        for p in self.published:
            if p.network not in names or (p.source and p.source not in names):
                raise ValueError(f"published: no network is called {p.network!r} or {p.source!r}")
            if p.what == "attack" and p.attack not in labels:
                raise ValueError(f"published: no attack is called {p.attack!r}")
        for n in self.network:
            above = names[: names.index(n.name)]
            for key, other in (("before", n.before), ("teacher", n.teacher)):
                if other and other not in above:
                    raise ValueError(f"network {n.name!r} has {key}={other!r}, which is not above it")
        if self.transfer and self.transfer_budget is None:
            raise ValueError("transfer needs transfer_budget")
        return self


DEFAULTS: dict[str, dict[str, Any]] = {
    "smoke": {"data": "digits", "train": 400, "test": 40, "epochs": 2, "draws": 4, "effort": "smoke"},
    "small": {"train": 12_000, "test": 1000, "epochs": 6, "draws": 10, "effort": "small"},
    "paper": {"seeds": 10, "effort": "thorough"},
}


def checked(document: dict, place: str) -> Recipe:
    """The recipe of a parsed TOML document, with `DEFAULTS` for what it leaves out about scales.

    Raises:
        UsageError: names the first place that is wrong.
    """
    told = document.get("scale", {})
    if isinstance(told, dict) and all(isinstance(told.get(name, {}), dict) for name in SCALES):
        own = {"data": document.get("dataset", "mnist")}
        document = document | {"scale": told | {n: own | DEFAULTS[n] | told.get(n, {}) for n in SCALES}}
    try:
        return Recipe.model_validate(document)
    except ValidationError as problem:
        first = min(problem.errors(), key=lambda e: e["type"] != "extra_forbidden")  # explains the rest
        where = ".".join(str(part) for part in first["loc"]) or "the recipe"
        got = "" if first["type"] == "missing" else f" (got {first.get('input')!r:.80})"
        text = first["msg"].removeprefix("Value error, ")
        raise UsageError(f"a valid recipe in {place}", f"{where}: {text}{got}") from None
