"""`python -m stochade` is the command line."""

import subprocess
import sys


def test_the_package_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "stochade", "ls", "threats"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "linf" in done.stdout
    done = subprocess.run([sys.executable, "-m", "stochade", "attack", "nothing"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("stochade: expected")
