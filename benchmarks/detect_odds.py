"""The Odds are Odd detector on networks of our own: clean and detection rates, and what adaptive attacks leave.

    .venv/bin/python benchmarks/detect_odds.py [--cases mnist-mlp digits-mlp] [--quick]

Trains each network, calibrates the detector on validation images, and attacks test images with PGD, logit matching
and the attack in the loop, all at one distance. Resumable; writes results/evidence/detect_odds.json and .md after
every case. Published rates stand beside: the paper's claim, and what the authors of the adaptive attack print for the
released WResNet on CIFAR-10 at 8/255.
"""

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from provenance import QUICK, ROOT, as_lines, commit, provenance, save
from stochade import checkpoint
from stochade import data as images_of
from stochade.attacks.threats import Linf
from stochade.detect import page, parse_bank
from stochade.detect.study import study
from stochade.randomness import forked
from stochade.registry import build
from stochade.train import train

REFERENCE = [
    ("paper (CIFAR-10, WResNet), claim", "-", "at least 99 %", "-", "-"),
    ("Tramèr et al. 2020, their notebook, 1000 images", "0.5 %", "-", "16.3 %", "0.0 %"),
]


@dataclass(frozen=True)
class Case:
    """One network and one detector on it."""

    data: str
    model: str
    epochs: int
    eps: float
    noise: tuple[str, ...]
    rate: float
    calibration: int
    examples: int
    lr: float = 1e-3
    training: int = 0  # images; 0 takes all
    draws: int = 32
    steps: int = 100


CASES = {
    "mnist-mlp-12000": Case("mnist", "mlp", 6, 0.2, ("0.03",), 0.01, 2000, 500, training=12_000),
    "mnist-mlp": Case("mnist", "mlp", 3, 0.2, ("0.03",), 0.01, 2000, 500),
    "digits-mlp": Case("digits", "mlp", 10, 0.3, ("0.1",), 0.05, 200, 400, lr=1e-2),
    "mnist-2cnn": Case("mnist", "2cnn", 1, 0.3, ("0.02",), 0.01, 600, 100, training=20_000, draws=16, steps=50),
    "mnist-mlp-paper": Case("mnist", "mlp", 3, 0.2, ("paper",), 0.01, 1000, 200),
}


def network(case: Case, work: Path) -> torch.nn.Module:
    """The case's network, trained once."""
    folder = work / f"{case.data}-{case.model}-{case.epochs}-{case.training}"
    if (folder / "model.json").is_file():
        return checkpoint.load(folder)
    images = images_of.load(case.data, "train")
    images = images.take(case.training, seed=0) if case.training else images
    with forked(0):
        model = build(case.model, images.shape[1:], images.num_classes)
    checked = images_of.load(case.data, "validation")
    checked = checked.take(min(1000, len(checked)), seed=0)
    train(model, images, checked, epochs=case.epochs, batch=50, lr=case.lr, seed=0)
    checkpoint.save(model.eval(), folder)
    return model


def run(name: str, case: Case, work: Path) -> dict:
    clean = images_of.load(case.data, "validation")
    clean = clean.take(min(case.calibration, len(clean)), seed=1)
    test = images_of.load(case.data, "test")
    x, y = test.take(min(case.examples, len(test)), seed=0)[:]
    result = study(
        network(case, work), torch.as_tensor(clean[:][0]), torch.as_tensor(x), torch.as_tensor(y), Linf(case.eps),
        rate=case.rate, noises=parse_bank(case.noise), draws=case.draws, steps=case.steps, seed=0, out=work / name,
        show_progress=True,
    )  # fmt: skip
    return page.document(result, {"case": name} | asdict(case))


def _percent(e: dict) -> str:
    if e["value"] is None:
        return "-"
    return "{:.1f} [{:.1f}, {:.1f}]".format(*(100 * e[k] for k in ("value", "low", "high")))


def markdown(result: dict) -> str:
    lines = [
        "# The odds are odd: detection, and what adaptive attacks leave of it",
        "",
        "Percent [95 % exact binomial interval]. *False*: clean test images flagged. *Wrong*: of the images that the",
        "network has right before the attack; *detected* and *corrected*: of the wrong ones; *through*: wrong and",
        "not flagged. All attacks of a network have the same linf budget; noise of the test is drawn anew. The",
        "threshold is calibrated on validation images held out for it, at the rate asked.",
        "",
        "| network | accuracy | rate asked | false | attack | wrong | detected | corrected | through | area |",
        "|" + "-|" * 10,
    ]
    for name, told in result["cases"].items():
        clean, rate = told["clean"], told["detector"]["rate"]
        label = f"{name}, linf {told['eps']:g}, noise {' '.join(told['noise'])}, {told['examples']} images"
        for attack, row in told["attacks"].items():
            cells = [_percent(row[k]) for k in ("wrong", "detected", "corrected", "wrong and undetected")]
            area = "-" if row["area"] is None else f"{row['area']:.3f}"
            lines.append(
                f"| {label} | {_percent(clean['accuracy'])} | {100 * rate:g} | {_percent(clean['false positives'])} "
                f"| {attack} | {' | '.join(cells)} | {area} |"
            )
    lines += ["", "Published, for comparison (another network, data and distance):", ""]
    lines += ["| source | false | detected, plain | logit matching | over noise as well |", "|-|-|-|-|-|"]
    lines += [f"| {' | '.join(row)} |" for row in REFERENCE]
    return "\n".join([*lines, "", "## Provenance", "", *as_lines(result["provenance"])]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "evidence")
    parser.add_argument("--work", type=Path, default=ROOT / ".data" / "benchmarks" / "detect")
    parser.add_argument("--quick", action="store_true", help="few images, written elsewhere")
    arguments = parser.parse_args()
    out = QUICK if arguments.quick else arguments.out
    kept = out / "detect_odds.json"
    cases = json.loads(kept.read_text())["cases"] if kept.is_file() and not arguments.quick else {}
    for name in arguments.cases:
        case = CASES[name]
        if arguments.quick:
            case = Case(**asdict(case) | {"examples": 20, "calibration": 200, "rate": 0.1, "steps": 5, "draws": 4})
        work = arguments.work / "quick" if arguments.quick else arguments.work
        cases[name] = run(name, case, work)
        done = {n: cases[n] for n in CASES if n in cases}
        result = {"cases": done, "provenance": provenance(commit=commit(), seed=0)}
        save(out, "detect_odds", result, markdown(result))


if __name__ == "__main__":
    main()
