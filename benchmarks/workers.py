"""Processes that run attacks in one environment or the other, and answer requests."""

import json
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PEERS = ROOT / ".venv-peers" / "bin" / "python"
NO_PEERS = "no .venv-peers: run benchmarks/peers/setup.sh to see the peers"
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
HEAP = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_")


def environment(steady: bool = False, source: bool = False) -> dict[str, str]:
    """What a worker's process needs: one thread, stand-ins for what the peers import in vain, and where wanted a
    heap that keeps its memory, and stochade's sources for the peers' environment."""
    extra = dict.fromkeys(THREADS, "1") | (dict.fromkeys(HEAP, "1000000000") if steady else {})
    path = [str(HERE / "peers" / "stubs"), os.environ.get("AUTOATTACK_PATH", ""), str(ROOT / "src") if source else ""]
    return os.environ | extra | {"PYTHONPATH": os.pathsep.join(filter(None, path))}


class Worker:
    """A process of one environment that answers requests, JSON lines, one at a time.

    Args:
        python: the environment's interpreter. script: what it runs, with `folder` for its argument.
        steady: whether its heap keeps freed memory.
    """

    def __init__(self, python: Path, script: str, folder: Path, steady: bool = False):
        self.process = subprocess.Popen(
            [str(python), str(HERE / script), str(folder)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment(steady),
        )  # fmt: skip

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


def both(script: str, folder: Path, steady: bool = False) -> dict[str, Worker]:
    """{"ours": ..., "theirs": ...}, without the latter where there is no .venv-peers."""
    workers = {"ours": Worker(Path(sys.executable), script, folder, steady)}
    if PEERS.exists():
        workers["theirs"] = Worker(PEERS, script, folder, steady)
    else:
        print(NO_PEERS, file=sys.stderr)
    return workers
