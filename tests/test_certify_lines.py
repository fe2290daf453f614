"""The folder of a run: one run at a time, whole lines of the right rows, and the model that it began with."""

import functools
import os
import signal
import subprocess
import sys
import textwrap

import pytest
import torch
from torch import nn

from stochade.certify.identity import fingerprint
from stochade.certify.lines import LOCK, locked, read_lines, taken_up
from stochade.errors import RecordsError

CONFIG = {"digest": "d", "examples": 3, "draws": 5}


def take_up(folder, config=CONFIG):
    return taken_up(folder, "certify.json", "certificates.jsonl", config, dict)


def test_lines_come_back_and_a_cut_one_is_removed(tmp_path):
    with take_up(tmp_path / "run") as run:
        assert run.found == []
        for row in range(2):
            run.append({"row": row, "value": 0.1 * row})
    path = tmp_path / "run" / "certificates.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"row": 2, "val')
    with take_up(tmp_path / "run") as run:
        assert run.found == [{"row": 0, "value": 0.0}, {"row": 1, "value": 0.1}]
        assert path.read_bytes() == whole
        run.append({"row": 2})
    assert len(read_lines(path, 3, dict)) == 3


def test_other_folders_are_refused_and_left_alone(tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("mine")
    with pytest.raises(RecordsError, match="empty folder"), take_up(tmp_path / "other"):
        pass
    assert [p.name for p in (tmp_path / "other").iterdir()] == ["file"]
    with pytest.raises(RecordsError, match="empty folder"), take_up(tmp_path / "other" / "file"):
        pass
    with take_up(tmp_path / "run"):
        pass
    with (
        pytest.raises(RecordsError, match="differs in: draws"),
        take_up(tmp_path / "run", CONFIG | {"draws": 6, "digest": "e"}),
    ):
        pass
    for text in ("{", "[]", "{}"):
        (tmp_path / "run" / "certify.json").write_text(text)
        with pytest.raises(RecordsError, match=r"certify\.json"), take_up(tmp_path / "run"):
            pass
    (tmp_path / "killed").mkdir()  # before its settings were there
    for name in (LOCK, ".certify.json.abcdefgh.part"):
        (tmp_path / "killed" / name).touch()
    with take_up(tmp_path / "killed") as run:
        assert run.found == []


@pytest.mark.parametrize(
    ("lines", "place"),
    [
        (["{", '{"row": 1}'], "line 1"),
        (['{"row": 0}', '{"row": 0}'], "line 2: ValueError: not of row 1"),
        (['{"row": 1}'], "line 1"),
        (['{"row": 0}', "", '{"row": 1}'], "line 2"),
        (['{"row": 0}', "[1]"], "line 2"),
        (['{"row": 0}{"row": 1}'], "line 1"),
        (["\x00\x00"], "line 1"),
        ([f'{{"row": {i}}}' for i in range(4)], "line 4"),
    ],
)
def test_damaged_lines_are_named(lines, place, tmp_path):
    with take_up(tmp_path / "run"):
        pass
    (tmp_path / "run" / "certificates.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(RecordsError, match=rf"certificates\.jsonl, {place}"), take_up(tmp_path / "run"):
        pass


def test_lines_of_no_meaning_are_named(tmp_path):
    path = tmp_path / "lines"
    path.write_bytes(b'{"row": 0}\n{"row": 1, "x": "\xff"}\n')
    with pytest.raises(RecordsError, match="lines, line 2"):
        read_lines(path, 3, dict)
    path.write_bytes(b'{"row": 0}\n')
    with pytest.raises(RecordsError, match="lines, line 1: KeyError: 'votes'"):
        read_lines(path, 3, lambda told: told["votes"])


def test_one_run_at_a_time(tmp_path):
    refused = pytest.raises(RecordsError, match="another run is writing here")
    with take_up(tmp_path / "run"), refused, take_up(tmp_path / "run"):
        pass
    with take_up(tmp_path / "run"):
        pass


def test_a_killed_process_lets_others_in(tmp_path):
    code = """
        import fcntl, sys, time
        with open(sys.argv[1], "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            print("in", flush=True)
            time.sleep(60)
    """
    child = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / LOCK)]
    with subprocess.Popen(child, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "in\n"
        with pytest.raises(RecordsError, match="another run"), locked(tmp_path):
            pass
        os.kill(other.pid, signal.SIGKILL)
    with locked(tmp_path):
        pass


class Scaled(nn.Module):
    def __init__(self, scale=1.0, name="a"):
        super().__init__()
        self.layer, self.scale, self.name = nn.Linear(2, 2), scale, name
        nn.init.ones_(self.layer.weight)
        nn.init.zeros_(self.layer.bias)

    def forward(self, x):
        return self.scale * self.layer(x)


class Negated(Scaled):
    def forward(self, x):
        return -self.scale * self.layer(x)


def renamed(kind, name):
    return type(name, (kind,), {"__module__": kind.__module__, "__qualname__": name})


def closure(scale, net=None):
    return lambda x: scale * (x if net is None else net(x))


def nested(number):
    if number == 1:
        return lambda x: [(lambda: 1)() for _ in x]
    return lambda x: [(lambda: 2)() for _ in x]


def test_fingerprints_see_what_tensors_and_print_do_not():
    same = renamed(Scaled, "M"), renamed(Negated, "M")
    pairs = [
        (Scaled(1.0), Scaled(2.0)),
        (Scaled(name="a"), Scaled(name="b")),
        (nn.Sequential(Scaled(1.0)), nn.Sequential(Scaled(2.0))),
        (Scaled(), Scaled().eval()),
        (same[0](), same[1]()),
        (closure(1), closure(-1)),
        (closure(1, Scaled(1.0)), closure(1, Scaled(2.0))),
        (closure(torch.ones(1)), closure(torch.zeros(1))),
        (closure(1, closure(1)), closure(1, closure(2))),
        (lambda x: torch.relu(x), lambda x: torch.tanh(x)),
        (lambda x: x + 1, lambda x: x + 2),
        (lambda x, k=1: x + k, lambda x, k=2: x + k),
        (nested(1), nested(2)),
        (functools.partial(closure, 1), functools.partial(closure, 2)),
        (Scaled(1.0).forward, Scaled(2.0).forward),
    ]
    for number, (a, b) in enumerate(pairs):
        assert fingerprint(a) != fingerprint(b), number
    assert fingerprint(Scaled()) == fingerprint(Scaled())
    assert fingerprint(closure(1, Scaled())) == fingerprint(closure(1, Scaled()))
    assert fingerprint(nested(1)) == fingerprint(nested(1))
    model = Scaled()
    before = fingerprint(model)
    handle = model.register_forward_hook(lambda *_: None)
    handle.remove()
    model(torch.ones(1, 2)).sum().backward()
    assert fingerprint(model) == before


def test_fingerprints_are_those_of_every_process():
    """Neither addresses nor the order of sets, which follows the hash seed."""
    code = """
        from stochade.certify.identity import fingerprint
        def f(x):
            g = lambda z: z in {"a", "b", "c", "d"}
            return g(x)
        def loop(x):
            return loop(x)
        def around():
            def again(x):
                return again(x)
            return again
        told = fingerprint(f), fingerprint(loop), fingerprint(around())
    """
    code = textwrap.dedent(code)
    other = subprocess.run(
        [sys.executable, "-c", f"{code}print(*told)"], env=os.environ | {"PYTHONHASHSEED": "1"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    here = {"__name__": "__main__"}
    exec(compile("\n\n" + code, "elsewhere", "exec"), here)
    assert other.stdout.split() == list(here["told"])
