"""Robust training of a linear classifier, and its exact certificate against attack."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stochade.attacks import FGSM, L1, L2, Linf
from stochade.attacks.threats import Ball
from stochade.progress import progress
from stochade.recipes.result import Reproduction
from stochade.report.figures import Figure

CLASSES = (0, 1)
THREATS: tuple[tuple[type[Ball], float, float], ...] = ((Linf, 0.2, 1), (L2, 2.0, 2), (L1, 5.0, float("inf")))
TRAININGS = {"standard": 0.0, "robust": 1.0, "robust, the paper's sign": -1.0}  # what multiplies eps ||w||_q
STEPS = {"smoke": 30, "small": 1000, "paper": 5000}


@dataclass(frozen=True)
class Linear:
    """h(x) = w x + b for images [N, C, H, W] and classes -1, +1."""

    weight: Tensor
    bias: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight + self.bias

    def margins(self, x: Tensor, y: Tensor, eps: float, dual: float) -> Tensor:
        """[N] the least y h inside the ball: y h(x) - eps ||w||_q, exact without the box, a lower bound with it."""
        return y * self(x) - eps * torch.linalg.vector_norm(self.weight, dual)

    def as_model(self) -> nn.Module:
        """Two logits, h / 2 of either sign: class 1 where h > 0."""
        head = nn.Linear(len(self.weight), 2).to(self.weight.dtype)
        with torch.no_grad():
            head.weight.copy_(torch.stack([-self.weight, self.weight]) / 2)
            head.bias.copy_(torch.stack([-self.bias, self.bias]) / 2)
        return nn.Sequential(nn.Flatten(), head).eval()


def fitted(x: Tensor, y: Tensor, eps: float, dual: float, sign: float, steps: int) -> Linear:
    """Minimises the mean of log(1 + exp(-y h + sign eps ||w||_q)) by Adam with a falling rate.

    sign = 1 is the largest loss inside the ball (Danskin; Kolter and Madry 2018); sign = -1 as the excursion prints
    it (pallaprolu2020, section 4) rewards large weights; 0 is standard training.
    """
    weight = torch.zeros(x[0].numel(), dtype=x.dtype, requires_grad=True)
    bias = torch.zeros((), dtype=x.dtype, requires_grad=True)
    optimizer = torch.optim.Adam([weight, bias], 0.02)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        norm = torch.linalg.vector_norm(weight, dual) if bool(weight.any()) else weight.sum()  # no NaN at w = 0
        h = x.flatten(1) @ weight + bias
        nn.functional.softplus(-y * h + sign * eps * norm).mean().backward()
        optimizer.step()
        schedule.step()
    return Linear(weight.detach(), bias.detach())


def robust_linear(r: Reproduction) -> list[Figure]:
    """Linear classifiers of two classes, trained in three ways on the validation images and tested on test images:
    clean accuracy, the certificate by the dual norm, and accuracy under a whole-budget step, the worst case in ball
    and box, for each norm. Where the box does not matter certificate and attack agree."""
    assert r.test is not None
    assert r.validation is not None
    train, test = _two(r.validation[:]), _two(r.test[:])
    figures = []
    with progress("robust linear training", len(THREATS) * len(TRAININGS), r.show_progress) as tick:
        for number, (norm, full, dual) in enumerate(THREATS):
            eps, rows, bars = full * r.settings.budgets, [], []
            threat = norm(eps)  # type: ignore[call-arg]
            for name, sign in TRAININGS.items():
                found = fitted(*train, eps, dual, sign, STEPS[r.scale])
                shares = [*scores(found, *test, threat, dual), float(torch.linalg.vector_norm(found.weight, dual))]
                rows.append([name, *[f"{100 * s:.1f}" for s in shares[:3]], f"{shares[3]:.4g}"])
                bars.append(shares[:3])
                tick()
            data = [
                {"type": "bar", "name": label, "x": list(TRAININGS), "y": [b[i] for b in bars],
                 "meta": {"colour": ("single", "found", "all")[i]}}
                for i, label in enumerate(("clean", "certified", "attacked"))
            ]  # fmt: skip
            layout = {"barmode": "group", "bargap": 0.3,
                      "yaxis": {"title": {"text": "accuracy"}, "range": [0, 1.03], "tickformat": ".0%"}}  # fmt: skip
            note = (
                f"Classes {CLASSES[0]} and {CLASSES[1]}, {len(train[1])} training and {len(test[1])} test images. "
                "The certificate ignores the box [0, 1], the attack keeps to it, so attacked may exceed certified, "
                "never fall below."
            )
            columns = ["training", "clean, %", "certified, %", "attacked, %", "dual norm of w"]
            figures.append(
                Figure(f"linear-{number}", f"Robust linear training, {threat.name} {eps:g}", note, data, layout,
                       columns, rows)
            )  # fmt: skip
    return figures


def scores(model: Linear, x: Tensor, y: Tensor, threat: Ball, dual: float) -> tuple[float, float, float]:
    """(clean accuracy, certified accuracy, accuracy under the worst change inside ball and box)."""
    clean = (y * model(x) > 0).double().mean()
    certified = (model.margins(x, y, threat.size, dual) > 0).double().mean()
    attacked = FGSM(threat)(model.as_model(), x, (y > 0).long())
    return float(clean), float(certified), float((y * model(attacked) > 0).double().mean())


def _two(images: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The images of two classes, in double precision, with classes -1 and +1."""
    x, y = images
    kept = (y == CLASSES[0]) | (y == CLASSES[1])
    return x[kept].double(), torch.where(y[kept] == CLASSES[1], 1.0, -1.0).double()
