"""The threshold baseline on images whose truth is known: no pixel can cross 0.5 inside the budget."""

import pytest
import torch
from torch import nn

from stochade import Linf, audit
from stochade.audit import Effort
from stochade.audit.baseline import Baseline, Network, baseline_facts, looks_binary, train_baseline, transfer_attack
from stochade.cli.common import DataOptions, load_baseline
from stochade.errors import DataError, UsageError

SMALL = Effort(steps=5, draws=2, pairs=5, evolution_steps=2, samples=5, queries=20)


def pictures(n, seed):
    """Black and white 8x8 pictures of two patterns with a few pixels flipped, within 0.1 of black and white."""
    generator = torch.Generator().manual_seed(seed)
    patterns = (torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(5)) > 0.5).float()
    y = torch.randint(0, 2, (n,), generator=generator)
    flips = torch.rand(n, 1, 8, 8, generator=generator) < 0.1
    x = torch.where(flips, 1 - patterns[y], patterns[y])
    return (x - 0.1 * x.sign().mul(2).sub(1) * torch.rand(x.shape, generator=generator)).clamp(0, 1), y


@pytest.fixture(scope="module")
def training():
    return Baseline(*pictures(600, 0))


def test_nothing_crosses_the_threshold_inside_the_budget(training):
    x, y = pictures(100, 1)
    facts = baseline_facts(training, x, y, Linf(0.3), SMALL, show_progress=False, chunk=50)
    assert facts["clean"] > 0.95
    assert sum(facts["right"]) / 100 == pytest.approx(facts["clean"])
    lost = baseline_facts(training, x, y, Linf(0.6), SMALL, show_progress=False, chunk=50)
    assert sum(lost["right"]) == 0


def test_training_is_reproducible_and_cached(training, tmp_path):
    from dataclasses import replace

    first, again = train_baseline(training, True), train_baseline(training, True)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    cached = replace(training, cache=tmp_path)
    train_baseline(cached, True)
    (file,) = tmp_path.iterdir()
    before = file.stat().st_mtime_ns
    loaded = train_baseline(cached, True)
    assert file.stat().st_mtime_ns == before
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), loaded.parameters(), strict=True))
    train_baseline(cached, False)
    assert len(list(tmp_path.iterdir())) == 2


def test_grey_images_are_refused():
    x = torch.rand(50, 1, 8, 8)
    assert not looks_binary(x)
    with pytest.raises(DataError, match="black and white"):
        train_baseline(Baseline(x, torch.zeros(50, dtype=torch.long)), True)


def test_bad_baselines_are_refused_before_any_compute(training):
    def never(x):
        raise AssertionError("the model was called")

    x, y = pictures(20, 1)
    with pytest.raises(DataError, match="Baseline"):
        audit(never, x, y, Linf(0.3), baseline=(x, y))  # type: ignore[arg-type]
    with pytest.raises(DataError, match="black and white"):
        audit(never, x, y, Linf(0.3), baseline=Baseline(0 * x + 0.5, y))
    with pytest.raises(UsageError, match="--data"):
        load_baseline(DataOptions(), (x, y))


def test_the_transfer_attack_fools_a_plain_network(training):
    x, y = pictures(60, 2)
    (attack,) = transfer_attack(training, Linf(0.6), 10, 0).values()
    plain = train_baseline(training, False)
    assert float((plain(attack(plain, x, y)).argmax(1) == y).float().mean()) < 0.2


def test_an_audit_says_when_a_defence_is_below_the_baseline(training):
    """A plain network against its thresholded twin, which loses nothing."""
    x, y = pictures(100, 3)
    plain = train_baseline(training, False)
    result = audit(plain, x, y, Linf(0.4), effort=SMALL, baseline=training, show_progress=False)
    findings = {f.check: f for f in result.findings}
    assert "below-threshold-baseline" in findings
    assert any(name.startswith("transfer from") for name in result.records.attacks)
    twin = train_baseline(training, True)
    result = audit(twin, x, y, Linf(0.4), effort=SMALL, baseline=training, show_progress=False)
    assert "below-threshold-baseline" not in {f.check for f in result.findings}


def test_networks_of_odd_sizes():
    for shape in ((1, 28, 28), (1, 7, 9), (3, 8, 8)):
        assert Network(shape, 10, True)(torch.rand(2, *shape)).shape == (2, 10)
    assert isinstance(Network((1, 8, 8), 2, False), nn.Module)
