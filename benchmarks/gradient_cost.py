"""What APGD and C&W cost beyond the forwards and backwards of their steps, for stochade and its peers.

    .venv/bin/python benchmarks/gradient_cost.py [--repeats 9] [--quick]

The case in which nothing falls, as in pgd_cost.py and by its protocol: every timing stands between two floors of its
own process (as many forwards and backwards as steps), contenders alternate, processes are restarted, and both heaps
are measured. APGD: ten steps of cross entropy, linf 1e-6. C&W: fifty steps, one search step, c = 1, rate 0.01. ART's
C&W, which takes twenty times as long, is timed once per process and with the kept heap only. Writes
results/cost/gradient_cost.json and .md.
"""

import argparse
import tempfile
from pathlib import Path

import torch

from cases import write_case
from pgd_cost import HEAPS, PROCESSES, SEED, TINY, measure, summary, synthetic, table
from provenance import QUICK, ROOT, as_lines, commit, provenance, save

CASE = "nothing falls"
PLAN: dict[str, dict[str, list[str]]] = {
    "APGD": {
        "ours": ["APGD stochade", "floor again"],
        "theirs": ["APGD auto-attack", "APGD adv-lib", "APGD torchattacks", "APGD ART"],
    },
    "C&W": {
        "ours": ["C&W stochade", "C&W floor again"],
        "theirs": ["C&W adv-lib", "C&W foolbox", "C&W torchattacks"],
    },
}
SLOW = {"C&W": {"ours": [], "theirs": ["C&W ART"]}}
ABOUT = {"APGD": "APGD, cross entropy, ten steps, linf 1e-6", "C&W": "C&W l2, fifty steps, one search step"}
BARS = {"APGD": 1.10, "C&W": 1.12}


def verdict(family: str, rows: dict) -> str:
    ours = rows.get(f"{family} stochade", {"missing": ""})
    if "missing" in ours:
        return f"Bar: at most {BARS[family]:.2f}: open."
    median = ours["cpu"]["median"]
    return f"Bar: at most {BARS[family]:.2f}: {'met' if median <= BARS[family] else 'MISSED'} ({median:.3f})."


def markdown(result: dict) -> str:
    lines = [
        "# Cost of APGD and C&W against their floor",
        "",
        "Floor: as many forwards and backwards to the images of the same model as the attack takes steps, measured",
        "in the same process just before and just after it. Figures are attack / floor, median [least, most];",
        "process CPU time decides. The network, the batch of 256 and the two heaps are those of pgd_cost. *Passes*:",
        "forwards + backwards per image that the model really saw, probes included: what exceeds the steps is work",
        "that the floor does not have. *floor again* times the floor itself: its distance from 1 is the noise.",
    ]
    for family, heaps in result["families"].items():
        lines += ["", f"## {ABOUT[family]}"]
        for heap, rows in heaps.items():
            lines += ["", f"{HEAPS[heap]}:", "", *table(rows), "", verdict(family, rows)]
    return "\n".join([*lines, "", "## Provenance", "", *as_lines(result["provenance"])]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--families", nargs="+", choices=list(PLAN), default=list(PLAN))
    parser.add_argument("--quick", action="store_true", help="one round per process, without ART's C&W: a smoke run")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "cost")
    arguments = parser.parse_args()
    repeats = PROCESSES if arguments.quick else arguments.repeats
    if repeats < PROCESSES:
        parser.error(f"--repeats must be at least {PROCESSES}")
    torch.set_num_threads(1)
    facts: dict = {"commit": commit(), "seed": SEED, "repeats": repeats, "processes": PROCESSES}
    result: dict = {"families": {}, "bars": BARS}
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        write_case(folder, CASE, *synthetic(), eps=TINY)
        for family in arguments.families:
            result["families"][family] = {}
            for heap in ["steady"] if arguments.quick else HEAPS:
                timings, facts["versions"] = measure(folder, CASE, heap, repeats, PLAN[family])
                if family in SLOW and heap == "steady" and not arguments.quick:
                    timings |= measure(folder, CASE, heap, PROCESSES, SLOW[family])[0]
                result["families"][family][heap] = {name: summary(told) for name, told in timings.items()}
    result["provenance"] = provenance(**facts)
    save(QUICK if arguments.quick else arguments.out, "gradient_cost", result, markdown(result))


if __name__ == "__main__":
    main()
