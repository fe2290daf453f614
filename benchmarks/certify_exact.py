"""Exact verification of small binarised networks: how much it proves, in what time, beside what attacks break.

    .venv/bin/python benchmarks/certify_exact.py [--quick] [--seconds 5] [--images 50]

A binarised multilayer perceptron (real first layer, batch norm, sign, a +-1 layer, batch norm, sign, real classes) is
trained on digits and on MNIST. Test images are verified under linf and l0 (`stochade.certify.verify`), and attacked
with what is strongest here for such networks. The truth lies between the share proven robust and the share that
neither verification nor attacks broke.
"""

import argparse
import time
from pathlib import Path

import torch
from torch import nn

from provenance import QUICK, ROOT, as_lines, commit, provenance, save
from stochade import data as images_of
from stochade.attacks.registry import parse_attack
from stochade.attacks.threats import L0, Ball, Linf
from stochade.certify import verify
from stochade.nn import Sign
from stochade.nn.binarised import BinaryLinear
from stochade.randomness import forked

LINF, SPARSE = (0.01, 0.05, 0.1), (1, 2, 4)
ATTACKS = {
    "linf": ("pgd steps=40 backward=soft", "pgd steps=40 backward=ste", "square queries=1000"),
    "l0": ("pgd steps=40 backward=soft", "random-search samples=1000", "sigma-zero steps=200"),
}
SIZES = {"digits": (20, 12, 40, 64), "mnist": (16, 12, 3, 128)}  # two widths, epochs, images of a batch


def network(pixels: int, first: int, second: int) -> nn.Sequential:
    """A fresh network [N,...] -> [N,10]."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(pixels, first), nn.BatchNorm1d(first), Sign(),
        BinaryLinear(first, second), nn.BatchNorm1d(second), Sign(), nn.Linear(second, 10),
    )  # fmt: skip


def trained(name: str, epochs: int, seed: int = 0) -> nn.Sequential:
    """Adam, with images moved at random by up to 0.1, so that there is something to prove."""
    data = images_of.load(name, "train")
    x, y = (torch.as_tensor(part) for part in data[:])
    first, second, _, batch = SIZES[name]
    with forked(seed):
        model = network(x[0].numel(), first, second)
        adam = torch.optim.Adam(model.parameters(), 0.005)
        steps = epochs * (len(x) // batch)
        schedule = torch.optim.lr_scheduler.OneCycleLR(adam, 0.01, total_steps=steps)
        for _ in range(epochs):
            for rows in torch.randperm(len(x)).split(batch)[: len(x) // batch]:
                moved = (x[rows] + 0.2 * torch.rand_like(x[rows]) - 0.1).clamp(0, 1)
                loss = nn.functional.cross_entropy(model(moved), y[rows])
                adam.zero_grad()
                loss.backward()
                adam.step()
                schedule.step()
    return model.eval()


@torch.no_grad()
def right(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return model(x).argmax(1) == y


def row(model: nn.Module, x: torch.Tensor, y: torch.Tensor, threat: Ball, seconds: float) -> dict:
    """Counts over the images and what attacks leave; a proven image that an attack breaks ends the run."""
    left, attacks = right(model, x, y), [parse_attack(text, threat) for text in ATTACKS[threat.name]]
    for attack in attacks:
        left &= right(model, attack(model, x, y), y)
    before = time.process_time()
    found = verify(model, x, y, threat, seconds, attacks[:1])
    processor = time.process_time() - before
    statuses = [v.status for v in found]
    if any(s == "robust" and not kept for s, kept in zip(statuses, left.tolist(), strict=True)):
        raise RuntimeError(f"an attack broke an image that was proven robust under {threat}")
    spent = sorted(v.seconds for v in found)
    neither = sum(s != "broken" and kept for s, kept in zip(statuses, left.tolist(), strict=True))
    reasons = [v.reason for v in found if v.status == "unknown"]
    return {
        "threat": str(threat),
        "images": len(x),
        "clean": int(right(model, x, y).sum()),
        "robust": statuses.count("robust"),
        "broken": statuses.count("broken"),
        "unknown": len(reasons),
        "reasons": {reason: reasons.count(reason) for reason in sorted(set(reasons))},
        "attacked": int(left.sum()),
        "neither": neither,
        "by intervals": sum(v.status == "robust" and not v.solved for v in found),
        "fixed": sum(v.fixed for v in found) / max(sum(v.units for v in found), 1),
        "seconds": {
            "mean": sum(spent) / len(spent),
            "median": spent[len(spent) // 2],
            "largest": spent[-1],
            "processor": processor / len(x),
        },
    }


def markdown(result: dict) -> str:
    lines = [
        "# Exact verification of small binarised networks",
        "",
        "Real dense layer -> batch norm -> sign -> +-1 layer -> batch norm -> sign -> real dense layer, trained with",
        "noise of 0.1 on the images. Counts of test images. *Robust*: proven for every allowed image (of these",
        "*by intervals* alone). *Broken*: an example was found and checked on the model, by the first attack or the",
        "solver; images that are wrong from the start are among them. *Unknown*: neither within",
        f"{result['limit']:g} s of wall time. *Attacked*: still right after every attack, without verification.",
        "*Truth*: its least and largest count, robust and what neither broke. *Fixed*: share of sign units that",
        "intervals fixed, of images that the first attack left. Wall time, on a machine busy with other work;",
        "*processor*: mean processor time, the first attack included.",
    ]
    for name, part in result["networks"].items():
        widths = "-".join(str(w) for w in (part["pixels"], *part["widths"], 10))
        heads = ("threat", "images", "robust (by intervals)", "broken", "unknown", "attacked", "truth", "fixed")
        times = ("s, mean", "median", "largest", "processor")
        lines += [
            "",
            f"## {name}: {widths}, clean test accuracy {100 * part['accuracy']:.1f} %",
            "",
            f"| {' | '.join(heads + times)} |",
            "|" + "-|" * len(heads + times),
        ]
        for r in part["rows"]:
            proven, truth = f"{r['robust']} ({r['by intervals']})", f"{r['robust']} to {r['neither']}"
            counts = (r["threat"], r["images"], proven, r["broken"], r["unknown"], r["attacked"], truth)
            spent = (f"{r['seconds'][key]:.2f}" for key in ("mean", "median", "largest", "processor"))
            cells = (*map(str, counts), f"{100 * r['fixed']:.0f} %", *spent)
            lines.append(f"| {' | '.join(cells)} |")
    attacks = "; ".join(f"{norm}: {', '.join(texts)}" for norm, texts in ATTACKS.items())
    told = ["", f"Attacks, each alone: {attacks}.", "", "## Provenance", "", *as_lines(result["provenance"])]
    return "\n".join([*lines, *told]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="five images of digits")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "evidence")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--images", type=int, default=50)
    args = parser.parse_args()
    out = QUICK if args.quick else args.out
    networks: dict = {}
    result = {"networks": networks, "limit": args.seconds, "provenance": provenance(seed=0) | {"commit": commit()}}
    for name in ("digits",) if args.quick else ("digits", "mnist"):
        first, second, epochs, _ = SIZES[name]
        model = trained(name, 3 if args.quick else epochs)
        x, y = (torch.as_tensor(part) for part in images_of.load(name, "test")[:])
        accuracy, count = float(right(model, x, y).float().mean()), 5 if args.quick else args.images
        rows: list = []
        networks[name] = {"pixels": x[0].numel(), "widths": [first, second], "accuracy": accuracy, "rows": rows}
        for threat in (*map(Linf, LINF), *map(L0, SPARSE)):
            rows.append(row(model, x[:count], y[:count], threat, args.seconds))
            save(out, "certify_exact", result, markdown(result))


if __name__ == "__main__":
    main()
