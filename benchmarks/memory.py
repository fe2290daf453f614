"""What attacks need in memory, against 1.3 x one forward and backward of the same batch plus 12 inputs.

    .venv/bin/python benchmarks/memory.py [--attacks "pgd draws=100" square ...] [--batch 256] [--out results/memory]

Every contender, the floor too, runs in a fresh process of one thread in which freed memory goes back to the system at
once and the backend keeps few compiled kernels (it keeps one for each batch size that it sees, and an active set
shows it many), so that the resident set is what tensors hold: its peak (VmHWM, reset through clear_refs) less what
was resident before. Names
are the gradients below or whatever `stochade.attacks.registry.parse_attack` takes; by default all of them. With
--attacks only these are measured, and join what is already in the folder. An attack that is still running after
--seconds of CPU is stopped; its peak until then counts. Writes memory.json and .md, with what the bound on tiled
draws costs in time. Linux only.
"""

import argparse
import gc
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from provenance import ROOT, as_lines, commit, provenance

sys.path.insert(0, str(Path(__file__).resolve().parent / "peers"))
from models import Network

FACTOR, INPUTS = 1.3, 12
THREATS = ("linf=0.001", "l2=0.01", "l0=3")  # the first an attack takes; so small that nobody is fooled
FLOOR = "one forward and backward"
CONTROL = "control: Backprop(20) in tiles of 1024"
EXCEPTED = {"jsma": "a Jacobian attack", "deepfool": "a Jacobian attack", CONTROL: "as it was before the bound"}
OPTIONS = {"steps": "3", "restarts": "1", "samples": "50"}  # enough to reach the peak, where the attack takes them
TILES, BATCHES, DRAWS = (16, 64, 256, 1024), (16, 64, 256), 16


class Noisy(nn.Module):
    """The small convolutional network, with Gaussian noise per example on its input."""

    scope = "example"

    def __init__(self):
        super().__init__()
        self.network = Network()

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x + 0.1 * torch.randn_like(x))


@torch.no_grad()
def problem(batch: int) -> tuple[nn.Module, Tensor, Tensor]:
    """The model, random images and its own answers to them."""
    torch.manual_seed(0)
    model, x = Noisy().eval().requires_grad_(False), torch.rand(batch, 1, 28, 28)
    return model, x, model.network(x).argmax(1)


def gradients() -> dict[str, object]:
    """PGD is run with each of these."""
    from stochade import Averaged, Backprop, Ensemble, Evolution, Frozen, Rotate, Shift, Transforms, UniformJitter

    turned = [Rotate(20), Shift(2), UniformJitter(0.05)]
    return {
        "Backprop(1)": Backprop(1),
        "Backprop(20)": Backprop(20),
        "Backprop(100)": Backprop(100),
        "Averaged": Averaged(most=64, snr=9.0),
        "Evolution(50)": Evolution(50),
        "Ensemble of Backprop(20), Evolution(20), Averaged": Ensemble([Backprop(20), Evolution(20), Averaged()]),
        "Transforms(20)": Transforms(Backprop(), turned, draws=20),
        "Frozen": Frozen(Backprop(), 0),
        CONTROL: Backprop(20, tile=1024),
    }


def one_pass(model: nn.Module, x: Tensor, y: Tensor) -> None:
    """The floor: one forward and backward to the images, the weights frozen."""
    leaf = x.detach().requires_grad_()
    (_,) = torch.autograd.grad(nn.functional.cross_entropy(model(leaf), y, reduction="sum"), leaf)


def job(name: str) -> Callable[[nn.Module, Tensor, Tensor], object]:
    """What a name stands for."""
    from stochade.attacks import PGD, parse_threat
    from stochade.attacks.fooled import confirm
    from stochade.evaluate.unit import draw_logits

    table = gradients()
    if name == FLOOR:
        return one_pass
    if name == "scoring, 100 draws":
        return lambda model, x, y: draw_logits(model, x, 100, 0)
    if name == "leaving test, 60 draws":  # no draw misses a class that does not exist, so all go on to the end
        return lambda model, x, y: confirm(model, x, torch.full_like(y, 10), None, 0, 60, True)
    if name in table:
        attack = PGD(parse_threat(THREATS[0]), steps=3, gradient=table[name], drop_fooled=False, keep="last")  # type: ignore[arg-type]
        return lambda model, x, y: attack(model, x, y)
    attack = _parsed(name)
    return lambda model, x, y: attack.run(model, x, y, seed=1)


def _parsed(name: str):
    """The attack with the first threat and as many of OPTIONS as it takes."""
    from stochade.attacks import parse_threat
    from stochade.attacks.registry import parse_attack
    from stochade.errors import BudgetError, StochadeError

    def parse(text: str):
        for threat in THREATS[:-1]:
            try:
                return parse_attack(text, parse_threat(threat))
            except BudgetError:
                continue
        return parse_attack(text, parse_threat(THREATS[-1]))

    for key, value in OPTIONS.items():
        if f" {key}=" not in name:
            try:
                parse(f"{name} {key}={value}")
                name = f"{name} {key}={value}"
            except StochadeError:
                continue
    return parse(name)


def everything() -> list[str]:
    from stochade.attacks.registry import ATTACKS

    return [
        *gradients(),
        *(name for name in ATTACKS if name != "transfer"),
        "scoring, 100 draws",
        "leaving test, 60 draws",
    ]


def resident(key: str) -> int:
    """Bytes of this process: "VmRSS" now, "VmHWM" at the peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(key))


class TimeIsUp(Exception):
    pass


def _stop(*_) -> None:
    raise TimeIsUp


def measure(name: str, batch: int, seconds: int) -> dict:
    """In a process of its own: the peak beyond what was resident when model, images and libraries were there."""
    torch.set_num_threads(1)
    model, x, y = problem(batch)
    run = job(name)
    one_pass(model, x, y)  # libraries, and what they keep for these shapes
    signal.signal(signal.SIGPROF, _stop)
    stopped = False
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        run(model, x[:2], y[:2])  # imports and constants of the attack itself
    except TimeIsUp:
        stopped = True
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    before, start = resident("VmRSS"), time.process_time()
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        run(model, x, y)
    except TimeIsUp:
        stopped = True
    signal.setitimer(signal.ITIMER_PROF, 0)
    return {"bytes": resident("VmHWM") - before, "seconds": time.process_time() - start, "stopped": stopped}


def fresh(name: str, batch: int, seconds: int) -> dict:
    """`measure` in a fresh process, or {"failed": ...}."""
    extra = {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    extra |= {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "4", "LRU_CACHE_CAPACITY": "4"}
    command = [sys.executable, __file__, "--one", name, "--batch", str(batch), "--seconds", str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | extra)
    if done.returncode:
        return {"failed": done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "no message"}
    return json.loads(done.stdout.splitlines()[-1])


def speeds() -> dict[str, dict[str, float]]:
    """{batch: {tile: milliseconds per 256 forwards and backwards}}, the best of seven interleaved rounds."""
    from stochade import Backprop, cross_entropy

    table: dict[str, dict[str, float]] = {}
    for batch in BATCHES:
        model, x, y = problem(batch)
        best = dict.fromkeys(TILES, float("inf"))
        for _ in range(7):
            for tile in TILES:
                start = time.process_time()
                Backprop(DRAWS, tile=tile)(model, x, y, cross_entropy)
                best[tile] = min(best[tile], time.process_time() - start)
        table[str(batch)] = {str(t): 1000 * s / DRAWS / batch * 256 for t, s in best.items()}
    return table


def page(result: dict) -> list[str]:
    mib, bound = 2**20, result["bound"]
    sizes = [f"{result[key] / mib:.1f} MiB" for key in ("floor", "input", "bound")]
    lines = [
        "# Memory of attacks",
        "",
        f"Peak at batch {result['batch']} on 1x28x28 images, against {FACTOR} x one forward and backward "
        f"({sizes[0]}) + {INPUTS} tensors like the input ({sizes[1]} each): {sizes[2]}. Fresh processes, resident "
        f"memory with few kept kernels; the largest of {result['repeats']}. Smaller batches are tiled up to 256 "
        "images a forward.",
        "",
        "| | MiB | x one pass | inputs beyond one pass | |",
        "|-|-|-|-|-|",
    ]
    for name, row in result["peaks"].items():
        if "failed" in row:
            lines.append(f"| {name} | failed: {row['failed']} | | | |")
            continue
        peak = row["bytes"]
        verdict = "within" if peak <= bound else f"excepted: {EXCEPTED[name]}" if name in EXCEPTED else "**above**"
        numbers = (
            f"{peak / mib:.1f} | {peak / result['floor']:.2f} | {(peak - result['floor']) / result['input']:.1f}"
        )
        lines.append(f"| {name} | {numbers} | {verdict}{', stopped early' if row['stopped'] else ''} |")
    lines += [
        "",
        "## What the bound on tiled draws costs",
        "",
        "Milliseconds of CPU per 256 forwards and backwards of `Backprop(16)`, one thread, by images per tile:",
        "",
        f"| batch | {' | '.join(map(str, TILES))} |",
        f"|-|{'-|' * len(TILES)}",
        *(f"| {b} | {' | '.join(f'{v:.1f}' for v in row.values())} |" for b, row in result["tiles"].items()),
    ]
    return [*lines, "", *as_lines(result["provenance"]), ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--attacks", nargs="*")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--seconds", type=int, default=15, help="limit of one attack, CPU")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "memory")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one is not None:
        print(json.dumps(measure(args.one, args.batch, args.seconds)))
        return
    torch.set_num_threads(1)
    at_start, path = commit(), args.out / "memory.json"
    before = json.loads(path.read_text()) if args.attacks and path.exists() else None
    batch = args.batch if before is None else before["batch"]
    peaks: dict[str, dict] = {}
    for name in [FLOOR, *(args.attacks or everything())]:
        runs = [fresh(name, batch, args.seconds) for _ in range(args.repeats)]
        failed = [r for r in runs if "failed" in r]
        peaks[name] = (failed[0] if failed else max(runs, key=lambda r: r["bytes"])) | {"commit": at_start}
        print(name, peaks[name], file=sys.stderr, flush=True)
    floor, size = peaks.pop(FLOOR)["bytes"], 4 * 784 * batch
    if before is not None:
        floor, peaks = before["floor"], before["peaks"] | peaks
    result = {
        "batch": batch, "repeats": args.repeats, "floor": floor, "input": size,
        "bound": FACTOR * floor + INPUTS * size, "peaks": peaks,
        "tiles": speeds() if before is None else before["tiles"],
        "provenance": provenance(seed=0) | {"commit": at_start},
    }  # fmt: skip
    args.out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    (args.out / "memory.md").write_text("\n".join(page(result)))
    print("\n".join(page(result)))


if __name__ == "__main__":
    main()
