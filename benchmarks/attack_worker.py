"""One process that runs attacks on request; `attack_parity.py` and the cost scripts start one per environment.

Reads JSON lines on standard input and answers each on standard output:

    {"case": ..., "attack": ..., "library": ..., "options": {...}, "save": path or null, "floor": steps or null}

Answer: CPU and wall seconds, the passes that the model really saw per image, and where `floor` is given the times of
so many forwards and backwards just before and after. A library or attack that is not there is {"missing": why}, one
that fails {"error": what}. Torch and NumPy only at the top.
"""

import json
import sys
import time
import traceback
import warnings
from pathlib import Path

import numpy as np
import torch

from cases import load_case, versions
from counting import Counter, floor


def contenders() -> dict[str, dict]:
    """All of this environment's attacks: attack -> library -> function."""
    from contenders import CONTENDERS as theirs

    import ours

    names = [*ours.CONTENDERS, *theirs]
    return {name: ours.CONTENDERS.get(name, {}) | theirs.get(name, {}) for name in names}


def timed(run) -> tuple[float, float, object]:
    cpu, wall = time.process_time(), time.perf_counter()
    result = run()
    return time.process_time() - cpu, time.perf_counter() - wall, result


def answer(table: dict, problem: tuple, request: dict) -> dict:
    model, images, labels, _ = problem
    try:
        attack = table[request["attack"]][request["library"]]
    except KeyError:
        return {"missing": "no such attack"}
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    steps, reply = request.get("floor"), {}
    if steps:
        before = timed(lambda: floor(model, images, labels, steps))
    counter = None if request.get("uncounted") else Counter(model, len(images))
    try:
        cpu, wall, adversarial = timed(lambda: attack(model, images.clone(), labels.clone(), **request["options"]))
    except Exception as trouble:
        first = f"{type(trouble).__name__}: {trouble}".splitlines()[0][:200]
        if isinstance(trouble, ImportError) or type(trouble).__name__ == "UsageError":
            return {"missing": first}
        traceback.print_exc(limit=-3, file=sys.stderr)
        return {"error": first}
    finally:
        reply |= counter.close() if counter else {}
    if steps:
        after = timed(lambda: floor(model, images, labels, steps))
        floors = [(before[i] + after[i]) / 2 for i in (0, 1)]
        reply |= {"floor cpu": floors[0], "floor wall": floors[1], "floors disagree": after[0] / before[0]}
    reply |= {"cpu": cpu, "wall": wall, "left gradients": any(p.grad is not None for p in model.parameters())}
    model.zero_grad(set_to_none=True)
    model.eval()
    if request.get("save"):
        np.save(request["save"], adversarial.detach().numpy().astype(np.float32))
    return reply


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    torch.set_num_interop_threads(1)
    warnings.simplefilter("ignore")
    answers, sys.stdout = sys.stdout, sys.stderr
    problems: dict[str, tuple] = {}
    table = contenders()
    for line in sys.stdin:
        request = json.loads(line)
        if request.get("hello"):
            reply = {"versions": versions(), "threads": torch.get_num_threads()}
        else:
            if request["case"] not in problems:
                problems[request["case"]] = load_case(folder, request["case"])
            reply = answer(table, problems[request["case"]], request)
        answers.write(json.dumps(reply) + "\n")
        answers.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
