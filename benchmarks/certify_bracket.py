"""What is proven about the votes of random networks, and what attacks of the same distance leave of them.

    .venv/bin/python benchmarks/certify_bracket.py [--out results/evidence] [--quick]   # about ten minutes

A CNN behind Gaussian noise and a CNN behind Bernoulli rate codes, trained under their own noise on digits and (where
it is at hand) MNIST; certificates of 10,000 draws, then PGD through the expectation over the noise at the same
distances, judged by votes of 500 draws. Writes after each case; a certified lower end above an attacked upper end
would be a wrong proof, and ends the run.
"""

import argparse
import os
import time
from pathlib import Path

from torch import nn

from provenance import QUICK, ROOT, as_lines, commit, provenance, save
from stochade import data as images_of
from stochade.certify.bracket import attacked, bracketed, upper_bounds
from stochade.certify.choose import smoothing_of
from stochade.certify.run import certify_examples
from stochade.randomness import forked
from stochade.registry import build
from stochade.train import train

ALPHA, DRAWS, VOTES = 0.001, 10_000, 500
CASES = (  # data, model, epochs, distances, images
    ("digits", "noisy-cnn", 30, (0.0, 0.2, 0.4, 0.6), 200),
    ("digits", "rate-cnn", 30, (0.0, 0.02, 0.04, 0.06), 200),
    ("mnist", "noisy-cnn", 2, (0.0, 0.25, 0.5, 0.75), 100),
    ("mnist", "rate-cnn", 2, (0.0, 0.02, 0.04, 0.06), 100),
)


def trained(name: str, source: str, epochs: int, quick: bool) -> nn.Module:
    images, validation = (images_of.load(source, split) for split in ("train", "validation"))
    if source == "mnist":
        images, validation = images.take(20_000, seed=0), validation.take(1000, seed=0)
    with forked(0):
        model = build(name, images.shape[1:], images.num_classes)
    train(model, images, validation, epochs=1 if quick else epochs, batch=50, lr=1e-3, seed=0, progress=False)
    return model.eval()


def case(source: str, name: str, epochs: int, radii: tuple[float, ...], count: int, quick: bool) -> list[dict]:
    start = time.perf_counter()
    model = trained(name, source, epochs, quick)
    test = images_of.load(source, "test").take(10 if quick else count, seed=0)
    base, smoothing = smoothing_of(model)
    found = certify_examples(
        base, test, None, smoothing, draws=500 if quick else DRAWS, alpha=ALPHA, batch=500, show_progress=False
    )
    records = attacked(base, smoothing, test, None, radii, draws=60 if quick else VOTES, show_progress=False)
    left, above = upper_bounds(records, ALPHA), upper_bounds(records, ALPHA, undecided=True)
    if not bracketed({r: found.accuracy(r) for r in radii}, above):
        raise SystemExit(f"an attack leaves less than is certified: {source}, {name}")
    seconds = time.perf_counter() - start
    return [
        {"data": source, "network": name, "images": len(found), "norm": smoothing.norm, "distance": r,
         "certified": found.accuracy(r).as_dict(), "attacked": left[r].as_dict(), "upper": above[r].as_dict(),
         "seconds": round(seconds)}
        for r in radii
    ]  # fmt: skip


def told(estimate: dict) -> str:
    return "{:.1f} [{:.1f}, {:.1f}]".format(*(100 * estimate[key] for key in ("value", "low", "high")))


def markdown(result: dict) -> str:
    lines = [
        "# Votes of random networks: proven, and attacked",
        "",
        "Percent of test images [95 % interval over images]. *Certified*: proven to be right at this distance,",
        f"{DRAWS} draws, wrong with probability {ALPHA} each; undecided ones count as errors. *Attacked*: the vote",
        f"of {VOTES} draws under PGD-20 through the expectation over the noise, undecided ones wrong; *upper end*:",
        "undecided ones right. The truth about the vote lies between the certified accuracy and the upper end.",
        "",
        "| data | network | images | distance | certified | attacked | upper end |",
        "|-|-|-|-|-|-|-|",
    ]
    for row in result["rows"]:
        numbers = " | ".join(told(row[key]) for key in ("certified", "attacked", "upper"))
        lines.append(
            f"| {row['data']} | {row['network']} | {row['images']} | {row['norm']} {row['distance']:g} | {numbers} |"
        )
    return "\n".join([*lines, "", "## Provenance", "", *as_lines(result["provenance"])]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "evidence")
    parser.add_argument("--quick", action="store_true", help="one epoch, ten images: a smoke run")
    arguments = parser.parse_args()
    where, rows = commit(), []
    for source, *rest in CASES:
        if source != "digits" and (arguments.quick or not os.environ.get("STOCHADE_DATA")):
            continue
        rows += case(source, *rest, arguments.quick)  # type: ignore[arg-type]
        result = {"rows": rows, "provenance": provenance(commit=where, seed=0)}
        save(QUICK if arguments.quick else arguments.out, "certify_bracket", result, markdown(result))


if __name__ == "__main__":
    main()
