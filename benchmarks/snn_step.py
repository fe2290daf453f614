"""What a training step of VGGSNN costs beside the same network built in SpikingJelly.

    .venv/bin/python benchmarks/snn_step.py [--repeats 7] [--out results/cost]

A step: forward on codes of T = 4, cross entropy of the logits' mean over time, backward to all weights, one step of
SGD with momentum. Both networks have the same layers, weights and neurons (decay 1/2, soft reset, ATan(2)) and see
the same codes; they alternate in one process of the environment with SpikingJelly (`make test-peers` makes it), one
thread, freed memory kept, and a ratio of CPU time is formed within a round. Writes snn_step.json and .md.
"""

import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from statistics import median
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from provenance import ROOT, as_lines
from single import main
from stochade.models.spiking import PLANS, spiking_vgg
from stochade.nn import SpikingNeuron

PEERS = ROOT / ".venv-peers-spiking" / "bin" / "python"
CASES = (("vggsnn", 1.0, 8), ("vggsnn", 0.25, 32), ("small", 1.0, 64))  # plan, width, batch
STEPS, SIZE = 4, (3, 32, 32)


def ours(plan: str, width: float) -> nn.Module:
    torch.manual_seed(0)
    return spiking_vgg(SIZE, 10, plan, "rate", STEPS, width).network


def theirs(plan: str, width: float) -> nn.Module:
    """The same plan of SpikingJelly's multi-step layers, with the weights of `ours`."""
    from spikingjelly.activation_based import functional as sj
    from spikingjelly.activation_based import layer, neuron, surrogate

    def fire() -> nn.Module:
        return neuron.LIFNode(tau=2.0, decay_input=False, v_reset=None, surrogate_function=surrogate.ATan(2.0))

    parts: list[nn.Module] = []
    inputs, side = SIZE[0], SIZE[1]
    for item in PLANS[plan][0]:
        if isinstance(item, str):
            parts.append(layer.AvgPool2d(2))
            side //= 2
            continue
        outputs = int(item * width)
        parts += [layer.Conv2d(inputs, outputs, 3, padding=1), layer.BatchNorm2d(outputs), fire()]
        inputs = outputs
    parts += [layer.Flatten(), layer.Linear(inputs * side * side, 10)]
    network = nn.Sequential(*parts)
    sj.set_step_mode(network, "m")
    network.load_state_dict(dict(zip(network.state_dict(), ours(plan, width).state_dict().values(), strict=True)))
    return network


def stepper(network: nn.Module, forward: Callable[[torch.Tensor], torch.Tensor], codes: torch.Tensor, y) -> Any:
    optimizer = torch.optim.SGD(network.parameters(), 0.01, 0.9)

    def step() -> float:
        start = time.process_time()
        optimizer.zero_grad()
        functional.cross_entropy(forward(codes), y).backward()
        optimizer.step()
        return time.process_time() - start

    return step


def work(repeats: int) -> list[dict]:
    """CPU seconds of a step of both, for every case; and whether both give the same logits at first."""
    from spikingjelly.activation_based import functional as sj

    torch.set_num_threads(1)
    rows = []
    for plan, width, batch in CASES:
        torch.manual_seed(1)
        codes, y = (torch.rand(batch, STEPS, *SIZE) < 0.5).float(), torch.randint(0, 10, (batch,))
        mine, peer = ours(plan, width).train(), theirs(plan, width).train()

        def peers_forward(z: torch.Tensor, peer: nn.Module = peer) -> torch.Tensor:
            sj.reset_net(peer)
            return peer(z.transpose(0, 1)).mean(0)

        with torch.no_grad():
            gap = float((mine(codes) - peers_forward(codes)).abs().max())
        steps = {"ours": stepper(mine, mine, codes, y), "theirs": stepper(peer, peers_forward, codes, y)}
        seconds: dict[str, list[float]] = {name: [] for name in steps}
        for turn in range(repeats + 1):
            for name in list(steps)[:: 1 if turn % 2 else -1]:
                told = steps[name]()
                if turn:  # the first warms up
                    seconds[name].append(told)
        neurons = sum(isinstance(m, SpikingNeuron) for m in mine.modules())
        rows.append({"plan": plan, "width": width, "batch": batch, "gap": gap, "neurons": neurons, **seconds})
        rows[-1]["peer"] = f"{version('spikingjelly')} on torch {version('torch')}"
    return rows


def finish(rows: list[dict]) -> tuple[list[dict], dict[str, Any]]:
    kept = []
    for row in rows:
        ratios = sorted(a / b for a, b in zip(row["theirs"], row["ours"], strict=True))
        times = {name: 1000 * median(row[name]) for name in ("ours", "theirs")}
        kept.append(row | times | {"faster": [median(ratios), ratios[0], ratios[-1]]})
    return kept, {"bar": "faster than SpikingJelly", "SpikingJelly": rows[0]["peer"]}


def markdown(result: dict) -> str:
    lines = [
        "# Cost of a training step of a spiking network",
        "",
        f"Codes [N, {STEPS}, {', '.join(map(str, SIZE))}], one thread: CPU milliseconds of a step (forward,",
        "backward, SGD) with this library and with the same network in SpikingJelly, which has no kernels on a CPU;",
        "ratio within a round, median [least, most]. *Gap*: the largest difference of the first logits.",
        "",
        "| network | width | layers of neurons | N | stochade | SpikingJelly | times faster | gap |",
        "|-|-|-|-|-|-|-|-|",
    ]
    for row in result["rows"]:
        faster = "{:.2f} [{:.2f}, {:.2f}]".format(*row["faster"])
        lines.append(
            f"| {row['plan']} | {row['width']} | {row['neurons']} | {row['batch']} | {row['ours']:.0f} "
            f"| {row['theirs']:.0f} | {faster} | {row['gap']:.1g} |"
        )
    return "\n".join([*lines, "", "## Provenance", "", *as_lines(result["provenance"])]) + "\n"


if __name__ == "__main__":
    if not PEERS.exists():
        sys.exit(
            f"expected an environment with SpikingJelly, got none (torch {version('torch')}); run: make test-peers"
        )
    main("snn_step", __doc__, __file__, work, markdown, 7, python=str(PEERS), source=True, finish=finish)
