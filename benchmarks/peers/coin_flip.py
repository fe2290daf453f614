"""What stochade and its peers report on a classifier that is wrong in 10 % of draws, whatever the input.

One command, one model, the same 1000 images: `.venv/bin/python benchmarks/peers/coin_flip.py`. The peers run in
.venv-peers (setup.sh); all images they return are scored here, on the same fresh draws. The budget is 1e-6, which
the margins exclude by a factor that is printed, so the accuracy under any attack is 0.90.

Writes results/peers/coin_flip.json and .md.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from models import coin_flip_problem, margin_over_budget

from provenance import ROOT, as_lines, commit, provenance, save
from workers import PEERS, environment

EPS = 1e-6
ERROR = 0.1
SEEDS = 5
DRAWS = 20  # per example in evaluate
FRESH = 1000  # per example when returned images are scored again


@torch.no_grad()
def fresh_accuracy(model, images: Tensor, labels: Tensor) -> float:
    """Mean accuracy of one prediction over FRESH draws, on seeds that no attack has seen."""
    torch.manual_seed(20_261_121)
    right = [(model(images).argmax(1) == labels).double().mean() for _ in range(FRESH)]
    return float(torch.stack(right).mean())


def stochade_rows(model, images: Tensor, labels: Tensor) -> list[dict]:
    """Stochade's own attacks and its union, scored as `evaluate` does."""
    from stochade.attacks import FGSM, PGD, Backprop, Linf
    from stochade.evaluate.run import evaluate

    threat = Linf(EPS)
    attacks = {
        "FGSM": FGSM(threat),
        "PGD, 40 steps": PGD(threat, steps=40),
        "PGD, 40 steps, 20 draws per gradient": PGD(threat, steps=40, gradient=Backprop(20)),
    }
    runs = [evaluate(model, images, labels, attacks, draws=DRAWS, seed=s, show_progress=False) for s in range(SEEDS)]
    rows = []
    for name in ["clean", *attacks, "worst"]:
        row: dict = {"library": "stochade", "attack": "worst of all of these" if name == "worst" else name}
        for kind in ("single", "vote", "all"):
            scores = [records.score(name, kind) for records in runs]
            row[kind] = [{"value": s.value, "low": s.low, "high": s.high} for s in scores]
        if name in attacks:
            row["fresh"] = fresh_accuracy(model, attacks[name](model, images, labels, seed=0), labels)
        rows.append(row)
    return rows


def peer_rows(model, images: Tensor, labels: Tensor) -> tuple[list[dict], dict]:
    """What the peers reported, and the accuracy of what they returned."""
    if not PEERS.exists():
        print("no .venv-peers: run benchmarks/peers/setup.sh first; only stochade is measured", file=sys.stderr)
        return [], {}
    here = Path(__file__).resolve().parent
    with tempfile.TemporaryDirectory() as folder:
        arrays, report = Path(folder) / "images.npz", Path(folder) / "report.json"
        command = [str(PEERS), str(here / "coin_flip_peers.py"), str(arrays), str(report), str(SEEDS)]
        subprocess.run(command, check=True, env=environment())
        found, told = np.load(arrays, allow_pickle=False), json.loads(report.read_text())
        for row in told["entries"]:
            if str(row["index"]) in found:
                adversarial = torch.from_numpy(found[str(row["index"])])  # [seeds, N, ...]
                row["fresh"] = fresh_accuracy(model, adversarial[0], labels)
                row["moved"] = float((adversarial - images).abs().max())
            del row["index"]
    return told["entries"], told["versions"]


def percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def points(difference: float) -> str:
    """A difference of accuracies in percentage points, without a negative zero."""
    return f"{round(100 * float(difference), 1) + 0.0:+.1f}"


def spread(values: list[float]) -> str:
    """Mean and range over the seeds."""
    mean, low, high = (100 * f(values) for f in (np.mean, min, max))
    return f"{mean:.1f} % [{low:.1f}, {high:.1f}]"


def markdown(result: dict) -> str:
    lines = [
        "# Coin flip: robust accuracy of a classifier that errs in 10 % of draws",
        "",
        f"{result['examples']} images, linf {EPS:g}. The linear part's margins exceed what the budget can take off",
        f"them by a factor of at least {result['margin over budget']:,.0f}: no input in the ball changes its answer.",
        "**The accuracy of one prediction under any attack is 90.0 %.**",
        "",
        "## Peers",
        "",
        f"*Reported* is the number that comes with the attack: mean [least, most] over {SEEDS} seeds. *Fresh*",
        f"is the accuracy, over {FRESH} fresh draws per example, of the very images it returned (first seed).",
        "Where a library reports nothing, its user predicts once, which is right up to sampling.",
        "",
        "| library | attack | reported | off by, points | fresh | where the number comes from |",
        "|-|-|-|-|-|-|",
    ]
    for row in result["peers"]:
        cells = [row["library"], row["attack"]]
        if "reported" in row:
            cells += [
                spread(row["reported"]),
                points(np.mean(row["reported"]) - result["truth"]),
                percent(row["fresh"]),
                row["source"],
            ]
        else:
            cells += ["", "", "", f"did not run: {row.get('missing', row.get('error'))}"]
        lines.append("| " + " | ".join(cells) + " |")
    if not result["peers"]:
        lines.append("| none: there is no .venv-peers | | | | | |")
    lines += [
        "",
        "## Stochade",
        "",
        f"{DRAWS} scoring draws per example. *single* is the accuracy of one prediction, the number to compare",
        "with 90 %; its 95 % interval is that of the first seed, and the last columns show mean [least, most] over",
        f"all {SEEDS} seeds. *all* (right in all {DRAWS} draws: an attacker who may retry) is another quantity with",
        f"a name of its own; its true value here is 0.9^{DRAWS} = {100 * (1 - ERROR) ** DRAWS:.1f} %. *worst* picks",
        f"the attack per example on {DRAWS} other draws.",
        "",
        "| attack | single, first seed | off by, points | fresh | single, every seed | vote | all |",
        "|-|-|-|-|-|-|-|",
    ]
    for row in result["stochade"]:
        first = row["single"][0]
        every = {kind: [s["value"] for s in row[kind]] for kind in ("single", "vote", "all")}
        cells = [
            row["attack"],
            f"{percent(first['value'])} [{100 * first['low']:.1f}, {100 * first['high']:.1f}]",
            points(first["value"] - result["truth"]),
            percent(row["fresh"]) if "fresh" in row else "",
            *(spread(every[kind]) for kind in ("single", "vote", "all")),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "## Provenance", "", *as_lines(result["provenance"])]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "peers")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    source = commit()
    model, images, labels = coin_flip_problem()
    model.eval()
    factor = margin_over_budget(model, images, labels, EPS)
    if factor <= 1:
        raise SystemExit(f"the margins no longer exclude the budget (factor {factor:.2f}): the truth is not 90 %")
    peers, versions = peer_rows(model, images, labels)
    result = {
        "truth": 1 - ERROR,
        "eps": EPS,
        "examples": len(images),
        "margin over budget": factor,
        "peers": peers,
        "stochade": stochade_rows(model, images, labels),
        "provenance": provenance(commit=source, seeds=f"0 to {SEEDS - 1}", peers=versions),
    }
    save(arguments.out, "coin_flip", result, markdown(result))


if __name__ == "__main__":
    main()
