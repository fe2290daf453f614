"""What PGD-10 costs beyond ten forwards and backwards, for stochade and (where .venv-peers exists) its peers.

    .venv/bin/python benchmarks/pgd_cost.py [--repeats 11] [--out results/cost]

Cases: (a) nothing falls, where all ten steps are due for every image: on a class of the user's own, and on a plain
nn.Sequential; (b) a CNN trained on MNIST at linf 0.3, where most images fall at once. Every timing stands between
two floors of its own process; contenders alternate and their order rotates. Writes pgd_cost.json and .md.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from provenance import ROOT, as_lines, provenance

sys.path.insert(0, str(Path(__file__).resolve().parent / "peers"))
from models import Network

SEED = 0
BATCH = 256
TINY, MNIST_EPS = 1e-6, 0.3
BARS = {"nothing falls": 1.08, "mnist": 0.5}
HERE = Path(__file__).resolve().parent
PEERS = ROOT / ".venv-peers" / "bin" / "python"
OURS = [
    "stochade",
    "stochade keep=last",
    "stochade drop_fooled=False",
    "stochade drop_fooled=False keep=last",
]
THEIRS = ["torchattacks", "foolbox", "ART", "adv-lib"]
CASES = {
    "nothing falls": "(a) nothing falls: linf 1e-6, labels are the model's predictions, a class of the user's own",
    "nothing falls, sequential": "(a') the same network as a plain nn.Sequential, whose scope stochade knows",
    "mnist": "(b) CNN trained on MNIST, 256 test images, linf 0.3",
}


class Worker:
    """A process of one environment that answers timing requests, one at a time."""

    def __init__(self, python: Path, folder: Path):
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        environment = os.environ | threads | {"PYTHONPATH": str(HERE / "peers" / "stubs")}
        command = [str(python), str(HERE / "cost_worker.py"), str(folder)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def ask(self, **request) -> dict:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"the worker ended while it was asked for {request}")
        return json.loads(line)

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=30)


def write_case(folder: Path, name: str, model: nn.Module, images: Tensor, labels: Tensor, eps: float, plain: bool):
    weights = {f"w:{key}": value.numpy() for key, value in model.state_dict().items()}
    facts = {
        "images": images.numpy(),
        "labels": labels.numpy(),
        "eps": np.float64(eps),
        "sequential": np.int64(plain),
    }
    np.savez(folder / f"{name}.npz", **weights, **facts)


@torch.no_grad()
def synthetic() -> tuple[nn.Module, Tensor, Tensor]:
    """An untrained network on saturated random images, with its own predictions for labels."""
    torch.manual_seed(SEED)
    model = Network().eval()
    images = (torch.rand(BATCH, 1, 28, 28) < 0.2).float()
    return model, images, model(images).argmax(1)


def trained(data: Path) -> tuple[nn.Module, Tensor, Tensor, float]:
    """The CNN after two epochs of MNIST (cached), the first 256 test images and the accuracy on all of them."""
    from stochade.data import load

    test = load(data, "test", progress=False)
    images, labels = test[: len(test)]
    cache = ROOT / ".data" / "benchmarks" / "cnn_mnist.npz"
    torch.manual_seed(SEED)
    model = Network()
    if cache.exists():
        with np.load(cache, allow_pickle=False) as file:
            model.load_state_dict({key: torch.from_numpy(file[key]) for key in file.files})
    else:
        print("training the CNN (two epochs, once) ...", file=sys.stderr)
        train = load(data, "train", validation=0, progress=False)
        fit(model, *train[: len(train)])
        cache.parent.mkdir(parents=True, exist_ok=True)
        np.savez(cache, **{key: value.numpy() for key, value in model.state_dict().items()})
    model.eval()
    with torch.no_grad():
        accuracy = float((model(images).argmax(1) == labels).float().mean())
    return model, images[:BATCH].clone(), labels[:BATCH].clone(), accuracy


def fit(model: nn.Module, images: Tensor, labels: Tensor, epochs: int = 2) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(SEED)
    for _ in range(epochs):
        for rows in torch.randperm(len(images), generator=generator).split(128):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[rows]), labels[rows]).backward()
            optimizer.step()
    model.zero_grad(set_to_none=True)


def mnist_folder() -> Path | None:
    for base in (os.environ.get("STOCHADE_DATA"), ROOT.parent / "shared" / "data"):
        if base and (Path(base) / "mnist").is_dir():
            return Path(base) / "mnist"
    return None


def measure(workers: dict[str, Worker], cases: list[str], repeats: int) -> dict:
    """{case: {contender: [timings]}}; one warm-up each, then rounds in rotated order."""
    contenders = list(workers)
    results: dict = {case: {name: [] for name in contenders} for case in cases}
    for case in cases:
        absent = {
            name: answer["missing"]
            for name in contenders
            if "missing" in (answer := workers[name].ask(case=case, contender=name))
        }
        results[case] |= {name: {"missing": why} for name, why in absent.items()}
        present = [name for name in contenders if name not in absent]
        for turn in range(repeats):
            shift = turn % len(present)
            for name in present[shift:] + present[:shift]:
                results[case][name].append(workers[name].ask(case=case, contender=name))
        print(f"{case}: done", file=sys.stderr)
    return results


def summary(timings: list[dict]) -> dict:
    def spread(key: str) -> dict:
        values = [t[key] for t in timings]
        return {"median": float(np.median(values)), "min": min(values), "max": max(values)}

    return {
        "cpu": spread("cpu"),
        "wall": spread("wall"),
        "floor cpu seconds": spread("floor cpu seconds"),
        "floors disagree": spread("floors disagree"),
        "accuracy after": timings[-1]["accuracy"],
        "left gradients": any(t["left gradients"] for t in timings),
        "repeats": len(timings),
        "cpu ratios": [round(t["cpu"], 4) for t in timings],
        "wall ratios": [round(t["wall"], 4) for t in timings],
    }


def markdown(result: dict) -> str:
    lines = [
        "# Cost of PGD-10 against its floor",
        "",
        "Floor: ten forwards and backwards to the images of the same model, measured in the same process just",
        "before and just after each attack. Figures are attack / floor, median [least, most]; process CPU time",
        "decides, wall time stands beside it. conv32-5x5s2, conv64-5x5s2, fc100, fc10; batch 256; linf, random",
        "start, ten steps of eps/4. *Accuracy* is what one prediction leaves; *dirty* is whether gradients stayed in",
        "the user's model.",
    ]
    for case, about in CASES.items():
        if case not in result["cases"]:
            lines += ["", f"## {about}", "", "Not measured: MNIST was not found (STOCHADE_DATA)."]
            continue
        bar = BARS.get(case)
        lines += ["", f"## {about}", "", "| | CPU / floor | wall / floor | accuracy | dirty |", "|-|-|-|-|-|"]
        for name, s in result["cases"][case].items():
            if "missing" in s:
                lines.append(f"| {name} | not installed: {s['missing']} | | | |")
                continue
            cpu, wall = (
                f"{s[key]['median']:.3f} [{s[key]['min']:.2f}, {s[key]['max']:.2f}]" for key in ("cpu", "wall")
            )
            dirty = "yes" if s["left gradients"] else "no"
            lines.append(f"| {name} | {cpu} | {wall} | {100 * s['accuracy after']:.1f} % | {dirty} |")
        if bar is not None:
            median = result["cases"][case]["stochade"]["cpu"]["median"]
            met = "met" if median <= bar else "MISSED"
            lines += ["", f"Bar for stochade: at most {bar:.2f} of CPU time; {met} ({median:.3f})."]
    lines += ["", "## Provenance", "", *as_lines(result["provenance"])]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "cost")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    facts: dict = {"seed": SEED, "repeats": arguments.repeats, "clock": "process CPU time and wall time"}
    with tempfile.TemporaryDirectory() as text:
        folder, cases = Path(text), ["nothing falls", "nothing falls, sequential"]
        for name in cases:
            write_case(folder, name, *synthetic(), eps=TINY, plain="sequential" in name)
        data = mnist_folder()
        if data is None:
            print("MNIST was not found under STOCHADE_DATA: case (b) is left out", file=sys.stderr)
        else:
            model, images, labels, accuracy = trained(data)
            write_case(folder, "mnist", model, images, labels, eps=MNIST_EPS, plain=False)
            cases.append("mnist")
            facts["MNIST CNN"] = f"{100 * accuracy:.2f} % on the 10,000 test images"
        own = Worker(Path(sys.executable), folder)
        workers = dict.fromkeys(OURS, own)
        if PEERS.exists():
            workers |= dict.fromkeys(THEIRS, Worker(PEERS, folder))
        else:
            print("no .venv-peers: run benchmarks/peers/setup.sh to see the peers", file=sys.stderr)
        distinct = list({id(w): w for w in workers.values()}.values())
        facts["threads"] = 1
        facts["versions"] = {k: v for w in distinct for k, v in w.ask(hello=True)["versions"].items()}
        raw = measure(workers, cases, arguments.repeats)
        for worker in distinct:
            worker.close()
    result = {
        "cases": {
            case: {name: t if "missing" in t else summary(t) for name, t in table.items()}
            for case, table in raw.items()
        },
        "bars": BARS,
        "provenance": provenance(**facts),
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "pgd_cost.json").write_text(json.dumps(result, indent=1) + "\n")
    text = markdown(result)
    (arguments.out / "pgd_cost.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
