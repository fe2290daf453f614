"""What every library reports on models whose accuracy under attack is known exactly, beside the truth.

    .venv/bin/python benchmarks/peers/known_answers.py [--seeds 3] [--cases ...] [--attacks ...] [--quick]

The models are `stochade.models.known_answer.KNOWN`; the peers run on the same objects in .venv-peers. Two numbers for
each attack: what it (or its suite) tells its user, and what the images that it returned are worth, which is exact:
P(correct) in closed form. Stochade's attacks are scored by `evaluate`. Writes results/peers/known_answers.json and
.md; with --attacks only these rows are measured, and join the table that is there.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from scipy.stats import binom

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import known_tables
from networks import CACHE

from provenance import QUICK, ROOT, commit, provenance, save
from stochade.attacks import L0, L2, Attack
from stochade.attacks.registry import parse_attack
from stochade.attacks.threats import Threat
from stochade.errors import StochadeError
from stochade.evaluate import evaluate
from stochade.models.known_answer import KNOWN, Case
from workers import NO_PEERS, PEERS, environment

COUNT, DRAWS = 200, 20
LINF = (
    "fgsm", "bim", "ill", "pgd", "mifgsm", "apgd-ce", "apgd-dlr", "apgd-t", "square", "nes", "spsa", "evolution",
    "random-search", "hopskipjump", "fmn norm=linf", "deepfool norm=linf", "cw norm=linf", "standard", "random",
)  # fmt: skip
OTHERS = {"l2": ("cw", "lbfgs", "deepfool", "fmn", "apgd-ce", "pgd"), "l0": ("jsma", "sigma-zero", "fmn")}


def threats(case: Case) -> dict[str, Threat]:
    """The case's own threat, an l2 ball of about the same reach, and three values under l0."""
    eps = case.threat.size
    return {"linf": case.threat, "l2": L2(0.8 * eps * math.sqrt(case.images[0].numel())), "l0": L0(3)}


def ours(case: Case, seeds: int, only: list[str] | None) -> list[dict]:
    """One row per attack: score and interval per seed, and the exact worth of the images of the first seed."""
    rows = []
    for norm, threat in threats(case).items():
        try:
            truth = case.model.truth(case.images, case.labels, threat)  # type: ignore[operator]
        except StochadeError:
            continue  # no closed form under this norm
        if bool(truth.isnan().any()):
            continue
        for name in LINF if norm == "linf" else OTHERS[norm]:
            if only and name not in only:
                continue
            row: dict = {"attack": name, "norm": norm, "eps": threat.size, "truth": float(truth.mean())}
            rows.append(row | attempt(case, name, threat, truth, seeds))
            print(f"  {name} {norm}: {rows[-1]}"[:150], file=sys.stderr, flush=True)
    return rows


def attempt(case: Case, name: str, threat: Threat, truth: torch.Tensor, seeds: int) -> dict:
    """An attack that aims at the decision (smallest change) is judged by votes, every other by single predictions."""
    try:
        attack: Attack = parse_attack(name, threat)
        runs = [
            evaluate(
                case.model, case.images, case.labels, {name: attack}, DRAWS, seed, keep_images=COUNT,
                show_progress=False,
            )
            for seed in range(seeds)
        ]  # fmt: skip
    except StochadeError as trouble:
        return {"missing": f"{type(trouble).__name__}: {trouble}".splitlines()[0][:200]}
    kept = runs[0].attacks[name].images
    images = torch.from_numpy(np.stack([kept[row] for row in sorted(kept)]))
    labels = case.labels[: len(images)]
    right = case.model.accuracy_at(images, labels)  # type: ignore[operator]
    kind = "vote" if attack.minimal else "single"
    answer: dict = {"kind": kind, "worth": float((voted(right, labels) if attack.minimal else right).mean())}
    if attack.minimal:
        answer["truth"] = float(voted(truth, case.labels).mean())
    for target in ("population", "test set"):
        scores = [records.score(name, kind, target=target) for records in runs]
        answer[target] = [[s.value, s.low, s.high] for s in scores]
    return answer


def voted(right: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """P(the majority of DRAWS independent predictions is right) where one is with probability `right`, of two classes
    (a tie goes to class 0)."""
    least = np.where(labels.numpy() == 0, DRAWS // 2, DRAWS // 2 + 1)
    return torch.from_numpy(binom.sf(least - 1, DRAWS, right.double().numpy()))


def taken_up(name: str, seeds: int, only: list[str] | None, source: str) -> dict:
    """What stochade's attacks do to one model; an interrupted benchmark takes up what this very commit measured."""
    case = KNOWN[name](count=COUNT)
    kept = CACHE / f"known-{name}-{seeds}-{source}.json"
    if only is None and "uncommitted" not in source and kept.is_file():
        return json.loads(kept.read_text())
    found = {
        "about": case.description,
        "honest": case.honest,
        "threat": str(case.threat),
        "clean": float(case.clean().mean()),
        "truth": float(case.truth().mean()),
        "stochade": ours(case, seeds, only),
    }
    if only is None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(found))
    return found


def theirs(names: list[str], seeds: int) -> tuple[dict[str, list[dict]], dict]:
    """{case: entries} with what was reported and the exact worth of the images of every seed; and the versions."""
    if not PEERS.exists():
        print(NO_PEERS, file=sys.stderr)
        return {}, {}
    here = Path(__file__).resolve().parent
    with tempfile.TemporaryDirectory() as folder:
        arrays, report = Path(folder) / "images.npz", Path(folder) / "report.json"
        command = [PEERS, here / "known_answers_peers.py", arrays, report, seeds, COUNT, *names]
        subprocess.run([str(part) for part in command], check=True, env=environment(source=True))
        found, told = np.load(arrays, allow_pickle=False), json.loads(report.read_text())
        for name, entries in told["cases"].items():
            case = KNOWN[name](count=COUNT)
            for entry in entries:
                key = f"{name}:{entry['index']}"
                if key in found:
                    images = torch.from_numpy(found[key])
                    excess = [float(case.threat.distance(part, case.images).max()) for part in images]
                    entry["furthest"] = max(excess)
                    entry["worth"] = [float(case.model.accuracy_at(part, case.labels).mean()) for part in images]  # type: ignore[operator]
    return told["cases"], told["versions"]


def joined(result: dict, cases: dict, source: str) -> dict:
    """The earlier table with the rows of `cases` in the place of its own, each with its commit."""
    for name, case in cases.items():
        fresh = {(row["attack"], row["norm"]): row | {"commit": source} for row in case["stochade"]}
        rows = result["cases"][name]["stochade"]
        result["cases"][name]["stochade"] = [fresh.get((row["attack"], row["norm"]), row) for row in rows]
    at = ", ".join(
        f"{name}: {'; '.join(sorted({r['attack'] for r in case['stochade']}))}" for name, case in cases.items()
    )
    result["provenance"][f"measured again at {source}"] = at
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--cases", nargs="+", choices=list(KNOWN), default=list(KNOWN))
    parser.add_argument("--attacks", nargs="+", help="only these of stochade's (default: all)")
    parser.add_argument("--no-peers", action="store_true", help="stochade's rows only, on standard output")
    parser.add_argument("--quick", action="store_true", help="one case, one seed: a smoke run")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "peers")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    names, seeds = (["coin-flip"], 1) if arguments.quick else (arguments.cases, arguments.seeds)
    source, cases = commit(), {}
    for name in names:
        print(name, file=sys.stderr)
        cases[name] = taken_up(name, seeds, arguments.attacks, source)
    place = QUICK if arguments.quick else arguments.out
    if arguments.attacks and not arguments.no_peers:
        result = joined(json.loads((place / "known_answers.json").read_text()), cases, source)
        save(place, "known_answers", result, known_tables.markdown(result))
        return
    peers, versions = ({}, {}) if arguments.no_peers else theirs(names, seeds)
    for name, entries in peers.items():
        cases[name]["peers"] = entries
    facts = provenance(commit=source, seeds=f"0 to {seeds - 1}", peers=versions)
    result = {"examples": COUNT, "draws": DRAWS, "cases": cases, "provenance": facts}
    if arguments.no_peers:
        print(known_tables.markdown(result))
        return
    save(place, "known_answers", result, known_tables.markdown(result))


if __name__ == "__main__":
    main()
