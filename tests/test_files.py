"""Files that are whole or not there, and what killed processes leave."""

import os
import signal
import subprocess
import sys
import time

import pytest

from stochade import files
from stochade.files import write_atomically

DAY = 24 * 3600


@pytest.fixture(autouse=True)
def _next_process(monkeypatch):
    monkeypatch.setattr(files, "_cleaned", set())


def aged(path, seconds):
    path.write_bytes(b"part")
    os.utime(path, (time.time() - seconds,) * 2)
    return path


def test_the_first_write_to_a_folder_takes_away_what_is_a_day_old(tmp_path):
    old = [aged(tmp_path / name, 1.01 * DAY) for name in (".a.json.abcdefgh.part", ".b.npz.0_9zyxwv.part")]
    young = aged(tmp_path / ".a.json.hgfedcba.part", 0.99 * DAY)  # of another process, perhaps
    names = ("a.json.abcdefgh.part", ".a.json.abcdefgh", ".abcdefgh.part", ".a.json.ABCDEFGH.part", ".a.abcdefg.part")
    others = [aged(tmp_path / name, 9 * DAY) for name in names]
    (tmp_path / ".a.folder__.part").mkdir()
    os.utime(tmp_path / ".a.folder__.part", (0, 0))
    (tmp_path / ".a.link____.part").symlink_to(others[0])
    os.utime(tmp_path / ".a.link____.part", (0, 0), follow_symlinks=False)
    write_atomically(tmp_path / "new" / "x", b"elsewhere")
    assert all(path.exists() for path in old)
    write_atomically(tmp_path / "a.json", b"{}")
    assert [path for path in old if path.exists()] == []
    assert young.exists()
    assert all(path.exists() for path in others)
    assert (tmp_path / ".a.folder__.part").is_dir()
    assert (tmp_path / ".a.link____.part").is_symlink()
    assert (tmp_path / "a.json").read_bytes() == b"{}"
    again = aged(tmp_path / ".a.json.abcdefgh.part", 2 * DAY)
    write_atomically(tmp_path / "a.json", b"{}")
    assert again.exists(), "a folder is read once in a process"


def test_what_a_killed_process_leaves_is_found_again(tmp_path):
    code = (
        "import os, pathlib, signal, stochade.files as files\n"
        "files.os.fsync = lambda handle: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"files.write_atomically(pathlib.Path({str(tmp_path / 'x.json')!r}), b'content')\n"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".x.json.")
    os.utime(left, (time.time() - 2 * DAY,) * 2)
    write_atomically(tmp_path / "y.json", b"content")
    assert [path.name for path in tmp_path.iterdir()] == ["y.json"]


def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch):
    (tmp_path / "x").write_bytes(b"old")
    monkeypatch.setattr(files.os, "replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        write_atomically(tmp_path / "x", b"new")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]
