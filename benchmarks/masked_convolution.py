"""What filters of each example's own cost beside one shared convolution: time and memory of forward and backward.

    .venv/bin/python benchmarks/masked_convolution.py [--repeats 30] [--out results/cost]

5x5 filters, batch 50, one thread; gradients to input, weights and masks. The floor is the convolution with
shared weights (gradients to input and weights). Every timing stands between two floors of its own process; contenders
alternate and their order rotates; each case is measured in fresh processes and with two heaps (see pgd_cost.py).
Memory is the peak of the resident set over what was resident before. Linux only.
Writes masked_convolution.json and .md.
"""

import argparse
import ctypes
import gc
import json
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from provenance import QUICK, ROOT, as_lines, provenance, save
from stochade import native
from stochade.nn.masked_convolution import conv2d_masked, conv2d_per_example
from workers import environment

SEED, BATCH, KERNEL, PADDING, PROCESSES = 0, 50, 5, 2, 3
CASES = {  # name -> inputs, outputs, size, stride
    "1->32, 28x28, stride 1": (1, 32, 28, 1),
    "1->32, 28x28, stride 2": (1, 32, 28, 2),
    "32->64, 14x14, stride 1": (32, 64, 14, 1),
    "32->64, 14x14, stride 2": (32, 64, 14, 2),
}
BARS = {name: 0.4 if case[0] == 1 else 1.5 for name, case in CASES.items()}
MEMORY_BAR = 2.0
HEAPS = {
    "steady": "Heap kept (MALLOC_TRIM_THRESHOLD_ and MALLOC_MMAP_THRESHOLD_ at 1e9)",
    "default": "Heap as the system has it",
}
FLOOR, OURS = "shared", "stochade (chosen by shape)"


def factored(x: Tensor, weight: Tensor, mask: Tensor, stride: int, padding: int) -> Tensor:
    """Masks that are products of a gate per input channel and one per output channel: scaled channels."""
    inside, outside = mask[:, 0, :, 0, 0, None, None], mask[:, :, 0, 0, 0, None, None]
    return F.conv2d(x * inside, weight, None, stride, padding) * outside


CONTENDERS: dict[str, Callable[[Tensor, Tensor, Tensor, int, int], Tensor]] = {
    FLOOR: lambda x, weight, mask, stride, padding: F.conv2d(x, weight, None, stride, padding),
    OURS: conv2d_masked,
    "native": partial(conv2d_masked, method="native"),
    "grouped": partial(conv2d_masked, method="grouped"),
    "patches": partial(conv2d_masked, method="unfold"),
    "ordinary grouped convolution": lambda x, w, m, s, p: conv2d_per_example(x, w * m, s, p, "grouped"),
    "factored mask": factored,
}


class Runner:
    """Tensors of a case, and one forward and backward of a contender."""

    def __init__(self, case: str):
        inputs, outputs, size, self.stride = CASES[case]
        generator = torch.Generator().manual_seed(SEED)
        self.x = torch.randn(BATCH, inputs, size, size, generator=generator, requires_grad=True)
        self.weight = torch.randn(outputs, inputs, KERNEL, KERNEL, generator=generator, requires_grad=True)
        mask = torch.rand(BATCH, outputs, inputs, KERNEL, KERNEL, generator=generator) < 0.5
        self.mask = mask.float().requires_grad_()
        self.upstream = torch.randn(F.conv2d(self.x, self.weight, None, self.stride, PADDING).shape)

    def __call__(self, name: str) -> float:
        """Seconds of CPU time."""
        start = time.process_time()
        out = CONTENDERS[name](self.x, self.weight, self.mask, self.stride, PADDING)
        wanted = (self.x, self.weight) if name == FLOOR else (self.x, self.weight, self.mask)
        torch.autograd.grad(out, wanted, self.upstream)
        return time.process_time() - start

    def memory(self, name: str) -> int:
        """Bytes at the peak over what was resident before."""
        self(name)
        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        before = resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")
        self(name)
        return resident("VmHWM") - before


def resident(field: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return 1024 * int(line.split()[1])


def work(case: str, repeats: int) -> dict:
    """Ratios to the floor and seconds of the floor, of this process."""
    torch.set_num_threads(1)
    runner = Runner(case)
    names = [*CONTENDERS]
    for name in names * 2:
        runner(name)
    ratios: dict[str, list[float]] = {name: [] for name in names}
    floors = []
    for turn in range(repeats):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            before, taken, after = runner(FLOOR), runner(name), runner(FLOOR)
            ratios[name].append(2 * taken / (before + after))
            floors.append(before)
    memory = {name: [runner.memory(name) for _ in range(3)] for name in names}
    return {"ratios": ratios, "floor seconds": floors, "memory": memory}


def measure(case: str, heap: str, repeats: int) -> dict:
    parts = []
    for _ in range(PROCESSES):
        command = [sys.executable, __file__, "--worker", case, "--repeats", str(max(1, repeats // PROCESSES))]
        told = subprocess.run(command, env=environment(heap == "steady"), capture_output=True, text=True, check=True)
        parts.append(json.loads(told.stdout))
    print(f"{case}, {heap} heap", file=sys.stderr)
    rows = {}
    for name in CONTENDERS:
        values = [value for part in parts for value in part["ratios"][name]]
        memory = [value for part in parts for value in part["memory"][name]]
        rows[name] = {
            "time": {"median": float(np.median(values)), "min": min(values), "max": max(values)},
            "time ratios": [round(value, 4) for value in values],
            "memory bytes": float(np.median(memory)),
        }
    inputs, outputs, *_ = CASES[case]
    gradient = 4 * BATCH * outputs * inputs * KERNEL**2
    for row in rows.values():
        row["memory"] = row["memory bytes"] / rows[FLOOR]["memory bytes"]
        row["memory with gradient"] = row["memory bytes"] / (rows[FLOOR]["memory bytes"] + gradient)
    seconds = [value for part in parts for value in part["floor seconds"]]
    return {"floor seconds": float(np.median(seconds)), "mask gradient bytes": gradient, "contenders": rows}


def markdown(result: dict) -> str:
    lines = [
        "# Cost of filters of each example's own",
        "",
        "Forward and backward of a masked 5x5 convolution, batch 50, one thread: CPU time over that of a convolution",
        "with shared weights; median [least, most]. Gradients to input, weights and masks; the floor has no masks.",
        "*native* are the compiled kernels, *grouped* and *patches* the forms without a compiler; *ordinary* is a",
        "grouped convolution of weights times masks; *factored* scales channels of a shared convolution. *shared*",
        "timed like a contender shows the noise of the measurement. Memory is the",
        "peak over what was resident, over the floor's; the gradient of the masks, which all forms return, is more",
        "than the floor has in all at 32->64 (10.2 MB), so the last column adds it to the floor.",
    ]
    for case, heaps in result["cases"].items():
        for heap, told in heaps.items():
            floor = 1000 * told["floor seconds"]
            lines += ["", f"## {case}", "", f"{HEAPS[heap]}; the floor takes {floor:.1f} ms:", ""]
            lines += ["| | time / floor | memory / floor | memory / (floor + gradient of the masks) |", "|-|-|-|-|"]
            for name, row in told["contenders"].items():
                time_ = "{median:.2f} [{min:.2f}, {max:.2f}]".format(**row["time"])
                lines.append(f"| {name} | {time_} | {row['memory']:.2f} | {row['memory with gradient']:.2f} |")
            ours = told["contenders"][OURS]
            verdicts = [
                f"{what}: at most {bar:.1f}, {'met' if value <= bar else 'MISSED'} ({value:.2f})"
                for what, value, bar in (
                    ("time", ours["time"]["median"], BARS[case]),
                    ("memory", ours["memory"], MEMORY_BAR),
                    ("memory with the masks' gradient in the floor", ours["memory with gradient"], MEMORY_BAR),
                )
            ]
            lines += ["", f"Bars: {'; '.join(verdicts)}."]
    lines += ["", f"Compiled kernels: {result['kernels']['convolution']}."]
    lines += ["", "## Provenance", "", *as_lines(result["provenance"])]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "cost")
    parser.add_argument("--quick", action="store_true", help="a smoke run, written elsewhere")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(work(arguments.worker, arguments.repeats)))
        return
    repeats, out = (PROCESSES, QUICK) if arguments.quick else (arguments.repeats, arguments.out)
    torch.set_num_threads(1)
    result: dict = {"cases": {}, "bars": BARS | {"memory": MEMORY_BAR}, "kernels": native.status()}
    for case in CASES:
        result["cases"][case] = {heap: measure(case, heap, repeats) for heap in HEAPS}
    result["provenance"] = provenance(seed=SEED, repeats=repeats, processes=PROCESSES)
    save(out, "masked_convolution", result, markdown(result))


if __name__ == "__main__":
    main()
