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
from torch import nn

import stochade
from doubles import ATTACKS, Base, examples, run
from stochade import FGSM, PGD, Custom, Linf, Records, UniformNoise, compare_runs, evaluate, sweep
from stochade.attacks.apgd import APGD
from stochade.attacks.fmn import FMN
from stochade.attacks.objectives import dlr
from stochade.attacks.square import Square
from stochade.attacks.suites import Suite
from stochade.attacks.targeted import Targeted
from stochade.errors import BudgetError, ModelError, RecordsError, StochadeError, ThreatError
from stochade.evaluate.names import member_names
from stochade.evaluate.seconds import seconds_per_pass
from stochade.models.known_answer import KNOWN, CoinFlip
from stochade.randomness import fingerprint


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*.parquet"))}


def same(a: Records, b: Records) -> bool:
    fields = ("predictions", "selection", "vote_logits", "distance", "value", "forwards", "backwards", "trace")
    return list(a.attacks) == list(b.attacks) and all(
        np.array_equal(getattr(a.attacks[n], f), getattr(b.attacks[n], f), equal_nan=f in ("value", "trace"))
        for n in a.attacks
        for f in fields
    )


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


def test_finds_on_the_boundary_survive_eight_bits():
    """Rounded towards the image they would all fall back, and a broken network would look whole."""
    case = KNOWN["linear"](0)
    images = (case.images * 255).round() / 255
    attacks = {"fmn": FMN(case.threat, steps=50), "pgd": PGD(case.threat, drop_fooled=False)}
    records = evaluate(case.model, images, case.labels, attacks, eight_bit=True, show_progress=False, keep_images=60)
    fmn, pgd = records.score("fmn").value, records.score("pgd").value
    assert fmn == pytest.approx(pgd, abs=0.02)
    for row, image in records.attacks["fmn"].images.items():
        assert np.abs(image - images[row].numpy()).max() <= case.threat.size + 1e-6
        np.testing.assert_allclose(image * 255, np.round(image * 255), atol=1e-3)


def test_eight_bit_images_are_whole_levels_and_stay_inside():
    x, y = examples()
    x = (x * 255).round() / 255
    records = evaluate(
        Base(), x, y, {"pgd": PGD(4.5 / 255, steps=5)}, eight_bit=True, show_progress=False, keep_images=60
    )
    images = np.stack([records.attacks["pgd"].images[i] for i in range(60)])
    levels = images * 255
    assert np.abs(levels - levels.round()).max() < 1e-3
    assert records.attacks["pgd"].distance.max() <= 4 / 255 + 1e-6
    assert records.attacks["pgd"].distance.max() > 3.9 / 255


def test_worst_needs_one_threat():
    x, y = examples()
    attacks = {"small": FGSM(1e-3), "large": FGSM(2e-3), **sweep(FGSM(Linf(1e-3)), [3e-3])}
    records = evaluate(Base(), x, y, attacks, show_progress=False)
    with pytest.raises(ThreatError, match="one threat"):
        records.score("worst")
    assert records.within(Linf(1e-3)) == ["clean", "small"]
    assert records.within(Linf(2e-3)) == ["clean", "small", "large"]
    assert records.score("worst", threat=Linf(2e-3)).value is not None
    with pytest.raises(RecordsError, match="did you mean 'small'"):
        records.score("smal")
    with pytest.raises(RecordsError, match="kind"):
        records.score("small", "mean")


def test_worst_is_selected_and_scored_on_different_draws():
    """Ten attacks that do nothing to a coin flip: choosing on the scored draws would find far below 0.90. The
    selected one is scored fresh: 300 x 6 draws, five standard deviations are 0.035."""
    attacks = {f"noise{i}": UniformNoise(Linf(1e-3 * (i + 1) / 10)) for i in range(10)}
    records = run(n=300, attacks=attacks)
    score = records.score("worst", threat=Linf(1e-3)).value
    assert score is not None
    assert abs(score - 0.9) < 0.035
    stacked = np.stack([records.right(n).mean(1) for n in records.attacks])
    assert stacked.min(0).mean() < 0.7, "the cheating estimate would be much lower"


def test_deterministic_models_are_scored_once():
    records = run(model=Base())
    assert records.draws == 1
    assert records.score("clean", target="test set").low == records.score("clean").value


def test_names_and_arguments_are_checked():
    x, y = examples(4)
    for attacks, message in (
        ({"clean": FGSM(0.1)}, "clean"),
        ({"worst": FGSM(0.1)}, "worst"),
        ({"f": lambda m, x, y: x}, "Custom"),
        ([FGSM(0.1), 3], "attack"),
    ):
        with pytest.raises(BudgetError, match=message):
            evaluate(Base(), x, y, attacks, show_progress=False)
    for options in ({"draws": 0}, {"chunk": 0}, {"workers": -1}, {"keep_images": 1.5}):
        with pytest.raises(BudgetError):
            evaluate(Base(), x, y, FGSM(0.1), show_progress=False, **options)
    with pytest.raises(StochadeError, match="labels"):
        evaluate(Base(), x, None, FGSM(0.1), show_progress=False)
    with pytest.raises(StochadeError, match="4"):
        evaluate(Base(), x, y[:3], FGSM(0.1), show_progress=False)


def test_uint8_arrays_datasets_and_tensors_agree():
    x, y = examples()
    bytes_ = (x * 255).round().to(torch.uint8)
    floats = bytes_.float() / 255
    attacks = {"pgd": PGD(1e-2, steps=3)}
    first = evaluate(Base(), floats, y, attacks, show_progress=False)
    second = evaluate(Base(), bytes_.numpy(), y.numpy(), attacks, show_progress=False)
    pairs = torch.utils.data.TensorDataset(floats, y)
    third = evaluate(Base(), pairs, None, attacks, show_progress=False)
    assert same(first, second)
    assert same(first, third)


def test_models_that_cannot_travel_are_refused_with_a_reason():
    x, y = examples(4)
    with pytest.raises(ModelError, match="module level"):
        evaluate(lambda x: Base()(x), x, y, FGSM(0.1), workers=1, show_progress=False)


def test_the_callers_model_and_generators_are_untouched():
    x, y = examples()
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(16), nn.Linear(16, 2), nn.Dropout(0.3)).eval()
    model[3].train()
    model[2].weight.grad = torch.ones(2, 16)
    before = {k: v.clone() for k, v in model.state_dict().items()}, fingerprint(), torch.get_num_threads()
    modes = [m.training for m in model.modules()]
    evaluate(model, x, y, {"pgd": PGD(1e-2, steps=2)}, draws=2, show_progress=False)

    def broken(m, x, y):
        m.train()
        m[1](torch.rand(4, 16))
        raise RuntimeError("midway")

    with pytest.raises(RuntimeError, match="midway"):
        evaluate(model, x, y, {"bad": Custom(broken, Linf(0.1))}, draws=2, show_progress=False)
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in before[0].items())
    assert fingerprint() == before[1]
    assert torch.get_num_threads() == before[2]
    assert modes == [m.training for m in model.modules()]
    assert torch.equal(model[2].weight.grad, torch.ones(2, 16))
    assert all(p.requires_grad for p in model.parameters())


def test_diff_is_paired(tmp_path):
    weak = run(attacks={"a": FGSM(1e-3)}, model=Base())
    strong = run(attacks={"a": FGSM(0.4)}, model=Base())
    rows = {r.attack: r for r in compare_runs(weak, strong)}
    assert rows["a"].difference.value == -1.0
    assert rows["clean"].difference.value == 0.0
    assert rows["clean"].difference.high > 0, "no difference seen is not the same as none"
    other = evaluate(Base(), *examples(10, seed=5), {"a": FGSM(0.1)}, show_progress=False)
    with pytest.raises(RecordsError, match="in common"):
        compare_runs(weak, other)


def test_top_level_names():
    for name in stochade.__all__:
        assert getattr(stochade, name) is not None


def test_worst_is_no_higher_than_the_best_attack_but_for_noise():
    """Where attacks differ little, choosing per example would chase luck and fall back to the clean images."""
    from stochade.evaluate.records import choose_worst

    g, examples_ = np.random.default_rng(0), np.arange(300)
    for levels in ([0.04, 0.045, 0.06, 0.9], [0.33, 0.34, 0.35, 0.98], [0.9] * 5):
        truth = np.array(levels)[:, None] * np.ones((1, 300))
        chosen = [
            truth[
                choose_worst(g.random((*truth.shape, draws)) < truth[:, :, None], last=len(levels) - 1), examples_
            ].mean()
            for draws in (5, 20)
            for _ in range(20)
        ]
        assert np.mean(chosen) <= min(levels) + 0.01


def test_worst_takes_each_attack_where_it_wins():
    from stochade.evaluate.records import choose_worst

    truth = np.full((3, 300), 0.9)
    truth[0, :150] = truth[1, 150:] = 0.1
    right = np.random.default_rng(0).random((3, 300, 20)) < truth[:, :, None]
    assert truth[choose_worst(right, last=2), np.arange(300)].mean() < 0.11


def test_diff_scores_the_common_examples_only():
    x, y = examples(60)
    first = evaluate(Base(), x, y, {"a": FGSM(0.2)}, show_progress=False)
    second = evaluate(Base(), x[:20], y[:20], {"a": FGSM(0.2)}, show_progress=False)
    for row in compare_runs(first, second):
        assert row.first == row.second
        assert row.difference.examples == 20
