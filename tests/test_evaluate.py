"""Evaluation: identity of results, resumption, the caller's model, scores and their errors."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from doubles import ATTACKS, Base, examples, run, same
from stochade import FGSM, PGD, Custom, Linf, Records, UniformNoise, evaluate
from stochade.attacks.apgd import APGD
from stochade.attacks.objectives import dlr
from stochade.attacks.square import Square
from stochade.attacks.suites import Suite
from stochade.attacks.targeted import Targeted
from stochade.errors import RecordsError, ThreatError
from stochade.evaluate.names import member_names
from stochade.evaluate.seconds import seconds_per_pass
from stochade.models.known_answer import CoinFlip


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*.parquet"))}


def test_coin_flip_is_scored_right():
    """Truth 0.90 whatever the attack; 400 x 20 draws, so 0.88..0.92 is six standard deviations."""
    records = run(n=400, draws=20)
    for name in ["clean", *ATTACKS, "worst"]:
        value = records.score(name).value
        assert value is not None
        assert abs(value - 0.9) < 0.02, name
        assert records.score(name, "vote").value == pytest.approx(1.0, abs=0.01)
        low = records.score(name, "all").value
        assert low is not None
        assert abs(low - 0.9**20) < 0.1


def test_same_seed_same_records_and_another_seed_others():
    assert same(run(), run())
    assert not same(run(), run(seed=1))


def test_one_and_two_workers_write_the_same_bytes(tmp_path):
    one = run(tmp_path / "one", workers=1)
    two = run(tmp_path / "two", workers=2)
    assert same(one, two)
    assert contents(tmp_path / "one") == contents(tmp_path / "two") != {}
    times = seconds(tmp_path / "two")
    assert {name: passes for name, (_, passes) in times.items()} == {"fgsm": 120, "pgd": 720}
    assert all(spent > 0 for spent, _ in times.values())


def test_order_of_chunks_does_not_matter(tmp_path, monkeypatch):
    from stochade.evaluate import run as module

    straight = run(tmp_path / "a")
    here = module._here
    monkeypatch.setattr(module, "_here", lambda job, units: here(job, units[::-1]))
    assert same(straight, run(tmp_path / "b"))
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_resuming_gives_the_same_bytes_and_does_not_work_twice(tmp_path, monkeypatch):
    run(tmp_path / "whole")
    run(tmp_path / "broken")
    files = sorted((tmp_path / "broken").rglob("*.parquet"))
    files[0].unlink()
    files[3].write_bytes(files[3].read_bytes()[:100])  # a truncated file counts as not done
    calls = []
    from stochade.evaluate import run as module

    unit = module.run_unit
    monkeypatch.setattr(module, "run_unit", lambda *a: calls.append(a[2:5:2]) or unit(*a))
    run(tmp_path / "broken")
    assert len(calls) == 2
    assert contents(tmp_path / "whole") == contents(tmp_path / "broken")


@pytest.mark.parametrize("workers", [0, 2])
def test_kill_minus_nine_midway(tmp_path, workers):
    """The real thing: SIGKILL while units are being written, then the same command again. No worker may stay."""
    script = tmp_path / "job.py"
    script.write_text(
        textwrap.dedent(f"""
        import sys, time
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        import doubles as t
        class Slow(t.Base):
            def forward(self, x):
                time.sleep(0.02)
                return super().forward(x)
        if __name__ == "__main__":
            t.run(sys.argv[1], model=t.CoinFlip(Slow()).eval(), workers=WORKERS)
        """).replace("WORKERS", str(workers))
    )
    command = [sys.executable, str(script), str(tmp_path / "killed")]
    process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"})
    deadline = time.time() + 60
    while len(list((tmp_path / "killed").rglob("*.parquet"))) < 3 and time.time() < deadline:
        time.sleep(0.005)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    pids = children.read_text().split() if children.exists() else []
    process.send_signal(signal.SIGKILL)
    process.wait()
    while [pid for pid in pids if Path(f"/proc/{pid}").exists()] and time.time() < deadline:
        time.sleep(0.05)
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()], "orphaned workers"
    done = len(contents(tmp_path / "killed"))
    assert 3 <= done < 12, "the process should have been killed midway"
    subprocess.run(command, check=True)
    subprocess.run([*command[:2], str(tmp_path / "whole")], check=True)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert len(contents(tmp_path / "whole")) == 12


def seconds(folder: Path) -> dict:
    return json.loads((folder / "provenance.json").read_text())["seconds"]


class Slow(Base):
    """Five milliseconds a pass."""

    def forward(self, x):
        time.sleep(0.005)
        return super().forward(x)


def test_seconds_are_measured_without_the_scoring(tmp_path):
    """PGD-10 on three chunks is ten slow forwards each; scoring 6 + 6 draws and probes would add 13 more."""
    attacks = {"noise": UniformNoise(Linf(1e-3)), "pgd": PGD(1e-3, steps=10, drop_fooled=False)}
    slow = run(tmp_path / "slow", model=CoinFlip(Slow()).eval(), attacks=attacks)
    spent, passes = seconds(tmp_path / "slow")["pgd"]
    record = slow.attacks["pgd"]
    assert passes == record.forwards.sum() + record.backwards.sum() == 60 * 20
    assert 3 * 10 * 0.005 <= spent < 3 * 22 * 0.005 + 1, "one second for a busy machine"
    assert "noise" not in seconds(tmp_path / "slow"), "no pass, no time of a pass"
    assert slow.meta["provenance"]["seconds"] == seconds(tmp_path / "slow")
    assert Records.load(tmp_path / "slow").meta["provenance"]["seconds"] == seconds(tmp_path / "slow")
    assert seconds_per_pass(slow.meta["provenance"])["pgd"] == spent / passes


def test_progress_names_what_is_being_done(monkeypatch):
    from contextlib import contextmanager

    from stochade.evaluate import run as module

    told, done = [], []

    @contextmanager
    def recorded(label, total, shown, before):
        yield lambda amount, note: (told.append(note), done.append(amount))

    monkeypatch.setattr(module, "progress", recorded)
    run(chunk=30)
    assert told == ["clean", "noise", "fgsm", "pgd"] * 2 + ["pgd"]
    assert done[0] == 0


def test_seconds_add_up_over_sessions(tmp_path, monkeypatch):
    from stochade.evaluate import run as module

    unit, done = module.run_unit, []

    def dies(*arguments):
        if len(done) == 8:
            raise KeyboardInterrupt
        done.append(arguments[2])
        return unit(*arguments)._replace(seconds=1.0)

    monkeypatch.setattr(module, "run_unit", dies)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    assert seconds(tmp_path)["pgd"][0] == done.count("pgd") == 2
    monkeypatch.setattr(module, "run_unit", lambda *a: unit(*a)._replace(seconds=10.0))
    run(tmp_path)
    assert seconds(tmp_path)["pgd"][0] == 2 * 1.0 + 1 * 10.0
    assert seconds(tmp_path)["pgd"][1] == 60 * (6 + 6)
    (tmp_path / "provenance.json").write_text("damaged")
    run(tmp_path)
    assert seconds(tmp_path) == {}


def test_a_session_that_is_killed_loses_a_few_seconds_only(tmp_path, monkeypatch):
    from stochade.evaluate import seconds as module

    record = run(attacks={"pgd": PGD(1e-3, steps=3)}).attacks["pgd"]
    clock = module.Clock(tmp_path)
    clock.add("pgd", 2.0, record)
    assert not (tmp_path / "provenance.json").exists()
    monkeypatch.setattr(module, "EVERY", -1.0)
    clock.add("pgd", 2.0, record)
    assert seconds(tmp_path)["pgd"][0] == 4.0


def test_a_run_of_several_sessions_names_the_commits_of_all(tmp_path, monkeypatch):
    from stochade.evaluate import seconds as module

    record, told = run(attacks={"pgd": PGD(1e-3, steps=3)}).attacks["pgd"], []
    for commit in ("aaa", "aaa", "bbb", "aaa"):
        monkeypatch.setattr(module, "provenance", lambda commit=commit: {"git_revision": commit})
        clock = module.Clock(tmp_path)
        clock.add("pgd", 2.0, record)
        facts = clock.save()
        told.append((facts["git_revision"], facts.get("git_revisions")))
    assert told == [("aaa", None), ("aaa", None), ("bbb", ["aaa", "bbb"]), ("aaa", ["aaa", "bbb"])]
    assert module.Clock(tmp_path).save()["git_revisions"] == ["aaa", "bbb"]


def test_what_holds_no_times_gives_none():
    for facts in (None, {}, {"seconds": None}, {"seconds": {"a": 3, "b": [1], "c": [1.0, 0], "d": [0.0, 5]}}):
        assert seconds_per_pass(facts) == {}


def test_targets_and_their_success_are_kept(tmp_path):
    """Towards class 1: the examples of class 0 are pulled there, those of class 1 are left alone."""
    attacks = {"to 1": Targeted(PGD(0.4, steps=20), 1), "pgd": PGD(0.4, steps=20)}
    records = run(tmp_path, model=Base(), attacks=attacks)
    loaded = Records.load(tmp_path)
    for one in (records, loaded):
        assert (one.attacks["to 1"].targets == np.where(one.labels == 1, -1, 1)).all()
        assert one.reached("pgd") is None
        reached = one.reached("to 1")
        assert reached is not None
        assert (reached.value, reached.examples) == (1.0, int((one.labels == 0).sum()))
    assert records.score("to 1").value == (records.labels == 1).mean()
    first = int(np.flatnonzero(records.labels == 0)[0])
    records.attacks["to 1"].predictions[first] = 7  # neither right nor where it was pulled
    pulled = int((records.labels == 0).sum())
    assert records.reached("to 1").value == pytest.approx(1 - 1 / pulled)  # type: ignore[union-attr]
    for path in sorted((tmp_path / "records" / "pgd").iterdir()):  # records from before there were targets
        table = pq.read_table(path)
        pq.write_table(table.drop_columns(["target"]).replace_schema_metadata(table.schema.metadata), path)
    assert (Records.load(tmp_path).attacks["pgd"].targets == -1).all()


def test_a_suite_names_its_members():
    threat = Linf(0.1)
    members = (APGD(threat, 5), APGD(threat, 5, objective=dlr), Square(threat, 7), PGD(threat, 3), PGD(threat, 4))
    names = ["apgd-ce", "apgd-dlr", "square", "pgd 1", "pgd 2"]
    suite = Suite(threat, members)
    assert member_names(suite) == member_names(Targeted(suite, 1)) == names
    assert member_names(Suite(threat, (Custom(print, threat),))) == ["custom"]
    assert member_names(Targeted(PGD(threat), 1)) == member_names(PGD(threat)) == []
    records = run(model=Base(), attacks={"suite": Suite(Linf(0.4), (UniformNoise(Linf(0.4)), FGSM(0.4)))})
    record = records.attacks["suite"]
    assert record.info["members"] == ["uniform-noise", "fgsm"]
    assert set(record.winner) <= {-1, 0, 1}
    assert (record.winner == 1).any()


def test_a_folder_with_another_run_is_refused(tmp_path):
    run(tmp_path)
    with pytest.raises(RecordsError, match=r"differs in: .*seed"):
        run(tmp_path, seed=1)
    with pytest.raises(RecordsError, match="parts"):
        run(tmp_path, attacks=ATTACKS | {"fgsm": FGSM(2e-3)})


def test_records_with_and_without_compiled_kernels_are_not_mixed(tmp_path, monkeypatch):
    first = run(tmp_path)
    monkeypatch.setattr(
        sys.modules["stochade.evaluate.run"], "kernels", lambda: dict.fromkeys(first.meta["kernels"], "switched off")
    )
    if not any(first.meta["kernels"].values()):
        pytest.skip("no compiled kernels")
    with pytest.raises(RecordsError, match="differs in: kernels"):
        run(tmp_path)
    told = json.loads((tmp_path / "run.json").read_text())
    del told["kernels"]  # a run of an older version
    (tmp_path / "run.json").write_text(json.dumps(told))
    run(tmp_path)
    monkeypatch.undo()
    told["kernels"] = dict(list(first.meta["kernels"].items())[:1])  # a run from before a kernel was added
    (tmp_path / "run.json").write_text(json.dumps(told))
    run(tmp_path)


def test_records_survive_the_disk(tmp_path):
    records = run(tmp_path)
    loaded = Records.load(tmp_path)
    assert same(records, loaded)
    assert loaded.score("worst") == records.score("worst")
    assert loaded.meta["provenance"]["versions"]["torch"] == torch.__version__
    image = loaded.attacks["fgsm"].images[7]
    assert image.shape == (1, 4, 4)
    np.testing.assert_array_equal(image, records.attacks["fgsm"].images[7])
    moved = loaded.save(tmp_path / "copy")
    assert same(Records.load(moved), records)


def test_unfinished_and_missing_runs_are_named(tmp_path):
    with pytest.raises(RecordsError, match="run folder"):
        Records.load(tmp_path)
    run(tmp_path)
    next((tmp_path / "records" / "pgd").iterdir()).unlink()
    with pytest.raises(RecordsError, match="unfinished"):
        Records.load(tmp_path)


def test_images_outside_the_threat_are_refused():
    x, _ = examples()
    for function, message in (
        (lambda m, x, y: (x + 0.01).clamp(0, 1), "distance"),
        (lambda m, x, y: x - 1, r"\[0,1\]"),
        (lambda m, x, y: x * float("nan"), "finite"),
        (lambda m, x, y: x[:1], "images"),
    ):
        with pytest.raises(ThreatError, match=message):
            run(attacks={"bad": Custom(function, Linf(1e-3))})
    assert run(attacks={"good": Custom(lambda m, x, y: x, Linf(1e-3))}).attacks["good"].distance.max() == 0
    assert len(x)


def test_a_finished_run_that_is_read_again_keeps_its_provenance(tmp_path, monkeypatch):
    """Otherwise a number would be told of a version of the code that never measured it."""
    x, y = examples()
    first = evaluate(Base(), x, y, {"fgsm": FGSM(0.1)}, out=tmp_path, show_progress=False)
    module = sys.modules["stochade.evaluate.seconds"]  # by its name `stochade.evaluate` is the function
    monkeypatch.setattr(module, "provenance", lambda: {"git_revision": "another"})
    again = evaluate(Base(), x, y, {"fgsm": FGSM(0.1)}, out=tmp_path, show_progress=False)
    assert again.meta["provenance"] == first.meta["provenance"]
    unit = next((p for p in tmp_path.rglob("*.parquet") if "fgsm" in str(p)), None)
    assert unit is not None
    unit.unlink()
    redone = evaluate(Base(), x, y, {"fgsm": FGSM(0.1)}, out=tmp_path, show_progress=False)
    assert redone.meta["provenance"]["git_revision"] == "another"
