"""The peers' half of known_answers.py, run in .venv-peers with stochade's sources on the path (its models only).

Usage: python known_answers_peers.py OUT.npz OUT.json SEEDS COUNT CASE...
"""

import json
import logging
import sys
from pathlib import Path

import numpy as np
import torch
from reports import ENTRIES, MORE, Problem, on_two_classes, run_all

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from cases import versions


def main(images_out: str, report_out: str, seeds: int, count: int, names: list[str]) -> None:
    torch.set_num_threads(1)
    from stochade.models.known_answer import KNOWN

    logging.getLogger().setLevel(logging.ERROR)
    told, arrays = {}, {}
    for name in names:
        case = KNOWN[name](count=count)
        print(f"--- {name}", flush=True)
        problem = Problem(case.model, case.images, case.labels, case.threat.size, classes=2)
        told[name], images = run_all(problem, on_two_classes([*ENTRIES, *MORE]), seeds)
        arrays |= {f"{name}:{index}": array for index, array in images.items()}
    np.savez(images_out, **arrays)
    Path(report_out).write_text(json.dumps({"cases": told, "versions": versions()}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5:])
