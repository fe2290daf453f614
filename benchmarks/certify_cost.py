"""How many draws per second a certificate makes, beside one forward and one draw of noise for the same batch.

    .venv/bin/python benchmarks/certify_cost.py [--repeats 9] [--out results/cost]

They alternate in one process of one thread, in which freed memory is kept. The floor: the network on a batch of one
image plus fresh noise (a rate-coded network: one forward on the batch). The certificate: `votes` of as many draws,
and the whole of `certify` with its checks and first look, 4,000 draws. Ratios of rates are formed within a round, of
process CPU time. Writes certify.json and .md.
"""

import time
from statistics import median

import torch
from torch import nn

from provenance import as_lines
from single import main
from stochade.certify import Gaussian, RateCode, Smoothing, certify
from stochade.certify.votes import Voter
from stochade.models import spiking_vgg
from stochade.randomness import untouched
from stochade.registry import build

BAR, BATCH, DRAWS = 0.9, 500, 4000
KINDS = ("floor", "votes", "certify")


def cases() -> list[tuple[str, nn.Module, Smoothing, tuple[int, int, int]]]:
    """(name, network, smoothing, shape of an image)."""
    torch.manual_seed(0)
    found: list[tuple[str, nn.Module, Smoothing, tuple[int, int, int]]] = []
    for name, shape in (("2cnn", (1, 28, 28)), ("resnet", (3, 32, 32))):
        found.append((f"{name}, Gaussian", build(name, shape, 10).eval(), Gaussian(0.25), shape))
    snn = spiking_vgg((1, 28, 28), 10, plan="small", encoder="rate", steps=4).eval()
    return [*found, ("spiking, rate code", snn, RateCode(4), (1, 28, 28))]


@torch.no_grad()
def floor(model: nn.Module, smoothing: Smoothing, rows: torch.Tensor) -> None:
    for _ in range(DRAWS // BATCH):
        model(rows + smoothing.sigma * torch.randn_like(rows) if isinstance(smoothing, Gaussian) else rows)


def work(repeats: int) -> list[dict]:
    """Draws per second of the three, and ratios to the floor, for every case."""
    torch.set_num_threads(1)
    rows = []
    for name, model, smoothing, shape in cases():
        x = torch.rand(1, *shape)
        batch = x.expand(BATCH, *shape).contiguous()

        def votes(model=model, smoothing=smoothing, x=x) -> None:
            with untouched(model):
                Voter(model, smoothing, x, 0, 0, BATCH).votes("bound", DRAWS, 10)

        runs = {
            "floor": lambda m=model, s=smoothing, b=batch: floor(m, s, b),
            "votes": votes,
            "certify": lambda m=model, s=smoothing, x=x: certify(
                m, x, s, selection=BATCH, draws=DRAWS - BATCH, batch=BATCH
            ),
        }  # fmt: skip
        times: dict[str, list[float]] = {kind: [] for kind in KINDS}
        for turn in range(repeats + 1):
            for kind in KINDS if turn % 2 else reversed(KINDS):
                start = time.process_time()
                runs[kind]()
                if turn:  # the first warms up
                    times[kind].append(time.process_time() - start)
        for kind in KINDS[1:]:
            ratios = sorted(b / a for a, b in zip(times[kind], times["floor"], strict=True))
            rows.append(
                {"network": name, "what": kind, "floor": DRAWS / median(times["floor"]),
                 "rate": DRAWS / median(times[kind]), "ratio": [median(ratios), ratios[0], ratios[-1]]}
            )  # fmt: skip
    return rows


def markdown(result: dict) -> str:
    lines = [
        "# Cost of certificates",
        "",
        f"Draws per second of CPU time, one thread, {BATCH} draws per forward: one forward and one draw of noise",
        "(the floor), the votes of a certificate, and the whole certificate of one image with its checks; rates over",
        f"the floor's within a round, median [least, most]. Bar for votes: {BAR}. *certify* holds the first look at",
        "the model, eight batches once per run however many images follow: as many draws as this one image takes.",
        "",
        "| network | what | floor, draws/s | draws/s | ratio |",
        "|-|-|-|-|-|",
    ]
    for row in result["rows"]:
        ratio = "{:.2f} [{:.2f}, {:.2f}]".format(*row["ratio"])
        lines.append(f"| {row['network']} | {row['what']} | {row['floor']:.0f} | {row['rate']:.0f} | {ratio} |")
    return "\n".join([*lines, "", "## Provenance", "", *as_lines(result["provenance"])]) + "\n"


if __name__ == "__main__":
    main("certify", __doc__, __file__, work, markdown, 9)
