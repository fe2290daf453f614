"""One process that times attacks against their floor, on request. pgd_cost.py and gradient_cost.py start one per
environment.

Reads JSON lines on standard input, {"case": ..., "contender": ..., "count": whether passes are counted instead of
seconds}, and answers each with one on standard output. A contender is timed between two floors: as many forwards and
backwards to the images of the same model as it takes steps. Torch only at the top, so that it runs in either
environment.
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
from counting import Counter, floor

STEPS = 10
Attack = Callable[[nn.Module, Tensor, Tensor, float], Tensor]


def again(steps: int) -> Attack:
    """The floor itself, timed like an attack."""

    def run(model, images, labels, eps):
        floor(model, images, labels, steps)
        return images

    return run


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


def common(attack: str, library: str, **options) -> Attack:
    """An attack of `ours.py` or `peers/contenders.py`."""

    def run(model, images, labels, eps):
        import contenders

        import ours

        table = ours.CONTENDERS[attack] if library == "stochade" else contenders.CONTENDERS[attack]
        given = {"norm": "linf", "eps": eps} if attack.startswith("apgd") else {}
        return table[library](model, images, labels, **given, **options)

    return run


PGD_CONTENDERS: dict[str, Attack] = {
    "stochade": stochade(),
    "stochade keep=last": stochade(keep="last"),
    "stochade drop_fooled=False": stochade(drop_fooled=False),
    "torchattacks": torchattacks,
    "foolbox": foolbox,
    "ART": art,
    "adv-lib": adv_lib,
    "floor again": again(STEPS),
}
APGD = ("stochade", "auto-attack", "adv-lib", "torchattacks", "ART")
CW = ("stochade", "adv-lib", "foolbox", "torchattacks", "ART")
CW_STEPS = 50
CONTENDERS: dict[str, tuple[Attack, int]] = {name: (attack, STEPS) for name, attack in PGD_CONTENDERS.items()}
CONTENDERS |= {f"APGD {name}": (common("apgd-ce", name, steps=STEPS), STEPS) for name in APGD}
CONTENDERS |= {f"C&W {name}": (common("cw", name, steps=CW_STEPS, c=1.0), CW_STEPS) for name in CW}
CONTENDERS["C&W floor again"] = (again(CW_STEPS), CW_STEPS)


def clock() -> tuple[float, float]:
    return time.process_time(), time.perf_counter()


def count(attack: Attack, model, images, labels, eps) -> dict:
    """One run that is not timed: warms up, and tells the passes per image that the model saw."""
    counter = Counter(model, len(images))
    try:
        attack(model, images, labels, eps)
    finally:
        passes = counter.close()
        model.zero_grad(set_to_none=True)
        model.eval()
    return passes


def measure(attack: Attack, steps: int, model, images, labels, eps) -> dict:
    """One timing: floor, attack, floor. Ratios of process CPU time and of wall time."""
    torch.manual_seed(0)
    times = [clock()]
    floor(model, images, labels, steps)
    times.append(clock())
    adversarial = attack(model, images, labels, eps)
    times.append(clock())
    floor(model, images, labels, steps)
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
            attack, steps = CONTENDERS[request["contender"]]
            try:
                if request.get("count"):
                    answer = count(attack, *cases[case])
                else:
                    answer = measure(attack, steps, *cases[case])
            except Exception as problem:
                if not isinstance(problem, ImportError) and type(problem).__name__ not in ("UsageError", "KeyError"):
                    raise
                answer = {"missing": f"{type(problem).__name__}: {problem}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
