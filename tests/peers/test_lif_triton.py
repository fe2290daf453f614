"""Triton's kernels of spiking neurons, on Triton's interpreter and through its compiler; no GPU is needed or used.

`make test-triton` installs torch and triton into an environment of their own, .venv-triton; skipped where both that
and triton beside Stochade are missing.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PYTHON = ROOT / ".venv-triton" / "bin" / "python"


def ask(what: str, folder: Path) -> list[dict]:
    python = str(PYTHON) if PYTHON.exists() else sys.executable if importlib.util.find_spec("triton") else None
    if python is None:
        pytest.skip("no triton: make test-triton")
    worker = [python, str(Path(__file__).parent / "workers" / "triton_checks.py"), what]
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "TRITON_CACHE_DIR": str(folder), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(worker, env=env, capture_output=True, text=True, timeout=570)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory):
    return ask("interpret", tmp_path_factory.mktemp("triton"))


def those(rows, **wanted):
    found = [row for row in rows if all(row[key] == value for key, value in wanted.items())]
    assert found
    return found


def test_spikes_are_those_of_the_loop(interpreted):
    assert [row for row in interpreted if not row["equal"]] == []
    assert 0.1 < sum(row["fired"] for row in interpreted) / len(interpreted) < 0.4
    assert {row["steps"] for row in those(interpreted, beside="float64")} >= set(range(1, 11))


@pytest.mark.parametrize("beside", ["float64", "loop", "infinite"])
def test_gradients_are_those_of_the_loop(interpreted, beside):
    rows = those(interpreted, beside=beside)
    assert all(row["error"] < 2e-6 and row["decay error"] < 5e-6 for row in rows)
    if beside == "infinite":
        return
    assert {(row["reset"], row["trainable"]) for row in rows} == {(r, t) for r in ("soft", "hard") for t in (0, 1)}


@pytest.mark.parametrize(("beside", "rounding"), [("float16", 2**-10), ("bfloat16", 2**-7)])
def test_gradients_of_16_bits_are_rounded_once(interpreted, beside, rounding):
    rows = those(interpreted, beside=beside)
    assert all(row["error"] < rounding and row["decay error"] < 2e-5 for row in rows)


def test_kernels_run_where_they_should(interpreted):
    for row in interpreted[1:]:  # before the first they were tried
        wanted = [] if row["steps"] > 32 else ["forward"] if row["surrogate"] == "steps" else ["forward", "backward"]
        assert row["called"] == wanted


def test_kernels_compile_without_fused_products_and_without_spills(tmp_path):
    rows = ask("compile", tmp_path)
    assert len(rows) == 9
    assert not [row for row in rows if row["fused"] or row["spilled"] or not row["cubin"]]
    assert all(row["four at once"] for row in rows if row["type"] == "fp32")
