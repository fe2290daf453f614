"""Adapters against the real SpikingJelly (2.0 and 0.0.0.0.14), snnTorch and Norse; `make test-peers` installs them.

Each library runs in an environment of its own, .venv-peers-spiking, and in a process of its own; the checks are in
`workers/`. Skipped where the environment or the library is missing.
"""

import ast
import functools
import json
import os
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PEERS = ROOT / ".venv-peers-spiking"
OLD = PEERS / "spikingjelly-0.0.0.0.14"
LIBRARIES = {
    "spikingjelly": ("spikingjelly", None),
    "spikingjelly-0.0.0.0.14": ("spikingjelly", OLD),
    "snntorch": ("snntorch", None),
    "norse": ("norse", None),
}


def checks_of(worker: str) -> list[str]:
    tree = ast.parse((HERE / "workers" / f"{worker}_checks.py").read_text())
    return [n.name for n in tree.body if isinstance(n, ast.FunctionDef) and n.name.startswith("check_")]


CASES = [(library, check) for library, (worker, _) in LIBRARIES.items() for check in checks_of(worker)]


@functools.cache
def answers(library: str) -> dict[str, str] | None:
    """What each check said: "" or a traceback; None where the library is missing."""
    worker, folder = LIBRARIES[library]
    python = PEERS / "bin" / "python"
    if not python.exists() or (folder and not folder.exists()):
        return None
    paths = [str(ROOT / "src"), *([str(folder)] if folder else [])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    probe = subprocess.run(
        [str(python), "-W", "ignore", "-c", f"import {worker}"], env=environment, capture_output=True
    )
    if probe.returncode:
        return None
    command = [str(python), "-W", "ignore", str(HERE / "workers" / f"{worker}_checks.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout[done.stdout.index("{") :])


@pytest.mark.parametrize(("library", "check"), CASES, ids=[f"{a}-{b.removeprefix('check_')}" for a, b in CASES])
def test_adapter(library, check):
    found = answers(library)
    if found is None:
        pytest.skip(f"no {library} in {PEERS.name}: make test-peers")
    assert found[check] == ""
