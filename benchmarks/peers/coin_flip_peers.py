"""The peers' half of coin_flip.py, run in .venv-peers: each library attacks the coin flip and says what it found.

Usage: python coin_flip_peers.py OUT.npz OUT.json SEEDS. Every entry holds the number that the library itself hands to
its user, where that number came from, and the images that it returned.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from models import coin_flip_problem
from reports import CUT, ENTRIES, Problem, run_all

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from cases import versions

EPS = 1e-6


def main(images_out: str, report_out: str, seeds: int) -> None:
    torch.set_num_threads(1)
    model, images, labels = coin_flip_problem()
    entries = [*ENTRIES[:-2], *CUT, *ENTRIES[-2:]]
    results, arrays = run_all(Problem(model.eval(), images, labels, EPS), entries, seeds)
    np.savez(images_out, **arrays)
    Path(report_out).write_text(json.dumps({"entries": results, "versions": versions()}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
