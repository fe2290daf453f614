"""What the peers report about a model: each attack's own number for its user, and the images that it returned.

Run in .venv-peers. `ENTRIES` holds (library, attack, where the number comes from, function of a problem and a seed).
"""

import contextlib
import io
import logging
import re
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn


@dataclass
class Problem:
    """A model in eval mode, images, labels, a linf budget, and the number of classes."""

    model: nn.Module
    images: Tensor
    labels: Tensor
    eps: float
    classes: int = 10


class Padded(nn.Module):
    """A model of two classes with eight more, always ten below its lowest logit: the suites' difference-of-logits
    loss and their nine targets need as many. Its answers are those of the model."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        logits = self.model(x)
        low = logits.detach().amin(1, keepdim=True) - 10
        return torch.cat([logits, low.expand(-1, 8)], 1)


Found = tuple[float | None, Tensor]  # robust accuracy as reported (None: it reports nothing), images


@torch.no_grad()
def one_prediction(p: Problem, adversarial: Tensor) -> float:
    """What a user gets who feeds the returned images to the model once."""
    return float((p.model(adversarial).argmax(1) == p.labels).float().mean())


def torchattacks_pgd(p: Problem, _: int) -> Found:
    import torchattacks

    adversarial = torchattacks.PGD(p.model, eps=p.eps, alpha=p.eps / 4, steps=40)(p.images, p.labels)
    return one_prediction(p, adversarial), adversarial


def torchattacks_eotpgd(p: Problem, _: int) -> Found:
    import torchattacks

    adversarial = torchattacks.EOTPGD(p.model, eps=p.eps, alpha=p.eps / 4, steps=40, eot_iter=20)(p.images, p.labels)
    return one_prediction(p, adversarial), adversarial


def torchattacks_autoattack(p: Problem, seed: int, kind: str) -> Found:
    """The suite's own bookkeeping, which decides on whom its later attacks run."""
    import torchattacks

    attack = torchattacks.AutoAttack(p.model, eps=p.eps, version=kind, seed=seed)
    inner = attack._autoattack
    inner._accumulate_multi_atk_records = True
    inner._multi_atk_records = [0.0] * (len(inner.attacks) + 1)
    adversarial = attack(p.images, p.labels)
    return inner._multi_atk_records[-1] / len(p.images), adversarial


def torchattacks_save(p: Problem, seed: int, kind: str) -> Found:
    """Its public way to a robust accuracy: save() predicts the returned images once."""
    import torchattacks

    attack = torchattacks.AutoAttack(p.model, eps=p.eps, version=kind, seed=seed)
    accuracy, _, _ = attack.save([(p.images, p.labels)], verbose=False, return_verbose=True)
    return accuracy / 100, attack(p.images, p.labels)


def foolbox_pgd(p: Problem, _: int, times: int) -> Found:
    import foolbox

    attack = foolbox.attacks.LinfPGD(abs_stepsize=p.eps / 4, steps=40)
    if times > 1:
        attack = attack.repeat(times)
    wrapped = foolbox.PyTorchModel(p.model, bounds=(0, 1))
    _, adversarial, success = attack(wrapped, p.images, p.labels, epsilons=p.eps)
    return float(1 - success.float().mean()), adversarial


def art_pgd(p: Problem, _: int, restarts: int) -> Found:
    from art.attacks.evasion import ProjectedGradientDescentPyTorch
    from art.estimators.classification import PyTorchClassifier

    heard: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: heard.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("art.attacks.evasion.projected_gradient_descent.projected_gradient_descent_pytorch")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    classifier = PyTorchClassifier(
        p.model, nn.CrossEntropyLoss(), tuple(p.images.shape[1:]), p.classes, clip_values=(0, 1), device_type="cpu"
    )
    attack = ProjectedGradientDescentPyTorch(
        classifier, eps=p.eps, eps_step=p.eps / 4, max_iter=40, num_random_init=restarts, batch_size=len(p.images),
        verbose=False,
    )  # fmt: skip
    adversarial = torch.from_numpy(attack.generate(x=p.images.numpy(), y=p.labels.numpy()))
    told = [re.search(r"Success rate of attack: ([\d.]+)%", line) for line in heard]
    rate = float([match for match in told if match][-1].group(1))
    return 1 - rate / 100, adversarial


def advlib_pgd(p: Problem, _: int) -> Found:
    from adv_lib.attacks import pgd_linf

    adversarial = pgd_linf(p.model, p.images, p.labels, p.eps, steps=40, absolute_step_size=p.eps / 4)
    return one_prediction(p, adversarial), adversarial


def autoattack(p: Problem, seed: int, kind: str, steps: int | None = None, attacks: tuple[str, ...] = ()) -> Found:
    from autoattack import AutoAttack

    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log.txt"
        with contextlib.redirect_stdout(io.StringIO()):
            attack = AutoAttack(
                p.model, norm="Linf", eps=p.eps, version=kind, attacks_to_run=list(attacks), device="cpu", seed=seed,
                log_path=str(log),
            )  # fmt: skip
        if steps is not None:
            attack.apgd.n_iter = attack.apgd_targeted.n_iter = attack.fab.n_iter = steps
            attack.square.n_queries = steps
        with contextlib.redirect_stdout(io.StringIO()):
            adversarial = attack.run_standard_evaluation(p.images, p.labels, bs=len(p.images))
        text = log.read_text()
    reported = float(re.findall(r"^robust accuracy: ([\d.]+)%", text, re.MULTILINE)[-1]) / 100
    return reported, adversarial


ONCE = "no report: accuracy of one prediction of the images it returns"
COUNTED = "its MultiAttack's own count of examples that no attack fooled"
AGREED = 'the log line "Success rate of attack": how often a prediction of the image differs from one of the original'
LOGGED = 'the log line "robust accuracy"'
SAVED = "save(), which predicts the images once more"
MASK = "the success mask it returns"


def foolbox_smallest(p: Problem, _: int, name: str) -> Found:
    """An attack that looks for the smallest change; foolbox cuts what it returns to the budget and tests that."""
    import foolbox

    wrapped = foolbox.PyTorchModel(p.model, bounds=(0, 1))
    _, adversarial, success = getattr(foolbox.attacks, name)()(wrapped, p.images, p.labels, epsilons=p.eps)
    return float(1 - success.float().mean()), adversarial


def torchattacks_square(p: Problem, seed: int) -> Found:
    import torchattacks

    adversarial = torchattacks.Square(p.model, eps=p.eps, n_queries=1000, seed=seed)(p.images, p.labels)
    return one_prediction(p, adversarial), adversarial


def advlib_apgd(p: Problem, _: int) -> Found:
    from adv_lib.attacks import apgd

    adversarial = apgd(p.model, p.images, p.labels, p.eps, float("inf"), loss_function="ce", eot_iter=20)
    return one_prediction(p, adversarial), adversarial


Report = Callable[[Problem, int], Found]
Entry = tuple[str, str, str, Report]
ENTRIES: list[Entry] = [
    ("torchattacks", "PGD, 40 steps", ONCE, torchattacks_pgd),
    ("torchattacks", "EOTPGD, 40 steps, eot_iter=20", ONCE, torchattacks_eotpgd),
    ("torchattacks", "AutoAttack standard, its defaults", COUNTED, partial(torchattacks_autoattack, kind="standard")),
    ("torchattacks", "AutoAttack standard, its defaults", SAVED, partial(torchattacks_save, kind="standard")),
    ("torchattacks", "AutoAttack rand, its defaults", COUNTED, partial(torchattacks_autoattack, kind="rand")),
    ("torchattacks", "AutoAttack rand, its defaults", SAVED, partial(torchattacks_save, kind="rand")),
    ("foolbox", "LinfPGD, 40 steps", MASK, partial(foolbox_pgd, times=1)),
    ("foolbox", "LinfPGD, 40 steps, .repeat(20)", MASK, partial(foolbox_pgd, times=20)),
    ("ART", "PGD, 40 steps", AGREED, partial(art_pgd, restarts=0)),
    ("ART", "PGD, 40 steps, 20 restarts", AGREED, partial(art_pgd, restarts=20)),
    ("adv-lib", "pgd_linf, 40 steps", ONCE, advlib_pgd),
    ("auto-attack", "standard, its defaults", LOGGED, partial(autoattack, kind="standard")),
    ("auto-attack", "rand, its defaults", LOGGED, partial(autoattack, kind="rand")),
]
CUT: list[Entry] = [
    (
        "auto-attack",
        "standard, all iterations cut to 20",
        LOGGED,
        partial(autoattack, kind="standard", steps=20),
    ),
    ("auto-attack", "rand, iterations cut to 20", LOGGED, partial(autoattack, kind="rand", steps=20)),
]
MORE: list[Entry] = [
    ("torchattacks", "Square, 1000 queries", ONCE, torchattacks_square),
    ("foolbox", "LinfDeepFool", MASK, partial(foolbox_smallest, name="LinfDeepFoolAttack")),
    ("foolbox", "LInfFMN", MASK, partial(foolbox_smallest, name="LInfFMNAttack")),
    ("adv-lib", "apgd, cross entropy, eot_iter=20", ONCE, advlib_apgd),
    (
        "auto-attack", "custom: apgd-ce, fab, square (runs on two classes)", LOGGED,
        partial(autoattack, kind="custom", attacks=("apgd-ce", "fab", "square")),
    ),
]  # fmt: skip


def padded(p: Problem, seed: int, report: Report) -> Found:
    return report(Problem(Padded(p.model).eval(), p.images, p.labels, p.eps, 10), seed)


def on_two_classes(entries: list[Entry]) -> list[Entry]:
    """The same attacks; whole suites, which fail on two classes, see the padded model."""
    table = []
    for library, attack, source, report in entries:
        if "AutoAttack" in attack or attack.startswith(("standard", "rand")):
            table.append((library, f"{attack}, padded to ten classes", source, partial(padded, report=report)))
        else:
            table.append((library, attack, source, report))
    return table


def run_once(p: Problem, report: Report, seed: int) -> Found:
    """One seeded run; the model comes back as it was, because some peers change it."""
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    modes = {name: module.training for name, module in p.model.named_modules()}
    try:
        return report(p, seed)
    finally:
        for name, module in p.model.named_modules():
            module.training = modes.get(name, False)
        p.model.zero_grad(set_to_none=True)


def run_all(p: Problem, entries: list[Entry], seeds: int) -> tuple[list[dict], dict[str, np.ndarray]]:
    """What each entry reported for each seed, and {index: the images it returned, [seeds, N, ...]}."""
    warnings.simplefilter("ignore")
    results, arrays = [], {}
    for index, (library, attack, source, report) in enumerate(entries):
        entry: dict = {"library": library, "attack": attack, "source": source, "index": index}
        start = time.perf_counter()
        try:
            found = [run_once(p, report, seed) for seed in range(seeds)]
            arrays[str(index)] = np.stack([images.detach().numpy().astype(np.float32) for _, images in found])
            entry |= {"reported": [reported for reported, _ in found]}
            entry |= {"seconds": round((time.perf_counter() - start) / seeds, 2)}
        except ImportError as problem:
            entry["missing"] = str(problem)
        except Exception:
            entry["error"] = traceback.format_exc(limit=-1).strip().splitlines()[-1]
        results.append(entry)
        told = entry.get("missing") or entry.get("error") or [round(value, 3) for value in entry["reported"]]
        print(f"{library:13} {attack:36} {told}", flush=True)
    return results, arrays
