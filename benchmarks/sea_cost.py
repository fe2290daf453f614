"""What the sparse encoding attack costs beside one forward and backward of its network to the spikes, one thread.

    .venv/bin/python benchmarks/sea_cost.py [--repeats 9] [--out results/cost]

They alternate in one process, in which freed memory is kept: the floor (cross entropy forward, backward to the
codes), one step (that, and the change of k = 10 letters per frame), and the whole attack as a caller runs it, of one
step and of five, with its checks, its probe of two examples and its guard of the model. Ratios are formed within a
round, of process CPU time. Writes sea.json and .md.
"""

import time
from statistics import median

import torch
from torch import nn
from torch.nn import functional

from provenance import as_lines
from single import main
from stochade.attacks import SEA, Backprop, Flips, cross_entropy
from stochade.attacks.codes import encode
from stochade.models import Encoded, spiking_vgg
from stochade.randomness import untouched

BAR, K, T = 1.1, 10, 4
CASES = (
    ("small", "rate", (3, 32, 32), 50),
    ("small", "srate", (3, 32, 32), 50),
    ("vggsnn", "srate", (3, 32, 32), 4),
)
KINDS = ("floor", "step", "attack", "attack of 5 steps")


def floor(network: nn.Module, codes: torch.Tensor, y: torch.Tensor) -> None:
    leaf = codes.detach().requires_grad_()
    torch.autograd.grad(functional.cross_entropy(network(leaf), y, reduction="sum"), leaf)


def step(network: nn.Module, codes: torch.Tensor, y: torch.Tensor, threat: Flips) -> None:
    threat.move(Backprop()(network, codes, y, cross_entropy).gradient, codes)


def work(repeats: int) -> list[dict]:
    """Milliseconds of the four and the ratios to the floor (five floors for five steps), for every case."""
    torch.set_num_threads(1)
    rows = []
    for plan, encoder, shape, batch in CASES:
        torch.manual_seed(0)
        model = spiking_vgg(shape, 10, plan=plan, encoder=encoder, steps=T).eval()
        assert isinstance(model, Encoded)
        network, threat = model.network, Flips(K, model.encoder.alphabet)  # type: ignore[arg-type]
        x, y = torch.rand(batch, *shape), torch.arange(batch) % 10
        with untouched(model):
            codes = encode(model, x, threat, 0)
        once, often = SEA(threat), SEA(threat, 5, drop_fooled=False, keep="last")
        runs = {
            "floor": lambda n=network, z=codes, y=y: floor(n, z, y),
            "step": lambda n=network, z=codes, y=y, t=threat: step(n, z, y, t),
            "attack": lambda n=network, z=codes, y=y, a=once: a(n, z, y),
            "attack of 5 steps": lambda n=network, z=codes, y=y, a=often: a(n, z, y),
        }
        times: dict[str, list[float]] = {kind: [] for kind in KINDS}
        for turn in range(repeats + 1):
            for kind in KINDS if turn % 2 else reversed(KINDS):
                start = time.process_time()
                runs[kind]()
                if turn:  # the first warms up
                    times[kind].append(time.process_time() - start)
        for kind in KINDS[1:]:
            passes = 5 if kind.endswith("steps") else 1
            ratios = sorted(a / b / passes for a, b in zip(times[kind], times["floor"], strict=True))
            rows.append(
                {"network": plan, "codes": encoder, "shape": [batch, T, *shape], "what": kind,
                 "floor": 1000 * median(times["floor"]), "milliseconds": 1000 * median(times[kind]),
                 "ratio": [median(ratios), ratios[0], ratios[-1]]}
            )  # fmt: skip
    return rows


def markdown(result: dict) -> str:
    lines = [
        "# Cost of the sparse encoding attack",
        "",
        f"k = {K} flips per frame, one thread: CPU milliseconds of one forward and backward to the spikes (the",
        "floor), of one step, and of the whole attack with its checks, its probe of two examples and its guard of",
        "the model; ratios to as many floors as steps within a round, median [least, most]. "
        f"Bar for the step: {BAR}.",
        "",
        "| network | codes | [N, T, C, H, W] | what | floor | takes | ratio |",
        "|-|-|-|-|-|-|-|",
    ]
    for row in result["rows"]:
        ratio = "{:.2f} [{:.2f}, {:.2f}]".format(*row["ratio"])
        shape = ", ".join(map(str, row["shape"]))
        lines.append(
            f"| {row['network']} | {row['codes']} | {shape} | {row['what']} | {row['floor']:.0f} "
            f"| {row['milliseconds']:.0f} | {ratio} |"
        )
    return "\n".join([*lines, "", "## Provenance", "", *as_lines(result["provenance"])]) + "\n"


if __name__ == "__main__":
    main("sea", __doc__, __file__, work, markdown, 9)
