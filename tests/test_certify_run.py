"""Runs of certificates: resumable to the byte, refused where they are another run, and bracketed by attacks."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from stochade.certify import ABSTAIN, FlipNoise, Gaussian, RateCode, SmoothingCode, certify
from stochade.certify.bracket import attacks_at, bracketed, upper_bounds
from stochade.certify.choose import as_attacked, smoothing_of
from stochade.certify.confidence import ceiling, vote_decided
from stochade.certify.lines import locked
from stochade.certify.run import Certified, certify_examples, grid, just_above
from stochade.errors import BudgetError, ModelError, RecordsError, UsageError
from stochade.evaluate import evaluate
from stochade.models.encoded import Encoded, FrameMean
from stochade.models.noisy import NoisyInput
from stochade.nn.encoders import BernoulliRate, SignedRate
from stochade.nn.encoders_gaussian import RSC


def network(seed=0):
    generator = torch.Generator().manual_seed(seed)
    layer = nn.Linear(4, 3)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(3, 4, generator=generator))
        layer.bias.zero_()
    return nn.Sequential(nn.Flatten(), layer).eval()


def examples(count=6, seed=0):
    x = torch.rand(count, 1, 2, 2, generator=torch.Generator().manual_seed(seed))
    y = network()(x).argmax(1)
    y[0] = (y[0] + 1) % 3
    return x, y


SETTINGS = {"selection": 20, "draws": 400, "alpha": 0.01, "batch": 64, "show_progress": False}


def test_lines_are_those_of_certify(tmp_path):
    x, y = examples()
    found = certify_examples(network(), x, y, Gaussian(0.3), **SETTINGS, out=tmp_path / "run")
    ids = torch.tensor([line.id for line in found.lines])
    settings = {k: v for k, v in SETTINGS.items() if k != "show_progress"}
    for line, one in zip(found.lines, certify(network(), x, Gaussian(0.3), **settings, ids=ids), strict=True):
        assert (line.certificate.votes, line.certificate.radius) == (one.votes, one.radius)
    good = [line.right and line.certificate.radius > 0.1 for line in found.lines]
    assert found.accuracy(0.1).value == pytest.approx(np.mean(good))
    assert not found.lines[0].right
    assert found.radii()[0] == 0
    assert found.draws().tolist() == [420] * 6
    loaded = Certified.load(tmp_path / "run")
    assert loaded.lines == found.lines
    assert loaded.accuracy(0.2) == found.accuracy(0.2)


def test_a_stopped_run_goes_on_and_ends_as_an_unbroken_one(tmp_path):
    x, y = examples()
    whole = certify_examples(network(), x, y, Gaussian(0.3), **SETTINGS)
    certify_examples(network(), x, y, Gaussian(0.3), **SETTINGS, out=tmp_path / "run")
    path = tmp_path / "run" / "certificates.jsonl"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])  # killed in the middle of a line

    resumed = certify_examples(network(), x, y, Gaussian(0.3), **SETTINGS, out=tmp_path / "run")
    strip = [(line.row, line.id, line.label, line.certificate.votes, line.certificate.radius) for line in whole.lines]
    assert strip == [(r.row, r.id, r.label, r.certificate.votes, r.certificate.radius) for r in resumed.lines]
    assert len(path.read_bytes().splitlines()) == 6
    assert all(json.loads(text) for text in path.read_text().splitlines())


def test_another_run_is_refused(tmp_path):
    x, y = examples()
    certify_examples(network(), x, y, Gaussian(0.3), **SETTINGS, out=tmp_path / "run")
    with pytest.raises(RecordsError, match="draws"):
        certify_examples(network(), x, y, Gaussian(0.3), **(SETTINGS | {"draws": 500}), out=tmp_path / "run")
    with pytest.raises(RecordsError, match="model or images"):
        certify_examples(network(1), x, y, Gaussian(0.3), **SETTINGS, out=tmp_path / "run")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("mine")
    with pytest.raises(RecordsError, match="empty folder"):
        certify_examples(network(), x, y, Gaussian(0.3), **SETTINGS, out=tmp_path / "other")
    with pytest.raises(RecordsError, match="stochade certify"):
        Certified.load(tmp_path / "other")


LEVEL = {"sign": 1}  # no digest sees it


class Hidden(nn.Module):
    def __init__(self):
        super().__init__()
        self.base = network()

    def forward(self, x):
        return LEVEL["sign"] * self.base(x)


@pytest.mark.parametrize("radii", [(), (0.05, 0.1)])
@pytest.mark.parametrize("left", [2, 6])
def test_another_model_of_the_same_digest_is_refused(left, radii, tmp_path, monkeypatch):
    x, y = examples()
    settings = SETTINGS | {"out": tmp_path / "run", "radii": radii}
    found = certify_examples(Hidden().eval(), x, y, Gaussian(0.3), **settings)
    path = tmp_path / "run" / "certificates.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:left]))
    before = path.read_bytes()
    monkeypatch.setitem(LEVEL, "sign", -1)
    with pytest.raises(RecordsError, match="another model than the one of this run"):
        certify_examples(Hidden().eval(), x, y, Gaussian(0.3), **settings)
    assert path.read_bytes() == before
    monkeypatch.setitem(LEVEL, "sign", 1)
    again = certify_examples(Hidden().eval(), x, y, Gaussian(0.3), **settings)
    assert again.accuracy(0.05) == found.accuracy(0.05)


def test_attributes_and_closures_make_another_model(tmp_path):
    def scaled(scale):
        base = network()
        return lambda z: scale * base(z)

    x, y = examples()
    settings = SETTINGS | {"independent": True, "out": tmp_path / "run"}
    certify_examples(scaled(1), x, y, Gaussian(0.3), **settings)
    with pytest.raises(RecordsError, match="model or images"):
        certify_examples(scaled(2), x, y, Gaussian(0.3), **settings)


@pytest.mark.parametrize(
    "line", ['{"row": 1', '{"row": 1}', '{"row": 3}', '{"row": 1, "id": 0, "label": 0, "votes": 3}', "7"]
)
def test_a_damaged_line_is_named(line, tmp_path):
    x, y = examples()
    certify_examples(network(), x, y, Gaussian(0.3), **SETTINGS, out=tmp_path / "run")
    path = tmp_path / "run" / "certificates.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], line, *lines[2:]]) + "\n")
    with pytest.raises(RecordsError, match=r"certificates\.jsonl, line 2"):
        Certified.load(tmp_path / "run")
    with pytest.raises(RecordsError, match=r"certificates\.jsonl, line 2"):
        certify_examples(network(), x, y, Gaussian(0.3), **SETTINGS, out=tmp_path / "run")
    path.write_text("\n".join([*lines, lines[-1]]) + "\n")
    with pytest.raises(RecordsError, match="at most 6 lines"):
        Certified.load(tmp_path / "run")


def test_a_second_run_at_once_is_refused(tmp_path):
    x, y = examples()
    tried = []

    def second(z):
        if not tried and (tmp_path / "run").exists():
            tried.append(True)
            with pytest.raises(RecordsError, match="another run is writing here"), locked(tmp_path / "run"):
                pass
        return network()(z)

    certify_examples(second, x, y, Gaussian(0.3), **SETTINGS, out=tmp_path / "run", independent=True)
    assert tried
    with locked(tmp_path / "run"):
        pass


def test_a_model_brings_its_own_smoothing():
    base = network()
    rate, signed = BernoulliRate(3), SignedRate(2, mean=0.4)
    for encoder, expected in ((rate, RateCode), (signed, RateCode), (RSC(0.2, 2, "II"), SmoothingCode)):
        model = Encoded(encoder, FrameMean(base)).eval()
        found, smoothing = smoothing_of(model)
        assert found is model
        assert type(smoothing) is expected
        assert as_attacked(found, smoothing) is model
        assert certify(found, examples()[0][:1], smoothing, selection=5, draws=60, alpha=0.05)[0].draws == 65
    found, smoothing = smoothing_of(NoisyInput(base, 0.15))
    assert found is base
    assert smoothing.sigma == 0.15
    assert smoothing_of(base, sigma=0.5)[1].sigma == 0.5
    with pytest.raises(UsageError, match="--sigma"):
        smoothing_of(base)
    with pytest.raises(UsageError, match="l2"):
        smoothing_of(base, 0.5, "linf")
    with pytest.raises(ModelError, match="floor"):
        smoothing_of(Encoded(SignedRate(2, floor=0.1), FrameMean(base)))


def test_the_attacked_model_is_the_certified_one():
    torch.manual_seed(0)
    x = examples()[0]
    noisy = as_attacked(network(), Gaussian(0.3))
    draws = torch.stack([noisy(x) for _ in range(4000)])
    clean = network()(x)
    assert torch.allclose(draws.mean(0), clean, atol=0.05)
    assert torch.allclose(draws.std(0), 0.3 * network()[1].weight.norm(dim=1).expand_as(clean), rtol=0.08)


@pytest.mark.parametrize("kind", ["gaussian", "rate"])
def test_certified_below_true_below_attacked(kind):
    """On a linear model under Gaussian noise the truth is the margin; behind rate codes it is bracketed."""
    x, y = examples(40, 3)
    base = network()
    model = base if kind == "gaussian" else Encoded(BernoulliRate(4), FrameMean(base)).eval()
    model, smoothing = smoothing_of(model, 0.3 if kind == "gaussian" else None)
    radii = [0.0, 0.03, 0.08, 0.15]
    found = certify_examples(model, x, y, smoothing, **(SETTINGS | {"draws": 1000}))
    attacks = attacks_at(smoothing.norm, radii, steps=10, draws=4)
    records = evaluate(as_attacked(model, smoothing), x, y, attacks, draws=60, show_progress=False)
    above, users = upper_bounds(records, 0.01, undecided=True), upper_bounds(records, 0.01)
    assert all(users[r].value <= above[r].value for r in radii)
    below = {r: found.accuracy(r) for r in radii}
    assert list(above) == radii
    assert bracketed(below, above)
    assert below[0.0].value > 0.5
    assert above[0.15].value < above[0.0].value
    if kind == "gaussian":
        from stochade.certify import linear_radii

        true = linear_radii(base, x, y, "l2", box=False).numpy()
        for r in radii[1:]:
            assert below[r].value <= (true > r).mean() <= above[r].high


def test_a_vote_that_is_not_decided_counts_as_an_error():
    x, y = torch.zeros(1, 1, 2, 2), torch.tensor([0])  # a fair coin
    level = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False)).eval()
    with torch.no_grad():
        level[1].weight.copy_(torch.stack([torch.ones(4), torch.full((4,), 0.999)]))
    records = evaluate(as_attacked(level, Gaussian(5.0)), x, y, (), draws=60, show_progress=False)
    right = int((records.attacks["clean"].predictions == 0).sum())
    assert not vote_decided(max(right, 60 - right), min(right, 60 - right), 0.001)
    assert upper_bounds(records, 0.001)[0.0].value == 0
    assert upper_bounds(records, 0.001, undecided=True)[0.0].value == 1
    one = certify_examples(level, x, y, Gaussian(5.0), **SETTINGS)
    assert one.lines[0].certificate.prediction == ABSTAIN
    assert one.accuracy().value == 0
    assert one.abstained().value == 1


def test_grids_and_impossible_attacks():
    radii = grid(Gaussian(0.5), 1000, 0.001)
    assert radii[0] == 0
    assert radii[-1] == pytest.approx(2.46 * 0.5, rel=0.01)  # of unanimous votes
    assert grid(RateCode(4, norm="linf"), 1000, 0.001)[:2] == [0, pytest.approx(0.5 / 255, rel=0.01)]
    for flips in (FlipNoise(0.3), FlipNoise(0.01, 0.3), FlipNoise(0.45), FlipNoise(1e-3)):
        reach = flips.radius(ceiling(1000, 0.001)) - 1
        radii = grid(flips, 1000, 0.001)
        assert radii == sorted(set(radii))
        assert all(r == int(r) for r in radii)
        assert (radii[0], radii[-1], len(radii)) == (0, reach, min(5, reach + 1))
    assert grid(FlipNoise(0.45), 1000, 0.001)[-1] > 4
    assert grid(RateCode(4, norm="l0", floor=0.1), 1000, 0.001) == [0, 1, 2, 3, 4]
    with pytest.raises(BudgetError, match="l0"):
        attacks_at("l0", [1])
    with pytest.raises(BudgetError, match="above 0"):
        attacks_at("l2", [0.0])


def test_distance_0_is_asked_below_the_least_of_the_others():
    assert just_above([]) == []
    for radii in ([0.0], [0.0, 0.5], [0.0, 1e-13, 2.0], [0.5]):
        asked = just_above(radii)
        assert len(asked) == len(radii)
        assert all(a > r for a, r in zip(asked, radii, strict=True))
        assert asked == sorted(set(asked))


def test_decided_one_by_one_they_agree_with_the_fixed_draws(tmp_path):
    """Votes differ, so a radius near its threshold may fall either way; the draws are far fewer."""
    x, y = examples(30, 5)
    settings = SETTINGS | {"draws": 4000}
    fixed = certify_examples(network(), x, y, Gaussian(0.3), **settings)
    radii = [0.05, 0.1, 0.2]
    found = certify_examples(network(), x, y, Gaussian(0.3), **settings, radii=radii, out=tmp_path / "run")
    assert found.draws().mean() < 0.4 * fixed.draws().mean()
    for r in radii:
        assert abs(found.accuracy(r).value - fixed.accuracy(r).value) <= 0.1
    assert found.accuracy(0.2).value < found.accuracy(0.05).value
    assert found.accuracy(0.21).value == 0  # not asked
    again = certify_examples(network(), x, y, Gaussian(0.3), **settings, radii=radii, out=tmp_path / "run")
    assert again.lines == found.lines
    with pytest.raises(RecordsError, match="radii"):
        certify_examples(network(), x, y, Gaussian(0.3), **settings, radii=[0.1], out=tmp_path / "run")
    for bad in ([0.2, 0.1], [0.1, 0.0], [0.0, 0.0], [False], ["0.1"]):
        with pytest.raises(BudgetError, match="radii"):
            certify_examples(network(), x, y, Gaussian(0.3), **settings, radii=bad)


def test_the_vote_is_decided_beside_the_radii():
    x, y = examples(30, 5)
    settings = SETTINGS | {"draws": 4000}
    fixed = certify_examples(network(), x, y, Gaussian(0.3), **settings)
    alone = certify_examples(network(), x, y, Gaussian(0.3), **settings, radii=[0])
    both = certify_examples(network(), x, y, Gaussian(0.3), **settings, radii=[0, 0.2])
    assert alone.draws().mean() < 0.2 * fixed.draws().mean()
    for found in (alone, both):
        assert abs(found.accuracy().value - fixed.accuracy().value) <= 0.1
    assert both.accuracy(0.2).value < both.accuracy().value
