#!/usr/bin/env bash
# Makes .venv-peers in the repository root: the libraries that stochade is compared with, in an environment of their own.
#
#   benchmarks/peers/setup.sh                        auto-attack comes from its public repository
#   AUTOATTACK_PATH=dir benchmarks/peers/setup.sh    auto-attack comes from a folder that holds autoattack/
#
# PYTHON chooses the interpreter. auto-attack has no release on PyPI; without it the benchmarks run and say so.
set -euo pipefail
cd "$(dirname "$0")/../.."

commit=a39220048b3c9f2cca9a4d3a54604793c68eca7e  # of auto-attack
environment=.venv-peers
pip="$environment/bin/python -m pip --disable-pip-version-check"

test -x "$environment/bin/python" || "${PYTHON:-python3}" -m venv "$environment"
$pip install --quiet "$(grep '^torch==' constraints.txt)"
$pip install --quiet --no-deps -r benchmarks/peers/requirements.txt

if [ -n "${AUTOATTACK_PATH:-}" ]; then
  test -f "$AUTOATTACK_PATH/autoattack/autoattack.py" || {
    echo "setup.sh: expected autoattack/autoattack.py under AUTOATTACK_PATH=$AUTOATTACK_PATH" >&2
    exit 2
  }
  site=$("$environment/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  (cd "$AUTOATTACK_PATH" && pwd) > "$site/autoattack-path.pth"
elif ! $pip install --quiet --no-deps "git+https://github.com/fra31/auto-attack@$commit"; then
  echo "setup.sh: auto-attack could not be installed; its rows will be missing. Set AUTOATTACK_PATH to a checkout." >&2
fi

PYTHONPATH=benchmarks/peers/stubs "$environment/bin/python" -W ignore - <<'PY'
import importlib

for name in ("torch", "torchattacks", "foolbox", "art", "adv_lib.attacks", "autoattack"):
    try:
        importlib.import_module(name)
        print(f"{name}: ok")
    except ImportError as problem:
        print(f"{name}: missing ({problem})")
PY
