"""Compiles a C file of this package with the system's compiler, keeps the library in a cache, and loads it.

A family of kernels is one file, `<name>.c`, beside this module, with the headers it includes. Nothing is fetched and
nothing of PyTorch is linked: kernels get addresses. Where there is no compiler, where it fails, or where the cache
cannot be trusted, `load` gives None, once and for all in this process, and `status` says why; callers then use
ATen's operations. `STOCHADE_NATIVE=0`, when kernels are first asked for, does the same.

Libraries that no process has loaded for `UNUSED` seconds are taken away when a new one is compiled; what others have
loaded stays in their memory. A process that is forked while another thread compiles tries by itself.

Arithmetic is IEEE's: no -ffast-math, and nothing that changes how the process treats denormals. Products and sums
may be fused (-ffp-contract=fast), except in families that must round as ATen does (`ROUNDED`).
"""

import contextlib
import ctypes
import hashlib
import os
import platform
import re
import shlex
import shutil
import stat
import subprocess
import tempfile
import threading
import time
from pathlib import Path

from stochade.files import write_atomically

SOURCES = Path(__file__).parent
ROUNDED = {"lif"}  # a spike is a comparison: another rounding could make another spike
SECONDS = 60  # a compiler that takes longer has failed; measured: one second
DAY = 24 * 3600.0
UNUSED = 90 * DAY
_OURS = re.compile(r"[a-z_]+-[0-9a-f]{32}\.(so|sha256)|\.[a-z0-9_]{8}\.so")  # libraries, their seals, unfinished ones

_lock = threading.Lock()
_loaded: dict[str, "ctypes.CDLL | str"] = {}  # or the reason why not


def _forked() -> None:
    """A lock that a thread of the parent holds would never be released."""
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


class _Unavailable(Exception):
    """Why there is no library, in words."""


def load(name: str) -> ctypes.CDLL | None:
    """The kernels of `<name>.c`, or None where they cannot be had. Never raises, tries once in a process."""
    if name not in _loaded:
        with _lock:
            if name not in _loaded:
                _loaded[name] = _attempt(name)
    found = _loaded[name]
    return None if isinstance(found, str) else found


def status() -> dict[str, str]:
    """For every family of kernels "ready", or why not. Builds those that were not tried before."""
    names = sorted(path.stem for path in SOURCES.glob("*.c"))
    ready = {name: load(name) is not None for name in names}
    return {name: "ready" if ready[name] else str(_loaded[name]) for name in names}


def _attempt(name: str) -> "ctypes.CDLL | str":
    try:
        with contextlib.suppress(OSError):  # taken away by another process between the look and the load, or damaged
            return ctypes.CDLL(str(_library(name)))
        return ctypes.CDLL(str(_library(name)))
    except (_Unavailable, OSError, subprocess.SubprocessError, ValueError, RuntimeError) as error:
        return str(error) or type(error).__name__


def _library(name: str) -> Path:
    if os.environ.get("STOCHADE_NATIVE") == "0":
        raise _Unavailable("switched off by STOCHADE_NATIVE=0")
    if os.name != "posix":
        raise _Unavailable(f"no kernels for {platform.system()}")
    source = SOURCES / f"{name}.c"
    compiler, flags = _compiler(), _flags() + ["-ffp-contract=off"] * (name in ROUNDED)
    version = subprocess.run([*compiler, "--version"], capture_output=True, timeout=SECONDS, check=True).stdout
    parts = [source.read_bytes(), *(path.read_bytes() for path in sorted(SOURCES.glob("*.h")))]
    parts += [version, "\0".join(compiler + flags).encode(), _processor().encode()]
    digest = hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()
    library = _folder() / f"{name}-{digest[:32]}.so"
    _used(library)
    if not _whole(library):
        _compile([*compiler, *flags, str(source)], library)
        _prune(library.parent)
    return library


def _used(library: Path) -> None:
    """Dates a library that is there; its time of access may not be kept."""
    with contextlib.suppress(OSError):
        if time.time() - library.stat().st_mtime > DAY:
            os.utime(library)


def _prune(folder: Path) -> None:
    """Takes away what was not used for long, and what killed compilers have left. Others may do the same at once."""
    for path in folder.iterdir():
        if _OURS.fullmatch(path.name):
            library = path.with_suffix(".so")
            with contextlib.suppress(OSError):
                dated = (library if library.exists() else path).stat().st_mtime
                if time.time() - dated > (DAY if path.name.startswith(".") else UNUSED):
                    _seal(path).unlink(missing_ok=True)
                    path.unlink(missing_ok=True)


def _whole(library: Path) -> bool:
    """Whether a library is there as it was compiled: a damaged one would take the process down when it is loaded."""
    try:
        return _seal(library).read_text() == hashlib.sha256(library.read_bytes()).hexdigest()
    except OSError:
        return False


def _seal(library: Path) -> Path:
    return library.with_suffix(".sha256")


def _compiler() -> list[str]:
    """$CC, else the first of cc, gcc and clang."""
    own = shlex.split(os.environ.get("CC", ""))
    for candidate in [own] if own else [["cc"], ["gcc"], ["clang"]]:
        path = shutil.which(candidate[0])
        if path:
            return [path, *candidate[1:]]
    raise _Unavailable(f"no C compiler ({own[0] if own else 'cc, gcc or clang'} is not on the path)")


def _flags() -> list[str]:
    machine = "-mcpu=native" if platform.machine() in ("aarch64", "arm64") else "-march=native"
    return ["-std=gnu11", "-O3", machine, "-fno-math-errno", "-ffp-contract=fast", "-fPIC", "-shared"]


def _processor() -> str:
    """What `native` may depend on: libraries in a home that several machines share must not be mixed up."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    wanted = ("model name", "flags", "Features", "CPU part")
    told = sorted({line for line in lines if line.startswith(wanted)})
    return "\n".join([platform.system(), platform.machine(), platform.processor(), *told])


def _folder() -> Path:
    """$XDG_CACHE_HOME/stochade/native, else ~/.cache/stochade/native; only where nobody else can put a library."""
    home = os.environ.get("XDG_CACHE_HOME")
    outer = (Path(home) if home else Path.home() / ".cache") / "stochade"
    outer.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder = outer / "native"
    folder.mkdir(mode=0o700, exist_ok=True)
    for path, forbidden in ((outer, stat.S_IWOTH), (folder, stat.S_IWGRP | stat.S_IWOTH)):
        told = path.stat() if path == outer else path.lstat()
        if not stat.S_ISDIR(told.st_mode) or told.st_uid != os.getuid():
            raise _Unavailable(f"{path} is not a folder of this user")
        if told.st_mode & forbidden:
            raise _Unavailable(f"others may write to {path}")
    return folder


def _compile(command: list[str], library: Path) -> None:
    """Into a file of its own first: processes that compile at once replace each other's equal, whole libraries."""
    handle, temporary = tempfile.mkstemp(dir=library.parent, prefix=".", suffix=".so")
    os.close(handle)
    try:
        command = [*command, "-o", temporary]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=SECONDS, check=False)
        if done.returncode:
            said = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[0]
            raise _Unavailable(f"{command[0]} failed: {said}")
        made = Path(temporary).read_bytes()
        if not made:
            raise _Unavailable(f"{command[0]} made nothing")
        os.replace(temporary, library)
        write_atomically(_seal(library), hashlib.sha256(made).hexdigest().encode())
    finally:
        Path(temporary).unlink(missing_ok=True)
