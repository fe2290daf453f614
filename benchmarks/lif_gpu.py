"""What leaky integrate-and-fire neurons cost on a GPU, forward and backward, beside SpikingJelly's fastest backend.

    python benchmarks/lif_gpu.py [--repeats 30] [--out results/cost]

Needs a GPU and an environment with a CUDA build of torch, Stochade and SpikingJelly (`pip install
spikingjelly==2.0.0`); refuses where there is no GPU. Inputs [T, 64, 128, 16, 16], T = 4 and 10, decay 1/2, ATan(2),
gradient through the reset, float32, by CUDA's events. SpikingJelly chooses its implementation (cuda, triton, torch)
when it is imported, so each gets a process of its own, in which it alternates with Stochade's kernels and with ATen's
operations; a ratio is formed within a round. The floor reads the input and writes spikes (a copy), reads the upstream
gradient and potentials and writes a gradient (a sum). Kept is what a forward leaves allocated, in tensors of the
input's size. Writes lif_gpu.json and .md.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

from provenance import as_lines
from single import main
from stochade.native import gpu
from stochade.native import lif as native
from stochade.nn import LIF

SHAPE, STEPS = (64, 128, 16, 16), (4, 10)
BACKENDS = ("cuda", "triton", "torch")
FLOOR, KERNELS, PLAIN, PEER = "floor", "stochade, Triton", "stochade, ATen", "SpikingJelly"
SUITS = native.suits


def peers(backend: str) -> dict[str, Any]:
    """SpikingJelly's multi-step neurons for both resets; raises where this backend cannot be had."""
    from spikingjelly.activation_based import functional, neuron, surrogate

    told = functional.neuron.neuron_implementation("lif", torch.device("cuda"))
    if backend not in told["implementation"]:
        raise RuntimeError(f"got {told}")
    options = {"tau": 2.0, "decay_input": False, "surrogate_function": surrogate.ATan(2.0), "step_mode": "m"}
    return {"soft": neuron.LIFNode(v_reset=None, **options), "hard": neuron.LIFNode(v_reset=0.0, **options)}


def contenders(reset: str, peer: Any) -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
    layer = LIF(0.5, 1.0, reset)  # type: ignore[arg-type]

    def ours(kernels: bool) -> Callable[[torch.Tensor], torch.Tensor]:
        def forward(x: torch.Tensor) -> torch.Tensor:
            native.suits = SUITS if kernels else lambda *tensors: False  # the backward asks too
            return layer(x)

        return forward

    def theirs(x: torch.Tensor) -> torch.Tensor:
        peer.reset()
        return peer(x)

    return {KERNELS: ours(True), PLAIN: ours(False)} | ({PEER: theirs} if peer is not None else {})


def milliseconds(call: Callable[[], object]) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def kept(forward: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> float:
    before = torch.cuda.memory_allocated()
    out = forward(x)
    after = torch.cuda.memory_allocated()
    del out
    return (after - before) / (4 * x.numel())


def measure(backend: str, repeats: int) -> list[dict]:
    """Milliseconds of every contender in every round, in a process where SpikingJelly has this backend."""
    torch.manual_seed(0)
    try:
        found = peers(backend)
    except Exception as error:  # whatever its imports and compilers raise
        found, missing = {}, f"{type(error).__name__}: {str(error).splitlines()[0]}"
    else:
        missing = None
    rows = []
    for steps in STEPS:
        x = torch.randn(steps, *SHAPE, device="cuda", requires_grad=True)
        upstream, copied, added = torch.randn_like(x), torch.empty_like(x), torch.empty_like(x)

        def floor(x=x, upstream=upstream, copied=copied, added=added) -> None:
            copied.copy_(x.detach())
            torch.add(upstream, x.detach(), out=added)

        for reset in ("soft", "hard"):
            table = contenders(reset, found.get(reset))
            calls: dict[str, Callable[[], object]] = {FLOOR: floor}
            calls |= {n: lambda f=f, x=x, up=upstream: torch.autograd.grad(f(x), x, up) for n, f in table.items()}
            spent: dict[str, list[float]] = {name: [] for name in calls}
            for turn in range(repeats + 3):
                for name in list(calls)[:: 1 if turn % 2 else -1]:
                    took = milliseconds(calls[name])
                    if turn > 2:  # the first compile and warm up
                        spent[name].append(took)
            spikes = {name: forward(x.detach()) for name, forward in table.items()}
            same = {name: torch.equal(s, spikes[PLAIN]) for name, s in spikes.items()}
            del spikes
            told = {"backend": backend, "missing": missing, "steps": steps, "reset": reset, "ready": SUITS(x)}
            told |= {"ms": spent, "same spikes": same, "kept": {name: kept(f, x) for name, f in table.items()}}
            rows.append(told)
    return rows


def work(repeats: int) -> list[dict]:
    rows = []
    for backend in BACKENDS:
        command = [
            sys.executable,
            "-c",
            f"import json, lif_gpu; print(json.dumps(lif_gpu.measure({backend!r}, {repeats})))",
        ]
        env = os.environ | {"SJ_LIF_CUDA_IMPLEMENTATION": backend}
        done = subprocess.run(
            command, cwd=Path(__file__).parent, env=env, stdout=subprocess.PIPE, text=True, check=True
        )
        rows += json.loads(done.stdout.splitlines()[-1])
    return rows


def finish(rows: list[dict]) -> tuple[list[dict], dict[str, Any]]:
    """One row for each length and reset: medians, and the bar against the fastest backend that could be had."""
    told = []
    for steps, reset in dict.fromkeys((row["steps"], row["reset"]) for row in rows):
        those = [row for row in rows if (row["steps"], row["reset"]) == (steps, reset)]
        rivals = {row["backend"]: median(row["ms"][PEER]) for row in those if PEER in row["ms"]}
        best = min(rivals, key=rivals.__getitem__) if rivals else None
        at = next(row for row in those if best in (None, row["backend"]))
        ratios = sorted(a / b for a, b in zip(at["ms"].get(PEER, []), at["ms"][KERNELS], strict=False))
        told.append(
            {"steps": steps, "reset": reset, "ms": {n: median(t) for n, t in at["ms"].items()}, "rivals": rivals,
             "fastest": best, "times faster": [median(ratios), ratios[0], ratios[-1]] if ratios else None,
             "kept": at["kept"], "same spikes": at["same spikes"],
             "over floor": median(a / b for a, b in zip(at["ms"][KERNELS], at["ms"][FLOOR], strict=True))}
        )  # fmt: skip
    missing = {row["backend"]: row["missing"] for row in rows if row["missing"]}
    return told, {
        "GPU": torch.cuda.get_device_name(),
        "kernels in Triton": gpu.status(),
        "backends missing": missing or "none",
    }


def markdown(result: dict) -> str:
    lines = [
        "# Cost of integrate-and-fire neurons on a GPU", "",
        f"Forward and backward of LIF neurons at [T, {', '.join(map(str, SHAPE))}], decay 1/2, ATan(2), gradient",
        "through the reset, float32: milliseconds by CUDA's events, medians; how many times faster than",
        "SpikingJelly's fastest backend, within a round, median [least, most]; over the floor (a copy of the input,",
        "and the sum of two such tensors). Bar: at least as fast as that backend.", "",
        "| T | reset | Triton | ATen | SpikingJelly, by backend | faster | over floor | kept | same spikes | bar |",
        "|-|-|-|-|-|-|-|-|-|-|",
    ]  # fmt: skip
    for row in result["rows"]:
        rivals = ", ".join(f"{name} {ms:.3f}" for name, ms in row["rivals"].items()) or "none could be had"
        faster, met = (
            row["times faster"],
            "" if not row["times faster"] else "met" if row["times faster"][0] >= 1 else "missed",
        )
        shown = "{:.2f} [{:.2f}, {:.2f}]".format(*faster) if faster else ""
        same = "yes" if all(row["same spikes"].values()) else "no"
        lines.append(
            f"| {row['steps']} | {row['reset']} | {row['ms'][KERNELS]:.3f} | {row['ms'][PLAIN]:.3f} | {rivals} "
            f"| {shown} | {row['over floor']:.2f} | {row['kept'][KERNELS]:.2f} | {same} | {met} |"
        )
    return "\n".join([*lines, "", "## Provenance", "", *as_lines(result["provenance"])]) + "\n"


if __name__ == "__main__":
    if not torch.cuda.is_available():
        raise SystemExit(
            f"lif_gpu.py measures on a GPU, and torch {torch.__version__} sees none here; run it on a machine that "
            "has one, with a CUDA build of torch. Neurons on the CPU: benchmarks/lif_cost.py"
        )
    main("lif_gpu", __doc__, __file__, work, markdown, 30, source=True, finish=finish)
