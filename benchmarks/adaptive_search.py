"""Does the adaptive search break, by itself, designs that are known to be broken, as well as the attacks that broke
them in the literature do?

    .venv/bin/python benchmarks/adaptive_search.py [--only digits|mnist] [--examples 200] [--passes 6000]

For each design: the model's own gradient (PGD-40, the usual claim), the published or surveyed attack written by hand
(`SURVEYED`), and the winners of the search, which is told nothing but the model. All are scored on the same fresh
draws. Networks for MNIST are trained once (12,000 images, three epochs) and kept in .data. Bar: the search within two
points of the surveyed attack, or lower. Writes results/adaptive/adaptive_search.json and .md.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from provenance import ROOT, as_lines, commit, provenance, save
from stochade import PGD, Backprop, Evolution, Linf, data, evaluate, margin
from stochade.attacks import Attack, parse_threat
from stochade.audit.adaptive import adaptive_attacks
from stochade.audit.plan import Effort
from stochade.checkpoint import load as load_checkpoint
from stochade.evaluate.intervals import paired
from stochade.nn.discrete import scope_of
from stochade.randomness import forked, seed_for
from stochade.registry import build
from stochade.targets import load_target
from stochade.train import train

sys.path.insert(0, str(Path(__file__).resolve().parent / "peers"))
from networks import data_folder

SEED, BAR = 0, 0.02
IMAGES, EPOCHS = 12_000, 3


def averaged(threat, steps: int, draws: int, **parts) -> Attack:
    return PGD(threat, steps, gradient=Backprop(draws, **parts), objective=margin)


SURVEYED: dict[str, tuple[str, Callable[[Linf], Attack]]] = {
    "zero-gradient": (
        "PGD on antithetic Gaussian search directions, 40 steps of 50 pairs",
        lambda t: PGD(t, 40, gradient=Evolution(50, 0.05), objective=margin),
    ),
    "kwta": (
        "100 steps on 100 antithetic Gaussian directions, sigma 8/255 (Tramer et al. 2020)",
        lambda t: PGD(t, 100, gradient=Evolution(100, 8 / 255), objective=margin),
    ),
    "sap": (
        "margin, 500 steps, 10 draws per gradient (Athalye et al. 2018)",
        lambda t: averaged(t, 500, 10),
    ),
    "lwta": (
        "PGD-40 through the noise-free softmax, margin (survey)",
        lambda t: averaged(t, 40, 1, relaxed="mean-field"),
    ),
    "gated": (
        "PGD-40, 5 draws, soft backward of the gates, margin (survey)",
        lambda t: averaged(t, 40, 5, substitutes="soft"),
    ),
    "quantised": (
        "PGD-40, identity backward of the quantiser (Athalye et al. 2018)",
        lambda t: averaged(t, 40, 1, substitutes="ste"),
    ),
}  # fmt: skip

MNIST = {"kwta": "kwta-cnn", "sap": "sap-cnn", "lwta": "lwta-cnn", "gated": "gated", "quantised": "quantised-cnn"}
CASES: list[tuple[str, str, str, str | None]] = [("known", "zero-gradient", "known:zero-gradient", None)]
CASES += [("digits", kind, f"digits-{kind}", None) for kind in MNIST]
CASES += [("mnist", kind, name, "linf=0.3") for kind, name in MNIST.items()]


def _mnist() -> Path:
    folder = data_folder("mnist")
    assert folder is not None
    return folder


def on_mnist(name: str) -> nn.Module:
    """A registered model after three epochs on 12,000 images of MNIST, kept in .data."""
    folder = ROOT / ".data" / "benchmarks" / f"adaptive-{name}"
    if not (folder / "done").exists():
        images = data.load(_mnist(), "train", progress=False).take(IMAGES, seed=SEED)
        validation = data.load(_mnist(), "validation", progress=False).take(1000, seed=SEED)
        with forked(seed_for(SEED, "initial weights")):
            model = build(name, images.shape[1:], images.num_classes)
        train(model, images, validation, epochs=EPOCHS, batch=50, lr=1e-3, seed=SEED, out=folder, progress=False)
        (folder / "done").touch()
    return load_checkpoint(folder).eval()


def problem(place: str, name: str, threat: str | None, examples: int):
    """(model, images, labels, threat)."""
    if place == "mnist":
        test = data.load(_mnist(), "test", progress=False).take(examples, seed=SEED)
        x, y = test[: len(test)]
        return on_mnist(name), torch.as_tensor(x), torch.as_tensor(y), parse_threat(threat or "linf=0.3")
    target = load_target(name, seed=0, show_progress=False)
    if isinstance(target.data, tuple):
        x, y = target.data
    else:
        test = data.load(target.data, "test").take(examples, seed=SEED)
        x, y = test[: len(test)]
    return target.model, torch.as_tensor(x), torch.as_tensor(y), parse_threat(target.threat or "linf=0.1")


def measure(place: str, kind: str, name: str, threat_text: str | None, arguments) -> dict:
    """One row: clean, own gradient, surveyed, adaptive, with the log of the search."""
    model, x, y, threat = problem(place, name, threat_text, arguments.examples)
    random = scope_of(model) != "none"
    text, build_surveyed = SURVEYED[kind]
    effort = Effort(steps=40, draws=10, pairs=0, evolution_steps=0, samples=0, search=arguments.passes, searched=32)
    start = time.perf_counter()
    winners, log = adaptive_attacks(model, x, y, threat, random, effort, SEED, False)
    searched = time.perf_counter() - start
    own = PGD(threat, 40, gradient=Backprop(10 if random else 1))
    records = evaluate(
        model, x, y, {"own": own, "surveyed": build_surveyed(threat)} | winners, draws=20, seed=SEED,
        show_progress=False, keep_images=0,
    )  # fmt: skip
    names = list(winners)
    best = min(names, key=lambda n: float((records.attacks[n].selection == y.numpy()[:, None]).mean()))
    gap = paired(records.right(best), records.right("surveyed"))
    row = {
        "design": f"{place}: {kind}", "threat": str(threat), "surveyed attack": text, "winner": best,
        "seconds of search": searched, "trials": len(log), "log": log,
        "gap": gap.as_dict(), "met": gap.value is not None and gap.value <= BAR,
    }  # fmt: skip
    for label, attack in (("clean", "clean"), ("own", "own"), ("surveyed", "surveyed"), ("adaptive", best)):
        row[label] = records.score(attack).as_dict() | {"text": str(records.score(attack))}
    print(f"{row['design']:18} surveyed {row['surveyed']['text']:22} adaptive {row['adaptive']['text']:22} {best}")
    return row


def markdown(result: dict) -> str:
    lines = [
        "# What the adaptive search finds on designs that are known to be broken",
        "",
        "Accuracy of one prediction in percent with 95 % intervals, 20 fresh draws per example. *Own gradient*:",
        "PGD-40 on cross entropy, 10 draws per gradient where the model is random. *Surveyed*: the published or",
        "surveyed attack, written by hand. *Adaptive*: the strongest winner of the search, which is told nothing but",
        "the model.",
        f"Bar: adaptive at most {100 * BAR:.0f} points above surveyed.",
        "",
        "| design | threat | clean | own gradient | surveyed | adaptive | bar | winner | search |",
        "|-|-|-|-|-|-|-|-|-|",
    ]
    for r in result["rows"]:
        cells = [r["design"], r["threat"], *(r[k]["text"] for k in ("clean", "own", "surveyed", "adaptive"))]
        cells += [
            "met" if r["met"] else "MISSED",
            r["winner"],
            f"{r['trials']} trials, {r['seconds of search']:.0f} s",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "## The surveyed attacks", ""]
    lines += [f"- {kind}: {text}" for kind, (text, _) in SURVEYED.items()]
    return "\n".join([*lines, "", "## Provenance", "", *as_lines(result["provenance"])]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--only", nargs="*", choices=("known", "digits", "mnist"), default=("known", "digits", "mnist")
    )
    parser.add_argument("--design", help="one design, such as kwta")
    parser.add_argument("--examples", type=int, default=200)
    parser.add_argument("--passes", type=int, default=6000)
    parser.add_argument("--train-only", action="store_true")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "adaptive")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cases = [c for c in CASES if c[0] in arguments.only and arguments.design in (None, c[1])]
    if data_folder("mnist") is None:
        print("MNIST was not found under STOCHADE_DATA: its rows are left out")
        cases = [c for c in cases if c[0] != "mnist"]
    if arguments.train_only:
        for place, _, name, _ in cases:
            if place == "mnist":
                on_mnist(name)
        return
    facts = {
        "commit": commit(),
        "seed": SEED,
        "examples": arguments.examples,
        "passes of the search": arguments.passes,
    }
    rows: list[dict] = []
    for case in cases:  # written after each: the search on MNIST takes minutes a network
        rows.append(measure(*case, arguments))
        result = {"rows": rows, "provenance": provenance(**facts)}
        save(arguments.out, "adaptive_search", result, markdown(result))


if __name__ == "__main__":
    main()
