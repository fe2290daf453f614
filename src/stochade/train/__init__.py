"""Training: `train(model, train_images, validation_images, epochs=...)`."""

from stochade.train.checks import LabelledImages
from stochade.train.loop import History, train
from stochade.train.objectives import Adversarial, Standard, TrainingObjective, adversarial, standard
from stochade.train.state import Epoch

__all__ = [
    "Adversarial",
    "Epoch",
    "History",
    "LabelledImages",
    "Standard",
    "TrainingObjective",
    "adversarial",
    "standard",
    "train",
]
