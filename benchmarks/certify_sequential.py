"""How many draws does a certificate at a stated radius need, if it may stop as soon as it is decided?

    .venv/bin/python benchmarks/certify_sequential.py [--out results/evidence] [--quick]  # writes after each case

Small networks are trained under their own noise in seconds: a CNN on digits and (where it is at hand) MNIST with
Gaussian noise of 0.25 and 0.5, and a rate-coded CNN on digits. For every test image one stream of 100,000 draws is
made; the fixed procedure (Clopper-Pearson on all of it) and the sequential ones decide every radius on that stream,
with the same failure probability 0.001. An undecided radius counts as all draws. A radius that 100,000 draws which
all agree do not certify is known before any draw and stands apart.
"""

import argparse
import os
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from provenance import QUICK, ROOT, as_lines, commit, provenance, save
from stochade import data as images_of
from stochade.certify import Gaussian, RateCode, Smoothing, decide, largest
from stochade.certify.confidence import ceiling, lower_bound
from stochade.certify.sequential_plan import looks_up_to
from stochade.certify.votes import Voter
from stochade.models.encoded import Encoded, FrameMean
from stochade.models.noisy import NoisyInput
from stochade.nn.encoders import BernoulliRate
from stochade.randomness import forked, untouched
from stochade.train import train

MOST, SELECTION, ALPHA, BATCH = 100_000, 100, 0.001, 1000
L2_RADII, L1_RADII, FRAMES = (0.25, 0.5, 0.75, 1.0), (0.03, 0.06, 0.09, 0.12), 4
RULES = {
    "spending": {"method": "spending"},
    "spending, futility 0.001": {"method": "spending", "futility": 0.001},
    "betting": {"method": "betting"},
}


class Kept(Voter):
    """Draws that are made once: every rule sees the same ones."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.known: dict[tuple, torch.Tensor] = {}

    def block(self, purpose, index, draws):
        key = (purpose, index, draws)
        if key not in self.known:
            self.known[key] = super().block(*key)
        return self.known[key]

    def all_votes(self, chosen: int) -> int:
        """Votes for a class of all draws that a sequential test could ask for."""
        votes = drawn = index = 0
        for n in looks_up_to(MOST):
            while drawn < n:
                size = min(self.batch, n - drawn)
                votes += int((self.block("sequential", index, size) == chosen).sum())
                drawn, index = drawn + size, index + 1
        return votes


def small_cnn(side: int) -> nn.Module:
    last = ((side + 1) // 2 + 1) // 2
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(), nn.Flatten(),
        nn.Linear(32 * last * last, 10),
    )  # fmt: skip


def trained(data: str, smoothing: Smoothing) -> nn.Module:
    """The network that is smoothed, in eval mode."""
    rows, checks = images_of.load(data, "train"), images_of.load(data, "validation").take(200, seed=0)
    if len(rows) > 10_000:
        rows = rows.take(10_000, seed=0)
    with forked(0):
        body = small_cnn(rows.shape[-1])
        if isinstance(smoothing, Gaussian):
            model = NoisyInput(body, smoothing.sigma)
        else:
            model = Encoded(BernoulliRate(FRAMES), FrameMean(body))
    epochs = 40 if data == "digits" else 3
    train(model, rows, checks, epochs=epochs, batch=50, lr=2e-3, seed=0, progress=False)
    return (body if isinstance(smoothing, Gaussian) else model).eval()


def case(data: str, smoothing: Smoothing, radii: tuple[float, ...], examples: int) -> dict:
    start = time.process_time()
    model, test = trained(data, smoothing), images_of.load(data, "test").take(examples, seed=0)
    x, y = (torch.as_tensor(part) for part in test[:])
    rows = []
    with untouched(model):
        for i in range(len(x)):
            voter = Kept(model, smoothing, x[i : i + 1], 0, i, BATCH)
            chosen = int(voter.votes("selection", SELECTION, 10).argmax())
            votes = voter.all_votes(chosen)
            reach = smoothing.radius(ceiling(MOST, ALPHA), x[i])
            reached = smoothing.radius(lower_bound(votes, MOST, ALPHA), x[i])
            row = {"label": int(y[i]), "chosen": chosen, "votes": votes, "fixed": [reached >= r for r in radii]}
            row["in reach"] = [reach >= r for r in radii]
            for name, rule in RULES.items():
                told = [decide(voter, 10, r, selection=SELECTION, most=MOST, alpha=ALPHA, **rule) for r in radii]
                whole = largest(voter, 10, radii, selection=SELECTION, most=MOST, alpha=ALPHA, **rule)
                row[name] = {
                    "certified": [one.certified for one in told],
                    "draws": [one.draws for one in told],
                    "grid": {"radius": whole.radius, "draws": whole.draws},
                }
            rows.append(row)
    told = {"data": data, "smoothing": smoothing.describe(), "radii": list(radii), "rows": rows}
    return told | {"summary": summary(rows, radii), "seconds": time.process_time() - start}


def counted(rows: list[dict], rule: str, k: int) -> tuple[np.ndarray, ...]:
    """Rows in reach of radius k: draws made, draws with undecided ones at full n, outcomes, fixed decisions."""
    reached = [row for row in rows if row["in reach"][k]]
    made = np.array([row[rule]["draws"][k] for row in reached])
    outcomes = [row[rule]["certified"][k] for row in reached]
    full = np.where([one is None for one in outcomes], SELECTION + MOST, made)
    return made, full, np.array([-1 if one is None else int(one) for one in outcomes]), np.array(
        [row["fixed"][k] for row in reached], dtype=bool
    )  # fmt: skip


def told_of(parts: list[tuple[np.ndarray, ...]]) -> dict:
    made, full, outcome, fixed = (np.concatenate(column) for column in zip(*parts, strict=True))
    if not len(full):
        return {"decisions": 0}
    yes = outcome == 1
    return {
        "decisions": len(full), "mean": float(full.mean()), "median": float(np.median(full)),
        "90th percentile": float(np.quantile(full, 0.9)), "mean made": float(made.mean()),
        "saving": (SELECTION + MOST) / float(full.mean()), "fixed certified": int(fixed.sum()),
        "certified": int(yes.sum()), "refuted": int((outcome == 0).sum()), "undecided": int((outcome < 0).sum()),
        "agree": float((yes == fixed).mean()), "fixed only": int((fixed & ~yes).sum()),
        "sequential only": int((yes & ~fixed).sum()),
    }  # fmt: skip


def summary(rows: list[dict], radii: tuple[float, ...]) -> dict:
    told = {}
    for rule in RULES:
        parts = [counted(rows, rule, k) for k in range(len(radii))]
        grid = np.array([row[rule]["grid"]["draws"] for row in rows])
        told[rule] = {
            "by radius": [told_of([part]) for part in parts], "all": told_of(parts),
            "grid": {"mean": float(grid.mean()), "90th percentile": float(np.quantile(grid, 0.9))},
        }  # fmt: skip
    return told


def name_of(one: dict) -> str:
    about = one["smoothing"]
    return f"{one['data']}, " + (f"sigma {about['sigma']:g}" if "sigma" in about else f"rate code, {FRAMES} frames")


def line(first: list[str], t: dict) -> str:
    if not t["decisions"]:
        return f"| {' | '.join(first)} | " + " | ".join(["out of reach", *["-"] * 8]) + " |"
    cells = [
        f"{t['mean']:,.0f}", f"{t['90th percentile']:,.0f}", f"{t['saving']:.1f}", f"{t['decisions']}",
        f"{t['certified']} / {t['refuted']} / {t['undecided']}", f"{t['fixed certified']}", f"{100 * t['agree']:.2f}",
        f"{t['fixed only']}", f"{t['sequential only']}",
    ]  # fmt: skip
    return f"| {' | '.join([*first, *cells])} |"


def markdown(result: dict) -> str:
    columns = (
        "mean draws | 90th percentile | saving | decisions | certified / refuted / undecided | fixed: certified | "
        "same, % | fixed only | sequential only"
    )
    text = [
        "# Draws of sequential certificates",
        "",
        f"Fixed: {MOST:,} draws and {SELECTION} to choose the class, for every image and radius, alpha {ALPHA}.",
        "Sequential: the same alpha, at most the same draws, on the same stream of draws. Undecided ones count as",
        f"{MOST + SELECTION:,} draws; *saving* is {MOST + SELECTION:,} over the mean. *Same*: share of decisions",
        "(certified or not) that equal the fixed procedure's; the last columns say which of the two certified alone.",
        "Radii that 100,000 unanimous draws do not certify are left out, image by image.",
        "",
        f"| network | rule | {columns} |",
        "|" + "-|" * 11,
    ]
    for one in [*result["cases"], {"summary": {rule: {"all": t} for rule, t in result["all"].items()}}]:
        name = name_of(one) if "data" in one else "**all**"
        text += [line([name, rule], told["all"]) for rule, told in one["summary"].items()]
    text += ["", "Radius by radius (spending):", "", f"| network | radius | {columns} |", "|" + "-|" * 11]
    for one in result["cases"]:
        for radius, told in zip(one["radii"], one["summary"]["spending"]["by radius"], strict=True):
            text.append(line([name_of(one), f"{radius:g}"], told))
    text += [
        "",
        "The largest radius of the grid, in one run of draws (mean, 90th percentile; draws that were made):",
        "",
    ]
    for one in result["cases"]:
        told = [f"{rule} {t['grid']['mean']:,.0f}, {t['grid']['90th percentile']:,.0f}" for rule, t in
                one["summary"].items()]  # fmt: skip
        text.append(f"- {name_of(one)}: {'; '.join(told)}")
    return "\n".join([*text, "", "## Provenance", "", *as_lines(result["provenance"])]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--quick", action="store_true", help="a smoke run on a few images")
    arguments = parser.parse_args()
    out = arguments.out or (QUICK if arguments.quick else ROOT / "results" / "evidence")
    wanted = [("digits", Gaussian(0.25), L2_RADII, 100), ("digits", Gaussian(0.5), L2_RADII, 100)]
    wanted += [("digits", RateCode(FRAMES), L1_RADII, 20)]
    if os.environ.get("STOCHADE_DATA"):
        wanted += [("mnist", Gaussian(0.25), L2_RADII, 12), ("mnist", Gaussian(0.5), L2_RADII, 12)]
    facts, cases = provenance(commit=commit(), seed=0), []
    for data, smoothing, radii, examples in wanted:
        cases.append(case(data, smoothing, radii, 4 if arguments.quick else examples))
        parts = {rule: [counted(c["rows"], rule, k) for c in cases for k in range(len(c["radii"]))] for rule in RULES}
        result = {"cases": cases, "all": {rule: told_of(part) for rule, part in parts.items()}, "provenance": facts}
        save(out, "certify_sequential", result, markdown(result))


if __name__ == "__main__":
    main()
