"""Stochade's attacks beside their peers' at equal budgets: same weights, same images, every image scored by one code.

    .venv/bin/python benchmarks/attack_parity.py [--parts suites bounded minimal] [--images 256] [--quick]

Four networks (peers/networks.py). `suites`: the suite standard beside the official AutoAttack. `bounded`: APGD with
three losses, and Square, inside a budget. `minimal`: C&W, DeepFool, FMN and sigma-zero, which look for the smallest
change. Writes results/attacks/parity.json and .md; parts that are not run again keep their figures and provenance.
"""

import argparse
import hashlib
import json
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent / "peers"))
from contenders import CHANGED
from networks import CACHE, RECIPES, problem

import parity_tables
from cases import write_case
from provenance import QUICK, ROOT, commit, provenance, save
from scoring import broken, found_distances, wrong
from workers import both

STEPS, QUERIES = 100, 1000
CW = {"steps": 100, "searches": 6, "c": 1.0}
CW_RATE = {"mnist": 0.1, "cifar10": 0.01}  # steps of 0.01 hardly leave a saturated pixel in tanh space
FMN_STEPS, SIGMA_STEPS = 200, 300
BUDGETS: dict[str, dict[str, list[float]]] = {
    "mnist": {"linf": [0.08, 0.12], "l2": [1.2], "l1": [8.0]},
    "mnist-adversarial": {"linf": [0.3, 0.33], "l2": [1.5], "l1": [8.0]},
    "cifar10": {"linf": [0.5 / 255, 1 / 255], "l2": [0.1], "l1": [2.0]},
    "cifar10-adversarial": {"linf": [4 / 255, 8 / 255], "l2": [0.5], "l1": [8.0]},
}
LIBRARIES = ("stochade", "auto-attack", "adv-lib", "foolbox", "torchattacks")
COPIES = {("apgd-ce", "torchattacks")}  # auto-attack's code again


class Bench:
    """The four problems, a process of each environment, and one way to ask for images.

    Args:
        names: networks out of RECIPES. images: test images of each.
    """

    def __init__(self, folder: Path, names: list[str], images: int, libraries: list[str]):
        self.folder, self.names, self.libraries = folder, names, libraries
        self.problems: dict[str, tuple] = {}
        self.accuracies: dict[str, float] = {}
        for name in names:
            model, x, y, self.accuracies[name] = problem(name, images)
            self.problems[name] = (model, x, y)
            write_case(folder, name, model, x, y)
        self.workers = both("attack_worker.py", folder)
        answers = [worker.ask(hello=True)["versions"] for worker in self.workers.values()]
        self.versions = {key: value for told in answers for key, value in told.items()}

    def ask(self, case: str, attack: str, library: str, **options) -> tuple[Tensor | None, dict]:
        """The images, or None where the attack is missing or failed; and the worker's answer."""
        side = "ours" if library == "stochade" else "theirs"
        if side not in self.workers or library not in self.libraries:
            return None, {"missing": "not asked"}
        kept = self.kept(side, case, attack, library, options)
        path, beside = kept.with_suffix(".npy"), kept.with_suffix(".json")
        if side == "theirs" and beside.exists():
            told = json.loads(beside.read_text())
        else:
            told = self.workers[side].ask(case=case, attack=attack, library=library, options=options, save=str(path))
            if side == "theirs" and "missing" not in told:
                beside.write_text(json.dumps(told))
        cost = f"{told['cpu']:.1f} s" if "cpu" in told else told
        print(f"{case} {attack} {library} {options}: {cost}", file=sys.stderr, flush=True)
        return (torch.from_numpy(np.load(path)), told) if "cpu" in told else (None, told)

    def kept(self, side: str, *facts) -> Path:
        """Where the images go: a peer's answer to this very question is kept, so that an interrupted run goes on."""
        if side == "ours":
            return self.folder / "images"
        weights, x, _ = self.problems[facts[0]]
        contents = [t.numpy().tobytes() for t in (*weights.state_dict().values(), x)]
        text = json.dumps([facts, self.versions], sort_keys=True)
        digest = hashlib.sha256(b"".join([*contents, text.encode()])).hexdigest()[:20]
        folder = CACHE / "peers"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / digest

    def rows(self, case: str, attack: str, **options):
        """(library, images, answer) of every library that has the attack."""
        for library in LIBRARIES:
            if (attack, library) in COPIES:
                continue
            images, told = self.ask(case, attack, library, **options)
            if told.get("missing") != "no such attack" and told.get("missing") != "not asked":
                yield library, images, told

    def close(self) -> None:
        for worker in self.workers.values():
            worker.close()


def cost(told: dict) -> dict:
    return {key: round(told[key], 2) for key in ("cpu", "forwards", "backwards") if key in told}


def suites(bench: Bench) -> list[dict]:
    """One row per network and budget: robust accuracy of both suites, and on which images they differ."""
    rows = []
    for name in bench.names:
        model, x, y = bench.problems[name]
        for eps in dict.fromkeys((RECIPES[name].small, RECIPES[name].eps)):
            row: dict = {"network": name, "eps": eps, "images": len(x), "clean": int((~wrong(model, x, y)).sum())}
            fell = {}
            for library, images, told in bench.rows(name, "standard", norm="linf", eps=eps):
                row[library] = {k: v for k, v in told.items() if k in ("missing", "error")} | cost(told)
                if images is not None:
                    fell[library] = broken(model, images, x, y, "linf", eps) | wrong(model, x, y)
                    row[library]["right"] = int((~fell[library]).sum())
            if len(fell) == 2:
                ours, theirs = fell["stochade"], fell["auto-attack"]
                row |= {"only ours": int((ours & ~theirs).sum()), "only theirs": int((theirs & ~ours).sum())}
            rows.append(row)
    return rows


def bounded(bench: Bench, attacks: list[str], seeds: int) -> list[dict]:
    """One row per network, attack, norm and budget: robust accuracy of each library, over the seeds."""
    rows = []
    for name in bench.names:
        model, x, y = bench.problems[name]
        for attack in attacks:
            for norm, budgets in BUDGETS[name].items():
                if attack in ("square", "apgd-t") and norm == "l1":
                    continue
                for eps in budgets[-1:] if attack in ("square", "apgd-t") else budgets:
                    row: dict = {"network": name, "attack": attack, "norm": norm, "eps": eps, "libraries": {}}
                    for seed in range(1 if attack == "apgd-t" else seeds):
                        size = {"queries": QUERIES} if attack == "square" else {"steps": STEPS}
                        for library, images, told in bench.rows(name, attack, norm=norm, eps=eps, seed=seed, **size):
                            entry = row["libraries"].setdefault(library, {"right": []})
                            if images is None:
                                entry |= told
                            else:
                                fell = broken(model, images, x, y, norm, eps) | wrong(model, x, y)
                                entry["right"].append(int((~fell).sum()))
                                entry |= cost(told)
                    rows.append(row | {"images": len(x)})
    return rows


def smallest(rate: float, few: int) -> list[tuple[str, str, dict]]:
    """(attack, norm, options) of the attacks that look for the smallest change, with a `few`-th of the steps."""
    plan: list[tuple[str, str, dict]] = [("cw", "l2", CW | {"rate": rate, "steps": CW["steps"] // few})]
    plan += [("deepfool", "l2", {"steps": 50, "norm": "l2"})]
    plan += [("fmn", norm, {"steps": FMN_STEPS // few, "norm": norm}) for norm in ("linf", "l2", "l1", "l0")]
    return [*plan, ("sigma-zero", "l0", {"steps": SIGMA_STEPS // few})]


def minimal(bench: Bench, quick: bool) -> list[dict]:
    """One row per network, attack and norm: distances of each library, in quantiles and at three budgets."""
    rows = []
    for name in bench.names:
        model, x, y = bench.problems[name]
        for attack, norm, options in smallest(CW_RATE[RECIPES[name].data], 4 if quick else 1):
            row: dict = {"network": name, "attack": attack, "norm": norm, "options": options, "libraries": {}}
            found = {}
            for library, images, told in bench.rows(name, attack, **options):
                row["libraries"][library] = told if images is None else cost(told)
                if images is not None:
                    found[library] = found_distances(model, images, x, y, norm)
            if found:
                right = ~wrong(model, x, y)
                least = np.min(list(found.values()), axis=0)[right]
                row["budgets"] = [float(np.quantile(least[np.isfinite(least)], q)) for q in (0.25, 0.5, 0.75)]
                for library, needed in found.items():
                    row["libraries"][library] |= {
                        "median": float(np.median(needed[right])),
                        "mean": float(np.minimum(needed[right], x[0].numel()).mean()),
                        "failed": int(np.isinf(needed).sum()),
                        "right": [int((needed > budget * (1 + 1e-6)).sum()) for budget in row["budgets"]],
                    }
            rows.append(row | {"images": len(x)})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--parts", nargs="+", choices=("suites", "bounded", "minimal"), help="default: all")
    parser.add_argument("--networks", nargs="+", choices=list(RECIPES), default=list(RECIPES))
    parser.add_argument("--attacks", nargs="+", default=["apgd-ce", "apgd-dlr", "apgd-t", "square"])
    parser.add_argument("--libraries", nargs="+", choices=LIBRARIES, default=list(LIBRARIES))
    parser.add_argument("--seeds", type=int, default=2, help="of the attacks inside a budget (targeted APGD: one)")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--fresh", action="store_true", help="ask the peers again instead of using kept answers")
    parser.add_argument("--quick", action="store_true", help="16 images, one network, fewer steps: a smoke run")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "attacks")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    names, images = (["mnist"], 16) if arguments.quick else (arguments.networks, arguments.images)
    if arguments.quick:
        arguments.out = QUICK
    path = arguments.out / "parity.json"
    result = json.loads(path.read_text()) if path.exists() else {}
    if arguments.fresh:
        shutil.rmtree(CACHE / "peers", ignore_errors=True)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), names, images, arguments.libraries)
        parts = {
            "suites": lambda: suites(bench),
            "bounded": lambda: bounded(bench, arguments.attacks, arguments.seeds),
            "minimal": lambda: minimal(bench, arguments.quick),
        }
        for part in arguments.parts or list(parts):
            source = commit()
            rows = parts[part]()
            accuracies = {name: f"{100 * value:.2f} %" for name, value in bench.accuracies.items()}
            facts = provenance(
                commit=source, seeds=f"from 0, {arguments.seeds}", versions=bench.versions, accuracies=accuracies
            )
            result[part] = {"rows": rows, "changed": CHANGED, "provenance": facts}
            arguments.out.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(result, indent=1) + "\n")  # hours of work: keep each part as it comes
        bench.close()
    save(arguments.out, "parity", result, parity_tables.markdown(result))


if __name__ == "__main__":
    main()
