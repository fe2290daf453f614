"""What leaky integrate-and-fire neurons cost over a sequence, forward and backward, beside SpikingJelly and a floor.

    .venv/bin/python benchmarks/lif_cost.py [--repeats 15] [--out results/cost]

Inputs [T, 64, 128, 16, 16], T = 4 and 10, decay 1/2, ATan(2), gradient through the reset, one thread. Contenders
alternate in one process of the environment with SpikingJelly (`make test-peers` makes it; without it its rows are
missing), in which freed memory is kept; a ratio is formed within a round, of process CPU time. The floor reads the
input and writes spikes (a copy), reads the upstream gradient and potentials and writes a gradient (a sum). Kept is
what stays resident after a forward, spikes included, in tensors of the input's size. Linux only. Writes lif.json and
lif.md.
"""

import ctypes
import gc
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

from provenance import ROOT, as_lines
from single import main
from stochade.native import lif as native
from stochade.nn import LIF

PEERS = ROOT / ".venv-peers-spiking" / "bin" / "python"
SHAPE, STEPS = (64, 128, 16, 16), (4, 10)
FLOOR, KERNELS, PLAIN, PEER = "floor", "stochade, compiled kernels", "stochade, no compiler", "SpikingJelly"
BARS = {("soft", PLAIN): 2.0, ("hard", PLAIN): 1.8, ("soft", KERNELS): 6.0, ("hard", KERNELS): 6.0}  # times faster
FLOOR_BAR, KEPT_BAR = 1.6, 2.05  # pages are counted, not bytes
SUITS = native.suits


def peers() -> dict[str, Any]:
    """SpikingJelly's multi-step neurons for both resets; none where it is not installed."""
    try:
        from spikingjelly.activation_based import neuron, surrogate
    except ImportError:
        return {}
    options = {"tau": 2.0, "decay_input": False, "surrogate_function": surrogate.ATan(2.0), "step_mode": "m"}
    return {"soft": neuron.LIFNode(v_reset=None, **options), "hard": neuron.LIFNode(v_reset=0.0, **options)}


def contenders() -> dict[tuple[str, str], Callable[[torch.Tensor], torch.Tensor]]:
    """Forwards by (reset, who)."""
    table = {}

    def ours(layer: LIF, kernels: bool) -> Callable[[torch.Tensor], torch.Tensor]:
        def forward(x: torch.Tensor) -> torch.Tensor:
            native.suits = SUITS if kernels else lambda *tensors: False  # the backward asks too
            return layer(x)

        return forward

    def theirs(layer: Any) -> Callable[[torch.Tensor], torch.Tensor]:
        def forward(x: torch.Tensor) -> torch.Tensor:
            layer.reset()
            return layer(x)

        return forward

    found = peers()
    for reset in ("soft", "hard"):
        layer = LIF(0.5, 1.0, reset)
        table[reset, KERNELS], table[reset, PLAIN] = ours(layer, True), ours(layer, False)
        if reset in found:
            table[reset, PEER] = theirs(found[reset])
    return table


def floor(x: torch.Tensor, upstream: torch.Tensor) -> None:
    spikes, gradient = torch.empty_like(x), torch.empty_like(x)
    spikes.copy_(x)
    torch.add(upstream, x, out=gradient)


def kept(forward: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> float:
    """What a forward leaves resident beside its input, in tensors of the size of `x`."""
    before = resident()
    out = forward(x)
    after = resident()
    del out
    return (after - before) / (4 * x.numel())


def resident() -> int:
    """Bytes, without what is free."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return 1024 * int(line.split()[1])


def work(repeats: int) -> list[dict]:
    """CPU seconds of every contender in every round, and what they keep."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows = []
    for steps in STEPS:
        x, table = torch.randn(steps, *SHAPE, requires_grad=True), contenders()
        upstream, calls = torch.randn(steps, *SHAPE), {(FLOOR, FLOOR): lambda: None, **table}
        seconds: dict[tuple[str, str], list[float]] = {name: [] for name in calls}
        for turn in range(repeats + 1):
            for name in list(calls)[:: 1 if turn % 2 else -1]:
                start = time.process_time()
                if name[0] == FLOOR:
                    floor(x.detach(), upstream)
                else:
                    torch.autograd.grad(table[name](x), x, upstream)
                if turn:  # the first warms up
                    seconds[name].append(time.process_time() - start)
        spikes = {name: forward(x.detach()) for name, forward in table.items()}
        same = {name: torch.equal(s, spikes[name[0], KERNELS]) for name, s in spikes.items()}
        del spikes
        for name in table:
            rows.append(
                {"steps": steps, "reset": name[0], "name": name[1], "seconds": seconds[name],
                 "floor": seconds[FLOOR, FLOOR], "peer": seconds.get((name[0], PEER)), "kept": kept(table[name], x),
                 "same spikes": same[name], "ready": SUITS(x)}
            )  # fmt: skip
    return rows


def spread(tops: list[float], bottoms: list[float]) -> list[float]:
    ratios = sorted(a / b for a, b in zip(tops, bottoms, strict=True))
    return [median(ratios), ratios[0], ratios[-1]]


def summary(row: dict) -> dict:
    """Medians, ratios within rounds [median, least, most], and the bars that are missed."""
    told = {key: row[key] for key in ("steps", "reset", "name", "kept", "same spikes")}
    told |= {"ms": 1000 * median(row["seconds"]), "floor ms": 1000 * median(row["floor"])}
    told["over floor"] = spread(row["seconds"], row["floor"])
    told["times faster"] = spread(row["peer"], row["seconds"]) if row["peer"] else None
    missed: list[str] = []
    if row["name"] == KERNELS and told["over floor"][0] > FLOOR_BAR:
        missed.append(f"more than {FLOOR_BAR} x the floor")
    bar = BARS.get((row["reset"], row["name"]))
    if bar and row["peer"] and told["times faster"][0] < bar:
        missed.append(f"less than {bar} x faster")
    if row["name"] != PEER and row["kept"] > KEPT_BAR:
        missed.append("keeps more than 2 tensors")
    return told | {"missed": missed}


def markdown(result: dict) -> str:
    lines = [
        "# Cost of integrate-and-fire neurons",
        "",
        f"Forward and backward of LIF neurons at [T, {', '.join(map(str, SHAPE))}], decay 1/2, ATan(2), gradient",
        "through the reset, one thread: CPU milliseconds; over the floor (a copy of the input, and the sum of two",
        "such tensors); how many times faster than SpikingJelly's multi-step `LIFNode`, which has no kernels on a",
        "CPU; ratios within a round, median [least, most]. Kept: what stays resident after a forward beside the",
        "input, spikes included, in tensors of the input's size; stochade keeps the input too, and nothing else.",
        "Spikes are compared with those of the kernels.",
        "",
        "| T | reset | | ms | over floor | times faster than SpikingJelly | kept | same spikes | bar |",
        "|-|-|-|-|-|-|-|-|-|",
    ]
    for row in result["rows"]:
        over = "{:.2f} [{:.2f}, {:.2f}]".format(*row["over floor"])
        faster = "{:.2f} [{:.2f}, {:.2f}]".format(*row["times faster"]) if row["times faster"] else ""
        verdict = "" if row["name"] == PEER else "missed: " + ", ".join(row["missed"]) if row["missed"] else "met"
        lines.append(
            f"| {row['steps']} | {row['reset']} | {row['name']} | {row['ms']:.1f} | {over} | {faster} "
            f"| {row['kept']:.2f} | {'yes' if row['same spikes'] else 'no'} | {verdict} |"
        )
    lines += [
        "",
        f"Bars: with kernels at least {BARS['soft', KERNELS]:g} x faster and at most {FLOOR_BAR} x the floor; "
        f"without a compiler at least {BARS['soft', PLAIN]:g} x (soft) and {BARS['hard', PLAIN]:g} x (hard) faster; "
        "at most 2 tensors kept.",
    ]
    return "\n".join([*lines, "", "## Provenance", "", *as_lines(result["provenance"])]) + "\n"


def finish(rows: list[dict]) -> tuple[list[dict], dict[str, Any]]:
    facts: dict[str, Any] = {"load of the machine": f"{os.getloadavg()[0]:.1f} processes on {os.cpu_count()} cores"}
    facts |= {"kernels": "ready" if all(row["ready"] for row in rows) else "not available"}
    if PEERS.exists():
        ask = [str(PEERS), "-c", "from importlib.metadata import version as v; print(v('spikingjelly'), v('torch'))"]
        versions = subprocess.run(ask, capture_output=True, text=True, check=True).stdout.split()
        facts["SpikingJelly"] = f"{versions[0]} on torch {versions[1]}"
    return [summary(row) for row in rows], facts


if __name__ == "__main__":
    python = str(PEERS) if PEERS.exists() else sys.executable
    main("lif", __doc__, __file__, work, markdown, 15, python=python, source=True, finish=finish)
