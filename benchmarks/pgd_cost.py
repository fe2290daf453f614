"""What PGD-10 costs beyond ten forwards and backwards, for stochade and (where .venv-peers exists) its peers.

    .venv/bin/python benchmarks/pgd_cost.py [--repeats 15] [--out results/cost]

Cases: (a) nothing falls, so that all ten steps are due for every image; (b) a CNN trained on MNIST at linf 0.3, where
most images fall at once. Every timing stands between two floors of its own process; contenders alternate and their
order rotates. Each case is measured with two heaps, because glibc's default one hands memory back to the system and
fetches it again at every step, by luck more or less often: as the system has it, and steady (memory is kept).
Writes pgd_cost.json and .md.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from cases import write_case
from provenance import ROOT, as_lines, commit, provenance, save
from workers import Worker, both

sys.path.insert(0, str(Path(__file__).resolve().parent / "peers"))
from models import Network
from networks import data_folder, problem

SEED = 0
BATCH = 256
TINY, MNIST_EPS = 1e-6, 0.3
BARS = {"nothing falls": 1.08, "mnist": 0.5}  # CPU / floor, median
JUDGED = {"nothing falls": ["stochade", "stochade drop_fooled=False"], "mnist": ["stochade"]}
OURS = ["stochade", "stochade keep=last", "stochade drop_fooled=False", "floor again"]
NAMES = {"ours": OURS, "theirs": ["torchattacks", "foolbox", "ART", "adv-lib"]}
CASES = {
    "nothing falls": "(a) Nothing falls: linf 1e-6, labels are the model's own predictions",
    "mnist": "(b) CNN trained on MNIST, 256 test images, linf 0.3",
}
HEAPS = {
    "steady": "Heap kept (MALLOC_TRIM_THRESHOLD_ and MALLOC_MMAP_THRESHOLD_ at 1e9)",
    "default": "Heap as the system has it",
}
PROCESSES = 3  # fresh processes over which the repeats are spread: heap layout is luck that lasts a process


@torch.no_grad()
def synthetic() -> tuple[nn.Module, Tensor, Tensor]:
    """An untrained network on saturated random images, with its own predictions for labels."""
    torch.manual_seed(SEED)
    model = Network().eval()
    images = (torch.rand(BATCH, 1, 28, 28) < 0.2).float()
    return model, images, model(images).argmax(1)


def start(folder: Path, heap: str, sides: dict[str, list[str]]) -> dict[str, Worker]:
    """A process for every environment that is there; contender -> its process."""
    workers = both("cost_worker.py", folder, heap == "steady")
    return {name: workers[side] for side, names in sides.items() if side in workers for name in names}


def measure(
    folder: Path, case: str, heap: str, repeats: int, sides: dict[str, list[str]] = NAMES
) -> tuple[dict[str, list[dict]], dict]:
    """{contender: timings} and the versions: rounds in rotated order, in PROCESSES fresh processes one after the
    other, each with one warm-up of every contender, whose passes are counted."""
    results: dict[str, list[dict]] = {}
    facts: dict = {}
    for part in range(PROCESSES):
        workers = start(folder, heap, sides)
        distinct = list({id(w): w for w in workers.values()}.values())
        facts |= {k: v for w in distinct for k, v in w.ask(hello=True)["versions"].items()}
        warm = {name: worker.ask(case=case, contender=name, count=True) for name, worker in workers.items()}
        for name in [name for name, answer in warm.items() if "missing" in answer]:
            results[name] = [warm[name]]
            del workers[name]
        names = list(workers)
        for turn in range(part * repeats // PROCESSES, (part + 1) * repeats // PROCESSES):
            shift = turn % len(names)
            for name in names[shift:] + names[:shift]:
                told = workers[name].ask(case=case, contender=name)
                results.setdefault(name, []).append(told | warm[name])
        for worker in distinct:
            worker.close()
        print(f"{case}, {heap} heap: {part + 1} of {PROCESSES}", file=sys.stderr)
    return results, facts


def summary(timings: list[dict]) -> dict:
    if "missing" in timings[0]:
        return timings[0]

    def spread(key: str) -> dict:
        values = [t[key] for t in timings]
        return {"median": float(np.median(values)), "min": min(values), "max": max(values)}

    keys = ("cpu", "wall", "floor cpu seconds", "floors disagree")
    return {key: spread(key) for key in keys} | {
        "accuracy after": timings[-1]["accuracy"],
        "left gradients": any(t["left gradients"] for t in timings),
        "repeats": len(timings),
        "forwards": timings[-1]["forwards"],
        "backwards": timings[-1]["backwards"],
        "cpu ratios": [round(t["cpu"], 4) for t in timings],
        "wall ratios": [round(t["wall"], 4) for t in timings],
    }


def table(rows: dict) -> list[str]:
    lines = ["| | CPU / floor | wall / floor | passes | accuracy | dirty |", "|-|-|-|-|-|-|"]
    for name, s in rows.items():
        if "missing" in s:
            lines.append(f"| {name} | missing: {s['missing']} | | | | |")
            continue
        ratios = [f"{s[key]['median']:.3f} [{s[key]['min']:.2f}, {s[key]['max']:.2f}]" for key in ("cpu", "wall")]
        last = [f"{s['forwards']:.1f} + {s['backwards']:.1f}", "", ""]
        if not name.endswith("floor again"):
            last[1:] = [f"{100 * s['accuracy after']:.1f} %", "yes" if s["left gradients"] else "no"]
        lines.append("| " + " | ".join([name, *ratios, *last]) + " |")
    return lines


def verdict(rows: dict, name: str, case: str) -> str:
    median = rows[name]["cpu"]["median"]
    return f"{name}: {'met' if median <= BARS[case] else 'MISSED'} ({median:.3f})."


def markdown(result: dict) -> str:
    lines = [
        "# Cost of PGD-10 against its floor",
        "",
        "Floor: ten forwards and backwards to the images of the same model, measured in the same process just",
        "before and just after each attack. Figures are attack / floor, median [least, most]; process CPU time",
        "decides, wall time stands beside it. conv32-5x5s2, conv64-5x5s2, fc100, fc10; batch 256; linf, random",
        "start, ten steps of eps/4; one thread. *Passes*: forwards + backwards per image that the model saw (probes",
        "too); *accuracy* is what one prediction leaves; *dirty* is whether gradients stayed in the user's model.",
        "*floor again* times the floor like an attack: its distance from 1 is the noise of the measurement.",
        "",
        "The heap matters more than any attack loop: as glibc has it, memory goes back to the system and returns at",
        "every step, more or less often by luck. So both are measured: the kept heap shows what a loop computes.",
    ]
    for case, about in CASES.items():
        lines += ["", f"## {about}"]
        if case not in result["cases"]:
            lines += ["", "Not measured: MNIST was not found (STOCHADE_DATA)."]
            continue
        for heap, about_heap in HEAPS.items():
            rows = result["cases"][case][heap]
            floor = rows["stochade"]["floor cpu seconds"]["median"]
            lines += ["", f"{about_heap}; the floor takes {floor:.3f} s of CPU time:", "", *table(rows), ""]
            verdicts = " ".join(verdict(rows, name, case) for name in JUDGED[case])
            lines.append(f"Bar: at most {BARS[case]:.2f}. {verdicts}")
    lines += ["", "## Provenance", "", *as_lines(result["provenance"])]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "cost")
    arguments = parser.parse_args()
    if arguments.repeats < PROCESSES:
        parser.error(f"--repeats must be at least {PROCESSES}")
    torch.set_num_threads(1)
    facts: dict = {"commit": commit(), "seed": SEED, "repeats": arguments.repeats, "processes": PROCESSES}
    result: dict = {"cases": {}, "bars": BARS}
    with tempfile.TemporaryDirectory() as text:
        folder, cases = Path(text), ["nothing falls"]
        write_case(folder, cases[0], *synthetic(), eps=TINY)
        if data_folder("mnist") is None:
            print("MNIST was not found under STOCHADE_DATA: case (b) is left out", file=sys.stderr)
        else:
            model, images, labels, accuracy = problem("mnist", BATCH)
            write_case(folder, "mnist", model, images, labels, eps=MNIST_EPS)
            cases.append("mnist")
            facts["MNIST CNN"] = f"{100 * accuracy:.2f} % on the 10,000 test images"
        for case in cases:
            result["cases"][case] = {}
            for heap in HEAPS:
                timings, facts["versions"] = measure(folder, case, heap, arguments.repeats)
                result["cases"][case][heap] = {name: summary(t) for name, t in timings.items()}
    result["provenance"] = provenance(**facts)
    save(arguments.out, "pgd_cost", result, markdown(result))


if __name__ == "__main__":
    main()
