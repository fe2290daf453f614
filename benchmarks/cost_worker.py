"""One process that times PGD-10 against its floor, on request. pgd_cost.py starts one per environment.

Reads JSON lines on standard input, {"case": ..., "contender": ...}, and answers each with one on standard output.
A contender is timed between two floors: ten forwards and backwards to the images of the same model, no more. Torch
only at the top, so that it runs in either environment.
"""

import json
import sys
import time
import warnings
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

from cases import load_case, versions

STEPS = 10
Attack = Callable[[nn.Module, Tensor, Tensor, float], Tensor]


def floor(model: nn.Module, images: Tensor, labels: Tensor, eps: float = 0.0) -> Tensor:
    """Ten forwards and backwards to the images: what no gradient attack of ten steps can avoid, unless examples
    leave."""
    x = images.clone()
    for _ in range(STEPS):
        x.requires_grad_()
        loss = nn.functional.cross_entropy(model(x), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, x)
        x = x.detach()
    return gradient


def stochade(**parts) -> Attack:
    def run(model, images, labels, eps):
        from stochade.attacks import PGD, Linf

        return PGD(Linf(eps), steps=STEPS, **parts)(model, images, labels)

    return run


def torchattacks(model, images, labels, eps):
    from torchattacks import PGD

    return PGD(model, eps=eps, alpha=2.5 * eps / STEPS, steps=STEPS)(images, labels)


def foolbox(model, images, labels, eps):
    from foolbox import PyTorchModel
    from foolbox.attacks import LinfPGD

    wrapped = PyTorchModel(model, bounds=(0, 1))
    _, adversarial, _ = LinfPGD(abs_stepsize=2.5 * eps / STEPS, steps=STEPS)(wrapped, images, labels, epsilons=eps)
    return adversarial


def art(model, images, labels, eps):
    from art.attacks.evasion import ProjectedGradientDescentPyTorch
    from art.estimators.classification import PyTorchClassifier

    classifier = PyTorchClassifier(
        model,
        nn.CrossEntropyLoss(),
        input_shape=tuple(images.shape[1:]),
        nb_classes=10,
        clip_values=(0, 1),
        device_type="cpu",
    )
    attack = ProjectedGradientDescentPyTorch(
        classifier,
        eps=eps,
        eps_step=2.5 * eps / STEPS,
        max_iter=STEPS,
        num_random_init=1,
        batch_size=len(images),
        verbose=False,
    )
    return torch.from_numpy(attack.generate(x=images.numpy(), y=labels.numpy()))


def adv_lib(model, images, labels, eps):
    from adv_lib.attacks import pgd_linf

    return pgd_linf(model, images, labels, eps, steps=STEPS, absolute_step_size=2.5 * eps / STEPS)


CONTENDERS: dict[str, Attack] = {
    "stochade": stochade(),
    "stochade keep=last": stochade(keep="last"),
    "stochade drop_fooled=False": stochade(drop_fooled=False),
    "torchattacks": torchattacks,
    "foolbox": foolbox,
    "ART": art,
    "adv-lib": adv_lib,
    "floor again": floor,
}


def clock() -> tuple[float, float]:
    return time.process_time(), time.perf_counter()


def measure(attack: Attack, model, images, labels, eps) -> dict:
    """One timing: floor, attack, floor. Ratios of process CPU time and of wall time."""
    torch.manual_seed(0)
    times = [clock()]
    floor(model, images, labels)
    times.append(clock())
    adversarial = attack(model, images, labels, eps)
    times.append(clock())
    floor(model, images, labels)
    times.append(clock())
    before, spent, after = ([b[i] - a[i] for i in (0, 1)] for a, b in pairwise(times))
    left = any(p.grad is not None for p in model.parameters())
    model.zero_grad(set_to_none=True)
    model.eval()
    with torch.no_grad():
        right = float((model(adversarial).argmax(1) == labels).float().mean())
    return {
        "cpu": spent[0] / ((before[0] + after[0]) / 2),
        "wall": spent[1] / ((before[1] + after[1]) / 2),
        "floor cpu seconds": (before[0] + after[0]) / 2,
        "floors disagree": after[0] / before[0],
        "accuracy": right,
        "left gradients": left,
    }


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    torch.set_num_interop_threads(1)
    warnings.simplefilter("ignore")
    answers, sys.stdout = sys.stdout, sys.stderr
    cases: dict[str, tuple] = {}
    for line in sys.stdin:
        request = json.loads(line)
        if request.get("hello"):
            answer = {"versions": versions(), "threads": torch.get_num_threads()}
        else:
            case = request["case"]
            cases.setdefault(case, None)
            cases[case] = cases[case] or load_case(folder, case)
            try:
                answer = measure(CONTENDERS[request["contender"]], *cases[case])
            except ImportError as problem:
                answer = {"missing": str(problem)}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
