"""The one progress display: silent at first, plain lines without a terminal, never on standard output."""

import threading
import time

import stochade.progress as module
from stochade.progress import progress


def test_silent_at_first_then_plain_and_can_be_turned_off(monkeypatch, capsys):
    with progress("decoding", 10) as tick:
        tick(5)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(module, "PATIENCE", 0.0)
    with progress("decoding", 10) as tick:
        tick(4, "train")
        tick(6)  # less than ten seconds later
    with progress("decoding", 10, shown=False) as tick:
        tick(4)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("decoding: 40 %, about 0 s left train")
    assert captured.err.count("\n") == 1


def test_an_earlier_run_does_not_count_in_the_speed(monkeypatch, capsys):
    monkeypatch.setattr(module, "PATIENCE", 0.0)
    with progress("attacking", 100, done=90) as tick:
        tick(1)
    assert "left" not in capsys.readouterr().err, "one unit out of a hundred says nothing about the speed"


def test_one_long_piece_of_work_does_not_look_like_a_standstill(monkeypatch, capsys):
    """Nothing ticks; the display still appears, with the seconds where the total is unknown."""
    monkeypatch.setattr(module, "PATIENCE", 0.05)
    monkeypatch.setattr(module, "BEAT", 0.01)
    for label, total in (("attacking", 10), ("measuring", 0)):
        with progress(label, total):
            time.sleep(0.5)
    with progress("quiet", 0, shown=False):
        time.sleep(0.2)
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["attacking: 0 %, 0 s so far", "measuring: 0 s"]


def test_it_is_over_when_the_work_is(monkeypatch, capsys):
    monkeypatch.setattr(module, "PATIENCE", 0.0)
    monkeypatch.setattr(module, "BEAT", 0.01)
    before = threading.active_count()
    with progress("decoding", 10) as tick:
        pass
    tick(1)
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before
    assert capsys.readouterr().err.count("\n") <= 1


def test_a_terminal_gets_a_bar(monkeypatch, capsys):
    monkeypatch.setattr(module, "PATIENCE", 0.0)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with progress("training", 3) as tick:
        for epoch in range(3):
            tick(1, f"epoch {epoch}")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "training" in captured.err
