"""What the gate head of a full-size SGBN costs beside `torch.nn.Linear`: 512 inputs, 51,200 outputs, one thread.

    .venv/bin/python benchmarks/wide_linear.py [--repeats 15] [--out results/cost]

Both layers alternate in one process, in which freed memory is kept; a ratio is formed within a round, of process CPU
time. Writes wide_linear.json and .md.
"""

import time
from collections.abc import Callable
from statistics import median

import torch
from torch import nn

from provenance import as_lines
from single import main
from stochade.nn.wide_linear import WideLinear

INPUTS, OUTPUTS, BATCHES = 512, 51_200, (50, 250)
PASSES = ("forward", "and backward to inputs (attack)", "and backward to all (training)")


def seconds(layer: nn.Linear, x: torch.Tensor, upstream: torch.Tensor, kind: str) -> float:
    layer.requires_grad_(kind == PASSES[2])  # attacks want no gradients of weights
    start = time.process_time()
    if kind == PASSES[0]:
        with torch.no_grad():
            layer(x)
    else:
        wanted = (x,) if kind == PASSES[1] else (x, layer.weight, layer.bias)
        torch.autograd.grad(layer(x), wanted, upstream)
    return time.process_time() - start


def work(repeats: int) -> list[dict]:
    """Milliseconds of both layers and the ratio, for every batch and pass."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    ours, theirs = WideLinear(INPUTS, OUTPUTS), nn.Linear(INPUTS, OUTPUTS)
    rows = []
    for batch in BATCHES:
        x, upstream = torch.randn(batch, INPUTS, requires_grad=True), torch.randn(batch, OUTPUTS)
        for kind in PASSES:
            times: dict[str, list[float]] = {"ours": [], "theirs": []}
            order: list[tuple[str, Callable[[], float]]] = [
                ("ours", lambda x=x, u=upstream, k=kind: seconds(ours, x, u, k)),
                ("theirs", lambda x=x, u=upstream, k=kind: seconds(theirs, x, u, k)),
            ]
            for turn in range(repeats + 1):
                for name, run in order if turn % 2 else reversed(order):
                    told = run()
                    if turn:  # the first warms up
                        times[name].append(told)
            ratios = sorted(a / b for a, b in zip(times["ours"], times["theirs"], strict=True))
            rows.append(
                {"batch": batch, "pass": kind, "ours": 1000 * median(times["ours"]),
                 "theirs": 1000 * median(times["theirs"]), "ratio": [median(ratios), ratios[0], ratios[-1]]}
            )  # fmt: skip
    return rows


def markdown(result: dict) -> str:
    lines = [
        "# Cost of a gate head",
        "",
        f"A linear layer from {INPUTS} to {OUTPUTS:,} (the second gate module of SGBN), one thread: CPU milliseconds",
        "of `WideLinear` and of `torch.nn.Linear`, and their ratio within a round, median [least, most].",
        "",
        "| batch | forward ... | WideLinear | nn.Linear | ratio |",
        "|-|-|-|-|-|",
    ]
    for row in result["rows"]:
        ratio = "{:.2f} [{:.2f}, {:.2f}]".format(*row["ratio"])
        lines.append(f"| {row['batch']} | {row['pass']} | {row['ours']:.1f} | {row['theirs']:.1f} | {ratio} |")
    return "\n".join([*lines, "", "## Provenance", "", *as_lines(result["provenance"])]) + "\n"


if __name__ == "__main__":
    main("wide_linear", __doc__, __file__, work, markdown, 15)
