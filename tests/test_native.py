"""The loader of compiled kernels: the cache, what stands in its way, and processes that compile at once."""

import importlib.util
import os
import shutil
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from stochade import native
from stochade.native import build

CC = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
needs_compiler = pytest.mark.skipif(CC is None, reason="no C compiler")


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A package with one tiny kernel, a cache of its own, and a compiler that logs its calls."""
    sources, log = tmp_path / "sources", tmp_path / "log"
    sources.mkdir()
    (sources / "tiny.h").write_text("#define ANSWER 42\n")
    (sources / "tiny.c").write_text('#include "tiny.h"\nint answer(void) { return ANSWER; }\n')
    compiler = tmp_path / "compiler"
    compiler.write_text(f'#!/bin/sh\necho "$@" >> {log}\nexec {CC} "$@"\n')
    compiler.chmod(0o755)
    monkeypatch.setattr(build, "SOURCES", sources)
    monkeypatch.setattr(build, "_loaded", {})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("CC", str(compiler))
    monkeypatch.delenv("STOCHADE_NATIVE", raising=False)
    return tmp_path


def libraries(home):
    """Whatever lies in the cache but the seals."""
    folder = home / "cache" / "stochade" / "native"
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".sha256")


def compilations(home):
    log = home / "log"
    return sum("-shared" in line for line in log.read_text().splitlines()) if log.exists() else 0


@needs_compiler
def test_compiles_once_and_keeps_it_where_nobody_else_writes(home, monkeypatch):
    assert native.load("tiny").answer() == 42
    assert native.status() == {"tiny": "ready"}
    assert len(libraries(home)) == 1
    folder = home / "cache" / "stochade" / "native"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    monkeypatch.setattr(build, "_loaded", {})  # the next process
    assert native.load("tiny").answer() == 42
    assert compilations(home) == 1


@needs_compiler
@pytest.mark.parametrize("changed", ["tiny.c", "tiny.h", "flags", "processor"])
def test_what_the_library_depends_on_is_in_its_name(home, monkeypatch, changed):
    native.load("tiny")
    if changed == "flags":
        flags = build._flags()
        monkeypatch.setattr(build, "_flags", lambda: [*flags, "-g0"])
    elif changed == "processor":
        monkeypatch.setattr(build, "_processor", lambda: "another")
    else:
        path = home / "sources" / changed
        path.write_text(path.read_text() + "/* changed */\n")
    monkeypatch.setattr(build, "_loaded", {})
    assert native.load("tiny") is not None
    assert compilations(home) == len(libraries(home)) == 2


def test_a_compiler_that_fails_is_tried_once(home):
    failing = home / "compiler"
    failing.write_text(
        f'#!/bin/sh\necho "$@" >> {home}/log\n[ "$1" = --version ] || {{ echo broken >&2; exit 1; }}\n'
    )
    assert native.load("tiny") is None
    assert native.load("tiny") is None
    assert native.status()["tiny"].endswith("compiler failed: broken")
    assert compilations(home) == 1
    assert libraries(home) == []


@needs_compiler
def test_kernels_that_do_not_compile(home):
    (home / "sources" / "tiny.c").write_text("this is not C\n")
    assert native.load("tiny") is None
    assert "error" in native.status()["tiny"]


def test_no_compiler(home, monkeypatch):
    monkeypatch.setenv("CC", "no-such-compiler")
    assert native.load("tiny") is None
    assert native.status()["tiny"] == "no C compiler (no-such-compiler is not on the path)"
    monkeypatch.delenv("CC")
    monkeypatch.setenv("PATH", str(home / "empty"))
    monkeypatch.setattr(build, "_loaded", {})
    assert "cc, gcc or clang" in native.status()["tiny"]


def test_switched_off(home, monkeypatch):
    monkeypatch.setenv("STOCHADE_NATIVE", "0")
    assert native.load("tiny") is None
    assert native.status()["tiny"] == "switched off by STOCHADE_NATIVE=0"
    assert not (home / "log").exists()
    assert not (home / "cache").exists()


@pytest.mark.parametrize(
    "wrong", ["group writes", "others write outside", "a link", "another's", "not writable", "a file"]
)
def test_a_cache_that_cannot_be_trusted_is_refused(home, monkeypatch, wrong):
    outer = home / "cache" / "stochade"
    folder = outer / "native"
    if wrong == "a file":
        (home / "cache").write_text("")
    else:
        folder.mkdir(parents=True, mode=0o700)
    if wrong == "group writes":
        folder.chmod(0o770)
    elif wrong == "others write outside":
        outer.chmod(0o777)
    elif wrong == "a link":
        folder.rename(home / "elsewhere")
        folder.symlink_to(home / "elsewhere")
    elif wrong == "another's":
        uid = os.getuid()
        monkeypatch.setattr(os, "getuid", lambda: uid + 1)
    elif wrong == "not writable":
        monkeypatch.setattr(
            build.tempfile, "mkstemp", lambda **_: (_ for _ in ()).throw(PermissionError("read only"))
        )
    assert native.load("tiny") is None
    assert native.status()["tiny"] != "ready"
    assert compilations(home) == 0


@needs_compiler
def test_processes_that_compile_at_once(home):
    """Both load a whole library, and one is left."""
    spec = importlib.util.find_spec("stochade.native.build")
    code = (
        "import importlib.util, pathlib, sys\n"
        f"spec = importlib.util.spec_from_file_location('build', {spec.origin!r})\n"
        "build = importlib.util.module_from_spec(spec); spec.loader.exec_module(build)\n"
        "build.SOURCES = pathlib.Path(sys.argv[1])\n"
        "print(build.load('tiny').answer())\n"
    )
    slow = home / "compiler"  # which waits for all three, so that they do meet however late one starts
    meet = (
        f"n=0; while [ $(grep -c -e -shared {home / 'log'}) -lt 3 ] && [ $n -lt 300 ]; do sleep 0.1; n=$((n+1)); done"
    )
    slow.write_text(slow.read_text().replace("exec", f'[ "$1" = --version ] || {{ {meet}; }}\nexec'))
    command = [sys.executable, "-c", code, str(home / "sources")]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert [process.communicate()[0].strip() for process in running] == ["42"] * 3
    assert compilations(home) == 3
    assert len(libraries(home)) == 1


def test_sources_are_part_of_the_package():
    assert {path.name for path in Path(native.__file__).parent.iterdir()} >= {"convolution.c", "vectors.h"}


@needs_compiler
@pytest.mark.parametrize("size", [0, 2000, -1])
def test_a_damaged_library_is_compiled_again_and_not_loaded(home, monkeypatch, size):
    native.load("tiny")
    (library,) = (home / "cache" / "stochade" / "native").glob("*.so")
    library.write_bytes(library.read_bytes()[:size])
    monkeypatch.setattr(build, "_loaded", {})
    monkeypatch.setattr(build.ctypes, "CDLL", lambda path: Path(path).stat().st_size)
    assert native.load("tiny") > 2000
    assert compilations(home) == 2


def test_a_compiler_that_makes_nothing_leaves_nothing(home):
    (home / "compiler").write_text("#!/bin/sh\nexit 0\n")
    assert native.load("tiny") is None
    assert "made nothing" in native.status()["tiny"]
    assert libraries(home) == []


@needs_compiler
def test_libraries_that_were_not_used_for_long_are_taken_away(home, monkeypatch):
    now, folder, digest = time.time(), home / "cache" / "stochade" / "native", "0" * 31
    folder.mkdir(parents=True, mode=0o700)
    ages = {
        f"tiny-{digest}0.so": 91, f"tiny-{digest}0.sha256": 91, f"gone-{digest}1.sha256": 91, ".abcdefgh.so": 2,
        f"tiny-{digest}2.so": 89, f"tiny-{digest}2.sha256": 91, ".hgfedcba.so": 0.5, "notes.so": 999,
        f"tiny-{digest}3.so": 0, "other.txt": 999,
    }  # fmt: skip
    for name, days in ages.items():
        (folder / name).write_text("")
        os.utime(folder / name, (now - days * build.DAY,) * 2)
    assert native.load("tiny").answer() == 42
    left = {path.name for path in folder.iterdir()}
    gone = {f"tiny-{digest}0.so", f"tiny-{digest}0.sha256", f"gone-{digest}1.sha256", ".abcdefgh.so"}
    assert set(ages) - left == gone
    made = next(path for path in folder.glob("tiny-*.so") if path.name not in ages)
    os.utime(made, (now - 80 * build.DAY,) * 2)
    monkeypatch.setattr(build, "_loaded", {})
    assert native.load("tiny").answer() == 42
    assert made.stat().st_mtime > now - build.DAY, "a load dates it anew"
    assert compilations(home) == 1


@needs_compiler
def test_a_library_that_goes_between_the_look_and_the_load(home, monkeypatch):
    native.load("tiny")
    monkeypatch.setattr(build, "_loaded", {})
    load, lost = build.ctypes.CDLL, []

    def prune_first(path):
        if not lost:
            lost.append(path)
            Path(path).unlink()
            raise OSError("cannot open shared object file")
        return load(path)

    monkeypatch.setattr(build.ctypes, "CDLL", prune_first)
    assert native.load("tiny").answer() == 42
    assert compilations(home) == 2


@needs_compiler
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_while_a_thread_compiles(home):
    """The child tries by itself; it would wait for a lock for ever."""
    slow, go = home / "compiler", home / "go"
    wait = (
        f'[ "$1" = --version ] || {{ n=0; while [ ! -e {go} ] && [ $n -lt 100 ]; do sleep 0.1; n=$((n+1)); done; }}'
    )
    slow.write_text(slow.read_text().replace("exec", f"{wait}\nexec"))
    thread = threading.Thread(target=native.load, args=("tiny",))
    thread.start()
    while not compilations(home):
        time.sleep(0.01)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            go.write_text("")
            code = 0 if native.load("tiny").answer() == 42 else 2
        finally:
            os._exit(code)
    end, done = time.monotonic() + 30, (0, 0)
    while done[0] == 0 and time.monotonic() < end:
        done = os.waitpid(child, os.WNOHANG)
        time.sleep(0.02)
    if done[0] == 0:
        os.kill(child, 9)
        os.waitpid(child, 0)
    go.write_text("")
    thread.join()
    assert done == (child, 0), "the child hangs" if done[0] == 0 else "the child failed"
    assert native.load("tiny").answer() == 42
