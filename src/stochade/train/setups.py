"""How the papers train: `train(model, images, validation, **pni().settings())`.

The numbers are the papers' where they give them; what they leave open is said with each setup.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

import torch

from stochade.attacks import CW, FGSM, L2, PGD, GaussianNoise, Linf
from stochade.attacks.threats import Ball
from stochade.train.mixture import Mixture
from stochade.train.objectives import Adversarial, Standard, TrainingObjective
from stochade.train.optimizers import optimizer_named
from stochade.train.schedules import Constant, Halving, Steps


@dataclass(frozen=True)
class Setup:
    """Everything about a training but the model, the data and the seed."""

    epochs: int
    batch: int
    lr: float
    objective: TrainingObjective
    optimizer: Callable[..., Any] = torch.optim.Adam
    schedule: Callable[[int], float] = field(default_factory=Constant)

    def settings(self) -> dict[str, Any]:
        """As keyword arguments of `train`."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


def _pgd(eps: float, steps: int, step: float) -> Any:
    return PGD(Linf(eps), steps, step_size=step, drop_fooled=False)  # nobody leaves: every image is trained on


def lab_report_mixture(
    threat: Ball, clean: float = 0.5, steps: int = 5, inner: TrainingObjective | None = None
) -> Mixture:
    """The lab report's mixture (kaspar2024, section 3.1): clean 4/8, PGD, FGSM, C&W and random noise 1/8 each.

    The report gives neither the budgets of training nor the noise. Here PGD, FGSM and Gaussian noise (deviation half
    the budget, projected) stay in `threat`; C&W is one short l2 search (30 steps, c = 1, kappa 0.01) whose finds
    count at any distance: with the report's c = 1e-4 it finds nothing.
    """
    attacks = (
        PGD(threat, steps, drop_fooled=False),
        FGSM(threat),
        CW(L2(float("inf")), steps=30, search_steps=1, rate=0.05, kappa=0.01, initial=1.0, votes=1),
        GaussianNoise(threat),
    )
    return Mixture(attacks, clean, inner=Standard() if inner is None else inner)


def pni(inner: TrainingObjective | None = None) -> Setup:
    """Parametric noise injection (He et al. 2019 and its code): half clean, half PGD-7 away from the predicted
    classes, from epoch 5; SGD, 160 epochs, a tenth of the rate at 80 and 120. Batch 128 as in the code."""
    objective = Adversarial(_pgd(0.031, 7, 0.01), 0.5, "predicted", 5, Standard() if inner is None else inner)
    return Setup(160, 128, 0.1, objective, optimizer_named("sgd", weight_decay=3e-4), Steps((80, 120)))


def lwta(inner: TrainingObjective | None = None) -> Setup:
    """Stochastic LWTA (Panousis et al. 2021 and its code): PGD-10 images only, SGD 0.1, 150 epochs, the rate halved
    in every epoch from 75. Open: momentum 0.9 and batch 128. Pass the ELBO as `inner`."""
    objective = Adversarial(_pgd(0.031, 10, 0.007), 0.0, inner=Standard() if inner is None else inner)
    return Setup(150, 128, 0.1, objective, optimizer_named("sgd"), Halving(75))


def lab_report_lwta(inner: TrainingObjective | None = None) -> Setup:
    """The lab report's LWTA (kaspar2024, section 4): 30 epochs, SGD 0.1, PGD only, 8/255, step 0.007, 5 steps.
    Open: batch 128, no momentum; half of the batches clean, as in its mixture."""
    objective = Mixture((_pgd(8 / 255, 5, 0.007),), inner=Standard() if inner is None else inner)
    return Setup(30, 128, 0.1, objective, optimizer_named("sgd", momentum=0.0))


def lab_report(inner: TrainingObjective | None = None) -> Setup:
    """The lab report's mixture at 8/255 with the rest of its LWTA training."""
    return Setup(30, 128, 0.1, lab_report_mixture(Linf(8 / 255), inner=inner), optimizer_named("sgd", momentum=0.0))


def galloway(inner: TrainingObjective | None = None) -> Setup:
    """Binarised networks (Galloway et al. 2018): Adam 1e-3, 15 epochs of 128, PGD-40 at 0.3 from epoch 10.
    Open: the attacked images replace the batch."""
    objective = Adversarial(_pgd(0.3, 40, 0.01), 0.0, start=10, inner=Standard() if inner is None else inner)
    return Setup(15, 128, 1e-3, objective)


SETUPS: dict[str, Callable[..., Setup]] = {
    "pni": pni,
    "lwta": lwta,
    "galloway": galloway,
    "lab-report": lab_report,
    "lab-report-lwta": lab_report_lwta,
}
