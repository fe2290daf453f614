"""Training: `train(model, train_images, validation_images, epochs=...)`."""

from stochade.train.augment import Augment, parse_augment
from stochade.train.checks import LabelledImages
from stochade.train.codes import AdversarialCodes
from stochade.train.loop import History, train
from stochade.train.mixture import Mixture
from stochade.train.objectives import Adversarial, Measured, Standard, TrainingObjective, adversarial, standard
from stochade.train.optimizers import optimizer_named
from stochade.train.penalties import Penalised
from stochade.train.reinforced import Reinforced
from stochade.train.schedules import Constant, Cosine, Halving, Steps, parse_schedule
from stochade.train.setups import SETUPS, Setup, lab_report_mixture
from stochade.train.state import Epoch
from stochade.train.temporal import TET, Distilled

__all__ = [
    "SETUPS",
    "TET",
    "Adversarial",
    "AdversarialCodes",
    "Augment",
    "Constant",
    "Cosine",
    "Distilled",
    "Epoch",
    "Halving",
    "History",
    "LabelledImages",
    "Measured",
    "Mixture",
    "Penalised",
    "Reinforced",
    "Setup",
    "Standard",
    "Steps",
    "TrainingObjective",
    "adversarial",
    "lab_report_mixture",
    "optimizer_named",
    "parse_augment",
    "parse_schedule",
    "standard",
    "train",
]
