"""Training: `train(model, train_images, validation_images, epochs=...)`."""

from stochade.train.loop import History, LabelledImages, train
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
