"""Trainings epoch by epoch (mukhoty2025, figures 3 and 5)."""

from stochade.recipes.result import Reproduction
from stochade.recipes.views.curves import PERCENT
from stochade.recipes.views.styles import curve
from stochade.report.figures import Figure

SHOWN = {
    "train_loss": "Training loss",
    "train_accuracy": "Training accuracy",
    "validation_accuracy": "Validation accuracy",
}


def training_curves(r: Reproduction) -> list[Figure]:
    """Training loss, training accuracy and validation accuracy after every epoch, one line for each network (first
    seed), as the training loop measured them."""
    trained = {name: net.history for name, net in r.networks.items() if net.history}
    figures = []
    for key, title in SHOWN.items():
        data = [
            curve(i, name, [e.epoch + 1 for e in epochs], [getattr(e, key) for e in epochs])
            for i, (name, epochs) in enumerate(trained.items())
        ]
        accuracy = key.endswith("accuracy")
        rows = [
            [str(e.epoch + 1), name, f"{100 * getattr(e, key):.2f}" if accuracy else f"{getattr(e, key):.4f}"]
            for name, epochs in trained.items()
            for e in epochs
        ]
        loss = {"title": {"text": "loss"}, "rangemode": "tozero"}
        layout = {"xaxis": {"title": {"text": "epoch"}}, "yaxis": PERCENT if accuracy else loss}
        column = "accuracy, %" if accuracy else "loss"
        note = "One draw for every image. In training on attacks, loss and training accuracy are those under attack."
        figures.append(Figure(key.replace("_", "-"), title, note, data, layout, ["epoch", "network", column], rows))
    return figures
