"""The peers' half of coin_flip.py, run in .venv-peers: each library attacks the coin flip and says what it found.

Usage: python coin_flip_peers.py OUT.npz OUT.json SEEDS. Every entry holds the number that the library itself hands to
its user, where that number came from, and the images that it returned.
"""

import contextlib
import io
import json
import logging
import re
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from models import coin_flip_problem
from torch import Tensor

EPS = 1e-6
Found = tuple[float | None, Tensor]  # robust accuracy as reported (None: it reports nothing), images

model, images, labels = coin_flip_problem()
model.eval()


@torch.no_grad()
def one_prediction(adversarial: Tensor) -> float:
    """What a user gets who feeds the returned images to the model once."""
    return float((model(adversarial).argmax(1) == labels).float().mean())


def torchattacks_pgd(_: int) -> Found:
    import torchattacks

    adversarial = torchattacks.PGD(model, eps=EPS, alpha=EPS / 4, steps=40)(images, labels)
    return one_prediction(adversarial), adversarial


def torchattacks_eotpgd(_: int) -> Found:
    import torchattacks

    adversarial = torchattacks.EOTPGD(model, eps=EPS, alpha=EPS / 4, steps=40, eot_iter=20)(images, labels)
    return one_prediction(adversarial), adversarial


def torchattacks_autoattack(kind: str, seed: int) -> Found:
    """The suite's own bookkeeping, which decides on whom its later attacks run."""
    import torchattacks

    attack = torchattacks.AutoAttack(model, eps=EPS, version=kind, seed=seed)
    inner = attack._autoattack
    inner._accumulate_multi_atk_records = True
    inner._multi_atk_records = [0.0] * (len(inner.attacks) + 1)
    adversarial = attack(images, labels)
    return inner._multi_atk_records[-1] / len(images), adversarial


def torchattacks_save(kind: str, seed: int) -> Found:
    """Its public way to a robust accuracy: save() predicts the returned images once."""
    import torchattacks

    attack = torchattacks.AutoAttack(model, eps=EPS, version=kind, seed=seed)
    accuracy, _, _ = attack.save([(images, labels)], verbose=False, return_verbose=True)
    return accuracy / 100, attack(images, labels)


def foolbox_pgd(times: int) -> Found:
    import foolbox

    attack = foolbox.attacks.LinfPGD(abs_stepsize=EPS / 4, steps=40)
    if times > 1:
        attack = attack.repeat(times)
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1))
    _, adversarial, success = attack(wrapped, images, labels, epsilons=EPS)
    return float(1 - success.float().mean()), adversarial


def art_pgd(restarts: int) -> Found:
    from art.attacks.evasion import ProjectedGradientDescentPyTorch
    from art.estimators.classification import PyTorchClassifier

    heard: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: heard.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("art.attacks.evasion.projected_gradient_descent.projected_gradient_descent_pytorch")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    classifier = PyTorchClassifier(
        model, torch.nn.CrossEntropyLoss(), input_shape=tuple(images.shape[1:]), nb_classes=10, clip_values=(0, 1),
        device_type="cpu",
    )  # fmt: skip
    attack = ProjectedGradientDescentPyTorch(
        classifier, eps=EPS, eps_step=EPS / 4, max_iter=40, num_random_init=restarts, batch_size=len(images),
        verbose=False,
    )  # fmt: skip
    adversarial = torch.from_numpy(attack.generate(x=images.numpy(), y=labels.numpy()))
    told = [re.search(r"Success rate of attack: ([\d.]+)%", line) for line in heard]
    rate = float([match for match in told if match][-1].group(1))
    return 1 - rate / 100, adversarial


def advlib_pgd(_: int) -> Found:
    from adv_lib.attacks import pgd_linf

    adversarial = pgd_linf(model, images, labels, EPS, steps=40, absolute_step_size=EPS / 4)
    return one_prediction(adversarial), adversarial


def autoattack(kind: str, iterations: int | None, seed: int) -> Found:
    from autoattack import AutoAttack

    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log.txt"
        with contextlib.redirect_stdout(io.StringIO()):
            attack = AutoAttack(model, norm="Linf", eps=EPS, version=kind, device="cpu", seed=seed, log_path=str(log))
        if iterations is not None:
            attack.apgd.n_iter = attack.apgd_targeted.n_iter = attack.fab.n_iter = iterations
            attack.square.n_queries = iterations
        with contextlib.redirect_stdout(io.StringIO()):
            adversarial = attack.run_standard_evaluation(images, labels, bs=len(images))
        text = log.read_text()
    reported = float(re.findall(r"^robust accuracy: ([\d.]+)%", text, re.MULTILINE)[-1]) / 100
    return reported, adversarial


ONCE = "no report: accuracy of one prediction of the images it returns"
COUNTED = "its MultiAttack's own count of examples that no attack fooled"
AGREED = 'the log line "Success rate of attack": how often a prediction of the image differs from one of the original'
LOGGED = 'the log line "robust accuracy"'
SAVED = "save(), which predicts the images once more"
MASK = "the success mask it returns"
ENTRIES: list[tuple[str, str, str, Callable[[int], Found]]] = [
    ("torchattacks", "PGD, 40 steps", ONCE, torchattacks_pgd),
    ("torchattacks", "EOTPGD, 40 steps, eot_iter=20", ONCE, torchattacks_eotpgd),
    ("torchattacks", "AutoAttack standard, its defaults", COUNTED, partial(torchattacks_autoattack, "standard")),
    ("torchattacks", "AutoAttack standard, its defaults", SAVED, partial(torchattacks_save, "standard")),
    ("torchattacks", "AutoAttack rand, its defaults", COUNTED, partial(torchattacks_autoattack, "rand")),
    ("torchattacks", "AutoAttack rand, its defaults", SAVED, partial(torchattacks_save, "rand")),
    ("foolbox", "LinfPGD, 40 steps", MASK, lambda _: foolbox_pgd(1)),
    ("foolbox", "LinfPGD, 40 steps, .repeat(20)", MASK, lambda _: foolbox_pgd(20)),
    ("ART", "PGD, 40 steps", AGREED, lambda _: art_pgd(0)),
    ("ART", "PGD, 40 steps, 20 restarts", AGREED, lambda _: art_pgd(20)),
    ("adv-lib", "pgd_linf, 40 steps", ONCE, advlib_pgd),
    ("auto-attack", "standard, all iterations cut to 20", LOGGED, partial(autoattack, "standard", 20)),
    ("auto-attack", "rand, iterations cut to 20", LOGGED, partial(autoattack, "rand", 20)),
    ("auto-attack", "standard, its defaults", LOGGED, partial(autoattack, "standard", None)),
    ("auto-attack", "rand, its defaults", LOGGED, partial(autoattack, "rand", None)),
]


def installed(name: str) -> str | None:
    try:
        return version(name)
    except Exception:
        return None


def source_digest(package: str) -> str | None:
    """A digest of a package's Python files, for peers that have no released version."""
    import hashlib
    from importlib.util import find_spec

    spec = find_spec(package)
    if spec is None or spec.origin is None:
        return None
    digest = hashlib.sha256()
    for path in sorted(Path(spec.origin).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def versions() -> dict:
    names = ("torch", "torchattacks", "foolbox", "adversarial-robustness-toolbox", "adv-lib", "numpy")
    table: dict = {name: installed(name) for name in names}
    table["auto-attack"] = (
        f"sha256 of its sources {source_digest('autoattack')}" if source_digest("autoattack") else None
    )
    return table


def run_once(run: Callable[[int], Found], seed: int) -> Found:
    """One seeded run; the model comes back as it was, because some peers change it."""
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    try:
        return run(seed)
    finally:
        model.eval()
        model.zero_grad(set_to_none=True)


def main(images_out: str, report_out: str, seeds: int) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    results, arrays = [], {}
    for index, (library, attack, source, run) in enumerate(ENTRIES):
        entry: dict = {"library": library, "attack": attack, "source": source, "index": index}
        start = time.perf_counter()
        try:
            found = [run_once(run, seed) for seed in range(seeds)]
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
    np.savez(images_out, **arrays)
    Path(report_out).write_text(json.dumps({"entries": results, "versions": versions()}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
