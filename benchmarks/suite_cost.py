"""What the suite costs beside the official AutoAttack: the same components and budgets, and the reordered suite.

    .venv/bin/python benchmarks/suite_cost.py [--images 128] [--repeats 3] [--quick]

Four networks at their usual linf budget. One thread and one process per environment; contenders alternate, and the
order turns round after each round. Robust accuracy comes from the returned images, scored here. Writes
results/cost/suite_cost.json and .md.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent / "peers"))
from networks import RECIPES, problem

from cases import write_case
from provenance import QUICK, ROOT, as_lines, commit, provenance, save
from scoring import broken, wrong
from workers import both

CONTENDERS = {
    "AutoAttack standard": ("standard", "auto-attack"),
    "stochade standard": ("standard", "stochade"),
    "stochade reordered": ("fast", "stochade"),
}
OFFICIAL = "AutoAttack standard"
BARS = {"undefended": 0.2, "adversarial": 1.0, "reordered": 0.6}  # CPU time over the official suite's
SLACK = 0.002  # robust accuracy of the reordered suite above the official one's


def measure(names: list[str], images: int, repeats: int) -> tuple[dict, dict]:
    """{network: {contender: {"cpu": [...], "wall": [...], "right": [...]}}} and the versions."""
    rows: dict = {}
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        workers = both("attack_worker.py", folder)
        told = [worker.ask(hello=True)["versions"] for worker in workers.values()]
        for name in names:
            model, x, y, _ = problem(name, images)
            write_case(folder, name, model, x, y)
            eps, rows[name] = RECIPES[name].eps, {}
            for turn in range(repeats):
                for label in list(CONTENDERS)[:: -1 if turn % 2 else 1]:
                    attack, library = CONTENDERS[label]
                    side, path = "ours" if library == "stochade" else "theirs", folder / "images.npy"
                    if side not in workers:
                        continue
                    answer = workers[side].ask(
                        case=name, attack=attack, library=library, uncounted=True, save=str(path),
                        options={"norm": "linf", "eps": eps},
                    )  # fmt: skip
                    entry = rows[name].setdefault(label, {"cpu": [], "wall": [], "right": []})
                    if "cpu" not in answer:
                        entry |= answer
                        continue
                    fell = broken(model, torch.from_numpy(np.load(path)), x, y, "linf", eps) | wrong(model, x, y)
                    entry["right"].append(int((~fell).sum()))
                    entry["cpu"].append(round(answer["cpu"], 3))
                    entry["wall"].append(round(answer["wall"], 3))
                    print(f"{name}, {label}: {answer['cpu']:.1f} s of CPU time", file=sys.stderr, flush=True)
        for worker in workers.values():
            worker.close()
    return rows, {key: value for versions in told for key, value in versions.items()}


def verdict(name: str, label: str, entries: dict, images: int) -> str:
    ours, theirs = entries[label], entries.get(OFFICIAL, {"cpu": []})
    if not ours["cpu"] or not theirs["cpu"] or label == OFFICIAL:
        return ""
    ratio = float(np.median(ours["cpu"]) / np.median(theirs["cpu"]))
    bar = BARS["adversarial" if "adversarial" in name else "undefended"]
    met = ratio <= bar
    if label == "stochade reordered":
        bar = BARS["reordered"]
        met = ratio <= bar and np.mean(ours["right"]) - np.mean(theirs["right"]) <= SLACK * images + 1e-9
    return f"{'met' if met else 'MISSED'} (bar {bar:g})"


def markdown(result: dict) -> str:
    images = result["images"]
    lines = [
        "# Cost of a whole suite",
        "",
        f"linf at the usual budget, {images} images, one thread, medians over {result['repeats']} alternated runs in",
        "one process per environment. *ratio*: CPU time over that of the official AutoAttack. *standard* has its",
        "components and budgets: APGD-CE (100 steps), targeted APGD (9 targets), targeted FAB (9 targets), Square",
        "(5000 queries), each on what the ones before left. *reordered*: the same aim by another order; bar: at most",
        "0.6 of the time with robust accuracy at most 0.2 points higher.",
        "",
        "| network | suite | CPU seconds | ratio | wall seconds | wall ratio | robust accuracy, % | bar |",
        "|-|-|-|-|-|-|-|-|",
    ]
    for name, entries in result["networks"].items():
        official = entries.get(OFFICIAL, {})
        for label, entry in entries.items():
            if not entry["cpu"]:
                lines.append(
                    f"| {RECIPES[name].about} | {label} | {entry.get('missing', entry.get('error'))} | | | | | |"
                )
                continue
            cells = [RECIPES[name].about, label]
            for key in ("cpu", "wall"):
                spent = float(np.median(entry[key]))
                base = float(np.median(official[key])) if official.get(key) else float("nan")
                cells += [f"{spent:.1f} [{min(entry[key]):.1f}, {max(entry[key]):.1f}]", f"{spent / base:.3f}"]
            cells += [f"{100 * float(np.mean(entry['right'])) / images:.1f}", verdict(name, label, entries, images)]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", "## Provenance", "", *as_lines(result["provenance"])]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--networks", nargs="+", choices=list(RECIPES), default=list(RECIPES))
    parser.add_argument("--quick", action="store_true", help="16 images of one network, once: a smoke run")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "cost")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    names, images, repeats = arguments.networks, arguments.images, arguments.repeats
    if arguments.quick:
        names, images, repeats = ["mnist"], 16, 1
    source = commit()
    rows, versions = measure(names, images, repeats)
    facts = provenance(commit=source, seed=0, versions=versions)
    result = {"images": images, "repeats": repeats, "networks": rows, "bars": BARS, "provenance": facts}
    save(QUICK if arguments.quick else arguments.out, "suite_cost", result, markdown(result))


if __name__ == "__main__":
    main()
